"""Build the site of guides, notebooks, reports and the API: `python tools/build_docs.py [FOLDER]`, by default `_docs`.

Nothing runs and nothing is fetched: Sphinx shows the outputs that notebooks store, a report is the page that `synthnb
report` makes, and all open from the disk without network. What a page links to and what is no page itself, such as a
parameter file, is copied.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from base64 import b64encode
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import nbformat

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from synthnb.studies.report_page import _is_drawing, make_page  # noqa: E402
from synthnb.studies.verdict import how_sure, verdict_line  # noqa: E402

NBS = ROOT / "nbs"
FOLDERS = {
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
ANCHOR = re.compile(r'<a ([^>]*)href="(?![a-z]+:)([^"#]+)(#[^"]*)?"([^>]*)>(.*?)</a>', re.DOTALL)
IMAGE = re.compile(r'<img (?=[^>]*src="([^"]*_images/[^"]+\.png)")')  # the word before its attributes


def shown(paths) -> list[Path]:
    """Those that are not hidden, sorted."""
    return sorted(path for path in paths if path.name[0] not in "._" and ".ipynb_checkpoints" not in path.parts)


def parts() -> dict[str, list[Path]]:
    """The site's parts and the sources of their pages, in the order of reading."""
    guides = sorted(
        NBS.glob("guides/*.md"), key=lambda path: (path.stem not in FIRST, *map(path.stem.__ne__, FIRST), path.stem)
    )
    reports = [path for path in shown(ROOT.glob("outputs/*/*/report.ipynb")) if (path.parent / "DONE").is_file()]
    measured = ("outputs/ledger.md", "synthnb/weights/MODEL_CARD.md", "benchmarks/README.md", "CHANGELOG.md")
    return {
        "Guides": [*guides, ROOT / "CONTRIBUTING.md"],
        "The method: one notebook, one module": shown(NBS.glob("*.ipynb")),
        "Experiments": shown(NBS.glob("experiments/*.ipynb")),
        **{title: shown(NBS.glob(f"{folder}/*.ipynb")) for folder, title in FOLDERS.items()},
        "Measured": [ROOT / name for name in measured],
        "Reports": reports,
    }


def is_report(source: Path) -> bool:
    """Is a page the report of a run? One notebook of the package is called so, too."""
    return source.name == "report.ipynb" and source.is_relative_to(ROOT / "outputs")


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
    target = Path(os.path.normpath(source.parent / unquote(link)))
    if not target.is_file():
        sys.exit(f"{source.relative_to(ROOT)} links to {link}, which is no file: mend the link")
    if target not in pages:
        copy = stage / target.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(target, copy)
    return found[1] + link + (found[3].lower() if target.suffix == ".ipynb" else found[3])


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


def report_pages(pages: set[Path], stage: Path) -> dict[Path, str]:
    """The pages of all reports, as the package makes them, by their place in the site.

    Sphinx gets a page in their place, with the verdict: for links, sidebar and search."""
    reports, made = sorted(filter(is_report, pages)), {}
    (stage / "pyproject.toml").touch()  # as in a checkout: links of a report are followed from there
    for source in reports:
        folder = stage / source.parent.relative_to(ROOT)
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("report.ipynb", "results.json", "run.json"):
            shutil.copy(source.parent / name, folder)
        if (source.parent / "figures").is_dir():
            shutil.copytree(source.parent / "figures", folder / "figures", dirs_exist_ok=True)
    for source in reports:
        page = make_page(stage / source.parent.relative_to(ROOT))
        text = ANCHOR.sub(lambda found: site_link(found, source, pages), page.read_text(encoding="utf-8"))
        page.unlink()
        home = os.path.relpath("index.html", source.parent.relative_to(ROOT))
        made[page_of(source)] = text.replace("<body>", f'<body><p><a href="{home}">All pages</a></p>', 1)
    for source in reports:
        results = json.loads((source.parent / "results.json").read_text(encoding="utf-8"))
        told = [f"# {heading(source)[0]}", verdict_line(results), how_sure(results), results.get("conclusion", "")]
        stub = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("\n\n".join(told))])
        nbformat.write(stub, stage / source.relative_to(ROOT))
    return made


