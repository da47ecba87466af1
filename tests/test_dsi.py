"""Dataset style inversion at its edges: the families, the file format, kills, broken losses and bad requests.

Its losses are compared with those of the example of diffusers, step by step.
"""

import copy
import os
import signal
import subprocess
import sys
import textwrap
import time
from types import SimpleNamespace

os.environ.setdefault("OMP_NUM_THREADS", "1")

import diffusers
import pytest
import torch
import torch.nn.functional as F
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_models import tiny_vae
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from synthnb import dsi
from synthnb.data import LabelledImages, digits, few_shot
from synthnb.dsi import InvertConfig, invert, style_prompts
from synthnb.generate import generate
from synthnb.glyphworld.world import folder
from synthnb.images.denoise import TextTable
from synthnb.images.plan import make_plan
from synthnb.models import tokens
from synthnb.models.finetune import FinetuneConfig, lora
from synthnb.models.latents import draw_step, encode_images
from synthnb.models.pipelines import load_generator
from synthnb.models.styles import Style, add_style, load_style, save_style
from synthnb.prompts.grammar import default_template, fill

torch.set_num_threads(1)
FAST = dict(batch_size=4, check_every=2)


def learn(pipe, images, phrases, path=None, save_every=60, **config) -> Style:
    return invert(pipe, images, phrases, path, InvertConfig(**config), save_every=save_every, progress=False)


@pytest.fixture(scope="module")
def world() -> StableDiffusionPipeline:
    return load_generator(folder("generator"), "cpu")


@pytest.fixture(scope="module")
def scans() -> LabelledImages:
    return few_shot(digits(32)["train"], 1)


@pytest.fixture(scope="module")
def phrases(scans) -> dict[str, str]:
    return {name: f"arabic digit {name}" for name in scans.classes}


def table_of(encoder) -> torch.Tensor:
    return encoder.get_input_embeddings().weight.detach().clone()


# ---- tiny models of the families, random weights


def tiny_text(tokenizer, kind, width: int, eos: int | None = None):
    return kind(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            projection_dim=16,
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            pad_token_id=tokenizer.eos_token_id,
            eos_token_id=tokenizer.eos_token_id if eos is None else eos,
        )
    )


def tiny_unet(width: int, **more) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        cross_attention_dim=width,
        attention_head_dim=4,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        **more,
    )


