"""The guides name what exists, the architecture is as described, every link leads somewhere, the site stands alone."""

import importlib
import inspect
import json
import os
import re
import shlex
import subprocess
import sys
from functools import cache
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import nbformat
import pytest
import warm_python
from typer import TyperException
from typer.main import get_command

from synthnb.cli import app
from synthnb.cli.values import find_experiment, gather_parameters
from synthnb.studies.doctor import guess_experiment
from synthnb.studies.parameters import declared_parameters, resolve_parameters
from synthnb.studies.sweep import plan_sweep
from synthnb.studies.verdict import verdict_line

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import build_docs  # noqa: E402
import update_architecture  # noqa: E402

GUIDES = sorted((ROOT / "nbs/guides").glob("*.md"))
NOTEBOOKS = [
    path
    for path in sorted((ROOT / "nbs").rglob("*.ipynb"))
    if not re.search(r"/[._]", path.relative_to(ROOT).as_posix())
]
EXPERIMENTS = [path for path in NOTEBOOKS if path.parent.name == "experiments"]


# ---- the site


class Page(HTMLParser):
    """What a page refers to, and the ids that others may refer to."""

    def __init__(self, path: Path):
        super().__init__()
        self.links, self.fetched, self.ids, self.path = [], [], set(), path
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.ids |= {given[name] for name in ("id", "name") if given.get(name)}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag in ("img", "script", "link", "iframe", "source", "object"):
            self.fetched += [given[name] for name in ("src", "href", "data") if name in given]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site") / "docs"
    with pytest.MonkeyPatch.context() as patch:
        if server := os.environ.get(warm_python.SERVER):  # Sphinx, which imports every module, is a fork that has them
            patch.setattr(sys, "executable", str(Path(server).with_name("python")))
        pages = build_docs.build(folder)
    return folder, {path: Page(path) for path in pages}


def test_every_source_has_a_page_and_a_line_in_the_index(site):
    folder, pages = site
    assert [path.name for path in folder.parent.iterdir()] == ["docs"], "nothing is left beside the site"
    listed = pages[folder / "index.html"].links
    text = re.sub("<[^>]*>", "", unescape((folder / "index.html").read_text(encoding="utf-8"))).replace("’", "'")
    sources = [source for part in build_docs.parts().values() for source in part]
    assert {*GUIDES, *NOTEBOOKS} <= set(sources)
    for source in sources:
        place = build_docs.page_of(source)
        assert folder / place in pages and place.as_posix() in listed, source
        words = re.sub("[`*]", "", build_docs.heading(source)[1])
        assert words[:15] in text, source


def test_every_public_name_is_in_the_api_index_with_its_parameters(site):
    folder, pages = site
    listed = set(pages[folder / "genindex.html"].links)
    for name in update_architecture.LAYERS:
        module = importlib.import_module(f"synthnb.{name}")
        own = [entry for entry in module.__all__ if inspect.isroutine(getattr(module, entry))]
        assert not [entry for entry in own if f"api/{name}.html#synthnb.{name}.{entry}" not in listed], name
    page = re.sub("<[^>]*>", "", (folder / "api/models.classifiers.html").read_text(encoding="utf-8"))
    assert "changed in place" in page, "comments of parameters belong to the page"


def test_reports_are_the_pages_of_the_package_with_the_verdict_first(site):
    folder, _ = site
    for source in build_docs.parts()["Reports"]:
        page = (folder / build_docs.page_of(source)).read_text(encoding="utf-8")
        first = " ".join(unescape(re.sub("<[^>]*>", "", page.partition("<body>")[2])).split()[:60])
        told = verdict_line(json.loads((source.parent / "results.json").read_text(encoding="utf-8"))).replace("`", "")
        assert " ".join(told.split()[:8]) in first, source
        assert "_static" not in page and '<a href="../../../index.html">' in page, source
    learned = folder / "outputs/bridge_study/824491ba73ec/report.html"
    assert 'class="gains"' in learned.read_text(encoding="utf-8"), "the figure of the paired gains"


