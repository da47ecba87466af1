"""Intervals that stay possible, and verdicts that know how many were asked.

nbs/core/intervals.ipynb has the simulations.
"""

import numpy as np
import pytest
from scipy import stats

from synthnb.core.intervals import accuracy_interval, bounded_interval, judge, mean_interval
from synthnb.studies.advise import _behind_best


@pytest.mark.parametrize(
    "values", [[1, 1, 1, 0.999, 1], [0.99, 0.9, 1, 0.97, 0.95], [0, 0, 0.001, 0, 0], [0.724, 0.6, 0.8, 0.9, 0.65]]
)
def test_an_accuracy_never_leaves_the_possible(values):
    "Student's t on the accuracies themselves went to 105.1 % in the README."
    found = accuracy_interval(values)
    assert 0 < found.low < found.high < 1


def test_near_100_percent_it_holds_the_truth():
    "The mean of logits held it in 45 % of such experiments, with five to twenty seeds and 10 to 600 images."
    rng = np.random.default_rng(0)
    for images, spread in ((10, 0.02), (50, 0.01), (600, 0.02)):
        size = 0.97 * 0.03 / spread**2 - 1
        drawn = rng.binomial(images, rng.beta(0.97 * size, 0.03 * size, (2000, 20))) / images
        found = [accuracy_interval(own) for own in drawn if np.ptp(own)]
        assert np.mean([one.low <= 0.97 <= one.high for one in found]) > 0.93


def test_three_seeds_are_points_and_no_interval():
    found = accuracy_interval([0.555, 0.724, 0.894])
    assert np.isnan([found.low, found.high]).all() and found.mean == pytest.approx(0.7243, abs=1e-3)


def test_one_of_many_differences_is_not_better_for_being_one_of_many():
    rng = np.random.default_rng(3)
    single, seeds = [], 5
    for _ in range(300):
        values = rng.normal(0, 0.02, (15, seeds)) - rng.normal(0, 0.02, (1, seeds))
        single.append(
            [
                any(abs(stats.ttest_1samp(row, 0).statistic) > stats.t.ppf(0.975, seeds - 1) for row in values),
                any(v.name in ("better", "worse") for v in judge(dict(enumerate(values))).values()),
            ]
        )
    each, holm = np.mean(single, axis=0)
    assert each > 0.2, "an interval for each comparison by itself"
    assert holm < 0.05 + 2 * (0.05 * 0.95 / 300) ** 0.5


def test_a_difference_that_was_not_seen_is_not_equivalence():
    noise = np.array([-0.06, 0.05, -0.03, 0.04, 0.0])
    assert judge({"a": noise + 0.002})["a"].name == "inconclusive"
    assert judge({"a": noise / 20 + 0.002})["a"].name == "equivalent"
    assert judge({"a": noise / 20 + 0.002}, margin=0.003)["a"].name == "inconclusive"


def test_more_seeds_settle_what_they_are_said_to():
    told = judge({"a": np.tile([0.03, -0.005, 0.02, 0.001, 0.01], 1)})["a"]
    assert told.name == "inconclusive" and told.more_seeds
    n, deviation = 5 + told.more_seeds, np.std([0.03, -0.005, 0.02, 0.001, 0.01], ddof=1)
    t = 0.0112 / deviation * np.array([n, n - 1]) ** 0.5
    enough = t > stats.t.ppf(0.975, np.array([n, n - 1]) - 1)
    assert enough.tolist() == [True, False]


def test_few_test_images_hide_more():
    noise = [0.01, 0.02, 0.03, 0.02, 0.025]
    assert judge({"a": noise}, {"a": 0.02})["a"].smallest > 1.5 * judge({"a": noise}, {"a": 0})["a"].smallest


@pytest.mark.parametrize("values", [[1] * 5, [0.9] * 6])
def test_equal_seeds_have_no_interval(values):
    "It had both ends below the mean: 100.0 % [99.9, 99.9]."
    assert np.isnan(accuracy_interval(values).low)


@pytest.mark.parametrize("seed", range(5))
def test_a_mean_lies_in_its_interval(seed):
    rng = np.random.default_rng(seed)
    for _ in range(200):
        values = np.clip(1 - rng.exponential(10.0 ** rng.integers(-5, -1)) * rng.random(rng.integers(5, 11)), 0, 1)
        for own in (values, 1 - values):
            found = accuracy_interval(own)
            assert np.isnan(found.low) or 0 <= found.low <= found.mean <= found.high <= 1


def test_equivalent_is_not_said_of_methods_that_differ_on_other_test_images():
    "Seeds that agree on 600 images called a true difference of the whole margin equivalent in 8 to 16 % of test sets."
    noise = np.array([-0.002, 0.001, 0.002, -0.001, 0])
    assert judge({"a": noise}, {"a": 0.001})["a"].name == "equivalent"
    told = judge({"a": noise}, {"a": 0.0065})["a"]
    assert told.name == "inconclusive" and told.more_seeds is None, "no number of seeds replaces test images"


@pytest.mark.parametrize("methods", [3, 7, 15])
def test_the_advisor_drops_none_of_equals(methods):
    "An interval for each gap dropped one in 69 % of probes with 15 methods."
    rng, dropped, alone = np.random.default_rng(methods), 0, 0
    for _ in range(200):
        values = rng.normal(0, 0.05, (1, 3)) + rng.normal(0, 0.02, (methods, 3))
        gaps, half = _behind_best(values)
        dropped += bool((gaps < -half).any())
        best = values[values.mean(1).argmax()]
        pairs = [row - best for row in values if not np.array_equal(row, best)]
        alone += any(pair.mean() + stats.t.ppf(0.975, 2) * pair.std(ddof=1) / 3**0.5 < 0 for pair in pairs)
    assert dropped / 200 < 0.05 + 2 * (0.05 * 0.95 / 200) ** 0.5
    assert alone > dropped


def test_an_interval_of_shares_without_a_number_of_images_stays_in_0_to_1():
    shares = [1.0, 0.97, 0.99]
    assert mean_interval(shares).high > 1 >= bounded_interval(shares).high
    assert bounded_interval([3.0, 4.0, 5.0]) == mean_interval([3.0, 4.0, 5.0]), "what is no share is left alone"
