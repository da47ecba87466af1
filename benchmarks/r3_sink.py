"""R3: what it costs to keep an image: encoded, with its provenance record, in a checksummed shard, against Pillow's PNG
in a loose file; and what that adds to a loop.

`OMP_NUM_THREADS=1 .venv/bin/python benchmarks/r3_sink.py [--rounds 5] [--images 32]`; protocol and bars:
benchmarks/README.md.
"""

import argparse
import hashlib
import io
import os
import platform
import statistics
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch
from PIL import Image

from synthnb.generate import draw_batches
from synthnb.glyphworld import world as glyphworld
from synthnb.images.drawer import _drawn_with
from synthnb.images.folder import open_folder, read_tar
from synthnb.images.plan import make_plan, write_plan
from synthnb.images.worker import Leases, _make_shard
from synthnb.images.writer import ShardWriter, _make_record, library_versions
from synthnb.models.pipelines import load_generator

SINK_BAR, LOOP_BAR = 15.0, 1.05
PROMPTS = {name: [f"a photo of arabic digit {name}, chalk on a blackboard"] for name in ("one", "two", "three", "four")}


def photos(n: int) -> torch.Tensor:
    """Smooth pictures with a little noise, uint8 [n, 3, 512, 512]: what JPEG and PNG meet in practice."""
    chance = np.random.default_rng(0)
    smooth = [
        np.asarray(
            Image.fromarray(chance.integers(0, 256, (16, 16, 3), dtype=np.uint8)).resize((512, 512), Image.BICUBIC),
            dtype=int,
        )
        for _ in range(n)
    ]
    noisy = np.clip(np.stack(smooth) + chance.normal(0, 2, (n, 512, 512, 3)).round().astype(int), 0, 255).astype(
        np.uint8
    )
    return torch.from_numpy(noisy).permute(0, 3, 1, 2)


def loose_files(images: torch.Tensor, folder: Path) -> None:
    """The reference: what most generation scripts do."""
    for i, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{i:06d}.png")


def shard(images: torch.Tensor, rows: list[dict], made: dict, folder: Path) -> dict:
    """Ours: JPEG 95 with XMP, provenance record, two checksums, one file."""
    versions, writer = library_versions(), ShardWriter(folder / "000000.tar")
    writer.add(images, [_make_record(row, 0, row["seed"], made, versions) for row in rows])
    return writer.finish()


def cpu_of(work) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def sink_ratio(count: int, rounds: int, made: dict) -> float:
    images, ratios = photos(count), []
    rows = (
        make_plan(PROMPTS, count, seed=0, model="glyphworld/generator", steps=8, guidance=2.0)
        .head(count)
        .to_dict("records")
    )
    for i in range(rounds + 1):  # the first one warms up
        with tempfile.TemporaryDirectory() as folder:
            reference = cpu_of(lambda: loose_files(images, Path(folder)))
            ours = cpu_of(lambda: shard(images, rows, made, Path(folder)))
            if (
                i == 0
                # what is read back is what was put in: PNG exactly, JPEG within what quality 95 loses, and the checksum
                # holds
            ):
                content, record = next(read_tar(Path(folder, "000000.tar")))
                apart = np.abs(
                    np.asarray(Image.open(io.BytesIO(content)), dtype=int)
                    - np.asarray(Image.open(Path(folder, "000000.png")), dtype=int)
                ).mean()
                assert apart < 2 and hashlib.sha256(content).hexdigest() == record["sha256"]
        ratios.append(reference / ours)
        print(
            f"sink round {i or 'warm-up'}: PNG files {1000 * reference / count:.2f} ms/image CPU, "
            f"shard {1000 * ours / count:.2f}, ratio {ratios[-1]:.1f}",
            flush=True,
        )
    return statistics.median(ratios[1:])


def loop_ratio(rounds: int, pipe, made: dict) -> float:
    """Glyphworld's generator at 20 steps, images thrown away against images published."""
    ratios = []
    for i in range(rounds + 1):
        with tempfile.TemporaryDirectory() as folder:
            plan = write_plan(
                Path(folder, "plan.parquet"),
                PROMPTS,
                32,
                seed=0,
                model="glyphworld/generator",
                steps=20,
                guidance=2.0,
                shard_size=128,
                batch_size=32,
            )
            home, rows = open_folder(Path(folder, "shards"), plan), plan.rows(0, 128)
            draw = lambda rows: draw_batches(pipe, rows, batch_size=32)
            reference = cpu_of(lambda: [batch.images for batch in draw(rows)])
            ours = cpu_of(
                lambda: _make_shard(home, home.pieces()[0], Leases(home.own / "leases").claim("000000"), draw, made)
            )
            assert home.sidecar("000000")["images"] == 128
        ratios.append(ours / reference)
        print(
            f"loop round {i or 'warm-up'}: thrown away {1000 * reference / 128:.1f} ms/image CPU, "
            f"published {1000 * ours / 128:.1f}, ratio {ratios[-1]:.3f}",
            flush=True,
        )
    return statistics.median(ratios[1:])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=32)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(
        platform.platform(),
        platform.processor(),
        *(f"{name} {version(name)}" for name in ("torch", "pillow")),
        sep=", ",
    )
    pipe = load_generator(glyphworld.folder("generator"), "cpu")
    made = _drawn_with(pipe, glyphworld.folder("generator"))
    sink, loop = sink_ratio(arguments.images, arguments.rounds, made), loop_ratio(arguments.rounds, pipe, made)
    print(
        f"R3 sink {sink:.1f}x cheaper, bar {SINK_BAR}x; loop {loop:.3f}x, bar {LOOP_BAR}x: "
        f"{'met' if (met := sink >= SINK_BAR and loop <= LOOP_BAR) else 'MISSED'}"
    )
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
