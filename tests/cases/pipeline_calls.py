"""Situation: pipelines with a loop of their own are called in ways that differ. Some take `image` first and `prompt`
second (FLUX.2). Some are guided by `true_cfg_scale`, and only if there is a negative prompt, while `guidance_scale`
does nothing (Qwen-Image).

Right: a prompt arrives as a prompt. The plan's guidance scale arrives where it guides, with a negative prompt (empty,
or a blank) where one is needed, and at a scale of 1 or less nothing is guided; or the plan is refused, since its
guidance would do nothing.

Real pipelines of this size cannot be had here; these have the real ones' class and signature, and remember how they are
called.

Sources: github.com/huggingface/diffusers/pull/13557, github.com/huggingface/diffusers/pull/12223,
github.com/vladmandic/sdnext/issues/4097
"""

import inspect
from types import SimpleNamespace

import diffusers
import torch
from _case import attempt, check, done

from synthnb.generate import draw_batches
from synthnb.images.plan import make_plan

PROMPTS = {"crane": ["a crane bird"], "jay": ["a blue jay"]}


def recorder(name: str):
    "A pipeline of a class of diffusers that draws noise and remembers what it was given."
    kind, calls = getattr(diffusers, name), []
    signature = inspect.signature(kind.__call__)

    def call(self, *args, **kwargs):
        calls.append(dict(signature.bind(self, *args, **kwargs).arguments))
        return SimpleNamespace(images=torch.rand(2, 3, 32, 32))

    call.__signature__ = signature
    made = type(
        name,
        (kind,),
        {"__init__": lambda self: None, "__call__": call, "device": torch.device("cpu"), "vae_scale_factor": 8},
    )()
    object.__setattr__(made, "scheduler", SimpleNamespace())
    object.__setattr__(
        made, "transformer", SimpleNamespace(config=SimpleNamespace(guidance_embeds=name.startswith("Flux")))
    )
    return made, calls


def called(name: str, guidance: float, negative: str = "") -> tuple[dict, str]:
    "What the pipeline was given, or what was said."
    pipe, calls = recorder(name)
    plan = make_plan(
        PROMPTS, 1, seed=0, model=name, steps=2, guidance=guidance, size=32, batch_size=2, negative_prompt=negative
    )
    found = attempt(lambda: next(draw_batches(pipe, plan, batch_size=2, retries=0)))
    return (calls[0] if calls and not found.error else {}), found.said


WANTED = ["a crane bird", "a blue jay"]
for name in ("FluxPipeline", "Flux2Pipeline", "Flux2KleinPipeline", "ZImageOmniPipeline", "QwenImagePipeline"):
    if not hasattr(diffusers, name):
        print(f"not here: {name}")
        continue
    given, said = called(name, 4.0)
    check(
        f"{name}: prompts arrive as prompts",
        given.get("prompt") == WANTED and given.get("image") is None,
        said or {key: value for key, value in given.items() if key in ("prompt", "image")},
    )

for scale, negative in ((4.0, ""), (12.0, "ugly")):
    given, said = called("QwenImagePipeline", scale, negative)
    guided = given.get("true_cfg_scale") == scale and given.get("negative_prompt") is not None
    check(
        f"QwenImagePipeline, scale {scale:g}, negative prompt {negative!r}: guided by it, or refused",
        guided or (not given and "guid" in said),
        said or {key: given.get(key, "not given") for key in ("true_cfg_scale", "guidance_scale", "negative_prompt")},
    )
given, said = called("QwenImagePipeline", 1.0)
unguided = given.get("negative_prompt") is None or given.get("true_cfg_scale", 4.0) <= 1
check(
    "QwenImagePipeline, scale 1: nothing is guided",
    bool(given) and unguided,
    said or given.get("true_cfg_scale", "not given"),
)
done()
