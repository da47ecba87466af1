"""H1, H1b, H1c and H5: images and inversion steps a second on a GPU, in Stable Diffusion 1.5's architecture with random
weights, and their share of the card's floor.

`python benchmarks/h_gpu.py` where a GPU is, and nothing else at work: first as it comes, then with the denoiser and the
decoder compiled, which takes minutes; the bars are for compiled ones, and every rate is printed when it is known.
`--small` takes a tiny architecture, not compiled, and runs anywhere, to see that it runs. Floors and bars are those of
one H200 (compute: an H100 has the same); on another device the script prints rates and no share. Exits with status 1
below a bar.
"""

import argparse
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

import diffusers
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from synthnb.data import LabelledImages
from synthnb.dsi import InvertConfig, invert
from synthnb.generate import draw_batches
from synthnb.glyphworld.world import folder
from synthnb.images.denoise import loop_of
from synthnb.images.folder import open_folder
from synthnb.images.plan import write_plan
from synthnb.images.worker import Leases, _make_shard
from synthnb.models.pipelines import _compile_parts

# name: (what, steps, guidance, part of the steps that is guided, tiny decoder, floor, pass)
IMAGES = {
    "H1": ("50 steps, guided", 50, 7.5, (0.0, 1.0), False, 9.53, 4.0),
    "H1b": ("20 steps, 8 of them guided", 20, 7.5, (0.3, 0.7), False, 31.6, 12.0),
    "H1c": ("4 steps, no guidance", 4, 1.0, (0.0, 1.0), False, 137.0, 40.0),
    "H1c tiny decoder": ("4 steps, no guidance, TAESD's architecture", 4, 1.0, (0.0, 1.0), True, 234.0, 60.0),
}
INVERSION = ("H5", 120.0, 20.0)  # floor and pass, steps a second at batch 4


def build(small: bool, device: str, dtype: torch.dtype) -> StableDiffusionPipeline:
    """Stable Diffusion 1.5 as its configuration describes it, or a tiny relative."""
    scheduler = DPMSolverMultistepScheduler(beta_schedule="scaled_linear", steps_offset=1)
    with torch.device(device):  # a billion random weights are drawn where they are needed
        return _build(small, scheduler).to(device, dtype)


