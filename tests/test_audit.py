"""Right values of what an audit from outside found wrong on 2026-11-29; each test fails on the code before it."""

import copy
import json
import math
import os
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from open_clip.transform import image_transform
from PIL import Image

from synthnb import train
from synthnb.core.intervals import mean_interval
from synthnb.data import LabelledImages, real_overlap
from synthnb.datasets import layout
from synthnb.datasets.layout import read_layout
from synthnb.datasets.listed import list_folder
from synthnb.evaluate import gain_by_class
from synthnb.glyphworld.world import folder
from synthnb.images.curate import open_synthetic
from synthnb.models import classifiers, latents
from synthnb.models.clip import preprocess
from synthnb.models.names import class_names
from synthnb.models.pipelines import check_style_token
from synthnb.studies.folder import run_id
from synthnb.studies.parameters import wrong_values
from synthnb.studies.sweep_page import summarise
from synthnb.studies.verdict import comparisons
from synthnb.training.augmentation import TimmPolicy, random_resized_crop, sized
from synthnb.training.checkpoints import stage_key
from synthnb.training.prediction import predict


def drawn(path: Path, size: tuple[int, int] = (12, 12), colour: str = "red") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


# ---- numbers


def test_a_sweep_never_averages_over_shots():
    rows = [
        {"run": "r", "method": "vanilla", "shots": n, "seed": s, "value": n / 100 + s / 1000}
        for n in (1, 4, 16)
        for s in (0, 1, 2)
    ]
    table = summarise(pd.DataFrame(rows).assign(**{"param.classifier": "a"}), ["classifier"])
    assert table.shots.tolist() == [1, 4, 16] and table.n.tolist() == [3, 3, 3]
    np.testing.assert_allclose(table.value, [0.011, 0.041, 0.161])


def test_a_seed_counts_once_in_a_sweep():
    rows = [{"run": "r", "method": "m", "seed": s, "value": v} for s, v in ((0, 0.1), (0, 0.3), (1, 0.4), (1, 0.6))]
    table = summarise(pd.DataFrame(rows).assign(**{"param.a": 1}), ["a"])
    assert table.n.tolist() == [2] and math.isclose(table.value[0], 0.35)


def row(method: str, at: list[float], gain: float | None, **known) -> dict:
    told = {"method": method, "shots": 1, "accuracy": float(np.mean(at)), "gain": gain, "seeds": len(at)}
    return told | {"gain_low": None, "gain_high": None, "seeds_at": at, "test_errors": {}, "verdict": ""} | known


def test_a_method_of_other_seeds_is_no_rival():
    spread = [0.01, -0.01, 0.02, 0.0, -0.02]
    rows = [
        row("vanilla_matched", [0.5 + s for s in spread], None),
        row("bridged", [0.55 + s for s in spread], 0.05, sets="one a seed"),
        row("augmented", [0.56 - s for s in spread], None),  # measured with other seeds: it has no paired gain
    ]
    found = comparisons({"summary": rows, "rows": [], "generated_sets": 5})[0]
    assert found.against == "vanilla_matched" and next(one for one in found.lines if one.generated).gain.mean > 0


def test_an_answer_named_by_its_volume_is_found():
    rows = [row("vanilla_matched", [0.5] * 5, None), row("bridged", [0.6] * 5, 0.1, sets="one a seed")]
    answer = {"method": "bridged", "alternative": "vanilla_matched", "gain": 10.0, "low": 5.0, "high": 15.0}
    answer |= {"seeds": 5, "verdict": "better", "accuracy": 60.0}
    assert (
        comparisons({"summary": rows, "rows": [], "answers": {"6x": answer}, "generated_sets": 5})[0].answer is not None
    )


def test_a_class_of_few_test_images_has_no_interval():
    labels = torch.tensor([0] * 3 + [1] * 40)
    data = LabelledImages(torch.zeros(43, 3, 4, 4, dtype=torch.uint8), labels, ("few", "many"), "test")
    right = np.arange(43) % 3 > 0
    runs = [
        SimpleNamespace(method=m, seed=0, correct=c)
        for m, c in (("bridged", right), ("vanilla_matched", right & (np.arange(43) % 4 > 0)))
    ]
    table = gain_by_class(runs, data, "bridged").set_index("class")
    assert math.isnan(table.low["few"]) and table.low["many"] < table.gain["many"] < table.high["many"]


