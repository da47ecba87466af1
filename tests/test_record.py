"""When an attempt at the record counts, and that the guide's row is the record's file."""

import csv
import re
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
from record import SEEDS, asked, counts, p_values, started

ROOT = Path(__file__).resolve().parents[1]
NEAR = [0.758, 0.736, 0.74, 0.755, 0.771, 0.713, 0.756, 0.725]  # an attempt of eight seeds at 73 %
CLEAR = [0.76 + 0.001 * (seed % 5) for seed in range(SEEDS)]
# one machine, slower by the hour
DRIFT = [0.2 + 0.002 * seed + 0.001 * (seed % 2) for seed in range(SEEDS)]


@pytest.mark.parametrize(
    "accuracies, minutes, before, right",
    [
        (CLEAR, DRIFT, None, True),
        (CLEAR[:8], DRIFT[:8], None, False),  # too few seeds
        (NEAR, [0.2] * 8, None, False),
        ([0.73 + 0.02 * (-1) ** seed for seed in range(SEEDS)], DRIFT, None, False),  # not surely above the bar
        (CLEAR, DRIFT, [one + 0.02 - 0.001 * (seed % 3) for seed, one in enumerate(DRIFT)], True),
        (CLEAR, DRIFT, [one + 0.005 * (-1) ** seed for seed, one in enumerate(DRIFT)], False),  # the same way
        (CLEAR, DRIFT, [one - 0.02 + 0.001 * (seed % 3) for seed, one in enumerate(DRIFT)], False),  # slower
    ],
)
def test_an_attempt_counts_only_if_it_is_surely_above_and_faster(accuracies, minutes, before, right):
    assert counts(accuracies, minutes, before) is right


def test_the_record_is_timed_seed_by_seed_and_not_as_a_constant():
    with pytest.raises(ValueError):
        p_values(CLEAR, DRIFT, [0.3] * (SEEDS - 1))  # minutes of other seeds
    gain = [one + 0.002 + 0.0005 * (seed % 3) for seed, one in enumerate(DRIFT)]
    assert p_values(CLEAR, DRIFT, gain)[1] < 1e-6, "the hour's drift cancels"


def test_a_way_is_asked_in_a_process_of_its_own_checkout(tmp_path):
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools/record.py").write_text(
        textwrap.dedent("""
            import os, sys
            print("a warning")
            for line in sys.stdin:
                assert os.environ["PYTHONPATH"] == sys.path[0].removesuffix("/tools") and int(line) < 2
                print("done", int(line) / 2, 0.25, flush=True)
        """)
    )
    way = started(tmp_path)
    assert [asked(way, seed) for seed in (0, 1)] == [(0.0, 0.25), (0.5, 0.25)]
    with pytest.raises(SystemExit, match="seed 2"):
        asked(way, 2)
    way.stdin.close()
    way.wait(timeout=10)


def test_the_guides_row_is_the_records_file():
    with (ROOT / "tools/record.csv").open(newline="") as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    assert len(rows) == SEEDS
    columns = [[row[name] for row in rows] for name in rows[0] if name != "seed"]
    section = (ROOT / "nbs/guides/results.md").read_text(encoding="utf-8").partition("\n## Record")[2]
    row = next(line for line in section.splitlines() if line.startswith("| `tools/record.py`"))
    assert f"| {100 * np.mean(columns[0]):.1f} % | {np.mean(columns[1]):.2f} | {SEEDS} |" in row
    worst = max(p_values(*columns))
    told = re.search(r"\| (yes|no): p = ([\d.]+) \|$", row)
    assert told and told[1] == ("yes" if counts(*columns) else "no") and float(told[2]) == float(f"{worst:.1g}")
