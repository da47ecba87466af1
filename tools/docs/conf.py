"""How Sphinx builds the site from what `tools/build_docs.py` has laid out."""

import posixpath
import re
import sys
from pathlib import Path

from docutils.nodes import SkipNode
from fastcore.docments import docments
from furo.navigation import get_navigation_tree
from latex2mathml.converter import convert

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

project, author = "synthnb", "synthnb contributors"
extensions = ["myst_nb", "sphinx.ext.autodoc"]
root_doc = "index"
exclude_patterns = []

html_theme = "furo"
html_title = "synthnb"
html_static_path = [str(Path(__file__).with_name("site.css"))]
html_css_files = ["site.css"]
html_copy_source = html_show_sourcelink = html_show_sphinx = False
pygments_style, pygments_dark_style = "default", "github-dark"
toc_object_entries_show_parents = "hide"

nb_execution_mode = "off"  # the stored outputs are shown
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "tasklist"]
myst_heading_anchors = 4
html_math_renderer = "mathml"  # browsers draw it themselves: nothing is fetched, no LaTeX is needed

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
add_module_names = False
maximum_signature_line_length = 100
suppress_warnings = [
    "ref.python",
    "myst.header",
    "mystnb.unknown_mime_type",
]  # headings may skip a level, fields of two classes have one name


def restructured(text: str) -> str:
    """A line of a docstring as reStructuredText: code between backticks, everything else as it stands."""
    parts = re.split(r"`([^`]+)`", text)
    plain = [re.sub(r"([*_|\\])", r"\\\1", part) for part in parts[::2]]
    code = [f"``{part.strip()}``" for part in parts[1::2]]
    return "".join(part for pair in zip(plain, [*code, ""]) for part in pair)


def add_parameters(app, what, name, thing, options, lines: list[str]) -> None:
    """Complete a docstring by what the source says of each parameter in a comment."""
    lines[:] = [restructured(line) for line in lines]
    if what not in ("function", "method", "class"):
        return
    try:
        said = docments(thing, returns=True) or {}
    except (TypeError, OSError, AttributeError, SyntaxError, IndexError):  # no source, such as an enumeration's
        return
    own = [(key, text) for key, text in said.items() if isinstance(text, str) and text.strip()]
    if own:
        lines.append("")
    for key, text in own:
        field = "returns" if key == "return" else f"param {key}"
        lines.append(f":{field}: {restructured(' '.join(text.split()))}")


def math(tag: str):
    """A visitor that writes formulas as MathML."""

    def visit(writer, node):
        tex = node.astext().replace(r"\arg", r"\mathrm{arg}")  # the one command that the converter lacks
        drawn = convert(tex, display="block" if tag == "div" else "inline")
        writer.body.append(f'<{tag} class="math">{drawn}</{tag}>')
        raise SkipNode

    return visit


OPTIONS = dict(collapse=False, titles_only=True, maxdepth=-1, includehidden=True)  # as Furo asks
CURRENT = re.compile(r' class="current"|(?<=class=")current |(?<=toctree-l1)(?: current)?(?: current-page)?(?=")')
ENTRY = re.compile(r'<li class="toctree-l1"><a class="reference internal" href="([^"]*)">')
sidebar = []  # the one that was made, its links as seen from the first page


def begin_sidebar(app, page: str, template: str, context: dict, doctree) -> None:
    """Make the sidebar once: for every page anew it was two thirds of the time that the site took."""
    if not sidebar:
        place, own = posixpath.dirname(page), app.builder.get_target_uri(page)
        seen = lambda link: own if link == "#" else posixpath.normpath(posixpath.join(place, link))
        made = CURRENT.sub("", str(get_navigation_tree(context["toctree"](**OPTIONS))))
        sidebar.append(ENTRY.sub(lambda entry: entry[0].replace(entry[1], seen(entry[1])), made))
    context["toctree"] = lambda **options: ""


def end_sidebar(app, page: str, template: str, context: dict, doctree) -> None:
    """Let the sidebar's links lead from this page, and mark its own entry."""
    place, own = posixpath.dirname(page) or ".", app.builder.get_target_uri(page)

    def entry(found: re.Match) -> str:
        if found[1] == own:
            return '<li class="toctree-l1 current current-page"><a class="current reference internal" href="#">'
        return f'<li class="toctree-l1"><a class="reference internal" href="{posixpath.relpath(found[1], place)}">'

    context["furo_navigation_tree"] = ENTRY.sub(entry, sidebar[0])


def setup(app) -> None:
    app.add_html_math_renderer("mathml", (math("span"), None), (math("div"), None))
    app.connect("autodoc-process-docstring", add_parameters)
    app.connect("html-page-context", begin_sidebar, priority=400)  # Furo's own is at 500
    app.connect("html-page-context", end_sidebar, priority=600)