def test_equal_values_print_no_interval():
    assert mean_interval([0.089, 0.089, 0.089]).points == "+8.9"


def test_shared_real_images_are_counted():
    images = torch.arange(20, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 4, 4)
    data = LabelledImages(images, torch.arange(20) % 2, ("a", "b"), "train")
    assert real_overlap(data, [1, 8, 0]) == {"1": 0.1, "8": 0.8, "all": 1.0}
    twice = data.subset([*range(20), *range(20)])  # copies are drawn once: they share no more
    assert real_overlap(twice, [1, 8]) == {"1": 0.1, "8": 0.8}


# ---- the method


@pytest.fixture
def cnn():
    net = classifiers.load_classifier(folder("cnn"), 3)
    assert net.pretrained_cfg["crop_pct"] == 1.0
    return net


def test_a_network_from_scratch_sees_the_same_images(cnn):
    new = classifiers.fresh(cnn)
    for name in ("mean", "std", "crop_pct", "interpolation"):
        assert new.pretrained_cfg[name] == cnn.pretrained_cfg[name], name


@pytest.mark.parametrize("view", [{"crop_pct": 0.6}, {"crop_mode": "squash"}], ids=["crop_pct", "crop_mode"])
def test_a_run_is_not_found_for_another_view(cnn, view):
    other = copy.deepcopy(cnn)
    other.pretrained_cfg = dict(cnn.pretrained_cfg) | view
    wide = torch.arange(3 * 32 * 48).view(1, 3, 32, 48).to(torch.uint8)
    seen = [classifiers.evaluation_view(net, wide, 32) for net in (cnn, other)]
    assert not torch.equal(*seen) and stage_key(cnn, [], {}) != stage_key(other, [], {})


def test_a_policy_crops_straight_to_the_size_of_the_network():
    seen = []

    def first(images, generator, size=0):
        seen.append(size)
        return random_resized_crop(images, generator, size=size)

    images = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8)
    out = sized(TimmPolicy("rand-m6-mstd0.5-inc1", first), 40)(images, torch.Generator().manual_seed(0))
    assert out.shape[2:] == (40, 40) and seen == [40]
    assert sized(partial(first, size=0), 40)(images, torch.Generator()).shape[2:] == (40, 40)


