"""The world of glyphs stays as it was, and the wider one adds to it.

Trained models go on into it without losing what they know.
"""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPTokenizer, PreTrainedTokenizerFast

from synthnb.datasets.targets import TARGETS
from synthnb.glyphworld import chat as glyphllm
from synthnb.glyphworld import generator, loop, measures, recognisers, training
from synthnb.glyphworld.drawing import (
    _SHAPES,
    FONTS,
    HANDS,
    HELD_OUT_FONTS,
    HELD_OUT_HANDS,
    UNLEARNED_HANDS,
    _shape_credits,
    _shapes,
    glyph_bank,
)
from synthnb.glyphworld.painting import STYLES
from synthnb.glyphworld.signs import SENSES, THINGS, UNLEARNED
from synthnb.glyphworld.world import (
    GLYPHS,
    PAINTABLE,
    WORLDS,
    captions,
    folder,
    painted,
    render,
    sample_scenes,
    sample_styles,
)

WIDER, SHIPPED = WORLDS["things"], folder("clip").parent


@pytest.fixture(scope="module")
def corpora():
    return {name: loop.corpus(1024, 3, progress=False, world=world) for name, world in WORLDS.items()}


def test_world_of_glyphs_draws_the_same_pictures_as_ever():
    scenes = sample_scenes(512, torch.Generator().manual_seed(0))
    told = "\n".join(captions(scenes, 0))
    assert scenes.sense.max() < len(SENSES) == 111 and scenes.style.max() < len(STYLES) == 12
    assert hashlib.sha256(told.encode()).hexdigest()[:16] == "dc4e92130893a89c"
    assert render(scenes).double().mean().item() == pytest.approx(139.146, abs=0.01)


def test_signs_and_things_are_drawn_as_ever():
    "Byte for byte, with the locked versions of matplotlib's fonts and of Pillow."
    known = {FONTS: "b805c1200dcdd4ca", HELD_OUT_FONTS: "9ae734b85e0a1c04", HANDS + HELD_OUT_HANDS: "3962764b4e0fb79b"}
    for fonts, digits in known.items():
        bank = glyph_bank(fonts)[0][: len(SENSES + THINGS)]
        assert hashlib.sha256(bank.numpy().tobytes()).hexdigest()[:16] == digits
    told = repr(SENSES + THINGS).encode()
    assert hashlib.sha256(told).hexdigest()[:16] == "d2c77964935b2a3b"


def test_wider_world_begins_with_the_other():
    assert (
        WIDER.senses[: len(SENSES)] == SENSES
        and WIDER.styles[: len(STYLES)] == STYLES
        and set(GLYPHS.fonts) < set(WIDER.fonts)
    )
    assert not set(WIDER.fonts) & set(WIDER.held_out)
    assert set(GLYPHS.ambiguous) < set(WIDER.ambiguous)
    assert {"mouse", "bag", "boot", "bear", "horse", "bat", "shirt", "crown", "ring"} <= set(WIDER.ambiguous)


def test_things_cover_the_classes_of_the_targets():
    for target, group in (("silhouettes", "animal"), ("fashion", "clothing")):
        names = TARGETS[target].classes
        images, labels = painted(names, 1, group=group)
        assert labels.tolist() == list(range(len(names))) and len(images.flatten(1).unique(dim=0)) == len(names)


def test_what_no_model_learns_shifts_no_random_draw():
    """A corpus has none of it, and names that were painted before are painted as before."""
    assert PAINTABLE.senses == WIDER.senses + UNLEARNED and PAINTABLE.fonts == WIDER.fonts + UNLEARNED_HANDS
    assert WIDER.senses == SENSES + THINGS and WIDER.fonts == FONTS + HANDS
    assert not set(WIDER.names) & {name for sense in UNLEARNED for name in sense.names}
    for name in ("coat", "boot", "running horse"):
        senses = [i for i, s in enumerate(WIDER.senses) if name in (s.phrase, *s.names)]
        scenes = sample_scenes(16, torch.Generator().manual_seed(3), senses=torch.tensor(senses), world=WIDER)
        assert torch.equal(painted([name], 16, seed=3)[0], render(scenes))


