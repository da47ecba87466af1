"""Verdicts of tables and answers: other test images, one family of methods, and the luck of a seed."""

import numpy as np
import pytest

from synthnb.core.intervals import image_error, judge
from synthnb.evaluate import Baseline, results_table
from synthnb.studies.alternatives import answer
from synthnb.studies.cover import caveats, exchange_of
from synthnb.studies.verdict import certainty, comparisons


@pytest.mark.parametrize("images", [36, 600, 2000])
@pytest.mark.parametrize("seeds", [3, 5])
def test_equal_methods_are_not_told_apart_by_the_test_images(images, seeds):
    "Where two disagree about 6 % of the images with every seed, one was better or worse in 6 to 85 % of studies."
    rng, found = np.random.default_rng(images), []
    for _ in range(400):
        apart = rng.choice([1, -1, 0], images, p=[0.03, 0.03, 0.94]) * (rng.random((seeds, images)) < 0.97)
        said = [judge({"a": apart.mean(1)}, {"a": error})["a"].name for error in (image_error(apart), 0)]
        found.append([name in ("better", "worse") for name in said])
    now, before = np.mean(found, axis=0)
    assert now < 0.05 + 2 * (0.05 * 0.95 / 400) ** 0.5 and now < before


def rows(method, share, seen, synthetic, images=4000, seeds=5, rng=np.random.default_rng(0)):
    return [
        Baseline(method, seed, 1, rng.random(images) < own, own, seen, synthetic)
        for seed, own in enumerate(share + rng.normal(0, 0.01, seeds))
    ]


def as_stored(runs) -> list[dict]:
    """The summary of a run's results.json."""
    return [{k: v if v == v else None for k, v in row.items()} for row in results_table(runs).to_dict("records")]


def test_another_reference_asks_as_many_questions():
    "Methods with and without generated images were corrected apart, so a rival seemed significantly worse."
    base = rows("vanilla_matched", 0.76, 0.7, 0)
    others = [rows(f"frozen {i}", 0.765, 0.7, 0) for i in range(4)]
    drawn = [rows(f"synthetic {i}", 0.77, 0.71, 80) for i in range(4)]
    best = rows("clip_probe", 0.80, 0.8, 0)
    every = [row for own in (base, best, *others, *drawn) for row in own]
    told = answer(every)
    [found] = comparisons({"summary": as_stored(every), "answers": {"1": told.record}})
    assert (found.against, found.images_counted) == ("clip_probe", True)
    asked = {line.method: line for line in found.lines if line.method not in ("clip_probe", told.best)}
    runs = {run.method: [] for run in every}
    for run in every:
        runs[run.method].append(run)
    differences, errors = {}, {}
    for method in [*asked, told.best]:
        pairs = list(zip(runs[method], runs["clip_probe"]))
        differences[method] = [own.accuracy - other.accuracy for own, other in pairs]
        errors[method] = image_error(np.stack([np.subtract(a.correct, b.correct, dtype=float) for a, b in pairs]))
    whole = judge(differences, errors)
    assert len(whole) == 9
    assert all(line.verdict == whole[method].name for method, line in asked.items())
    assert all(line.gain.low == pytest.approx(whole[method].gain.low) for method, line in asked.items())


def test_a_lucky_seed_does_not_choose_the_method_that_it_is_counted_for():
    "The best of all seeds' validation accuracy was compared on the same seeds."
    plain = [Baseline("plain", s, 1, np.arange(1000) < 500, 0.5, 0.5, 0) for s in range(3)]
    lucky = []
    for method in range(3):  # each method is far ahead with one seed, on both kinds of images
        for seed in range(3):
            share = 0.9 if method == seed else 0.5
            lucky.append(Baseline(f"with {method}", seed, 1, np.arange(1000) < 1000 * share, share, share, 80))
    assert answer(plain + lucky).verdict.gain.mean == 0


@pytest.mark.parametrize("seeds, verdict", [(2, "inconclusive"), (5, "better")])
def test_an_answer_of_an_older_run_has_the_interval_of_today(seeds, verdict):
    "The sentence kept the stored interval while the table under it was computed anew; two seeds never answer."
    every = rows("vanilla_matched", 0.5, 0.5, 0, seeds=seeds) + rows("with", 0.9, 0.9, 80, seeds=seeds)
    told = answer(every)
    assert told.verdict.name == verdict
    older = told.record | {"low": -99.0, "high": 99.0}
    line = comparisons({"summary": as_stored(every), "answers": {"1": older}})[0].winner
    assert line.verdict == verdict
    assert (line.gain.low == pytest.approx(told.verdict.gain.low)) == (seeds == 5)