def tiny_pipeline(family: str, place) -> DiffusionPipeline:
    "Stable Diffusion 1.x (epsilon), 2.x (v prediction) or XL, saved and opened as the component does."
    torch.manual_seed(0)
    tokenizer, vae = CLIPTokenizer.from_pretrained(folder("generator") / "tokenizer"), tiny_vae()
    if family == "xl":
        more = dict(
            addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=6 * 8 + 16
        )
        pipe = StableDiffusionXLPipeline(
            vae=vae,
            unet=tiny_unet(16 + 24, **more),
            tokenizer=tokenizer,
            tokenizer_2=copy.deepcopy(tokenizer),
            text_encoder=tiny_text(tokenizer, CLIPTextModel, 16),
            text_encoder_2=tiny_text(tokenizer, CLIPTextModelWithProjection, 24, eos=2),
            scheduler=EulerDiscreteScheduler(beta_schedule="scaled_linear"),
            add_watermarker=False,
        )
    else:
        scheduler = DDIMScheduler(
            prediction_type={"1": "epsilon", "2": "v_prediction"}[family], steps_offset=1, clip_sample=False
        )
        pipe = StableDiffusionPipeline(
            vae=vae,
            unet=tiny_unet(16),
            tokenizer=tokenizer,
            text_encoder=tiny_text(tokenizer, CLIPTextModel, 16),
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipe.save_pretrained(place / "model")
    return load_generator(place / "model", "cpu")


NOISE = LabelledImages(
    torch.randint(0, 256, (6, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)),
    torch.tensor([0, 0, 0, 0, 0, 1]),
    ("one", "two"),
    "noise",
)
WORDS = {"one": "one", "two": "two"}


@pytest.fixture(scope="module", params=["1", "2", "xl"])
def tiny(request, tmp_path_factory) -> DiffusionPipeline:
    return tiny_pipeline(request.param, tmp_path_factory.mktemp("family"))


# ---- the families


@pytest.mark.parametrize("vectors", [1, 3])
def test_every_family_learns_saves_and_opens(tiny, vectors, tmp_path):
    before = [table_of(encoder) for _, encoder in tokens.text_models(tiny)]
    weights = {k: v.clone() for k, v in tiny.unet.state_dict().items()}
    asked = [p.requires_grad for p in tiny.unet.parameters()]
    style = learn(tiny, NOISE, WORDS, tmp_path / "style.safetensors", steps=4, num_vectors=vectors, lr=1e-2, **FAST)
    for rows, start, table, (_, encoder) in zip(
        style.rows, dsi.initial_rows(tiny, "photo", vectors), before, tokens.text_models(tiny)
    ):
        assert rows.shape == start.shape and not torch.isclose(rows, start).all(1).any(), "a vector has not learned"
        assert torch.equal(table_of(encoder), table), "the table moved"
    assert all(torch.equal(v, weights[k]) for k, v in tiny.unet.state_dict().items())
    assert [p.requires_grad for p in tiny.unet.parameters()] == asked and all(
        p.grad is None for p in tiny.unet.parameters()
    )

    other = copy.deepcopy(tiny)  # opened by diffusers alone
    tensors = load_file(tmp_path / "style.safetensors")
    if len(style.rows) == 1:
        other.load_textual_inversion(str(tmp_path / "style.safetensors"))
    else:
        other.load_textual_inversion(
            tensors["clip_l"], token="<style>", text_encoder=other.text_encoder, tokenizer=other.tokenizer
        )
        other.load_textual_inversion(
            tensors["clip_g"], token="<style>", text_encoder=other.text_encoder_2, tokenizer=other.tokenizer_2
        )
    for rows, table, (tokenizer, encoder) in zip(style.rows, before, tokens.text_models(other)):
        ids = tokenizer.convert_tokens_to_ids(tokens.vector_names("<style>", vectors))
        assert torch.equal(table_of(encoder)[ids], rows) and torch.equal(table_of(encoder)[: len(table)], table)
    image = other(
        "A one photo in the style of <style>",
        num_inference_steps=2,
        output_type="np",
        generator=torch.Generator().manual_seed(0),
    ).images
    ours = copy.deepcopy(tiny)
    assert add_style(ours, tmp_path / "style.safetensors") == "<style>"
    again = ours(
        "A one photo in the style of <style>",
        num_inference_steps=2,
        output_type="np",
        generator=torch.Generator().manual_seed(0),
    ).images
    assert (image == again).all()


def test_a_token_is_drawn_with_in_the_words_that_it_learned_in():
    phrases = {"three": "arabic digit three", "x": "X-ray", "cat": "cat"}
    learned = style_prompts(phrases, "<style>")
    drawn = {
        name: fill(default_template(token=True, looks=False), own, token="<style>") for name, own in phrases.items()
    }
    assert learned == drawn and learned["three"].startswith("An arabic")


def test_the_unet_is_told_what_the_pipeline_would_tell_it(tiny):
    pipe = copy.deepcopy(tiny)
    prompts = list(style_prompts(WORDS, "<style>").values())
    rows = dsi.initial_rows(pipe, None, 2)
    ids = tokens.tokenize(pipe, prompts, tokens.vector_names("<style>", 2))
    with torch.no_grad(), dsi.reading(pipe, rows, [len(tokenizer) for tokenizer, _ in tokens.text_models(pipe)]):
        told = tokens.condition(pipe, ids, torch.tensor([1, 0, 1]))
    add_style(pipe, Style("<style>", tuple(rows)))
    with torch.no_grad():
        expected = pipe.encode_prompt(
            [prompts[1], prompts[0], prompts[1]],
            device="cpu",
            num_images_per_prompt=1,
            do_classifier_free_guidance=False,
        )
    assert torch.allclose(told["encoder_hidden_states"], expected[0], atol=1e-6)
    if isinstance(pipe, StableDiffusionXLPipeline):
        assert torch.allclose(told["added_cond_kwargs"]["text_embeds"], expected[2], atol=1e-6)
        assert told["added_cond_kwargs"]["time_ids"].tolist() == [[16, 16, 0, 0, 16, 16]] * 3


@pytest.mark.parametrize("ends", [(None, None), (None, 2), (2, 2)], ids=str)  # None: the tokenizer's own
@pytest.mark.parametrize("vectors", [1, 2])
def test_words_after_a_style_token_count(tmp_path, ends, vectors):
    tiny_pipeline("xl", tmp_path)
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "model")  # by diffusers alone: nothing is corrected yet
    for encoder, end in zip((pipe.text_encoder, pipe.text_encoder_2.text_model), ends):
        encoder.eos_token_id = pipe.tokenizer.eos_token_id if end is None else end
    plain = ["a photo of a one", "a photo of a one, close up"]
    before = pipe.encode_prompt(plain, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)
    styled = ["a <style> one", "a <style> two", "a <style> one, close up"]
    rows = dsi.initial_rows(pipe, "photo", vectors)
    ids, firsts = tokens.tokenize(pipe, styled, tokens.vector_names("<style>", vectors)), [len(pipe.tokenizer)] * 2
    with torch.no_grad(), dsi.reading(pipe, rows, firsts):
        told = tokens.condition(pipe, ids, torch.arange(3))["added_cond_kwargs"]["text_embeds"]
    add_style(pipe, Style("<style>", tuple(rows)))
    table = TextTable(pipe, styled + plain)
    drawn = table.asked_pooled[:3]
    assert torch.pdist(told).min() > 1e-3, "while it is learned, the words after the token are not read"
    assert torch.allclose(drawn, told, atol=1e-6), "what is drawn with is not what was learned with"
    assert torch.allclose(table.asked_pooled[3:], before[2], atol=1e-6) and torch.allclose(
        table.asked[3:], before[0], atol=1e-6
    )
    with torch.no_grad():
        first = pipe.text_encoder(
            ids[0] if vectors == 1 else pipe.tokenizer(plain, padding="max_length", return_tensors="pt").input_ids
        )
    assert torch.pdist(first.pooler_output).min() > 1e-3, "the first text encoder's own vector"


