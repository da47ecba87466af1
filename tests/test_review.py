"""The gallery in a real JupyterLab and a real browser: keys, clicks, a reload, a killed kernel.

Skipped where no Chromium is installed.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager, suppress
from pathlib import Path

import nbformat
import pytest
from PIL import Image

import synthnb
from synthnb.glyphworld import world as glyphworld
from synthnb.images.decisions import Decisions, decisions_path
from synthnb.images.drawer import Drawing
from synthnb.images.plan import write_plan
from synthnb.images.review import listed_images
from synthnb.images.shards import generate_shards

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"))), None
)
ARGUMENTS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
PROMPTS = {
    name: [
        f"a photo of arabic digit {name}, {style}"
        for style in ("print on paper", "neon at night", "chalk on a blackboard")
    ]
    for name in ("two", "three", "four", "five", "six", "eight")
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """60 images of glyphworld's generator in two shards: a full page of the gallery and a short one."""
    path = tmp_path_factory.mktemp("home") / "shards"
    plan = write_plan(
        path.with_name("plan.parquet"),
        PROMPTS,
        10,
        seed=0,
        model="glyphworld/generator",
        steps=8,
        guidance=2.0,
        shard_size=32,
        batch_size=32,
    )
    drawing = Drawing(device="cpu", kind="png")
    generate_shards(plan, path, glyphworld.folder("generator"), drawing=drawing, progress=False)
    return path


# ---- JupyterLab and the browser


def server_address(runtime: Path) -> str:
    """Where the server listens; empty until it has written that whole."""
    for file in runtime.glob("jpserver-*.json"):
        with suppress(json.JSONDecodeError):
            return json.loads(file.read_text())["url"]
    return ""


@contextmanager
def jupyterlab(home: Path):
    """A server of its own, with settings of its own, on this machine only; its address with the token."""
    own = {
        name: str(home / name.lower())
        for name in (
            "JUPYTER_CONFIG_DIR",
            "JUPYTER_RUNTIME_DIR",
            "JUPYTERLAB_SETTINGS_DIR",
            "JUPYTERLAB_WORKSPACES_DIR",
            "IPYTHONDIR",
        )
    }
    settings = (
        home / "jupyterlab_settings_dir" / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    )
    settings.parent.mkdir(parents=True)
    settings.write_text(json.dumps({"fetchNews": "false", "checkForUpdates": False}))
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        "--no-browser",
        "--allow-root",
        "--ip=127.0.0.1",
        "--ServerApp.port=0",
        "--IdentityProvider.token=secret",
        f"--ServerApp.root_dir={home}",
        "--LabApp.extension_manager=readonly",
    ]
    package = str(Path(synthnb.__file__).resolve().parents[1])
    with open(home / "jupyterlab.log", "wb") as log:
        server = subprocess.Popen(
            command,
            env=os.environ | own | {"PYTHONPATH": package, "OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            yield until(lambda: server_address(home / "jupyter_runtime_dir"), 180)
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait(30)


def until(check, seconds=60.0):
    """What `check` gives as soon as it gives something."""
    end = time.monotonic() + seconds
    while not (found := check()):
        assert time.monotonic() < end, f"{seconds} seconds were not enough"
        time.sleep(0.05)
    return found


def ask(url: str, method: str = "GET") -> object:
    """The server's answer to a request of its REST interface."""
    request = urllib.request.Request(
        url, method=method, headers={"Authorization": "token secret"}, data=b"" if method == "POST" else None
    )
    with urllib.request.urlopen(request) as answer:
        return json.loads(answer.read() or "null")


def has_outputs(url: str, notebook: str) -> bool:
    """Whether the notebook lies on disk with outputs.

    Jupyter saves in place: a read in the middle of it is refused with 400.
    """
    try:
        cells = ask(f"{url}api/contents/{notebook}")["content"]["cells"]
    except urllib.error.HTTPError as error:
        if error.code != 400:
            raise
        return False
    return any(output.get("output_type") for cell in cells for output in cell.get("outputs", []))


def save(page, url: str, notebook: str):
    """Save until the outputs are on disk: a busy JupyterLab may miss the key."""

    def saved() -> bool:
        page.keyboard.press("Control+s")
        page.wait_for_timeout(1000)
        return has_outputs(url, notebook)

    until(saved)


def kernel_process(home: Path) -> int:
    """The process that runs the notebook's kernel: the newest one wins."""
    import psutil

    found = [
        p
        for p in psutil.process_iter(["cmdline", "create_time"])
        if any(str(home) in word for word in p.info["cmdline"] or ()) and "ipykernel_launcher" in p.info["cmdline"]
    ]
    return max(found, key=lambda p: p.info["create_time"]).pid


class Page:
    """The gallery in the browser, as a person meets it."""

    def __init__(self, page, folder: Path):
        self.page, self.decisions = page, Decisions(decisions_path(folder))

    def cards(self, decision: str) -> int:
        return self.page.locator(f".synthnb-gallery .card[data-decision='{decision}']:not(.pending)").count()

    def wait_for(self, **counts: int):
        """Wait until this many cards of the page carry these marks."""
        until(lambda: all(self.cards(name) == count for name, count in counts.items()))

    def current(self) -> str:
        return self.page.evaluate("document.activeElement?.dataset?.id ?? ''")

    def press(self, *keys: str):
        for key in keys:
            self.page.keyboard.press(key)

    def run_cells(self):
        """Run all cells from the menu as soon as there is a kernel, and wait for the gallery."""
        self.page.get_by_text("| Idle").wait_for(timeout=60_000)
        self.page.get_by_role("menuitem", name="Run", exact=True).click()
        self.page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        self.page.wait_for_selector(".synthnb-gallery .card img", timeout=60_000)

    def told(self) -> list[tuple[str, str, str]]:
        table = self.decisions.table("anna")
        return list(zip(table.id, table.decision, table["class"]))


def contrast(page, selector: str) -> float:
    """WCAG contrast of an element's text with what lies behind it."""
    return page.evaluate(
        """selector => {
        const parts = colour => {
            const c = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
            c.fillStyle = colour; c.fillRect(0, 0, 1, 1); return [...c.getImageData(0, 0, 1, 1).data]; };
        const linear = v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
        const light = ([r, g, b]) => [r, g, b].map(v => linear(v / 255))
            .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
        const node = document.querySelector(selector);
        let behind = node;
        while (parts(getComputedStyle(behind).backgroundColor)[3] < 255) behind = behind.parentElement;
        const colours = [getComputedStyle(node).color, getComputedStyle(behind).backgroundColor];
        const [a, b] = colours.map(colour => light(parts(colour))).sort((x, y) => y - x);
        return (a + 0.05) / (b + 0.05);
    }""",
        selector,
    )


TEXTS = [
    ".synthnb-gallery " + name
    for name in (
        ".counts",
        ".told",
        ".legend",
        ".card .name",
        "button.accept",
        "kbd",
        ".card[data-decision='reject'] .mark",
        ".card[data-decision='accept'] .mark",
        ".card[data-decision='relabel'] .mark",
    )
]


@pytest.fixture(scope="module")
def lab(folder):
    """A page of JupyterLab with a notebook that opens a gallery."""
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed here: the gallery was not opened in a browser")
    sync_playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install 'synthnb[dev]'"
    ).sync_playwright
    home = folder.parent
    cells = ["from synthnb.images.review import gallery", f"gallery({str(folder)!r}, 'anna')"]
    nbformat.write(
        nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_code_cell(cell) for cell in cells],
            metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
        ),
        home / "look.ipynb",
    )
    with jupyterlab(home) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch_persistent_context(
            home / "browser",
            executable_path=CHROMIUM,
            args=ARGUMENTS,
            headless=True,
            viewport={"width": 1100, "height": 900},
            env=os.environ | {"HOME": str(home)},
        )
        page = browser.pages[0]
        page.goto(f"{url}doc/tree/look.ipynb?token=secret&reset")
        page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=60_000)
        yield url, page
        browser.close()


