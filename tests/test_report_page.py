"""The page of a run answers in its first screen, in a real browser: on a desk and on a phone, light, dark, on paper."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from test_index import browser  # noqa: F401  (a fixture)
from typer.testing import CliRunner

from synthnb.cli import app
from synthnb.core.stylesheet import STYLE
from synthnb.images.board import _PAGE_STYLE as BOARD_STYLE
from synthnb.images.evidence import _PAGE_STYLE as EVIDENCE_STYLE
from synthnb.studies.check import _PAGE_STYLE as CHECK_STYLE
from synthnb.studies.claims import _open_run
from synthnb.studies.cover import _caption, cover_html, exchange_of, gains_svg
from synthnb.studies.folder import read_record, read_results
from synthnb.studies.index import _STYLE as INDEX_STYLE
from synthnb.studies.report_page import _of_this_run, make_page, readable_html
from synthnb.studies.verdict import HELP, advice, comparisons, is_of_methods, outcomes, source_comparison, verdict_line

ROOT = Path(__file__).resolve().parents[1]
_COMMITTED = ["git", "ls-files", "outputs/*/*/DONE"]  # whoever runs the tests may have runs of their own there
RUNS = sorted((ROOT / file).parent for file in subprocess.check_output(_COMMITTED, cwd=ROOT, text=True).split())
every_run = pytest.mark.parametrize("run", RUNS, ids=lambda run: f"{run.parent.name}-{run.name[:4]}")


def newest(experiment: str) -> Path:
    own = [run for run in RUNS if run.parent.name == experiment]
    return max(own, key=lambda run: read_record(run)["started"])


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The pages of a study of methods, of one with meanings that are open, and of one without methods."""
    made = {}
    for run in map(newest, ("bridge_study", "quickstart", "dsi_study")):
        folder = tmp_path_factory.mktemp("outputs") / run.parent.name / run.name
        shutil.copytree(run, folder)
        made[run.parent.name] = make_page(folder)
    return made


def test_the_answer_comes_first(pages):
    for name, path in pages.items():
        text = path.read_text(encoding="utf-8")
        body = text[text.index("<body>") :]
        results = json.loads((path.parent / "results.json").read_text(encoding="utf-8"))
        number = outcomes(results)[0].effect_text.split(" ")[0]
        assert number in re.search(r'<h1 class="verdict">(.*?)</h1>', body, re.DOTALL)[1], name
        assert body.count("check_params(") == 0 and body.count('class="code"') > 3, "code is there, folded"
        assert not re.search(r"<details[^>]* open", body)


@every_run
def test_the_notebook_of_a_run_begins_with_its_verdict(run, tmp_path):
    """A report that is read where the repository is looked at has no page: title, verdict and figures come first."""
    kept, results = nbformat.read(run / "report.ipynb", as_version=4), read_results(run)
    title, told = kept.cells[:2]
    assert title.source.startswith("# ") and told.cell_type == "markdown"
    assert f"**{verdict_line(results)}**".replace("%", " %").replace("  %", " %") in told.source
    figures = re.findall(r"\]\((figures/\S+\.png)\)", told.source)
    assert figures and all((run / figure).is_file() for figure in figures)
    sys.path.insert(0, str(ROOT / "tools"))
    import update_reports

    before, after = update_reports.renewed(run / "report.ipynb")
    assert before == after, "run python tools/update_reports.py"
    page = make_page(run, tmp_path / "report.html").read_text(encoding="utf-8")
    assert 'src="figures/' not in page, "the page has a first screen of its own"


