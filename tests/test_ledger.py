"""The ledger says what claims and committed reports give, and what it claims about experiments can be so."""

import re
import subprocess
from pathlib import Path

import pytest

from synthnb.studies.claims import VERDICTS, Comparison, Run, _entry_for, expanded, ledger_entries, load_claims
from synthnb.studies.ledger import ledger_markdown
from synthnb.studies.parameters import declared_parameters

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENTS = ROOT / "nbs/experiments"
CLAIMS = load_claims(EXPERIMENTS / "claims.yaml").claims
PAGE = ROOT / "outputs/ledger.md"


@pytest.fixture(scope="module")
def should_be():
    return ledger_markdown(ROOT)


def test_page_is_that_of_the_claims_and_the_committed_reports(should_be):
    assert PAGE.read_text(encoding="utf-8") == should_be, "run `synthnb ledger` and commit outputs/ledger.md"


def test_a_claims_verdict_is_that_of_its_one_primary_comparison(should_be, tmp_path):
    by_claim = {}
    for entry in ledger_entries(ROOT):
        by_claim.setdefault(entry.claim.name, []).append(entry)
    for name, entries in by_claim.items():
        line = next(line for line in should_be.splitlines() if f"](#{name}) |" in line)
        first = [entry for entry in entries if entry.comparison and entry.comparison.primary] or entries
        assert len(first) == 1 and f"| **{first[0].verdict}** |" in line, name
    text = (EXPERIMENTS / "claims.yaml").read_text(encoding="utf-8")
    (tmp_path / "claims.yaml").write_text(text.replace("primary: after", "primary: ''", 1), encoding="utf-8")
    with pytest.raises(ValueError, match="label-ambiguity needs one primary comparison"):
        load_claims(tmp_path / "claims.yaml")


