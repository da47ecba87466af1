"""Convert two sets of real images once into small files that ship with the package: animal silhouettes and photographs
of clothes.

    python tools/make_targets.py silhouettes FOLDER   # FOLDER: PyPI's animal-mnist 0.4, unpacked
    python tools/make_targets.py fashion FOLDER       # FOLDER: IDX files, as in Debian's dataset-fashion-mnist

Of images that are the same or nearly the same one stays; of those that stand under two classes none. The splits are
drawn here, once, by content, and are part of the file.
"""

import gzip
import json
import pickle
import sys
from pathlib import Path

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from synthnb.data import LabelledImages, split_by_content
from synthnb.datasets.targets import _FOLDER, _SPLITS, TARGETS

VAL, TEST = 50, 200  # images per class
PER_CLASS = 600  # of fashion, all splits together
ABOUT = {
    "silhouettes": dict(
        source="animal-mnist 0.4 on PyPI",
        licence="MIT",
        notice="Copyright (c) 2025 SinaSR-6",
        note="10,000 silhouettes of animals; where they were taken from is not stated there",
    ),
    "fashion": dict(
        source="Fashion-MNIST, https://github.com/zalandoresearch/fashion-mnist",
        licence="MIT",
        notice="Copyright (c) 2017 Zalando SE, https://tech.zalando.com",
        note="600 photographs of each class; the test images come from the test images there",
    ),
}


class Arrays(pickle.Unpickler):
    """Opens pickles of plain NumPy arrays and of nothing else."""

    ALLOWED = {
        ("numpy.core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} has no place in an array")
        return self.ALLOWED[module, name]


def read_idx(path: Path) -> np.ndarray:
    """An array of bytes in the IDX format, gzipped."""
    raw = gzip.decompress(path.read_bytes())
    shape = np.frombuffer(raw, ">i4", raw[3], offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape)


def labelled(name: str, pixels: np.ndarray, labels: np.ndarray) -> LabelledImages:
    """Grey pictures [N, 28, 28] as a set."""
    return LabelledImages(
        torch.from_numpy(pixels.copy())[:, None].repeat(1, 3, 1, 1),
        torch.from_numpy(labels.astype(np.int64)),
        TARGETS[name].classes,
        name,
    )


def alike(images: torch.Tensor, moved: bool) -> torch.Tensor:
    """Correlation of all pairs of grey images [N, 28, 28]; `moved`: the highest over mirrored images and shifts by
    one pixel."""

    def flat(pixels: torch.Tensor) -> torch.Tensor:
        rows = pixels.flatten(1).float()
        return torch.nn.functional.normalize(rows - rows.mean(1, keepdim=True), dim=1)

    best, shifts = flat(images) @ flat(images).T, (-1, 0, 1) if moved else ()
    for down in shifts:
        for right in shifts:
            for turned in (images, images.flip(-1)):
                torch.maximum(best, flat(images) @ flat(turned.roll((down, right), (1, 2))).T, out=best)
    return torch.maximum(best, best.T)


def without_copies(data: LabelledImages, least: float, moved: bool = False) -> LabelledImages:
    """One of each group of images that are linked by a correlation of `least`; none of a group that stands under two
    classes."""
    linked = alike(data.images[:, 0], moved) >= least
    _, group = connected_components(coo_array(linked.numpy()), directed=False)
    members = {}
    for i, number in enumerate(group.tolist()):
        members.setdefault(number, []).append(i)
    kept = [rows[0] for rows in members.values() if len(set(data.labels[rows].tolist())) == 1]
    print(
        f"{data.name}: {len(data)} images, {len(kept)} after taking out copies; "
        f"the largest group had {max(map(len, members.values()))}"
    )
    return data.subset(kept)


def silhouettes(folder: Path) -> dict[str, LabelledImages]:
    """Drawn from all that differ: many are the same animal again, moved by a pixel, warped a little, or cut out
    anew."""
    found = next(folder.rglob("animal_data_version_3.gz"))
    pixels, labels = (
        Arrays(gzip.open(found.with_name(f"animal_{what}_version_3.gz"))).load() for what in ("data", "label")
    )
    return split_by_content(without_copies(labelled("silhouettes", pixels, labels), 0.95, moved=True), VAL, TEST)


def fashion(folder: Path) -> dict[str, LabelledImages]:
    """The first of each class that differ, in the order of the original's files, so that nobody chose them."""
    parts = {}
    for part, wanted in (("train", PER_CLASS - TEST), ("t10k", TEST)):
        pixels, labels = (
            read_idx(next(folder.rglob(f"{part}-{what}-ubyte.gz"))) for what in ("images-idx3", "labels-idx1")
        )
        rows = np.sort(np.concatenate([np.flatnonzero(labels == label)[: wanted + 50] for label in range(10)]))
        parts[part] = labelled("fashion", pixels[rows], labels[rows])
    both = LabelledImages(
        *(torch.cat([getattr(parts[p], what) for p in parts]) for what in ("images", "labels")),
        TARGETS["fashion"].classes,
        "fashion",
    )
    kept = set(map(tuple, without_copies(both, 0.99).images[:, 0].flatten(1).tolist()))
    for part, wanted in (("train", PER_CLASS - TEST), ("t10k", TEST)):
        one = parts[part].subset(
            [i for i, image in enumerate(parts[part].images[:, 0].flatten(1).tolist()) if tuple(image) in kept]
        )
        parts[part] = one.subset(
            sorted(i for label in range(10) for i in (one.labels == label).nonzero().flatten()[:wanted].tolist())
        )
        assert min(parts[part].per_class.values()) == wanted
    return split_by_content(parts["train"], VAL, 0) | {"test": parts["t10k"]}


def main(name: str, folder: Path) -> None:
    splits = {"silhouettes": silhouettes, "fashion": fashion}[name](folder)
    images = torch.cat([splits[s].images[:, 0] for s in _SPLITS]).numpy()
    labels = torch.cat([splits[s].labels for s in _SPLITS]).numpy().astype(np.uint8)
    which = np.repeat(np.arange(len(_SPLITS), dtype=np.uint8), [len(splits[s]) for s in _SPLITS])
    path = _FOLDER / f"{name}.npz"
    path.parent.mkdir(exist_ok=True)
    np.savez_compressed(path, images=images, labels=labels, split=which, about=np.array(json.dumps(ABOUT[name])))
    print(
        {s: min(splits[s].per_class.values()) for s in _SPLITS},
        f"images per class at least, {path.stat().st_size / 1e6:.1f} MB: {path.name}",
    )


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