def test_pages_fetch_nothing_and_have_no_dead_link(pages):
    for path in pages.values():
        text = path.read_text(encoding="utf-8")
        assert "<script" not in text
        assert not re.findall(r'src="(?!data:)[^"]*"', text)
        links = re.findall(r'<a [^>]*href="([^"]+)"', text)
        ids = set(re.findall(r'id="([^"]+)"', text))
        inside = [link[1:] for link in links if link.startswith("#")]
        assert inside and not [link for link in inside if link not in ids]
        assert not [link for link in links if not link.startswith(("#", "http"))], (
            "the page lies outside of the checkout"
        )


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width, height", [(1440, 900), (768, 1024), (390, 844)])
def test_nothing_sticks_out_and_the_first_screen_answers(browser, pages, width, height, scheme):  # noqa: F811
    for name, path in pages.items():
        page = browser.new_page()
        page.set_viewport_size({"width": width, "height": height})
        page.emulate_media(color_scheme=scheme)
        page.goto(path.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") == width, name
        page.evaluate("document.querySelectorAll('details:not(.code)').forEach(details => details.open = true)")
        cut = "[...document.querySelectorAll('.scroll, .cell > table')].filter(t => t.scrollWidth > t.clientWidth + 1)"
        assert page.evaluate(f"{cut}.map(table => table.innerText)") == [], "a table is cut at its right end"
        page.evaluate("document.querySelectorAll('details').forEach(details => details.open = false)")
        verdict = page.query_selector("h1.verdict").bounding_box()
        assert verdict["y"] + verdict["height"] < height / 2, name
        if name != "dsi_study":
            figure = page.query_selector("svg.gains").bounding_box()
            assert figure["y"] + figure["height"] < height, "the gains are in the first screen"
            boxes = [text.bounding_box() for text in page.query_selector_all("svg.gains text")]
            rows = [(box["y"], box["x"], box["x"] + box["width"]) for box in boxes[1:]]  # each name, then its numbers
            assert all(name[2] < numbers[1] for name, numbers in zip(rows[::2], rows[1::2])), "a name runs into numbers"
            assert min(box["x"] for box in boxes) >= 0 and max(box["x"] + box["width"] for box in boxes) <= width
            assert min(box["height"] for box in boxes) > 12, "letters stay as large as text"
        for what in ("figure:nth-child(2) img", ".sure"):
            box = page.query_selector(f".first {what}").bounding_box()
            assert box["y"] + box["height"] < height, f"{name}: {what} is in the first screen"
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", dark)[:3])) < 380) == (scheme == "dark")
        page.close()


def test_a_figure_of_many_methods_keeps_the_highest_gains():
    """Of fourteen methods a phone's first screen shows nine, and says so."""
    compared = comparisons(read_results(ROOT / "outputs/bridge_study/627bd2d0f170"))[0]
    svg = gains_svg(compared)
    gains = {line.method: line.gain.mean for line in compared.lines if line.gain.mean == line.gain.mean}
    shown = {method for method in gains if f">{method}</text>" in svg}
    assert len(shown) == 9 and compared.best in shown and f"{len(gains) - 9} more in the table below" in svg
    assert min(gains[method] for method in shown) > max(gains[method] for method in gains if method not in shown)


def test_drawings_turn_dark_and_images_do_not(browser, pages):  # noqa: F811
    page = browser.new_page()
    page.emulate_media(color_scheme="dark")
    page.goto(pages["quickstart"].as_uri())
    filters = page.evaluate("[...document.images].map(i => [i.alt, getComputedStyle(i).filter != 'none'])")
    page.close()
    turned = dict(filters)
    # a report has its figures in its cells, or as files where the run drew none in cells
    drawing, images = ("figure of Result", "figure of The synthetic images")
    if drawing not in turned:
        drawing, images = ("figure accuracy", "figure synthetic")
    assert turned[drawing] and not turned[images] and not turned["Real images beside generated ones"]


def test_every_committed_run_is_read():
    """Runs of any age: a verdict where there is a number, and the signs agree with the interval."""
    told = {run: outcomes(json.loads((run / "results.json").read_text(encoding="utf-8"))) for run in RUNS}
    assert sum(map(bool, told.values())) >= len(RUNS) - 1, "one run measures no effect"
    for run, found in told.items():
        for one in found:
            if one.verdict in ("better", "worse") and one.interval:
                low, high = one.interval
                assert (low > 0) if one.verdict == "better" else (high < 0), run


def test_a_stronger_method_without_generated_images_is_the_one_to_beat():
    run = next(run for run in RUNS if run.parent.name == "bridge_study")
    results = read_results(run)
    before = comparisons(results)[0]
    fake = {
        "method": "frozen features",
        "sets": "",
        "verdict": "better",
        "gain": 0.2,
        "gain_low": 0.1,
        "gain_high": 0.3,
    }
    row = next(row for row in results["summary"] if row["method"] == before.best)
    high = [value + 0.05 + 0.001 * i for i, value in enumerate(row["seeds_at"])]
    fake = row | fake | {"seeds_at": high, "accuracy": sum(high) / len(high)}
    after = comparisons(results | {"summary": [*results["summary"], fake]})[0]
    assert after.against == "frozen features" and after.winner.gain.mean < 0 < before.winner.gain.mean


def test_pages_share_one_set_of_colours():
    own = {
        "board": BOARD_STYLE,
        "senses": EVIDENCE_STYLE,
        "check": CHECK_STYLE,
        "index": INDEX_STYLE.removeprefix(STYLE),
    }
    for name, style in own.items():
        assert STYLE not in style and not re.findall(r"color: #|--\w+: #|prefers-color-scheme", style), name


def front(run: Path) -> str:
    """The first screen of a run."""
    return cover_html(read_results(run), read_record(run), run, "title")


@every_run
def test_a_caption_says_what_its_figure_has(run):
    """Sheets of generated images were called "real images beside generated ones", by the name of their file."""
    if not (run / "figures/beside.png").is_file():
        pytest.skip("it kept no such figure")
    cells = [cell.source for cell in nbformat.read(run / "report.ipynb", 4).cells if cell.cell_type == "code"]
    [made] = [
        text for text in cells if re.search(r"^(images_)?beside(, ax(es)?)? = (?!results_frame)", text, re.MULTILINE)
    ]
    has_real = bool(re.search(r"show_beside\(\s*few\[", made)) or '"real"' in made
    assert ("Real images beside generated ones" in front(run)) == has_real


@pytest.mark.parametrize("file", sorted((ROOT / "nbs/experiments").glob("[!_]*.ipynb")), ids=lambda file: file.stem)
def test_a_figure_named_beside_has_real_images(file):
    cells = [cell.source for cell in nbformat.read(file, 4).cells if cell.cell_type == "code"]
    if '"beside":' in "".join(cells):
        assert any("show_beside(" in text or '"real"' in text for text in cells)


@every_run
def test_the_first_screen_has_a_sentence_and_a_figure(run):
    page = front(run)
    told = re.sub("<[^>]+>", "", re.search(r'<h1 class="verdict">(.*?)</h1>', page, re.DOTALL)[1])
    assert re.search(r" (is|are|gains|change) ", told) and told.endswith("."), told
    assert "<svg" in page or "<img" in page
    assert not re.search(r"\d%", re.sub(r'"[^"]*"', "", page)), "per cent are written 71.7 %"


@every_run
def test_page_and_ledger_judge_the_same_runs(run):
    """Where seeds share generated images the ledger says inconclusive, and pages said better."""
    results, one_set = read_results(run), _open_run(run).one_set
    for one in outcomes(results):
        if one_set and one.verdict != "measured":
            assert one.verdict == "inconclusive", one
            assert one.reason or not one.interval or one.interval[0] <= 0 <= one.interval[1]
    if one_set and is_of_methods(results):
        assert verdict_line(results).startswith("Not decided")


def test_the_best_less_the_worst_of_settings_is_no_verdict():
    told = outcomes(read_results(newest("guidance_study")))[0]
    assert told.verdict == "measured" and "better" not in verdict_line(read_results(newest("guidance_study")))
    old = next(run for run in RUNS if run.name == "c331512210bb")
    assert "8.5" not in verdict_line(read_results(old)) and "wrong (CHANGELOG)" in verdict_line(read_results(old))


def test_a_sentence_says_why_an_interval_that_excludes_zero_decides_nothing():
    seen = 0
    for run in RUNS:
        for one in comparisons(read_results(run)):
            apart = one.winner.gain.side and one.winner.verdict == "inconclusive"
            seen += bool(apart)
            assert bool(
                re.search(r": (not significant after correction for \d+ methods|seeds share).*", advice(one))
            ) == (bool(apart))
    assert seen >= 2


def test_a_method_that_validation_images_chose_is_not_called_the_best():
    seen = 0
    for run in RUNS:
        for one in comparisons(read_results(run)):
            alone = [line.accuracy for line in one.lines if not line.generated]
            top = next(line.accuracy for line in one.lines if line.method == one.against) == max(alone)
            assert top or "the best" not in advice(one)
            seen += one.answer is not None
            assert not (one.answer and "the best" in advice(one))
    assert seen >= 2


def test_the_exchange_rate_is_in_the_first_screen():
    """It was taken against CLIP by names, which real images do not change, so there was none."""
    run = ROOT / "outputs/bridge_study/824491ba73ec"  # one, four and sixteen real images of each class
    results, record = read_results(run), read_record(run)
    stored = {(row["method"], row["real"]): row["says"] for row in results["exchange"]}
    told = [exchange_of(results, record, one) for one in comparisons(results)]
    assert sum(map(bool, told)) == 2 and all("against `vanilla_matched`" in one for one in told if one)
    for one in filter(None, told):
        assert any(says in one and f"`{method}`" in one for (method, _), says in stored.items())
    assert "worth 1.4 more" in front(run) and "worth 2.7 more" in front(run)


@every_run
def test_a_page_tells_of_its_own_run(run):
    """Notebooks say how long others took, and with which files, some of which are gone."""
    page, record = nbformat.read(run / "report.ipynb", 4), read_record(run)
    _of_this_run(page, record, ROOT / f"nbs/experiments/{run.parent.name}.ipynb")
    text = page.cells[0].source
    assert not re.search(r"\*\*(Run|Time)\*\*|defaults (below|alone)", text)
    assert ("synthnb run" in text) == ("given" in record)
    if file := re.search(r"-f (\S+)", text):
        assert (ROOT / file[1]).is_file()
    else:
        assert all(f"{name}=" in text for name in record.get("given", {}))


def test_a_list_and_the_verdict_after_it_stand_apart(pages):
    text = pages["quickstart"].read_text(encoding="utf-8")
    [bullet] = re.findall(r"<li>(?:<p>)?<strong>10 of 10.*?</li>", text, re.DOTALL)
    assert "Not decided" not in bullet


def test_report_takes_several_runs(tmp_path):
    runs = [tmp_path / run.parent.name for run in map(newest, ("bridge_study", "dsi_study"))]
    for run, copy in zip(map(newest, ("bridge_study", "dsi_study")), runs):
        shutil.copytree(run, copy)
    done = CliRunner().invoke(app, ["report", *map(str, runs)], prog_name="synthnb")
    assert done.exit_code == 0 and all((run / "report.html").is_file() for run in runs), done.output
    assert done.output.count("report.html") == 2


def test_users_images_are_judged_though_all_seeds_share_them():
    results = read_results(newest("bridge_study"))
    assert comparisons(results)[0].winner.verdict == "better"
    shared = results | {"generated_sets": 1}
    assert comparisons(shared)[0].winner.verdict == "inconclusive"
    assert comparisons(shared | {"images_given": True})[0].winner.verdict == "better"
    assert outcomes({name: value for name, value in shared.items() if name != "verdicts"})[0].claim == HELP


def test_an_answer_that_is_no_line_of_the_table_has_one_in_the_figure():
    """The sentence said +4.4 points of a method whose line in the figure was another."""
    results = read_results(newest("bridge_study"))
    answer = results["answers"]["1"]
    other = results | {"answers": {"1": answer | {"gain": answer["gain"] + 2, "low": 1.0, "high": 9.0}}}
    figures = [gains_svg(comparisons(one)[0]) for one in (results, other)]
    assert [">the answer<" in figure for figure in figures] == [False, True]
    assert [figure.count('font-weight="600"') for figure in figures] == [2, 2]


def test_a_figure_that_stands_alone_says_what_its_marks_mean():
    comparison = comparisons(read_results(newest("bridge_study")))[0]
    alone, without = gains_svg(comparison, key=True), gains_svg(replace(comparison, answer=None), key=True)
    assert "Bold: the answer" in alone and "● better" in alone and "Grey: without" in without
    assert "Bold" not in without and "Grey" not in gains_svg(comparison)
    assert int(re.search(r'height="(\d+)"', alone)[1]) > max(map(int, re.findall(r' y="(\d+)"', alone)))


def test_the_line_of_the_answer_has_the_verdict_of_the_sentence():
    """Under "use generated images ... +5.9 [+0.2, +11.5]" the same numbers had the mark of inconclusive: methods are
    corrected for their number, and the answer is one comparison."""
    comparison = comparisons(read_results(ROOT / "outputs/compare/e8765dbab018"))[0]
    line = next(line for line in comparison.lines if line.method == comparison.answer.method)
    assert (comparison.answer.verdict, line.verdict) == ("better", "inconclusive")
    assert f"<title>{line.method}: better</title>" in gains_svg(comparison)
    assert "--better" in _caption(comparison) and "one comparison" in _caption(comparison)


def test_shares_are_in_per_cent_and_counts_are_whole():
    """Tables had 0.490, 100.000 and 20.0 beside 71.7 %, and the ends of a gain would be called per cent."""
    heads = ("class", "images", "before", "accuracy", "gain", "low", "high", "run")
    rows = (("one", "20.0", "0.490", "0.890000", "0.400", "-0.073", "NaN", "true"),)
    html = pd.DataFrame(rows, columns=heads).to_html()
    cells = re.findall(r"<t[hd][^>]*>([^<]*)</t[hd]>", readable_html(html))
    assert cells[:8] == ["class", "images", "before %", "accuracy %", "gain, points", "low", "high", "run"]
    assert cells[8:] == ["one", "20", "49.0", "89.0", "40.0", "-7.3", "-", "yes"]
    audit = "<table><tr><th>bridged %</th><th>gain reported</th></tr><tr><td>100.000</td><td>11.200</td></tr></table>"
    assert ">100.0<" in readable_html(audit) and ">11.2<" in readable_html(audit)


def test_six_places_become_three_where_the_numbers_have_them():
    """The table of meanings said that one is ahead by 0.094589; a rate of learning stays what it is."""
    table = pd.DataFrame({"class": ["a", "b"], "margin": [0.094589] * 2, "low": [0.01, -0.2], "lr": [1e-4, 2e-3]})
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", readable_html(table.to_html()))
    assert cells == ["a", "0.095", "0.01", "0.0001", "b", "0.095", "-0.20", "0.0020"]


def test_a_gain_of_less_than_a_point_stays_one():
    """Beside accuracies in per cent, 0.8 points [-0.3, 1.9] were shown as 80.0 [-30.0, 190.0]."""
    table = pd.DataFrame([("71.7", "0.8", "-0.3", "1.9")], columns=("accuracy %", "gain", "low", "high"))
    assert re.findall(r"<td[^>]*>([^<]*)</td>", readable_html(table.to_html(index=False))) == [
        "71.7",
        "0.8",
        "-0.3",
        "1.9",
    ]


def test_a_table_that_a_phone_writes_row_by_row_names_every_value():
    """Nine tables of a report were wider than a phone."""
    columns = ("real images", "method", "accuracy %", "per class %", "paired gain over vanilla_matched", "verdict")
    table = pd.DataFrame([(1, "clip_probe+synthetic", "76.1 [72.0, 79.7]", 76.1, "+25.0 [+21.0, +29.0]", "")] * 2)
    page = readable_html(table.set_axis(columns, axis=1).to_html(index=False))
    assert re.findall('data-name="([^"]*)"', page) == [*columns] * 2 and page.count('class="heads"') == 1
    narrow = readable_html(table[[1, 3]].set_axis(["method", "accuracy %"], axis=1).to_html(index=False))
    assert "by-row" not in narrow


def test_heads_and_rows_of_a_table_with_an_index_stand_even():
    """The names of an index had a row of their own, and a value that several rows share stood in the first alone."""
    table = pd.DataFrame({"style": ["DSI"] * 2, "steps": [50, 150], "KID": [0.31, 0.25]}).set_index(["style", "steps"])
    page = readable_html(table.to_html())
    assert "rowspan" not in page and page.count(">DSI<") == 2 and page.count("<tr") == 3
    wide = readable_html(pd.concat({f"a head of this {i}": table for i in range(9)}, axis=1).to_html())
    assert 'data-name="a head of this 3 KID"' in wide and 'data-name="style"' in wide
    assert wide.count('class="heads"') == 3, "pandas writes two levels of columns and the names of the index"


@every_run
def test_a_study_of_something_else_says_what_to_do(run):
    """Under "LAR+CD+SD minus naive, mixed_per_batch, is +1.0 points" a reader had to find out what to do."""
    results = read_results(run)
    if is_of_methods(results) or not outcomes(results):
        pytest.skip("it compares methods, or has no number of its own")
    told, [main, *_] = verdict_line(results), outcomes(results)
    if (main.verdict, main.interval, main.reason) == ("measured", None, ""):
        # A value that is compared with nothing decides nothing
        assert told == f"{main.claim[0].upper()}{main.claim[1:]} is {main.effect_text}."
        return
    assert re.match("Use |Do not use |Choose |Beware of |It is the same |Not decided: ", told), told
    assert main.effect_text in told, "the number is the stored one"
    low, high = main.interval or (-1, 1)
    decided = main.verdict not in ("inconclusive", "measured") or (main.verdict == "measured" and not low <= 0 <= high)
    assert told.startswith("Not decided") == (not decided), told


def test_the_figure_of_prompt_ladder_shows_what_its_verdict_speaks_of():
    """Its first screen had twelve panels of a thumb's width."""
    run = newest("prompt_ladder")
    results, page = read_results(run), front(run)
    [figure] = re.findall('<svg class="gains".*?</svg>|<svg [^>]*class="gains".*?</svg>', page, re.DOTALL)
    main, sources = outcomes(results)[0], source_comparison(results)
    [bold] = re.findall(r'text-anchor="end" [^>]*font-weight="600">([^<]*)<', figure)
    assert main.effect_text == bold.replace(" [", " points [") and "The main result" not in page
    assert {line.method for line in sources.lines} == {"naive", "LAR", "LAR+CD", "LAR+SD", "LAR+CD+SD", "real only"}
    told = next(line for line in results["conclusion"].splitlines() if "LAR against naive, mixed_per_batch" in line)
    gain = next(line.gain for line in sources.lines if line.method == "LAR")
    assert f"in domain {gain.points} points" in told, "the numbers are those of the study"
    old = next(run for run in RUNS if run.parent.name == "prompt_ladder" and run != newest("prompt_ladder"))
    assert {line.verdict for line in source_comparison(read_results(old)).lines if line.generated} <= {
        "",
        "inconclusive",
    }
