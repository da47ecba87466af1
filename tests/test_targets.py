"""The real targets: numbers, labels, hygiene of their splits, licences, and the full sets where they lie."""

import ast
import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from synthnb.datasets import targets
from synthnb.datasets.duplicates import content_hashes, near_pairs
from synthnb.datasets.sets import check_splits, open_real
from synthnb.datasets.targets import _SPLITS, TARGETS, _target_source, open_target

SIZES = {"mnist": (2500, 500, 2000), "silhouettes": (6107, 500, 2000), "fashion": (3500, 500, 2000)}
NEAREST = {
    "mnist": 0.92,
    "silhouettes": 0.60,
    "fashion": 0.76,
}  # of test images named right by the nearest training image
MEANS = {"mnist": "6f5473da1230c0af", "silhouettes": "5a0af9e102f35d96", "fashion": "24f80b87fd482091"}


@pytest.fixture(scope="module", params=TARGETS)
def opened(request):
    return request.param, open_target(request.param)


def correlation(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Of all pairs of grey images."""
    a, b = (x[:, 0].flatten(1).float() for x in (a, b))
    return (
        torch.nn.functional.normalize(a - a.mean(1, keepdim=True))
        @ torch.nn.functional.normalize(b - b.mean(1, keepdim=True)).T
    )


def test_numbers(opened):
    name, splits = opened
    assert tuple(len(splits[s]) for s in _SPLITS) == SIZES[name]
    for split, least in zip(_SPLITS, (250, 50, 200)):
        counts = splits[split].per_class.values()
        assert min(counts) >= least and (split == "train" or len(set(counts)) == 1)
    assert splits["train"].images.shape[1:] == (3, 28, 28) and splits["test"].classes == TARGETS[name].classes


def test_splits_share_no_image_not_even_nearly(opened):
    name, splits = opened
    hashes = [h for s in _SPLITS for h in content_hashes(splits[s].images)]
    assert len(hashes) == len(set(hashes)), "exact copies are taken out"
    for a, b in (("train", "val"), ("train", "test"), ("val", "test")):
        assert not set(content_hashes(splits[a].images)) & set(content_hashes(splits[b].images))
        assert not len(near_pairs(splits[a].images, splits[b].images))
    check_splits(open_real(name, 32))  # as experiments see them


def test_silhouettes_have_no_moved_or_mirrored_copy_across_splits():
    splits = open_target("silhouettes")
    for move in (
        lambda x: x,
        lambda x: x.flip(-1),
        lambda x: x.roll((1, 0), (2, 3)),
        lambda x: x.flip(-1).roll((0, 1), (2, 3)),
    ):
        assert correlation(splits["test"].images, move(splits["train"].images)).max() < 0.95


def test_labels_are_right(opened):
    name, splits = opened
    seen = splits["train"].labels[correlation(splits["test"].images, splits["train"].images).argmax(1)]
    assert (seen == splits["test"].labels).float().mean() > NEAREST[name]


def test_each_class_looks_as_it_did(opened):
    """The mean image of each class of the test split: other pixels, other labels or another split are noticed."""
    name, splits = opened
    means = np.stack(
        [splits["test"].images[splits["test"].labels == label, 0].double().mean(0).numpy() for label in range(10)]
    )
    assert hashlib.sha256(np.round(means).astype(np.uint8)).hexdigest()[:16] == MEANS[name]


def test_same_splits_at_another_size_and_behind_the_door(opened):
    name, splits = opened
    real = open_real(name, 48, seed=7)
    assert list(real) == list(_SPLITS) and real["val"].images.shape[1:] == (3, 48, 48)
    assert all(torch.equal(real[s].labels, splits[s].labels) for s in _SPLITS)


def test_licence_and_source_are_told():
    for name in TARGETS:
        assert all(_target_source(name)[key] for key in ("source", "licence", "notice", "note"))
    assert _target_source("fashion")["licence"] == _target_source("silhouettes")["licence"] == "MIT"
    assert not (targets._FOLDER / "mnist.npz").exists(), (
        "its licence is not stated where it comes from: it is not shipped"
    )


def test_nothing_is_unpickled():
    for path in targets._FOLDER.glob("*"):
        with np.load(path, allow_pickle=False) as packed:
            assert {packed[key].dtype.kind for key in packed} <= {"u", "U"}
    names = {node.id for node in ast.walk(ast.parse(Path(targets.__file__).read_text())) if isinstance(node, ast.Name)}
    assert not names & {"pickle", "Unpickler"}


def write_idx(path: Path, array: np.ndarray) -> None:
    """A file of MNIST's format, as torchvision reads it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes() + array.astype(np.uint8).tobytes()
    )


def test_full_set_is_taken_where_torchvision_expects_it(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (240, 28, 28), np.uint8)
    labels = np.arange(240) % 10
    pixels[3] = pixels[203]  # a training image that is a test image, too
    for part, rows in (("train", slice(0, 200)), ("t10k", slice(200, 240))):
        write_idx(tmp_path / "FashionMNIST/raw" / f"{part}-images-idx3-ubyte", pixels[rows])
        write_idx(tmp_path / "FashionMNIST/raw" / f"{part}-labels-idx1-ubyte", labels[rows])
    real = open_real("fashion", 28, root=tmp_path)
    assert [len(real[s]) for s in _SPLITS] == [179, 20, 40] and "full" in real["test"].name
    assert torch.equal(real["test"].images[:, 0], torch.from_numpy(pixels[200:]))
    assert len(open_real("fashion", 28)["test"]) == 2000


def test_unknown_target_is_refused():
    with pytest.raises(ValueError, match="no target 'cifar': take one of mnist, silhouettes, fashion"):
        open_target("cifar")


def test_licences_of_what_others_made_come_with_the_package():
    told = (Path(targets.__file__).parents[1] / "THIRD_PARTY.txt").read_text()
    for name in ("Microsoft", "Google", "Mozilla", "EmojiTwo", "Twemoji", "SinaSR-6", "Zalando SE", "ML Illustrated"):
        assert name in told
    assert all(_target_source(name)["notice"] in told for name in ("silhouettes", "fashion"))
    assert (
        "Permission is hereby granted" in told
        and "TERMS AND CONDITIONS FOR USE, REPRODUCTION, AND DISTRIBUTION" in told
    )
