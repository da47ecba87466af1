"""Shards of made-up pictures, for benchmarks that read them."""

from collections.abc import Callable
from pathlib import Path

import torch

from synthnb.generate import DrawnBatch
from synthnb.images.folder import ShardFolder, open_folder
from synthnb.images.plan import write_plan
from synthnb.images.worker import make_shards

MADE = {
    "loop": "own",
    "quality": 95,
    "style": "",
    "revision": "",
    "scheduler": "",
    "dtype": "float32",
    "clip": "",
    "compiled": False,
}


def shard_pictures(
    path: Path,
    images: int,
    classes: int,
    pictures: Callable[[int], torch.Tensor],
    kind: str,
    each: int = 256,
    **settings,
) -> ShardFolder:
    """A folder of `images` pictures, equally many of each class; `pictures` gives so many, uint8 [B, 3, H, W], at
    most `each`."""
    told = {f"thing {label}": [f"a photo of thing {label}"] for label in range(classes)}
    plan = write_plan(
        path / "plan.parquet", told, images // classes, seed=0, model="noise", steps=1, guidance=1.0, **settings
    )
    home = open_folder(path / "shards", plan)

    def draw(rows):
        for start in range(0, len(rows), each):
            part = rows.iloc[start : start + each]
            yield DrawnBatch(part, pictures(len(part)), [0] * len(part), {})

    make_shards(home, home.pieces(), draw, MADE | {"format": kind})
    return home
