"""Whether more images would pay: rows as experiments have them, and curves at the edge of what can be fitted.

nbs/studies/advise.ipynb shows how often the interval holds the truth."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd
import pytest
import torch

from synthnb.bridge import Runtime, TransferConfig
from synthnb.core.intervals import paired_difference
from synthnb.data import LabelledImages
from synthnb.glyphworld.world import folder
from synthnb.studies.advise import Advice, Probe, advise, more_helps
from synthnb.train import TrainConfig


def rows(values: dict[int, list[float]]) -> pd.DataFrame:
    """By volume, a value of each seed."""
    return pd.DataFrame(
        [(n, seed, value) for n, own in values.items() for seed, value in enumerate(own)],
        columns=["volume", "seed", "value"],
    )


RISING = rows({25: [0.60, 0.71, 0.66], 50: [0.66, 0.76, 0.73], 100: [0.72, 0.82, 0.78], 150: [0.74, 0.85, 0.81]})


def test_order_of_rows_and_other_columns_do_not_matter():
    mixed = RISING.sample(frac=1, random_state=0).assign(method="bridged", steps=200)
    assert str(more_helps(mixed)) == str(more_helps(RISING)) and str(more_helps(RISING)).startswith(
        "go on: by the curve, 300 images of a class"
    )


def test_what_all_volumes_of_a_seed_share_is_not_uncertain():
    luck = RISING.assign(value=RISING.value + RISING.seed.map({0: -0.2, 1: 0.0, 2: 0.15}))
    assert more_helps(luck).gain.high == pytest.approx(more_helps(RISING).gain.high, abs=1e-9)
    assert more_helps(luck).gain.mean == pytest.approx(more_helps(RISING).gain.mean, abs=1e-9)


def test_a_straight_line_over_the_logarithm_has_students_interval():
    """Of a curve that rises by as much at each doubling the power is 0 in all draws.

    So the fit is a straight line and its slope a mean over seeds."""
    slopes = [0.04, 0.05, 0.065, 0.045]
    found = more_helps(
        rows({n: [0.5 + slope * (n / 10) ** 0.6 for slope in slopes] for n in (10, 20, 40, 80)}), resamples=20_000
    )
    assert found.gain.high > found.gain.mean > found.gain.low > 0
    x = np.log([10, 20, 40, 80]) - np.log([10, 20, 40, 80]).mean()
    own = {
        seed: np.log(2) * float(x @ [slope * (n / 10) ** 0.6 for n in (10, 20, 40, 80)] / (x @ x))
        for seed, slope in enumerate(slopes)
    }
    exact = paired_difference(own, dict.fromkeys(own, 0.0))
    assert (found.gain.mean, found.gain.low, found.gain.high) == pytest.approx(
        (exact.mean, exact.low, exact.high), abs=1e-3
    )


@pytest.mark.parametrize(
    "values, suggestion",
    [
        ({10: [0.9, 0.9], 20: [0.9, 0.9], 40: [0.9, 0.9]}, "stop"),  # all tied
        ({10: [1.0, 0.99], 20: [1.0, 1.0], 40: [1.0, 1.0]}, "stop"),  # nothing left to gain
        ({10: [0.8, 0.81], 20: [0.7, 0.71], 40: [0.6, 0.61]}, "stop"),  # falls
        ({10: [0.5], 20: [0.6], 40: [0.7]}, "undecided"),  # one seed, however clear
        ({10: [0.5, 0.6], 20: [0.7, 0.5], 40: [0.6, 0.9]}, "undecided"),  # noise
    ],
)
def test_edges(values, suggestion):
    found = more_helps(rows(values))
    assert found.suggestion == suggestion, found
    assert ("one seed gives no interval" in found.reason) == (len(values[10]) == 1)
    assert np.isfinite(found.curve[["volume", "value"]].to_numpy()).all() and found.curve.volume.iloc[
        -1
    ] == pytest.approx(80)


def test_what_pays_is_the_users_word():
    gain = more_helps(RISING).gain
    assert [
        more_helps(RISING, worth=worth).suggestion
        for worth in (gain.low - 0.001, gain.mean - 0.001, gain.mean + 0.001, gain.high + 0.001)
    ] == ["go on", "undecided", "undecided", "stop"]


@pytest.mark.parametrize(
    "wrong, told",
    [
        (RISING[RISING.volume < 100], "three volumes or more, got .25, 50."),
        (RISING.drop(columns="seed"), "lack the columns .'seed'."),
        (pd.concat([RISING, RISING]), "volume 25 has seed 0 twice"),
        (RISING[1:], "every seed needs a finite value"),
        (RISING.assign(value=RISING.value.where(RISING.volume > 25)), "every seed needs a finite value"),
        (RISING.assign(volume=RISING.volume - 25), "volume 0 has no place on the curve"),
    ],
)
def test_refused(wrong, told):
    with pytest.raises(ValueError, match=told):
        more_helps(wrong)


def test_a_baseline_is_no_method_that_beat_the_advice():
    "A report said that the advisor's pick was not the best method, which was `nearest (pixels)`."
    probe = Advice(
        pd.DataFrame({"method": ["bridged", "vanilla"], "run": [True, False]}).set_index("method"), (1, 1), 1, 0.0
    )
    table = pd.DataFrame(
        {
            "method": ["vanilla", "bridged", "nearest (pixels)"],
            "accuracy": [0.5, 0.6, 0.9],
            "steps": ["0 + 20", "10 + 10", "none"],
        }
    )
    assert "was the best method of the full runs" in probe.outcome(table) and "nearest" not in probe.outcome(table)


def test_copies_among_the_validation_images_do_not_stop_the_advisor():
    """`split_by_content` keeps the copies of an image in one split, so any split may have some."""
    pixels = torch.randint(256, (12, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = LabelledImages(pixels, torch.arange(2).repeat_interleave(6), ("a", "b"), "mine")
    with_a_copy = images.subset([0, 0, *range(1, 5), *range(6, 12)])
    config, probe = TransferConfig(TrainConfig(batch_size=4), steps=(1, 1)), Probe(seeds=(0, 1))
    methods = ("vanilla_matched", "mixed_per_batch")
    sets = images, images, with_a_copy
    advice = advise(folder("cnn"), *sets, config, methods=methods, probe=probe, runtime=Runtime(device="cpu"))
    assert advice.images == 10
