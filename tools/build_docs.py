"""Build the pages of guides and notebooks, with the outputs they store: `python tools/build_docs.py [FOLDER]`, `_docs` if not given.

Nothing runs and nothing is fetched: the pages open from the disk, without network and without scripts. What a page links to and what is no
page itself, a report or a parameter file, is copied beside it.
"""

import base64
import html
import os
import re
import shutil
import sys
from functools import cache
from io import BytesIO
from pathlib import Path
from string import Template
from urllib.parse import unquote

import matplotlib
import nbformat
from matplotlib.mathtext import math_to_image
from nbconvert import HTMLExporter, TemplateExporter
from nbconvert.filters import Highlight2HTML
from pygments.formatters import HtmlFormatter

ROOT = Path(__file__).resolve().parents[1]
NBS = ROOT / "nbs"
ROOMS = {
    "core": "core: what everything stands on",
    "models": "models: other people's models",
    "datasets": "datasets: images that users bring or name",
    "images": "images: generated images at scale",
    "studies": "studies: experiments and their reports",
    "glyphworld": "glyphworld: the embedded world",
}
FIRST = ("your_data", "gpu", "cluster", "architecture")  # guides in the order in which they are read; others follow
PAGE = Template("""<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title><link rel="stylesheet" href="${up}style.css">
<nav>$nav</nav>
<main>
$body
</main>
<nav>$nav</nav></html>
""")
STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #59636e; --paper: #fff; --tint: #f4f6f8; --line: #d9dee4; --link: #0b57c4 }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ed; --soft: #a3adb8; --paper: #14171b; --tint: #1e2227; --line: #343a42; --link: #7db4ff } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 56rem; padding: .5rem 1rem 2rem; font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--paper); overflow-wrap: break-word }
a { color: var(--link) } .anchor-link { margin-left: .3em; color: var(--line); text-decoration: none }
nav { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; padding: .5rem 0; color: var(--soft) } nav :nth-child(2) { margin-left: auto }
main { border: solid var(--line); border-width: 1px 0; padding: .5rem 0 1.5rem }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 1rem 0 .5rem } h2 { font-size: 1.2rem; margin: 2rem 0 .5rem } h3, h4 { font-size: 1rem; margin: 1.5rem 0 .5rem }
blockquote { margin: 0 0 1rem; color: var(--soft); font-size: 1.05rem } blockquote p { margin: 0 } dt { margin-top: .75rem } dd { margin: 0; color: var(--soft) }
.prompt, .output_area > style { display: none }
code, pre { font: 13px/1.5 ui-monospace, monospace } pre { margin: .5rem 0; overflow-x: auto } .highlight pre { padding: .6rem .75rem; border-radius: .4rem; background: var(--tint) }
:not(pre) > code { padding: .05rem .25rem; border-radius: .25rem; background: var(--tint) }
.output_subarea, .rendered_html { overflow-x: auto } .output pre { padding-left: .75rem; border-left: 3px solid var(--line); white-space: pre-wrap } .output_stderr pre { color: var(--soft) }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums } th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top }
img { max-width: 100%; height: auto } .output img { padding: .25rem; background: #fff } @media (prefers-color-scheme: dark) { img.math { filter: invert(1); mix-blend-mode: screen } }
"""


def sources() -> list[Path]:
    """What becomes a page, in the order of reading."""
    guides = sorted(
        NBS.glob("guides/*.md"),
        key=lambda path: (FIRST.index(path.stem) if path.stem in FIRST else len(FIRST), path.stem),
    )
    notebooks = [
        path
        for pattern in ("*.ipynb", "experiments/*.ipynb", *(f"{name}/*.ipynb" for name in ROOMS))
        for path in sorted(NBS.glob(pattern))
        if path.name[0] not in "._"
    ]
    return [*guides, *notebooks, ROOT / "outputs/ledger.md", ROOT / "synthnb/weights/MODEL_CARD.md"]


def page_of(source: Path) -> Path:
    """Where a source's page lies in the site."""
    place = source.relative_to(NBS) if source.is_relative_to(NBS) else Path(source.name)
    return place.with_suffix(".html")


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
        else:
            cell.source = re.sub(r"(?<![\\\w`$])(\$\$?)([^$\n]+)\1", lambda found: formula(found[2]), cell.source)
    notebook.cells = [cell for cell in notebook.cells if cell.source.strip()]
    return notebook


@cache
def formula(tex: str) -> str:
    """TeX as a picture, drawn by matplotlib."""
    picture = BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "synthnb"}):
        depth = math_to_image(f"${tex}$", picture, format="svg")
    return f'<img class="math" alt="{html.escape(tex)}" style="vertical-align: {-depth:.0f}pt" src="data:image/svg+xml;base64,{base64.b64encode(picture.getvalue()).decode()}">'


def heading(source: Path) -> tuple[str, str]:
    """Title and quoted line of a source, or its first paragraph where none is quoted."""
    text = read(source).cells[0].source
    title = re.search(r"^# (.+)$", text, re.MULTILINE)[1]
    line = re.search(r"^(?:> )?(\w.+(?:\n\w.*)*)", text.split(title, 1)[1], re.MULTILINE)[1]
    return title, " ".join(re.sub(r"\[([^]]+)\]\([^)]*\)", r"\1", line).split())