def test_a_saved_pipeline_with_a_style_still_reads_to_the_end(tmp_path):
    pipe = tiny_pipeline("xl", tmp_path)  # its second text encoder has the published number
    assert pipe.text_encoder_2.config.eos_token_id == 2
    add_style(pipe, dsi.initial_style(pipe))
    pipe.save_pretrained(tmp_path / "styled")
    again = load_generator(tmp_path / "styled", "cpu")
    pooled = again.encode_prompt(
        ["a <style> one", "a <style> two"], device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
    )[2]
    assert (pooled[0] - pooled[1]).abs().max() > 1e-3


def example_losses(pipe, images, prompts, draws, word: str, lr: float) -> tuple[list[float], torch.Tensor]:
    """Losses and table of diffusers' examples/textual_inversion/textual_inversion.py.

    The random draws are given, and there is no weight decay.
    """
    pipe, scheduler = copy.deepcopy(pipe), tokens.training_scheduler(pipe)
    tokenizer, encoder = pipe.tokenizer, pipe.text_encoder
    tokenizer.add_tokens(["<style>"])
    encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    table, new = encoder.get_input_embeddings().weight, tokenizer.convert_tokens_to_ids("<style>")
    table.data[new] = table.data[tokenizer.convert_tokens_to_ids(tokenizer.tokenize(word))[0]]
    original, optimiser, losses = table.detach().clone(), torch.optim.AdamW([table], lr=lr, weight_decay=0), []
    ids = tokenizer(prompts, padding="max_length", max_length=tokenizer.model_max_length, return_tensors="pt").input_ids
    others = torch.arange(len(table)) != new
    for draw in draws:
        found = pipe.vae.encode(images.images[draw.images].float() / 127.5 - 1).latent_dist
        latents = ((found.mean + found.std * draw.spread) * pipe.vae.config.scaling_factor).detach()
        states = encoder(ids[images.labels[draw.images]])[0]
        prediction = pipe.unet(scheduler.add_noise(latents, draw.noise, draw.timesteps), draw.timesteps, states).sample
        velocity = scheduler.config.prediction_type == "v_prediction"
        loss = F.mse_loss(
            prediction, scheduler.get_velocity(latents, draw.noise, draw.timesteps) if velocity else draw.noise
        )
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        with torch.no_grad():
            table[others] = original[others]
        losses.append(loss.item())
    return losses, table.detach()


