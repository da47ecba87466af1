"""R8: one step of textual inversion: `synthnb.dsi` against the step of diffusers' own example script.

`OMP_NUM_THREADS=1 .venv/bin/python benchmarks/r8_inversion_step.py [--rounds 5] [--steps 2]`; protocol and bars:
benchmarks/README.md. The reference encodes the images with the VAE in every step, takes the gradient of the whole
embedding table, lets AdamW move all of it, and copies the other rows back
(examples/textual_inversion/textual_inversion.py; weight decay 0 on both sides, so that the losses can be equal). Ours
also encodes a prompt once that several images of a batch share, so the number of classes matters: two decide, twenty
are measured beside. `--compile` measures those two only, our UNet compiled.
"""

import argparse
import copy
import os
import platform
import statistics
import sys
import time
from importlib.metadata import version

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from synthnb.data import LabelledImages
from synthnb.dsi import denoising_loss, reading, style_prompts
from synthnb.glyphworld.world import folder
from synthnb.models.latents import draw_step, encode_images
from synthnb.models.pipelines import _compile_parts, load_generator
from synthnb.models.tokens import initial_rows, tokenize, training_scheduler, vector_names

BAR, TARGET, LR, TOKEN, WORD = 1.8, 2.2, 5e-3, "<style>", "photo"


def quarter_width_sd() -> StableDiffusionPipeline:
    """Stable Diffusion 1.5 at a quarter of its width and 128 pixels, random weights: VAE, UNet and table keep their
    proportions."""
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(folder("generator") / "tokenizer", model_max_length=77)
    tokenizer.add_tokens([f"filler{i}" for i in range(49408 - len(tokenizer))])  # a table as large as the real one
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=49408,
            hidden_size=192,
            intermediate_size=768,
            num_hidden_layers=12,
            num_attention_heads=3,
            projection_dim=192,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.eos_token_id,
        )
    )
    vae = AutoencoderKL(
        block_out_channels=(32, 64, 128, 128),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
        sample_size=128,
    )
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(80, 160, 320, 320),
        layers_per_block=2,
        cross_attention_dim=192,
        attention_head_dim=8,
        norm_num_groups=16,
    )
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=tokenizer,
        unet=unet,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        scheduler=DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
    )


class Reference:
    "The example's step, on a copy of the pipeline."

    def __init__(self, pipe: StableDiffusionPipeline, images: LabelledImages, prompts: list[str]):
        self.pipe, self.scheduler, tokenizer = pipe, training_scheduler(pipe), pipe.tokenizer
        tokenizer.add_tokens([TOKEN])
        self.token_id = tokenizer.convert_tokens_to_ids(TOKEN)
        pipe.text_encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        table = pipe.text_encoder.get_input_embeddings()
        table.weight.data[self.token_id] = initial_rows(pipe, WORD)[0][0]
        for part in (pipe.vae, pipe.unet, pipe.text_encoder):
            part.requires_grad_(False)
        table.requires_grad_(True)
        pipe.text_encoder.train()
        self.table, self.original = table, table.weight.data.clone()
        self.optimiser = torch.optim.AdamW(table.parameters(), lr=LR, weight_decay=0)
        self.pixels = images.images.float() / 127.5 - 1
        self.ids = tokenizer(
            prompts, padding="max_length", max_length=tokenizer.model_max_length, return_tensors="pt"
        ).input_ids[images.labels]

    def step(self, draw) -> float:
        latent = self.pipe.vae.encode(self.pixels[draw.images]).latent_dist
        latents = ((latent.mean + latent.std * draw.spread) * self.pipe.vae.config.scaling_factor).detach()
        noisy = self.scheduler.add_noise(latents, draw.noise, draw.timesteps)
        states = self.pipe.text_encoder(self.ids[draw.images])[0]
        prediction = self.pipe.unet(noisy, draw.timesteps, states).sample
        velocity = self.scheduler.config.prediction_type == "v_prediction"
        target = self.scheduler.get_velocity(latents, draw.noise, draw.timesteps) if velocity else draw.noise
        loss = F.mse_loss(prediction, target)
        loss.backward()
        self.optimiser.step()
        self.optimiser.zero_grad()
        others = torch.ones(len(self.table.weight), dtype=torch.bool)
        others[self.token_id] = False
        with torch.no_grad():
            self.table.weight[others] = self.original[others]
        return loss.item()

    def untouched(self) -> bool:
        return torch.equal(self.table.weight[: self.token_id], self.original[: self.token_id])


