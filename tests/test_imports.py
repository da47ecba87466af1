"""Every module stands on its own: what a notebook defines and does not export is missing here."""
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "synthnb"
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")


@pytest.mark.parametrize("name", MODULES)
def test_module_imports_in_a_fresh_process(name, tmp_path):
    code = f"import synthnb.{name} as m; [getattr(m, n) for n in getattr(m, '__all__', [])]"
    done = subprocess.run([sys.executable, "-W", "error::SyntaxWarning", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir()), "an import should write nothing"
