"""The installed command, as a shell sees it (nbs/cli tests the rest)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from hostile_names import HOSTILE
from typer.testing import CliRunner

import synthnb
from synthnb.cli import app

COMMAND = Path(sys.executable).with_name("synthnb")


def test_version_from_anywhere(tmp_path):
    done = subprocess.run([COMMAND, "--version"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"synthnb {synthnb.__version__}\n")


def test_mistake_is_one_line(tmp_path):
    done = subprocess.run([COMMAND, "run", "nothing.ipynb"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (
        2,
        "",
        "error: there is no notebook nothing.ipynb: check its name; `synthnb run --help` lists the experiments\n",
    )


NAMES = [*HOSTILE, "shot"]


@pytest.fixture
def tiny(tmp_path) -> Path:
    cell = nbformat.v4.new_code_cell("shots: int = 1  # real images", metadata={"tags": ["parameters"]})
    nbformat.write(
        nbformat.v4.new_notebook(cells=[cell, nbformat.v4.new_code_cell("open('ran', 'w')")]), tmp_path / "tiny.ipynb"
    )
    return tmp_path / "tiny.ipynb"


def test_refused_parameters_exit_with_2_and_nothing_begins(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file, grid = tmp_path / "p.yaml", tmp_path / "grid.yaml"
    asked = [("run", tiny, "-p", name, "1") for name in NAMES]
    asked += [
        ("run", tiny, "-p", "shots", "four"),
        ("run", tiny, "-p", "shots"),
        ("run", tiny, "-f", file),
        ("doctor", file, "-e", tiny),
        ("doctor", file),
        ("doctor", file, "-e", "nowhere"),
        ("doctor", grid),
        ("sweep", grid),
    ]
    file.write_text("shot: 4")
    for text in (
        f"experiment: {tiny}\ngrid: {{shot: [1, 2]}}",
        f"experiment: {tiny}\ngrid: {{shots: [1, two]}}",
        "grid: {shots: [1]}",
        f"experiment: {tiny}\nbase: 3",
    ):
        grid.write_text(text)
        for words in asked if "shot:" in text else asked[-2:]:
            done = CliRunner().invoke(app, [str(word) for word in words], prog_name="synthnb")
            assert done.exit_code == 2 and done.output.splitlines()[-1].lower().startswith("error: "), (
                words,
                done.output,
            )
    done = CliRunner().invoke(app, ["run", str(tiny), "--no-such-option"])
    assert done.exit_code == 2, "as typer's own usage errors"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["grid.yaml", "p.yaml", "tiny.ipynb"], (
        "no run, no outputs"
    )


@pytest.mark.parametrize("base", ["3", "[1]", "words"])
def test_a_base_that_is_no_mapping_is_named_whatever_is_given_beside_it(tiny, tmp_path, base):
    grid = tmp_path / "grid.yaml"
    grid.write_text(f"experiment: {tiny}\nbase: {base}\ngrid: {{shots: [1]}}")
    for words in ([], ["-p", "shots=2"]):
        done = CliRunner().invoke(app, ["doctor", str(grid), *words], prog_name="synthnb")
        assert done.exit_code == 2 and "error: base must be a mapping of names to values" in done.output, done.output


def test_what_fails_after_the_start_exits_with_1(tiny, tmp_path):
    grid = tmp_path / "grid.yaml"
    grid.write_text(f"experiment: {tiny}\ngrid: {{shots: [1]}}")
    (tmp_path / "out").touch()
    for words in (("run", tiny), ("sweep", grid)):
        done = CliRunner().invoke(
            app, [str(word) for word in (*words, "--outputs", tmp_path / "out")], prog_name="synthnb"
        )
        assert done.exit_code == 1 and done.output.startswith("error: "), done.output


def test_from_names_to_images_by_two_processes(tmp_path, monkeypatch, warm_workers):
    monkeypatch.chdir(tmp_path)

    def synthnb_says(*words):  # here, where everything is imported once
        done = CliRunner().invoke(app, [str(word) for word in words], prog_name="synthnb")
        assert done.exit_code == 0, done.output
        return done.stdout

    synthnb_says("prompts", "three", "club", "-n", 2, "--out", "book.parquet")
    synthnb_says(
        "plan",
        "book.parquet",
        "-n",
        8,
        "--steps",
        3,
        "--scheduler",
        "DDIMScheduler",
        "--guidance-interval",
        0.2,
        0.8,
        "--shard-size",
        4,
        "--batch-size",
        4,
    )
    done = subprocess.run(
        [sys.executable, COMMAND, "generate", "plan.parquet", "--workers", "2", "--format", "png"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "16 images in 4 new shards" in done.stdout, done.stderr
    assert "is whole" in synthnb_says("verify", "plan")
    record = json.loads(synthnb_says("why", "plan/0001-club-000003"))
    assert (record["guidance_from"], record["guidance_until"], record["drawn_with"]["scheduler"]) == (
        0.2,
        0.8,
        "DDIMScheduler",
    )
    assert "the same" in synthnb_says("replay", "plan/0001-club-000003")


def test_threads_sleep_while_they_wait_unless_told_otherwise(monkeypatch):
    from synthnb.cli.base import main

    for given, then in ((None, "PASSIVE"), ("ACTIVE", "ACTIVE")):
        monkeypatch.setenv("OMP_WAIT_POLICY", given or "")
        given or monkeypatch.delenv("OMP_WAIT_POLICY")
        main()
        assert os.environ["OMP_WAIT_POLICY"] == then