def test_the_first_page_has_the_verdict_and_the_figure_of_the_readme(site):
    page = (site[0] / "index.html").read_text(encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    verdict = re.sub("`", "", re.search(r"^\*\*(.*)\*\*$", readme, re.MULTILINE)[1])
    plain = " ".join(unescape(re.sub("<[^>]*>", "", page)).split())
    assert verdict in plain and plain.index(verdict) < plain.index("Use it on your data: From synthnb check")
    assert "gains.svg" in page and "beside.png" in page and "synthnb check FOLDER" in plain


def test_plots_turn_dark_with_the_page_and_photographs_do_not(site):
    report = next(site[0].glob("outputs/*/*/report.html")).read_text(encoding="utf-8")
    rule = re.search(r"img\.drawing \{ (filter: invert[^}]*) \}", report)[1]
    style = (site[0] / "_static/site.css").read_text(encoding="utf-8")
    assert style.count(f"img.drawing {{ {rule} }}") == 2, "by the reader's choice, and by the system's"
    shown = re.findall(r"<img [^>]*>", (site[0] / "nbs/guides/results.html").read_text(encoding="utf-8"))
    drawn = {re.search(r"_images/([a-z]+)\d*\.png", image)[1]: 'class="drawing"' in image for image in shown}
    assert drawn["added"] and drawn["accuracy"] and not drawn["beside"]


def test_the_sidebar_leads_to_every_page_and_marks_its_own(site):
    folder = site[0]
    reports = {folder / build_docs.page_of(source) for source in build_docs.parts()["Reports"]}  # pages of their own
    named = {folder / build_docs.page_of(source) for part in build_docs.parts().values() for source in part}
    named |= set((folder / "api").glob("*.html"))
    for page in (named - reports) | {folder / "index.html", folder / "genindex.html"}:
        tree = page.read_text(encoding="utf-8").partition('<div class="main">')[0]
        found = re.findall(r'<li class="toctree-l1( current current-page)?"><a class="[^"]*" href="([^"]*)">', tree)
        assert [bool(mark) for mark, _ in found].count(True) == (page in named), page
        assert {page if link == "#" else Path(os.path.normpath(page.parent / link)) for _, link in found} == named, page
        assert all((link == "#") == bool(mark) for mark, link in found), page


def test_pages_fetch_nothing_from_elsewhere(site):
    for path, page in site[1].items():
        assert not [what for what in page.fetched if re.match(r"(?!data:)[a-z]*:|//", what)], path.name
    styles = [path.read_text(encoding="utf-8") for path in (site[0] / "_static").rglob("*.css")]
    assert styles and not [style for style in styles if re.search(r"url\([\"']?(https?:|//)", style)]


def test_the_search_finds_functions_and_words(site):
    text = (site[0] / "searchindex.js").read_text(encoding="utf-8")
    assert '"write_prompts"' in text and '"ambigu"' in text, "names whole, words by their stem"


def test_formulas_are_drawn(site):
    texts = {path.relative_to(site[0]).as_posix(): path.read_text(encoding="utf-8") for path in site[1]}
    assert texts["nbs/02_lar.html"].count("<math ") >= 3
    drawn = [formula for text in texts.values() for formula in re.findall(r"<math .*?</math>", text, re.DOTALL)]
    assert not [formula for formula in drawn if "\\" in re.sub("<[^>]*>", "", formula)], "a command that was not known"


def test_links_of_the_site_lead_somewhere(site):
    folder, pages = site
    for path, page in pages.items():
        for link in page.links + page.fetched:
            if re.match(r"[a-z]+:", link):
                continue
            name, _, anchor = link.partition("#")
            target = (path.parent / unquote(name).partition("?")[0]).resolve() if name else path
            assert target.is_file() and target.is_relative_to(folder.resolve()), f"{path.name} links to {link}"
            if target in pages and path.name != "genindex.html":
                assert not anchor or unquote(anchor) in pages[target].ids, f"{path.name}: there is no {link}"


def test_a_dead_link_ends_the_build(tmp_path):
    source = ROOT / "nbs/01_data.ipynb"
    found = build_docs.LINK.search("[the data](01_dato.ipynb)")
    with pytest.raises(SystemExit, match="nbs/01_data.ipynb links to 01_dato.ipynb, which is no file"):
        build_docs.linked(found, source, {source}, tmp_path)


# ---- links in the repository


@cache
def known_to_git() -> frozenset[str]:
    """Files of this checkout that git knows or would take, and their folders; all there are outside of a checkout."""
    done = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    files = (
        done.stdout.splitlines()
        if not done.returncode
        else [path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*")]
    )
    return frozenset(files) | {parent.as_posix() for file in files for parent in Path(file).parents}


@pytest.mark.parametrize(
    "path",
    [
        ROOT / "README.md",
        ROOT / "llms.txt",
        ROOT / "benchmarks/README.md",
        ROOT / "synthnb/weights/MODEL_CARD.md",
        ROOT / "outputs/ledger.md",
        *GUIDES,
        *NOTEBOOKS,
    ],
    ids=lambda path: path.relative_to(ROOT).as_posix(),
)
def test_relative_links_lead_to_files_in_git(path):
    texts = (
        [path.read_text(encoding="utf-8")]
        if path.suffix in (".md", ".txt")
        else [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown"]
    )
    links = [
        link
        for text in texts
        for link in re.findall(r"\]\(([^)\s#]+)(?:#[^)]*)?\)", text)
        if not re.match(r"[a-z]+:", link)
    ]
    missing = [
        link
        for link in links
        if (path.parent / unquote(link)).resolve().relative_to(ROOT).as_posix() not in known_to_git()
    ]
    assert not missing


def test_llms_txt_names_every_guide_and_commands_that_exist():
    text = (ROOT / "llms.txt").read_text(encoding="utf-8")
    assert [guide.name for guide in GUIDES if f"guides/{guide.name}" not in text] == []
    named = set(re.findall(r"`synthnb ([a-z]+)", text))
    assert named and named <= set(get_command(app).commands)


def test_guides_are_read_in_four_screens():
    """But for the lists that a tool writes: a reader looks a module up there."""
    long = {}
    for guide in GUIDES:
        text = guide.read_text(encoding="utf-8")
        if guide != update_architecture.PAGE and (len(text.split()) > 1100 or len(text.splitlines()) > 200):
            long[guide.name] = len(text.split()), len(text.splitlines())
    assert not long


def test_architecture_answers_the_five_change_requests():
    text = (ROOT / "nbs/guides/architecture.md").read_text(encoding="utf-8").partition("## Change requests")[2]
    for wanted in ("a new method", "a named data set", "a filter", "another score", "a new family of generators"):
        row = re.search(rf"^\| {wanted}.*$", text, re.MULTILINE)
        assert row and re.search(r"\]\(\.\./|`synthnb/", row[0]), f"{wanted}: no file is named"


# ---- the architecture


def test_the_architecture_is_as_it_is_described():
    text = update_architecture.PAGE.read_text(encoding="utf-8")
    assert (
        update_architecture.BLOCK.search(text)[0]
        == f"<!-- notebooks -->\n{update_architecture.lists()}<!-- /notebooks -->"
    ), "run python tools/update_architecture.py"
    for path in NOTEBOOKS:
        assert text.count(f"](../{path.relative_to(ROOT / 'nbs').as_posix()})") >= 1, path.stem


@pytest.mark.parametrize("path", [ROOT / "README.md", *GUIDES], ids=lambda path: path.name)
def test_modules_and_files_that_are_mentioned_exist(path):
    text = path.read_text(encoding="utf-8")
    assert not [
        name for name in re.findall(r"`synthnb\.([a-z_.]*[a-z_])", text) if name not in update_architecture.LAYERS
    ]
    assert not [
        name
        for name in re.findall(r"(?<![\w./-])((?:nbs|tests|tools|benchmarks|synthnb)/[\w./-]+\.\w+)", text)
        if name not in known_to_git()
    ]


def test_gpu_guide_lists_every_file_at_paper_scale():
    listed = re.findall(
        r"\]\(\.\./experiments/params/paper/([\w.]+)\)", (ROOT / "nbs/guides/gpu.md").read_text(encoding="utf-8")
    )
    assert sorted(listed) == sorted(path.name for path in (ROOT / "nbs/experiments/params/paper").glob("*.yaml"))


# ---- commands


def commands(path: Path) -> list[list[str]]:
    """The calls of synthnb and make in the shell blocks of a page, each without what comes before and after it."""
    found = []
    for block in re.findall(r"```sh\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if not re.search(r"\b(synthnb|make) ", line):
                continue
            call, words = None, shlex.shlex(re.sub(r"\$\w+", "1", line), posix=True, punctuation_chars=True)
            words.whitespace_split = True
            for word in words:
                if call is None and re.fullmatch(r"(.*/)?synthnb|make", word):
                    found.append(call := [Path(word).name])
                elif re.fullmatch(r"[();<>|&]+", word):
                    call = None
                elif call is not None:
                    call.append(word)
    return [call for call in found if call[1:]]


def refused(call: list[str]) -> str:
    """What make or the command line would have against a call; nothing if it would take it.

    A file that the call names needs to be there only if git has it."""
    program, *words = call
    if program == "make":
        targets = [word for word in words if "=" not in word]
        text = (ROOT / "Makefile").read_text()
        wrong = [target for target in targets if not re.search(rf"^{target}:", text, re.MULTILINE)]
        given = next((word.removeprefix("ARGS=") for word in words if word.startswith("ARGS=")), "")
        return (
            f"make has no {wrong}"
            if wrong
            else refused(["synthnb", "run", "quickstart", *shlex.split(given)])
            if given
            else ""
        )
    command, name = get_command(app), ""
    while hasattr(command, "commands") and words:
        if words[0] not in command.commands:
            return "" if words[0] in ("--help", "--version") else f"there is no synthnb {words[0]}"
        command, name, words = command.commands[words[0]], words[0], words[1:]
    try:
        with pytest.MonkeyPatch.context() as patch:
            for parameter in command.params:
                patch.setattr(parameter.type_descriptor.parameter_info, "exists", False)
            given = command.make_context(name, words).params
        if name in ("run", "doctor"):
            named = (given["file"] or []) if name == "run" else [given["file"]]  # run takes several
            files = [file for file in named if file and file.is_file()]
            if name == "doctor" and not (given["experiment"] or files):
                return f"there is no {given['file']}"
            notebook = (
                find_experiment(given["experiment"])[0]
                if given["experiment"]
                else guess_experiment(files[0], gather_parameters(files[0], []), EXPERIMENTS)[0]
            )
            texts = {each for each, declared in declared_parameters(notebook).items() if declared.type == "str"}
            parameters = {key: value for file in files for key, value in gather_parameters(file, [], texts).items()}
            resolve_parameters(notebook, parameters | gather_parameters(None, given["parameter"] or [], texts))
        elif name == "sweep" and given["grid"].is_file():
            spec = gather_parameters(given["grid"], [])
            plan_sweep(find_experiment(spec["experiment"])[0], spec)
    except (TyperException, ValueError, OSError) as error:
        return error.format_message() if isinstance(error, TyperException) else str(error)
    return ""


@pytest.mark.parametrize(
    "path",
    [ROOT / "README.md", *(path for path in GUIDES if "```sh" in path.read_text(encoding="utf-8"))],
    ids=lambda path: path.name,
)
def test_commands_would_be_taken(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    calls = commands(path)
    assert calls and not {" ".join(call): said for call in calls if (said := refused(call))}


@pytest.mark.parametrize(
    "call, said",
    [
        ("synthnb generat plan.parquet", "no synthnb generat"),
        ("synthnb generate plan.parquet --worker 2", "No such option: --worker"),
        ("synthnb run quickstart -p shot 4", "shot"),
        ("synthnb plan prompts.jsonl -n many", "valid integer"),
        ("make reports", "reports"),
        ("make report ARGS='-p seed 1'", "seed"),
        ("synthnb sweep nbs/experiments/params/paper/bridge_transfer.grid.yaml --shards 0::2", "--shards"),
    ],
)
def test_wrong_commands_are_refused(call, said, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert said in refused(shlex.split(call))


def test_every_figure_of_the_guides_is_linked():
    pages = [ROOT / "README.md", *(ROOT / "nbs/guides").glob("*.md")]
    linked = "".join(page.read_text(encoding="utf-8") for page in pages)
    figures = sorted((ROOT / "nbs/guides/figures").iterdir())
    assert [file.name for file in figures if f"figures/{file.name}" not in linked] == []
