"""A guard: a plan of 10 million rows is written in 60 seconds and 1 GiB, and one of its shards is read without reading
the rest.

`OMP_NUM_THREADS=1 .venv/bin/python benchmarks/guard_plan.py [--per-class 10000] [--classes 1000] [--prompts 200]`
"""

import argparse
import os
import platform
import resource
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pandas as pd
import pyarrow as pa

from synthnb.images.plan import Plan, write_plan

SECONDS, BYTES = 60.0, 2**30


def book(classes: int, prompts: int) -> pd.DataFrame:
    """A book of prompts with the columns and lengths of `diversify`'s."""
    rows = [
        {
            "id": f"{label:04d}-{i:06d}",
            "label": label,
            "class": f"class {label}",
            "phrase": f"class {label}, a kind of thing",
            "pool": "CD+SD",
            "context_key": f"{label * prompts + i:024x}",
            "style_key": f"{i:024x}",
            "prompt": (
                f"a photo of a class {label}, a kind of thing, in scene number {i} at dusk, seen from the side, "
                f"in the style of print {i % 17}"
            ),
        }
        for label in range(classes)
        for i in range(prompts)
    ]
    return pd.DataFrame(rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--per-class", type=int, default=10_000)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--prompts", type=int, default=200)
    arguments = parser.parse_args()
    pa.set_cpu_count(1)
    print(
        f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"pyarrow {pa.__version__}, one thread"
    )
    prompts = book(arguments.classes, arguments.prompts)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "plan.parquet")
        wall, cpu = time.perf_counter(), time.process_time()
        plan = write_plan(
            path,
            prompts,
            arguments.per_class,
            seed=0,
            model="stable-diffusion-v1-5/stable-diffusion-v1-5",
            steps=50,
            guidance=2.0,
        )
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(
            f"{plan}: {cpu:.1f} s CPU, {wall:.1f} s wall, at most {peak / 2**20:.0f} MiB resident, "
            f"{path.stat().st_size / 2**20:.0f} MiB on disk"
        )
        start = time.perf_counter()
        rows = Plan(path).shard(plan.shards // 2)
        print(f"open the file and read {len(rows)} rows of one shard: {1000 * (time.perf_counter() - start):.0f} ms")
    print(
        f"bars: {SECONDS:.0f} s of CPU, {BYTES / 2**20:.0f} MiB resident: "
        f"{'met' if (met := cpu <= SECONDS and peak <= BYTES) else 'MISSED'}"
    )
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