def test_losses_are_those_of_the_example(world, scans, phrases):
    style = learn(world, scans, phrases, steps=6, lr=5e-3, **FAST)
    latents = encode_images(world, scans)
    draws = [draw_step(latents, 4, step, 1000) for step in range(6)]
    losses, table = example_losses(world, scans, list(style_prompts(phrases, "<style>").values()), draws, "photo", 5e-3)
    assert style.losses == pytest.approx(losses, rel=1e-4)
    assert torch.allclose(style.rows[0][0], table[-1], atol=1e-5)


def test_no_timestep_lies_beyond_the_last(world, scans, monkeypatch):
    latents = encode_images(world, scans)
    monkeypatch.setattr(torch, "rand", lambda size, **_: torch.full((size,), 1 - 2**-24))  # the largest that it draws
    assert draw_step(latents, 10, 0, 1000, stratified=True).timesteps.max() == 999
    assert draw_step(latents, 10, 0, 1000).timesteps.max() == 999


@pytest.mark.parametrize("timesteps", [50, 4000])
def test_a_style_is_learned_at_the_timesteps_that_the_generator_has(world, scans, phrases, monkeypatch, timesteps):
    pipe, seen = copy.copy(world), []
    pipe.scheduler = DDIMScheduler.from_config(world.scheduler.config, num_train_timesteps=timesteps)
    add_noise = dsi.DDPMScheduler.add_noise

    def noted(scheduler, clean, noise, drawn):
        seen.append(drawn)
        return add_noise(scheduler, clean, noise, drawn)

    monkeypatch.setattr(dsi.DDPMScheduler, "add_noise", noted)
    learn(pipe, scans, phrases, steps=2, **FAST)
    lora(pipe, scans, phrases, config=FinetuneConfig(steps=2, batch_size=4, check_every=2), progress=False)
    dsi.rank_styles(pipe, scans, phrases, ["photo"], batch_size=4)
    assert timesteps / 2 < torch.cat(seen).max() < timesteps


def test_generating_with_it_is_ordinary(world, scans, phrases, tmp_path):
    pipe = copy.deepcopy(world)
    token = add_style(pipe, learn(world, scans, phrases, steps=2, num_vectors=2, **FAST))
    plan = make_plan(
        {name: [text] for name, text in style_prompts(phrases, token).items()},
        1,
        seed=0,
        model="glyphworld",
        steps=2,
        guidance=2,
    )
    assert len(generate(pipe, plan, progress=False)) == 10


# ---- interruptions


CHILD = textwrap.dedent("""
    import sys, torch
    from synthnb.data import digits, few_shot
    from synthnb.dsi import InvertConfig, invert
    from synthnb.models.pipelines import load_generator
    from synthnb.glyphworld.world import folder
    torch.set_num_threads(1)
    scans = few_shot(digits(32)["train"], 1)
    phrases = {c: f"arabic digit {c}" for c in scans.classes}
    invert(load_generator(folder("generator"), "cpu"), scans, phrases, sys.argv[1],
           InvertConfig(steps=int(sys.argv[2]), lr=5e-3, batch_size=4, check_every=2), save_every=0, progress=False)
""")


