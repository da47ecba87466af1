"""A guard: a restart on a plan of a million rows knows what is missing in 2 seconds, because it reads names and no
images.

`OMP_NUM_THREADS=1 .venv/bin/python benchmarks/guard_resume.py [--images 1000000]`
"""

import argparse
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from synthnb.images.folder import open_folder
from synthnb.images.plan import Plan, write_plan

SECONDS = 2.0


def measure(images: int, shard_size: int, folder: Path) -> bool:
    """Publish all shards but three (as empty files: nobody may look inside), then ask what is missing."""
    settings = dict(seed=0, model="some/model", steps=50, guidance=2.0, shard_size=shard_size)
    plan = write_plan(
        folder / f"{shard_size}.parquet", {f"class {i}": ["a photo"] for i in range(1000)}, images // 1000, **settings
    )
    home = open_folder(folder / str(shard_size), plan)
    for piece in home.pieces()[:-3]:
        home.tar(piece.name).touch()
    start = time.perf_counter()
    home = open_folder(home.path, Plan(plan.path))
    published = home.published()
    missing = [piece.name for piece in home.pieces() if piece.name not in published]
    seconds = time.perf_counter() - start
    assert len(missing) == 3
    print(
        f"{len(plan):,} rows in {plan.shards:,} shards of {shard_size}: "
        f"{missing[0]}, ... found missing after {seconds:.2f} s"
    )
    return seconds <= SECONDS


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1_000_000)
    images = parser.parse_args().images
    print(f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    with tempfile.TemporaryDirectory() as folder:
        met = all(measure(images, shard_size, Path(folder)) for shard_size in (1024, 64))
    print(f"bar: {SECONDS} s: {'met' if met else 'MISSED'}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
