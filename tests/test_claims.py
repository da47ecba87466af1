"""The claims of both papers as commands, and the verdict of an earlier run without training."""

import json
import re
import shutil
from functools import cache
from pathlib import Path

import pytest
from typer.testing import CliRunner

from synthnb.cli.commands import app
from synthnb.cli.values import gather_parameters
from synthnb.core.intervals import Interval
from synthnb.studies.claims import Entry, asked_by, find_claim, glyphworld_file, ledger_entries, load_claims
from synthnb.studies.doctor import guess_experiment
from synthnb.studies.doctor_data import Size, check_set
from synthnb.studies.doctor_drawing import count_images
from synthnb.studies.ledger import _drawing_in, before_lines, claim_lines, paper_lines, run_lines
from synthnb.studies.parameters import resolve_parameters

ROOT = Path(__file__).resolve().parents[1]
CLAIMS = load_claims(ROOT / "nbs/experiments/claims.yaml").claims


def says(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, words)
    return done.exit_code, done.output


def test_claims_are_listed_with_their_verdicts(monkeypatch):
    monkeypatch.chdir(ROOT)
    status, text = says("claims")
    assert status == 0
    for claim in CLAIMS:
        assert re.search(
            rf"^{claim.name} \(paper {claim.paper}\): (reproduced|contradicted|inconclusive|not run)",
            text,
            re.MULTILINE,
        ), claim.name
    assert re.search(r"\] points, expected above 0$", text, re.MULTILINE)


def test_a_verdict_that_the_interval_alone_would_not_give_has_its_reason(monkeypatch):
    claim, why = CLAIMS[0], "one generated set for all seeds: not judged"
    compared = next(one for one in claim.compare if one.primary)
    above = Entry(claim, compared, "inconclusive", None, Interval(0.019, 0.008, 0.03, 3), why)
    monkeypatch.setattr("synthnb.studies.ledger.ledger_entries", lambda root: [above])
    head, _, effect, *_ = claim_lines(ROOT)
    assert head == f"{claim.name} (paper {claim.paper}): inconclusive ({why})"
    assert effect == f"    {compared.what}: +1.9 [+0.8, +3.0] points, expected above 0"


def test_a_verdict_follows_the_committed_runs(monkeypatch):
    monkeypatch.setattr(
        "synthnb.studies.ledger.ledger_entries", lambda root: [Entry(CLAIMS[0], None, "not run", note="nothing yet")]
    )
    assert claim_lines(ROOT)[0] == f"{CLAIMS[0].name} (paper {CLAIMS[0].paper}): not run (nothing yet)"


def test_a_claim_is_run_by_its_experiment_here(monkeypatch):
    monkeypatch.chdir(ROOT)
    status, text = says("claim", "label-ambiguity", "--dry-run")
    assert status == 0 and "run lar_benchmark -f nbs/experiments/params/glyphworld/lar_benchmark.yaml" in text
    assert "nothing was started" in text
    files = {claim.name: glyphworld_file(ROOT, claim) for claim in CLAIMS if claim.compare}
    assert all(file.is_file() for _, file in files.values())
    chosen = {name: (experiment, file.stem) for name, (experiment, file) in files.items()}
    assert chosen["low-data"] == ("bridge_study", "bridge_mnist"), "the primary's settings"
    assert chosen["few-shot-most"] == ("bridge_study", "bridge_mnist"), "the controls have no sixteen real images"
    assert chosen["spoilt-head"] == ("bridge_study", "bridge_controls_mnist"), "which has the method with a new head"


