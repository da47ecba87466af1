"""Commands of the guides are run as printed, and print what the guide says; what cannot be run here says so.

A block with the line `# parsed, not run: WHY` is given to the real command line, one with `# not run: WHY` is not.
 `[...]` in a printed output stands for anything.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import click
import pytest
import warm_python
from huggingface_hub.cli.hf import app as hub
from test_docs import GUIDES, ROOT, commands

WALK = ("your_data", "cluster", "gpu")  # in this order: cluster goes on with the prompts of your_data
REASONS = ("needs a ", "needs GPUs", "needs Slurm", "needs the ", "needs another index", "fetches ")
# Numbers that depend on how a machine rounds, in a pattern: those with decimals, and how many images CLIP judges how
# (these are compared, see `kept`)
ROUNDED = r"(\\[+-])?\d+\\\.\d|\d+(?=\\ of\\ \d+\\ images\\ are\\ kept)|(?<=another\\ class:\\ )\d+"


class Block(NamedTuple):
    """A block of shell commands, what the guide says that it prints, and why it is not run."""

    code: str
    output: str
    left: str


def blocks(guide: Path) -> list[Block]:
    text = guide.read_text(encoding="utf-8")
    found = re.findall(r"```sh\n(.*?)```(?:\n\n```text\n(.*?)```)?", text, re.DOTALL)
    why = [re.search(r"^# (?:parsed, )?not run: (.+)$", code, re.MULTILINE) for code, _ in found]
    return [Block(code, output, mark[1] if mark else "") for (code, output), mark in zip(found, why)]


def test_what_is_not_run_says_why():
    for guide in GUIDES:
        for block in blocks(guide):
            assert not block.left or block.left.startswith(REASONS), f"{guide.name}: {block.left}"
            assert block.left or guide.stem in WALK, f"{guide.name}: nothing runs {block.code}"


@pytest.fixture(scope="module")
def walked(tmp_path_factory, warm_jupyter) -> dict[str, list[tuple[Block, int, str, str]]]:
    """All commands of the guides that can be run, in a copy of the checkout: status, what was printed, errors.

    `synthnb` and kernels are forks of the warm Python, which have a model cache that begins empty."""
    home = tmp_path_factory.mktemp("walk") / "synthnb"
    shutil.copytree(ROOT / "nbs", home / "nbs", ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    shutil.copy(ROOT / "pyproject.toml", home)
    real, tools = Path(sys.executable).parent, home.parent / "tools"
    tools.mkdir()
    (tools / "synthnb").write_text(f'#!/bin/sh\nexec {real}/python {warm_python.__file__} {real}/synthnb "$@"\n')
    (tools / "synthnb").chmod(0o755)
    path = os.pathsep.join([str(tools), str(real), os.environ["PATH"]])
    own = {"PATH": path, "JUPYTER_PATH": warm_jupyter, "SYNTHNB_CACHE": str(home.parent / "cache")}
    env = os.environ | own | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done: dict[str, list] = {}
    for name in WALK:
        for block in blocks(ROOT / f"nbs/guides/{name}.md"):
            if not block.left:
                ran = subprocess.run(
                    ["bash", "-e", "-c", block.code], cwd=home, env=env, capture_output=True, text=True
                )
                done.setdefault(name, []).append((block, ran.returncode, ran.stdout, ran.stderr))
    return done


def kept(text: str) -> list[int]:
    """How many images are kept, wherever a text says it."""
    return [int(number) for number in re.findall(r"(\d+) of \d+ images are kept", text)]


def without_small_disk(printed: str) -> str:
    """What is printed where there is room enough: how many GB are free is the machine's, not the guide's."""
    return re.sub(r"^(missing: .+), disk$", r"\1", printed, flags=re.MULTILINE)


@pytest.mark.parametrize("name", WALK)
def test_commands_print_what_the_guide_says(walked, name):
    for block, status, printed, errors in walked[name]:
        refused = re.search(r"^(missing:|error:)", block.output, re.MULTILINE)
        assert status == (1 if refused else 0), f"{block.code}\n{printed}\n{errors}"
        if block.output:
            parts = [re.escape(part) for part in block.output.strip().split("[...]")]
            parts = [
                re.sub(ROUNDED, lambda number: r"[+-]?\d+" + r"[.]\d" * ("." in number[0]), part) for part in parts
            ]
            assert re.fullmatch(".*".join(parts), without_small_disk(printed).strip(), re.DOTALL), (
                f"{block.code}\n{printed}"
            )
            for said, is_so in zip(kept(block.output), kept(printed), strict=True):
                assert abs(said - is_so) <= 3, f"{block.code}\n{printed}"


def test_jobs_of_slurm_are_complete_and_fit_their_plan():
    text = (ROOT / "nbs/guides/cluster.md").read_text(encoding="utf-8")
    jobs = [block.code for block in blocks(ROOT / "nbs/guides/cluster.md") if block.code.startswith("#!/bin/bash")]
    assert len(jobs) == 3
    for job in jobs:
        checked = subprocess.run(["bash", "-n"], input=job, capture_output=True, text=True)
        assert not checked.returncode and not checked.stderr, checked.stderr
        for option in ("time", "mem", "cpus-per-task", r"gpus(?:-per-node)?"):
            assert re.search(rf"^#SBATCH --{option}=\S+$", job, re.MULTILINE), f"{option} is missing in\n{job}"
        last = max(job.rindex(line) for line in re.findall(r"^#SBATCH.*$", job, re.MULTILINE))
        assert not re.search(r"^[^#\n]", job[:last], re.MULTILINE), "Slurm reads no option below the first command"
    shards, cells = int(re.search(r"classes in (\d+) shards", text)[1]), int(re.search(r"(\d+) cells;", text)[1])
    sizes = [int(re.search(r"--array=0-(\d+)$", job, re.MULTILINE)[1]) + 1 for job in jobs[:2]]
    assert shards % sizes[0] == 0, "each job has as many shards as any other"
    assert sizes[1] == cells and [call[1] for call in commands(ROOT / "nbs/guides/cluster.md") if "--index" in call]


def test_downloads_would_be_taken_by_the_hub():
    lines = [
        line for guide in GUIDES for block in blocks(guide) for line in block.code.replace("\\\n", " ").splitlines()
    ]
    found = [shlex.split(line)[2:] for line in lines if line.startswith("hf download ")]
    command = hub.get_command(click.Context(hub), "download")
    command = getattr(command, "materialize", lambda: command)()  # newer versions of the hub load it when it is called
    for call in found:
        given = command.make_context("download", call).params
        assert given["repo_id"].count("/") == 1
    assert len(found) >= 4