class Ours:
    "The component's step: cached latents, one learnable row."

    def __init__(self, pipe: StableDiffusionPipeline, images: LabelledImages, prompts: list[str]):
        self.pipe, self.scheduler, self.latents = pipe, training_scheduler(pipe), encode_images(pipe, images)
        self.ids = tokenize(pipe, prompts, vector_names(TOKEN, 1))
        self.rows = [nn.Parameter(initial_rows(pipe, WORD)[0])]
        self.optimiser = torch.optim.AdamW(self.rows, lr=LR, weight_decay=0)
        self.table, self.original = (
            pipe.text_encoder.get_input_embeddings(),
            pipe.text_encoder.get_input_embeddings().weight.detach().clone(),
        )
        self.open = reading(pipe, self.rows, [len(pipe.tokenizer)])  # for all steps, as in `invert`
        self.open.__enter__()

    def step(self, draw) -> float:
        loss = denoising_loss(self.pipe, self.scheduler, self.latents, self.ids, draw)
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        return loss.item()

    def untouched(self) -> bool:
        return torch.equal(self.table.weight, self.original)


def arithmetic(side, draw) -> float:
    "GFLOP of a step, without attention, whose kernel on CPUs is not counted."
    with FlopCounterMode(display=False) as counter:
        side.step(draw)
    return counter.get_total_flops() / 1e9


def timed(side, draws: list) -> tuple[float, float, list[float]]:
    "CPU seconds and wall seconds a step, losses."
    cpu, wall = time.process_time(), time.perf_counter()
    losses = [side.step(draw) for draw in draws]
    return (time.process_time() - cpu) / len(draws), (time.perf_counter() - wall) / len(draws), losses


def compare(
    name: str,
    pipe: StableDiffusionPipeline,
    classes: int,
    batch_size: int,
    rounds: int,
    steps: int,
    compiled: bool = False,
) -> float:
    "The median over rounds of reference CPU time / ours; exits if the losses differ or a row moved that should not."
    size = pipe.unet.config.sample_size * pipe.vae_scale_factor
    names = tuple(f"digit {i}" for i in range(classes))
    images = LabelledImages(
        torch.randint(0, 256, (20, 3, size, size), dtype=torch.uint8), torch.arange(20) % classes, names, "noise"
    )
    prompts = list(style_prompts(dict(zip(names, names)), TOKEN).values())
    reference, ours = Reference(copy.deepcopy(pipe), images, prompts), Ours(pipe, images, prompts)
    first = draw_step(ours.latents, batch_size, 0, 1000)
    print(
        f"  arithmetic of a step, attention apart: example {arithmetic(reference, first):.1f} GFLOP, "
        f"ours {arithmetic(ours, first):.1f}"
    )
    if compiled:
        _compile_parts(pipe)
    print(
        f"{name}: UNet {sum(p.numel() for p in pipe.unet.parameters()) / 1e6:.1f} M, "
        f"table {tuple(ours.table.weight.shape)}, {size} px, batch {batch_size}, {classes} classes"
    )
    ratios = []
    for i in range(rounds + 1):  # the first one warms up, and compiles
        draws = [draw_step(ours.latents, batch_size, i * steps + k, 1000) for k in range(steps)]
        (cpu_r, wall_r, losses_r), (cpu_o, wall_o, losses_o) = timed(reference, draws), timed(ours, draws)
        apart = max(abs(a - b) / a for a, b in zip(losses_r, losses_o))
        if apart > 1e-4 or not ours.untouched() or not reference.untouched():
            sys.exit(f"losses differ by {apart:.1e} of themselves, or the table moved: no ratio")
        ratios.append(cpu_r / cpu_o)
        print(
            f"  round {i or 'warm-up'}: example {cpu_r:.3f} s/step CPU ({wall_r:.3f} wall), "
            f"ours {cpu_o:.3f} ({wall_o:.3f}), {ratios[-1]:.2f}x, "
            f"loss {losses_o[-1]:.4f}, apart {apart:.0e}",
            flush=True,
        )
    print(f"  median {statistics.median(ratios[1:]):.2f}x (bar {BAR}x, target {TARGET}x)", flush=True)
    return statistics.median(ratios[1:])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2, help="steps a round")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--compile", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(
        platform.platform(),
        platform.processor(),
        *(f"{name} {version(name)}" for name in ("torch", "diffusers")),
        "one thread",
        sep=", ",
    )
    name, amount = (
        "Stable Diffusion 1.5's shape at quarter width, random",
        (arguments.batch_size, arguments.rounds, arguments.steps),
    )
    decisive = compare(name, quarter_width_sd(), 2, *amount, arguments.compile)
    if arguments.compile:
        return int(decisive < BAR)
    compare(name, quarter_width_sd(), 20, *amount)  # hardly ever two images of a batch with the same prompt
    compare("glyphworld", load_generator(folder("generator"), "cpu"), 10, 16, arguments.rounds, arguments.steps)
    return int(decisive < BAR)


if __name__ == "__main__":
    sys.exit(main())