def linked(href: str, source: Path, pages: dict[Path, Path], out: Path) -> str:
    """Where a link of a source leads to in the site; what it leads to is copied if it is no page. Ends the build if there is no such file."""
    if re.match(r"[a-z]+:|#", href):
        return href
    name, sharp, anchor = html.unescape(unquote(href)).partition("#")
    target = Path(os.path.normpath(source.parent / name))
    if target.suffix == ".ipynb" and target not in pages and target.with_suffix(".html").is_file():
        target = target.with_suffix(".html")  # a report
    if not target.is_file():
        sys.exit(f"{source.relative_to(ROOT)} links to {href}, which is no file: mend the link")
    place = pages.get(target)
    if place is None:
        place = Path("files") / target.relative_to(ROOT)
        if target.suffix not in (".html", ".png", ".jpg", ".svg"):
            place = place.with_name(f"{place.name}.txt")  # so that browsers show it
        (out / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(target, out / place)
    return Path(os.path.relpath(place, pages[source].parent)).as_posix() + sharp + anchor


def navigation(number: int, pages: dict[Path, Path], titles: list[str]) -> str:
    """Links to the index, the page before and the page after."""
    here, listed = list(pages.values())[number].parent, list(pages.values())
    beside = [(i, arrow) for i, arrow in ((number - 1, "← {}"), (number + 1, "{} →")) if 0 <= i < len(listed)]
    return " ".join(
        [
            f'<a href="{os.path.relpath("index.html", here)}">synthnb</a>',
            *(
                f'<a href="{os.path.relpath(listed[i], here)}">{arrow.format(html.escape(titles[i]))}</a>'
                for i, arrow in beside
            ),
        ]
    )


def index(pages: dict[Path, Path], headings: list[tuple[str, str]]) -> str:
    """The list of all pages, one line each."""
    parts, kinds = (
        [],
        {
            "guides": "Guides",
            "": "The method: one notebook, one module",
            "experiments": "Experiments",
            **ROOMS,
            "..": "Measured",
        },
    )
    for (source, place), (title, line) in zip(pages.items(), headings):
        part = kinds[place.parent.name if source.is_relative_to(NBS) else ".."]
        if f"<h2>{part}</h2>" not in parts:
            parts.append(f"<h2>{part}</h2>")
        parts.append(f'<dt><a href="{place.as_posix()}">{html.escape(title)}</a></dt><dd>{html.escape(line)}</dd>')
    return (
        "<h1>synthnb</h1><p>Class names and a few real images into a better classifier, with synthetic images.</p><dl>"
        + "\n".join(parts)
        + "</dl>"
    )


def build(out: Path) -> list[Path]:
    """Write the site into `out`; the pages."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    pages = {source: page_of(source) for source in sources()}
    headings, exporter = [heading(source) for source in pages], HTMLExporter(template_name="basic")
    exporter.register_filter("highlight_code", Highlight2HTML(pygments_lexer="python"))
    exporter.register_filter(
        "clean_html", lambda element: element
    )  # against notebooks of strangers; with the next pass, the most of the time
    for number, (source, place) in enumerate(pages.items()):
        body, _ = TemplateExporter.from_notebook_node(
            exporter, read(source)
        )  # HTMLExporter's own parses the page once more
        body = re.sub(
            r'(<a [^>]*href|<img [^>]*src)="([^"]*)"',
            lambda found: f'{found[1]}="{linked(found[2], source, pages, out)}"',
            body,
        )
        if source.suffix == ".ipynb":  # an output that shows a part of a page refers to parts that are not shown
            body = re.sub(
                r'<a href="#([^"]+)">(.*?)</a>',
                lambda found: found[0] if f'id="{found[1]}"' in body else found[2],
                body,
            )
        (out / place).parent.mkdir(exist_ok=True)
        (out / place).write_text(
            PAGE.substitute(
                title=html.escape(headings[number][0]),
                up="../" * (len(place.parts) - 1),
                body=body,
                nav=navigation(number, pages, [title for title, _ in headings]),
            ),
            encoding="utf-8",
        )
    (out / "index.html").write_text(
        PAGE.substitute(title="synthnb", up="", nav="", body=index(pages, headings)), encoding="utf-8"
    )
    dark = HtmlFormatter(style="github-dark").get_style_defs(".highlight")
    (out / "style.css").write_text(
        f"{HtmlFormatter(style='default').get_style_defs('.highlight')}\n@media (prefers-color-scheme: dark) {{ {dark} }}{STYLE}",
        encoding="utf-8",
    )
    return [out / "index.html", *(out / place for place in pages.values())]


if __name__ == "__main__":
    folder = Path(sys.argv[1] if sys.argv[1:] else ROOT / "_docs")
    if folder.exists() and not (folder / "style.css").is_file() and any(folder.iterdir()):
        sys.exit(f"{folder} holds something else: give an empty folder")
    print(f"{len(build(folder))} pages: {folder / 'index.html'}")
