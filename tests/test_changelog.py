"""Names that CHANGELOG sends users to are there."""

import re
from importlib import import_module
from pathlib import Path

import pytest

ROWS = [
    re.fullmatch(r"\| (.+) \| (.+) \|", line)
    for line in (Path(__file__).resolve().parents[1] / "CHANGELOG.md").read_text(encoding="utf-8").splitlines()
]
PLACE = re.compile(r"`((?:synthnb|prompts|images|models|studies|training|core)\.[\w.]+)`")


def _module(name: str):
    """The module of a row, or None for a name that stands in a module."""
    try:
        return import_module(name if name.startswith("synthnb.") else f"synthnb.{name}")
    except ModuleNotFoundError:
        return None


def _moved() -> list[tuple[str, list[str], list[str]]]:
    """Of each row of moved names: the row, the names, and the modules that should have them."""
    found = []
    for row in filter(None, ROWS):
        before, now = row.groups()
        names = re.findall(r"`(?:\w+\.)?(\w+)`", re.sub(r"of `images\.\w+`: ", "", before))
        if (places := PLACE.findall(now)) and not before.startswith("`synthnb."):
            found.append((before, names, places))
    return found


@pytest.mark.parametrize("before, names, places", _moved(), ids=lambda value: str(value)[:40])
def test_moved_names_are_where_they_are_said_to_be(before, names, places):
    modules = [module for place in places if (module := _module(place))]
    assert modules, f"no module: {places}"
    lost = [name for name in names if not any(hasattr(module, name) for module in modules)]
    assert not lost, f"{lost} of {places}"


def test_there_are_such_rows():
    assert sum(len(names) for _, names, _ in _moved()) > 90
