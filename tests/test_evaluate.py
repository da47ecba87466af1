"""Calibration by hand, against torchmetrics and against the truth; accuracies and tables of methods at their edges."""

import math
import os
from types import SimpleNamespace

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd
import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from synthnb.data import digits, few_shot
from synthnb.evaluate import (
    accuracy,
    best_by_validation,
    bootstrap_accuracy,
    correct,
    gain_by_class,
    per_class_accuracy,
    pixel_baseline,
    readable_table,
    results_table,
    show_results,
    verdicts,
)
from synthnb.studies.calibration import calibration_error, calibration_floor
from synthnb.studies.exchange import _possible, exchange_rate, show_exchange

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


# ---- accuracies and the table of methods


@pytest.fixture(scope="module")
def scans():
    return digits(8)


def runs_of(method: str, accuracies: list[float], steps: tuple[int, int], **more) -> list[SimpleNamespace]:
    "Made-up runs on 600 test images."
    more |= dict(method=method, shots=1, steps_stage1=steps[0], steps_stage2=steps[1])
    right = lambda share: np.arange(600) < share * 600
    return [SimpleNamespace(seed=i, accuracy=v, correct=right(v), **more) for i, v in enumerate(accuracies)]


@pytest.fixture(scope="module")
def three_seeds():
    runs = runs_of("vanilla", [0.40, 0.50, 0.60], (0, 100)) + runs_of("vanilla_matched", [0.45, 0.56, 0.64], (0, 200))
    return runs + runs_of("bridged", [0.50, 0.60, 0.70], (100, 100))


def test_an_image_is_right_where_its_label_is_among_the_likeliest():
    said, labels = torch.tensor([[0.1, 0.9, 0.0], [0.8, 0.2, 0.0]]), torch.tensor([1, 1])
    assert correct(said, labels).tolist() == [True, False] and accuracy(said, labels, top=2) == 1
    with pytest.raises(ValueError, match="2 rows of probabilities for 1"):
        accuracy(said, labels[1:])
    with pytest.raises(ValueError, match=r"top must lie in 1\.\.3, got 4"):
        correct(said, labels, top=4)


def test_sets_that_differ_are_not_compared_by_pixels(scans):
    few = few_shot(scans["train"], 1)
    assert pixel_baseline(few, few, 0).accuracy == 1
    with pytest.raises(ValueError, match="differ in classes"):
        pixel_baseline(few, digits(16)["test"], 0)


def test_judgements_of_other_images_are_refused(scans):
    with pytest.raises(ValueError, match="both must be of the same images"):
        per_class_accuracy(np.ones(3, bool), scans["test"])
    with pytest.raises(ValueError, match="two test images or more"):
        bootstrap_accuracy(np.ones(1, bool))


def test_three_seeds_have_a_verdict_and_no_interval_of_an_accuracy(three_seeds):
    table = results_table(three_seeds)
    assert table.gain[2] == pytest.approx(0.05) and table.verdict[2] == "better"
    assert table.seeds_at[2] == [0.5, 0.6, 0.7] and math.isnan(table.low[2])
    assert table["equal steps"].tolist() == ["NO: 100 against 200", "yes", "yes"]
    columns = (
        "shots method accuracy low high seeds seeds_at per_class gain gain_low gain_high verdict smallest more_seeds"
        " unpaired"
    )
    assert list(table) == [*columns.split(), "test_errors", "sets", "steps", "equal steps"]
    assert readable_table(table)["accuracy %"].tolist()[2] == "60.0 (50.0, 60.0, 70.0)"
    with pytest.raises(ValueError, match="method 'bridged' has seed 2 twice with 1 shots"):
        results_table(three_seeds + three_seeds[-1:])


def test_rows_come_in_the_order_of_the_runs(three_seeds):
    other = [SimpleNamespace(**vars(run) | {"shots": 4}) for run in three_seeds]
    mixed = [run for pair in zip(three_seeds, other) for run in pair]
    rows = results_table(mixed)[["shots", "method"]].values.tolist()
    assert rows == [[k, name] for name in ("vanilla", "vanilla_matched", "bridged") for k in (1, 4)]


