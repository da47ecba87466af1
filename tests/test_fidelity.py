"""Measures between sets of images: closed forms, hand-worked cases, glyphworld's networks and real scans."""

import math

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torchmetrics.image.kid import KernelInceptionDistance

from synthnb.data import DIGITS, LabelledImages, digits, join
from synthnb.glyphworld import world as glyphworld
from synthnb.images.fidelity import (
    Features,
    _fid_floor,
    _mean_estimate,
    _neighbourhoods,
    _readable,
    clip_scores,
    extract,
    fid,
    kid,
    measure,
    open_extractor,
    share_estimate,
    show_fidelity,
    vendi,
)
from synthnb.images.scores import class_texts
from synthnb.models.clip import load_clip

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def scans():
    sides = digits(32)
    return {"real": join([sides["train"], sides["val"]]), "test": sides["test"]}


@pytest.fixture(scope="module")
def cnn():
    return open_extractor(glyphworld.folder("cnn"))


@pytest.fixture(scope="module")
def vit():
    return open_extractor(timm.create_model(f"local-dir:{glyphworld.folder('vit')}", pretrained=True))


@pytest.fixture(scope="module")
def clip():
    return load_clip(glyphworld.folder("clip"), device="cpu")


@pytest.fixture(scope="module")
def real(scans, cnn):
    return extract(cnn, scans["real"])


def changed(data, noise=0, seed=0):
    grain = noise * torch.randn(data.images.shape, generator=torch.Generator().manual_seed(seed))
    return LabelledImages((data.images + grain).clamp(0, 255).byte(), data.labels, data.classes)


def line(*points):
    return torch.tensor(points, dtype=torch.float64)[:, None]


# ---- extractors


def test_an_extractor_names_weights_and_resize(cnn, vit, clip):
    assert (
        len({cnn.name, vit.name, open_extractor(clip).name}) == 3
        and "32" in cnn.resize
        and "squash" in open_extractor(clip).resize
    )
    other = timm.create_model(f"local-dir:{glyphworld.folder('cnn')}", pretrained=True)
    assert open_extractor(other).name == cnn.name
    with torch.no_grad():
        next(other.parameters()).add_(1e-3)
    assert open_extractor(other).name != cnn.name


def test_features_are_what_the_network_has_before_its_last_layer(scans, cnn, vit):
    images = scans["test"].images[:4]
    for extractor, folder in ((cnn, "cnn"), (vit, "vit")):
        model = timm.create_model(f"local-dir:{glyphworld.folder(folder)}", pretrained=True).eval()
        with torch.no_grad():
            logits = model.get_classifier()(extractor.encode(images))
            assert torch.allclose(logits, model(images.float() / 127.5 - 1), atol=1e-3)


def test_a_stream_gives_the_features_of_the_set(scans, cnn):
    whole = extract(cnn, scans["test"], batch_size=600)
    pairs = zip(scans["test"].images.split(70), scans["test"].labels.split(70))
    streamed = extract(cnn, pairs, DIGITS)
    assert torch.allclose(streamed.values, whole.values, atol=1e-3) and torch.equal(streamed.labels, whole.labels)
    with pytest.raises(ValueError, match="names of its classes"):
        extract(cnn, iter([]))
    with pytest.raises(ValueError, match="no images"):
        extract(cnn, iter([]), DIGITS)


def test_features_that_are_not_finite_are_refused(cnn):
    with pytest.raises(ValueError, match="not finite"):
        Features(torch.tensor([[math.nan]]), torch.tensor([0]), DIGITS, "x", "y")
    with pytest.raises(ValueError, match="no timm model"):
        open_extractor(nn.Conv2d(3, 4, 3))


# ---- KID


def plain_kid(real, generated) -> float:
    """The unbiased estimator as its paper writes it."""
    a, b = real.double(), generated.double()
    ab, aa, bb = ((x @ y.T / x.shape[1] + 1) ** 3 for x, y in ((a, b), (a, a), (b, b)))
    within = [(own.sum() - own.trace()) / (len(own) * (len(own) - 1)) for own in (aa, bb)]
    return float(sum(within) - 2 * ab.mean())


def test_kid_is_torchmetrics_and_the_formula(real, scans, cnn):
    test = extract(cnn, scans["test"])
    theirs = KernelInceptionDistance(feature=nn.Identity(), subsets=1, subset_size=600)
    theirs.update(real.values[:600].double(), real=True)
    theirs.update(test.values.double(), real=False)
    assert kid(real.values[:600], test.values).value == pytest.approx(theirs.compute()[0].item(), abs=1e-8)
    assert kid(real.values[:333], test.values).value == pytest.approx(
        plain_kid(real.values[:333], test.values), abs=1e-9
    )
    alone = kid(real.values[:333], test.values, resamples=0)
    assert alone.value == kid(real.values[:333], test.values).value and np.isnan([alone.low, alone.high]).all()


