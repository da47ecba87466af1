"""Each family of generators, with the real configurations' traits on tiny random networks.

Each is called rightly, or refused before drawing.

Real weights were not at hand. What stands in for them are diffusers' own classes with few and narrow layers, and the
traits that decide how a pipeline is called: prediction types, schedulers and their spacing, guidance embeddings,
several text encoders, prompts of variable length.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import functools
import json
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
import transformers
from diffusers import (
    AutoencoderDC,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    UNet2DConditionModel,
    VQModel,
)
from tiny_models import tiny_vae
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, PreTrainedTokenizerFast

from synthnb.diversify import PromptRequest, compose
from synthnb.generate import draw_batches, plan_call
from synthnb.images.plan import make_plan
from synthnb.models.families import FAMILIES, call_pipeline, describe_family, family_of, no_token, unusual_settings
from synthnb.models.pipeline_files import _check_part
from synthnb.prompts.grammar import _token_counts, tokenizers_of

torch.set_num_threads(1)
PROMPTS = {"crane": ["a crane bird"], "jay": ["a photo of a blue jay on a very long branch"]}
NEGATIVE = "an ugly drawing"


# ---------------------------------------------------------------- tokenizers and text encoders


@functools.cache
def letters():
    """Every letter a token: 0 is padding, 1 begins, 2 ends."""
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3} | {chr(c): c - 28 for c in range(32, 127)}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    made.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    return made


def tokenizer(longest=77, side="right"):
    made = PreTrainedTokenizerFast(
        tokenizer_object=letters(),
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=longest,
        padding_side=side,
    )
    made.chat_template = (
        "{% for m in messages %}{% if m['content'] is string %}{{ m['content'] }}"
        "{% else %}{{ m['content'][0]['text'] }}{% endif %}{% endfor %}"
    )
    return made


def clip_text(width=32, kind=CLIPTextModel):
    torch.manual_seed(width)
    return kind(
        CLIPTextConfig(
            vocab_size=128,
            hidden_size=width,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=77,
            projection_dim=width,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        )
    ).eval()


def t5_text(width=32):
    torch.manual_seed(3)
    return transformers.T5EncoderModel(
        transformers.T5Config(vocab_size=128, d_model=width, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    ).eval()


def llm_config(kind, **more):
    return kind(
        vocab_size=128,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=1024,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **more,
    )


# ---------------------------------------------------------------- networks and decoders


def decoder(latents=4, blocks=(8, 16), **more):
    torch.manual_seed(5)
    return tiny_vae(blocks, latent_channels=latents, **more).eval()


def unet(width=32, **more):
    torch.manual_seed(7)
    options = dict(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=width,
        attention_head_dim=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    return UNet2DConditionModel(**options | more).eval()


LDM = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")


def stable_diffusion(scheduler, width=32, **more):
    return diffusers.StableDiffusionPipeline(
        decoder(),
        clip_text(width),
        tokenizer(),
        unet(width, **more),
        scheduler,
        None,
        None,
        requires_safety_checker=False,
    )


def sd15():
    return stable_diffusion(PNDMScheduler(**LDM, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1))


def sd21():
    return stable_diffusion(
        EulerDiscreteScheduler(**LDM, prediction_type="v_prediction", steps_offset=1), 48, use_linear_projection=True
    )


def sd_turbo():
    return stable_diffusion(
        EulerDiscreteScheduler(**LDM, timestep_spacing="trailing", steps_offset=1), 48, use_linear_projection=True
    )


def xl(scheduler, force_zeros=True, upcast=True):
    # SDXL: two text encoders of different widths, a pooled one, sizes in the time embedding; its VAE asks to be upcast
    network = unet(
        32 + 48,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 48,
        transformer_layers_per_block=(1, 2),
        use_linear_projection=True,
    )
    return diffusers.StableDiffusionXLPipeline(
        decoder(scaling_factor=0.13025, force_upcast=upcast),
        clip_text(32),
        clip_text(48, CLIPTextModelWithProjection),
        tokenizer(),
        tokenizer(),
        network,
        scheduler,
        force_zeros_for_empty_prompt=force_zeros,
        add_watermarker=False,
    )


def sdxl():
    return xl(EulerDiscreteScheduler(**LDM, steps_offset=1, timestep_spacing="leading"))


def sdxl_turbo():
    return xl(EulerAncestralDiscreteScheduler(**LDM, steps_offset=1, timestep_spacing="trailing"))


def sdxl_lightning():
    return xl(EulerDiscreteScheduler(**LDM, steps_offset=1, timestep_spacing="trailing"))


def lcm():
    return diffusers.LatentConsistencyModelPipeline(
        decoder(),
        clip_text(),
        tokenizer(),
        unet(time_cond_proj_dim=16),
        LCMScheduler(**LDM, original_inference_steps=50),
        None,
        None,
        requires_safety_checker=False,
    )


def sd35():
    torch.manual_seed(11)
    network = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=16,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=112,
        pooled_projection_dim=80,
        out_channels=16,
        pos_embed_max_size=16,
        qk_norm="rms_norm",
        dual_attention_layers=(0,),
    )
    return diffusers.StableDiffusion3Pipeline(
        network.eval(),
        FlowMatchEulerDiscreteScheduler(shift=3.0),
        decoder(16, shift_factor=0.0609, scaling_factor=1.5305, use_quant_conv=False, use_post_quant_conv=False),
        clip_text(32, CLIPTextModelWithProjection),
        tokenizer(),
        clip_text(48, CLIPTextModelWithProjection),
        tokenizer(),
        t5_text(112),
        tokenizer(256),
    )


def flux(guided, shift):
    torch.manual_seed(13)
    network = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=guided,
    )
    return diffusers.FluxPipeline(
        shift,
        decoder(4, shift_factor=0.1159, scaling_factor=0.3611, use_quant_conv=False, use_post_quant_conv=False),
        clip_text(),
        tokenizer(),
        t5_text(),
        tokenizer(512),
        network.eval(),
    )


def flux_dev():
    return flux(True, FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True))


def flux_schnell():
    return flux(False, FlowMatchEulerDiscreteScheduler(shift=1.0))


def flux2_klein(distilled=True):
    torch.manual_seed(17)
    network = diffusers.Flux2Transformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=48,
        timestep_guidance_channels=32,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    )
    vae = AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
        block_out_channels=(4,),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=1,
        sample_size=16,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    text = transformers.Qwen3ForCausalLM(llm_config(transformers.Qwen3Config)).eval()
    pipe = diffusers.Flux2KleinPipeline(
        FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae.eval(),
        text,
        tokenizer(),
        network.eval(),
        is_distilled=distilled,
    )
    # the real text encoder has 36 layers, of which 9, 18 and 27 are read; this one has 3
    pipe.encode_prompt = functools.partial(pipe.encode_prompt)
    encode = pipe.encode_prompt
    pipe.encode_prompt = lambda *args, **kwargs: encode(*args, **kwargs | {"text_encoder_out_layers": (1, 2, 3)})
    return pipe


def qwen_image():
    torch.manual_seed(19)
    network = diffusers.QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        guidance_embeds=False,
        axes_dims_rope=(8, 4, 4),
    )
    vae = AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[1.1, 0.9, 1.0, 1.2],
    )
    config = transformers.Qwen2_5_VLConfig(
        text_config=dict(
            vocab_size=128,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            rope_parameters={"mrope_section": [1, 1, 2], "rope_type": "default", "rope_theta": 1e6},
        ),
        vision_config=dict(depth=1, hidden_size=16, intermediate_size=16, num_heads=2, out_hidden_size=16),
    )
    text = transformers.Qwen2_5_VLForConditionalGeneration(config).eval()
    scheduler = FlowMatchEulerDiscreteScheduler(
        shift=1.0, use_dynamic_shifting=True, shift_terminal=0.02, time_shift_type="exponential"
    )
    return diffusers.QwenImagePipeline(scheduler, vae.eval(), text, tokenizer(1024), network.eval())


def z_image():
    torch.manual_seed(23)
    network = diffusers.ZImageTransformer2DModel(
        all_patch_size=(2,),
        all_f_patch_size=(1,),
        in_channels=16,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        qk_norm=True,
        cap_feat_dim=16,
        rope_theta=256.0,
        t_scale=1000.0,
        axes_dims=[8, 4, 4],
        axes_lens=[512, 32, 32],
    )
    with torch.no_grad():  # these begin as whatever memory held
        network.x_pad_token.fill_(1.0)
        network.cap_pad_token.fill_(1.0)
    text = transformers.Qwen3Model(llm_config(transformers.Qwen3Config)).eval()
    return diffusers.ZImagePipeline(
        FlowMatchEulerDiscreteScheduler(shift=3.0),
        decoder(16, scaling_factor=0.3611, shift_factor=0.1159),
        text,
        tokenizer(512),
        network.eval(),
    )


def sana():
    torch.manual_seed(29)
    network = diffusers.SanaTransformer2DModel(
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=4,
        num_cross_attention_heads=2,
        cross_attention_head_dim=4,
        cross_attention_dim=8,
        caption_channels=16,
        sample_size=8,
    )
    vae = AutoencoderDC(
        in_channels=3,
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=0.41407,
    )
    text = transformers.Gemma2Model(llm_config(transformers.Gemma2Config, attn_implementation="eager")).eval()
    scheduler = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, algorithm_type="dpmsolver++"
    )
    return diffusers.SanaPipeline(tokenizer(300), text, vae.eval(), network.eval(), scheduler)


def pixart_sigma():
    torch.manual_seed(31)
    network = diffusers.PixArtTransformer2DModel(
        sample_size=8,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=3,
        caption_channels=32,
        in_channels=4,
        cross_attention_dim=24,
        out_channels=8,
        use_additional_conditions=False,
    )
    return diffusers.PixArtSigmaPipeline(
        tokenizer(300),
        t5_text(),
        decoder(scaling_factor=0.13025),
        network.eval(),
        DPMSolverMultistepScheduler(
            beta_start=0.0001, beta_end=0.02, beta_schedule="linear", algorithm_type="dpmsolver++"
        ),
    )


def kandinsky():
    torch.manual_seed(37)
    network = UNet2DConditionModel(
        in_channels=4,
        out_channels=8,
        addition_embed_type="image",
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        block_out_channels=(32, 64),
        layers_per_block=1,
        encoder_hid_dim=32,
        encoder_hid_dim_type="image_proj",
        cross_attention_dim=32,
        attention_head_dim=4,
        resnet_time_scale_shift="scale_shift",
    )
    movq = VQModel(
        block_out_channels=(32, 32),
        down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=4,
        norm_type="spatial",
        num_vq_embeddings=12,
        vq_embed_dim=4,
    )
    prior = diffusers.PriorTransformer(num_attention_heads=2, attention_head_dim=12, embedding_dim=32, num_layers=1)
    with torch.no_grad():
        prior.clip_std.fill_(1.0)
    eye = transformers.CLIPVisionModelWithProjection(
        transformers.CLIPVisionConfig(
            hidden_size=32,
            image_size=28,
            projection_dim=32,
            intermediate_size=32,
            num_attention_heads=4,
            num_hidden_layers=1,
            patch_size=14,
        )
    )
    seer = transformers.CLIPImageProcessor(crop_size=28, size=28)
    steps = diffusers.UnCLIPScheduler(
        variance_type="fixed_small_log",
        prediction_type="sample",
        num_train_timesteps=1000,
        clip_sample=True,
        clip_sample_range=5.0,
    )
    return diffusers.KandinskyV22CombinedPipeline(
        unet=network.eval(),
        scheduler=DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="linear", clip_sample=False),
        movq=movq.eval(),
        prior_prior=prior.eval(),
        prior_image_encoder=eye.eval(),
        prior_text_encoder=clip_text(32, CLIPTextModelWithProjection),
        prior_tokenizer=tokenizer(),
        prior_scheduler=steps,
        prior_image_processor=seer,
    )


def cogview4():
    torch.manual_seed(41)
    network = diffusers.CogView4Transformer2DModel(
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=4,
        num_attention_heads=4,
        out_channels=4,
        text_embed_dim=16,
        time_embed_dim=8,
        condition_dim=4,
    )
    scheduler = FlowMatchEulerDiscreteScheduler(
        base_shift=0.25, max_shift=0.75, base_image_seq_len=256, use_dynamic_shifting=True, time_shift_type="linear"
    )
    text = transformers.GlmModel(llm_config(transformers.GlmConfig)).eval()
    return diffusers.CogView4Pipeline(tokenizer(1024, "left"), text, decoder(), network.eval(), scheduler)


def ernie_image():
    torch.manual_seed(43)
    network = diffusers.ErnieImageTransformer2DModel(
        hidden_size=32,
        num_attention_heads=2,
        num_layers=2,
        ffn_hidden_size=32,
        in_channels=16,
        out_channels=16,
        text_in_dim=16,
        rope_axes_dim=(4, 6, 6),
    )
    klein, config = flux2_klein(), llm_config(transformers.Qwen3Config)
    text, writer = transformers.Qwen3Model(config).eval(), transformers.Qwen3ForCausalLM(config).eval()
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    return diffusers.ErnieImagePipeline(
        network.eval(), klein.vae, text, tokenizer(512), scheduler, writer, tokenizer(20)
    )


# ---------------------------------------------------------------- what is expected of each

GUIDED = dict(guidance_scale=5.0)
# name: how it is made, pixels a side, what the pipeline itself is called with at guidance 1 and 5 (None: refused),
# is a negative prompt read?
FAMILY = {
    "SD 1.5": (sd15, 16, dict(guidance_scale=1.0), GUIDED, True),
    "SD 2.1": (sd21, 16, dict(guidance_scale=1.0), GUIDED, True),
    "SD-Turbo": (sd_turbo, 16, dict(guidance_scale=0.0), GUIDED, True),
    "SDXL": (sdxl, 16, dict(guidance_scale=1.0), GUIDED, True),
    "SDXL-Turbo": (sdxl_turbo, 16, dict(guidance_scale=0.0), GUIDED, True),
    "SDXL-Lightning": (sdxl_lightning, 16, dict(guidance_scale=0.0), GUIDED, True),
    "LCM": (lcm, 16, dict(guidance_scale=1.0), GUIDED, False),
    "SD 3.5": (sd35, 16, dict(guidance_scale=1.0), GUIDED, True),
    "FLUX.1 dev": (flux_dev, 16, dict(guidance_scale=1.0), GUIDED, False),
    "FLUX.1 schnell": (flux_schnell, 16, dict(guidance_scale=0.0), dict(true_cfg_scale=5.0, negative_prompt=" "), True),
    "FLUX.2 klein": (flux2_klein, 16, dict(guidance_scale=1.0), None, False),
    "FLUX.2 klein base": (functools.partial(flux2_klein, False), 16, dict(guidance_scale=1.0), GUIDED, False),
    "Qwen-Image": (qwen_image, 32, dict(true_cfg_scale=1.0), dict(true_cfg_scale=5.0, negative_prompt=" "), True),
    "Z-Image": (z_image, 32, dict(guidance_scale=0.0), GUIDED, True),
    "Sana": (
        sana,
        32,
        dict(guidance_scale=1.0, use_resolution_binning=False),
        GUIDED | dict(use_resolution_binning=False),
        True,
    ),
    "PixArt-Sigma": (
        pixart_sigma,
        16,
        dict(guidance_scale=1.0, use_resolution_binning=False),
        GUIDED | dict(use_resolution_binning=False),
        True,
    ),
    "CogView4": (cogview4, 32, dict(guidance_scale=1.0), GUIDED, True),  # no mask: drawn one by one
    "Kandinsky 2.2": (
        kandinsky,
        64,
        dict(guidance_scale=1.0, prior_guidance_scale=1.0),
        GUIDED | dict(prior_guidance_scale=5.0),
        True,
    ),
}


@functools.cache
def made(name):
    pipe = FAMILY[name][0]()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def planned(name, guidance, negative="", steps=2):
    return make_plan(
        PROMPTS,
        1,
        seed=0,
        model="tiny",
        steps=steps,
        guidance=guidance,
        size=FAMILY[name][1],
        batch_size=2,
        negative_prompt=negative,
    )


def drawn(name, plan):
    return next(draw_batches(made(name), plan, batch_size=2, retries=0)).images.int()


def of_the_pipeline(name, plan, call):
    """One image at a time and as PIL images, as users draw them."""
    side = FAMILY[name][1]
    images = [
        made(name)(
            prompt=row.prompt,
            height=side,
            width=side,
            num_inference_steps=int(row.steps),
            generator=torch.Generator().manual_seed(int(row.seed)),
            **call,
        ).images[0]
        for row in plan.itertuples()
    ]
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2).int()


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.filterwarnings("ignore")
def test_a_family_is_drawn_as_its_pipeline_draws_it(name):
    _, side, unguided, guided, negative = FAMILY[name]
    images = {}
    for guidance, call in ((1.0, unguided), (5.0, guided)):
        plan = planned(name, guidance)
        if call is None:
            with pytest.raises(ValueError, match="is not guided"):
                drawn(name, plan)
            continue
        images[guidance] = drawn(name, plan)
        theirs = of_the_pipeline(name, plan, call)
        assert images[guidance].shape == (2, 3, side, side) and theirs.float().std() > 3, (
            "blank images would agree with anything"
        )
        assert (images[guidance] - theirs).abs().max() <= 1
        passed = plan_call(made(name), plan.iloc[0])
        assert passed["num_inference_steps"] == 2 and passed["height"] == passed["width"] == side
        scale = 0.0 if call["guidance_scale" if "guidance_scale" in call else "true_cfg_scale"] == 0 else guidance
        assert all(
            value in (guidance, scale) for key, value in passed.items() if key.endswith(("guidance_scale", "cfg_scale"))
        ), passed
    if guided:
        assert (images[1.0] - images[5.0]).abs().max() > 1, "the guidance did nothing"

    if negative:
        other = drawn(name, planned(name, 5.0, NEGATIVE))
        assert (other - images[5.0]).abs().max() > 1, "the negative prompt did nothing"
        assert plan_call(made(name), planned(name, 5.0, NEGATIVE).iloc[0])["negative_prompt"] == NEGATIVE
    else:
        with pytest.raises(ValueError, match="negative prompt|is not guided"):
            drawn(name, planned(name, 5.0, NEGATIVE))
    with pytest.raises(ValueError, match="negative prompt"):
        drawn(name, planned(name, 1.0, NEGATIVE))


def test_the_prompts_of_the_plan_are_drawn_and_no_others(monkeypatch):
    "Ernie's and LongCat's pipelines let a chat model write others, unless they are told not to."
    pipe, read = ernie_image(), []
    pipe.set_progress_bar_config(disable=True)
    encode = pipe.encode_prompt
    monkeypatch.setattr(pipe, "encode_prompt", lambda prompts, *rest: read.extend(prompts) or encode(prompts, *rest))
    plan = make_plan(PROMPTS, 1, seed=0, model="tiny", steps=1, guidance=1.0, size=16, batch_size=2)
    first = [next(draw_batches(pipe, plan, batch_size=2, retries=0)).images for _ in range(2)]
    assert read == 2 * list(plan.prompt) and first[0].equal(first[1])


def test_an_image_is_found_under_either_name(monkeypatch):
    from diffusers.pipelines.kandinsky5.pipeline_output import KandinskyImagePipelineOutput

    def draw(self, prompt, num_inference_steps, output_type, generator):
        drawn.append(prompt)
        return KandinskyImagePipelineOutput(image=np.full((len(prompt), 8, 8, 3), len(drawn) / 4, np.float32))

    drawn = []
    pipe = type("Kandinsky5T2IPipeline", (), {"__call__": draw, "device": torch.device("cpu")})()
    pixels, flagged = call_pipeline(pipe, {"num_inference_steps": 1}, ["a", "b"], [1, 2])
    assert pixels[:, 0, 0, 0].tolist() == [0.25, 0.5] and flagged == [False, False]
    assert drawn == [["a"], ["b"]], "a longer prompt would move the other's image"


# ---------------------------------------------------------------- compiling, the table, memory


@pytest.mark.parametrize("name", ["Qwen-Image", "Z-Image"])
@pytest.mark.filterwarnings("ignore")
def test_lengths_of_prompts_are_not_compiled_anew(name):
    from synthnb.models.pipelines import _compile_parts

    torch._dynamo.reset()
    plain = {n: drawn_prompt(made(name), name, "a" * n) for n in (5, 60)}
    pipe = FAMILY[name][0]()
    pipe.set_progress_bar_config(disable=True)
    _compile_parts(pipe, backend="eager")
    torch._dynamo.utils.counters.clear()
    for n in (
        5,
        30,
        101,
    ):  # the second batch holds two lengths that Z-Image pads to 32 and to 64; the third fills Qwen-Image's next 128
        drawn_prompt(pipe, name, "a" * n)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert graphs >= 1
    for n in (7, 18, 29, 33, 60, 64, 70, 81, 90, 101):  # more lengths than dynamo compiles for
        images = drawn_prompt(pipe, name, "a" * n)
        if n in plain:
            assert (images - plain[n]).abs().max() <= 1
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs, "a new length was compiled anew"
    torch._dynamo.reset()


def drawn_prompt(pipe, name, text):
    plan = make_plan(
        {"one": [text], "two": [text + "b"]},
        1,
        seed=0,
        model="tiny",
        steps=1,
        guidance=5.0,
        size=FAMILY[name][1],
        batch_size=2,
    )
    return next(draw_batches(pipe, plan, batch_size=2, retries=0)).images.int()


def test_the_vae_of_sdxl_is_upcast_in_half_precision():
    from synthnb.images.denoise import DenoisingLoop, TextTable

    pipe = sdxl().to(torch.float16)
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(
        prompt="a crane bird",
        height=16,
        width=16,
        num_inference_steps=2,
        guidance_scale=5.0,
        generator=torch.Generator().manual_seed(3),
        output_type="np",
    ).images
    assert pipe.vae.dtype == torch.float16, "the pipeline upcasts for one image"
    ours, _ = DenoisingLoop(pipe, steps=2, guidance=5.0, size=16, batch_size=1)(
        TextTable(pipe, ["a crane bird"])(["a crane bird"], "cpu"), [3]
    )
    assert pipe.vae.dtype == torch.float32, "ours for all"
    assert (ours[0].permute(1, 2, 0) - torch.from_numpy(theirs[0])).abs().mean() < 2 / 255


def test_the_table_is_found_by_name_and_warns_of_guided_turbos():
    assert [
        family_of(name).name
        for name in (
            "stabilityai/sd-turbo",
            "ByteDance/SDXL-Lightning",
            "black-forest-labs/FLUX.2-klein-base-4B",
            "Qwen/Qwen-Image-2512",
        )
    ] == ["SD-Turbo", "SDXL-Lightning", "FLUX.2 klein base 4B", "Qwen-Image"]
    for family in FAMILIES:
        assert bool(unusual_settings(family, family.steps, 4.0)) == family.turbo and not unusual_settings(
            family, family.steps, family.guidance or 1.0
        )
    plan = make_plan(PROMPTS, 1, seed=0, model="stabilityai/sd-turbo", steps=1, guidance=5.0, size=16)
    with pytest.warns(UserWarning, match="SD-Turbo is made to be drawn without guidance"):
        next(draw_batches(made("SD-Turbo"), plan, batch_size=2))


def test_a_new_family_is_one_row(monkeypatch, tmp_path):
    "Everything that knows families learns of a new one from its row in families.json."
    from synthnb.models import families
    from synthnb.studies.doctor_drawing import a100_drawing

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    name = "somebody/brand-new-turbo"
    assert family_of(name) is None and a100_drawing({"generator": name}, 1000) is None
    table = json.loads((Path(families.__file__).with_name("families.json")).read_text())["families"]
    row = next(one for one in table if one["name"] == "Z-Image-Turbo")
    new = row | {"name": "Brand New", "models": ["brand-new"], "pipeline": "BrandNewPipeline", "default": True}
    monkeypatch.setattr(families, "FAMILIES", (*FAMILIES, families.Family(**new)))
    found = family_of(name)
    assert found.name == "Brand New" and family_of("/models/mine", "BrandNewPipeline") == found
    assert describe_family(found).startswith("Brand New: 9 steps, no guidance, 1024 pixels")
    assert "made to be drawn without guidance" in unusual_settings(found, 9, 5.0)[0]
    assert "no style token can be learned" in no_token(name)
    seconds, how = a100_drawing({"generator": name, "denoising_steps": 9, "guidance": 1.0}, 1000)
    assert seconds > 0 and "the arithmetic of Brand New at 1024 pixels" in how
    assert FAMILIES[0].name == "Stable Diffusion 1.5", "the doctor scales this family's published rate: add rows below"


# ------------------------------------------------------------ prompts are counted where the tokenizer is a processor


def pixtral():
    "FLUX.2's own: a processor of texts and images in the place of the tokenizer."
    words = PreTrainedTokenizerFast(
        tokenizer_object=letters(), pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    words.add_special_tokens({"additional_special_tokens": ["[IMG]", "[IMG_BREAK]", "[IMG_END]"]})
    return transformers.PixtralProcessor(
        transformers.PixtralImageProcessor(size={"longest_edge": 28}, patch_size=14), words
    )


def flux2_with_a_processor():
    klein = flux2_klein()
    return diffusers.Flux2Pipeline(klein.scheduler, klein.vae, None, pixtral(), klein.transformer)


def test_a_processor_counts_prompts(tmp_path):
    pipe, prompt = flux2_with_a_processor(), PROMPTS["crane"][0]
    plain = len(letters().encode(prompt).ids)
    pipe.save_pretrained(tmp_path / "flux2")
    index = json.loads((tmp_path / "flux2" / "model_index.json").read_text())
    assert index["tokenizer"][1] == "PixtralProcessor", "the real file's form"
    for generator in (pipe, tmp_path / "flux2"):
        found = tokenizers_of(generator)
        assert _token_counts([prompt, ""], found).tolist() == [[plain], [plain - len(prompt)]]
        request = PromptRequest({"crane": "crane bird"}, 1, contexts=0, styles=0, templates=["a photo of {a phrase}"])
        book = compose(request, None, None, found)
        assert book.prompt.tolist() == ["a photo of a crane bird"]
    index["processor"] = index.pop("tokenizer")  # as Bria Fibo 2 and Qwen-Image 2.1 have it
    (tmp_path / "flux2" / "tokenizer").rename(tmp_path / "flux2" / "processor")
    (tmp_path / "flux2" / "model_index.json").write_text(
        json.dumps(index | {"tokenizer_max_length": 512, "image_processor": ["transformers", "PixtralImageProcessor"]})
    )
    assert _token_counts([prompt], tokenizers_of(tmp_path / "flux2")).tolist() == [[plain]]
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "flux2" / "processor" / name).unlink()
    with pytest.raises(FileNotFoundError, match="tokenizer.json is missing"):
        _check_part(tmp_path / "flux2" / "processor", tmp_path / "flux2" / "model_index.json", "PixtralProcessor")


@pytest.mark.parametrize("name", FAMILY)
def test_prompts_of_every_family_are_counted(name):
    found = tokenizers_of(made(name))
    assert found and (_token_counts(["a crane bird"], found) > 5).all()


@pytest.mark.parametrize("name", FAMILY)
def test_which_families_learn_a_style_token(name):
    pipe = made(name)
    assert bool(no_token("somebody/model", type(pipe).__name__)) != isinstance(
        pipe, diffusers.StableDiffusionPipeline | diffusers.StableDiffusionXLPipeline
    )
    assert all(family.token == (not no_token("somebody/model", family.pipeline)) for family in FAMILIES)


# ---------------------------------------------------------------- the table's numbers of parameters, counted


def billions(make):
    "Parameters, and buffers that are stored, of a network whose weights are nowhere."
    with torch.device("meta"):
        network = make()
    stored = network.state_dict()
    return (
        sum(
            tensor.numel()
            for tensor in (
                *network.parameters(),
                *(buffer for name, buffer in network.named_buffers() if name in stored),
            )
        )
        / 1e9
    )


def clip_encoder(width, inner, layers, heads, kind=CLIPTextModel):
    return lambda: kind(
        CLIPTextConfig(
            vocab_size=49408,
            hidden_size=width,
            intermediate_size=inner,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            projection_dim=width,
        )
    )


def sd_unet(width, **more):
    return lambda: UNet2DConditionModel(cross_attention_dim=width, attention_head_dim=8, **more)


def sdxl_unet():
    down, up = (
        ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    )
    return UNet2DConditionModel(
        block_out_channels=(320, 640, 1280),
        down_block_types=down,
        up_block_types=up,
        transformer_layers_per_block=[1, 2, 10],
        attention_head_dim=[5, 10, 20],
        cross_attention_dim=2048,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
        use_linear_projection=True,
    )


def sd3_network(layers, **more):
    return lambda: diffusers.SD3Transformer2DModel(
        in_channels=16,
        out_channels=16,
        attention_head_dim=64,
        joint_attention_dim=4096,
        pooled_projection_dim=2048,
        num_layers=layers,
        num_attention_heads=layers,
        caption_projection_dim=64 * layers,
        **more,
    )


def t5_xxl():
    return transformers.T5EncoderModel(
        transformers.T5Config(
            vocab_size=32128,
            d_model=4096,
            d_kv=64,
            d_ff=10240,
            num_layers=24,
            num_heads=64,
            feed_forward_proj="gated-gelu",
        )
    )


def qwen3(width, inner):
    return lambda: transformers.Qwen3Model(
        transformers.Qwen3Config(
            vocab_size=151936,
            hidden_size=width,
            intermediate_size=inner,
            num_hidden_layers=36,
            num_attention_heads=32,
            num_key_value_heads=8,
            head_dim=128,
        )
    )


def klein(double, single, heads, width):
    return lambda: diffusers.Flux2Transformer2DModel(
        num_layers=double,
        num_single_layers=single,
        num_attention_heads=heads,
        joint_attention_dim=width,
        guidance_embeds=False,
    )


def gemma_2b():
    return transformers.Gemma2Model(
        transformers.Gemma2Config(
            vocab_size=256000,
            hidden_size=2304,
            intermediate_size=9216,
            num_hidden_layers=26,
            num_attention_heads=8,
            num_key_value_heads=4,
            head_dim=256,
        )
    )


CLIP_L, BIG_G = clip_encoder(768, 3072, 12, 12), clip_encoder(1280, 5120, 32, 20, CLIPTextModelWithProjection)
# denoiser and text encoders, at the published configurations
# (diffusers' defaults are those of the model that a class was made for)
COUNTED = {
    "Stable Diffusion 1.5": (sd_unet(768), [CLIP_L]),
    "Stable Diffusion 2.1": (sd_unet(1024, use_linear_projection=True), [clip_encoder(1024, 4096, 23, 16)]),
    "SDXL": (sdxl_unet, [CLIP_L, BIG_G]),
    "SD 3 Medium": (sd3_network(24, pos_embed_max_size=192), [CLIP_L, BIG_G, t5_xxl]),
    "SD 3.5 Medium": (
        sd3_network(24, pos_embed_max_size=384, qk_norm="rms_norm", dual_attention_layers=tuple(range(13))),
        [CLIP_L, BIG_G, t5_xxl],
    ),
    "SD 3.5 Large": (sd3_network(38, pos_embed_max_size=192, qk_norm="rms_norm"), [CLIP_L, BIG_G, t5_xxl]),
    "FLUX.1 dev": (lambda: diffusers.FluxTransformer2DModel(guidance_embeds=True), [CLIP_L, t5_xxl]),
    "FLUX.2 dev": (diffusers.Flux2Transformer2DModel, []),
    "FLUX.2 klein 4B": (klein(5, 20, 24, 7680), [qwen3(2560, 9728)]),
    "FLUX.2 klein 9B": (klein(8, 24, 32, 12288), [qwen3(4096, 12288)]),
    "Qwen-Image": (diffusers.QwenImageTransformer2DModel, []),
    "Z-Image": (diffusers.ZImageTransformer2DModel, [qwen3(2560, 9728)]),
    "Sana": (diffusers.SanaTransformer2DModel, [gemma_2b]),
    "PixArt-Sigma": (
        lambda: diffusers.PixArtTransformer2DModel(
            sample_size=128, caption_channels=4096, use_additional_conditions=False
        ),
        [t5_xxl],
    ),
}


@pytest.mark.parametrize("name", COUNTED)
def test_the_tables_parameters_are_those_of_the_architectures(name):
    denoiser, texts = COUNTED[name]
    family = next(family for family in FAMILIES if family.name == name)
    assert family.billions[0] == pytest.approx(billions(denoiser), rel=0.01, abs=0.005)
    if texts:
        assert family.billions[1] == pytest.approx(sum(map(billions, texts)), rel=0.01, abs=0.005)


def test_what_the_table_does_not_know_is_named():
    for family in FAMILIES:
        assert (
            set(family.unverified) <= set(vars(family))
            and family.sources
            and all(source.startswith("https://") for source in family.sources)
        )
        assert ("not verified" in describe_family(family)) == bool(family.unverified)


def arithmetic(make, call):
    "Operations of one pass, in 1e12, of a network whose weights are nowhere."
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        make().eval()(**call())
    return counter.get_total_flops() / 1e12


PASSES = {  # what the denoiser reads for one image of the family's size
    "Stable Diffusion 1.5": lambda: dict(
        sample=torch.empty(1, 4, 64, 64), timestep=torch.empty(1), encoder_hidden_states=torch.empty(1, 77, 768)
    ),
    "SDXL": lambda: dict(
        sample=torch.empty(1, 4, 128, 128),
        timestep=torch.empty(1),
        encoder_hidden_states=torch.empty(1, 77, 2048),
        added_cond_kwargs={"text_embeds": torch.empty(1, 1280), "time_ids": torch.empty(1, 6)},
    ),
    "SD 3.5 Medium": lambda: dict(
        hidden_states=torch.empty(1, 16, 128, 128),
        encoder_hidden_states=torch.empty(1, 333, 4096),
        pooled_projections=torch.empty(1, 2048),
        timestep=torch.empty(1),
    ),
    "FLUX.1 dev": lambda: dict(
        hidden_states=torch.empty(1, 4096, 64),
        encoder_hidden_states=torch.empty(1, 512, 4096),
        pooled_projections=torch.empty(1, 768),
        timestep=torch.empty(1),
        img_ids=torch.empty(4096, 3),
        txt_ids=torch.empty(512, 3),
        guidance=torch.empty(1),
    ),
    "Sana": lambda: dict(
        hidden_states=torch.empty(1, 32, 32, 32),
        encoder_hidden_states=torch.empty(1, 300, 2304),
        timestep=torch.empty(1),
    ),
}


@pytest.mark.parametrize("name", PASSES)
def test_the_tables_arithmetic_is_that_of_the_architectures(name):
    family = next(family for family in FAMILIES if family.name == name)
    assert family.teraflops == pytest.approx(arithmetic(COUNTED[name][0], PASSES[name]), rel=0.01)
