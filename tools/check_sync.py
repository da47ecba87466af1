"""Are the notebooks clean, are the modules what the notebooks export, and is nothing forgotten by git?

Cleaning and exporting happen in a throw-away copy, so the check changes nothing and means the same in a developer's
half-finished tree as in a fresh clone.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WATCHED = ("nbs/**/*.ipynb", "synthnb/**/*.py")


def contents(root: Path) -> dict[str, bytes]:
    """The bytes of every notebook and module under `root`, by relative path."""
    found = (path for pattern in WATCHED for path in root.glob(pattern))
    return {
        path.relative_to(root).as_posix(): path.read_bytes() for path in found if ".ipynb_checkpoints" not in path.parts
    }


def cleaned_and_exported(before: dict[str, bytes]) -> dict[str, bytes]:
    """What `nbdev_clean` and `nbdev_export` make of `before`; an unreadable notebook ends the check."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder).resolve() / "synthnb"
        for name, data in before.items():
            path = copy / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        for name in ("settings.ini", "pyproject.toml"):
            shutil.copy(ROOT / name, copy / name)
        for tool in ("nbdev_clean", "nbdev_export"):
            done = subprocess.run([Path(sys.executable).with_name(tool)], cwd=copy, capture_output=True, text=True)
            # nbdev_clean only warns about a notebook that it cannot read
            if done.returncode or "Failed to clean" in done.stderr:
                sys.exit(f"{tool} failed:\n{done.stdout}{done.stderr}".replace(str(copy), "."))
        return contents(copy)


def unknown_to_git() -> list[str]:
    """Notebooks and modules that nobody has added; nothing outside a git checkout."""
    command = ["git", "ls-files", "--others", "--exclude-standard", "--", "nbs", "synthnb"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return [] if done.returncode else done.stdout.splitlines()


def main() -> None:
    before = contents(ROOT)
    after = cleaned_and_exported(before)
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    forgotten = unknown_to_git()
    if forgotten:
        print(f"{'error' if os.environ.get('CI') else 'warning'}: not added to git: {', '.join(forgotten)}", flush=True)
    if changed:
        print(
            "error: not clean, or not what the notebooks export: "
            + ", ".join(changed)
            + "\n       `make sync` mends it (an edit made in a module by hand is kept by `nbdev_update` only)"
        )
    if changed or (forgotten and os.environ.get("CI")):
        sys.exit(1)
    print(f"notebooks clean, modules in sync: {sum(name.endswith('.ipynb') for name in before)} notebooks")


if __name__ == "__main__":
    main()
