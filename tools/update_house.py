"""Write the rooms into nbs/guides/house.md: `python tools/update_house.py [--check]`.

Everything between the two markers comes from the notebooks and modules themselves: title lines, and what each imports.
"""

import ast
import re
import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[1]
HOUSE = ROOT / "nbs/guides/house.md"
BLOCK = re.compile(r"(<!-- rooms -->\n).*?(<!-- /rooms -->)", re.DOTALL)


def imported(source: str) -> list[str]:
    """The rooms that some code imports, in the order of their names."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").split(".")[0] == "synthnb"):
            inner = (node.module or "").removeprefix("synthnb").strip(".")
            found |= {inner} if inner else {alias.name for alias in node.names}
    return sorted(found)


def row(notebook: Path) -> str:
    """A notebook's line: where it is, its module, what it says of itself, what it imports."""
    cells, name = nbformat.read(notebook, as_version=4).cells, re.sub(r"^\d\d\w?_", "", notebook.stem)
    module, line = ROOT / "synthnb" / f"{name}.py", re.search(r"^> (.+)$", cells[0].source, re.MULTILINE)[1]
    link = f"[{notebook.stem}](../{notebook.relative_to(ROOT / 'nbs').as_posix()})"
    if notebook.parent.name == "experiments":
        code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
        return f"| {link} | {line} | {', '.join(imported(code))} |"
    return f"| {link} | `synthnb.{name}` | {line} | {', '.join(imported(module.read_text(encoding='utf-8'))) or '-'} |"


def rooms() -> str:
    """Both tables."""
    components, experiments = ([row(path) for path in sorted((ROOT / "nbs").glob(pattern)) if path.name[0] not in "._"] for pattern in ("*.ipynb", "experiments/*.ipynb"))
    return "\n".join(["| notebook | module | what lives there | imports |", "|---|---|---|---|", *components, "",
                      "| experiment | what it asks | imports |", "|---|---|---|", *experiments]) + "\n"


if __name__ == "__main__":
    now = HOUSE.read_text(encoding="utf-8")
    if not BLOCK.search(now):
        sys.exit(f"{HOUSE.relative_to(ROOT)} has no <!-- rooms --> ... <!-- /rooms --> block")
    block = rooms()
    new = BLOCK.sub(lambda found: found[1] + block + found[2], now)
    if "--check" in sys.argv[1:]:
        sys.exit(0 if new == now else f"{HOUSE.relative_to(ROOT)} does not show the rooms as they are: run python tools/update_house.py")
    HOUSE.write_text(new, encoding="utf-8")