def test_browser_gallery_loses_nothing(lab, folder):
    url, page = lab
    seen, ids = Page(page, folder), listed_images(folder).id.tolist()
    seen.run_cells()
    assert page.locator(".synthnb-gallery .card").count() == 50
    until(
        lambda: page.evaluate(
            "[...document.querySelectorAll('.synthnb-gallery img')].every(image => image.naturalWidth === 32)"
        )
    )

    # keys: none of them may reach JupyterLab, where a makes a cell and x cuts one
    page.locator(f".card[data-id='{ids[0]}']").click()
    seen.press("a", "x", "a", "ArrowRight", "x")
    seen.wait_for(accept=2, reject=2)
    assert seen.told() == [
        (ids[i], decision, ids[i].split("-")[1])
        for i, decision in ((0, "accept"), (1, "reject"), (2, "accept"), (4, "reject"))
    ]
    assert page.locator(".jp-Notebook .jp-Cell").count() == 2 and seen.current() == ids[5]

    assert not page.locator(".synthnb-gallery form").is_visible()

    # relabel, with a beginning that is enough; then undo, and relabel again
    seen.press("l", *"thr", "Enter")
    seen.wait_for(relabel=1)
    assert seen.told()[-1] == (ids[5], "relabel", "three")
    seen.press("u")
    seen.wait_for(relabel=0)
    until(lambda: seen.current() == ids[5])
    seen.press("l", *"t", "Enter")
    assert (
        page.evaluate("document.querySelector('.synthnb-gallery input').validationMessage")
        == "2 classes begin so: two, three"
    )
    seen.press(*"wo", "Enter")
    seen.wait_for(relabel=1)

    # the mouse: the small buttons of a card, and the large ones
    page.locator(f".card[data-id='{ids[8]}']").hover()
    assert ids[8] in page.locator(".told").inner_text() and "arabic digit" in page.locator(".told").inner_text()
    page.locator(f".card[data-id='{ids[8]}'] .quick .reject").click()
    page.locator(f".card[data-id='{ids[9]}']").click()
    page.get_by_role("toolbar", name="what is said").get_by_role("button", name="Accept", exact=False).first.click()
    seen.wait_for(accept=3, reject=3, relabel=1)
    before = seen.told()
    assert len(before) == 7

    # reload: the page is built again from the kernel
    save(page, url, "look.ipynb")
    page.reload()
    page.wait_for_selector(".synthnb-gallery .card img", timeout=60_000)
    seen.wait_for(accept=3, reject=3, relabel=1)
    if shot := os.environ.get("SYNTHNB_SCREENSHOT"):
        picture(page, Path(shot))

    # kill -9 as soon as a mark is there: the kernel is gone, the decision is not
    page.locator(f".card[data-id='{ids[10]}']").click()
    seen.press("x")
    seen.wait_for(reject=4)
    os.kill(kernel_process(folder.parent), signal.SIGKILL)
    assert seen.told() == [*before, (ids[10], "reject", ids[10].split("-")[1])]

    # what is pressed now cannot be written, and the page says so
    seen.press("a")
    alert = page.locator(".synthnb-gallery .alert")
    alert.wait_for(state="visible", timeout=20_000)
    assert "not saved" in alert.inner_text().lower() and page.locator(".card.pending").count() == 1

    # a new kernel: run the cells, and go on at the first image without a decision
    page.reload()
    page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=60_000)
    seen.run_cells()
    seen.wait_for(accept=3, reject=4, relabel=1)
    assert page.locator(".card[aria-selected='true']").get_attribute("data-id") == ids[3]

    # the rest of the page at once, one step to undo; the second page
    page.locator(f".card[data-id='{ids[3]}']").click()
    seen.press("Shift+A")
    seen.wait_for(accept=45, reject=4, relabel=1)
    seen.press("u")
    seen.wait_for(accept=3)
    seen.press("Shift+A", "n")
    until(lambda: page.locator(".synthnb-gallery .card").count() == 10)
    until(lambda: "50 of 60 looked at" in page.locator(".counts").inner_text())
    assert "page 2 of 2" in page.locator(".pages").inner_text()


