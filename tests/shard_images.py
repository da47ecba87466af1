"""A folder of shards that holds given images, as if a plan's rows had been drawn so."""

from pathlib import Path

import torch

from synthnb.generate import DrawnBatch
from synthnb.images.folder import ShardFolder, open_folder
from synthnb.images.plan import _load_plan, write_plan
from synthnb.images.worker import make_shards

DRAWN_WITH = {
    "loop": "own",
    "quality": 95,
    "style": "",
    "revision": "",
    "scheduler": "",
    "dtype": "float32",
    "clip": "",
    "compiled": False,
}


def plan_of(path: Path, classes, per_class: int, shard_size: int = 64, **prompts):
    """A plan with one prompt for each class."""
    told = {name: [prompts.get(name, f"a photo of a {name}")] for name in classes}
    return write_plan(
        path, told, per_class, seed=0, model="elsewhere", steps=1, guidance=1.0, shard_size=shard_size, batch_size=64
    )


def shard_images(
    path: Path, plan, images: torch.Tensor, kind: str = "png", failed: dict[int, str] | None = None
) -> ShardFolder:
    """Publish `images`, one for each row of the plan; `failed` rows are noted in the sidecar instead."""
    folder, rows_of = open_folder(path, plan), {key: row for row, key in enumerate(_load_plan(plan.path).id)}

    def draw(rows):
        at = [rows_of[key] for key in rows.id]
        yield DrawnBatch(
            rows, images[at], [0] * len(rows), {i: failed[row] for i, row in enumerate(at) if row in (failed or {})}
        )

    make_shards(folder, folder.pieces(), draw, DRAWN_WITH | {"format": kind})
    return folder
