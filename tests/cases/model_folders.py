"""Situation: generator folders as they lie about: only half-precision weights (*.fp16.safetensors); one checkpoint file
in place of a folder; a latent size given as a pair; the denoiser's weights, or one part of them, missing.

Right: the half-precision files are opened, or named with what to do; a single file is recognised as one (and how to
turn it into a folder is said), not looked for on the hub; the pair is used. The check of a folder, and with it the
doctor, finds what opening it would fail on.

Sources: github.com/huggingface/diffusers/issues/10928, github.com/Tencent-Hunyuan/Hunyuan3D-2/issues/262,
github.com/huggingface/diffusers/issues/10139, github.com/huggingface/diffusers/issues/3390
"""

import json
import shutil
from pathlib import Path

import torch
from _case import attempt, check, done
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file

from synthnb.generate import generate
from synthnb.glyphworld import world as glyphworld
from synthnb.images.plan import make_plan
from synthnb.models.pipelines import load_generator
from synthnb.studies.doctor_models import check_generator

whole = StableDiffusionPipeline.from_pretrained(str(glyphworld.folder("generator")))
whole.save_pretrained("whole")
whole.save_pretrained("half", variant="fp16")
whole.save_pretrained("parts", max_shard_size="2MB")
shutil.copytree("whole", "no_denoiser")
next(Path("no_denoiser/unet").glob("*.safetensors")).unlink()
shutil.copytree("parts", "part_missing")
sorted(Path("part_missing/unet").glob("*-00002-*.safetensors"))[0].unlink()
shutil.copytree("whole", "pair")
config = json.loads(Path("pair/unet/config.json").read_text())
Path("pair/unet/config.json").write_text(json.dumps(config | {"sample_size": [config["sample_size"]] * 2}))
Path("models").mkdir()
save_file({"model.diffusion_model.x": torch.zeros(2)}, "models/checkpoint.safetensors")


def drawn(folder: str):
    "Two pictures."
    plan = make_plan({"three": ["three"], "eight": ["eight"]}, 1, seed=0, model=folder, steps=2, guidance=1.0)
    return attempt(lambda: generate(load_generator(folder, "cpu"), plan, batch_size=2, progress=False))


def state(folder: str) -> str:
    return check_generator(str(Path(folder).absolute()), {}).state


for folder in ("whole", "parts"):
    found = drawn(folder)
    check(
        f"{folder}: draws, and the doctor says ok",
        found.error is None and state(folder) == "ok",
        found.said if found.error else state(folder),
    )
found = drawn("half")
check(
    "half: only fp16 files: draws, or the message names them",
    found.error is None or "fp16" in found.said,
    found.said if found.error else "",
)
check(
    "half: the doctor says what opening says",
    (state("half") == "ok") == (found.error is None),
    f"the doctor: {state('half')}; opening: {'fails' if found.error else 'works'}",
)
for folder in ("no_denoiser", "part_missing"):
    found = drawn(folder)
    check(
        f"{folder}: the doctor finds it missing",
        found.error is not None and state(folder) == "missing",
        f"the doctor: {state(folder)}; opening: {found.said.splitlines()[0]}",
    )
found = drawn("pair")
check("pair: a latent size of two equal numbers draws", found.error is None, found.said if found.error else "")
for file in ("models/checkpoint.safetensors", "./models/checkpoint.safetensors"):
    found = drawn(file)
    text = found.said.lower()
    told = (
        any(word in text for word in ("single file", "single-file", "from_single_file", "one file"))
        and "hf download" not in text
    )
    check(
        f"{file}: told to be a single file, and how to make a folder of it",
        found.error is not None and told,
        found.said.splitlines()[0],
    )
done()
