"""From 10,000 images to a million: CPU and memory of `curate`, the leak check and `check` as a set grows tenfold.

`OMP_NUM_THREADS=1 .venv/bin/python benchmarks/million.py [--what curate leaks check] [--counts 10000 100000 1000000]
[--small]`; protocol: benchmarks/README.md. Each size of each runs in a process of its own, with its peak of memory.

- curate: from stored scores to the kept list: open them, filter by contrast, CLIP's choice and percentile, look for
  near-duplicates, write the list. The plan is real; the scores are random, the thumbnails those of
  `near_duplicates.py`, a tenth of them planted copies. Rejects are not copied, as there are no images.
- leaks: `check_splits` of 80 % train, 10 % val and 10 % test, 16 px, of smooth random fields with 1 in 100 of val and
  test planted: equal to a training image but for a little noise, half of those mirrored. All of them must be found.
- check: `check_images` of JPEG files of 32 px in 100 folders, smooth fields, each file another one. Making them is not
  counted.

Bars: time an image at the largest size at most 10 times that at the smallest, where all with all it would be 100 times
from 10,000 to 1,000,000, and at most 2 GiB.
"""

import argparse
import importlib
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

GROWTH, MEMORY = 10, 2 * 2**30  # bars


def fields(count: int, size: int, seed: int) -> torch.Tensor:
    """Smooth random images, uint8 [N, 3, size, size]: three colours of one field and a little of others."""
    generator, line = torch.Generator().manual_seed(seed), torch.fft.fftfreq(size) * size
    falls = 1 / (1 + line[:, None] ** 2 + line**2).sqrt()
    images = torch.empty(count, 3, size, size, dtype=torch.uint8)
    for part in images.split(4096):
        waves = torch.fft.fft2(torch.randn(len(part), 1, size, size, generator=generator)) * falls
        grey = torch.fft.ifft2(waves).real
        tint = torch.rand(len(part), 3, 1, 1, generator=generator) * 0.4 + 0.8
        part[:] = (127 + 50 * tint * grey / grey.std((2, 3), keepdim=True)).clamp(0, 255).round().byte()
    return images