def test_kid_of_one_distribution_is_about_zero(real, scans, cnn):
    found = kid(real.values, extract(cnn, scans["test"]).values)
    assert found.low <= 0 <= found.high and abs(found.value) < 0.01


def test_an_interval_is_wider_with_fewer_images_and_depends_on_the_seed_alone(real, scans, cnn):
    test = extract(cnn, scans["test"]).values
    many, few = kid(real.values, test), kid(real.values[:60], test[:60])
    assert few.high - few.low > 3 * (many.high - many.low)
    assert kid(real.values, test, seed=1) == kid(real.values, test, seed=1) != kid(real.values, test, seed=2)
    with pytest.raises(ValueError, match="two images"):
        kid(test[:1], test)


# ---- FID


def test_fid_of_a_set_with_itself_and_of_gaussians():
    generator = torch.Generator().manual_seed(0)
    same = torch.randn(640, 64, generator=generator) @ torch.randn(64, 64, generator=generator) + 100
    assert abs(fid(same, same)) <= 1e-6
    a, b = torch.randn(200_000, 1, generator=generator), 1.5 + 2 * torch.randn(200_000, 1, generator=generator)
    assert fid(a, b) == pytest.approx(1.5**2 + 1, rel=0.01)


def test_fid_is_refused_below_its_floor():
    few = torch.randn(_fid_floor(8) - 1, 8)
    with pytest.raises(ValueError, match=r"80 images on each side .* 79"):
        fid(few, torch.randn(100, 8))
    assert fid(few, torch.randn(100, 8), floor=50) > 0
    assert _fid_floor(2048) == 20_480


# ---- neighbourhoods


def test_hand_worked_balls():
    # balls of the real points 0, 1, 3, 7 to the 2nd neighbour: 3, 2, 3, 6; of the generated points 2, 4, 20: 18, 16, 18
    found = _neighbourhoods(line(0, 1, 3, 7), line(2, 4, 20), k=2)
    # 2 lies in the balls of 0, 1, 3 and 7 (5 <= 6), 4 in those of 3 and 7, 20 in none
    assert found["precision"].value == pytest.approx(2 / 3)
    assert found["density"].value == pytest.approx((4 + 2 + 0) / (2 * 3))
    assert found["coverage"].value == 1 and found["recall"].value == 1


def test_hand_worked_balls_in_the_plane():
    real = torch.tensor([[0.0, 0], [3, 4], [6, 8]])  # nearest neighbours at 5
    generated = torch.tensor([[0.0, 5], [0, 6], [100, 0], [100, 1]])  # at 1, 1, 1, 1
    found = _neighbourhoods(real, generated, k=1)
    # (0, 5) lies on the border of the first ball, which is closed, and 3.2 from (3, 4);
    # (0, 6) lies 3.6 from (3, 4) and 6 from the first
    assert found["precision"].value == 0.5 and found["density"].value == (2 + 1) / 4
    assert found["coverage"].value == pytest.approx(2 / 3) and found["recall"].value == 0


def test_blocks_change_nothing(real):
    big = real.values.repeat(2, 1) + torch.randn(2394, 192, generator=torch.Generator().manual_seed(0))
    found, distance = _neighbourhoods(real.values, big), torch.cdist(big.double(), real.values.double())
    balls = torch.cdist(real.values.double(), real.values.double()).kthvalue(6, 1).values
    inside = distance <= balls
    assert found["precision"].value == pytest.approx(inside.any(1).double().mean().item(), abs=1e-6)
    assert found["density"].value == pytest.approx(inside.sum(1).double().mean().item() / 5, abs=1e-3)
    assert found["coverage"].value == pytest.approx(inside.any(0).double().mean().item(), abs=1e-6)


def test_too_few_for_balls():
    with pytest.raises(ValueError, match="6 images or more"):
        _neighbourhoods(torch.randn(5, 2), torch.randn(50, 2))


# ---- intervals


def test_a_share_of_all_is_not_certain():
    everything = share_estimate(torch.ones(50, dtype=torch.bool))
    assert everything.value == 1 and 0.9 < everything.low < 0.95
    assert share_estimate(torch.arange(100) < 87)[1:] == pytest.approx((0.790, 0.922), abs=5e-4)


