"""The index in a real browser, opened from the disk: as wide as a desk and as a phone, light and dark."""

import json
import shutil
import subprocess
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest

from synthnb.studies.folder import sole_writer
from synthnb.studies.index import _describe_run, write_index

ROOT = Path(__file__).resolve().parents[1]
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def run_folder(outputs: Path, experiment: str, run: str, day: int, marker: str, told: str = "", **given) -> Path:
    folder = outputs / experiment / run
    (folder / "figures").mkdir(parents=True)
    (folder / "log.txt").write_text("a line\n")
    (folder / "run.json").write_text(
        json.dumps(
            {
                "started": f"2026-11-{day:02d}T10:00:00+00:00",
                "seconds": 61.0,
                "commit": "0f3a" * 10,
                "changed": False,
                "given": given,
            }
        )
    )
    if marker == "DONE":
        (folder / "results.json").write_text(
            json.dumps(
                {
                    "headline": {"what": "bridged - vanilla", "value": 6.1, "low": 3.6, "high": 8.6, "unit": "points"},
                    "figures": ["z", "a"],
                }
            )
        )
        for name in ("report.html", "report.ipynb"):
            (folder / name).write_text("<h1>a report</h1>")
        for name in "az":
            plt.imsave(folder / "figures" / f"{name}.png", [[0, 1], [1, 0]])
    elif marker == "FAILED":
        (folder / "failed.ipynb").touch()
    if marker:
        (folder / marker).write_text(told)
    return folder


@pytest.fixture
def outputs(tmp_path):
    folder = tmp_path / "out puts #1"  # a name that a careless link would break
    run_folder(folder, "bridge_study", "0f3a9c2e41d7", 20, "DONE", shots=1)
    run_folder(
        folder,
        "bridge_study",
        "1f3a9c2e41d7",
        22,
        "FAILED",
        "cell 7 failed: ValueError: <img src=x onerror=alert(1)> is no class",
        shots=4,
    )
    run_folder(
        folder, "volume_study", "2f3a9c2e41d7", 21, "DONE", volumes=[0, 6], note="</script><script>alert(2)</script>"
    )
    with sole_writer(run_folder(folder, "volume_study", "3f3a9c2e41d7", 19, "")):
        yield folder


@pytest.fixture(scope="module")
def browser():
    if BROWSER is None:
        pytest.skip("there is no Chromium or Chrome on this machine")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started, tempfile.TemporaryDirectory() as profile:
        context = started.chromium.launch_persistent_context(
            profile, executable_path=BROWSER, headless=True, args=FLAGS
        )
        yield context
        context.close()


@pytest.fixture
def page(browser, outputs):
    opened, wrong = browser.new_page(), []
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("dialog", lambda dialog: wrong.append(dialog.message))
    opened.on(
        "request", lambda request: wrong.append(request.url) if not request.url.startswith(("file:", "data:")) else None
    )
    opened.on("requestfailed", lambda request: wrong.append(request.url))
    opened.goto(write_index(outputs).as_uri())
    yield opened
    opened.close()
    assert wrong == [], "an error, a script that was text, or something that is not on the disk"


def shown(page) -> list[str]:
    "Run ids of the cards in sight."
    return [card.query_selector("code").inner_text() for card in page.query_selector_all(".run") if card.is_visible()]


def test_many_parameters_are_folded_and_searched_all_the_same(browser, tmp_path):
    """Ten parameters filled a card on a phone."""
    run_folder(tmp_path, "volume_study", "0" * 12, 1, "DONE", **{f"parameter{n}": n for n in range(10)})
    page = browser.new_page()
    page.goto(write_index(tmp_path).as_uri())
    told = page.query_selector(".run").inner_text()
    assert "parameter3: 3" in told and "6 more parameters" in told and "parameter4: 4" not in told
    page.fill("input[name=text]", "parameter9: 9")
    assert len(shown(page)) == 1
    page.click("summary")
    assert "parameter9: 9" in page.query_selector(".run").inner_text()
    page.close()


