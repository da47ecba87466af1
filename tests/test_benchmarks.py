"""Scripts for large machines and sets run in a small form: what they measure is real, only small."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import warm_python

from synthnb.data import LabelledImages
from synthnb.glyphworld.world import folder
from synthnb.models.clip import Clip, load_clip

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
SCRIPT, LARGE, TRAINING, CLIP, CURATION = (
    FOLDER / name for name in ("h_gpu.py", "h_large_generators.py", "h2_h3_training.py", "h4_clip.py", "r_curation.py")
)


ALONE = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
WARM = [sys.executable, warm_python.__file__]  # the script, and what it starts, are forks that have the libraries


def small(script: Path, python: list[str] = WARM) -> str:
    """What a script prints in its small form, on one thread and without a GPU."""
    alone = os.environ | ALONE | {warm_python.FORKS_TOO: "1"}
    run = subprocess.run([*python, script, "--small"], capture_output=True, text=True, env=alone)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def test_the_gpu_script_runs_at_a_small_size():
    told = small(SCRIPT)
    rates = dict(
        re.findall(r"^(H\d\w?(?: tiny decoder)?) on \S+, as it comes: ([\d.]+) \w+ a second", told, re.MULTILINE)
    )
    assert set(rates) == {"H1", "H1b", "H1c", "H1c tiny decoder", "H5"} and all(
        float(rate) > 0 for rate in rates.values()
    )
    assert float(rates["H1b"]) > float(rates["H1"]), "28 passes of the network in place of 100"
    assert "floor" not in told, "a CPU has no share of a GPU's floor"


def test_the_script_of_large_generators_runs_at_a_small_size(monkeypatch):
    told = r"^H6 (\S+), .*: ([\d.]+) images a second, [\d.]+x of one by one; (\d+)% of the floor's"
    rates = re.findall(told, small(LARGE), re.MULTILINE)
    assert [name for name, *_ in rates] == ["SDXL", "FLUX.1-schnell"]
    assert all(float(rate) > 0 and 0 < int(share) < 100 for _, rate, share in rates)
    monkeypatch.syspath_prepend(FOLDER)
    large = importlib.import_module(LARGE.stem)
    # Of the published weights, counted elsewhere: 1.589 TFLOP a pass at 512 px, and 2.515 for the decoder
    with torch.device("meta"):  # as on a GPU, whose tensors NumPy cannot read
        made = [make(small=True).scheduler for make in large.PIPELINES.values()]
    assert all(scheduler.sigmas.device.type == scheduler.timesteps.device.type == "cpu" for scheduler in made)
    row = large.Row("SDXL", 512, 2, 5.0, 1)
    assert row.passes == 4, "a guided step is two"
    assert large.image_operations(row) == pytest.approx((4 * 1.589 + 2.515) * 1e12, rel=1e-3)


def test_the_training_script_runs_at_a_small_size():
    told = small(TRAINING)
    rates = re.findall(r"^(H\d) (\w+) on \S+, ([^:]+): ([\d.]+) images a second, [\d.]+ of plain", told, re.MULTILINE)
    assert {(row, model) for row, model, *_ in rates} == {
        ("H2", "resnet10t"),
        ("H3", "vit_tiny_patch16_224"),
        ("H3", "deit_tiny_patch16_224"),
    }
    assert {way for row, _, way, _ in rates if row == "H2"} == {
        "plain",
        "dual",
        "dual, any order",
        "plain, eager",
        "timm split, eager",
        "fit",
        "fit, eager",
    }
    assert all(float(rate) > 0 for *_, rate in rates) and "floor" not in told, "a CPU has no share of a GPU's floor"


def test_the_clip_script_runs_at_a_small_size():
    told = small(CLIP)
    rates = dict(
        re.findall(r"^(H4b?) glyphworld on \S+, .*: (\d+) images a second, [\d.]+x of one by one", told, re.MULTILINE)
    )
    assert set(rates) == {"H4", "H4b"} and all(int(rate) > 0 for rate in rates.values()) and "floor" not in told


def test_the_curation_script_runs_at_a_small_size():
    told = small(CURATION)
    ratios = dict(re.findall(r"^([^:\n]+): ([\d.]+)x$", told, re.MULTILINE))
    assert set(ratios) == {"scores, glyphworld's CLIP", "near-duplicates", "measures"} and all(
        float(ratio) > 0 for ratio in ratios.values()
    )
    peaks = re.findall(r"^(\w+) 200 images: [\d.]+ s CPU, peak (\d+) MiB$", told, re.MULTILINE)
    assert [what for what, _ in peaks] == ["score", "curate", "measure"] and all(
        50 < int(size) < 4000 for _, size in peaks
    )


def test_each_round_of_scoring_lets_clip_see_all_images(tmp_path, monkeypatch):
    """Features that an earlier round had stored were read, and a ratio of 5.1x was reported where it is 1.3x."""
    monkeypatch.syspath_prepend(FOLDER)
    script, of_gpu = (importlib.import_module(file.stem) for file in (CURATION, CLIP))
    seen, encode = [], Clip.encode_images
    monkeypatch.setattr(Clip, "encode_images", lambda clip, images: seen.append(len(images)) or encode(clip, images))
    home, clip = script.noise_folder(tmp_path, 20, 10, 32), load_clip(folder("clip"), device="cpu")
    test = LabelledImages(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.tensor([0, 1]), ("a", "b"))
    for rounds in (1, 2):
        script.scores_in_batches(home, clip, test, {name: [name] for name in home.plan.classes})
        assert of_gpu.from_shards(clip, home) > 0
        assert sum(seen) == 2 * 20 * rounds


@pytest.mark.parametrize("script", [SCRIPT, LARGE, TRAINING])
def test_without_a_gpu_it_says_what_to_do(script):
    run = subprocess.run([*WARM, script], capture_output=True, text=True, env=os.environ | ALONE)
    assert run.returncode == 1 and "no GPU here: --small" in run.stderr


def test_the_training_step_script_runs_at_a_small_size():
    told = small(FOLDER / "r12_training_step.py")
    steps = re.findall(
        r"^R12 (.+), (\d+) px, batch 8, (\w+): fit ([\d.]+) ms a step, ([\d.]+)x of plain .* ([\d.]+)x of the floor",
        told,
        re.MULTILINE,
    )
    assert {(name, size) for name, size, *_ in steps} == {("shipped CNN", "32"), ("EfficientNet-Lite0", "64")}
    assert {kind for _, _, kind, *_ in steps} >= {"float32"}
    assert all(float(number) > 0 for *_, ms, ratio, floor in steps for number in (ms, ratio, floor))


def test_the_scripts_for_starts_and_near_duplicates_run_at_a_small_size():
    # what a start costs is that of a process which has no libraries yet
    for script, python in (("start_up.py", [sys.executable]), ("near_duplicates.py", WARM)):
        told = small(FOLDER / script, python)
        assert "s CPU" in told and "MISSED" not in told


def test_the_million_script_runs_at_a_small_size():
    told = small(FOLDER / "million.py")
    sizes = re.findall(r"^(\w+) ([\d,]+) images: [\d.]+ s CPU, \d+ us an image.*; peak [\d,]+ MiB$", told, re.MULTILINE)
    assert sizes == [(what, count) for what in ("curate", "leaks", "check") for count in ("500", "2,000")]
    assert told.count("4 of 4 planted found") == 2
