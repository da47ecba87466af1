"""A guard, not a race: a hundred thousand images shared in each layout, and looked through, in memory that does not
grow with their bytes.

`OMP_NUM_THREADS=1 .venv/bin/python benchmarks/guard_share.py [--images 100000]`; pictures are noise, since files are
what matters here. Each layout is written by a process of its own; its memory counts from the moment the libraries are
loaded.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

import psutil
import torch

from synthnb.generate import DrawnBatch
from synthnb.images.folder import open_folder
from synthnb.images.plan import write_plan
from synthnb.images.review import gallery
from synthnb.images.share import _WRITERS, About, export_images
from synthnb.images.worker import make_shards

LIMIT_MIB = 256


def noise(rows):
    """Batches of pictures of 16 pixels that nothing has drawn."""
    for start in range(0, len(rows), 256):
        part = rows.iloc[start : start + 256]
        yield DrawnBatch(part, torch.randint(0, 256, (len(part), 3, 16, 16), dtype=torch.uint8), [0] * len(part), {})


def fill(path: Path, images: int) -> None:
    plan = write_plan(
        path.with_suffix(".parquet"),
        {f"class {i}": [f"a thing {i}", f"a thing {i} at night"] for i in range(100)},
        images // 100,
        seed=0,
        model="somebody/model",
        steps=1,
        guidance=1.0,
    )
    home = open_folder(path, plan)
    made = {
        "loop": "none",
        "revision": "none",
        "style": "",
        "scheduler": "none",
        "dtype": "float32",
        "format": "png",
        "quality": 0,
    }
    make_shards(home, home.pieces(), noise, made)


def measure(folder: str, out: str, what: str) -> None:
    """Do one thing, and print its images, CPU seconds, wall seconds and MiB."""
    me, peak = psutil.Process(), [0]
    before = me.memory_info().rss

    def watch():
        while True:
            peak[0] = max(peak[0], me.memory_info().rss)
            time.sleep(0.02)

    threading.Thread(target=watch, daemon=True).start()
    cpu, wall = time.process_time(), time.perf_counter()
    if what == "gallery":
        images = gallery(folder, "nobody").counts["total"]
    else:
        about = About(licences={"generator": "mit"})
        images = export_images(folder, out, what, about=about, progress=False).images
    print(images, time.process_time() - cpu, time.perf_counter() - wall, (peak[0] - before) / 2**20)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--images", type=int, default=100_000)
    asked = options.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder, failed = Path(scratch, "shards"), []
        fill(folder, asked.images)
        for what in ("gallery", *_WRITERS):
            done = subprocess.run(
                [sys.executable, __file__, "--measure", str(folder), str(Path(scratch, what)), what],
                capture_output=True,
                text=True,
                check=True,
            )
            images, cpu, wall, mib = map(float, done.stdout.split())
            print(
                f"{what}: {images:,.0f} images, {cpu:.1f} s of CPU ({images / cpu:,.0f} a second), "
                f"{wall:.1f} s in all, {mib:.0f} MiB",
                flush=True,
            )
            failed += [what] if mib > LIMIT_MIB else []
    sys.exit(f"more than {LIMIT_MIB} MiB: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure(*sys.argv[2:])
    else:
        main()
