"""R9: a grid of bridged runs, two volumes by five shots by three seeds: stage 1 made once a volume against every cell
from scratch.

`OMP_NUM_THREADS=1 .venv/bin/python benchmarks/r9_shared_stage.py [--steps 600 60]`; protocol and bars:
benchmarks/README.md. The best that sharing can give is (naive steps) / (shared steps), here 6.6; the bar is 0.9 of it.
One round: it has thirty cells.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import platform
import sys
import tempfile
import time
from importlib.metadata import version

import torch

from synthnb.bridge import Runtime, TransferConfig, run_method
from synthnb.data import LabelledImages, digits, few_shot
from synthnb.glyphworld.world import folder, rendered_digits
from synthnb.train import TrainConfig

SHARE, SHOTS, SEEDS = 0.9, (1, 2, 4, 8, 16), (0, 1, 2)


def rendered(volume: int, classes: tuple[str, ...]) -> LabelledImages:
    """`volume` images of each digit in all styles."""
    return LabelledImages(*rendered_digits(volume * len(classes)), classes, f"{volume} rendered")


def grid(steps: tuple[int, int], real: dict, volumes: list[LabelledImages], store: str | None) -> tuple[float, list]:
    """CPU seconds and the judgements of every cell."""
    start, right = time.process_time(), []
    config, place = TransferConfig(TrainConfig(batch_size=32), steps, stage1_seed=0), Runtime("cpu", store=store)
    for synthetic in volumes:
        for shots in SHOTS:
            for seed in SEEDS:
                few = few_shot(real["train"], shots, seed)
                run = run_method(
                    "bridged", folder("cnn"), few, synthetic, real["test"], config, seed=seed, runtime=place
                )
                right.append(run.correct.tolist())
    return time.process_time() - start, right


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--steps",
        type=int,
        nargs=2,
        default=(600, 60),
        help="of the two stages; testing and hashing weigh more where they are few",
    )
    steps = tuple(parser.parse_args().steps)
    torch.set_num_threads(1)
    print(f"{platform.processor() or platform.machine()}, torch {version('torch')}, timm {version('timm')}")
    real = digits()
    volumes = [rendered(volume, real["train"].classes) for volume in (20, 40)]
    cells, (first, last) = len(SHOTS) * len(SEEDS), steps
    formula = cells * (first + last) / (first + cells * last)
    grid((1, 1), real, volumes[:1], None)  # warms up
    with tempfile.TemporaryDirectory() as store:
        shared, found = grid(steps, real, volumes, store)
        again, third = grid(steps, real, volumes, store)
    naive, expected = grid(steps, real, volumes, None)
    if not found == expected == third:
        print("the classifiers differ: no ratio")
        return 1
    ratio = naive / shared
    met = ratio >= SHARE * formula
    print(
        f"R9: {naive:.1f} s against {shared:.1f} s CPU, "
        f"{ratio:.2f}x of at most {formula:.2f}x ({ratio / formula:.2f}, bar {SHARE}): {'met' if met else 'MISSED'}; "
        f"the finished grid again {again:.1f} s"
    )
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
