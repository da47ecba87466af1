"""Print how big and how dense this repository is: `python tools/measure_house.py`.

Lines are not blank; a cell is a code cell; a figure is an image among the stored outputs.
"""

import ast
import re
import statistics
import subprocess
from collections.abc import Iterable
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[1]
PACKAGE, NBS = ROOT / "synthnb", ROOT / "nbs"
WIDTH = 120


def modules() -> dict[str, ast.Module]:
    """Every module by its dotted name."""
    found = {
        path: ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        for path in sorted(PACKAGE.rglob("*.py"))
        if not path.name.startswith("_")
    }
    return {name: ast.parse(path.read_text(encoding="utf-8")) for path, name in found.items()}


def notebooks(pattern: str = "**/*.ipynb") -> dict[Path, nbformat.NotebookNode]:
    """Notebooks that are not hidden."""
    found = [path for path in sorted(NBS.glob(pattern)) if not re.search(r"/[._]", path.relative_to(ROOT).as_posix())]
    return {path: nbformat.read(path, as_version=4) for path in found}


def public_names(tree: ast.Module) -> list[str]:
    """What a module exports."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return ast.literal_eval(node.value)
    return []


def used_names(tree: ast.Module, own: str, modules: Iterable[str]) -> set[tuple[str, str]]:
    """Module and name of what some code imports from the package, or reads from a module that it imported."""
    found, called, home = set(), {}, own.split(".")[:-1]
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or not (node.level or (node.module or "").startswith("synthnb")):
            continue
        base = home[: len(home) + 1 - node.level] if node.level else []
        parts = (node.module or "").split(".")
        whole = ".".join(filter(None, [*base, *(parts if node.level else parts[1:])]))
        for alias in node.names:
            if (module := f"{whole}.{alias.name}".strip(".")) in modules:
                called[alias.asname or alias.name] = module
            else:
                found.add((whole, alias.name))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in called:
            found.add((called[node.value.id], node.attr))
    return found


def parameters(trees: dict[str, ast.Module]) -> list[tuple[int, str]]:
    """How many parameters each function has, most first."""
    counted = []
    for name, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                own = node.args
                counted.append((len(own.posonlyargs) + len(own.args) + len(own.kwonlyargs), f"{name}.{node.name}"))
    return sorted(counted, reverse=True)


def quartile(values: list[int], share: float) -> int:
    """The value that this share of all values does not exceed."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def cell_lines(books: Iterable[nbformat.NotebookNode]) -> list[int]:
    """Lines of each code cell."""
    return [
        sum(bool(line.strip()) for line in cell.source.splitlines())
        for book in books
        for cell in book.cells
        if cell.cell_type == "code"
    ]


def first_figure(book: nbformat.NotebookNode) -> int | None:
    """The number of the first cell that shows an image, in its output or its text."""
    shows = [
        i
        for i, cell in enumerate(book.cells)
        if (cell.cell_type == "markdown" and "![" in cell.source)
        or any(kind.startswith("image/") for output in cell.get("outputs", []) for kind in output.get("data", {}))
    ]
    return shows[0] if shows else None


def wide_lines() -> dict[str, tuple[int, int]]:
    """By kind of file: lines over the width, and all lines."""
    texts = {
        "modules": [
            path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py") if not path.name.startswith("_")
        ],
        "tests, tools, benchmarks": [
            path.read_text(encoding="utf-8")
            for folder in ("tests", "tools", "benchmarks")
            for path in (ROOT / folder).rglob("*.py")
        ],
        "code cells": [
            "\n".join(cell.source for cell in book.cells if cell.cell_type == "code") for book in notebooks().values()
        ],
    }
    lines = {kind: [line for text in found for line in text.splitlines()] for kind, found in texts.items()}
    return {kind: (sum(len(line) > WIDTH for line in found), len(found)) for kind, found in lines.items()}


def table() -> list[tuple[str, str]]:
    """Every measure with its value."""
    trees, books = modules(), notebooks()
    experiments = [
        ast.parse("\n".join(cell.source for cell in book.cells if cell.cell_type == "code"))
        for path, book in books.items()
        if path.parent.name == "experiments"
    ]
    public = {name: public_names(tree) for name, tree in trees.items()}
    used = set().union(*(used_names(tree, "experiments", trees) for tree in experiments))
    for own, tree in trees.items():
        used |= {(module, name) for module, name in used_names(tree, own, trees) if module != own}
    used_public = sum((name, entry) in used for name, names in public.items() for entry in names)
    length = {
        name: len((PACKAGE / f"{name.replace('.', '/')}.py").read_text(encoding="utf-8").splitlines()) for name in trees
    }
    longest = sorted(length.items(), key=lambda pair: -pair[1])
    most = parameters(trees)
    method = notebooks("0*.ipynb")
    component = [book for path, book in books.items() if path.parent.name != "experiments"]
    both = sum(len(re.findall(r"LabelledImages \| ListedImages", ast.unparse(tree))) for tree in trees.values())
    told = [
        (
            "public names; of these used by another module or an experiment",
            f"{sum(map(len, public.values()))}; {used_public}",
        ),
        ("modules at the top; in all", f"{sum('.' not in name for name in trees)}; {len(trees)}"),
        ("modules over 500 lines", ", ".join(f"{name} {lines}" for name, lines in longest if lines > 500) or "none"),
        ("function parameters, most", ", ".join(f"{name} {count}" for count, name in most[:3])),
        ("functions with over 9 parameters", str(sum(count > 9 for count, _ in most))),
        *(
            (f"lines over {WIDTH} columns, {kind}", f"{wide} of {total} ({100 * wide / total:.1f} %)")
            for kind, (wide, total) in wide_lines().items()
        ),
    ]
    for kind, found in (("component notebooks", component), ("method notebooks", method.values())):
        lines = cell_lines(found)
        told.append(
            (
                f"code cells of {kind}",
                (
                    f"{len(lines)}; lines: median {statistics.median(lines):.0f}, "
                    f"nine of ten at most {quartile(lines, 0.9)}, most {max(lines)}"
                ),
            )
        )
    told += [
        ("cells of the method notebooks", ", ".join(f"{path.stem} {len(book.cells)}" for path, book in method.items())),
        (
            "first figure of a method notebook, its cell",
            ", ".join(f"{path.stem} {first_figure(book)}" for path, book in method.items()),
        ),
        ("annotations `LabelledImages | ListedImages`", str(both)),
    ]
    size = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True)
    if not size.returncode:
        files = [ROOT / name for name in size.stdout.split("\0") if name and (ROOT / name).is_file()]
        told.append(("files in git; MB", f"{len(files)}; {sum(path.stat().st_size for path in files) / 1e6:.0f}"))
    return told


if __name__ == "__main__":
    for what, value in table():
        print(f"{what}: {value}")