def test_newest_first_and_failures_in_sight(page):
    assert [name[0] for name in shown(page)] == ["3", "1", "2", "0"], "the run at work was touched just now"
    failed = page.query_selector(".run.FAILED")
    assert (
        "cell 7 failed: ValueError: <img src=x onerror=alert(1)> is no class" in failed.inner_text()
        and "points" not in failed.inner_text()
    )
    assert page.query_selector(".run.DONE .told").inner_text() == (
        "Use bridged, not vanilla: that is +6.1 points [+3.6, +8.6]."
    )
    assert "at work now" in page.query_selector(".run.RUNNING").inner_text()


def test_filters(page):
    def choose(text="", experiment="", status=""):
        page.fill("input[name=text]", text)
        page.select_option("select[name=experiment]", experiment)
        page.select_option("select[name=status]", status)
        assert page.inner_text(".count") == f"{len(shown(page))} of 4 runs"
        return [name[0] for name in shown(page)]

    assert choose("SHOTS: 4") == ["1"] and choose("no such") == [] and page.is_visible(".none-found")
    assert choose(experiment="volume_study") == ["3", "2"] and choose(status="DONE") == ["2", "0"]
    assert choose("bridged 2026-11-20", "bridge_study", "DONE") == ["0"] and choose() == ["3", "1", "2", "0"]
    choose("onerror", status="FAILED")
    page.reload()
    assert [name[0] for name in shown(page)] == ["1"], "what was chosen stands in the address"


def test_links_and_thumbnails_lead_to_files(page, outputs):
    thumbs = page.query_selector_all(".thumb img")
    for thumb in thumbs:
        thumb.scroll_into_view_if_needed()
    page.wait_for_function("[...document.images].every(image => image.complete)")
    assert [page.evaluate("image => image.naturalWidth", thumb) for thumb in thumbs] == [2, 2]
    assert all(thumb.get_attribute("src").endswith("figures/z.png") for thumb in thumbs), (
        "the figure that was named first"
    )
    page.click(".run.DONE .links a >> text=report")
    assert page.inner_text("h1") == "a report"


