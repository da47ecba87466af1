"""Fine-tuning a generator: what is learned, what is left as it was, and four sources on equal terms."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

from dataclasses import replace

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

from synthnb.core.files import tensor_names
from synthnb.data import digits, few_shot
from synthnb.dsi import InvertConfig
from synthnb.generate import generate
from synthnb.glyphworld.world import folder
from synthnb.images.plan import make_plan
from synthnb.models import finetune
from synthnb.models.finetune import (
    SOURCES,
    FinetuneConfig,
    SourceConfig,
    check_sources,
    draw_source,
    drawing_with,
    image_to_image,
    load_lora,
    lora,
    save_lora,
)
from synthnb.models.pipelines import load_generator
from synthnb.models.tokens import fingerprint

torch.set_num_threads(1)
SHORT = FinetuneConfig(steps=4, lr=1e-2, batch_size=4, rank=2, check_every=2)
SAMPLER = {"model": "glyphworld", "steps": 2, "guidance": 2.0}
HOW = SourceConfig(
    sampler=SAMPLER, lora=SHORT, tokens=InvertConfig(steps=1, batch_size=2, check_every=1), batch_size=30, resize=32
)


@pytest.fixture(scope="module")
def pipe():
    return load_generator(folder("generator"), "cpu", "float32")


@pytest.fixture(scope="module")
def few():
    return few_shot(digits()["train"], 2)


@pytest.fixture(scope="module")
def phrases(few):
    return {name: f"arabic digit {name}" for name in few.classes}


@pytest.fixture(scope="module")
def prompts(phrases):
    return {name: [f"{phrase} in chalk", f"a neon {phrase}"] for name, phrase in phrases.items()}


def plan_of(phrases, per_class=1, steps=2):
    each = {name: [f"a photo of a {phrase}"] for name, phrase in phrases.items()}
    return make_plan(each, per_class, seed=0, **SAMPLER | {"steps": steps})


# ---- LoRA


def test_a_killed_run_goes_on_as_it_would_have(pipe, few, phrases, tmp_path, monkeypatch):
    whole, before = lora(pipe, few, phrases, config=SHORT, progress=False), fingerprint(pipe)
    took, path = finetune.denoising_loss, tmp_path / "lora.safetensors"
    calls = iter(range(1000))

    def dies(*given):
        if next(calls) == 6 + 4:  # 4 fixed draws, 2 steps and 4 fixed draws before
            raise KeyboardInterrupt
        return took(*given)

    monkeypatch.setattr(finetune, "denoising_loss", dies)
    with pytest.raises(KeyboardInterrupt):
        lora(pipe, few, phrases, path, SHORT, save_every=0, progress=False)
    assert fingerprint(pipe) == before and not path.exists() and path.with_suffix(".checkpoint").exists()
    monkeypatch.setattr(finetune, "denoising_loss", took)
    gone_on = lora(pipe, few, phrases, path, SHORT, save_every=0, progress=False)
    assert gone_on.losses == whole.losses and gone_on.checks == whole.checks
    assert all(torch.equal(gone_on.weights[name], tensor) for name, tensor in whole.weights.items())
    assert not path.with_suffix(".checkpoint").exists()


def test_patience_keeps_the_best_weights(pipe, few, phrases):
    wild = replace(SHORT, lr=3.0, check_every=1, steps=3)  # each step makes it worse
    kept = lora(pipe, few, phrases, config=replace(wild, patience=2), progress=False)
    losses = [loss for _, loss in kept.checks]
    assert losses[0] == min(losses) and kept.steps == 2
    up = [tensor for name, tensor in kept.weights.items() if "lora.up" in name]
    assert up and not any(tensor.any() for tensor in up), "the best is the start, whose update is nothing"
    last = lora(pipe, few, phrases, config=wild, progress=False)
    assert any(tensor.any() for name, tensor in last.weights.items() if "lora.up" in name)


def test_the_file_is_in_diffusers_layout(pipe, few, phrases, tmp_path):
    learned = lora(pipe, few, phrases, config=SHORT, progress=False)
    path = save_lora(learned, tmp_path / "lora.safetensors")
    assert all(name.startswith("unet.") and ".lora." in name for name in tensor_names(path))
    plan = plan_of(phrases)
    plain = generate(pipe, plan, progress=False).images
    with drawing_with(pipe, learned):
        own = generate(pipe, plan, progress=False).images
    pipe.load_lora_weights(str(tmp_path), weight_name=path.name)
    theirs = generate(pipe, plan, progress=False).images
    pipe.unload_lora_weights()
    assert torch.equal(own, theirs) and not torch.equal(own, plain)
    assert torch.equal(generate(pipe, plan, progress=False).images, plain)
    again = load_lora(path)
    assert (again.settings, again.checks, again.steps) == (learned.settings, learned.checks, 4)


def test_a_lora_of_another_generator_is_refused_and_leaves_nothing(pipe, few, phrases):
    learned = lora(pipe, few, phrases, config=SHORT, progress=False)
    wrong = replace(learned, weights={name: tensor.repeat(1, 2) for name, tensor in learned.weights.items()})
    before = fingerprint(pipe)
    with pytest.raises(ValueError, match="does not fit this StableDiffusionPipeline"), drawing_with(pipe, wrong):
        pass
    assert fingerprint(pipe) == before and not getattr(pipe.unet, "peft_config", None)


@pytest.mark.parametrize(
    "change, told",
    [
        ({"steps": 0}, "steps is 0; it must be above 0"),
        ({"rank": 0}, "rank is 0; it must be above 0"),
        ({"template": "a photo"}, "nowhere says {phrase}"),
        ({"template": "{phrase} " * 60}, "tokens, the generator reads"),
    ],
)
def test_what_would_mean_nothing_is_refused(pipe, few, phrases, change, told):
    with pytest.raises(ValueError, match=told):
        lora(pipe, few, phrases, config=replace(SHORT, **change))


def test_pipelines_that_cannot_are_refused(few, phrases):
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "block_out_channels": (8,)}
    other = DDPMPipeline(UNet2DModel(sample_size=8, norm_num_groups=4, **blocks), DDPMScheduler())
    with pytest.raises(ValueError, match="DDPMPipeline is not supported: a LoRA can be learned for Stable Diffusion"):
        lora(other, few, phrases)
    with pytest.raises(ValueError, match="no image to image for DDPMPipeline"):
        image_to_image(other, few, plan_of(phrases))
    half = load_generator(folder("generator"), "cpu", "float16")
    with pytest.raises(ValueError, match="gradients vanish in float16"):
        lora(half, few, phrases)


def test_bfloat16_learns_in_float32(few, phrases):
    half = load_generator(folder("generator"), "cpu", "bfloat16")
    learned = lora(half, few, phrases, config=replace(SHORT, lr=1e-5, steps=2), progress=False)
    up = [tensor for name, tensor in learned.weights.items() if "lora.up" in name]
    # the first step of AdamW is lr for every number: in bfloat16 the second would leave most as they are
    assert {tensor.dtype for tensor in up} == {torch.float32} and half.unet.dtype == torch.bfloat16
    assert all(not torch.equal(tensor, tensor.bfloat16().float()) for tensor in up)


# ---- image to image


def test_classes_start_from_their_own_images_in_turn(few, phrases):
    at = finetune._start_images(few, plan_of(phrases, 5))
    plan = plan_of(phrases, 5)
    for label in range(len(few.classes)):
        own = at[torch.tensor((plan.label == label).to_numpy())].tolist()
        there = (few.labels == label).nonzero().flatten().tolist()
        assert own == [there[i % 2] for i in range(5)]


def test_guidance_of_some_steps_alone_is_refused(pipe, few, phrases):
    plan = plan_of(phrases).assign(guidance_from=0.2, guidance_until=0.8)
    with pytest.raises(ValueError, match="guides 0.2..0.8 of the steps, but image to image guides all of them"):
        image_to_image(pipe, few, plan, progress=False)


def test_another_batch_size_draws_the_same(pipe, few, phrases):
    plan = plan_of(phrases)
    some, all_at_once = (image_to_image(pipe, few, plan, batch_size=n, progress=False).images for n in (3, 10))
    assert (some.int() - all_at_once.int()).abs().max() <= 2
    with pytest.raises(ValueError, match="it must be at most 1, and at least 1/2"):
        image_to_image(pipe, few, plan, 0.4)
    other = replace(few, classes=tuple(f"digit {name}" for name in few.classes))
    with pytest.raises(ValueError, match="the plan is for the classes"):
        image_to_image(pipe, other, plan)


# ---- sources


@pytest.mark.parametrize("source", SOURCES)
def test_a_source_gives_equal_numbers_from_its_seed_and_leaves_the_generator(
    source, pipe, few, phrases, prompts, tmp_path
):
    before = fingerprint(pipe)
    once = draw_source(source, pipe, few, phrases, prompts, 3, HOW, seed=1, folder=tmp_path)
    again = draw_source(source, pipe, few, phrases, prompts, 3, HOW, seed=1)  # learned anew
    other = draw_source(source, pipe, few, phrases, prompts, 3, HOW, seed=2)
    assert once.images.per_class == dict.fromkeys(few.classes, 3)
    assert torch.equal(once.images.images, again.images.images) and torch.equal(once.images.labels, again.images.labels)
    assert not torch.equal(once.images.images, other.images.images)
    assert fingerprint(pipe) == before and "<class-0>" not in pipe.tokenizer.get_vocab()
    assert once.steps == {"lora": 4, "class_tokens": 10}.get(source, 0) and once.drawing > 0
    assert (once.learning > 0) == (source in ("lora", "class_tokens"))


def test_sources_differ(pipe, few, phrases, prompts, tmp_path):
    drawn = [draw_source(name, pipe, few, phrases, prompts, 1, HOW).images.images for name in SOURCES]
    assert not any(torch.equal(a, b) for i, a in enumerate(drawn) for b in drawn[:i])


@pytest.mark.parametrize(
    "names, told",
    [
        (["lorra"], "no source 'lorra', did you mean 'lora'"),
        ([], "a list of different names"),
        (["lora", "lora"], "a list of different names"),
    ],
)
def test_unknown_sources_are_refused(names, told):
    with pytest.raises(ValueError, match=told):
        check_sources(names)


def test_a_class_name_of_several_tokens_starts_from_the_initializer(pipe, few, phrases, prompts):
    odd = ("zyx wvu", *few.classes[1:])
    images = replace(few, classes=odd)
    named = dict(zip(odd, phrases.values()))
    asked = dict(zip(odd, prompts.values()))
    found = draw_source("class_tokens", pipe, images, named, asked, 1, HOW)
    assert found.images.per_class == dict.fromkeys(odd, 1)


def test_tokens_leave_the_precision_of_a_generator(few, phrases, prompts):
    half = load_generator(folder("generator"), "cpu", "bfloat16")
    draw_source("class_tokens", half, few, phrases, prompts, 1, HOW)
    kinds = {name: part.dtype for name, part in half.components.items() if isinstance(part, torch.nn.Module)}
    assert set(kinds.values()) == {torch.bfloat16}, kinds
