"""Situation: a hub model has been fetched by the library that opens it, which takes only the files that it needs. The
cache remembers which files the repository has beside those (other formats, half-precision copies, one large
checkpoint).

Right: the doctor says ok, since everything that opens the model is there, as `load_generator` shows; and the size that
it tells is that of the weights that are opened. A model of which weights are really missing is missing.

Sources: github.com/huggingface/huggingface_hub/pull/4394, github.com/huggingface/diffusers/pull/14118,
github.com/huggingface/optimum/pull/2470
"""

import json
import os
import re
import shutil
from pathlib import Path

from _case import attempt, check, done

from synthnb.glyphworld import world as glyphworld
from synthnb.models.pipelines import load_generator
from synthnb.studies.doctor_models import check_generator

SHIPPED, COMMIT = Path(glyphworld.folder("generator")), "a" * 40
WEIGHTS = sum(file.stat().st_size for file in SHIPPED.rglob("*.safetensors"))


def cached(model: str, without: str = "", beside: dict[str, int] | None = None) -> None:
    "Put a model into the cache as the library leaves it: its files, and the list of what the repository has."
    home = Path(os.environ["HF_HOME"]) / "hub" / f"models--{model.replace('/', '--')}"
    for file in (file for file in SHIPPED.rglob("*") if file.is_file()):
        name = file.relative_to(SHIPPED).as_posix()
        if not without or without not in name:
            (home / "snapshots" / COMMIT / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, home / "snapshots" / COMMIT / name)
    (home / "refs").mkdir()
    (home / "refs/main").write_text(COMMIT)
    there = {file.relative_to(SHIPPED).as_posix(): file.stat().st_size for file in SHIPPED.rglob("*") if file.is_file()}
    listed = {
        name: {"size": size, "blob_id": f"{n:040x}"}
        for n, (name, size) in enumerate(sorted((there | (beside or {})).items()))
    }
    (home / "trees").mkdir()
    (home / "trees" / f"{COMMIT}.json").write_text(json.dumps({"format_version": 1, "files": listed}))


def verdict(model: str) -> tuple[str, bool]:
    "The doctor's line, and whether the model opens."
    return str(check_generator(model, {})), attempt(lambda: load_generator(model, "cpu")).error is None


OTHERS = {
    "README.md": 40,
    "unet/diffusion_pytorch_model.fp16.safetensors": 4_300_000,
    "unet/diffusion_pytorch_model.bin": 8_600_000,
    "checkpoint.safetensors": 20_000_000,
}
cached("somebody/whole")
line, opens = verdict("somebody/whole")
check("every file of the repository is there: ok", line.startswith("ok") and opens, line)
cached("somebody/needed", beside=OTHERS)
line, opens = verdict("somebody/needed")
check(
    "all files that open it are there, others are not: it opens, and the doctor says ok",
    line.startswith("ok") and opens,
    f"opens: {opens}; {line}",
)
cached("somebody/broken", without="unet/diffusion", beside=OTHERS)
line, opens = verdict("somebody/broken")
check(
    "the denoiser's weights are not there: missing", line.startswith("missing") and not opens, f"opens: {opens}; {line}"
)

cached("somebody/both")  # fetched by a plain download of all files: the same weights lie there twice
snapshot = Path(os.environ["HF_HOME"]) / "hub/models--somebody--both/snapshots" / COMMIT
shutil.copyfile(
    SHIPPED / "unet/diffusion_pytorch_model.safetensors", snapshot / "unet/diffusion_pytorch_model.fp16.safetensors"
)
shutil.copyfile(SHIPPED / "unet/diffusion_pytorch_model.safetensors", snapshot / "checkpoint.safetensors")
line, opens = verdict("somebody/both")
told = float((re.search(r"([\d.]+) [MG]B of weights", line) or [0, "0"])[1]) * (1e9 if "GB of weights" in line else 1e6)
check(
    "copies beside the weights are not counted",
    line.startswith("ok") and abs(told - WEIGHTS) < 6e6,
    f"{WEIGHTS / 1e6:.1f} MB are opened; {line}",
)
done()
