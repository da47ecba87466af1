"""CLIP and its features at their edges: streams, interrupted files, broken folders, names without weights."""

import copy
import multiprocessing
import os
import shutil
import signal
import time
import weakref

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import open_clip
import pytest
import torch
from lar_cases import TEMPLATES, noise, senses_of
from PIL import Image
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import PILToTensor
from torchvision.transforms import functional as TF

from synthnb import lar
from synthnb.data import few_shot
from synthnb.glyphworld.world import folder
from synthnb.models import clip as clip_module
from synthnb.models.clip import image_features, load_clip

torch.set_num_threads(1)


def test_stream_is_never_held(clip):
    alive, most = weakref.WeakSet(), []

    def batches():
        for i in range(20):
            images = noise(16, i)
            alive.add(images)
            most.append(len(alive))
            yield images, torch.arange(16) % 4

    features = image_features(clip, batches(), list("abcd"), images_per_class=None, thumbnails=1, progress=False)
    assert len(features) == 320 and max(most) <= 4, f"{max(most)} batches were alive at once"
    assert sum(bool(t) for t in features.thumbnails) == 4


def test_stream_stops_when_every_class_is_full(clip):
    read = []

    def batches():
        for i in range(100):
            read.append(i)
            yield noise(8, i), torch.arange(8) % 4

    features = image_features(clip, batches(), list("abcd"), images_per_class=3, progress=False)
    assert len(read) == 2 and torch.bincount(features.labels).tolist() == [3] * 4


def test_folder_of_photos_of_any_size_is_a_stream(clip, tmp_path):
    for i, (name, size) in enumerate([("crane", (50, 31)), ("crane", (9, 80)), ("owl", (64, 64)), ("owl", (33, 40))]):
        (tmp_path / name).mkdir(exist_ok=True)
        TF.resize(Image.fromarray(noise(1, i)[0].permute(1, 2, 0).numpy()), size).convert(
            "L" if i == 2 else "RGB"
        ).save(tmp_path / name / f"{i}.png")
    photos = ImageFolder(tmp_path, transform=PILToTensor(), loader=lambda path: Image.open(path).convert("RGB"))
    features = image_features(
        clip,
        DataLoader(photos, 3, collate_fn=lambda rows: tuple(map(list, zip(*rows)))),
        photos.classes,
        progress=False,
    )
    by_one = [
        image_features(clip, [([image], [label])], photos.classes, progress=False).features for image, label in photos
    ]
    assert features.labels.tolist() == [0, 0, 1, 1] and torch.allclose(features.features, torch.cat(by_one), atol=1e-5)


def test_batch_size_order_and_precision_move_scores_little(clip, scans):
    few = few_shot(scans, 3)
    candidates = senses_of(scans.classes)
    reference = lar.class_scores(clip, image_features(clip, few, batch_size=64, progress=False), candidates, TEMPLATES)
    for options, allowed in [({"batch_size": 1}, 1e-5), ({"dtype": torch.float16}, 2e-4)]:
        scores = lar.class_scores(clip, image_features(clip, few, progress=False, **options), candidates, TEMPLATES)
        assert max(np.abs(scores[name] - reference[name]).max() for name in scores) < allowed
    rounded = load_clip(folder("clip"), device="cpu", dtype="bfloat16")
    with pytest.raises(ValueError, match="encode the images again"):
        lar.class_scores(rounded, image_features(clip, few, progress=False), candidates, TEMPLATES)
    scores = lar.class_scores(rounded, image_features(rounded, few, progress=False), candidates, TEMPLATES)
    assert max(np.abs(scores[name] - reference[name]).max() for name in scores) < 0.05