def picture(page, path: Path):
    """A small picture of the gallery, as the notebook shows it."""
    before = page.viewport_size
    page.set_viewport_size({"width": 1000, "height": 900})
    page.mouse.move(0, 0)
    page.locator(".card[data-decision='']").first.focus()
    page.locator(".synthnb-gallery").evaluate("node => node.scrollIntoView()")
    box = page.locator(".synthnb-gallery").bounding_box()
    page.screenshot(path=path, clip=box | {"height": 620})
    with Image.open(path) as image:
        image.convert("RGB").quantize(128).save(path, optimize=True)
    page.set_viewport_size(before)


def test_browser_gallery_can_be_read_in_light_and_dark_and_on_a_phone(lab, folder):
    _, page = lab
    if not page.locator(".synthnb-gallery").count():
        Page(page, folder).run_cells()
    page.keyboard.press("p")
    for theme in ("JupyterLab Light", "JupyterLab Dark"):
        page.get_by_role("menuitem", name="Settings", exact=True).click()
        page.locator(".lm-Menu-itemLabel", has_text=re.compile("^Theme$")).hover()
        page.locator(".lm-Menu-itemLabel", has_text=re.compile(f"^{theme}$")).click()
        until(lambda: page.evaluate("document.body.dataset.jpThemeName") == theme)
        low = {
            text: round(value, 2)
            for text in TEXTS
            if page.locator(text).count() and (value := contrast(page, text)) < 4.5
        }
        assert not low, f"hard to read in {theme}: {low}"
        if shot := os.environ.get("SYNTHNB_SCREENSHOT"):
            page.locator(".synthnb-gallery").screenshot(path=Path(shot).with_name(f"{theme.split()[-1].lower()}.png"))
    page.locator(".card").first.click()
    page.keyboard.press("ArrowRight")
    ring = page.evaluate(
        "(({ outlineStyle, outlineWidth }) => outlineStyle + ' ' + outlineWidth)"
        "(getComputedStyle(document.activeElement))"
    )
    assert ring == "solid 3px"
    page.set_viewport_size({"width": 390, "height": 800})
    assert until(lambda: page.evaluate("document.querySelector('.synthnb-gallery').clientWidth < 390"))
    assert page.evaluate(
        "(node => node.scrollWidth <= node.clientWidth)(document.querySelector('.synthnb-gallery'))"
    ), "it has to be scrolled sideways"
    small = page.evaluate(
        "[...document.querySelectorAll('.synthnb-gallery .line button')]"
        ".filter(b => b.offsetParent && b.offsetHeight < 44).length"
    )
    assert small == 0, "too small for a thumb"
    if shot := os.environ.get("SYNTHNB_SCREENSHOT"):
        page.screenshot(path=Path(shot).with_name("phone.png"))
