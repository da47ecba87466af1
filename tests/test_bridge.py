"""Arms at their edges: a kill in either stage."""
import os
import signal
import subprocess
import sys
import textwrap
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

import synthnb.train
from synthnb.bridge import run_arm
from synthnb.data import digits, few_shot
from synthnb.glyphworld import folder

torch.set_num_threads(1)
HOW = {"steps": (40, 40), "batch_size": 16, "lr": 2e-3, "device": "cpu"}
CHILD = textwrap.dedent("""
    import sys, torch
    torch.set_num_threads(1)
    from synthnb.bridge import run_arm
    from synthnb.data import digits, few_shot
    from synthnb.glyphworld import folder
    real = digits()
    run_arm("bridged++", folder("cnn"), few_shot(real["train"], 2), few_shot(real["train"], 4, seed=5), real["val"], store=sys.argv[1], checkpoint_every=2, HOW)
""").replace("HOW", ", ".join(f"{name}={value!r}" for name, value in HOW.items()))


@pytest.fixture(scope="module")
def undisturbed():
    real = digits()
    return run_arm("bridged++", folder("cnn"), few_shot(real["train"], 2), few_shot(real["train"], 4, seed=5), real["val"], **HOW).correct.tolist()


@pytest.mark.parametrize("stage", ["stage1", "run"])
def test_killed_in_a_stage_it_goes_on_from_there(stage, undisturbed, tmp_path, monkeypatch):
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path)])
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(f"{stage}-*.checkpoint")) and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL, "it ended before it could be killed"
    assert len(list(tmp_path.glob("*.checkpoint"))) == 1 and not list(tmp_path.glob("run-*.json"))
    assert len(list(tmp_path.glob("stage1-*.safetensors"))) == (stage == "run")
    real, taken, update = digits(), [], synthnb.train._update
    monkeypatch.setattr("synthnb.train._update", lambda *given, **named: taken.append(1) or update(*given, **named))
    again = run_arm("bridged++", folder("cnn"), few_shot(real["train"], 2), few_shot(real["train"], 4, seed=5), real["val"], store=tmp_path, checkpoint_every=2, **HOW)
    assert again.correct.tolist() == undisturbed and again.stage1_found == (stage == "run")
    assert len(taken) < {"stage1": 80, "run": 40}[stage], "steps before the checkpoint are not taken twice"
    assert not list(tmp_path.glob("*.checkpoint"))