@pytest.mark.parametrize("side", [144, 239, 288, 316, 457])
def test_no_black_row_before_clip(side):
    config = dict(size=224, mean=(0.0,) * 3, std=(1.0,) * 3, interpolation="bicubic", resize_mode="shortest")
    white = torch.full((1, 3, side, side + 20), 255, dtype=torch.uint8)
    assert preprocess(white, config).min() > 0.99
    noise = torch.randint(256, (1, 3, side, side), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    own = image_transform(224, is_train=False, mean=(0.0,) * 3, std=(1.0,) * 3)
    theirs = own(Image.fromarray(noise[0].permute(1, 2, 0).numpy()))
    assert (preprocess(noise, config)[0] - theirs).abs().max() < 0.02


def test_a_linear_probe_freezes_norms_of_vectors_too():
    net = timm.create_model("repvit_m0_9", num_classes=3)
    before = {name: value.clone() for name, value in net.named_buffers()}
    head = [name for name, _ in net.named_buffers() if name.startswith("head.")]
    with classifiers.only_head(net):
        net.train()
        net(torch.randn(4, 3, 64, 64))
        inside = {name: value.clone() for name, value in net.named_buffers()}
    after = dict(net.named_buffers())
    assert head and all(torch.equal(before[name], after[name]) for name in before if name not in head)
    assert all(torch.equal(inside[name], after[name]) for name in head), "what the head has learned stays"
    assert any(not torch.equal(before[name], after[name]) for name in head)
    assert all(module.training for module in net.train().modules())


@pytest.mark.parametrize(
    "name, settings",  # what drops in the body: a layer, stochastic depth (on by default in Swin), the network itself
    [
        ("vit_tiny_patch16_224", dict(img_size=32, depth=2, proj_drop_rate=0.5, drop_path_rate=0.5)),
        ("swin_tiny_patch4_window7_224", dict(img_size=56, embed_dim=24, depths=(1, 1), num_heads=(1, 1))),
        ("efficientnet_lite0", dict(drop_rate=0.5, drop_path_rate=0.5)),
    ],
)
def test_a_linear_probe_learns_from_the_features_of_evaluation(name, settings):
    net = timm.create_model(name, num_classes=3, **settings)
    images = torch.randn(4, 3, settings.get("img_size", 64), settings.get("img_size", 64))
    features = lambda: net.forward_head(net.forward_features(images), pre_logits=True)
    tested = [module.training for module in net.modules()], net.eval() and features()
    net.train()
    seen, read = [], net.get_classifier().register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    with classifiers.only_head(net):
        for _ in range(2):
            net.train()
            net(images)
            predict(net, torch.zeros(2, *images.shape[1:], dtype=torch.uint8))
            assert net.get_classifier().training, "validation images change no mode"
    assert torch.equal(seen[0], tested[1]) and torch.equal(seen[2], tested[1])
    assert tested[0] == [module.training for module in net.modules()]
    read.remove()


def test_an_offloaded_generator_cannot_learn():
    pipe = SimpleNamespace(components={"vae": SimpleNamespace(_hf_hook=None)})
    with pytest.raises(ValueError, match="is offloaded to the CPU: so it draws, but it cannot learn"):
        latents.encode_images(pipe, None)


@pytest.mark.parametrize(
    ("gb", "dtype", "refused"),
    [(16, "float32", True), (16, "bfloat16", False), (24, "float32", False), (6, "bfloat16", True)],
)
def test_a_generator_that_would_be_offloaded_is_refused_before_the_start(gb, dtype, refused, tmp_path, monkeypatch):
    (tmp_path / "sdxl-base").mkdir()
    index = json.dumps({"_class_name": "StableDiffusionXLPipeline"})
    (tmp_path / "sdxl-base/model_index.json").write_text(index)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda gpu: (gb * 10**9, gb * 10**9))
    check = partial(check_style_token, tmp_path / "sdxl-base", dtype=dtype)
    if refused:
        with pytest.raises(ValueError, match=r"takes about .* GB and the GPU has .*-p dataset_style false"):
            check(device="cuda")
    else:
        check(device="cuda")
    check(device="cpu")


# ---- folders


def test_generated_images_are_fitted_as_the_real_ones(tmp_path):
    for name in ("cat", "dog"):
        drawn(tmp_path / name / "x.png", (30, 10))
    cut, padded = (open_synthetic(tmp_path, 12, ("cat", "dog"), fit=fit) for fit in ("crop", "pad"))
    assert (padded.images[:, :, 0] == 255).all() and not (cut.images[:, :, 0] == 255).all()


def test_masks_beside_images_are_no_images(tmp_path):
    for name in ("benign", "normal"):
        for i in range(3):
            drawn(tmp_path / name / f"{name} ({i}).png")
            drawn(tmp_path / name / f"{name} ({i})_mask.png")
            drawn(tmp_path / name / f"{name} ({i})_mask_1.png")
        drawn(tmp_path / name / "death_mask.png")  # of a class of masks, perhaps: no image lies beside it
    layout = read_layout(tmp_path)
    files = [path for split in layout.splits.values() for path, _ in split]
    assert len(files) == 2 * 4 and sum(one.reason.startswith("a mask") for one in layout.left_out) == 2 * 6


@pytest.mark.parametrize(
    "names",
    [
        ("seg_train/seg_train", "seg_test/seg_test", "seg_pred/seg_pred"),
        ("my_train", "my_test"),
        ("pets-train", "pets-val"),
    ],
)
def test_folders_called_like_splits_are_no_classes(names, tmp_path):
    for name in names:
        for label in ("cat", "dog"):
            drawn(tmp_path / name / label / "x.png")
    with pytest.raises(ValueError, match="are called like splits, not like classes: name folders train, val and test"):
        list_folder(tmp_path)


def test_classes_that_hold_the_word_stay_classes(tmp_path):
    for name in ("steam_train", "crash_test", "freight_train"):
        drawn(tmp_path / name / "x.png")
    assert list_folder(tmp_path)["train"].classes == ("crash_test", "freight_train", "steam_train")


def cats_and_dogs(folder: Path, head: str, line: str) -> str:
    """Eight images, and a table of them: its lines are filled with i, label and name."""
    lines = [head]
    for i, name in enumerate(("cat", "dog") * 4):
        drawn(folder / f"{i}.png")
        lines.append(line.format(i=i, label=i % 2, name=name))
    return "\n".join(lines)


