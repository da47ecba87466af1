"""The denoising loop draws what diffusers' own pipelines draw, for every family it takes over."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from diffusers import (
    DiTPipeline,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tiny_models import tiny_vae
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from synthnb.glyphworld.world import folder
from synthnb.images.denoise import DenoisingLoop, TextTable, _denoise, loop_of
from synthnb.models.pipelines import _compile_parts, _use_scheduler

torch.set_num_threads(1)
PROMPTS = ["a photo of a heart", "a photo of an arabic digit three, white chalk on a blackboard", "a photo of a heart"]
SEEDS = [5, 6, 7]


@pytest.fixture(scope="module")
def glyphs():
    pipe = StableDiffusionPipeline.from_pretrained(folder("generator"), use_safetensors=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tiny_text(tokenizer, width: int, kind=CLIPTextModel):
    torch.manual_seed(width)
    return kind(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=40,
            projection_dim=width,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    ).eval()


def tiny_parts(text_width: int, **unet):
    torch.manual_seed(0)
    made = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=text_width,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
        **unet,
    )
    vae = tiny_vae((16, 32), norm_num_groups=8)
    return made.eval(), vae.eval()


def stable_diffusion_2(glyphs):
    """v-prediction, as Stable Diffusion 2.1 has it."""
    unet, vae = tiny_parts(32)
    scheduler = EulerDiscreteScheduler(beta_schedule="scaled_linear", prediction_type="v_prediction")
    pipe = StableDiffusionPipeline(
        vae,
        tiny_text(glyphs.tokenizer, 32),
        glyphs.tokenizer,
        unet,
        scheduler,
        None,
        None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def stable_diffusion_xl(glyphs, **options):
    """Two text encoders, pooled text and sizes in the time embedding, latents with a mean of their own."""
    unet, vae = tiny_parts(
        64,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 2),
        projection_class_embeddings_input_dim=6 * 8 + 32,
        use_linear_projection=True,
    )
    vae.register_to_config(latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[1.1, 0.9, 1.0, 1.2])
    pipe = StableDiffusionXLPipeline(
        vae,
        tiny_text(glyphs.tokenizer, 32),
        tiny_text(glyphs.tokenizer, 32, CLIPTextModelWithProjection),
        glyphs.tokenizer,
        glyphs.tokenizer,
        unet,
        EulerDiscreteScheduler(beta_schedule="scaled_linear"),
        add_watermarker=False,
        **options,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def of_the_pipeline(pipe, negative: str, guidance: float, size: int) -> torch.Tensor:
    """One image at a time, as users draw them."""
    shape = {"height": size, "width": size} if size else {}
    return torch.cat(
        [
            pipe(
                p,
                num_inference_steps=5,
                guidance_scale=guidance,
                negative_prompt=negative or None,
                output_type="pt",
                **shape,
                generator=torch.Generator().manual_seed(s),
            ).images
            for p, s in zip(PROMPTS, SEEDS)
        ]
    )


def levels_apart(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert theirs.std() > 0.02, "blank images would agree with anything"
    return (ours.mul(255).round() - theirs.mul(255).round()).abs().max().item()


@pytest.mark.parametrize(
    "make, negative, size",
    [
        (stable_diffusion_2, "", 0),
        (stable_diffusion_2, "a neon sign at night", 32),
        (stable_diffusion_xl, "", 0),
        (stable_diffusion_xl, "a neon sign at night", 32),
        (lambda glyphs: stable_diffusion_xl(glyphs, force_zeros_for_empty_prompt=False), "", 0),
    ],
)
@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_every_family_draws_the_pipelines_images(glyphs, make, negative, size, guidance):
    pipe = make(glyphs)
    theirs = of_the_pipeline(pipe, negative, guidance, size)
    loop = DenoisingLoop(pipe, steps=5, guidance=guidance, size=size, batch_size=2, decode_batch=1)
    ours, flagged = loop(TextTable(pipe, PROMPTS, negative)(PROMPTS, "cpu"), SEEDS)
    assert ours.shape == theirs.shape and flagged == [False] * 3
    assert levels_apart(ours, theirs) <= 1


@pytest.mark.parametrize(
    "name",
    [
        "DDIMScheduler",
        "DDPMScheduler",
        "PNDMScheduler",
        "EulerAncestralDiscreteScheduler",
        "HeunDiscreteScheduler",
        "UniPCMultistepScheduler",
        "LMSDiscreteScheduler",
        "DPMSolverSDEScheduler",
    ],
)
def test_every_scheduler_draws_the_pipelines_images(glyphs, name):
    if name == "DPMSolverSDEScheduler":
        pytest.importorskip("torchsde")
    own = glyphs.scheduler
    try:
        _use_scheduler(glyphs, name)
        theirs = of_the_pipeline(glyphs, "", 2.0, 0)
        ours, _ = DenoisingLoop(glyphs, steps=5, guidance=2.0, batch_size=3)(
            TextTable(glyphs, PROMPTS)(PROMPTS, "cpu"), SEEDS
        )
        assert levels_apart(ours, theirs) <= 1
    finally:
        glyphs.scheduler = own


def test_the_safety_checker_is_asked(glyphs):
    pipe = stable_diffusion_2(glyphs)

    def checker(images, clip_input):
        images[1] = 0  # what diffusers' checker does to a flagged image
        return images, [False, True, False]

    pipe.safety_checker, pipe.feature_extractor = (
        checker,
        lambda images, return_tensors: type(
            "Seen", (dict,), {"to": lambda self, d: self, "pixel_values": torch.zeros(3, 1)}
        )(),
    )
    images, flagged = DenoisingLoop(pipe, steps=2, guidance=1.0, batch_size=3)(
        TextTable(pipe, PROMPTS)(PROMPTS, "cpu"), SEEDS
    )
    assert flagged == [False, True, False] and images[1].std() == 0


def test_other_pipelines_keep_their_own_loop(glyphs):
    assert loop_of(glyphs) == "denoise"
    other = DiTPipeline.__new__(DiTPipeline)
    assert loop_of(other) == "pipeline"
    with pytest.raises(ValueError, match="call the pipeline"):
        DenoisingLoop(other, steps=1, guidance=1.0)
    unet, vae = tiny_parts(32, time_cond_proj_dim=16)
    lcm = StableDiffusionPipeline(
        vae,
        tiny_text(glyphs.tokenizer, 32),
        glyphs.tokenizer,
        unet,
        EulerDiscreteScheduler(),
        None,
        None,
        requires_safety_checker=False,
    )
    assert loop_of(lcm) == "pipeline"


def test_half_precision_stays_close(glyphs):
    pipe = stable_diffusion_2(glyphs)
    table = TextTable(pipe, PROMPTS)
    exact, _ = DenoisingLoop(pipe, steps=4, guidance=2.0, batch_size=3)(table(PROMPTS, "cpu"), SEEDS)
    pipe.to(torch.bfloat16)
    halved, _ = DenoisingLoop(pipe, steps=4, guidance=2.0, batch_size=3)(
        TextTable(pipe, PROMPTS)(PROMPTS, "cpu"), SEEDS
    )
    assert halved.dtype == torch.float32 and (exact - halved).abs().mean() < 0.02


def test_compiled_parts_draw_the_same_images(glyphs):
    torch._dynamo.reset()
    loop, text = (
        DenoisingLoop(glyphs, steps=2, guidance=2.0, guided=(0.0, 0.5), batch_size=3),
        TextTable(glyphs, PROMPTS)(PROMPTS, "cpu"),
    )
    draw = lambda: loop(text, SEEDS)[0]
    plain = draw()
    torch._dynamo.utils.counters.clear()
    _compile_parts(glyphs, backend="aot_eager")
    try:
        assert torch.allclose(draw(), plain, atol=1e-5)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 3, (
            "the network with guidance and without, and the decoder"
        )
        with torch._dynamo.config.patch(error_on_recompile=True):  # two shapes, guided and not, and no more
            assert torch.allclose(draw(), plain, atol=1e-5)
    finally:
        glyphs.unet._compiled_call_impl = glyphs.vae.decoder._compiled_call_impl = None


def test_half_precision_starts_from_the_noise_of_single_precision(glyphs):
    "torch 2.11 draws other normal numbers in half precision, without tails."
    pipe = stable_diffusion_2(glyphs)
    started, drawn, whole = [], [], pipe.prepare_latents
    pipe.prepare_latents = lambda *asked: drawn.append(asked[4]) or whole(*asked)
    for kind in (torch.float32, torch.bfloat16):
        pipe.to(kind)
        unet = lambda x, t, **_: (started.append(x.float()), x)[1:]
        _denoise(pipe, unet, TextTable(pipe, PROMPTS)(PROMPTS, "cpu"), SEEDS, 1, 1.0, (0.0, 1.0), 64)
    assert drawn == [torch.float32] * 2, "whichever torch this is"
    assert torch.allclose(started[0], started[1], rtol=2**-8)