def site_link(found: re.Match, source: Path, pages: set[Path]) -> str:
    """A link of a report's page as the site needs it; of a link to what is no page the words stay."""
    target = Path(os.path.normpath(source.parent / unquote(found[2])))
    if target not in pages:
        return found[5]
    anchor = (found[3] or "").lower() if target.suffix == ".ipynb" and not is_report(target) else found[3] or ""
    return f'<a {found[1]}href="{Path(found[2]).with_suffix(".html").as_posix()}{anchor}"{found[4]}>{found[5]}</a>'


def mark_drawings(out: Path) -> None:
    """Give plots a class of their own: they turn dark with the page, photographs and generated images do not."""

    @cache
    def is_drawing(image: Path) -> bool:
        return _is_drawing(b64encode(image.read_bytes()).decode())

    for page in out.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        marked = IMAGE.sub(
            lambda found: found[0] + 'class="drawing" ' * is_drawing((page.parent / unquote(found[1])).resolve()), text
        )
        if marked != text:
            page.write_text(marked, encoding="utf-8")


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
    return f"{heading(source)[0]} ({source.parent.name}) <{place}>" if is_report(source) else str(place)


def contents(caption: str, entries: list[str], hidden: bool = True) -> str:
    """A table of contents in MyST; a hidden one stands in the sidebar alone."""
    options = [f":caption: {caption}", ":maxdepth: 1", *([":hidden:"] if hidden else [])]
    return "\n".join(["```{toctree}", *options, "", *entries, "```"])


def front(pages: set[Path], stage: Path) -> str:
    """README but for its table and its list of links, which this site has itself."""
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8").partition("\n## Results")[0]
    text = re.sub(r'<img src="([^"]+)" alt="([^"]+)" width="\d+"> ?', r"![\2](\1)\n", text)
    return LINK.sub(lambda found: linked(found, readme, pages, stage), re.sub(r"<!-- .*? -->\n", "", text))


def index(listed: dict[str, list[Path]], api: list[str], first: str) -> str:
    """The first page: what it is, every page with its line, and the tables of contents of the sidebar."""
    text = [first]
    for part, sources in listed.items():
        lines = [f"## {part}", ""]
        for source in sources:
            title, line = heading(source)
            run = f", run {source.parent.name}" if is_report(source) else ""
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
        # The site is made there, too: MyST-NB leaves a folder of images beside it
        stage, site = (Path(folder).resolve() / name for name in ("pages", "site"))
        stage.mkdir()
        for source in pages:
            if not is_report(source):
                lay_out(source, pages, stage)
        reports = report_pages(pages, stage)
        (stage / "index.md").write_text(index(listed, api_pages(stage), front(pages, stage)), encoding="utf-8")
        # In a process of its own: Sphinx changes the signatures of the functions that it describes.
        options = ["-q", "-b", "html", "-c", str(ROOT / "tools/docs"), "-d", f"{stage}/.doctrees"]
        if subprocess.run([sys.executable, "-m", "sphinx", *options, str(stage), str(site)]).returncode:
            sys.exit("the site could not be built")
        shutil.rmtree(out, ignore_errors=True)
        shutil.move(site, out)
        mark_drawings(out)
        for place, text in reports.items():
            (out / place).write_text(text, encoding="utf-8")
    return sorted(out.rglob("*.html"))


if __name__ == "__main__":
    folder = Path(sys.argv[1] if sys.argv[1:] else ROOT / "_docs")
    if folder.exists() and not (folder / "genindex.html").is_file() and any(folder.iterdir()):
        sys.exit(f"{folder} holds something else: give an empty folder")
    print(f"{len(build(folder))} pages: {folder / 'index.html'}")