def test_a_row_keeps_its_own_gain_where_seeds_chose_other_methods():
    "The table had the accuracy of one method beside the gain of whichever the seeds had chosen."
    base = rows("vanilla_matched", 0.5, 0.5, 0)
    first, second = rows("a", 0.6, 0.6, 80), rows("b", 0.7, 0.6, 80)
    second = [Baseline(r.method, r.seed, 1, r.correct, r.accuracy, 0.9 if r.seed == 0 else 0.55, 80) for r in second]
    told = answer(base + first + second)
    [found] = comparisons({"summary": as_stored(base + first + second), "answers": {"1": told.record}})
    own = np.mean([r.accuracy for r in (first if told.best == "a" else second)]) - np.mean([r.accuracy for r in base])
    assert found.row.gain.mean == pytest.approx(own) and found.winner.gain.mean == pytest.approx(told.verdict.gain.mean)
    assert abs(found.row.gain.mean - found.winner.gain.mean) > 0.01
    assert found.winner.accuracy == pytest.approx(told.accuracy) and found.row.accuracy != found.winner.accuracy
    assert f"over all of them `{told.best}` is {100 * own:+.1f} points" in certainty(found)


def test_methods_with_other_seeds_are_not_paired_by_their_place():
    base, same = rows("vanilla_matched", 0.5, 0.5, 0), rows("a", 0.6, 0.6, 80)
    other = [Baseline("b", r.seed + 10, 1, r.correct, r.accuracy, 0.4, 80) for r in rows("b", 0.9, 0.4, 80)]
    told = answer(base + same).record
    [found] = comparisons({"summary": as_stored(base + same + other), "answers": {"1": told}})
    assert {line.method for line in found.lines if line.gain.n} == {"a"} and found.images_counted is False


def test_an_answer_says_which_methods_it_leaves_out_and_why():
    "A method with fewer seeds than the others, and so the best one, was left out silently."
    every = rows("vanilla_matched", 0.5, 0.5, 0) + rows("a", 0.6, 0.6, 80) + rows("b", 0.9, 0.9, 80, seeds=3)
    every += rows("c", 0.9, float("nan"), 0)
    told = answer(every)
    assert told.best == "a" and str(told).endswith(
        " Left out: `b` (seeds 0..2 of 0..4), `c` (not measured on validation images)."
    )
    limits = caveats({"answers": {"1": told.record}}, {})
    assert limits == ["The answer with 1 real images per class leaves out " + told.left_out + "."]
    assert "Left out" not in str(answer(every[:10])) and "left_out" not in answer(every[:10]).record


def test_an_answer_takes_the_seeds_that_both_kinds_have():
    base, fewer = rows("vanilla_matched", 0.5, 0.5, 0), rows("frozen", 0.55, 0.5, 0, seeds=3)
    told = answer(base + fewer + rows("a", 0.6, 0.6, 80, seeds=3))
    assert (told.best, told.alternative, told.verdict.gain.n) == ("a", "frozen", 3)
    assert told.left_out == "`vanilla_matched` (seeds 0..4, not 0..2)"
    with pytest.raises(ValueError, match=r"the seeds of one without \(a: 0, 1; vanilla_matched: 0\.\.4\): run them"):
        answer(base + rows("a", 0.6, 0.6, 80, seeds=2))


def test_a_page_says_why_it_has_no_exchange_rate():
    "Where one seed of the reference was missing at four images there was no sentence, and no reason."
    every = rows("vanilla_matched", 0.5, 0.5, 0) + rows("a", 0.6, 0.6, 80)
    [study] = comparisons({"summary": as_stored(every)})
    numbers = [dict(method=run.method, shots=1, seed=run.seed, value=run.accuracy) for run in every]
    numbers += [dict(method="vanilla_matched", shots=4, seed=seed, value=0.7) for seed in range(4)]
    told = exchange_of({"rows": numbers, "images_per_class": 80}, {}, study)
    assert told == (
        "No exchange rate of `a`: 'vanilla_matched' has seeds 0..3 of 0..4 with 4 real images: "
        "it needs the same seeds as 'a' at every number of them."
    )


def test_unknown_errors_of_test_images_are_not_counted():
    summary = as_stored(rows("vanilla_matched", 0.5, 0.5, 0) + rows("a", 0.6, 0.6, 80))
    for nothing in ({}, None, {"vanilla_matched": 0.0, "a": 0.0}):
        [found] = comparisons({"summary": [row | {"test_errors": nothing} for row in summary]})
        assert not found.images_counted and "on these test images alone" in certainty(found)


def test_seeds_that_agree_by_accident_are_no_certainty():
    assert judge({"a": [0.1, 0.1, 0.1, 0.1 + 1e-10]})["a"].name == "inconclusive"
    for error in (float("nan"), None, 0.0):
        assert judge({"a": [0.1] * 5}, {"a": error})["a"].name == "inconclusive"
    told = judge({"a": [0.1] * 5}, {"a": 0.01})["a"]
    assert told.name == "better" and told.gain.high - told.gain.low == pytest.approx(2 * 1.959964 * 0.01, rel=1e-5)
