"""Best against worst: the interval covers what is true, at every number of seeds and settings.

The ledger judges by it."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from synthnb.studies.spread import _spread_ends, best_to_worst


def made_up(
    seeds: int, settings: int, means=0.0, alike: float = 0.0, uneven: float = 1.0, times: int = 8000
) -> np.ndarray:
    """Accuracies [times, seeds, settings]: a seed's own luck, and errors.

    The errors are alike at neighbouring settings or larger at one end."""
    rng = np.random.default_rng((seeds, settings))
    apart = np.abs(np.subtract.outer(np.arange(settings), np.arange(settings)))
    mixed = np.linspace(1, uneven, settings)[:, None] * np.linalg.cholesky(alike**apart if alike else np.eye(settings))
    return (
        0.8
        + np.asarray(means)
        + 0.02 * (rng.normal(size=(times, seeds, 1)) + rng.normal(size=(times, seeds, settings)) @ mixed.T)
    )


@pytest.mark.parametrize("seeds", [2, 3, 4, 6, 10])
@pytest.mark.parametrize("settings", [2, 3, 4, 6])
def test_equal_settings_are_seldom_called_different(seeds, settings):
    for kind in ({}, {"alike": 0.8}, {"uneven": 3.0}):
        difference, low, high = _spread_ends(made_up(seeds, settings, **kind))
        assert (low == 0).mean() >= 0.94 and (high >= difference).all(), kind


@pytest.mark.parametrize("means", [[0, 0, 0, 0.05], [0, 0.02, 0.04, 0.06], [0, 0, 0.03, 0.03]], ids=str)
def test_true_difference_is_in_the_interval(means):
    for seeds in (3, 6):
        _, low, high = _spread_ends(made_up(seeds, 4, means))
        truth = max(means) - min(means)
        assert ((low <= truth) & (truth <= high)).mean() >= 0.94


def test_two_settings_are_a_paired_interval_and_an_order_of_settings_means_nothing():
    values = pd.DataFrame(np.random.default_rng(0).normal(0.8, 0.02, (5, 2)), columns=["a", "b"])
    paired = stats.ttest_1samp(values.b - values.a, 0).confidence_interval(0.97)
    found = best_to_worst(values)
    ends = (paired.low, paired.high) if found.best == "b" else (-paired.high, -paired.low)
    assert np.allclose(found.interval.ends, np.maximum(ends, [0, -1])) and found.interval.n == 5
    more = values.assign(c=values.a + 0.1)
    assert best_to_worst(more[["c", "b", "a"]]) == best_to_worst(more) and best_to_worst(more).best == "c"


def test_words_for_a_margin_and_what_is_refused():
    sure = pd.DataFrame([[0.80, 0.90, 0.81], [0.81, 0.91, 0.82], [0.79, 0.895, 0.80]], columns=[1.0, 2.0, 4.0])
    found = best_to_worst(sure)
    assert (found.best, found.worst) == (2.0, 1.0) and [found.against(m) for m in (0.03, 0.1, 0.3)] == [
        "more than",
        "not significantly different from",
        "less than",
    ]
    assert best_to_worst(sure.head(1)).against(0.03) == "one seed cannot tell from"
    for bad in (sure[[1.0]], sure.head(0), sure.replace(0.91, np.nan)):
        with pytest.raises(ValueError, match="two settings or more"):
            best_to_worst(bad)
