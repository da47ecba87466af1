"""The wheel holds every module and every model, and they are found where the wheel puts them."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel built from a copy, without network, so that the checkout stays as it is."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(
        ROOT / "synthnb", folder / "source" / "synthnb", ignore=shutil.ignore_patterns("__pycache__", ".build")
    )
    checkpoint = folder / "source" / "synthnb" / "weights" / ".build" / "unet" / "config.json"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_text("{}")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    command = [
        sys.executable,
        "-m",
        "build",
        "--no-isolation",
        "--wheel",
        "--outdir",
        str(folder),
        str(folder / "source"),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(folder.glob("*.whl"))


def test_wheel_holds_modules_and_models(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    files = [
        path
        for path in (ROOT / "synthnb").rglob("*")
        if path.is_file() and not {"__pycache__", ".build"} & {*path.parts}
    ]
    missing = {path.relative_to(ROOT).as_posix() for path in files} - names
    assert not missing
    assert not [name for name in names if ".build" in name], "checkpoints are not for users"
    assert not [name for name in names if name.startswith(("nbs", "tests", "tools", "outputs"))]


def test_installed_wheel_finds_its_models(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    models = sorted(path.name for path in (ROOT / "synthnb" / "weights").glob("[!.]*") if path.is_dir())
    code = f"import synthnb.glyphworld.world as g; print(*(g.folder(name) for name in {models}), sep='\\n')"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(tmp_path / "synthnb" / "weights" / name) for name in models]
