"""Situations that people met with tools like this one, as scripts that ask the real functions and commands
(tests/cases); each ends with 0, or with 2 where this machine cannot tell."""

import subprocess
import sys
from pathlib import Path

import pytest
import warm_python

CASES = sorted(path for path in (Path(__file__).parent / "cases").glob("*.py") if not path.name.startswith("_"))


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_case(path):
    done = subprocess.run([sys.executable, warm_python.__file__, path], capture_output=True, text=True, timeout=900)
    if done.returncode == 2:
        pytest.skip(done.stdout.strip().splitlines()[-1])
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-3000:]}"
