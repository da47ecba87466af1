"""The record: fewest minutes of CPU to an accuracy on MNIST with one real image per class: `python tools/record.py`.

This file is always the record's way, and record.csv beside it has its seeds; the table in nbs/guides/results.md says
who held it before. From class names and one real image of each class to predictions of all test images: images of the
generator, and a probe of CLIP's features that learns from both. Each seed has its own real images and its own generated
set. Minutes are CPU time of all threads, after imports, one attempt that warms up, and reading MNIST.

A faster way changes this file or the package. It is timed against a checkout of the record, seed by seed and in turn:
the same way on a faster day is no record.

    git worktree add ../before $(git log -1 --format=%h tools/record.csv)
    python tools/record.py --before ../before --first 200  # seeds that nobody looked at while trying

With `--out tools/record.csv` one that counts becomes the record; then the table is written anew.
"""

import argparse
import csv
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
from scipy.stats import ttest_1samp

from synthnb.data import few_shot
from synthnb.datasets.sets import open_real
from synthnb.glyphworld.world import folder
from synthnb.images.drawer import Drawing
from synthnb.images.fidelity import extract, open_extractor
from synthnb.images.folder import read_shards
from synthnb.images.plan import write_plan
from synthnb.images.shards import generate_shards
from synthnb.models.clip import load_clip
from synthnb.studies.alternatives import frozen

ACCURACY = 0.73  # to be reached: CLIP by the names alone, without any real image, reaches 0.717
LEVEL = 0.01  # of both tests
SEEDS = 20  # of every attempt: no seed is added once somebody has looked
IMAGES, STEPS = 20, 10  # generated images per class, denoising steps
HERE = Path(__file__).resolve().parents[1]


def attempt(real: dict, seed: int) -> tuple[float, float]:
    """Accuracy on the test split and CPU minutes of one seed."""
    begun = time.process_time()
    few = few_shot(real["train"], 1, seed)
    prompts = {name: [f"a photo of an arabic digit {name}"] for name in few.classes}
    with tempfile.TemporaryDirectory() as place:
        how = dict(seed=seed, model="glyphworld/generator", steps=STEPS, guidance=2.0, batch_size=50)
        plan = write_plan(f"{place}/plan.parquet", prompts, IMAGES, **how)
        generate_shards(plan, f"{place}/images", folder("generator"), drawing=Drawing(device="cpu"), progress=False)
        synthetic = read_shards(f"{place}/images")
        clip = open_extractor(load_clip(folder("clip"), device="cpu"))
        parts = [extract(clip, part) for part in (few, real["val"], real["test"], synthetic)]
    found = frozen(*parts[:3], seed, 1, parts[3])
    return float(np.mean(found.correct)), (time.process_time() - begun) / 60


def p_values(accuracies: list[float], minutes: list[float], before: list[float] | None = None) -> list[float]:
    """Of the accuracy being above the bar and, paired by seed, of the minutes being below the record's; one-sided.

    `before` are the record's minutes, timed in turn with these; the first record has none."""
    above = ttest_1samp(accuracies, ACCURACY, alternative="greater").pvalue
    if before is None:
        return [float(above)]
    return [float(above), float(ttest_1samp(np.subtract(minutes, before), 0, alternative="less").pvalue)]


def counts(accuracies: list[float], minutes: list[float], before: list[float] | None = None) -> bool:
    """Does an attempt count? With all its seeds, and each p value below the level."""
    return len(accuracies) == SEEDS and all(p < LEVEL for p in p_values(accuracies, minutes, before))


def serve() -> None:
    """Answer each seed on a line of the input with accuracy and minutes; the first attempt warms up."""
    mnist = open_real("mnist", 32)
    attempt(mnist, 0)
    for line in sys.stdin:
        print("done", *attempt(mnist, int(line)), flush=True)


def started(checkout: Path) -> subprocess.Popen:
    """A process that serves the way of a checkout."""
    return subprocess.Popen(
        [sys.executable, str(checkout / "tools/record.py"), "--serve"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(checkout)},
    )


def asked(way: subprocess.Popen, seed: int) -> tuple[float, float]:
    """Accuracy and minutes of a seed."""
    with suppress(BrokenPipeError):  # it has ended, which is said below
        way.stdin.write(f"{seed}\n")
        way.stdin.flush()
    for line in way.stdout:
        if line.startswith("done "):
            accuracy, minutes = (round(float(number), 4) for number in line.split()[1:])
            return accuracy, minutes
    raise SystemExit(f"seed {seed} ended with status {way.wait()}: what it printed is above")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", type=int, default=100, help=f"the first of {SEEDS} seeds")
    parser.add_argument("--before", type=Path, help="a checkout of the record, timed in turn with this one")
    parser.add_argument("--out", type=Path, help="CSV of the seeds, for instance tools/record.csv")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        sys.exit(serve())
    with (HERE / "tools/record.csv").open(newline="") as file:
        seen = {int(row["seed"]) for row in csv.DictReader(file)}
    if given.before and seen & {*range(given.first, given.first + SEEDS)}:
        parser.error(f"--first {given.first}: the record has seeds of these; take some that nobody looked at")
    ways = {"minutes": started(HERE)} | ({"before": started(given.before.resolve())} if given.before else {})
    rows = []
    for seed in range(given.first, given.first + SEEDS):
        found = {name: asked(ways[name], seed) for name in sorted(ways, reverse=seed % 2 == 0)}  # in turn
        rows.append({"seed": seed, "accuracy": found["minutes"][0], **{name: found[name][1] for name in ways}})
        print(", ".join(f"{name} {value:.4g}" for name, value in rows[-1].items()), flush=True)
    for way in ways.values():
        way.stdin.close()
    columns = [[row[name] for row in rows] for name in rows[0] if name != "seed"]
    if given.out and counts(*columns):
        with given.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    told = "counts" if counts(*columns) else "does not count"
    p = ", ".join(f"{value:.2g}" for value in p_values(*columns))
    print(f"{100 * np.mean(columns[0]):.1f} % in {np.mean(columns[1]):.2f} minutes, {SEEDS} seeds, p = {p}: {told}")
