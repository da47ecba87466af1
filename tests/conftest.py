"""Files that take long are begun first, so that none of them is what one worker runs alone at the end."""
LONG = ("test_shards", "test_paper_scale", "test_sweep", "test_build", "test_benchmarks", "test_experiment")  # by their CPU seconds


def pytest_configure(config):
    if hasattr(config.option, "loadscopereorder"):  # of pytest-xdist, which would begin with the files of most tests
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))