@pytest.mark.parametrize("width", [1440, 390])
def test_a_figure_is_whole_whatever_its_shape(browser, outputs, width):
    """Figures higher than wide, such as six panels, lost their lower half."""
    figures = list(outputs.glob("*/*/figures/z.png"))
    for file, shape in zip(figures, ((900, 300), (300, 900))):
        plt.imsave(file, np.zeros(shape))
    page = browser.new_page()
    page.set_viewport_size({"width": width, "height": 844})
    page.goto(write_index(outputs).as_uri())
    boxes = [
        (thumb.bounding_box(), thumb.query_selector("img").bounding_box())
        for thumb in page.query_selector_all("a.thumb")
    ]
    placeholder = "field => { field.value = field.placeholder; return [field.scrollWidth, field.clientWidth]; }"
    needed, there = page.evaluate(placeholder, page.query_selector("input[name=text]"))
    page.close()
    assert len(figures) == len(boxes) == 2
    for frame, image in boxes:
        assert image["height"] <= frame["height"] and image["y"] + image["height"] <= frame["y"] + frame["height"] + 1
    assert needed <= there, "what to type is cut"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_looks(page, width, scheme, tmp_path):
    page.set_viewport_size({"width": width, "height": 844})
    page.emulate_media(color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == width, "nothing sticks out"
    colour = lambda selector, what: [
        int(x)
        for x in page.evaluate("([s, w]) => getComputedStyle(document.querySelector(s))[w]", [selector, what])[
            4:-1
        ].split(",")[:3]
    ]

    def contrast(one, other):
        def light(rgb):
            parts = [c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in rgb]
            return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

        high, low = sorted((light(one), light(other)), reverse=True)
        return (high + 0.05) / (low + 0.05)

    assert (sum(colour("body", "backgroundColor")) > 380) == (scheme == "light")
    card = colour(".run", "backgroundColor")
    for selector in (
        ".told",
        ".meta",
        ".run.FAILED .told",
        ".state.DONE",
        ".state.FAILED",
        ".state.RUNNING",
        ".links a",
    ):
        assert contrast(colour(selector, "color"), card) >= 4.5, selector
    thumb, told = (
        page.query_selector(".run.DONE .thumb").bounding_box(),
        page.query_selector(".run.DONE .told").bounding_box(),
    )
    assert (thumb["y"] + thumb["height"] <= told["y"]) == (width == 390), (
        "under each other on a phone, side by side on a desk"
    )
    picture = tmp_path / f"index-{width}-{scheme}.png"
    page.screenshot(path=picture)
    assert picture.stat().st_size > 20_000


def test_readable_without_scripts(page):
    assert page.is_visible(".bar")
    page.context.new_cdp_session(page).send("Emulation.setScriptExecutionDisabled", {"value": True})
    page.reload()
    assert not page.is_visible(".bar"), "scripts are off, and there is nothing that only they can work"
    assert [name[0] for name in shown(page)] == ["3", "1", "2", "0"]
    box = page.query_selector_all(".run")[-1].bounding_box()
    assert box["height"] > 50 and box["width"] > 300
    assert "cell 7 failed: ValueError: <img src=x onerror=alert(1)> is no class" in page.inner_text(".run.FAILED")
    page.click(".run.DONE .links a >> text=report")
    assert page.inner_text("h1") == "a report"


def test_a_run_that_was_killed_is_failed_and_one_at_work_is_running(outputs):
    run_folder(outputs, "bridge_study", "4f3a9c2e41d7", 18, "", shots=8)
    text = write_index(outputs).read_text()
    assert (
        text.count('data-state="RUNNING"') == 1
        and text.count('data-state="FAILED"') == 2
        and "2 done, 2 failed, 1 running" in text
    )
    assert "killed, or the machine went down: run it again" in text and "shots: 8" not in text, (
        "what run.json says is of an earlier run"
    )


def test_the_committed_reports_have_an_index(tmp_path):
    if not list((ROOT / "outputs").glob("*/*/DONE")):
        pytest.skip("no report is committed")
    listed = subprocess.run(["git", "ls-files", "outputs"], cwd=ROOT, capture_output=True, text=True, check=True)
    files = [Path(line) for line in listed.stdout.splitlines() if not line.endswith((".ipynb", ".html"))]
    for file in files:  # not what else was run here
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, tmp_path / file)
    text = write_index(tmp_path / "outputs").read_text()
    assert text.count('<li class="run') == sum(file.name == "run.json" for file in files)


def test_damaged_runs_are_still_on_the_page(outputs):
    (outputs / "bridge_study" / "0f3a9c2e41d7" / "run.json").write_text('{"started": "2026-')
    (outputs / "volume_study" / "2f3a9c2e41d7" / "results.json").unlink()
    text = write_index(outputs).read_text()
    assert (
        text.count('<li class="run') == 4 and text.count('data-state="FAILED"') == 2 and "its report are gone" in text
    ), "DONE without results is not done"
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        write_index(outputs / "nowhere")


def test_a_run_with_the_faults_of_early_versions_says_so(tmp_path):
    for name, results in (
        ("old", {"headline": {"what": "a - b", "value": 9.8, "low": 5.9, "high": 13.6, "unit": "points"}}),
        ("new", {"generated_sets": 3}),
    ):
        folder = tmp_path / "quickstart" / name
        folder.mkdir(parents=True)
        (folder / "results.json").write_text(json.dumps({"rows": [], "summary": [], "conclusion": "it ran"} | results))
        (folder / "run.json").write_text(
            json.dumps({"started": "2026-11-20T00:00:00+00:00", "versions": {"synthnb": "0.0.1"}})
        )
        for file in ("report.ipynb", "DONE"):
            (folder / file).write_text("{}")
    assert "CHANGELOG says which of its numbers are wrong" in _describe_run(tmp_path / "quickstart/old")["told"]
    assert "CHANGELOG" not in _describe_run(tmp_path / "quickstart/new")["told"]