def test_a_table_says_classes_in_words_where_it_can(tmp_path):
    (tmp_path / "t.csv").write_text(cats_and_dogs(tmp_path, "path,label,class_name", "{i}.png,{label},{name}"))
    assert list_folder(tmp_path)["train"].classes == ("cat", "dog")


def test_other_images_under_the_same_path_are_another_run(tmp_path):
    notebook = Path(__file__).parents[1] / "nbs/experiments/compare.ipynb"
    one = drawn(tmp_path / "real/cat/x.png")
    asked = {"real_data": str(tmp_path / "real"), "images": ""}
    first = run_id(notebook, asked)
    assert run_id(notebook, asked) == first
    (tmp_path / "real/.hidden").write_text("of a tool")
    assert run_id(notebook, asked) == first
    drawn(tmp_path / "real/cat/y.png")
    more = run_id(notebook, asked)
    assert more != first
    os.utime(one, ns=(1, 1))
    assert run_id(notebook, asked) not in (first, more)
    assert run_id(notebook, {"real_data": "mnist"}) == run_id(notebook, {"real_data": "mnist"})


def test_a_metadata_file_of_json_lines_is_a_table(tmp_path):
    lines = []
    for i, name in enumerate(("cat", "dog") * 4):
        drawn(tmp_path / f"{i}.png")
        lines.append(json.dumps({"file_name": f"{i}.png", "label": name}))
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    found = list_folder(tmp_path)
    assert found["train"].classes == ("cat", "dog") and sum(map(len, found.values())) == 8


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.filterwarnings("error")
def test_numbers_in_a_table_stay_as_they_are_written(suffix, tmp_path):
    rows = [{"file_name": "a.png", "label": 7}, {"file_name": "b.png", "label": None}]
    if suffix == ".jsonl":
        rows[0] |= {"id": 12345678901234567890123, "taken": "2020-01-01\u2028"}
        (tmp_path / "metadata.jsonl").write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    else:
        pd.DataFrame(rows).astype({"label": "Int64"}).to_parquet(tmp_path / "metadata.parquet")
    table = layout._read(tmp_path / f"metadata{suffix}")
    assert table.label.tolist() == ["7", ""]
    if suffix == ".jsonl":
        assert table.id.tolist() == ["12345678901234567890123", ""] and table.taken[0] == "2020-01-01\u2028"


def test_a_table_that_says_no_classes_is_mentioned(tmp_path):
    for i in range(4):
        drawn(tmp_path / f"{i}.png")
    (tmp_path / "t.csv").write_text("0.png,cat\n1.png,dog\n")
    with pytest.raises(
        ValueError, match=r"t\.csv lies there, but its columns \('0\.png', 'cat'\) are none of files and labels"
    ):
        list_folder(tmp_path)


def test_a_fit_that_there_is_not_is_refused_before_the_start():
    assert wrong_values({"fit": "stretch"}) == ["parameter fit is 'stretch': it may be crop, pad, resize"]
    assert not wrong_values({"fit": "pad"}) and not wrong_values({})


@pytest.mark.parametrize(
    "names", [("1 cent", "2 cents"), ("1-piece", "2-pieces"), ("0 years", "1 year", "2 years old")]
)
def test_a_number_that_is_the_meaning_stays(names):
    assert class_names(names) == names
    assert class_names(("1_cat", "2_dog")) == ("cat", "dog")


@pytest.mark.parametrize(("device", "count", "pooled"), [("cuda", 2, True), ("cuda", 1, False), ("cpu", 2, False)])
def test_norms_are_pooled_over_gpus_whatever_the_method(device, count, pooled, monkeypatch, cnn):
    monkeypatch.setattr(train, "processes", lambda: count)
    net = train._pooled(cnn, SimpleNamespace(device=torch.device(device)))
    assert any(isinstance(layer, torch.nn.SyncBatchNorm) for layer in net.modules()) == pooled


def test_one_table_of_several_that_says_classes_is_read(tmp_path):
    (tmp_path / "labels.csv").write_text(cats_and_dogs(tmp_path, "file,label", "{i}.png,{name}"))
    (tmp_path / "sizes.jsonl").write_text(json.dumps({"camera": "a", "width": 12}))
    assert list_folder(tmp_path)["train"].classes == ("cat", "dog")
