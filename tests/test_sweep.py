"""Sweeps with real processes, real kills and a real cluster, of tiny experiments (nbs/studies/sweep.ipynb has more)."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import nbformat
import pandas as pd
import psutil
import pytest
import yaml
from PIL import Image
from processes import patiently

from synthnb.cli import app
from synthnb.studies.folder import _is_running, state
from synthnb.studies.sweep import plan_sweep, run_sweep, work_through

DECLARED = "shots: int = 1  # real images\nseed: int = 0  # of all\npause: float = 0.0  # seconds of work"
WORK = """import json, os, pathlib, time
folder = pathlib.Path(os.environ["SYNTHNB_RUN_FOLDER"])
with open(folder.parents[2] / "made.txt", "a") as made:
    made.write(f"{shots} {seed} {os.environ.get('OMP_NUM_THREADS')}\\n")
assert shots != 13, "unlucky"
time.sleep(pause)
rows = [{"method": "a", "seed": seed, "value": 0.5 + 0.01 * shots + 0.01 * seed, "steps": 1}]
(folder / "results.json").write_text(json.dumps({"rows": rows, "summary": [], "conclusion": "it ran"}))"""
TWO = """import time
def wait_for_two(file):
    until = time.monotonic() + 90
    while len(file.read_text().splitlines()) < 2 and time.monotonic() < until:
        time.sleep(0.05)
"""
STAGE = (
    TWO
    + """import os, pathlib
from synthnb.studies.stages import stage
begun = pathlib.Path(os.environ["SYNTHNB_RUN_FOLDER"]).parents[2] / "begun.txt"
with open(begun, "a") as lines:
    lines.write("a cell\\n")
style = stage("style.txt", seed=seed)
if not style.exists():
    with open(style.parents[2] / "styles.txt", "a") as styles:
        styles.write("made\\n")
    wait_for_two(begun)  # until the other cell asks for it, too
    time.sleep(3)
    style.write_text("learned")