def test_killed_while_saving_leaves_a_whole_file(clip, scans, tmp_path):
    features = image_features(clip, few_shot(scans, 2), progress=False)
    path = clip_module.save_features(features, tmp_path / "features.safetensors")

    def save_for_ever():
        while True:
            clip_module.save_features(features, path)

    for i in range(8):
        writer = multiprocessing.get_context("fork").Process(target=save_for_ever)
        writer.start()
        time.sleep(0.02 + 0.013 * i)
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        assert torch.equal(clip_module.load_features(path, clip).features, features.features)


def test_broken_clip_folders_say_what_to_do(tmp_path):
    whole, weights, config = folder("clip"), "open_clip_model.safetensors", "open_clip_config.json"
    other = (whole / config).read_text().replace('"embed_dim": 128', '"embed_dim": 64')
    for name, spoil, error, why in [
        ("empty", lambda d: [f.unlink() for f in d.iterdir()], FileNotFoundError, "no open_clip_config.json"),
        ("weightless", lambda d: (d / weights).unlink(), FileNotFoundError, "no \\*.safetensors"),
        (
            "pickled",
            lambda d: (d / weights).rename(d / "open_clip_pytorch_model.bin"),
            FileNotFoundError,
            "pickled weights are not opened",
        ),
        (
            "cut",
            lambda d: (d / weights).write_bytes((whole / weights).read_bytes()[:90_000]),
            ValueError,
            "not a whole safetensors",
        ),
        ("other", lambda d: (d / config).write_text(other), RuntimeError, "could not be opened"),
    ]:
        shutil.copytree(whole, tmp_path / name)
        spoil(tmp_path / name)
        with pytest.raises(error, match=why):
            load_clip(tmp_path / name, device="cpu")