def stored_scores(folder: Path, count: int) -> None:
    """A folder of shards with a plan and scores and without images: tars are empty."""
    from near_duplicates import thumbnails_of

    from synthnb.images.folder import open_folder
    from synthnb.images.plan import write_plan

    told = {f"thing {label}": [f"a photo of thing {label}"] for label in range(100)}
    plan = write_plan(folder / "plan.parquet", told, count // 100, seed=0, model="noise", steps=1, guidance=1.0)
    home, thumbs = open_folder(folder / "shards", plan), thumbnails_of(count)[0]
    place, rng, start = home.own / "curation" / "scores-made-up", np.random.default_rng(0), 0
    place.mkdir(parents=True)
    (place / "about.json").write_text(json.dumps({"clip": "none", "others": [], "real": {}}))
    for piece in home.pieces():
        rows = plan.rows(piece.first, piece.last)
        many = len(rows)
        columns = {"id": rows.id, "label": rows.label, "class": [f"thing {label}" for label in rows.label]}
        columns |= {"pixels": [f"{start + i:064x}" for i in range(many)], "contrast": rng.uniform(1, 60, many)}
        columns |= {"brightest": rng.integers(0, 256, many).astype(np.int16)}
        columns |= {f"clip_{name}": rng.random(many, np.float32) for name in ("cosine", "probability")}
        columns |= {"clip_label": np.where(rng.random(many) < 0.8, rows.label, 0)}
        columns |= {"thumbnail": pa.FixedShapeTensorArray.from_numpy_ndarray(thumbs[start : start + many].numpy())}
        table = pa.table(columns).replace_schema_metadata({"tar": piece.name})
        pq.write_table(table, place / f"{piece.name}.parquet")
        home.tar(piece.name).touch()
        (home.own / "stats" / f"{piece.name}.json").write_text(json.dumps({"images": many, "sha256": piece.name}))
        start += many


def curate_child(folder: Path, count: int) -> str:
    from synthnb.images.curate import Filters, curate, write_kept
    from synthnb.images.scores import _load_scores

    filters = Filters(blank=2, agree=True, min_percentile=0.1, duplicates=0.997)
    done = curate(_load_scores(folder / "shards"), filters)
    write_kept(done, rejects=False, progress=False)
    assert len(done.table) == count
    return f"{len(done.kept):,} kept, {done.reasons['near-duplicate']:,} near-duplicates"


def leaks_child(folder: Path, count: int) -> str:
    from synthnb.data import LabelledImages
    from synthnb.datasets.sets import check_splits

    sizes = {"train": count * 8 // 10, "val": count // 10, "test": count // 10}
    images, planted = {split: fields(many, 16, seed) for seed, (split, many) in enumerate(sizes.items())}, 0
    for split in ("val", "test"):
        own, many = images[split], max(2, sizes[split] // 100)
        copies = images["train"][planted : planted + many].float() + torch.randn(
            many, 3, 16, 16, generator=torch.Generator().manual_seed(9)
        )
        copies[::2] = copies[::2].flip(-1)
        own[:many] = copies.clamp(0, 255).round().byte()
        planted += many
    data = {
        split: LabelledImages(own, torch.zeros(len(own), dtype=torch.int64), ("thing", "other"))
        for split, own in images.items()
    }
    begun = time.process_time()
    table = check_splits(data, allowed=count)
    seconds = time.process_time() - begun
    found = table["nearly the same"]
    told = f"{found['train & val'] + found['train & test']:,} of {planted:,} planted found"
    return f"{told}, {found['val & test']:,} between val and test;{seconds}"


def made_files(folder: Path, count: int) -> None:
    """JPEG files in a folder a class."""
    for label in range(100):
        place = folder / "files" / f"thing {label}"
        place.mkdir(parents=True)
        for i, image in enumerate(fields(count // 100, 32, label).permute(0, 2, 3, 1).numpy()):
            Image.fromarray(image).save(place / f"{i}.jpg", quality=90)


def check_child(folder: Path, count: int) -> str:
    from synthnb.studies.check import check_images, write_check

    os.environ["SYNTHNB_CACHE"] = str(folder / "cache")
    found = check_images(folder / "files", size=32, knows=None, threads=1)
    write_check(found, folder / "check.html")
    assert len(found.seen) == count and not found.refused
    return f"{len(found.findings)} findings"


def peak_bytes() -> int:
    """The most that this process had resident; `resource` would count what started it, too."""
    told = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    return 1024 * int(told[1])


MODULES = {"curate": "synthnb.images.curate", "leaks": "synthnb.datasets.sets", "check": "synthnb.studies.check"}
CHILDREN = {"curate": (stored_scores, curate_child), "leaks": (None, leaks_child), "check": (made_files, check_child)}


def measure(what: str, count: int) -> tuple[float, int, str]:
    """Seconds of CPU, peak of memory and what was found."""
    make = CHILDREN[what][0]
    with tempfile.TemporaryDirectory() as folder:
        if make:
            make(Path(folder), count)
        command = [sys.executable, __file__, "--child", what, folder, str(count)]
        run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        sys.exit(run.stderr)
    seconds, peak, told = re.match(r"(\S+) (\d+) (.*)", run.stdout.splitlines()[-1]).groups()
    return float(seconds), int(peak), told


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--what", nargs="+", choices=list(CHILDREN), default=list(CHILDREN))
    parser.add_argument("--counts", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--child", nargs=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pa.set_cpu_count(1)
    if arguments.child:
        what, folder, count = arguments.child
        importlib.import_module(MODULES[what])  # not counted
        begun = time.process_time()
        told, _, own = CHILDREN[what][1](Path(folder), int(count)).partition(";")
        print(own or time.process_time() - begun, peak_bytes(), told)
        return 0
    counts, met = [500, 2000] if arguments.small else sorted(arguments.counts), True
    print(platform.platform(), platform.processor(), f"torch {torch.__version__}", sep=", ")
    for what in arguments.what:
        each = []
        for count in counts:
            seconds, peak, told = measure(what, count)
            each.append(seconds / count)
            more = f", {each[-1] * count / (each[-2] * counts[len(each) - 2]):.1f}x" if len(each) > 1 else ""
            print(
                f"{what} {count:,} images: {seconds:.1f} s CPU, {1e6 * each[-1]:.0f} us an image{more}; {told}; "
                f"peak {peak / 2**20:,.0f} MiB",
                flush=True,
            )
            met &= each[-1] / each[0] <= GROWTH and peak <= MEMORY
        print(f"{what}: time an image grows {each[-1] / each[0]:.1f}x from {counts[0]:,} to {counts[-1]:,}")
    if arguments.small:
        return 0
    print(f"bars {GROWTH}x and {MEMORY / 2**20:,.0f} MiB: {'met' if met else 'MISSED'}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