assert style.read_text() == "learned"
"""
)
FORK = multiprocessing.get_context("fork")  # what is imported once need not be imported for every process


def experiment(folder: Path, work: str = WORK) -> Path:
    cells = [nbformat.v4.new_code_cell(DECLARED, metadata={"tags": ["parameters"]}), nbformat.v4.new_code_cell(work)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / "e.ipynb")
    return folder / "e.ipynb"


def made(folder: Path) -> list[str]:
    file = folder / "made.txt"
    return file.read_text().splitlines() if file.exists() else []


def wait_for(condition, seconds=100):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def start(target, *arguments, **options):
    process = FORK.Process(target=target, args=arguments, kwargs=options)
    process.start()
    return process


def test_kill_9_and_a_second_start_lose_at_most_the_running_cells(tmp_path, capfd):
    planned = plan_sweep(
        experiment(tmp_path),
        {"base": {"pause": 1.0}, "grid": {"shots": [1, 2, 3], "seed": [0, 1]}},
        tmp_path / "outputs",
    )
    first = start(run_sweep, planned, workers=2, progress=False)
    wait_for(lambda: planned.states().count("DONE") >= 1 and len(made(tmp_path)) > planned.states().count("DONE"))
    for process in [psutil.Process(first.pid), *psutil.Process(first.pid).children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):  # a worker that has lost its sweep ends by itself
            process.kill()  # the sweep, its workers and their kernels
    first.join()
    done = {
        cell.run: (planned.place(cell) / "DONE").stat().st_mtime_ns
        for cell in planned.cells
        if state(planned.place(cell)) == "DONE"
    }
    assert 1 <= len(done) < 6 and "FAILED" not in planned.states()
    outcome = run_sweep(planned)
    assert outcome.whole and "6 of 6 cells are done" in str(outcome)
    assert all((planned.outputs / "e" / run / "DONE").stat().st_mtime_ns == when for run, when in done.items()), (
        "what was done is not made again"
    )
    assert 6 <= len(made(tmp_path)) <= 8, "of two workers, two cells were lost at most"
    assert "cells: 100%" in (bar := capfd.readouterr().err) and "6/6" in bar
    assert {line.split()[2] for line in made(tmp_path)} == {"1"}, "a worker has one thread"
    table = pd.read_parquet(planned.folder / "table.parquet")
    assert len(table) == 6 and table.groupby("param.shots").size().tolist() == [2, 2, 2]
    assert '<img src="figure.png"' in (planned.folder / "report.html").read_text() and Image.open(
        planned.folder / "figure.png"
    ).size > (300, 200)


def is_worker(process):
    """Whether it is a living worker of a sweep; what an earlier test left may be ending just now."""
    with suppress(psutil.NoSuchProcess):  # so is a zombie
        return "work_alone" in " ".join(process.cmdline())
    return False


# A cell that goes on when two have begun: on a busy machine one could end before another worker's kernel is there
TOGETHER = TWO + WORK.replace("time.sleep(pause)", 'wait_for_two(folder.parents[2] / "made.txt")\ntime.sleep(pause)')


def test_a_killed_worker_is_made_up_for_and_named(tmp_path):
    work = experiment(tmp_path, TOGETHER)
    planned = plan_sweep(work, {"base": {"pause": 3.0}, "grid": {"shots": [1, 2, 3]}}, tmp_path / "outputs")

    def kill_one():
        wait_for(lambda: len(made(tmp_path)) == 2)
        next(child for child in psutil.Process().children() if is_worker(child)).kill()

    with ThreadPoolExecutor(1) as pool:
        killed = pool.submit(kill_one)
        outcome = run_sweep(planned, workers=2, progress=False)
    killed.result()
    assert (
        outcome.whole
        and len(outcome.lost) == 1
        and "3 of 3 cells are done; worker" in str(outcome)
        and "ended with status -9" in str(outcome)
    )


def command_line(*words):
    app([str(word) for word in words], prog_name="synthnb")


def test_a_stopped_sweep_says_how_far_it_is_and_goes_on(tmp_path, capfd):
    grid = tmp_path / "grid.yaml"
    grid.write_text(
        yaml.safe_dump({"experiment": str(experiment(tmp_path)), "base": {"pause": 2.0}, "grid": {"shots": [1, 2, 3]}})
    )
    first = start(command_line, "sweep", grid, "--outputs", tmp_path / "outputs")
    wait_for(lambda: len(made(tmp_path)) >= 2)
    os.kill(first.pid, signal.SIGTERM)
    first.join(60)
    assert first.exitcode == 130 and "stopped: 1 of 3 cells are done, 1 failed, 1 are left" in capfd.readouterr().err
    assert (
        'data-state="FAILED"' in (tmp_path / "outputs" / "index.html").read_text()
        and "stopped by SIGTERM" in (tmp_path / "outputs" / "index.html").read_text()
    )
    second = start(command_line, "sweep", grid, "--outputs", tmp_path / "outputs")
    second.join(100)
    assert second.exitcode == 0 and "3 of 3 cells are done" in capfd.readouterr().out, (
        "an interrupted cell has not failed by itself"
    )


def test_a_failing_cell_stops_no_other_and_sets_the_status(tmp_path, capfd):
    grid = tmp_path / "grid.yaml"
    grid.write_text(yaml.safe_dump({"experiment": str(experiment(tmp_path)), "grid": {"shots": [13, 1, 2]}}))
    for more, times in ((), 3), (("--retry",), 4):  # only the failed cell is made again
        process = start(command_line, "sweep", grid, "--outputs", tmp_path / "outputs", *more)
        process.join(100)
        assert (process.exitcode, len(made(tmp_path))) == (1, times)
        assert "2 of 3 cells are done, 1 failed; --retry makes failed cells again" in capfd.readouterr().out
    page = next((tmp_path / "outputs" / "sweeps").glob("grid-*/report.html")).read_text()
    assert "AssertionError: unlucky" in page and "failed.ipynb" in page and "it ran" in page


def test_cells_that_need_the_same_stage_at_once_make_it_once(tmp_path):
    planned = plan_sweep(experiment(tmp_path, STAGE + WORK), {"grid": {"shots": [1, 2]}}, tmp_path / "outputs")
    workers = [start(work_through, planned) for _ in range(2)]
    wait_for(lambda: sum(_is_running(planned.place(cell)) for cell in planned.cells) == 2)
    for worker in workers:
        worker.join(100)
    assert planned.states() == ["DONE", "DONE"] and (tmp_path / "styles.txt").read_text() == "made\n"
    notes = [json.loads((planned.place(cell) / "run.json").read_text())["stages"][0]["found"] for cell in planned.cells]
    assert sorted(notes) == [False, True]


def test_no_cell_is_made_twice_where_workers_wait_for_each_other(tmp_path):
    planned = plan_sweep(experiment(tmp_path), {"grid": {"shots": [1, 2, 3], "seed": [0, 1]}}, tmp_path / "outputs")
    workers = [start(work_through, planned) for _ in range(3)]  # a worker that waits for a lock finds the cell done
    for worker in workers:
        worker.join(100)
    assert [worker.exitcode for worker in workers] == [0, 0, 0] and planned.states() == ["DONE"] * 6
    assert len(made(tmp_path)) == 6


def test_everything_is_checked_before_a_kernel_starts(tmp_path):
    with pytest.raises(ValueError, match="cells 2, 3: parameter shots is 'two'"):
        plan_sweep(experiment(tmp_path), {"grid": {"shots": [1, "two"], "seed": [0, 1]}}, tmp_path / "outputs")
    assert not (tmp_path / "outputs").exists()


def test_an_array_of_jobs_gathers_the_same_table(tmp_path):
    planned = plan_sweep(experiment(tmp_path), {"grid": {"shots": [1, 2]}}, tmp_path / "outputs")
    for index in (1, 0):
        assert run_sweep(planned, index=index, progress=False).whole
    assert pd.read_parquet(planned.folder / "table.parquet")["param.shots"].tolist() == [1, 2]
    assert len(made(tmp_path)) == 2


def test_a_cluster_that_loses_a_node_loses_no_cell(tmp_path):
    ray, cluster_utils = pytest.importorskip("ray"), pytest.importorskip("ray.cluster_utils")
    head = {"num_cpus": 1, "include_dashboard": False}
    cluster = patiently(lambda: cluster_utils.Cluster(initialize_head=True, head_node_args=head))
    try:
        second = patiently(lambda: cluster.add_node(num_cpus=1))
        ray.init(address=cluster.address, logging_level="error", log_to_driver=False)
        planned = plan_sweep(
            experiment(tmp_path), {"base": {"pause": 2.0}, "grid": {"shots": [1, 13, 2, 3, 4]}}, tmp_path / "outputs"
        )
        with ThreadPoolExecutor(1) as pool:
            job = pool.submit(run_sweep, planned, workers=2, ray=cluster.address, progress=False)
            wait_for(lambda: sum(_is_running(planned.place(cell)) for cell in planned.cells) == 2)
            cluster.remove_node(second, allow_graceful=False)
            outcome = job.result(timeout=120)
        assert outcome.states == ["DONE", "FAILED", "DONE", "DONE", "DONE"] and outcome.lost == ()
        assert len(pd.read_parquet(planned.folder / "table.parquet")) == 4
        assert {line.split()[2] for line in made(tmp_path)} == {"1"}
    finally:
        ray.shutdown()
        cluster.shutdown()


def write_whether_alone(told, gone):
    """What the worker of `test_a_worker_knows...` runs."""
    Path(told["place"]).write_text(str(gone()))


def test_a_worker_knows_that_its_sweep_was_killed_while_it_imported(tmp_path):
    "It took for its parent whoever had adopted it by then, and worked on alone."
    job = f"""
import os, signal, sys
from pathlib import Path
from synthnb.core.workers import _start
told = {{"place": {str(tmp_path / "said")!r}}}
worker = _start("test_sweep:write_whether_alone", told, Path("log"), dict(os.environ))
worker.send_signal(signal.SIGSTOP)
os.system(f"(sleep 1; kill -CONT {{worker.pid}}) &")
os.kill(os.getpid(), signal.SIGKILL)
"""
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    assert subprocess.run([sys.executable, "-c", job], cwd=tmp_path, env=env).returncode == -signal.SIGKILL
    wait_for((tmp_path / "said").exists)
    wait_for(lambda: (tmp_path / "said").read_text() == "True", seconds=5)
