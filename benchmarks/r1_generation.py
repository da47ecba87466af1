"""R1 and R2: a hundred prompts through the denoising loop against one `pipe(...)` and one PNG a picture, process CPU
time.

R1 is exact: fp32, same scheduler, same noise, images equal within one level. R2 adds what may move pixels: bfloat16,
guidance for a part of the steps only, torch.compile, JPEG shards. Its bar is for processors with bfloat16 instructions;
those without emulate it (a third of the reference's speed), so R2 takes float32 there, and says so.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

import argparse
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

import diffusers
import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image

from synthnb.glyphworld.world import folder
from synthnb.images.denoise import DenoisingLoop, TextTable
from synthnb.images.writer import ShardWriter

BARS = {"R1": (1.8, 2.3), "R2": (4.5, 6.0)}
GUIDED = (0.25, 0.6)  # R2's guidance interval
FAST = torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else torch.float32
WIDTHS = {"random": (64, 128, 256, 256), "wide": (128, 256, 512, 512)}  # Stable Diffusion has 320, 640, 1280, 1280


def open_model(name: str, compiled: bool = False) -> StableDiffusionPipeline:
    """Glyphworld's generator, or one with its text encoder and a UNet of Stable Diffusion's shape at a fifth or two
    fifths of its width, random weights, 128 pixels."""
    pipe = StableDiffusionPipeline.from_pretrained(folder("generator"), use_safetensors=True)
    if name in WIDTHS:
        torch.manual_seed(0)
        pipe.unet = UNet2DConditionModel(
            sample_size=16,
            block_out_channels=WIDTHS[name],
            layers_per_block=2,
            cross_attention_dim=128,
            attention_head_dim=8,
        ).eval()
        pipe.vae = AutoencoderKL(
            block_out_channels=(32, 64, 64, 64),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            latent_channels=4,
            sample_size=128,
        ).eval()
        pipe.register_to_config(unet=pipe.unet, vae=pipe.vae)
        pipe.vae_scale_factor, pipe.scheduler = 8, EulerDiscreteScheduler(beta_schedule="scaled_linear")
        pipe.image_processor = diffusers.image_processor.VaeImageProcessor(vae_scale_factor=8)
    pipe.set_progress_bar_config(disable=True)
    if compiled:
        pipe.unet.compile()
    return pipe


def encode(images: torch.Tensor, first: int, kind: str, where: Path) -> None:
    """uint8 [B, 3, H, W] to loose files (PNG), or to a checksummed shard with records (JPEG)."""
    if kind == "JPEG":
        writer = ShardWriter(where / f"{first:06d}.tar", "jpeg", 95)
        writer.add(images, [{"id": f"{first + i:06d}", "seed": first + i} for i in range(len(images))])
        writer.finish()
        return
    for i, image in enumerate(images.permute(0, 2, 3, 1).numpy(), first):
        Image.fromarray(image).save(where / f"{i}.png")


def one_by_one(pipe, prompts: list[str], steps: int, where: Path) -> torch.Tensor:
    """The reference: what users write."""
    images = []
    for i, prompt in enumerate(prompts):
        image = pipe(
            prompt, num_inference_steps=steps, guidance_scale=2.0, generator=torch.Generator().manual_seed(i)
        ).images[0]
        image.save(where / f"{i}.png")
        images.append(
            torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
            .view(image.height, image.width, 3)
            .permute(2, 0, 1)
        )
    return torch.stack(images)


def together(pipe, loop: DenoisingLoop, prompts: list[str], kind: str, where: Path) -> torch.Tensor:
    """Ours: text once, batches, files at the end of each batch."""
    table, images = TextTable(pipe, prompts), []
    for i in range(0, len(prompts), loop.room.images):
        seeds = range(i, min(i + loop.room.images, len(prompts)))
        pixels, _ = loop(table(prompts[i : i + loop.room.images], pipe.device), seeds)
        images.append(pixels.mul(255).round().to(torch.uint8))
        encode(images[-1], i, kind, where)
    return torch.cat(images)


def timed(function) -> tuple[float, float, torch.Tensor]:
    """CPU seconds, wall seconds, result."""
    cpu, wall = time.process_time(), time.perf_counter()
    result = function()
    return time.process_time() - cpu, time.perf_counter() - wall, result


def compare(bar: str, model: str, images: int, steps: int, batch: int, rounds: int) -> float:
    """The median over rounds of reference CPU time / ours."""
    pipe = open_model(model)
    prompts = [
        f"a photo of {word}"
        for word in ("a heart", "an anchor", "an arabic digit three", "a star", "a die face five")
        for _ in range(-(-images // 5))
    ][:images]
    fast = bar == "R2"
    own = open_model(model, compiled=fast).to(FAST if fast else torch.float32)  # the same weights
    loop = DenoisingLoop(own, steps=steps, guidance=2.0, guided=GUIDED if fast else (0.0, 1.0), batch_size=batch)
    print(
        f"{bar}, {model}: {sum(p.numel() for p in pipe.unet.parameters()) / 1e6:.1f} M parameters, {images} images, "
        f"{steps} steps, batch {batch}, {str(FAST if fast else torch.float32).removeprefix('torch.')}"
    )
    ratios = []
    with tempfile.TemporaryDirectory() as scratch:
        reference = lambda: one_by_one(pipe, prompts, steps, Path(scratch))
        ours = lambda: together(own, loop, prompts, "JPEG" if fast else "PNG", Path(scratch))
        theirs, (_, first, mine) = reference(), timed(ours)  # the warm-up
        apart = (theirs.int() - mine.int()).abs()
        if not fast and apart.max() > 1:
            sys.exit(f"the images are up to {apart.max()} levels apart, so there is nothing to compare")
        print(
            f"  images: at most {apart.max()} levels apart, {apart.float().mean():.2f} in the mean; "
            f"first time {first:.1f} s" + (", compiling included" if fast else "")
        )
        for i in range(rounds):
            (cpu_r, wall_r, _), (cpu_o, wall_o, _) = timed(reference), timed(ours)
            ratios.append(cpu_r / cpu_o)
            print(
                f"  round {i}: one by one {cpu_r:6.2f} s CPU {wall_r:6.2f} s wall, "
                f"together {cpu_o:6.2f} s CPU {wall_o:6.2f} s wall, {ratios[-1]:5.2f}x",
                flush=True,
            )
    print(f"  median {statistics.median(ratios):.2f}x (bar {BARS[bar][0]}x, target {BARS[bar][1]}x)", flush=True)
    return statistics.median(ratios)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--bars", nargs="*", default=list(BARS), choices=list(BARS))
    parser.add_argument("--models", nargs="*", default=["glyphworld", *WIDTHS], choices=["glyphworld", *WIDTHS])
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"torch {torch.__version__}, diffusers {diffusers.__version__}, {platform.processor() or platform.machine()}, "
        f"one thread"
    )
    slow = [
        (bar, model)
        for bar in asked.bars
        for model in asked.models
        if compare(
            bar,
            model,
            asked.images if model == "glyphworld" else asked.images // 4,
            asked.steps,
            min(asked.batch, asked.images // 4),
            asked.rounds,
        )
        < BARS[bar][0]
    ]
    if slow:
        sys.exit(f"below the bar: {slow}")


if __name__ == "__main__":
    main()