def test_one_seed_is_a_point():
    table = results_table(runs_of("vanilla", [0.4], (0, 100)))
    assert table.low.isna().all() and readable_table(table)["accuracy %"].tolist() == ["40.0"]
    assert verdicts(table) == ["- `vanilla` reaches 40.0%."]


@pytest.mark.parametrize(
    "left_out, said",
    [
        ("bridged", "not paired: seeds 1, 2 of 0..2"),
        ("vanilla_matched", "not paired: seeds 0..2, not 1, 2"),
        (None, ""),
    ],
)
def test_a_method_with_other_seeds_says_why_it_has_no_gain(three_seeds, left_out, said):
    runs = [run for run in three_seeds if (run.method, run.seed) != (left_out, 0)]
    table = results_table(runs)
    row = table[table.method == "bridged"].iloc[0]
    assert row.unpaired == said
    shown = readable_table(table)["paired gain"].tolist()[2]
    assert shown == (said or "+5.0 [+2.5, +7.5]")
    assert said in verdicts(table)[2] and (math.isnan(row.gain) == bool(said))
    ticks = [tick.get_text() for tick in show_results(runs, table).axes[0].get_yticklabels()]
    assert ("bridged (not paired)" in ticks) == bool(said)


def test_methods_at_numbers_of_images_without_the_reference_say_so(three_seeds):
    more = [SimpleNamespace(**vars(run) | {"shots": 4}) for run in three_seeds if run.method == "bridged"]
    assert results_table(three_seeds + more).unpaired.tolist() == ["", "", "", "not paired: no vanilla_matched here"]


def test_verdicts_in_words(three_seeds):
    table = results_table(three_seeds)
    assert verdicts(table)[1:] == [
        "- `vanilla_matched` reaches 55.0%.",
        "- `bridged` reaches 60.0%, +5.0 [+2.5, +7.5] points against `vanilla_matched` over 3 seeds: better.",
    ]
    assert "[+nan" not in str(verdicts(table.assign(gain_low=math.nan, gain_high=math.nan)))
    same = runs_of("vanilla_matched", [0.25, 0.5], (0, 200)) + runs_of("bridged", [0.5, 0.75], (100, 100))
    level = results_table(same)
    level.loc[1, "gain_high"] += 1e-16  # as floating point has it
    said = "+25.0 points against `vanilla_matched` in each of 2 seeds, which is no interval"
    assert verdicts(level)[1] == f"- `bridged` reaches 62.5%, {said}."


def test_settings_are_chosen_by_validation_images(three_seeds):
    told = (("vanilla_matched", 0.9), ("mixed", 0.7), ("bridged", 0.8), ("bridged", 0.7))
    runs = [SimpleNamespace(method=method, val_accuracy=value) for method, value in told]
    assert best_by_validation(runs) == "bridged"
    with pytest.raises(ValueError, match="no method was measured"):
        best_by_validation(three_seeds)


def test_no_drawn_gain_is_beyond_100_points(three_seeds):
    wild = runs_of("vanilla_matched", [0.1, 0.9], (0, 200)) + runs_of("bridged", [0.9, 0.2], (100, 100))
    table = results_table(wild)
    assert table.gain_low.min() < -1, "Student's t knows no limits"
    left = show_results(wild, table).axes[0]
    drawn = np.concatenate([line.get_xdata() for line in left.lines])
    assert np.nanmin(drawn) >= -100 and np.nanmax(drawn) <= 100


def test_gains_by_class(scans):
    labels = scans["test"].labels.numpy()
    told = (("vanilla_matched", 0, [1, 2]), ("vanilla_matched", 1, [2]), ("bridged", 0, [3]), ("bridged", 1, []))
    runs = [SimpleNamespace(method=name, seed=seed, correct=~np.isin(labels, wrong)) for name, seed, wrong in told]
    gains = gain_by_class(runs, scans["test"], "bridged")
    order = [scans["test"].classes[i] for i in (2, 1, 0, 4, 5, 6, 7, 8, 9, 3)]
    assert gains["class"].tolist() == ["(all classes)", *order]
    assert gains.gain[1:].tolist() == [1, 0.5, 0, 0, 0, 0, 0, 0, 0, -0.5]
    own, others = (np.mean([run.correct.mean() for run in some]) for some in (runs[2:], runs[:2]))
    assert gains.gain[0] == pytest.approx(own - others) and gains.low[0] < gains.gain[0] < gains.high[0]
    with pytest.raises(ValueError, match="the same seeds"):
        gain_by_class(runs[:3], scans["test"], "bridged")