def _build(small: bool, scheduler: DPMSolverMultistepScheduler) -> StableDiffusionPipeline:
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(folder("generator") / "tokenizer", model_max_length=77)
    text = (
        dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
        if small
        else dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
    )
    encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            max_position_embeddings=77,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            **text,
        )
    )
    if small:
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(32, 64),
            layers_per_block=1,
            norm_num_groups=8,
            cross_attention_dim=32,
            attention_head_dim=8,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        )
    else:
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    widths = (16, 16, 32, 32) if small else (128, 256, 512, 512)
    vae = AutoencoderKL(
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        norm_num_groups=8 if small else 32,
        latent_channels=4,
        sample_size=8 * unet.config.sample_size,
    )
    pipe = StableDiffusionPipeline(vae, encoder, tokenizer, unet, scheduler, None, None, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def rate_of_images(pipe, name: str, batch: int, batches: int, rounds: int) -> float:
    """Images a second into published JPEG shards, the median of some rounds."""
    _, steps, guidance, guided, tiny, *_ = IMAGES[name]
    own, rates = pipe.vae, []
    if tiny:
        pipe.register_modules(vae=pipe.tiny_decoder)
    with tempfile.TemporaryDirectory() as scratch:
        for i in range(rounds):
            prompts = {c: [f"a photo of {c}"] for c in ("a heart", "an anchor")}
            plan = write_plan(
                Path(scratch, f"{i}.parquet"),
                prompts,
                batch * batches // 2,
                seed=i,
                model="sd15",
                steps=steps,
                guidance=guidance,
                guidance_interval=guided,
                shard_size=batch * batches,
                batch_size=batch,
            )
            home, start = open_folder(Path(scratch, str(i)), plan), time.perf_counter()
            _make_shard(
                home,
                home.pieces()[0],
                Leases(home.own / "leases").claim("000000"),
                lambda rows: draw_batches(pipe, rows, batch_size=batch, retries=0),
                {"loop": loop_of(pipe), "format": "jpeg", "quality": 95},
            )
            rates.append(plan.images / (time.perf_counter() - start))  # a published shard has waited for the device
    pipe.register_modules(vae=own)
    return statistics.median(rates)


def rate_of_naive_loop(pipe, images: int) -> float:
    """`pipe(prompt)` and a PNG, one by one: what H1 has to beat."""
    with tempfile.TemporaryDirectory() as scratch:
        start = time.perf_counter()
        for i in range(images):
            pipe(
                "a photo of a heart",
                num_inference_steps=50,
                guidance_scale=7.5,
                generator=torch.Generator().manual_seed(i),
            ).images[0].save(f"{scratch}/{i}.png")
        return images / (time.perf_counter() - start)


def rate_of_inversion(pipe, batch: int, steps: int, rounds: int) -> float:
    """Steps a second of `invert`, latents cached, the median of some rounds."""
    side = pipe.unet.config.sample_size * pipe.vae_scale_factor
    pictures = torch.randint(0, 256, (8, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    data = LabelledImages(pictures, torch.arange(8) % 2, ("heart", "anchor"), "noise")
    learn = lambda n: invert(
        pipe,
        data,
        {c: c for c in data.classes},
        config=InvertConfig(steps=n, batch_size=batch, initializer=None, num_vectors=1, check_every=n),
        progress=False,
    )
    return statistics.median(steps / learn(steps).seconds for _ in range(rounds))


def rates_of(pipe, names: list[str], batch: int, batches: int, steps: int, rounds: int, label: str) -> dict[str, float]:
    """Rates of some rows, each said when it is known; a first turn that does not count compiles what has to be."""
    rates = {}
    for name in names:
        start = time.perf_counter()
        rate_of_images(pipe, name, batch, 1, 1) if name in IMAGES else rate_of_inversion(pipe, 4, 3, 1)
        first = time.perf_counter() - start
        many = (
            batches * max(1, 20 // IMAGES[name][1]) if name in IMAGES else 0
        )  # few-step shards would end as soon as they begin
        rates[name] = (
            rate_of_images(pipe, name, batch, many, rounds)
            if name in IMAGES
            else rate_of_inversion(pipe, 4, steps, rounds)
        )
        print(
            f"{name} on {label}: {rates[name]:.2f} {describe(name, 'H100' in label or 'H200' in label)}, "
            f"after a first turn of {first:.0f} s",
            flush=True,
        )
    return rates


def describe(name: str, floors: bool) -> str:
    """What a rate counts, and on a card whose floor is known what it is to be compared with."""
    unit, (floor, bar), what = (
        ("steps", INVERSION[1:], "inversion, batch 4")
        if name == INVERSION[0]
        else ("images", IMAGES[name][-2:], IMAGES[name][0])
    )
    return f"{unit} a second ({what}{f'; floor {floor:g}, bar {bar:g}' if floors else ''})"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    gpu = torch.cuda.is_available()
    if asked.small:
        torch.set_num_threads(1)
    if not (gpu or asked.small):
        sys.exit("no GPU here: --small shows that the script runs")
    device, card = ("cuda", torch.cuda.get_device_name()) if gpu else ("cpu", platform.machine())
    judged = gpu and not asked.small and ("H200" in card or "H100" in card)
    batch, batches, steps, rounds = (2, 1, 5, 1) if asked.small else (asked.batch, 2, 100, asked.rounds)
    print(
        f"{card}, torch {torch.__version__}, diffusers {diffusers.__version__}, "
        f"{'a tiny architecture' if asked.small else 'SD 1.5 architecture, 512 px'}, batch {batch}"
    )
    pipe = build(asked.small, device, torch.bfloat16 if gpu else torch.float32)
    pipe.tiny_decoder = AutoencoderTiny().to(pipe.device, pipe.dtype)
    names = [*IMAGES, INVERSION[0]]
    rate_of_naive_loop(pipe, 1)  # warms up
    naive = rate_of_naive_loop(pipe, 1 if asked.small else 4)
    print(f"one by one on {card}: {naive:.2f} images a second", flush=True)
    ways = {"as it comes": rates_of(pipe, names, batch, batches, steps, rounds, f"{card}, as it comes")}
    if not asked.small:
        _compile_parts(pipe)
        pipe.tiny_decoder.decoder.compile(dynamic=False)
        ways["compiled"] = rates_of(pipe, names, batch, batches, steps, rounds, f"{card}, compiled")
    for way, rates in ways.items():
        print(
            f"H1 on {card}, {way}: {rates['H1'] / naive:.2f}x of one by one "
            f"({naive:.2f} images a second; bar 4.5x on a GPU)"
        )
    below = [
        name
        for name in names
        if judged and ways["compiled"][name] < (INVERSION[2] if name == INVERSION[0] else IMAGES[name][-1])
    ]
    below += ["H1 against one by one"] if judged and ways["compiled"]["H1"] / naive < 4.5 else []
    print(f"below the bar: {below}" if below else "no bar missed" if judged else "no bars on this device")
    return bool(below)


if __name__ == "__main__":
    sys.exit(main())