def test_a_bootstrap_of_a_mean():
    values = torch.randn(400, generator=torch.Generator().manual_seed(0))
    found = _mean_estimate(values)
    half = 1.96 * values.std().item() / 20
    assert found.low == pytest.approx(values.mean().item() - half, abs=0.02) and found.high == pytest.approx(
        values.mean().item() + half, abs=0.02
    )
    assert math.isnan(_mean_estimate(values[:1]).low)


def test_vendi_jackknife_holds_the_value_of_many(real):
    whole = vendi(real.values)
    assert whole.low < whole.value < whole.high and 1 < whole.value < 192
    parts = [vendi(real.values[i::4]) for i in range(4)]
    assert sum(part.low <= whole.value <= part.high for part in parts) >= 3


# ---- the table


def test_real_against_real_noise_and_collapse(real, scans, cnn):
    def against(data):
        return measure(real, extract(cnn, data), per_class=False).set_index("measure")

    tables = [against(changed(scans["test"], noise)) for noise in (0, 20, 40, 80, 120)]
    series = {
        what: [table.value[what] for table in tables] for what in ("KID", "precision", "recall", "density", "coverage")
    }
    assert tables[0].low["KID"] <= 0 <= tables[0].high["KID"]
    assert all(series["KID"][i] < series["KID"][i + 1] for i in range(4))
    assert all(series[what][i] > series[what][i + 1] for what in ("recall", "density", "coverage") for i in range(1, 4))
    first = [(scans["test"].labels == label).nonzero()[0, 0].item() for label in scans["test"].labels]
    collapsed = against(scans["test"].subset(first))
    for what in ("recall", "coverage", "Vendi score"):
        assert collapsed.high[what] < tables[0].low[what], what
    assert collapsed.value["precision"] > 0.9 and collapsed.low["KID"] > tables[0].high["KID"]


def test_table_per_class(scans, clip, real):
    extractor = open_extractor(clip)
    ours, theirs = (
        extract(extractor, scans["real"]),
        extract(extractor, LabelledImages(*glyphworld.printed_digits(20), DIGITS)),
    )
    texts = class_texts(clip, {name: [f"arabic digit {name}"] for name in DIGITS})
    table = measure(ours, theirs, clip_score=clip_scores(theirs, texts))
    assert (
        set(table["class"]) == {"(all classes)", *DIGITS}
        and table.attrs["extractor"] == extractor.name
        and table.attrs["resize"] == extractor.resize
    )
    seven = table[table["class"] == "seven"].set_index("measure")
    assert seven.value["KID"] == pytest.approx(
        kid(
            *(
                f.of(7)[torch.randperm(len(f.of(7)), generator=torch.Generator().manual_seed(0))[:20].sort().values]
                for f in (ours, theirs)
            )
        ).value
    )
    assert seven.images["KID"] == 20 and (seven.low <= seven.value).all() and (seven.value <= seven.high).all()
    assert seven.value["CLIP score"] == pytest.approx(100 * (theirs.of(7) @ texts.features[7]).mean().item(), abs=1e-3)
    assert "1,280 images" in table.refused[table.measure == "FID"].item()
    assert _readable(table).loc["(all classes)", "FID"] == "refused" and "[" in _readable(table).loc["seven", "KID"]
    assert len(show_fidelity(table).axes) == 4


def test_a_table_has_fid_where_there_are_enough_images():
    generator = torch.Generator().manual_seed(0)
    a, b = (
        Features(torch.randn(200, 4, generator=generator), torch.arange(200) % 2, ("a", "b"), "x", "y")
        for _ in range(2)
    )
    value = measure(a, b).set_index(["class", "measure"]).value[("(all classes)", "FID")]
    assert value == pytest.approx(fid(a.values, b.values)) and 0 < value < 0.2


def test_small_classes_have_the_measures_they_can_have():
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([0] * 30 + [1] * 3 + [2])
    a, b = (
        Features(torch.randn(34, 4, generator=generator), labels, ("many", "three", "one"), "x", "y") for _ in range(2)
    )
    told = measure(a, b, clip_score=torch.ones(34)).groupby("class").measure.agg(set)
    assert (
        {"KID", "recall", "Vendi score"} <= told["many"]
        and "recall" not in told["three"]
        and "KID" in told["three"]
        and told["one"] == {"CLIP score"}
    )


def test_what_cannot_be_compared(real, scans, clip):
    with pytest.raises(ValueError, match="one extractor"):
        measure(real, extract(open_extractor(clip), scans["test"]))


def test_both_sides_are_cut_alike(real):
    table = measure(real, real, most=100, per_class=False)
    assert (table.images[table.measure != "FID"] == 100).all()
    assert np.isclose(
        table.value[table.measure == "Vendi score"].item(), table.value[table.measure == "Vendi score, real"].item()
    )
