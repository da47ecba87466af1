"""Write the lists of notebooks into nbs/guides/modules.md: `python tools/update_architecture.py [--check]`.

Everything between the two markers comes from the notebooks and modules themselves: title lines, and what each imports.
"""

import ast
import re
import sys
import tomllib
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[1]
NBS = ROOT / "nbs"
PAGE = NBS / "guides/modules.md"
BLOCK = re.compile(r"(<!-- notebooks -->\n).*?(<!-- /notebooks -->)", re.DOTALL)
LAYERS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["synthnb"]["layers"]
FOLDERS = ("core", "models", "datasets", "prompts", "images", "training", "studies", "cli", "glyphworld")


def imported(source: str, package: str = "") -> list[str]:
    """The modules of this package that some code imports; `package` is where the code lies, "images" for example."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").split(".")[0] == "synthnb"):
            base = package if node.level == 1 else ""
            name = ".".join(part for part in (base, (node.module or "").removeprefix("synthnb").strip(".")) if part)
            found |= {name} if name in LAYERS else {f"{name}.{alias.name}".strip(".") for alias in node.names}
    return sorted(found & {*LAYERS}, key=LAYERS.index)


def dotted(notebook: Path) -> str:
    """The module of a component notebook: nbs/images/plan.ipynb -> images.plan."""
    return re.sub(r"^\d\d_", "", notebook.relative_to(NBS).with_suffix("").as_posix()).replace("/", ".")


def row(notebook: Path) -> str:
    """A notebook's line: where it is, its module, what it says of itself, what it imports."""
    cells = nbformat.read(notebook, as_version=4).cells
    line = re.search(r"^> (.+)$", cells[0].source, re.MULTILINE)[1]
    link = f"[{notebook.stem}](../{notebook.relative_to(NBS).as_posix()})"
    if notebook.parent.name == "experiments":
        code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
        return f"| {link} | {line} | {', '.join(imported(code))} |"
    name = dotted(notebook)
    module = (ROOT / "synthnb" / name.replace(".", "/")).with_suffix(".py").read_text(encoding="utf-8")
    return f"| {link} | `synthnb.{name}` | {line} | {', '.join(imported(module, name.rpartition('.')[0])) or '-'} |"


def lists() -> str:
    """A table for the method, one for each folder behind it, and one for the experiments."""
    parts = []
    for title, pattern in (
        ("The method", "*.ipynb"),
        *((f"`{name}/`", f"{name}/*.ipynb") for name in FOLDERS),
        ("Experiments", "experiments/*.ipynb"),
    ):
        listed = [path for path in sorted(NBS.glob(pattern)) if path.name[0] not in "._"]
        about, head = "", "| notebook | module | what it is for | imports |\n|---|---|---|---|"
        if title == "Experiments":
            head = "| notebook | what it asks | imports |\n|---|---|---|"
        elif title != "The method":
            listed.sort(key=lambda path: LAYERS.index(dotted(path)))
            about = (
                ast.get_docstring(
                    ast.parse((ROOT / "synthnb" / title.strip("`/") / "__init__.py").read_text(encoding="utf-8"))
                )
                + "\n\n"
            )
        parts.append(f"### {title}\n\n{about}{head}\n" + "\n".join(map(row, listed)))
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    now = PAGE.read_text(encoding="utf-8")
    if not BLOCK.search(now):
        sys.exit(f"{PAGE.relative_to(ROOT)} has no <!-- notebooks --> ... <!-- /notebooks --> block")
    block = lists()
    new = BLOCK.sub(lambda found: found[1] + block + found[2], now)
    if "--check" in sys.argv[1:]:
        sys.exit(
            0 if new == now else f"{PAGE.relative_to(ROOT)} is not current: run python tools/update_architecture.py"
        )
    PAGE.write_text(new, encoding="utf-8")
