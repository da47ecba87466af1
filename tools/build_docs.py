"""Build the site of guides, notebooks, reports and the API: `python tools/build_docs.py [FOLDER]`, by default `_docs`.

Nothing runs and nothing is fetched: Sphinx shows the outputs that notebooks and reports store, and the pages open from
the disk without network. What a page links to and what is no page itself, such as a parameter file, is copied.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import nbformat

ROOT = Path(__file__).resolve().parents[1]
NBS = ROOT / "nbs"
ROOMS = {
    "core": "core: what everything stands on",
    "models": "models: other people's models",
    "datasets": "datasets: images that users bring or name",
    "prompts": "prompts: words for the generator",
    "images": "images: generated images at scale",
    "training": "training: behind the training loop",
    "studies": "studies: experiments and their reports",
    "cli": "cli: the command line, by subject",
    "glyphworld": "glyphworld: the embedded world",
}
FIRST = (
    "your_data",
    "results",
    "experiments",
    "gpu",
    "generators",
    "cluster",
    "architecture",
    "modules",
)  # in the order of reading; others follow
LINK = re.compile(r"(\]\()([^)\s#]+)((?:#[^)\s]*)?\))")


def shown(paths) -> list[Path]:
    """Those that are not hidden, sorted."""
    return sorted(path for path in paths if path.name[0] not in "._" and ".ipynb_checkpoints" not in path.parts)


def parts() -> dict[str, list[Path]]:
    """The site's parts and the sources of their pages, in the order of reading."""
    guides = sorted(
        NBS.glob("guides/*.md"), key=lambda path: (path.stem not in FIRST, *map(path.stem.__ne__, FIRST), path.stem)
    )
    reports = [path for path in shown(ROOT.glob("outputs/*/*/report.ipynb")) if (path.parent / "DONE").is_file()]
    return {
        "Guides": guides,
        "The method: one notebook, one module": shown(NBS.glob("*.ipynb")),
        "Experiments": shown(NBS.glob("experiments/*.ipynb")),
        **{title: shown(NBS.glob(f"{room}/*.ipynb")) for room, title in ROOMS.items()},
        "Measured": [ROOT / "outputs/ledger.md", ROOT / "synthnb/weights/MODEL_CARD.md", ROOT / "benchmarks/README.md"],
        "Reports": reports,
    }


def page_of(source: Path) -> Path:
    """Where a source's page lies in the site."""
    return source.relative_to(ROOT).with_suffix(".html")


@cache
def read(source: Path) -> nbformat.NotebookNode:
    """A source as a notebook without what is for nbdev only."""
    if source.suffix == ".md":
        return nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(source.read_text(encoding="utf-8"))])
    notebook = nbformat.read(source, as_version=4)
    notebook.cells = [cell for cell in notebook.cells if not re.search(r"^#\|\s*hide\b", cell.source, re.MULTILINE)]
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.source = re.sub(r"^#\|.*\n?", "", cell.source, flags=re.MULTILINE)
    notebook.cells = [cell for cell in notebook.cells if cell.source.strip()]
    return notebook


def heading(source: Path) -> tuple[str, str]:
    """Title and quoted line of a source, or its first paragraph where none is quoted."""
    told = [cell.source for cell in read(source).cells if cell.cell_type == "markdown" and cell.source.startswith("# ")]
    title, _, rest = (
        (told[0] if told else f"# {source.parent.name}\n\n{source.stem}").removeprefix("# ").partition("\n")
    )
    line = (re.search(r"^(?:> )?([\w`].+(?:\n[\w`].*)*)", rest, re.MULTILINE) or [""] * 2)[1]
    return title, " ".join(re.sub(r"\[([^]]+)\]\([^)]*\)", r"\1", line).split())


def linked(found: re.Match, source: Path, pages: set[Path], stage: Path) -> str:
    """A link as the site needs it; what it leads to is copied if it is no page. A dead link ends the build."""
    link = found[2]
    if re.match(r"[a-z]+:", link):
        return found[0]
    report = source.name == "report.ipynb"  # a copy of a notebook that lay in experiments/
    target = Path(os.path.normpath((NBS / "experiments" if report else source.parent) / unquote(link)))
    if report and not target.is_file():
        return "]"  # to a page that has moved since: the words stay, in brackets
    if not target.is_file():
        sys.exit(f"{source.relative_to(ROOT)} links to {link}, which is no file: mend the link")
    if target not in pages:
        copy = stage / target.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(target, copy)
    anchor = found[3].lower() if target.suffix == ".ipynb" else found[3]
    return found[1] + (os.path.relpath(target, source.parent) if report else link) + anchor


