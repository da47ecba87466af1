"""Files that take long are begun first, so that none of them is what one worker runs alone at the end."""

import atexit
import os
import shutil
import tempfile

import pytest

LONG = (
    "test_cases",
    "test_shards",
    "test_paper_scale",
    "test_sweep",
    "test_build",
    "test_benchmarks",
    "test_experiment",
)  # by their CPU seconds


def pytest_configure(config):
    if "SYNTHNB_CACHE" not in os.environ:  # what checks of images remember stays out of the home of who tests
        os.environ["SYNTHNB_CACHE"] = tempfile.mkdtemp(prefix="synthnb-cache-")
        atexit.register(shutil.rmtree, os.environ["SYNTHNB_CACHE"], ignore_errors=True)
    if hasattr(config.option, "loadscopereorder"):  # of pytest-xdist, which would begin with the files of most tests
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


@pytest.fixture(scope="module")
def clip():
    from synthnb.glyphworld.world import folder
    from synthnb.models.clip import load_clip

    return load_clip(folder("clip"), device="cpu")


@pytest.fixture(scope="module")
def scans():
    from synthnb.data import digits

    return digits(32)["train"]
