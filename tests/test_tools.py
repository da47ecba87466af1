"""`make nb` and the sync check, on a small repository of their own."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
CELLS = [
    "#| default_exp words",
    "#| export\ndef hello() -> str:\n    return 'hello'",
    "import sys\nfrom pathlib import Path\n"
    "print(' 50%|#####     | 1/2 [00:00<00:00]\\r100%|##########| 2/2 [00:01<00:00]', file=sys.stderr)\n"
    "print('a warning', file=sys.stderr)\nprint(hello(), Path.cwd().name)\nprint('in', Path.home() / '.cache')",
    "#| eval: false\nraise SystemExit",
    "#| slow\nprint('slow ran')",
]


def save(path: Path, sources: list[str]) -> None:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "python3", "language": "python"}
    for index, cell in enumerate(notebook.cells):
        cell.id = f"{index:08x}"
    nbformat.write(notebook, path)


@pytest.fixture
def repo(tmp_path) -> Path:
    for name in ("settings.ini", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "tools", tmp_path / "tools", ignore=shutil.ignore_patterns("__pycache__"))
    for folder in ("nbs", "synthnb"):
        (tmp_path / folder).mkdir()
    save(tmp_path / "nbs" / "00_words.ipynb", CELLS)
    return tmp_path


def tool(repo: Path, name: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """Run one of the tools in `repo`, outside of CI unless said otherwise."""
    known = {key: value for key, value in os.environ.items() if key not in ("CI", "FLAGS")}
    return subprocess.run(
        [sys.executable, f"tools/{name}.py", *arguments],
        cwd=repo,
        env=known | environment,
        capture_output=True,
        text=True,
    )


def printed(path: Path) -> str:
    outputs = [output for cell in nbformat.read(path, as_version=4).cells for output in cell.outputs]
    return "".join(output.text for output in outputs)


def test_run_stores_outputs_without_noise(repo):
    path = repo / "nbs" / "00_words.ipynb"
    done = tool(repo, "run_notebook", "nbs/00_words.ipynb")
    assert done.returncode == 0, done.stderr
    assert sorted(printed(path).splitlines()) == ["a warning", "hello nbs", "in ~/.cache"]
    assert "def hello" in (repo / "synthnb" / "words.py").read_text()
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert tool(repo, "check_sync").returncode == 0
    assert tool(repo, "run_notebook", "nbs/00_words.ipynb", FLAGS="slow").returncode == 0
    assert "slow ran" in printed(path)


def test_failing_notebook_stays_as_it_was(repo):
    path = repo / "nbs" / "00_words.ipynb"
    save(path, ["#| default_exp words", "print('fine')", "1 / 0"])
    before = path.read_bytes()
    done = tool(repo, "run_notebook", "nbs/00_words.ipynb")
    assert done.returncode == 1 and "1 / 0" in done.stderr and "ZeroDivisionError" in done.stderr
    assert path.read_bytes() == before and [file.name for file in path.parent.iterdir()] == [path.name]


def test_missing_notebook_is_named(repo):
    done = tool(repo, "run_notebook", "nbs/01_none.ipynb")
    assert done.returncode == 1 and done.stderr.strip() == "no such notebook: nbs/01_none.ipynb"


def test_sync_check_reports_and_changes_nothing(repo):
    path = repo / "nbs" / "00_words.ipynb"
    before = path.read_bytes()
    done = tool(repo, "check_sync")
    assert done.returncode == 1 and "synthnb/words.py" in done.stdout, "a module that was never exported"
    assert path.read_bytes() == before and not list((repo / "synthnb").iterdir())

    subprocess.run([Path(sys.executable).with_name("nbdev_clean")], cwd=repo, check=True)
    subprocess.run([Path(sys.executable).with_name("nbdev_export")], cwd=repo, check=True)
    assert tool(repo, "check_sync").returncode == 0
    module = repo / "synthnb" / "words.py"
    module.write_text(module.read_text().replace("hello", "good day"))
    done = tool(repo, "check_sync")
    assert done.returncode == 1 and "synthnb/words.py" in done.stdout and "good day" in module.read_text()
    path.write_text("{")
    assert tool(repo, "check_sync").returncode == 1, "an unreadable notebook"


def test_sync_check_sees_what_git_does_not_know(repo):
    subprocess.run([Path(sys.executable).with_name("nbdev_clean")], cwd=repo, check=True)
    subprocess.run([Path(sys.executable).with_name("nbdev_export")], cwd=repo, check=True)
    subprocess.run(["git", "init", "-q"], cwd=repo, check=True)
    done = tool(repo, "check_sync")
    assert done.returncode == 0 and re.match("warning: not added to git: .*nbs/00_words.ipynb", done.stdout)
    done = tool(repo, "check_sync", CI="true")
    assert done.returncode == 1 and "error: not added to git" in done.stdout
    subprocess.run(["git", "add", "nbs", "synthnb"], cwd=repo, check=True)
    assert tool(repo, "check_sync", CI="true").returncode == 0
