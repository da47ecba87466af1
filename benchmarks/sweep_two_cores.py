"""A sweep of thirty cells by two workers on two cores, against the same cells one after the other: wall time.

`.venv/bin/python benchmarks/sweep_two_cores.py [--cells 30] [--rounds 1]`; protocol: benchmarks/README.md. It needs two
quiet cores. Each cell is a run of `bridge_study` with its own report, one thread each; the tables are compared first.
Bar: 1.8x.
"""

import argparse
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import torch

from synthnb.studies.sweep import plan_sweep, run_sweep

BAR = 1.8
EXPERIMENT = Path(__file__).resolve().parents[1] / "nbs" / "experiments" / "bridge_study.ipynb"
BASE = {
    "methods": ["vanilla_matched", "bridged"],
    "shots": [1],
    "clip": "",
    "images_per_class": 4,
    "stage1_steps": 20,
    "stage2_steps": 20,
    "curve_every": 20,
    "stage1_seeds": [0],
    "device": "cpu",
    "threads": 1,
}


def grid(cells: int) -> dict:
    """Three learning rates by as many seeds as there is need of."""
    if cells % 3:
        raise SystemExit(f"--cells {cells} is no multiple of 3")
    return {"base": BASE, "grid": {"lr": [3e-4, 1e-3, 3e-3], "seeds": [[seed] for seed in range(cells // 3)]}}


def sweep(cells: int, workers: int) -> tuple[float, float, pd.DataFrame]:
    """Wall seconds, CPU seconds and the rows of a whole sweep in a folder of its own, which shares nothing."""
    with tempfile.TemporaryDirectory() as outputs:
        planned = plan_sweep(EXPERIMENT, grid(cells), outputs)
        start, before = time.perf_counter(), cpu_seconds()
        outcome = run_sweep(planned, workers=workers, progress=False)
        took, spent = time.perf_counter() - start, cpu_seconds() - before
        if not outcome.whole:
            sys.exit(f"the sweep is not whole: {outcome}")
        table = pd.read_parquet(planned.folder / "table.parquet")
    return took, spent, table


def cpu_seconds() -> float:
    """Of this process and of those it started and that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=1)
    arguments = parser.parse_args()
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}", flush=True
    )
    ratios = []
    for i in range(arguments.rounds):
        alone, alone_cpu, table = sweep(arguments.cells, 1)
        shared, shared_cpu, same = sweep(arguments.cells, 2)
        measured = ["cell", "method", "value"]
        if not table[measured].equals(same[measured]):
            print("the tables differ: no ratio")
            return 1
        ratios.append(alone / shared)
        print(
            f"  round {i}: one worker {alone:.1f} s wall, {alone_cpu:.1f} s CPU; "
            f"two {shared:.1f} s wall, {shared_cpu:.1f} s CPU; {ratios[-1]:.2f}x",
            flush=True,
        )
    met = statistics.median(ratios) >= BAR
    print(f"{arguments.cells} cells: {statistics.median(ratios):.2f}x (bar {BAR}x): {'met' if met else 'MISSED'}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
