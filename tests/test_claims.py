"""The claims of both papers as commands, and the verdict of an earlier run without training."""

import re
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from synthnb.cli.commands import app
from synthnb.studies.claims import Entry, glyphworld_file, load_claims
from synthnb.studies.ledger import claim_lines, paper_lines

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
    assert re.search(r"\] points$", text, re.MULTILINE)


def test_a_verdict_follows_the_committed_runs(monkeypatch):
    monkeypatch.setattr(
        "synthnb.studies.ledger.ledger_entries", lambda root: [Entry(CLAIMS[0], None, "not run", note="nothing yet")]
    )
    assert claim_lines(ROOT)[0] == f"{CLAIMS[0].name} (paper {CLAIMS[0].paper}): not run"


def test_a_claim_is_run_by_its_experiment_here(monkeypatch):
    monkeypatch.chdir(ROOT)
    status, text = says("claim", "label-ambiguity", "--dry-run")
    assert status == 0 and "run lar_benchmark -f nbs/experiments/params/glyphworld/lar_benchmark.yaml" in text
    assert "nothing was started" in text
    files = {claim.name: glyphworld_file(ROOT, claim) for claim in CLAIMS if claim.compare}
    assert all(file.is_file() for _, file in files.values())
    assert (files["low-data"][0], files["low-data"][1].stem) == ("bridge_study", "bridge_mnist"), (
        "the primary's settings"
    )


def test_at_paper_scale_command_and_cost_are_printed(monkeypatch):
    monkeypatch.chdir(ROOT)
    named = next(claim for claim in CLAIMS if claim.experiment == "bridge_study")
    status, text = says("claim", named.name, "--paper")
    assert status == 0 and re.search(r"^synthnb (run|sweep) .*params/paper/\S+\.yaml$", text, re.MULTILINE)
    assert "80 GB (A100)" in text and "hours" in text and "synthnb doctor nbs/experiments/params/paper" in text
    for claim in CLAIMS:
        files = re.findall(r"nbs/experiments/params/paper/\S+\.yaml", "\n".join(paper_lines(ROOT, claim)))
        assert all((ROOT / file).is_file() for file in files)


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
