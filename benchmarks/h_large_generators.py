"""H6: images a second, memory and share of the floor of Stable Diffusion XL and FLUX.1-schnell, at their real size with
random weights.

`python benchmarks/h_large_generators.py` where a GPU with 80 GiB is, and nothing else at work: each network as it
comes, then compiled (`--networks`, `--ways` choose), through `draw_batches` and against one `pipe(prompt)` after the
other; every rate is printed when it is known. The floor is arithmetic alone: what PyTorch counts for the denoiser's
passes, the texts and the decoder, by the rate at which this very GPU multiplies large matrices. `--count` prints the
operations, which needs no GPU; `--small` takes tiny relatives of both and runs anywhere, to see that it runs. There
is no bar yet: nothing was measured.
"""

import argparse
import gc
import platform
import resource
import statistics
import sys
import time
from dataclasses import dataclass

import diffusers
import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
)

from synthnb.generate import draw_batches
from synthnb.glyphworld.world import folder
from synthnb.images.denoise import MemoryRoom
from synthnb.images.plan import make_plan
from synthnb.models.pipelines import _compile_parts


@dataclass(frozen=True)
class Row:
    "A network and how it is asked to draw."

    network: str  # of `PIPELINES`
    size: int  # pixels a side
    steps: int
    guidance: float
    batch: int  # images drawn at once

    @property
    def passes(self) -> int:
        "Passes of the denoiser for an image; a guided step needs two."
        return self.steps * (2 if self.guidance > 1 else 1)

    def __str__(self) -> str:
        guided = f"guidance {self.guidance:g}" if self.guidance > 1 else "no guidance"
        return f"{self.network}, {self.size} px, {self.steps} steps, {guided}"


ROWS = [
    Row("SDXL", 512, 4, 1.0, 16),
    Row("SDXL", 1024, 20, 5.0, 8),
    Row("FLUX.1-schnell", 512, 4, 1.0, 8),
    Row("FLUX.1-schnell", 1024, 4, 1.0, 4),
]
SMALL = [Row("SDXL", 64, 2, 5.0, 2), Row("FLUX.1-schnell", 64, 2, 1.0, 2)]


def tokenizer(length: int) -> CLIPTokenizer:
    "Glyphworld's, since no other is here; a text encoder's size does not depend on it."
    return CLIPTokenizer.from_pretrained(folder("generator") / "tokenizer", model_max_length=length)


def clip_text(kind: type, small: bool, hidden: int, layers: int, heads: int):
    "One of CLIP's text encoders, with the marks of the tokenizer above."
    marks = tokenizer(77)
    sizes = (32, 2, 2) if small else (hidden, layers, heads)
    config = CLIPTextConfig(
        vocab_size=49408,
        max_position_embeddings=77,
        hidden_size=sizes[0],
        intermediate_size=4 * sizes[0],
        num_hidden_layers=sizes[1],
        num_attention_heads=sizes[2],
        projection_dim=sizes[0],
        bos_token_id=marks.bos_token_id,
        eos_token_id=marks.eos_token_id,
        pad_token_id=marks.pad_token_id,
    )
    return kind(config)