def test_every_thing_has_hands_to_learn_from_and_one_to_be_measured_by():
    for thing in THINGS:
        assert sum((thing.key, hand) in _shapes() for hand in HANDS) >= 4
        assert all((thing.key, hand) in _shapes() for hand in HELD_OUT_HANDS)
    for thing in UNLEARNED:
        assert sum((thing.key, hand) in _shapes() for hand in HANDS + UNLEARNED_HANDS) >= 4
    assert _SHAPES.stat().st_size < 400_000
    assert set(_shape_credits()) == set(HANDS + HELD_OUT_HANDS + UNLEARNED_HANDS)
    with np.load(_SHAPES, allow_pickle=False) as packed:
        assert {packed[key].dtype.kind for key in packed} <= {"u", "U"}


def test_drawings_fill_the_square_and_differ():
    seen = {}
    for key, shape in _shapes().items():
        inked = shape[..., 3] > 127
        assert 0.1 < inked.mean() < 0.8 and max(np.ptp(side) for side in np.nonzero(inked)) >= 48, key
        assert seen.setdefault(shape.tobytes(), key) == key


def test_glyphs_get_no_style_of_things():
    sense = torch.arange(len(WIDER.senses)).repeat(40)
    style = sample_styles(sense, torch.Generator().manual_seed(0), WIDER)
    assert style[sense < len(SENSES)].max() < len(STYLES) and len(style[sense >= len(SENSES)].unique()) == len(
        WIDER.styles
    )


def test_colours_silhouettes_and_lines_are_drawn():
    """A silhouette is black inside, a colour drawing is not grey, an outline is mostly paper."""
    elephant = torch.tensor([next(i for i, s in enumerate(WIDER.senses) if s.key == "elephant")])
    pictures = {}
    for style in (len(STYLES), len(STYLES) + 1, len(STYLES) + 2):
        scenes = sample_scenes(16, torch.Generator().manual_seed(0), senses=elephant, plain=1, world=WIDER)
        scenes.style[:] = style
        pictures[style] = render(scenes).float()
    colour, silhouette, photo = pictures.values()
    assert silhouette[:, :, 12:20, 12:20].mean() < 60 < silhouette[:, :, :2].mean()
    assert (silhouette[:, 0] - silhouette[:, 1]).abs().max() <= 1 >= (photo[:, 0] - photo[:, 1]).abs().max()
    assert (colour[:, 0] - colour[:, 2]).abs().mean() > 4


@pytest.mark.parametrize("model", ["clip", "generator/tokenizer"])
def test_grown_tokenizer_reads_old_captions_as_before(corpora, model):
    before = CLIPTokenizer.from_pretrained(SHIPPED / model)
    after = recognisers.grow_tokenizer(before, corpora["things"].texts)
    assert before(corpora["glyphs"].texts).input_ids == after(corpora["glyphs"].texts).input_ids
    assert len(after) > len(before) and after.tokenize("an elephant") == ["an</w>", "elephant</w>"]
    assert max(map(len, after(corpora["things"].texts).input_ids)) <= recognisers.CONTEXT_LENGTH


def test_grown_clip_sees_and_reads_old_things_as_before(corpora):
    old, tokens = recognisers.load_clip(SHIPPED / "clip")
    new, after = recognisers.grow_clip(SHIPPED / "clip", corpora["things"].texts)
    data, new = corpora["glyphs"], new.eval()
    with torch.no_grad():
        assert torch.equal(
            old.encode_image(data.batch(torch.arange(64))), new.encode_image(data.batch(torch.arange(64)))
        )
        ids = recognisers.tokenize(after, data.texts[:64])
        assert torch.allclose(old.encode_text(tokens(data.texts[:64])), new.encode_text(ids), atol=1e-5)


