"""R4: what kill -9 costs. R5: workers that take shards by lease against a fixed split, when one of the two is three
times slower.

`OMP_NUM_THREADS=1 .venv/bin/python benchmarks/r4_r5_workers.py [--rounds 5]`; protocol and bars: benchmarks/README.md.
Real processes; R5's unit of work is a sleep, so that the number of cores does not matter.
"""

import argparse
import multiprocessing
import os
import platform
import random
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import torch

from synthnb.generate import DrawnBatch, draw_batches
from synthnb.glyphworld import world as glyphworld
from synthnb.images.drawer import _drawn_with
from synthnb.images.folder import open_folder
from synthnb.images.plan import write_plan
from synthnb.images.shards import verify
from synthnb.images.worker import make_shards
from synthnb.models.pipelines import load_generator

R4_BAR, R5_BAR = 1.05, 1.7
FORK = multiprocessing.get_context("fork")
PROMPTS = {name: [f"a photo of arabic digit {name}, neon at night"] for name in ("one", "two", "three", "four")}


def start(path, plan, draw, made, part=slice(None)):
    """A worker process on some of a folder's shards."""

    def work():
        folder = open_folder(path, plan)
        make_shards(folder, folder.pieces()[part], draw, made)

    process = FORK.Process(target=work)
    process.start()
    return process


def r4(folder: Path, pipe, made: dict, rounds: int) -> bool:
    """Two workers, both killed at a random moment, started again: images drawn in all, against images asked for."""
    plan = write_plan(
        folder / "plan.parquet",
        PROMPTS,
        100,
        seed=0,
        model="glyphworld/generator",
        steps=2,
        guidance=2.0,
        shard_size=8,
        batch_size=4,
    )
    drawn, chance, met = FORK.Value("i", 0), random.Random(0), True

    def draw(rows):
        for batch in draw_batches(pipe, rows, batch_size=4):
            with drawn.get_lock():
                drawn.value += len(batch.rows)
            yield batch

    def content(name):
        return {path.name: path.read_bytes() for path in (folder / name).glob("*.tar")}

    for process in [start(folder / "whole", plan, draw, made) for _ in range(2)]:
        process.join()
    undisturbed = drawn.value
    for i in range(rounds):
        drawn.value, moment = 0, chance.uniform(0.1, 0.9)
        workers = [start(folder / str(i), plan, draw, made) for _ in range(2)]
        while drawn.value < moment * plan.images:
            time.sleep(0.005)
        for worker in workers:
            os.kill(worker.pid, signal.SIGKILL)
            worker.join()
        for process in [start(folder / str(i), plan, draw, made) for _ in range(2)]:
            process.join()
        same, problems = content(str(i)) == content("whole"), verify(folder / str(i), progress=False)
        met &= same and not problems and drawn.value <= min(undisturbed + 2 * 8, R4_BAR * undisturbed)
        print(
            f"R4 round {i}: killed after {moment:.0%}; {drawn.value} images drawn for {plan.images}, "
            f"ratio {drawn.value / undisturbed:.3f}, {len(problems)} missing or double, "
            f"{'identical' if same else 'OTHER'} bytes",
            flush=True,
        )
    print(f"R4: bar {R4_BAR}x, at most a shard of 8 images a worker, identical bytes: {'met' if met else 'MISSED'}")
    return met


def r5(folder: Path, made: dict, rounds: int) -> bool:
    """One worker sleeps 0.4 s a shard, the other 1.2 s; 16 shards."""
    plan = write_plan(
        folder / "r5.parquet", PROMPTS, 16, seed=0, model="none", steps=1, guidance=1.0, shard_size=4, batch_size=4
    )

    def sleeper(seconds):
        def draw(rows):
            time.sleep(seconds)
            yield DrawnBatch(rows, torch.full((len(rows), 3, 8, 8), 7, dtype=torch.uint8), [0] * len(rows), {})

        return draw

    def wall(name, parts):
        begun = time.perf_counter()
        workers = [start(folder / name, plan, sleeper(seconds), made, part) for seconds, part in zip((0.4, 1.2), parts)]
        for worker in workers:
            worker.join()
        seconds = time.perf_counter() - begun
        assert verify(folder / name, progress=False) == []
        return seconds

    ratios = []
    for i in range(rounds):
        static, leased = (
            wall(f"static{i}", (slice(0, None, 2), slice(1, None, 2))),
            wall(f"leased{i}", (slice(None), slice(None))),
        )
        ratios.append(static / leased)
        print(
            f"R5 round {i}: fixed split {static:.2f} s wall, leases {leased:.2f} s, ratio {ratios[-1]:.2f}", flush=True
        )
    ratio = statistics.median(ratios)
    print(f"R5: {ratio:.2f}x, bar {R5_BAR}x (limit 2.0): {'met' if ratio >= R5_BAR else 'MISSED'}")
    return ratio >= R5_BAR


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    print(
        f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"torch {torch.__version__}, one thread a process"
    )
    generator = glyphworld.folder("generator")
    pipe = load_generator(generator, "cpu")
    made = _drawn_with(pipe, generator, "png")
    with tempfile.TemporaryDirectory() as folder:
        met = r4(Path(folder), pipe, made, rounds), r5(Path(folder), made, rounds)
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
