"""Calibration: by hand, against torchmetrics' multi-class function, and whether the interval holds the truth."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from synthnb.evaluate import calibration_error, calibration_floor

torch.set_num_threads(1)


def calibrated(n: int, gap: float, chance: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities of two classes, and labels that agree with the likelier one `gap` less often than they say."""
    top = chance.uniform(0.6, 1, n)
    return torch.tensor(np.stack([top, 1 - top], 1)), torch.from_numpy((chance.random(n) > top - gap).astype(int))


def test_error_by_hand():
    # Bins of a tenth: [0.6, 0.7) holds 0.65 and 0.65, both right, gap 0.35;
    # [0.8, 0.9) holds 0.8 and 0.88, one right, gap 0.34; 0.95 is wrong.
    top = torch.tensor([0.65, 0.65, 0.81, 0.87, 0.95])
    said = torch.stack([top, 1 - top], 1)
    by_hand = (2 * 0.35 + 2 * 0.34 + 0.95) / 5
    assert calibration_error(said, torch.tensor([0, 0, 0, 1, 1]), bins=10).mean == pytest.approx(by_hand, abs=1e-6)
    assert calibration_error(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1])).mean == 0


@pytest.mark.parametrize("bins", [5, 15])
def test_error_of_many_classes_is_that_of_torchmetrics(bins):
    chance = torch.Generator().manual_seed(0)
    said = (3 * torch.randn(500, 12, generator=chance)).softmax(1)
    labels = torch.multinomial(said, 1, generator=chance)[:, 0]
    assert calibration_error(said, labels, bins).mean == pytest.approx(
        multiclass_calibration_error(said, labels, 12, bins).item(), abs=1e-6
    )


def test_interval_holds_the_truth_and_narrows_with_images():
    chance, held, widths = np.random.default_rng(0), [], []
    for _ in range(60):
        error = calibration_error(*calibrated(400, 0.1, chance), resamples=100)
        held.append(error.low <= 0.1 <= error.high)
        widths.append(error.high - error.low)
    assert np.mean(held) >= 0.8, "the basic interval; the percentile interval holds it in fewer than half"
    many = calibration_error(*calibrated(20_000, 0.1, chance), resamples=100)
    assert many.low <= 0.1 <= many.high and many.high - many.low < 0.2 * np.mean(widths) and many.n == 20_000
    assert many.mean == pytest.approx(0.1, abs=0.01)


def test_floor_is_the_error_of_calibrated_classifiers():
    chance = np.random.default_rng(1)
    said, _ = calibrated(300, 0, chance)
    errors = [
        calibration_error(
            said, torch.from_numpy((chance.random(300) > said[:, 0].numpy()).astype(int)), resamples=2
        ).mean
        for _ in range(100)
    ]
    assert calibration_floor(said) == pytest.approx(np.mean(errors), abs=0.005)
    assert calibration_floor(calibrated(10_000, 0, chance)[0]) < 0.3 * calibration_floor(said)


def test_same_seed_same_numbers():
    said, labels = calibrated(200, 0.05, np.random.default_rng(2))
    assert calibration_error(said, labels) == calibration_error(said, labels) != calibration_error(said, labels, seed=1)
    assert calibration_floor(said) == calibration_floor(said) != calibration_floor(said, seed=1)


@pytest.mark.parametrize("function", [lambda said: calibration_error(said, torch.tensor([0, 1])), calibration_floor])
def test_logits_are_refused(function):
    for logits in (torch.tensor([[4.0, 0.1], [0.2, 3.0]]), torch.tensor([[1.5, -0.5], [0.5, 0.5]])):
        with pytest.raises(ValueError, match=r"softmax\(1\)"):
            function(logits)