def test_how_long_a_claim_takes_is_said_before_and_that_it_goes_on(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    _, text = says("claim", "label-ambiguity", "--dry-run")
    took = r"^the committed run with these settings took (\d+ s|[0-9.]+ minutes) on \d+ cores \("
    assert re.search(took, text, re.MULTILINE)
    assert "the same command goes on from there" in text
    other = before_lines(ROOT, "bridge_study", {"shots": [1, 2], "classifier": "glyphworld/cnn", "threads": 99})
    assert "with other settings (shots)" in other[0]
    assert before_lines(ROOT, "no_study", {})[0] == before_lines(tmp_path, "lar_benchmark", {})[0], "not known"


@cache
def primaries() -> dict[str, Entry]:
    """The primary comparison of each claim that a committed run decides."""
    entries = [entry for entry in ledger_entries(ROOT) if entry.run and entry.comparison]
    return {entry.claim.name: entry for entry in entries if entry.comparison.primary}


def test_a_run_says_of_each_claim_what_the_ledger_says():
    """Three claims rest on one run, and each gets an answer of its own."""
    answers, names = set(), ("bridged-above-vanilla", "spoilt-head", "leep-rises")
    assert len({primaries()[name].run.folder for name in names}) == 1
    for name in names:
        first = primaries()[name]
        lines = run_lines(ROOT, first.claim, first.run.folder)
        answers.add(lines[0])
        assert lines[0].startswith(f"{name}, in glyphworld: {first.verdict}: {first.comparison.what}: ")
        assert f"{100 * first.effect.mean:+.1f} [" in lines[0] or "nats" in lines[0]
        assert Path(lines[1].removeprefix("figure: ")).is_file()
        assert [line.startswith("also ") for line in lines[2:-1]].count(False) == 0 and "need other runs" in lines[-1]
    assert len(answers) == 3


def test_a_new_run_is_judged_by_its_own_rows(tmp_path):
    old = primaries()["label-ambiguity"].run.folder
    new = tmp_path / old.parent.name / old.name
    shutil.copytree(old, new)
    results = json.loads((new / "results.json").read_text())
    for row in results["rows"]:
        if row.get("method") == "LAR, 8 images":
            row["value"] = 0.2 + row["seed"] / 1000
    (new / "results.json").write_text(json.dumps(results))
    claim = find_claim(ROOT, "label-ambiguity")
    assert "contradicted" in run_lines(ROOT, claim, new)[0] and "inconclusive" in run_lines(ROOT, claim, old)[0]
    elsewhere = run_lines(ROOT, claim, primaries()["low-data"].run.folder)
    assert "not judged: the run does not fit the claim's primary comparison" in elsewhere[0]


def test_claim_ends_with_the_claims_own_verdict(monkeypatch, tmp_path):
    """The command, where the run itself is done already."""
    old = primaries()["label-ambiguity"].run.folder
    shutil.copytree(old, tmp_path / old.parent.name / old.name)
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("synthnb.cli.studies.run", lambda *ways, **how: None)
    monkeypatch.setattr("synthnb.studies.folder.run_id", lambda notebook, parameters: old.name)
    status, text = says("claim", "label-ambiguity")
    assert status == 0 and "label-ambiguity, in glyphworld: inconclusive: right meanings, eight images" in text
    assert "first candidate is right for" not in text, "the run's general verdict answers another question"


def test_at_paper_scale_command_and_cost_are_printed(monkeypatch):
    monkeypatch.chdir(ROOT)
    named = next(claim for claim in CLAIMS if claim.experiment == "bridge_study")
    status, text = says("claim", named.name, "--paper")
    assert status == 0 and re.search(r"^synthnb (run|sweep) .*params/paper/\S+\.yaml$", text, re.MULTILINE)
    assert "80 GB (A100)" in text and "hours" in text and "synthnb doctor nbs/experiments/params/paper" in text
    for claim in CLAIMS:
        told = "\n".join(paper_lines(ROOT, claim))
        files = re.findall(r"^synthnb .*(nbs/experiments/params/paper/\S+\.yaml)$", told, re.MULTILINE)
        assert all((ROOT / file).is_file() for file in files)
        assert len(files) == told.count("images to draw: "), "a number of images, none, or not estimated"
        assert all("drawing" in part or "none" in part for part in told.split("images to draw: ")[1:])
        assert bool(files) == ("GPU memory: not estimated" in told or "80 GB (A100)" in told)
    low = paper_lines(ROOT, find_claim(ROOT, "low-data"))
    assert (
        low[1].startswith("synthnb run bridge_study -f ") and asked_by(find_claim(ROOT, "low-data")) == "bridge_study"
    )
    assert "    imagenet_study asks there what volume_study asks here" in paper_lines(
        ROOT, find_claim(ROOT, "auxiliary-norm")
    )


PAPER = ROOT / "nbs/experiments/params/paper"
SINGLE = sorted(set(PAPER.glob("*.yaml")) - set(PAPER.glob("*.grid.yaml")))  # `test_doctor` counts those of the grids
TENTH = Size(100, 9750)  # of the folder that volume_study.yaml says how to make


@pytest.mark.parametrize("file", SINGLE, ids=lambda file: file.stem)
def test_the_guides_numbers_of_images_are_the_doctors(file):
    """One source for the command and the guide."""
    given = gather_parameters(file, [])
    experiment = guess_experiment(file, given, sorted((ROOT / "nbs/experiments").glob("[!_.]*.ipynb")))[0]
    parameters = resolve_parameters(experiment, given)[1]
    size = check_set(parameters["real_data"])[1] if "real_data" in parameters else Size()
    counted = count_images(parameters, size if size.classes else TENTH)
    images, _ = _drawing_in(ROOT, file)
    if images and images != "none":
        each = len(parameters["seeds"]) if images.endswith("a seed") else 1
        assert int(images.split(" ")[0].replace(",", "")) * each == pytest.approx(counted, rel=0.03)


def test_an_unknown_claim_is_refused_with_what_is_near(monkeypatch):
    monkeypatch.chdir(ROOT)
    status, text = says("claim", "label-ambiguty")
    assert status == 2 and "label-ambiguity" in text and "synthnb claims" in text


def test_an_earlier_run_tells_its_verdict_again(tmp_path):
    run = next((ROOT / "outputs/quickstart").glob("2ae7*"))
    shutil.copytree(run, tmp_path / "quickstart" / run.name)
    status, text = says("report", str(tmp_path / "quickstart" / run.name))
    assert status == 0 and "not significant after correction for 7 methods" in " ".join(text.split())
    assert (tmp_path / "quickstart" / run.name / "report.html").is_file()
    (tmp_path / "quickstart" / run.name / "results.json").unlink()
    status, text = says("report", str(tmp_path / "quickstart" / run.name))
    assert status == 2 and "no finished run: there is no results.json" in " ".join(text.split())


@pytest.mark.parametrize("name", [claim.name for claim in CLAIMS if not claim.experiment])
def test_what_no_experiment_asks_is_said(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    status, text = says("claim", name)
    assert status == 2 and "no experiment here asks" in text
