"""When an attempt at the record counts."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
from record import counts

CLEAR, MINUTES = [0.76, 0.77, 0.75, 0.76, 0.77], [0.2, 0.21, 0.19, 0.2, 0.2]


@pytest.mark.parametrize(
    "accuracies, minutes, before, right",
    [
        (CLEAR, MINUTES, None, True),
        (CLEAR[:4], MINUTES[:4], None, False),  # too few seeds
        ([0.758, 0.736, 0.74, 0.755, 0.771, 0.713, 0.756, 0.725], [0.2] * 8, None, False),  # not surely above the bar
        (CLEAR, MINUTES, [0.3, 0.31, 0.29, 0.3, 0.3], True),
        (CLEAR, MINUTES, [0.21, 0.2, 0.22, 0.2, 0.2], False),  # not surely faster
        (CLEAR, MINUTES, [0.1, 0.11, 0.1, 0.1, 0.1], False),  # slower
    ],
)
def test_an_attempt_counts_only_if_it_is_surely_above_and_faster(accuracies, minutes, before, right):
    assert counts(accuracies, minutes, before) is right
