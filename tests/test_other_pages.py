"""Pages of check, meanings, the board and a sweep with names that are too long for a phone: nothing sticks out."""

import re

import pandas as pd
import pytest
import torch
from lar_cases import noise
from PIL import Image
from shard_images import plan_of, shard_images
from test_index import browser  # noqa: F401  (a fixture)

from synthnb.data import digits
from synthnb.glyphworld import world as glyphworld
from synthnb.images.board import make_board, write_board
from synthnb.images.evidence import write_evidence
from synthnb.images.scores import score_images
from synthnb.lar import resolve
from synthnb.models.clip import image_features
from synthnb.models.meanings import Candidate
from synthnb.studies.check import check_images, write_check
from synthnb.studies.sweep_page import sweep_page

torch.set_num_threads(1)
LONG = ("Donaudampfschifffahrtselektrizitaetenhauptbetriebswerkbauunterbeamtengesellschaft", "w" * 100, "a b c " * 20)
NAMES = tuple(name.strip() for name in LONG)


def check(place):
    scans = digits(32)["train"]
    for i, name in enumerate(NAMES):
        home = place / "images" / name
        home.mkdir(parents=True)
        for j in range(12):
            pixels = scans.images[scans.labels == i][j].permute(1, 2, 0).numpy()
            Image.fromarray(pixels).save(home / f"{'long-' * 20}{j}.png")
        (home / f"{'broken-' * 20}.png").write_bytes(b"no image")
    return write_check(check_images(place / "images", 32), place / "check.html")


def senses(place, clip):
    candidates = {name: [Candidate(phrase=f"{name} {i}", looks=name * 3) for i in range(2)] for name in NAMES}
    features = image_features(clip, [(noise(24), [0, 1, 2] * 8)], NAMES, progress=False)
    found = resolve(clip, features, candidates, {}, ["{phrase}"])
    return write_evidence(found, place / "senses.html", features, title="W" * 90)


def board(place, clip):
    images = glyphworld.render(glyphworld.sample_scenes(3 * 8, torch.Generator().manual_seed(0)))
    plan = plan_of(place / "plan.parquet", NAMES, 8, **{name: name * 4 for name in NAMES})
    scores = score_images(shard_images(place / "shards", plan, images).path, clip, progress=False)
    return write_board(make_board(scores), place / "board.html", "W" * 90)


def sweep(place):
    varied = [f"a_parameter_with_quite_a_long_name_{i}" for i in range(6)]
    rows = [{f"param.{name}": "v" * 30 for name in varied} | {"method": "m" * 60, "value": i / 10} for i in range(4)]
    cells = [{"values": ["v" * 60] * 6, "state": "FAILED", "told": "e" * 200, "link": ""}]
    about = dict(name="W" * 90, counts="4 of 5", base={"k" * 80: "v" * 200}, figure="")
    page = place / "sweep.html"
    page.write_text(sweep_page(pd.DataFrame(rows), varied, cells, **about), encoding="utf-8")
    return page


@pytest.fixture(scope="module")
def pages(tmp_path_factory, clip):
    place = tmp_path_factory.mktemp("pages")
    return [check(place), senses(place, clip), board(place, clip), sweep(place)]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 768, 390])
def test_nothing_sticks_out(browser, pages, width, scheme):  # noqa: F811
    for path in pages:
        page = browser.new_page()
        page.set_viewport_size({"width": width, "height": 844})
        page.emulate_media(color_scheme=scheme)
        page.goto(path.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") == width, path.name
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", background)[:3])) < 380) == (scheme == "dark"), path.name
        page.screenshot(path=path.with_name(f"{path.stem}-{width}-{scheme}.png"))
        page.close()


def test_a_number_is_not_broken_on_a_phone(browser, pages):  # noqa: F811
    page = browser.new_page()
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(pages[1].as_uri())
    lines = page.evaluate("""[...document.querySelectorAll("td:last-child")].map(cell => {
      const range = document.createRange(); range.selectNodeContents(cell.firstChild);
      return [cell.firstChild.textContent.trim(), range.getClientRects().length]; })""")
    numbers = [(text, count) for text, count in lines if re.fullmatch(r"-?[\d.]+", text)]
    assert numbers and all(count == 1 for _, count in numbers), numbers
    page.close()


def test_no_answer_is_cut_on_a_phone(browser, pages):  # noqa: F811
    """A sweep's values and verdicts and the board's table of all classes ended behind the right edge."""
    for path in pages[2:]:
        page = browser.new_page()
        page.set_viewport_size({"width": 390, "height": 844})
        page.goto(path.as_uri())
        cut = "[...document.querySelectorAll('.scroll')].filter(table => table.scrollWidth > table.clientWidth + 1)"
        assert page.evaluate(f"{cut}.map(table => table.innerText)") == [], path.name
        unnamed = "[...document.querySelectorAll('td')].filter(cell => cell.dataset.name === undefined)"
        told = page.evaluate(f"{unnamed}.map(cell => cell.innerText).filter(text => text)")
        assert set(told) <= {"FAILED", "e" * 200}, "every value has its column's name beside it"
        page.close()


def test_the_figure_of_a_sweep_turns_dark(browser, tmp_path):  # noqa: F811
    path = tmp_path / "sweep.html"
    Image.new("RGB", (60, 40), "white").save(tmp_path / "figure.png")
    about = dict(name="a", counts="none", base={}, figure="figure.png")
    path.write_text(sweep_page(pd.DataFrame(), ["lr"], [], **about), encoding="utf-8")
    page = browser.new_page()
    filters = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        page.goto(path.as_uri())
        filters.append(page.evaluate("getComputedStyle(document.images[0]).filter"))
    page.close()
    assert filters[0] == "none" and "invert" in filters[1]


def test_shares_are_written_as_in_reports(pages):
    """One page wrote 93%, another 93 %."""
    for path in pages:
        text = re.sub(r"<style>.*?</style>|<[^>]*>", " ", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        assert not re.findall(r"\d%", text), path.name
    assert re.search(r"CLIP sees it in \d+ % \[\d+, \d+\] of 8", pages[2].read_text(encoding="utf-8"))


def test_a_folder_keeps_its_small_letters(browser, tmp_path):  # noqa: F811
    """Its refusal began with "Photos needs", of a folder that is called photos."""
    (tmp_path / "photos").mkdir()
    page = browser.new_page()
    page.goto(write_check(check_images(tmp_path / "photos", 32), tmp_path / "check.html").as_uri())
    first = "getComputedStyle(document.querySelector('.told'), '::first-letter').textTransform"
    told = page.inner_text(".told"), page.evaluate(first)
    page.close()
    assert told[0].startswith(("photos", str(tmp_path))) and told[1] == "none", told


def test_no_page_speaks_of_what_only_the_papers_readers_know(pages):
    """They said "as paper B draws" and "LAR", and nothing of what these are."""
    told, meanings = (path.read_text(encoding="utf-8") for path in pages[:2])
    assert "paper B" not in told and "Label ambiguity resolution (LAR)" in meanings
    assert "generated images per class are 3,000" in told
