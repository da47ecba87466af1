"""Arms at their edges: a kill in either stage, what a run is known by, and recipes."""
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
from synthnb import bridge
from synthnb.bridge import ARMS, run_arm, train_arm
from synthnb.data import LabelledImages, digits, few_shot, ordered
from synthnb.glyphworld import folder
from synthnb.sets import list_folder, save_folder
from synthnb.train import with_recipe

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


@pytest.mark.parametrize("arm, alpha", [("vanilla", .1), ("mixed_per_batch", .1), ("vanilla+mixup", .2)])
def test_a_recipes_mixup_is_for_all_arms(arm, alpha, monkeypatch):
    real, told = few_shot(digits()["train"], 2), {}

    class Enough(Exception):
        pass

    def look(model, train, **settings):
        told.update(settings)
        raise Enough

    monkeypatch.setattr(bridge, "fit", look)
    with pytest.raises(Enough):
        train_arm(ARMS[arm], folder("cnn"), real, real, steps=(1, 1), device="cpu", **with_recipe("from_scratch"))
    assert (told["mixup"], told["cutmix"]) == (alpha, 1.0)


def test_runs_of_other_sets_or_models_are_not_taken_for_one_that_was_made(tmp_path):
    few = few_shot(digits()["train"], 2)
    save_folder({"train": few}, tmp_path / "a")
    save_folder({"train": LabelledImages(255 - few.images, few.labels, few.classes)}, tmp_path / "b")
    how = HOW | {"steps": (1, 1), "image_size": 32, "store": tmp_path / "kept"}
    first, second = (list_folder(tmp_path / name)["train"] for name in "ab")
    assert list(first.items) == list(second.items), "the same names, other pictures"
    assert [run_arm("vanilla", folder("cnn"), first, None, first, **how).found for _ in range(2)] == [False, True]
    assert not run_arm("vanilla", folder("cnn"), second, None, first, **how).found
    assert not run_arm("vanilla", folder("cnn"), first, None, second, **how).found
    assert not run_arm("vanilla", folder("cnn"), first, None, first, model_args={"drop_rate": .5}, **how).found


def test_a_validation_set_in_another_order_is_refused():
    real = digits()
    few, val = few_shot(real["train"], 2), ordered(real["val"], real["val"].classes[::-1])
    with pytest.raises(ValueError, match="only their order differs"):
        run_arm("vanilla", folder("cnn"), few, None, real["test"], val=val, **HOW)