def test_git_knows_the_page():
    listed = subprocess.run(
        ["git", "ls-files", "outputs/ledger.md"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert listed.strip(), "git add outputs/ledger.md"


def test_links_lead_somewhere(should_be):
    links = re.findall(r"\]\(([^)]+)\)", should_be)
    headings = re.findall(r"^#+ (.+)$", should_be, re.MULTILINE)
    missing = [
        link for link in links if not (link[1:] in headings if link[0] == "#" else (PAGE.parent / link).is_file())
    ]
    assert links and not missing


def test_commands_name_files_that_exist(should_be):
    named = re.findall(r"nbs/experiments/params/\S+?\.yaml", should_be)
    assert named and all((ROOT / name).is_file() for name in named)


def test_verdicts_and_effects_are_not_typed():
    said = (EXPERIMENTS / "claims.yaml").read_text().split("\nclaims:\n")[1]
    assert not [word for word in VERDICTS if word in said], "a verdict is computed"


def test_conditions_are_parameters_of_their_experiments():
    for claim in CLAIMS:
        for comparison in expanded(claim):
            declared = declared_parameters(EXPERIMENTS / f"{comparison.experiment}.ipynb")
            assert set(comparison.where) <= set(declared), f"{claim.name}: {comparison.what}"


def test_every_method_is_named_by_its_experiment():
    """A misspelt method would be `not run` for ever.

    What no committed run has must stand in the notebook or in `METHODS`."""
    from synthnb.bridge import METHODS

    entries = [entry for entry in ledger_entries(ROOT) if entry.comparison and entry.effect is None]
    sources = {path.stem: path.read_text(encoding="utf-8") for path in EXPERIMENTS.glob("*.ipynb")}
    for entry in entries:
        for side in [*entry.comparison.plus, *entry.comparison.minus]:
            text = sources[entry.comparison.experiment]
            for named in (str(side[column]) for column in ("method", "source") if column in side):
                # "diverse, dual" and "LAR, 8 images" are put together there
                parts = [part for part in re.split(r", (?:\d+ images)?", named) if part]
                assert named in METHODS or all(part in text for part in parts), f"{entry.claim.name}: {named}"


def made_up(values: dict[str, list[float]], where: Path, **parameters) -> Run:
    rows = [
        {"method": method, "seed": seed, "value": value}
        for method, own in values.items()
        for seed, value in enumerate(own)
    ]
    return Run(
        where / "outputs/bridge_study/made-up",
        {"parameters": parameters},
        {"rows": rows, "glyphworld": True, "generated_sets": 9, "time": {"a": 3, "b": None}},
    )


@pytest.mark.parametrize(
    "values, verdict",
    [
        ({"a": [0.8, 0.9, 0.85], "b": [0.7, 0.81, 0.74]}, "reproduced"),
        ({"a": [0.7, 0.81, 0.74], "b": [0.8, 0.9, 0.85]}, "contradicted"),
        ({"a": [0.8, 0.7, 0.9], "b": [0.7, 0.8, 0.9]}, "inconclusive"),
        ({"a": [0.9], "b": [0.1]}, "inconclusive"),  # one seed is no evidence, however far apart
        ({"a": [0.9, 0.9]}, "not run"),
    ],
)
def test_interval_decides(tmp_path, values, verdict):
    comparison = Comparison(
        what="x", plus=[{"method": "a"}], minus=[{"method": "b"}], expect="above", experiment="bridge_study"
    )
    assert _entry_for(CLAIMS[0], comparison, [made_up(values, tmp_path)]).verdict == verdict


def test_newer_run_counts_only_if_it_meets_the_conditions(tmp_path):
    good, harm = ({"a": [high, high + 0.01, high], "b": [0.5, 0.52, 0.51]} for high in (0.8, 0.2))
    newest_first = [
        made_up(harm, tmp_path, classifier="vit"),
        made_up(good, tmp_path, classifier="cnn"),
        made_up(harm, tmp_path, classifier="cnn"),
    ]
    comparison = Comparison(
        what="x",
        plus=[{"method": "a"}],
        minus=[{"method": "b"}],
        expect="above",
        experiment="bridge_study",
        where={"classifier": "cnn"},
    )
    assert _entry_for(CLAIMS[0], comparison, newest_first).verdict == "reproduced"
    assert _entry_for(CLAIMS[0], comparison.model_copy(update={"where": {}}), newest_first).verdict == "contradicted"
    assert (
        _entry_for(CLAIMS[0], comparison.model_copy(update={"where": {"shots": 1}}), newest_first).verdict == "not run"
    )


def test_other_seeds_are_an_error_and_a_missing_end_is_no_number(tmp_path):
    run = made_up({"a": [0.9, 0.9], "b": [0.1]}, tmp_path)
    pair = Comparison(
        what="x", plus=[{"method": "a"}], minus=[{"method": "b"}], expect="above", experiment="bridge_study"
    )
    with pytest.raises(ValueError, match="different seeds"):
        _entry_for(CLAIMS[0], pair, [run])
    never = pair.model_copy(
        update={"plus": [{"table": "time", "method": "b"}], "minus": [{"table": "time", "method": "a"}]}
    )
    assert _entry_for(CLAIMS[0], never, [run]).verdict == "inconclusive"


BEST = Comparison(
    what="x",
    plus=[{"method": "a", "best_over": "scale"}],
    minus=[{"table": "margin", "method": "hardly"}],
    expect="below",
    experiment="bridge_study",
)


def at_scales(values: dict[float, list[float]], where: Path, hardly: float = 0.03) -> Run:
    rows = [
        {"method": "a", "scale": scale, "seed": seed, "value": value}
        for scale, own in values.items()
        for seed, value in enumerate(own)
    ]
    return Run(
        where / "outputs/bridge_study/made-up",
        {"parameters": {}},
        {"rows": rows, "glyphworld": True, "generated_sets": 9, "margin": {"hardly": hardly}},
    )


@pytest.mark.parametrize(
    "values, verdict",
    [
        ({1: [0.80, 0.81, 0.79], 2: [0.801, 0.811, 0.789], 4: [0.802, 0.809, 0.791]}, "reproduced"),
        ({1: [0.80, 0.81, 0.79], 2: [0.801, 0.811, 0.789], 4: [0.90, 0.91, 0.895]}, "contradicted"),
        ({1: [0.80, 0.85, 0.79], 2: [0.83, 0.80, 0.81], 4: [0.79, 0.83, 0.84]}, "inconclusive"),
        ({1: [0.8], 2: [0.8], 4: [0.8]}, "inconclusive"),
        ({1: [0.8, 0.8, 0.8]}, "not run"),
    ],
)
def test_best_less_worst_decides_by_an_interval_for_all_pairs(tmp_path, values, verdict):
    assert _entry_for(CLAIMS[0], BEST, [at_scales(values, tmp_path)]).verdict == verdict


def test_best_less_worst_has_one_side_and_one_row_a_seed(tmp_path):
    run = at_scales({1: [0.8, 0.8], 2: [0.7, 0.7]}, tmp_path)
    assert _entry_for(CLAIMS[0], BEST, [run]).effect.mean == pytest.approx(0.07)
    with pytest.raises(ValueError, match="one plus side"):
        _entry_for(CLAIMS[0], BEST.model_copy(update={"minus": [{"method": "a", "scale": 1}]}), [run])
    run.results["rows"].append(run.results["rows"][0])
    with pytest.raises(ValueError, match="several rows of a seed at one scale"):
        _entry_for(CLAIMS[0], BEST, [run])


@pytest.mark.parametrize(
    "method, sets, verdict, told",
    [
        ("a", 3, "reproduced", ""),
        ("a", 1, "inconclusive", "one generated set for all seeds: not judged"),
        ("bridged++", 1, "not run", "withdrawn"),
        ("bridged++", 3, "reproduced", ""),
        ("bridged++, 150 synthetic", 1, "not run", "withdrawn"),
        ("bridged", 1, "inconclusive", "one generated set"),
    ],
)
def test_seeds_that_share_a_generated_set_decide_nothing(tmp_path, method, sets, verdict, told):
    run = made_up({method: [0.8, 0.9, 0.85], "b": [0.7, 0.81, 0.74]}, tmp_path, seeds=[0, 1, 2])
    run.results["generated_sets"] = sets
    pair = Comparison(
        what="x", plus=[{"method": method}], minus=[{"method": "b"}], expect="above", experiment="bridge_study"
    )
    found = _entry_for(CLAIMS[0], pair, [run], ["bridged++"])
    assert found.verdict == verdict and told in found.note
    assert _entry_for(CLAIMS[0], pair.model_copy(update={"generated": False}), [run]).verdict == "reproduced"