@pytest.mark.parametrize(
    "levels, real, worth",  # accuracies with 1, 4 and 16 real images, of which the middle one is reached
    [((0.5, 0.8, 0.8), 4, 0), ((0.5, 0.8, 0.8), 1, 3), ((0.5, 0.5, 0.8), 1, 0), ((1.0, 1.0, 1.0), 4, 0)],
)
def test_where_the_curve_is_flat_images_that_gain_nothing_are_worth_nothing(levels, real, worth):
    rows = [("vanilla_matched", n, seed, value) for n, value in zip((1, 4, 16), levels) for seed in range(3)]
    rows += [("bridged", real, seed, levels[1]) for seed in range(3)]
    found = exchange_rate(pd.DataFrame(rows, columns=["method", "shots", "seed", "value"]), "bridged", real, 80)
    assert abs(found.worth - worth) < 0.02  # between the points that are looked at


@pytest.mark.parametrize(
    "seeds, said",  # accuracies of each seed with 1, 4 and 16 real images
    [
        ([(0.5, 0.8, 0.75)] * 3, "over real images alone accuracy falls from 4 to 16 (80.0 to 75.0 %)"),
        ([(0.5, 0.7, 0.8), (0.5, 0.7, 0.8), (0.6, 0.5, 0.8)], ""),
        ([(0.5, 0.7, 0.7)] * 3, ""),
    ],
)
def test_a_curve_of_real_images_that_falls_is_told(seeds, said):
    values = [(n, seed, value) for seed, row in enumerate(seeds) for n, value in zip((1, 4, 16), row)]
    rows = [("vanilla_matched", *value) for value in values] + [("bridged", 1, seed, 0.65) for seed in range(3)]
    rows = pd.DataFrame(rows, columns=["method", "shots", "seed", "value"])
    found = exchange_rate(rows, "bridged", 1, 80)
    assert said in str(found) and ("isotonic" in str(found)) == bool(said)
    label = show_exchange(rows, found, "bridged").axes[0].get_legend_handles_labels()[1][0]
    assert ("fitted" in label) == bool(said)


@pytest.mark.parametrize(
    "levels, real, reached",  # accuracies with 1, 4 and 16 real images, and with synthetic ones beside `real`
    [
        ((0.12, 0.2, 0.7), 4, 0.45),  # steeper with more images, as from scratch: it was 5.5 more [6.0, 6.0]
        ((0.5, 0.4, 0.6), 4, 0.45),
        ((0.5, 0.7, 0.8), 4, 0.7),  # the reference itself, all but noise: it was 0.0 more [12.0, -3.0]
        ((0.8, 0.6, 0.7), 1, 0.7),
    ],
)
@pytest.mark.parametrize("noise", [0.0, 1e-6, 0.004])
def test_the_interval_of_a_rate_holds_the_rate(levels, real, reached, noise):
    shifts = [0.01 * (seed - 2.5) for seed in range(6)]
    rows = [("vanilla_matched", n, s, x + shifts[s]) for n, x in zip((1, 4, 16), levels) for s in range(6)]
    rows += [("bridged", real, s, reached + shifts[s] + noise * (-1) ** s) for s in range(6)]
    found = exchange_rate(pd.DataFrame(rows, columns=["method", "shots", "seed", "value"]), "bridged", real, 80)
    assert found.low <= found.worth <= found.high and math.isfinite(found.worth)


@pytest.mark.parametrize("real", [4, 16])
def test_the_interval_of_a_rate_holds_the_truth_where_the_curve_is_flat(real):
    rng, shots, held = np.random.default_rng(0), np.array([1.0, 4.0, 16.0]), 0
    for _ in range(400):  # twenty seeds; real images beyond four add nothing, and synthetic ones neither
        reference = np.array([0.5, 0.8, 0.8]) + rng.normal(0, 0.02, (20, 3))
        held += _possible(shots, reference, 0.8 + rng.normal(0, 0.02, 20), np.array([float(real)]), 0.95)[0]
    assert 0.92 < held / 400 < 0.98, "levelled seed by seed it held the truth in 85 %"