def decoder(small: bool, latents: int, sample_size: int, **scales) -> AutoencoderKL:
    "The autoencoder of both: eight pixels a latent."
    return AutoencoderKL(
        block_out_channels=(8, 8, 16, 16) if small else (128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        norm_num_groups=8 if small else 32,
        latent_channels=latents,
        sample_size=64 if small else sample_size,
        **scales,
    )


def sdxl_network(small: bool) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8 if small else 128,
        block_out_channels=(32, 32, 64) if small else (320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1 if small else 2,
        transformer_layers_per_block=[1, 1, 2] if small else [1, 2, 10],
        attention_head_dim=[2, 2, 4] if small else [5, 10, 20],  # the number of heads, by its old name
        cross_attention_dim=64 if small else 2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8 if small else 256,
        projection_class_embeddings_input_dim=80 if small else 2816,
    )


def scheduler_on_the_cpu(kind: type, **settings):
    "A scheduler as files make it: its steps are worked out by NumPy, whatever device the networks are made on."
    with torch.device("cpu"):
        return kind(**settings)


def sdxl(small: bool) -> StableDiffusionXLPipeline:
    noise = dict(beta_schedule="scaled_linear", steps_offset=1, timestep_spacing="leading")
    return StableDiffusionXLPipeline(
        decoder(small, 4, 1024, scaling_factor=0.13025),
        clip_text(CLIPTextModel, small, 768, 12, 12),
        clip_text(CLIPTextModelWithProjection, small, 1280, 32, 20),
        tokenizer(77),
        tokenizer(77),
        sdxl_network(small),
        scheduler_on_the_cpu(EulerDiscreteScheduler, **noise),
        add_watermarker=False,
    )


def flux_network(small: bool) -> FluxTransformer2DModel:
    return FluxTransformer2DModel(
        in_channels=64,
        num_layers=1 if small else 19,
        num_single_layers=1 if small else 38,
        attention_head_dim=16 if small else 128,
        num_attention_heads=2 if small else 24,
        joint_attention_dim=32 if small else 4096,
        pooled_projection_dim=32 if small else 768,
        axes_dims_rope=(4, 4, 8) if small else (16, 56, 56),
        guidance_embeds=False,
    )


def flux(small: bool) -> FluxPipeline:
    text = (
        dict(d_model=32, d_ff=64, num_layers=1, num_heads=2, d_kv=16)
        if small
        else dict(d_model=4096, d_ff=10240, num_layers=24, num_heads=64, d_kv=64)
    )
    unused = dict(use_quant_conv=False, use_post_quant_conv=False)
    return FluxPipeline(
        scheduler_on_the_cpu(FlowMatchEulerDiscreteScheduler, shift=1.0),
        decoder(small, 16, 1024, scaling_factor=0.3611, shift_factor=0.1159, **unused),
        clip_text(CLIPTextModel, small, 768, 12, 12),
        tokenizer(77),
        T5EncoderModel(T5Config(vocab_size=32128, feed_forward_proj="gated-gelu", **text)),
        tokenizer(512),
        flux_network(small),
    )


PIPELINES = {"SDXL": sdxl, "FLUX.1-schnell": flux}


def text_operations(row: Row, small: bool = False) -> float:
    "Floating-point operations for the texts of one image, in every text encoder: its prompt, and where guided none."
    with torch.device("meta"):
        pipe = PIPELINES[row.network](small)
    towers = [(pipe.text_encoder, 77), (pipe.text_encoder_2, 77 if row.network == "SDXL" else 512)]
    with FlopCounterMode(display=False) as count, torch.no_grad():
        for tower, length in towers:
            tower(torch.zeros(1, length, dtype=torch.int64, device="meta"))
    return count.get_total_flops() * (row.passes // row.steps)


def image_operations(row: Row, small: bool = False) -> float:
    """Floating-point operations for one image but for its texts: the denoiser's passes and the decoder, counted by
    PyTorch on tensors without storage."""
    side, count = row.size // 8, FlopCounterMode(display=False)
    with torch.device("meta"), torch.no_grad():
        if row.network == "SDXL":
            network, vae = sdxl_network(small), decoder(small, 4, row.size)
            width = network.config.cross_attention_dim
            pooled = network.config.projection_class_embeddings_input_dim - 6 * network.config.addition_time_embed_dim
            added = {"text_embeds": torch.zeros(1, pooled), "time_ids": torch.zeros(1, 6)}
            inputs = [torch.zeros(1, 4, side, side), torch.tensor(1.0), torch.zeros(1, 77, width)]
            with count:
                network(*inputs, added_cond_kwargs=added)
        else:
            network, vae = flux_network(small), decoder(small, 16, row.size)
            places = (side // 2) ** 2  # two by two latents are one place
            with count:
                network(
                    hidden_states=torch.zeros(1, places, 64),
                    encoder_hidden_states=torch.zeros(1, 512, network.config.joint_attention_dim),
                    pooled_projections=torch.zeros(1, network.config.pooled_projection_dim),
                    timestep=torch.ones(1),
                    img_ids=torch.zeros(places, 3),
                    txt_ids=torch.zeros(512, 3),
                )
        denoiser = count.get_total_flops()
        with count:  # counts from nought
            vae.decode(torch.zeros(1, vae.config.latent_channels, side, side))
    return row.passes * denoiser + count.get_total_flops()


def build(name: str, small: bool, device: str, dtype: torch.dtype):
    "A pipeline with random weights, drawn where and in the type they are needed: in float32 FLUX would take 68 GB."
    torch.manual_seed(0)
    kept = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            pipe = PIPELINES[name](small)
    finally:
        torch.set_default_dtype(kept)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def matrix_rate(device: str, dtype: torch.dtype, side: int, rounds: int = 5) -> float:
    "Operations a second in a product of two square matrices, the best of some rounds."
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(rounds + 1):  # the first warms up
        start = time.perf_counter()
        for _ in range(10):
            product = left @ right
        product[0, 0].item()  # waits for the device
        seconds.append((time.perf_counter() - start) / 10)
    return 2 * side**3 / min(seconds[1:])


def rate_of(pipe, row: Row, batches: int, rounds: int) -> tuple[float, int]:
    """Images a second that come from the loop as bytes, the median of some rounds after one that does not count; and
    how many memory let draw at once, which only ever falls."""
    rates, room = [], MemoryRoom(row.batch)
    for i in range(rounds + 1):
        how = dict(seed=i, model=row.network, steps=row.steps, guidance=row.guidance, size=row.size)
        prompts = {name: [f"a photo of {name}"] for name in ("a heart", "an anchor")}
        plan = make_plan(prompts, row.batch * batches // 2, **how)
        start = time.perf_counter()
        drawn = list(draw_batches(pipe, plan, batch_size=row.batch, retries=0, room=room))
        rates.append(sum(len(batch.images) for batch in drawn) / (time.perf_counter() - start))
    return statistics.median(rates[1:]), min(batch.at_once for batch in drawn)


def rate_of_plain_loop(pipe, row: Row, images: int) -> float:
    "Images a second of one `pipe(prompt)` after the other, after one that does not count."
    how = dict(num_inference_steps=row.steps, guidance_scale=row.guidance, height=row.size, width=row.size)
    for i in range(images + 1):
        if i == 1:
            start = time.perf_counter()
        pipe("a photo of a heart", generator=torch.Generator().manual_seed(i), **how)
    return images / (time.perf_counter() - start)


def peak_memory(device: str) -> str:
    "The most that the device has held since it was last forgotten; on a CPU the process."
    if device == "cuda":
        return f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB of the GPU"
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB"


def measure(network: str, rows: list[Row], counts: dict[Row, float], asked: argparse.Namespace, rate: float) -> None:
    "Print a line for each row of a network and each way."
    device, name = ("cuda", torch.cuda.get_device_name()) if torch.cuda.is_available() else ("cpu", platform.machine())
    pipe = build(network, asked.small, device, torch.bfloat16 if device == "cuda" else torch.float32)
    batches, rounds = (1, 1) if asked.small else (2, asked.rounds)
    plain = {row: rate_of_plain_loop(pipe, row, batches) for row in rows}
    for way in asked.ways:
        if way == "compiled":
            _compile_parts(pipe)
        for row in rows:
            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            images, at_once = rate_of(pipe, row, batches, rounds)
            print(
                f"H6 {row}, {at_once} at once, on {name}, {way}: {images:.3g} images a second, "
                f"{images / plain[row]:.2f}x of one by one; {images * counts[row] / rate:.0%} of the floor's "
                f"{rate / counts[row]:.3g}; peak {peak_memory(device)}",
                flush=True,
            )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--count", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--networks", nargs="*", default=list(PIPELINES), choices=list(PIPELINES))
    parser.add_argument("--ways", nargs="*", default=["as it comes", "compiled"], choices=["as it comes", "compiled"])
    asked = parser.parse_args()
    gpu = torch.cuda.is_available()
    rows = [row for row in (SMALL if asked.small else ROWS) if row.network in asked.networks]
    counts = {row: image_operations(row, asked.small) + text_operations(row, asked.small) for row in rows}
    for row, count in counts.items():
        print(f"{row}: {count / 1e12:.4g} TFLOP an image", flush=True)
    if asked.count:
        return 0
    if asked.small:
        torch.set_num_threads(1)
        asked.ways = ["as it comes"]
    if not (gpu or asked.small):
        sys.exit("no GPU here: --small shows that the script runs, --count counts its operations")
    dtype = torch.bfloat16 if gpu else torch.float32
    rate = matrix_rate("cuda" if gpu else "cpu", dtype, 256 if asked.small else 8192)
    print(f"torch {torch.__version__}, diffusers {diffusers.__version__}: {rate / 1e12:.4g} TFLOP/s in products")
    for network in asked.networks:
        measure(network, [row for row in rows if row.network == network], counts, asked, rate)
        gc.collect()  # a compiled network refers to itself
        if gpu:
            torch.cuda.empty_cache()
    return 0


if __name__ == "__main__":
    sys.exit(main())
