"""The installed command, as a shell sees it (nbs/13_cli.ipynb tests the rest)."""
import subprocess
import sys
from pathlib import Path

import synthnb

COMMAND = Path(sys.executable).with_name("synthnb")


def test_version_from_anywhere(tmp_path):
    done = subprocess.run([COMMAND, "--version"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"synthnb {synthnb.__version__}\n")


def test_mistake_is_one_line(tmp_path):
    done = subprocess.run([COMMAND, "run", "nothing.ipynb"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "error: there is no notebook nothing.ipynb\n")
