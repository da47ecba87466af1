"""A method was called an arm until 0.2.0: stored results, old settings and old code go on working."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner

import synthnb
from synthnb.bridge import METHODS, Method, MethodResult, TransferConfig, run_method
from synthnb.evaluate import Baseline, best_by_validation, results_table
from synthnb.studies.claims import load_claims
from synthnb.studies.cover import cover_html, exchange_of, methods_html
from synthnb.studies.exchange import exchange_rate
from synthnb.studies.folder import RUN_FOLDER, read_record, read_results
from synthnb.studies.report import report
from synthnb.studies.sweep_page import summarise
from synthnb.studies.verdict import comparisons, is_of_methods, outcomes, verdict_line
from synthnb.train import TrainConfig

pytestmark = pytest.mark.usefixtures("warm_kernels")
ROOT = Path(__file__).parents[1]
OLD = [file.parent for file in sorted(ROOT.glob("outputs/*/*/results.json")) if '"arm"' in file.read_text()]
OF_METHODS = [run for run in OLD if is_of_methods(json.loads((run / "results.json").read_text()))]


def renamed(text: str) -> str:
    "What `results.json` would hold today; written here again, so that the reader is not judged by itself."
    return re.sub(r'"arm": ("[^"]*",\s*"method")', r'"source": \1', text).replace('"arm":', '"method":')


@pytest.mark.parametrize("run", OLD, ids=lambda run: f"{run.parent.name}-{run.name[:4]}")
def test_a_stored_run_reads_as_a_new_one(run):
    old, new = (json.loads(change((run / "results.json").read_text())) for change in (str, renamed))
    assert read_results(run) == new != old
    assert comparisons(old) == comparisons(new) and outcomes(old) == outcomes(new)
    assert verdict_line(old) == verdict_line(new) and methods_html(old) == methods_html(new)
    record = read_record(run)
    assert cover_html(old, record, run, "title") == cover_html(new, record, run, "title")
    for comparison in comparisons(new):
        assert repr(exchange_of(old, record, comparison)) == repr(exchange_of(new, record, comparison))


def test_runs_with_a_table_of_methods_are_among_them():
    assert len(OF_METHODS) >= 4 and all(comparisons(read_results(run)) for run in OF_METHODS)


@pytest.mark.parametrize("table", [str, renamed], ids=["a notebook from before", "one of today"])
def test_a_report_is_written_with_the_new_column(table, tmp_path, monkeypatch):
    monkeypatch.setenv(RUN_FOLDER, str(tmp_path))
    found = json.loads(table((OF_METHODS[0] / "results.json").read_text()))
    rows, summary = pd.DataFrame(found["rows"]), pd.DataFrame(found["summary"])
    kept = {name: found[name] for name in ("answers", "best_by_validation", "generated_sets") if name in found}
    report(rows, summary=summary, conclusion="done", tables={"curves": rows}, **kept)
    text = (tmp_path / "results.json").read_text()
    assert '"arm"' not in text and {"method", "seed", "value", "steps"} <= set(json.loads(text)["rows"][0])
    assert "arm" not in pd.read_csv(tmp_path / "curves.csv")
    assert comparisons(json.loads(text)) == comparisons(found)


def test_tables_of_users_are_read():
    rows = read_results(next(run for run in OF_METHODS if run.parent.name == "bridge_study"))["rows"]
    new = pd.DataFrame([row for row in rows if row["shots"]])
    old, best = new.rename(columns={"method": "arm"}), next(name for name in new.method.unique() if "bridged" in name)
    least = int(new[new.method == best].shots.min())
    assert repr(exchange_rate(old, arm=best, real=least, synthetic=80)) == repr(exchange_rate(new, best, least, 80))
    assert summarise(old, []).equals(summarise(new, []))
    runs = [
        dict(shots=1, seed=seed, accuracy=0.5 + 0.1 * i + 0.01 * seed, steps_stage1=1, steps_stage2=1, val_accuracy=i)
        | {"name": name}
        for i, name in enumerate(("vanilla_matched", "bridged"))
        for seed in range(5)
    ]
    was, now = ([SimpleNamespace(**run | {word: run["name"]}) for run in runs] for word in ("arm", "method"))
    assert results_table(was).equals(results_table(now)) and best_by_validation(was) == best_by_validation(now)


def test_claims_with_old_columns_are_read(tmp_path):
    file, old = ROOT / "nbs/experiments/claims.yaml", tmp_path / "claims.yaml"
    text = re.sub(r"(?<=[{ ])method: ", "arm: ", file.read_text())
    old.write_text(re.sub(r"\{source: ([^{}]*)\barm: ", r"{arm: \1method: ", text))
    assert "{arm: LAR, method: mixed_per_batch}" in old.read_text() and load_claims(old) == load_claims(file)


def test_old_settings_are_the_same_run(tmp_path):
    from synthnb.cli.commands import app

    told = []
    for name in ("arms", "methods"):
        (file := tmp_path / "given.yaml").write_text(yaml.safe_dump({name: ["vanilla_matched", "bridged"]}))
        command = ["run", "quickstart", "-f", str(file), "--dry-run", "--outputs", str(tmp_path)]
        told.append(CliRunner().invoke(app, command, catch_exceptions=False).output)
    assert told[0] == told[1] and "methods ['vanilla_matched', 'bridged']" in told[0]
    (tmp_path / "run.json").write_text(json.dumps({"parameters": {"arms": ["bridged"]}, "given": {}, "seconds": 1}))
    assert read_record(tmp_path) == {"parameters": {"methods": ["bridged"]}, "given": {}, "seconds": 1}


def test_old_imports_work():
    from synthnb import bridge
    from synthnb.bridge import ARMS, Arm, ArmResult, check_arms, run_arm, train_arm

    assert (ARMS, Arm, ArmResult, run_arm) == (METHODS, Method, MethodResult, run_method)
    assert train_arm is bridge.train_method and check_arms is bridge.check_methods
    with pytest.raises(ImportError, match="no_such_thing"):
        from synthnb.bridge import no_such_thing  # noqa: F401
    few, config = few_digits(), TransferConfig(TrainConfig(batch_size=8), steps=(1, 1), arm_mixup=0.3)
    assert config.method_mixup == config.arm_mixup == 0.3
    cnn = Path(synthnb.__file__).parent / "weights" / "cnn"
    found = run_arm(arm="vanilla", model=cnn, real=few, synthetic=None, test=few, config=config)
    assert (
        found.method == found.arm == "vanilla"
        and Baseline(arm="a", seed=0, shots=1, correct=[], per_class=0).arm == "a"
    )


def few_digits():
    from synthnb.data import digits, few_shot

    return few_shot(digits(32)["train"], 1, 0)


WORD = re.compile(r"(?<![a-zA-Z])(?:arms?|ARMS?)(?![a-z])|(?<![a-zA-Z])Arms?(?![a-z])|(?<=[a-z])Arms?(?![a-z])")


def test_one_place_knows_the_old_word():
    told = []
    for file in [*ROOT.glob("nbs/**/*.ipynb"), *ROOT.glob("synthnb/**/*.py"), *ROOT.glob("nbs/**/*.md")]:
        text = file.read_text(encoding="utf-8")
        if file.suffix == ".ipynb":
            text = "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"])
        if file.stem not in ("renamed", "_modidx"):
            told += [f"{file.relative_to(ROOT)}: {line}" for line in text.splitlines() if WORD.search(line)]
    assert not told
    assert WORD.search("run_arm(1)") and WORD.search("ArmResult") and not WORD.search("warm alarm Army armour harm")
