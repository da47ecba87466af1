"""Files that take long are begun first, so that none of them is what one worker runs alone at the end."""

import atexit
import json
import os
import shutil
import subprocess
import sys
import tempfile

import pytest
import warm_python

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
    # Two threads that wait for each other leave the cores to others
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if "SYNTHNB_CACHE" not in os.environ:  # what checks of images remember stays out of the home of who tests
        os.environ["SYNTHNB_CACHE"] = tempfile.mkdtemp(prefix="synthnb-cache-")
        atexit.register(shutil.rmtree, os.environ["SYNTHNB_CACHE"], ignore_errors=True)
    if sys.platform == "linux" and not hasattr(config, "workerinput"):  # one for all workers of pytest-xdist
        start_warm_python()
    if hasattr(config.option, "loadscopereorder"):  # of pytest-xdist, which would begin with the files of most tests
        config.option.loadscopereorder = False


def start_warm_python():
    """Costs nothing until a test asks for the first fork; ends with this process, whatever ends it."""
    home = tempfile.mkdtemp(prefix="synthnb-warm-")
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    with open(f"{home}/python", "w") as file:
        file.write(f'#!/bin/sh\nexec {sys.executable} {warm_python.__file__} "$@"\n')
    os.chmod(f"{home}/python", 0o755)
    command = [sys.executable, warm_python.__file__, "--serve", f"{home}/socket"]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
    assert server.stdout.readline() == b"ready\n"
    atexit.register(server.wait)
    atexit.register(server.stdin.close)
    os.environ[warm_python.SERVER] = f"{home}/socket"


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


@pytest.fixture(scope="session")
def warm_jupyter(tmp_path_factory) -> str:
    """A JUPYTER_PATH whose kernels are forks that have imported the model libraries already."""
    home = tmp_path_factory.mktemp("jupyter")
    (home / "kernels/python3").mkdir(parents=True)
    command = [sys.executable, warm_python.__file__, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": command, "display_name": "Python 3", "language": "python"}
    (home / "kernels/python3/kernel.json").write_text(json.dumps(spec))
    return str(home)


@pytest.fixture
def warm_kernels(warm_jupyter, monkeypatch):
    """Kernels of notebooks are those of `warm_jupyter`."""
    monkeypatch.setenv("JUPYTER_PATH", warm_jupyter)


@pytest.fixture
def warm_workers(monkeypatch):
    """What a test starts by `sys.executable` is a fork of the warm Python, and so is what that one starts."""
    monkeypatch.setenv(warm_python.FORKS_TOO, "1")
    if server := os.environ.get(warm_python.SERVER):
        monkeypatch.setattr(sys, "executable", os.path.join(os.path.dirname(server), "python"))
