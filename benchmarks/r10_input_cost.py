"""R10: what an epoch of a small set costs before the network sees it: uint8 held in memory and augmented by the batch,
against Pillow decoding each image anew.

`OMP_NUM_THREADS=1 .venv/bin/python benchmarks/r10_input_cost.py [--rounds 5] [--images 512]`; protocol and bars:
benchmarks/README.md. JPEGs of 512 pixels a side that end at 224. The reference decodes, crops and mirrors with
torchvision image by image, as an ImageFolder does; ours holds 256 pixels a side. Turned and shifted instead
(`random_affine`, for scans), the same set is measured beside and has no bar.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import io
import platform
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version

import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torchvision.transforms import v2

from synthnb.data import LabelledImages
from synthnb.datasets.pixels import read_image
from synthnb.training.augmentation import random_affine, random_resized_crop
from synthnb.training.loading import Loader

BAR, AIM, BATCH = 5.0, 15.0, 64
HELD, SIZE = 256, 224


def photographs(n: int) -> list[bytes]:
    """JPEG files of 512 pixels, cut from two photographs."""
    photos, crop, files = load_sample_images().images, v2.RandomResizedCrop(512, scale=(0.1, 0.5)), []
    torch.manual_seed(0)
    for i in range(n):
        buffer = io.BytesIO()
        crop(Image.fromarray(photos[i % 2])).save(buffer, "JPEG", quality=90)
        files.append(buffer.getvalue())
    return files


def decoded(files: list[bytes]) -> None:
    """An epoch, image by image."""
    change = v2.Compose([v2.RandomResizedCrop(SIZE, scale=(0.35, 1)), v2.RandomHorizontalFlip(), v2.PILToTensor()])
    for start in range(0, len(files), BATCH):
        torch.stack([change(Image.open(io.BytesIO(file)).convert("RGB")) for file in files[start : start + BATCH]])


def resident(data: LabelledImages, augment: Callable) -> None:
    """The same epoch from memory."""
    batches, chance = Loader([(data, 1.0)], BATCH, 0).batches(torch.device("cpu")), torch.Generator().manual_seed(0)
    for _ in range(len(data) // BATCH):
        [(images, _)] = next(batches)
        augment(images, chance)


def timed(work) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def measure(files: list[bytes], rounds: int) -> bool:
    """Print every round; True if the bar is met."""
    images, ratios, turned = torch.stack([read_image(io.BytesIO(file), HELD) for file in files]), [], []
    data = LabelledImages(images, torch.zeros(len(files), dtype=torch.int64), ("a", "b"), "photographs")
    for i in range(rounds + 1):  # the first one warms up
        reference, ours = (
            timed(lambda: decoded(files)),
            timed(lambda: resident(data, partial(random_resized_crop, size=SIZE))),
        )
        ratios.append(reference / ours)
        turned.append(reference / timed(lambda: resident(data, random_affine)))
        per = 1000 / len(files)
        print(
            f"round {i or 'warm-up'}: reference {reference * per:.2f} ms/image CPU, ours {ours * per:.2f}, "
            f"ratio {ratios[-1]:.1f}; turned {turned[-1]:.1f}",
            flush=True,
        )
    ratio = statistics.median(ratios[1:])
    print(
        f"R10: {ratio:.1f}x, bar {BAR:.0f}x (aim {AIM:.0f}x): {'met' if ratio >= BAR else 'MISSED'}; "
        f"turned and shifted {statistics.median(turned[1:]):.1f}x"
    )
    return ratio >= BAR


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=512)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"{platform.processor() or platform.machine()}, torch {version('torch')}, "
        f"torchvision {version('torchvision')}, Pillow {version('pillow')}"
    )
    files = photographs(arguments.images // BATCH * BATCH)
    return 0 if measure(files, arguments.rounds) else 1


if __name__ == "__main__":
    sys.exit(main())
