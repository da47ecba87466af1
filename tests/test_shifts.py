"""Shifted sets of any image size, what they do to a trained classifier, and what is measured on them."""

import math
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import binomtest
from sklearn.datasets import load_sample_images
from torchvision.transforms import v2

from synthnb.core.intervals import wilson
from synthnb.core.streams import seeded
from synthnb.data import DIGITS, LabelledImages, digits, few_shot, join
from synthnb.datasets.listed import list_folder, save_folder
from synthnb.datasets.shifts import (
    _SEVERITIES,
    CORRUPTIONS,
    ReadOnce,
    corrupt,
    inverted,
    measure,
    shift_table,
    shifted,
    show_severities,
    textured,
)
from synthnb.evaluate import bootstrap_accuracy, correct
from synthnb.glyphworld.drawing import FONTS, HELD_OUT_FONTS
from synthnb.glyphworld.world import folder, printed_digits
from synthnb.models.classifiers import load_classifier
from synthnb.studies.calibration import calibration_error, calibration_floor
from synthnb.train import TrainConfig, fit
from synthnb.training.prediction import predict

torch.set_num_threads(1)
SHIFTS = {"inverted": inverted, "textured": textured} | {
    kind: lambda data, kind=kind: corrupt(data, kind, 3) for kind in CORRUPTIONS
}


@pytest.fixture(scope="module")
def real():
    return digits()


@pytest.mark.parametrize("name", SHIFTS)
def test_a_set_on_disk_is_refused(real, tmp_path, name):
    some = few_shot(real["val"], 1)
    on_disk = list_folder(save_folder({"train": some, "test": some}, tmp_path / "scans"))["test"]
    with pytest.raises(ValueError, match=r"stays on disk.*load_images\(it, size\)"):
        SHIFTS[name](on_disk)


@pytest.fixture(scope="module")
def model(real):
    net = load_classifier(folder("cnn"), 10)
    config = TrainConfig(steps=60, batch_size=32, lr=3e-3)
    fit(net, few_shot(real["train"], 20), config, device="cpu", progress=False)
    return net


@pytest.fixture(scope="module")
def frame(model, real):
    return measure(model, shifted(real["val"], kinds=["contrast", "impulse_noise"]))