def test_killed_and_started_again_is_as_if_never_killed(world, scans, phrases, tmp_path, warm_workers):
    path = tmp_path / "style.safetensors"
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(path), "100000"], stderr=subprocess.DEVNULL)
    kept, deadline = path.with_suffix(".checkpoint"), time.monotonic() + 120
    while not kept.exists() and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.1)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert kept.exists() and not path.exists()
    with safe_open(kept, "pt") as file:
        reached = int(file.metadata()["step"])
    total = reached + 3
    resumed = learn(world, scans, phrases, path, steps=total, **FAST)
    whole = learn(world, scans, phrases, steps=total, **FAST)
    assert (
        resumed.losses == whole.losses
        and torch.equal(resumed.rows[0], whole.rows[0])
        and resumed.checks == whole.checks
    )
    assert [p.name for p in tmp_path.iterdir() if "partial" not in p.name] == ["style.safetensors"]


def test_a_finished_style_is_found_again_and_other_settings_are_refused(world, scans, phrases, tmp_path):
    path = tmp_path / "style.safetensors"
    style = learn(world, scans, phrases, path, steps=2, **FAST)
    start = time.monotonic()
    found = learn(world, scans, phrases, path, steps=2, **FAST)
    assert time.monotonic() - start < 1 and torch.equal(found.rows[0], style.rows[0]) and found.losses == style.losses
    with pytest.raises(ValueError, match="lr was 0.005 and is now 0.1"):
        learn(world, scans, phrases, path, steps=2, lr=0.1, **FAST)
    with pytest.raises(ValueError, match="images was"):
        learn(world, scans.subset(range(5)), phrases, path, steps=2, **FAST)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="is damaged"):
        learn(world, scans, phrases, path, steps=2, **FAST)


