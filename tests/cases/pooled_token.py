"""Situation: a style token is added to SDXL. Its second text encoder gives one vector for the whole prompt, read where
the end of the text stands; the configuration of the published weights says a number for that end which is not the
tokenizer's, and then the library takes the place of the highest number, which is the new token's.

Right: with a style token in the prompt the vector still depends on the words after the token, both where pictures are
drawn and where the token is learned. Prompts without the token give what they gave before.

A tiny random SDXL with that number in its configuration stands for the published weights.

Sources: github.com/huggingface/transformers/issues/24650, github.com/huggingface/transformers/pull/24777,
github.com/huggingface/diffusers/issues/10754
"""

import torch
from _case import attempt, check, done
from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from synthnb.dsi import initial_style, reading
from synthnb.glyphworld import world as glyphworld
from synthnb.images.denoise import TextTable
from synthnb.models.pipelines import load_generator
from synthnb.models.styles import add_style
from synthnb.models.tokens import condition, initial_rows, tokenize, vector_names


def tiny_sdxl(folder: str, end: int | None) -> str:
    """A random SDXL around the shipped generator's tokenizer and VAE; `end` is the number of the text's end in the
    configurations."""
    torch.manual_seed(0)
    shipped = StableDiffusionPipeline.from_pretrained(str(glyphworld.folder("generator")))
    words = shipped.tokenizer
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=32,
        max_position_embeddings=words.model_max_length,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id if end is None else end,
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=64,
        attention_head_dim=8,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 32,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    pipe = StableDiffusionXLPipeline(
        shipped.vae,
        CLIPTextModel(config),
        CLIPTextModelWithProjection(config),
        words,
        words,
        unet,
        DDIMScheduler(),
        add_watermarker=False,
    )
    pipe.save_pretrained(folder)
    return folder


def apart(pooled: torch.Tensor) -> float:
    return (pooled[0] - pooled[1]).abs().max().item()


PLAIN, STYLED = (
    [f"a photo of a digit{style}, {words}" for words in ("close up", "lit from the left")]
    for style in ("", " in the style of <style>")
)
for what, end in {
    "the tokenizer's number in the configuration": None,
    "another number in the configuration": 2,
}.items():
    pipe = load_generator(tiny_sdxl(f"sdxl-{end}", end), "cpu")
    before = TextTable(pipe, PLAIN).asked_pooled
    check(f"{what}: without a token the last words count", apart(before) > 1e-4, f"{apart(before):.1e} apart")
    ids, rows = tokenize(pipe, STYLED, vector_names("<style>", 1)), initial_rows(pipe, "photo", 1)

    def learning() -> torch.Tensor:
        with torch.no_grad(), reading(pipe, rows, [len(pipe.tokenizer)] * 2):
            return condition(pipe, ids, torch.arange(2))["added_cond_kwargs"]["text_embeds"]

    found = attempt(learning)
    check(
        f"{what}: while the token is learned, words after it count",
        found.error is None and apart(found.value) > 1e-4,
        found.said if found.error else f"{apart(found.value):.1e} apart",
    )
    add_style(pipe, initial_style(pipe, "<style>", "photo"))
    pooled = TextTable(pipe, STYLED).asked_pooled
    check(
        f"{what}: where pictures are drawn, words after the token count",
        apart(pooled) > 1e-4,
        f"{apart(pooled):.1e} apart",
    )
    after = TextTable(pipe, PLAIN).asked_pooled
    check(
        f"{what}: prompts without the token are as before",
        torch.allclose(before, after, atol=1e-5),
        f"{(before - after).abs().max():.1e} apart",
    )
done()
