"""The page of a run answers in its first screen, in a real browser: on a desk and on a phone, light, dark, on paper."""

import json
import re
import shutil
from pathlib import Path

import pytest
from test_index import browser  # noqa: F401  (a fixture)

from synthnb.core.stylesheet import STYLE
from synthnb.images.board import _PAGE_STYLE as BOARD_STYLE
from synthnb.images.evidence import _PAGE_STYLE as EVIDENCE_STYLE
from synthnb.studies.check import _PAGE_STYLE as CHECK_STYLE
from synthnb.studies.folder import read_results
from synthnb.studies.index import _STYLE as INDEX_STYLE
from synthnb.studies.report_page import make_page
from synthnb.studies.verdict import comparisons, outcomes

ROOT = Path(__file__).resolve().parents[1]
RUNS = sorted(path.parent for path in (ROOT / "outputs").glob("*/*/DONE"))


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The pages of a study of methods, of one with meanings that are open, and of one without methods."""
    chosen = [
        next(run for run in RUNS if run.parent.name == name) for name in ("bridge_study", "quickstart", "dsi_study")
    ]
    made = {}
    for run in chosen:
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
        verdict = page.query_selector("h1.verdict").bounding_box()
        assert verdict["y"] + verdict["height"] < height / 2, name
        if name != "dsi_study":
            figure = page.query_selector("svg.gains").bounding_box()
            assert figure["y"] + figure["height"] < height, "the gains are in the first screen"
            boxes = [text.bounding_box() for text in page.query_selector_all("svg.gains text")]
            assert min(box["x"] for box in boxes) >= 0 and max(box["x"] + box["width"] for box in boxes) <= width
            assert min(box["height"] for box in boxes) > 12, "letters stay as large as text"
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", dark)[:3])) < 380) == (scheme == "dark")
        page.close()


def test_drawings_turn_dark_and_images_do_not(browser, pages):  # noqa: F811
    page = browser.new_page()
    page.emulate_media(color_scheme="dark")
    page.goto(pages["quickstart"].as_uri())
    filters = page.evaluate("[...document.images].map(i => [i.alt, getComputedStyle(i).filter != 'none'])")
    page.close()
    turned = dict(filters)
    assert (
        turned["figure accuracy"] and not turned["figure synthetic"] and not turned["Real images beside generated ones"]
    )


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
