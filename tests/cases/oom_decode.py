"""Situation: the denoiser's batch fits into memory, the decoder's does not: memory runs out when all the steps are
done.

Right: only the decoding is done again, in smaller parts; no step of the denoiser is. The pictures are those that come
where memory is enough. Where the denoiser itself runs out, the batch is halved as before.

Sources: github.com/huggingface/diffusers/pull/1150, github.com/AUTOMATIC1111/stable-diffusion-webui/pull/5165
"""

import torch
from _case import attempt, check, done

from synthnb.generate import generate
from synthnb.glyphworld import world as glyphworld
from synthnb.images.plan import make_plan
from synthnb.models.pipelines import load_generator

STEPS, IMAGES = 3, 16
plan = make_plan(
    {"three": ["three"], "eight": ["eight"]},
    IMAGES // 2,
    seed=0,
    model="glyphworld/generator",
    steps=STEPS,
    guidance=1.0,
    batch_size=IMAGES,
)


def drawn(decodes: int = 1000, denoises: int = 1000):
    """The pictures of a pipeline whose decoder, and whose denoiser, have memory for so many at once; and how many
    images the denoiser saw."""
    pipe, seen = load_generator(str(glyphworld.folder("generator")), "cpu"), []
    decode, forward = pipe.vae.decode, pipe.unet.forward

    def scarce_decode(latents, *args, **kwargs):
        if len(latents) > decodes:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return decode(latents, *args, **kwargs)

    def scarce_forward(sample, *args, **kwargs):
        if len(sample) > denoises:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        seen.append(len(sample))
        return forward(sample, *args, **kwargs)

    pipe.vae.decode, pipe.unet.forward = scarce_decode, scarce_forward
    return attempt(lambda: generate(pipe, plan, batch_size=IMAGES, progress=False)), sum(seen)


enough, seen = drawn()
check(
    "enough memory: each image goes through each step once",
    enough.error is None and seen == STEPS * IMAGES,
    f"{seen} of {STEPS * IMAGES}",
)
scarce, seen = drawn(decodes=4)
check("the decoder has memory for 4 of 16: all are drawn", scarce.error is None, scarce.said)
check("no step is made twice", seen == STEPS * IMAGES, f"the denoiser saw {seen} images, {STEPS * IMAGES} are needed")
if not scarce.error:
    off = (scarce.value.images.int() - enough.value.images.int()).abs().max().item()
    check("the pictures are the same", off <= 2, f"at most {off} of 255 apart")
scarce, seen = drawn(denoises=4)
check("the denoiser has memory for 4 of 16: all are drawn", scarce.error is None, scarce.said)
done()