def blotted(height: int, width: int, n: int = 3) -> LabelledImages:
    """Coloured blots on a plain ground."""
    blots = torch.rand(n, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    blots[..., [0, -1]] = blots[..., [0, -1], :] = 0.25
    images = torch.nn.functional.interpolate(blots, (height, width), mode="bilinear")
    return LabelledImages((images * 255).to(torch.uint8), torch.arange(n) % 2, ("a", "b"), "blots")


def rms(a: LabelledImages, b: LabelledImages) -> float:
    return (a.images.float() - b.images.float()).square().mean().sqrt().item()


# ---- the sets


@pytest.mark.parametrize("size", [(8, 8), (32, 32), (48, 80), (225, 225)], ids=str)
@pytest.mark.parametrize("name", SHIFTS)
def test_every_shift_keeps_shape_labels_and_classes_at_any_size(name, size):
    data = blotted(*size)
    before, other = data.images.clone(), SHIFTS[name](data)
    assert torch.equal(data.images, before), "the set itself stays as it is"
    assert other.images.shape == data.images.shape and other.images.dtype == torch.uint8
    assert torch.equal(other.labels, data.labels) and other.classes == data.classes and other.name != data.name
    assert not torch.equal(other.images, data.images)


@pytest.mark.parametrize("name", SHIFTS)
def test_same_seed_same_pixels_whatever_was_drawn_before(name):
    data = blotted(32, 32)
    first = SHIFTS[name](data)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert torch.equal(first.images, SHIFTS[name](data).images)
    assert torch.equal(torch.get_rng_state(), state), "the caller's random numbers are left alone"


@pytest.mark.parametrize("name", ["textured", "gaussian_noise", "shot_noise", "impulse_noise"])
def test_another_seed_other_pixels(name):
    data = blotted(32, 32)
    make = (
        (lambda seed: textured(data, seed=seed)) if name == "textured" else (lambda seed: corrupt(data, name, 3, seed))
    )
    assert not torch.equal(make(0).images, make(1).images)


def test_identities():
    data = blotted(32, 40)
    assert torch.equal(inverted(inverted(data)).images, data.images)
    assert torch.equal(textured(data, strength=0).images, data.images)
    for kind in CORRUPTIONS:
        assert torch.equal(corrupt(data, kind, 0).images, data.images)


@pytest.mark.parametrize("size", [32, 96, 224])
@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_each_severity_takes_pictures_further_away(kind, size):
    photos = torch.stack(
        [
            v2.functional.resize(torch.from_numpy(photo.copy()).permute(2, 0, 1), [size, size], antialias=True)
            for photo in load_sample_images().images
        ]
    )
    data = LabelledImages(photos, torch.tensor([0, 1]), ("a", "b"))
    distances = [rms(data, corrupt(data, kind, severity)) for severity in (0, *_SEVERITIES)]
    assert distances == sorted(distances) and min(np.diff(distances)) > 0.1


def test_constants_are_what_they_say():
    grey = LabelledImages(torch.full((64, 3, 32, 32), 128, dtype=torch.uint8), torch.arange(64) % 2, ("a", "b"))
    change = lambda kind, severity: corrupt(grey, kind, severity).images.float() / 255 - 128 / 255
    assert change("gaussian_noise", 2).std().item() == pytest.approx(0.12, rel=0.03)
    assert change("shot_noise", 1).var().item() == pytest.approx(0.502 / 60, rel=0.03)
    assert (change("impulse_noise", 4).abs() > 0.4).float().mean().item() == pytest.approx(0.17, rel=0.03)
    assert change("brightness", 3).mean().item() == pytest.approx(0.3, abs=0.003)
    for kind in ("contrast", "gaussian_blur", "zoom_blur", "pixelate"):
        assert change(kind, 5).abs().max() < 0.003, f"{kind} leaves a plain image alone"
    halves = LabelledImages(
        torch.tensor([51, 204], dtype=torch.uint8).repeat(2, 3, 32, 16), torch.tensor([0, 1]), ("a", "b")
    )
    assert corrupt(halves, "contrast", 1).images.unique().tolist() == [97, 158]  # 127.5 -+ 0.4 * 76.5
    assert corrupt(halves, "pixelate", 2).images.unique().tolist() in ([127], [128]), "16 pixels of two columns each"


def test_texture_replaces_the_ground_and_leaves_the_subject():
    images = torch.full((2, 3, 32, 32), 40, dtype=torch.uint8)
    images[..., 10:20, 10:20] = 250
    data = LabelledImages(images, torch.tensor([0, 1]), ("a", "b"))
    for strength in (0.5, 1):
        other = textured(data, strength).images
        assert torch.equal(other[..., 10:20, 10:20], images[..., 10:20, 10:20]) and other[..., :10, :].float().std() > 5


def test_all_sets_come_one_at_a_time_by_name(real):
    names = [name for name, _ in shifted(real["val"])]
    assert len(set(names)) == 3 + 5 * len(CORRUPTIONS) and names[:3] == ["clean", "inverted", "textured"]
    few = dict(shifted(real["val"], kinds=["jpeg"], severities=[2]))
    assert list(few) == ["clean", "inverted", "textured", "jpeg 2"] and few["clean"] is real["val"]
    assert torch.equal(few["jpeg 2"].images, corrupt(real["val"], "jpeg", 2).images)
    empty = dict(shifted(real["val"].subset([])))
    assert all(len(data) == 0 for data in empty.values())


def test_bad_input_is_named():
    data = blotted(32, 32)
    with pytest.raises(ValueError, match="no corruption 'jpg', did you mean 'jpeg'"):
        corrupt(data, "jpg", 1)
    for severity in (-1, 6, 2.5):
        with pytest.raises(ValueError, match=f"got {severity}"):
            corrupt(data, "jpeg", severity)
    with pytest.raises(ValueError, match="strength must lie in 0..1, got 1.5"):
        textured(data, 1.5)


def test_printed_digits_are_prints_of_digits_in_held_out_fonts():
    images, labels = printed_digits(6)
    prints = LabelledImages(images, labels, DIGITS)
    assert set(prints.per_class.values()) == {6} and images[..., 0, :].float().mean() > 200 > 100 > images.amin().item()
    assert torch.equal(printed_digits(6)[0], images)
    assert not set(HELD_OUT_FONTS) & set(FONTS) and not torch.equal(printed_digits(6, FONTS)[0], images)


# ---- what they do to a classifier, and what is measured


def chance_of(more, less) -> float:
    """The probability that so many more images would be right here than there if both were equally hard."""
    won, lost = int((more & ~less).sum()), int((less & ~more).sum())
    return binomtest(won, won + lost, alternative="greater").pvalue if won else 1.0


@pytest.mark.parametrize("kind", ["gaussian_noise", "shot_noise", "impulse_noise", "brightness", "contrast"])
def test_accuracy_falls_with_severity(kind, model, real):
    seen = join([real["val"], real["test"]])  # three points are lost surely, which validation alone is too few for
    right = [correct(predict(model, corrupt(seen, kind, severity)), seen.labels) for severity in (0, *_SEVERITIES)]
    shares = [round(float(known.mean()), 4) for known in right]
    assert shares[0] > 0.9 and chance_of(right[0], right[-1]) < 1e-3, shares
    assert kind == "brightness" or shares[-1] < shares[0] - 0.05, shares  # which costs three points
    assert max(np.diff(shares)) <= 0.01, f"more damage, higher accuracy: {shares}"


def test_shifted_sets_are_harder(frame, model, real):
    value = frame[(frame.metric == "top-1") & (frame["class"] == "")].set_index("set").value
    assert value["clean"] > 0.9
    assert (
        value["inverted"] < value["clean"] - 0.05 and value["textured"] < value["clean"] and value["contrast 5"] < 0.3
    )
    prints = LabelledImages(*printed_digits(10), DIGITS, "prints")
    assert measure(model, {"prints": prints}).value[0] < value["clean"] - 0.1


def test_every_number_is_that_of_its_own_function(frame, model, real):
    data = corrupt(real["val"], "impulse_noise", 4)
    said = predict(model, data)
    own = frame[frame.set == "impulse_noise 4"].set_index(["metric", "class"])
    right, top5 = (correct(said, data.labels, top) for top in (1, 5))
    for (metric, label), number in {
        ("top-1", ""): wilson(int(right.sum()), 300),
        ("top-5", ""): wilson(int(top5.sum()), 300),
        ("ECE", ""): calibration_error(said, data.labels),
        ("top-1", "seven"): wilson(int(right[data.labels == 7].sum()), 30),
    }.items():
        row = own.loc[(metric, label)]
        assert (row.value, row.low, row.high, row.images) == pytest.approx(
            (number.mean, number.low, number.high, number.n)
        )
    assert own.loc[("ECE by chance", "")].value == calibration_floor(said) and math.isnan(
        own.loc[("ECE by chance", "")].low
    )
    assert len(own) == 4 + 10


def test_means_over_severities_resample_images_once_for_all(frame, model, real):
    right = {
        kind: np.stack(
            [correct(predict(model, corrupt(real["val"], kind, s)), real["val"].labels) for s in _SEVERITIES]
        )
        for kind in ("contrast", "impulse_noise")
    }
    for name, runs in {
        **{f"{kind} mean": own for kind, own in right.items()},
        "corruptions mean": np.concatenate(list(right.values())),
    }.items():
        row, expected = frame[frame.set == name].iloc[0], bootstrap_accuracy(runs)
        assert (row.value, row.low, row.high) == pytest.approx((expected.mean, expected.low, expected.high))


def test_few_classes_have_no_top_5():
    data = blotted(32, 32, 8)
    with seeded(0):
        two = load_classifier(folder("cnn"), 2)
    frame = measure(two, {"blots": data})
    assert set(frame.metric) == {"top-1", "ECE", "ECE by chance"} and not frame.set.str.contains("mean").any()


def test_what_cannot_be_measured_is_refused(model, real):
    with pytest.raises(ValueError, match="the model has 10 classes and .* has 2"):
        measure(model, {"blots": blotted(32, 32)})
    with pytest.raises(ValueError, match="set 'none', .* is empty"):
        measure(model, {"none": real["val"].subset([])})
    few = real["val"].subset(range(5))
    with pytest.raises(ValueError, match="two sets are called 'x'"):
        measure(model, [("x", few), ("x", few)])


def test_table_and_figure_show_the_frame(frame):
    other = frame[frame.set != "textured"].assign(value=0.5)
    table = shift_table({"one": frame, "two": other})
    assert list(table.index) == [
        "clean",
        "inverted",
        "textured",
        "contrast mean",
        "impulse_noise mean",
        "corruptions mean",
    ]
    clean = frame[(frame.set == "clean") & (frame.metric == "top-1")].iloc[0]
    assert table.one["clean"] == f"{clean.value:.1%} [{clean.low:.1%}, {clean.high:.1%}]"
    assert table.two["clean"].startswith("50.0%") and pd.isna(table.two["textured"])
    assert (
        table.drop(index="clean").one.map(lambda text: "[" in text).all()
        and not shift_table({"one": frame}, "ECE by chance").one.str.contains("nan").any()
    )
    open_before = plt.get_fignums()  # of other tests in this process
    fig = show_severities({"one": frame, "two": other}, "digits")
    shown = [ax for ax in fig.axes if ax.get_title()]
    assert [ax.get_title() for ax in shown] == ["contrast", "impulse_noise"] and plt.get_fignums() == open_before
    one, two = shown[0].lines
    assert (
        one.get_xdata().tolist() == list(range(6))
        and one.get_ydata()[0] == clean.value
        and set(two.get_ydata()) == {0.5}
    )
    with pytest.raises(ValueError, match="no corruptions"):
        show_severities({"one": frame[frame.set == "inverted"]})


def test_the_test_split_is_read_once_by_each_classifier(real):
    test = ReadOnce(real["test"])
    assert "none yet" in str(test)
    for name in ("vanilla", "bridged"):
        assert test.read(f"{name}, seed 0") is real["test"]
    with pytest.raises(RuntimeError, match="'bridged, seed 0' has read .*digits test.* before"):
        test.read("bridged, seed 0")
    assert test.readers == ["vanilla, seed 0", "bridged, seed 0"]
    assert str(test).endswith("read once by each of 2 finished classifiers: vanilla, seed 0, bridged, seed 0")