def test_grown_judge_judges_old_things_as_before(corpora):
    torch.manual_seed(0)  # the rows of what it has not learned yet are random, and win now and then
    judge, data = recognisers.grow_judge(SHIPPED / "judge", WIDER).eval(), corpora["glyphs"]
    assert recognisers.world_of(judge) is WIDER
    sense, style = recognisers.judged(judge, data.images[:256])
    assert (sense == data.sense[:256]).float().mean() > 0.95 and (style == data.style[:256]).float().mean() > 0.98


def test_grown_text_encoder_reads_old_captions_as_before(corpora):
    from transformers import CLIPTextModel

    grown, tokens = generator.grow_text_encoder(SHIPPED / "generator", corpora["things"].texts)
    old = CLIPTextModel.from_pretrained(SHIPPED / "generator" / "text_encoder", dtype=torch.float32).eval()
    ids = tokens(corpora["glyphs"].texts[:32], padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        assert torch.allclose(old(ids).last_hidden_state, grown.eval()(ids).last_hidden_state, atol=1e-5)


def test_grown_chat_model_begins_near_what_it_knew():
    tokens = glyphllm._build_chat_tokenizer(glyphllm._example_texts(3000, world=WIDER), 2800)
    grown = glyphllm._grow_llm(SHIPPED / "llm", tokens)
    ids, learned = glyphllm._encode_conversations(tokens, 40, 5, progress=False)
    rows = ids[None, :900].long()
    for model, least, most in ((grown, 0, 1.5), (glyphllm._new_llm(tokens), 4, 20)):
        with torch.no_grad():
            logits = model(rows).logits[0, :-1][learned[1:900]]
        assert least <= torch.nn.functional.cross_entropy(logits, rows[0, 1:][learned[1:900]]) < most
    assert isinstance(tokens, PreTrainedTokenizerFast)


def test_conversations_of_the_wider_world_know_things():
    assert '"computer mouse"' in glyphllm._meanings("mouse", 8, WIDER) and '"field mouse"' in glyphllm._meanings(
        "mouse", 8, WIDER
    )
    assert glyphllm._meanings("horse", 8) == '{"senses": [{"phrase": "chess knight", "looks": "a printed sign"}]}'


def test_stages_go_on_from_shipped_weights(tmp_path, monkeypatch):
    """A few steps of each stage in the wider world.

    Every model comes out, opens, and still knows most of what it knew.
    """
    tiny = dict(batch=16, pictures=256, warmup=1)
    for name in ("vae", "reader", "generator", "refine", "clip", "rough", "judge"):
        monkeypatch.setitem(loop.ONWARD, name, loop.Recipe(steps=2, lr=1e-5, **tiny))
    training.build(
        tmp_path,
        "cpu",
        ["vae", "judge", "clip", "generator", "refine", "cnn", "vit"],
        progress=False,
        world="things",
        start=SHIPPED,
    )
    judge = recognisers.load_judge(tmp_path / "judge")
    assert measures._measure_judge(judge, 200)["sense"] > 0.9
    assert measures._measure_clip(tmp_path / "clip", 200, world=WIDER)["sense"] > 0.7
    encoder = "vae/diffusion_pytorch_model.safetensors"
    from safetensors.torch import load_file

    old, new = (load_file(Path(home) / "generator" / encoder) for home in (SHIPPED, tmp_path))
    changed = {
        name.split(".")[0] for name in old if not torch.allclose(old[name].float(), new[name].float(), atol=1e-6)
    }
    assert changed <= {"decoder", "post_quant_conv"}, "latents must keep their meaning"
    pipe = measures.DiffusionPipeline.from_pretrained(tmp_path / "generator", use_safetensors=True)
    drawn = measures._draw(
        pipe, ["a photo of an arabic digit three, white chalk on a blackboard"] * 8, 0, progress=False
    )
    sense, _ = recognisers.judged(judge, drawn)
    assert (sense == 3).float().mean() >= 0.75
    assert "clip: step 0 of 2, loss" in (tmp_path / ".build" / "training.log").read_text()
    with pytest.raises(ValueError, match="no world 'letters': take one of glyphs, things"):
        training.build(tmp_path, world="letters")