def test_a_checkpoint_that_is_further_than_asked_is_said(world, scans, phrases, tmp_path, monkeypatch):
    path = tmp_path / "style.safetensors"
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(dsi, "save_style", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        learn(world, scans, phrases, path, steps=4, **FAST | {"save_every": 0})
    with pytest.raises(ValueError, match="has taken 4 steps already, and 2 are asked for"):
        learn(world, scans, phrases, path, steps=2, **FAST)


def test_a_file_of_another_program_may_say_what_it_likes(tmp_path):
    save_file(
        {"emb_params": torch.ones(2, 8)},
        tmp_path / "other.safetensors",
        {"modelspec.title": "my style", "format": "pt"},
    )
    assert load_style(tmp_path / "other.safetensors").rows[0].shape == (2, 8)


def test_loss_that_is_no_number_stops_and_writes_nothing(world, scans, phrases, tmp_path):
    broken = copy.deepcopy(world)
    broken.unet.conv_out.weight.data[0] = torch.nan
    with pytest.raises(FloatingPointError, match="loss is nan at step 0: lower the learning rate"):
        learn(broken, scans, phrases, tmp_path / "style.safetensors", steps=50, save_every=0, **FAST)
    assert not list(tmp_path.iterdir())
    assert isinstance(broken.text_encoder.get_input_embeddings(), torch.nn.Embedding)


def test_early_stop_takes_the_best(world, scans, phrases, monkeypatch):
    falling_then_rising = iter([3.0, 2.0, 1.0, 1.5, 1.2, 0.5])
    monkeypatch.setattr(dsi, "_fixed_loss", lambda loss_of, draws: next(falling_then_rising))
    stopped = learn(world, scans, phrases, steps=100, patience=2, **FAST)
    assert stopped.checks == ((0, 3.0), (2, 2.0), (4, 1.0), (6, 1.5), (8, 1.2)) and stopped.steps == 8
    monkeypatch.undo()
    assert torch.equal(stopped.rows[0], learn(world, scans, phrases, steps=4, **FAST).rows[0])


# ---- requests


@pytest.mark.parametrize(
    "change, why",
    [
        (dict(placeholder_token="style"), "angle brackets"),
        (dict(placeholder_token="<|endoftext|>"), "already in the generator's vocabulary"),
        (dict(template="a photo of a {phrase}"), "nowhere says {style}"),
        (dict(initializer="photo of", num_vectors=3), "is 2 tokens"),
        (dict(initializer=""), "is 0 tokens"),
        (dict(num_vectors=0), "num_vectors is 0"),
        (dict(num_vectors=60), "fewer vectors or fewer words"),
        (dict(steps=0), "steps is 0"),
        (dict(lr=-1), "lr is -1"),
        (dict(batch_size=0), "batch_size is 0"),
        (dict(check_every=0), "check_every is 0"),
    ],
)
def test_bad_requests_are_refused_before_any_cost(world, scans, phrases, change, why, monkeypatch):
    monkeypatch.setattr(dsi, "encode_images", lambda *a, **k: pytest.fail("an image was encoded"))
    with pytest.raises(ValueError, match=why.replace("{", r"\{").replace("|", r"\|")):
        learn(world, scans, phrases, **{"steps": 2, **FAST, **change})


def test_bad_images_and_phrases_are_refused(world, scans, phrases):
    with pytest.raises(ValueError, match="holds no images"):
        learn(world, scans.subset([]), phrases, steps=2, **FAST)
    with pytest.raises(ValueError, match="does not say what it means"):
        learn(world, scans, {"zero": "arabic digit zero"}, steps=2, **FAST)
    half = copy.deepcopy(world).to(torch.float16)
    with pytest.raises(ValueError, match="bfloat16"):
        learn(half, scans, phrases, steps=2, **FAST)


def test_bfloat16_generator_learns_in_float32(world, scans, phrases):
    half = copy.deepcopy(world).to(torch.bfloat16)
    style = learn(half, scans, phrases, steps=2, **FAST)
    assert style.rows[0].dtype == torch.float32 and half.vae.dtype == torch.bfloat16
    assert style.losses == pytest.approx(learn(world, scans, phrases, steps=2, **FAST).losses, rel=0.05)


def test_styles_of_others_and_for_others(world, tmp_path):
    theirs = {"<cat>": torch.randn(128)}
    save_file(theirs, tmp_path / "cat.safetensors")
    style = load_style(tmp_path / "cat.safetensors")
    assert (style.token, style.rows[0].shape) == ("<cat>", (1, 128))
    pipe = copy.deepcopy(world)
    add_style(pipe, style)
    with pytest.raises(ValueError, match="already in the generator's vocabulary"):
        add_style(pipe, style)
    with pytest.raises(ValueError, match="learned for another one"):
        add_style(pipe, Style("<dog>", (torch.randn(1, 64),)))
    save_file({"a": torch.zeros(2), "b": torch.zeros(2)}, tmp_path / "lora.safetensors")
    with pytest.raises(ValueError, match="is not a style"):
        load_style(tmp_path / "lora.safetensors")
    save_style(style, tmp_path / "again.safetensors")
    assert torch.equal(load_style(tmp_path / "again.safetensors").rows[0], style.rows[0])


def test_threads_do_not_change_what_is_learned(world, scans, phrases):
    torch.set_num_threads(2)
    try:
        learned = {
            learn(copy.deepcopy(world), scans, phrases, steps=8, batch_size=16, initializer="a neon sign at night").id
            for _ in range(4)
        }
    finally:
        torch.set_num_threads(1)
    assert len(learned) == 1, "gradients of shared rows are added in one order, whichever thread comes first"


def test_flips_double_the_latents_and_keep_the_labels(world, scans):
    plain = encode_images(world, scans, batch_size=4)
    mirrored_too = encode_images(world, scans, flips=True, batch_size=4)
    assert len(mirrored_too.mean) == 2 * len(plain.mean)
    assert mirrored_too.labels.bincount().tolist() == (2 * plain.labels.bincount()).tolist()
    mirrored = LabelledImages(scans.images.flip(-1), scans.labels, scans.classes)
    assert torch.allclose(mirrored_too.mean[4:8], encode_images(world, mirrored).mean[:4], atol=1e-5)
    assert torch.equal(mirrored_too.labels[4:8], plain.labels[:4])


def test_other_pipelines_are_refused():
    with pytest.raises(ValueError, match="DiTPipeline is not supported"):
        tokens.text_models(type("DiTPipeline", (), {})())


# ---- which generator it is


def test_any_changed_tensor_is_another_generator(tiny):
    pipe = copy.deepcopy(tiny)
    known = tokens.fingerprint(pipe)
    assert tokens.fingerprint(tiny) == known and tokens.fingerprint(pipe) == known
    parts = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    assert {"unet", "vae", "text_encoder"} <= set(parts)
    for name, part in parts.items():
        for key, tensor in [*part.named_parameters(), *part.named_buffers()]:
            before = tensor.detach().clone()
            tensor.data.view(-1)[-1] += 1  # in place, past torch's version counter
            assert tokens.fingerprint(pipe) != known, f"{name}.{key}"
            tensor.data.copy_(before)
    assert tokens.fingerprint(pipe) == known


def test_what_the_weights_do_not_say_is_another_generator_too(tiny):
    known = tokens.fingerprint(tiny)

    def differs(change) -> bool:
        pipe = copy.deepcopy(tiny)
        change(pipe)
        return tokens.fingerprint(pipe) != known

    other = {"epsilon": "v_prediction", "v_prediction": "epsilon"}[
        tokens.training_scheduler(tiny).config.prediction_type
    ]
    assert differs(lambda pipe: pipe.scheduler.register_to_config(prediction_type=other))
    assert differs(lambda pipe: pipe.scheduler.register_to_config(beta_schedule="squaredcos_cap_v2"))
    assert differs(lambda pipe: pipe.vae.register_to_config(scaling_factor=0.5))
    assert differs(lambda pipe: pipe.unet.register_to_config(act_fn="mish"))
    assert differs(lambda pipe: setattr(pipe.text_encoder.config, "hidden_act", "gelu_new"))
    assert differs(lambda pipe: pipe.tokenizer.add_tokens("<more>"))
    assert differs(lambda pipe: setattr(pipe.tokenizer, "pad_token", "a</w>"))
    assert differs(lambda pipe: pipe.unet.to(torch.bfloat16))


def test_what_a_style_does_not_depend_on_is_the_same_generator(tiny, tmp_path):
    known, pipe = tokens.fingerprint(tiny), copy.deepcopy(tiny)
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)  # another sampler of the same noise
    pipe.tokenizer(["a", "a b"], padding="max_length", truncation=True, max_length=20)
    pipe.unet.to(memory_format=torch.channels_last)
    assert tokens.fingerprint(pipe) == known
    pipe.save_pretrained(tmp_path / "moved")
    assert tokens.fingerprint(load_generator(tmp_path / "moved", "cpu")) == known


def test_a_style_is_not_found_again_for_a_generator_that_was_tuned(tiny, tmp_path):
    pipe = copy.deepcopy(tiny)
    learn(pipe, NOISE, WORDS, tmp_path / "style.safetensors", steps=1, **FAST)
    pipe.unet.conv_out.weight.data += 0.1
    with pytest.raises(ValueError, match="belongs to another run .generator was"):
        learn(pipe, NOISE, WORDS, tmp_path / "style.safetensors", steps=1, **FAST)


@pytest.mark.parametrize("kind", ["FlowMatchEulerDiscreteScheduler", "EDMEulerScheduler"])
def test_a_generator_of_other_noise_than_betas_is_refused(kind):
    pipe = SimpleNamespace(scheduler=getattr(diffusers, kind)())
    with pytest.raises(ValueError, match=f"noise of {kind}, which has no betas"):
        tokens.training_scheduler(pipe)
