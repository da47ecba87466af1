"""Draw the first screens of a report for the guides, on a desk and on a phone: `python tools/draw_screens.py RUN`.

RUN is a folder of outputs; its page is made anew in a temporary folder. Needs playwright and Chromium or Chrome.
"""

import io
import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from synthnb.studies.report_page import make_page

FIGURES = Path(__file__).resolve().parents[1] / "nbs/guides/figures"
SCREENS = {"report-desk.png": (1440, 900, "light"), "report-phone.png": (390, 844, "dark")}


def draw(run: Path) -> None:
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))))
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as started:
        page_file = make_page(Path(shutil.copytree(run, Path(folder, run.parent.name, run.name))))
        chromium = started.chromium.launch(executable_path=browser, args=["--no-sandbox", "--disable-gpu"])
        for name, (width, height, scheme) in SCREENS.items():
            page = chromium.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
            page.goto(page_file.as_uri())
            image = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
            image.quantize(32, dither=Image.Dither.NONE).save(FIGURES / name, optimize=True)
            print(FIGURES / name, (FIGURES / name).stat().st_size)
        chromium.close()


if __name__ == "__main__":
    draw(Path(sys.argv[1]).resolve())