def test_missing_weights_of_a_name_say_how_to_get_them(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(RuntimeError, match="hf download timm/vit_base_patch32_clip_224.openai"):
        load_clip("ViT-B-32", "openai", device="cpu")
    with pytest.raises(RuntimeError, match="hf download nobody/nothing"):
        load_clip("hf-hub:nobody/nothing", device="cpu")
    with pytest.raises(ValueError, match="needs the tag of its weights, got 'opena1'"):
        load_clip("ViT-B-32", "opena1", device="cpu")


def test_features_know_a_clip_by_more_than_its_weights(clip):
    def other(change) -> str:
        model = copy.deepcopy(clip.model)
        change(model)
        return clip_module.Clip(model, clip.tokenizer, clip.name).fingerprint

    assert other(lambda model: None) == clip.fingerprint
    assert other(lambda model: model.visual.preprocess_cfg.update(mean=(0.5, 0.4, 0.5))) != clip.fingerprint
    assert other(lambda model: setattr(model.transformer.resblocks[0].mlp, "gelu", torch.nn.SiLU())) != clip.fingerprint
    assert other(lambda model: model.logit_scale.data.add_(1)) != clip.fingerprint


def text_tower(kind, **changes) -> torch.nn.Module:
    torch.manual_seed(0)
    vision = {"image_size": 32, "patch_size": 16, "width": 64, "layers": 1, "head_width": 32}
    text = {"context_length": 12, "vocab_size": 99, "width": 64, "heads": 2, "layers": 2} | changes
    return kind(embed_dim=32, vision_cfg=vision, text_cfg=text).eval().requires_grad_(False)


@pytest.mark.parametrize("dtype, allowed", [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize(
    "kind, changes",
    [
        (open_clip.CLIP, {}),
        (open_clip.CustomTextCLIP, {}),
        (open_clip.CustomTextCLIP, {"embed_cls": True, "context_length": 11}),  # as CoCa's: a mask for each text
        (open_clip.CustomTextCLIP, {"no_causal_mask": True, "pool_type": "last"}),  # as SigLIP's
        (open_clip.CustomTextCLIP, {"block_type": "custom", "qk_norm": True}),  # blocks of another kind
    ],
)
def test_a_text_tower_multiplies_all_words_at_once(kind, changes, dtype, allowed):
    untouched = text_tower(kind, **changes)
    ids = torch.randint(1, 99, (5, changes.get("context_length", 12)))
    wrapped = clip_module.Clip(copy.deepcopy(untouched), lambda texts: ids, "random", dtype=dtype)
    expected, texts = torch.nn.functional.normalize(untouched.encode_text(ids), dim=-1), list("abcde")
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        found = wrapped.encode_texts(texts)
    assert (found - expected).abs().max() < allowed
    assert torch.equal(found, wrapped.encode_texts(texts)) and found.shape == (5, 32)
    # A product by words is `bmm`, and copies the weights of a layer for every word
    assert "aten::bmm" not in {event.key for event in seen.key_averages()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_has_a_causal_mask_of_the_weights_type(dtype, monkeypatch):
    ids = torch.randint(1, 99, (5, 12))
    wrapped = clip_module.Clip(text_tower(open_clip.CLIP), lambda texts: ids, "random", dtype=dtype)
    attention, masks = torch.nn.functional.scaled_dot_product_attention, []

    def watched(query, key, value, attn_mask=None, *rest):
        masks.append(attn_mask)
        assert query.shape == (5, 2, 12, 32) and query.dtype == dtype
        return attention(query, key, value, attn_mask, *rest)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    wrapped.encode_texts(list("abcde"))
    later = torch.ones(12, 12, dtype=torch.bool).triu(1)
    assert len(masks) == 2 and all(mask.dtype == dtype for mask in masks)
    assert all(torch.equal(mask.reshape(12, 12) == -torch.inf, later) for mask in masks)
    assert all((mask.reshape(12, 12)[~later] == 0).all() for mask in masks)


def activations(clip) -> set[str]:
    return {type(part).__name__ for part in clip.model.modules() if "GELU" in type(part).__name__}


@pytest.mark.parametrize(
    "tag, kind",
    [
        ("openai", "QuickGELU"),
        ("laion400m_e32", "QuickGELU"),
        ("metaclip_400m", "QuickGELU"),
        ("laion2b_s34b_b79k", "GELU"),
    ],
)
def test_a_plain_name_has_the_activation_of_its_tag(tag, kind, monkeypatch, recwarn):
    import open_clip.factory

    small = open_clip.get_model_config("ViT-B-32") | {
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1}
    }
    small["vision_cfg"] = small["vision_cfg"] | {"layers": 1, "width": 64}
    monkeypatch.setattr(open_clip.factory, "get_model_config", lambda name: dict(small))
    monkeypatch.setattr(
        open_clip.factory, "download_pretrained", lambda *args, **options: "no_weights.safetensors"
    )  # nothing is fetched
    monkeypatch.setattr(open_clip.factory, "load_checkpoint", lambda *args, **options: {})
    assert activations(load_clip("ViT-B-32", tag, "cpu")) == {kind}
    assert not [warning for warning in recwarn if "GELU" in str(warning.message)]


def test_a_folder_and_a_hub_name_have_the_activation_of_their_weights(tmp_path, clip):
    for name, kind in (
        ("vit_large_patch14_clip_224.openai", "QuickGELU"),
        ("models--apple--DFN2B-CLIP-ViT-B-16/snapshots/abc", "QuickGELU"),
        ("models--laion--CLIP-ViT-B-32-laion2B-s34B-b79K/snapshots/abc", "GELU"),
        ("mine", "GELU"),
    ):
        shutil.copytree(folder("clip"), tmp_path / name)
        opened = load_clip(tmp_path / name, device="cpu")
        assert activations(opened) == {kind}, name
        assert (opened.fingerprint == clip.fingerprint) == (kind == "GELU"), (
            "cached features of the wrong activation are not taken"
        )
    assert clip_module._has_quick_gelu("hf-hub:timm/vit_large_patch14_clip_224.openai@main", None)
    assert not clip_module._has_quick_gelu("hf-hub:laion/CLIP-ViT-B-32-laion2B-s34B-b79K", None)
