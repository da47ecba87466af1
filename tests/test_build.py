"""`synthnb glyphworld build` goes on after a real kill -9 and ends with the weights of a run that was left alone."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import warm_python
from safetensors import safe_open
from safetensors.torch import load_file

from synthnb.glyphworld import training
from synthnb.glyphworld.loop import RECIPES, Recipe

SCRIPT = """
import sys, torch
from synthnb.glyphworld import training as g
torch.set_num_threads(1)
g.RECIPES["cnn"] = g.Recipe(steps=80, batch=32, lr=1e-3, pictures=300, warmup=5, save_every=0)
g.build(sys.argv[1], device="cpu", only=["cnn"], progress=False)
"""


def start(out: Path) -> subprocess.Popen:
    env = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, warm_python.__file__, "-c", SCRIPT, str(out)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)


def steps_saved(checkpoint: Path) -> int:
    if not checkpoint.exists():
        return 0
    with safe_open(checkpoint, "pt") as tensors:
        return int(tensors.get_tensor("step"))


def test_killed_build_goes_on_to_the_same_weights(tmp_path):
    alone = start(tmp_path / "alone")
    assert alone.wait(300) == 0

    killed, checkpoint = start(tmp_path / "killed"), tmp_path / "killed" / ".build" / "cnn.safetensors"
    deadline = time.monotonic() + 300
    while steps_saved(checkpoint) < 10 and killed.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait(30) == -signal.SIGKILL, "the build ended before it could be killed"
    assert 10 <= steps_saved(checkpoint) < 80 and not (tmp_path / "killed" / "cnn").exists()

    assert start(tmp_path / "killed").wait(300) == 0
    one, other = (load_file(tmp_path / side / "cnn" / "model.safetensors") for side in ("alone", "killed"))
    assert one.keys() == other.keys() and all((one[k] == other[k]).all() for k in one)

    again = start(tmp_path / "killed")
    assert again.communicate(timeout=300)[0].strip() == "cnn: made already, kept"
    assert json.loads((tmp_path / "killed" / ".build" / "cnn.json").read_text())["recipe"]["steps"] == 80
    assert not checkpoint.exists(), "a finished stage must not leave a checkpoint that a later one would go on from"


def test_refining_starts_from_the_generator_that_is_there(tmp_path, monkeypatch):
    """A generator made anew is what the second pass refines, not the checkpoint of the pass before."""
    tiny = Recipe(steps=2, batch=4, lr=1e-3, pictures=40, warmup=1)
    for name in ("vae", "reader", "generator", "refine"):
        monkeypatch.setitem(RECIPES, name, tiny)
    unet = tmp_path / "generator" / "unet" / "diffusion_pytorch_model.safetensors"
    training.build(tmp_path, "cpu", ["vae", "generator", "refine"], progress=False)
    before = load_file(unet)
    monkeypatch.setitem(RECIPES, "generator", Recipe(steps=3, batch=4, lr=3e-2, pictures=40, warmup=1))
    training.build(tmp_path, "cpu", ["generator", "refine"], progress=False)
    after = load_file(unet)
    assert any((before[k] != after[k]).any() for k in before)