def lay_out(source: Path, pages: set[Path], stage: Path) -> None:
    """Copy a source into the stage, its links followed."""
    notebook, place = read(source), stage / source.relative_to(ROOT)
    place.parent.mkdir(parents=True, exist_ok=True)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            text = re.sub(r"\]\(#[^)]+\)", lambda found: found[0].lower(), cell.source)  # as the site names parts
            cell.source = LINK.sub(lambda found: linked(found, source, pages, stage), text)
        for output in cell.get("outputs", []):  # a page shown in a page: its links lead from where it lies itself
            shown_page = output.get("data", {}).get("text/markdown")
            if shown_page:
                output["data"]["text/markdown"] = re.sub(r"\[([^]]+)\]\((?![a-z]+:)[^)]*\)", r"\1", shown_page)
    if source.suffix == ".md":
        place.write_text(notebook.cells[0].source, encoding="utf-8")
    else:
        nbformat.write(notebook, place)


def source_of(module: str) -> str:
    """The text of a module of the package."""
    return (ROOT / "synthnb" / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")


def api_pages(stage: Path) -> list[str]:
    """A page for each module of the package that has public names; their names."""
    layers = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["synthnb"]["layers"]
    modules = [name for name in layers if "\n__all__ = []\n" not in source_of(name)]
    order = sorted(modules, key=lambda name: ("." in name, name.split(".")[0] if "." in name else ""))
    (stage / "api").mkdir()
    for name in order:
        directive = f".. automodule:: synthnb.{name}\n   :members:\n   :undoc-members:"
        text = f"# synthnb.{name}\n\n```{{eval-rst}}\n{directive}\n```\n"
        (stage / f"api/{name}.md").write_text(text, encoding="utf-8")
    return [f"api/{name}" for name in order]


def entry(source: Path) -> str:
    """A source's line in a table of contents; reports of one experiment differ by their run."""
    place = source.relative_to(ROOT).with_suffix("")
    return f"{heading(source)[0]} ({source.parent.name}) <{place}>" if source.name == "report.ipynb" else str(place)


def contents(caption: str, entries: list[str], hidden: bool = True) -> str:
    """A table of contents in MyST; a hidden one stands in the sidebar alone."""
    options = [f":caption: {caption}", ":maxdepth: 1", *([":hidden:"] if hidden else [])]
    return "\n".join(["```{toctree}", *options, "", *entries, "```"])


def index(listed: dict[str, list[Path]], api: list[str]) -> str:
    """The first page: every page with its line, and the tables of contents of the sidebar."""
    text = ["# synthnb", "Class names and a few real images into a better classifier, with synthetic images."]
    for part, sources in listed.items():
        lines = [f"## {part}", ""]
        for source in sources:
            title, line = heading(source)
            run = f", run {source.parent.name}" if source.name == "report.ipynb" else ""
            lines.append(f"- [{title}{run}]({source.relative_to(ROOT).as_posix()}): {line}")
        text.append("\n".join(lines))
    names = '<a href="genindex.html">index of names</a>'
    text.append(f"## API\n\nEvery module's public names: the pages below, the {names}, or the search.")
    text += [contents(part, [entry(source) for source in sources]) for part, sources in listed.items()]
    return "\n\n".join([*text, contents("API", api, hidden=False)])


def build(out: Path) -> list[Path]:
    """Write the site into `out`; the pages."""
    listed = parts()
    pages = {source for sources in listed.values() for source in sources}
    with tempfile.TemporaryDirectory() as folder:
        stage = Path(folder).resolve()
        for source in pages:
            lay_out(source, pages, stage)
        (stage / "index.md").write_text(index(listed, api_pages(stage)), encoding="utf-8")
        shutil.rmtree(out, ignore_errors=True)
        # In a process of its own: Sphinx changes the signatures of the functions that it describes.
        options = ["-q", "-b", "html", "-c", str(ROOT / "tools/docs"), "-d", f"{stage}/.doctrees"]
        if subprocess.run([sys.executable, "-m", "sphinx", *options, str(stage), str(out)]).returncode:
            sys.exit("the site could not be built")
    return sorted(out.rglob("*.html"))


if __name__ == "__main__":
    folder = Path(sys.argv[1] if sys.argv[1:] else ROOT / "_docs")
    if folder.exists() and not (folder / "genindex.html").is_file() and any(folder.iterdir()):
        sys.exit(f"{folder} holds something else: give an empty folder")
    print(f"{len(build(folder))} pages: {folder / 'index.html'}")
