"""Near-duplicates in a large set: time and memory of `first_alike` as the set grows, and against all with all.

`OMP_NUM_THREADS=1 .venv/bin/python benchmarks/near_duplicates.py [--counts 10000 100000 1000000] [--small]`; protocol:
benchmarks/README.md. The thumbnails are synthetic: smooth random fields, whose spectrum falls as that of photographs,
each tenth replaced by another one with a little noise. A set in which most images show one motif, or are noise, is
compared as before, all with all. Each size runs in a process of its own, with its peak of memory; the smallest also
without the tree, with the same result. Bars: time an image at the largest size at most 10 times that at the smallest
(all with all it would be 100 times, from 10,000 to 1,000,000), and at most 2 GiB.
"""

import argparse
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import scipy.fft
import torch

from synthnb.images.scores import first_alike

GROWTH, MEMORY = 10, 2 * 2**30  # bars


def thumbnails_of(count: int) -> tuple[torch.Tensor, int]:
    """Synthetic thumbnails as `score_images` stores them, and how many are planted copies."""
    generator, line = torch.Generator().manual_seed(0), torch.arange(16.0)
    falls = 1 / (1 + line[:, None] ** 2 + line**2).sqrt()
    falls[0, 0] = 0  # their mean is 0
    waves = torch.from_numpy(scipy.fft.idct(np.eye(16), norm="ortho", axis=0)).float()
    thumbs = torch.empty(count, 256, dtype=torch.half)
    for part in thumbs.split(8192):
        fields = waves @ (torch.randn(len(part), 16, 16, generator=generator) * falls) @ waves.T
        part[:] = torch.nn.functional.normalize(fields.flatten(1)).half()
    order = torch.randperm(count, generator=generator)
    copies, originals = order[: count // 10], order[count // 10 : 2 * (count // 10)]
    for at, of in zip(copies.split(8192), originals.split(8192)):
        moved = thumbs[of].float() + 0.002 * torch.randn(len(at), 256, generator=generator)
        thumbs[at] = torch.nn.functional.normalize(moved).half()
    return thumbs, len(copies)


def peak_bytes() -> int:
    """The most that this process had resident."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    return 1024 * int(next(line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM")))


def child(count: int, compared: bool) -> None:
    """Print CPU seconds with the tree, without it (or nan), images left out, those planted, and the peak of memory."""
    thumbs, planted = thumbnails_of(count)
    begun = time.process_time()
    found = first_alike(thumbs, least=0)
    seconds, peak, before = time.process_time() - begun, peak_bytes(), float("nan")
    if compared:
        begun = time.process_time()
        if not torch.equal(found, first_alike(thumbs, least=count + 1)):
            sys.exit("the tree finds other duplicates than all with all")
        before = time.process_time() - begun
    print(seconds, before, int((found >= 0).sum()), planted, peak)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--compare", type=int, default=20_000, help="up to so many images all with all, too")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--child", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.child:
        child(arguments.child, arguments.child <= arguments.compare)
        return 0
    counts = [500, 2000] if arguments.small else sorted(arguments.counts)
    print(platform.platform(), platform.processor(), f"torch {torch.__version__}", sep=", ")
    each, peak = [], 0
    for count in counts:
        command = [sys.executable, __file__, "--child", str(count), "--compare", str(arguments.compare)]
        run = subprocess.run(command, capture_output=True, text=True)
        if run.returncode:
            sys.exit(run.stderr)
        seconds, before, found, planted, peak = map(float, run.stdout.split())
        each.append(seconds / count)
        told = f", all with all {before:.2f} s, {before / seconds:.2f}x" if before == before else ""
        print(
            f"{count:,} thumbnails: {seconds:.2f} s CPU, {1e6 * each[-1]:.0f} us an image{told}; "
            f"{found:,.0f} left out, {planted:,.0f} planted; peak {peak / 2**20:,.0f} MiB",
            flush=True,
        )
    growth, times = each[-1] / each[0], counts[-1] // counts[0]
    print(f"time an image grows {growth:.1f}x from {counts[0]:,} to {counts[-1]:,} (all with all: {times}x)")
    if arguments.small:
        return 0
    met = growth <= GROWTH and peak <= MEMORY
    print(f"bars {GROWTH}x and {MEMORY / 2**20:,.0f} MiB: {'met' if met else 'MISSED'}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
