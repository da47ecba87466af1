"""CLIP by names and probes of its features, kept: what `classify` says of each image is what the study measured."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_paper_scale import clip as save_tiny_clip
from typer.testing import CliRunner

from synthnb.bridge import Runtime, TransferConfig
from synthnb.cli import app
from synthnb.data import LabelledImages, digits, few_shot
from synthnb.datasets.listed import list_folder, save_folder
from synthnb.datasets.sets import open_real
from synthnb.evaluate import Baseline
from synthnb.glyphworld.world import folder
from synthnb.images.fidelity import extract, open_extractor
from synthnb.models.classifiers import load_classifier
from synthnb.models.clip import Clip, load_clip
from synthnb.studies.alternatives import alternatives, clip_zero_shot, frozen
from synthnb.studies.keeping import Kept, Study, _clip_record, classify, keep_best, train_again
from synthnb.train import TrainConfig

METHODS = ("clip_zero_shot", "clip_probe", "clip_probe+synthetic")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    return save_tiny_clip(tmp_path_factory.mktemp("clip") / "tiny")


def scans(classes: int = 10, every: int = 4) -> dict[str, LabelledImages]:
    names = tuple(f"arabic digit {name}" for name in digits()["train"].classes[:classes])
    splits = {}
    for name, part in digits().items():
        own = replace(part.subset((part.labels < classes).nonzero()[:, 0]), classes=names)
        splits[name] = own if name == "train" else own.subset(range(0, len(own), every))
    return splits


def study_of(clip: Clip, splits, shots: int = 1, **more) -> tuple[Study, list[Baseline]]:
    few = {5: few_shot(splits["train"], shots, 5)}
    synthetic = {5: few_shot(splits["train"], shots + 2, 6)}
    config = TransferConfig(TrainConfig(image_size=32), steps=(1, 1))
    study = Study(folder("cnn"), few, synthetic, splits["val"], config, Runtime("cpu"), clip=clip, **more)
    sets = (few, synthetic, splits["val"], splits["test"], shots)
    return study, alternatives(*sets, study.classifier, 32, clip, study.phrases)


def keep(study: Study, rows, method: str, place: Path) -> tuple[Kept, Baseline]:
    measured = next(row for row in rows if row.method == method)
    return keep_best(study, [measured], place), measured


def right_of(answers, test: LabelledImages) -> np.ndarray:
    "Which images `classify` has right, in the order of the set that `save_folder` wrote."
    of_file = answers.set_index("file")["class"]
    names = [test.classes[label] for label in test.labels.tolist()]
    return np.array([of_file[f"test/{name}/{i}.png"] == name for i, name in enumerate(names)])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("which", "classes"), [("glyphworld/clip", 10), ("glyphworld/clip", 2), ("tiny", 3)])
def test_each_image_gets_the_class_that_was_measured(method, which, classes, tiny, tmp_path):
    splits = scans(classes)
    phrases = {splits["train"].classes[0]: "letter o"} if which == "tiny" else None
    study, rows = study_of(load_clip(tiny if which == "tiny" else which), splits, phrases=phrases)
    kept, measured = keep(study, rows, method, tmp_path / "kept")
    files = save_folder({"test": splits["test"]}, tmp_path / "new images")
    np.testing.assert_array_equal(right_of(classify(kept.folder, files), splits["test"]), measured.correct)
    assert abs(kept.val_accuracy - measured.val_accuracy) < 1e-6 and kept.clip["model"] in (which, str(tiny))
    learned = {"clip_zero_shot": (0, 0), "clip_probe": (classes, 0), "clip_probe+synthetic": (classes, 3 * classes)}
    assert (kept.real, kept.synthetic) == learned[method]


def test_the_probabilities_are_those_of_the_clip_and_of_the_probe():
    splits = scans(2, every=9)
    study, _ = study_of(clip := load_clip("glyphworld/clip"), splits)
    features = extract(open_extractor(clip), splits["test"]).values
    texts = clip.encode_texts([f"a photo of a {name}" for name in splits["test"].classes])
    expected = (clip.model.logit_scale.exp().cpu() * features @ texts.T).softmax(1)
    torch.testing.assert_close(train_again(study, "clip_zero_shot", 5).predict(splits["test"]), expected)
    head = train_again(study, "clip_probe", 5)
    odds = features @ (head.weight[1] - head.weight[0]) + head.bias[1]
    torch.testing.assert_close(head.predict(splits["test"])[:, 1], odds.sigmoid())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_clip_is_opened_in_the_number_type_of_the_study(dtype, tiny, tmp_path):
    splits = scans(3)
    study, rows = study_of(load_clip(tiny, device="cpu", dtype=dtype), splits)
    kept, measured = keep(study, rows, "clip_probe", tmp_path / "kept")
    files = save_folder({"test": splits["test"]}, tmp_path / "new")
    np.testing.assert_array_equal(right_of(classify(kept.folder, files), splits["test"]), measured.correct)
    assert kept.clip["dtype"] == dtype


@pytest.mark.parametrize("fit", ["crop", "pad", "resize"])
def test_images_that_are_not_square_are_shown_as_the_study_showed_them(fit, tmp_path):
    bar, rng = np.arange(64) < 28, np.random.default_rng(0)  # most of it is at the edge, which `crop` cuts off
    for split, count in {"train": 3, "val": 3, "test": 12}.items():
        for name, shade in {"left bar": bar, "right bar": bar[::-1]}.items():
            (home := tmp_path / "real" / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 90, (24, 64, 3)) + 150 * shade[:, None]
                Image.fromarray(pixels.astype(np.uint8)).save(home / f"{i:02}.png")
    splits = open_real(tmp_path / "real", 32, fit=fit)
    study, rows = study_of(load_clip("glyphworld/clip"), splits, fit=fit)
    kept, measured = keep(study, rows, "clip_probe", tmp_path / "kept")
    said = classify(kept.folder, tmp_path / "real/test").sort_values("file")
    right = said["class"] == [Path(file).parent.name for file in said.file]
    np.testing.assert_array_equal(right, measured.correct)
    in_memory = train_again(study, "clip_probe", 5).predict(splits["test"]).max(1).values
    np.testing.assert_allclose(said.probability, in_memory, atol=1e-5)


def test_a_study_that_left_its_images_on_disk_is_kept_too(tmp_path):
    on_disk = list_folder(save_folder(scans(3, every=6), tmp_path / "real"))
    clip = load_clip("glyphworld/clip")
    few = few_shot(on_disk["train"], 1, 5)
    real, val, test = (
        extract(open_extractor(clip), one, image_size=24) for one in (few, on_disk["val"], on_disk["test"])
    )
    rows = [frozen(real, val, test, 5, 1, method="clip_probe"), clip_zero_shot(clip, val, test, 5, 1)]
    config = TransferConfig(TrainConfig(image_size=24), steps=(1, 1))
    study = Study(folder("cnn"), {5: few}, {}, on_disk["val"], config, Runtime("cpu"), clip=clip)
    for row in rows:
        kept = keep_best(study, [row], tmp_path / row.method)
        said = classify(kept.folder, tmp_path / "real/test").set_index("file")["class"]
        names = [Path(item).parent.name for item in on_disk["test"].items]
        own = [said["/".join(Path(item).parts[-2:])] for item in on_disk["test"].items]
        np.testing.assert_array_equal(np.array(names) == own, row.correct)
        assert abs(kept.val_accuracy - row.val_accuracy) < 1e-6


def test_a_moved_head_a_missing_clip_and_another_one(tiny, tmp_path):
    splits, place = scans(3), tmp_path / "clip of mine"
    shutil.copytree(tiny, place)
    study, rows = study_of(load_clip(place), splits)
    kept, measured = keep(study, rows, "clip_probe", tmp_path / "kept")
    files = save_folder({"test": splits["test"]}, tmp_path / "new")
    moved = kept.folder.rename(tmp_path / "moved here")
    np.testing.assert_array_equal(right_of(classify(moved, files), splits["test"]), measured.correct)

    place.rename(tmp_path / "other place")
    lost = CliRunner().invoke(app, ["classify", str(moved), str(files)])
    assert lost.exit_code == 2 and "cannot be opened" in lost.output and "name that CLIP with `--clip`" in lost.output
    named = [
        "classify",
        str(moved),
        str(files),
        "--clip",
        str(tmp_path / "other place"),
        "--out",
        str(tmp_path / "x.csv"),
    ]
    assert CliRunner().invoke(app, named).exit_code == 0
    found = classify(moved, files, clip=tmp_path / "other place")
    np.testing.assert_array_equal(right_of(found, splits["test"]), measured.correct)

    torch.manual_seed(1)
    save_tiny_clip(place)  # other weights under the same name
    other = CliRunner().invoke(app, ["classify", str(moved), str(files)])
    assert other.exit_code == 2 and "is another CLIP" in other.output and "--clip" in other.output


def test_one_image_that_cannot_be_read_leaves_the_others(tmp_path):
    splits = scans(2, every=9)
    study, rows = study_of(load_clip("glyphworld/clip"), splits)
    kept, measured = keep(study, rows, "clip_probe", tmp_path / "kept")
    files = save_folder({"test": splits["test"]}, tmp_path / "new")
    (files / "test/broken.png").write_bytes(b"no image")
    said = classify(kept.folder, files)
    faulty = said[said.fault != ""]
    assert faulty.file.tolist() == ["test/broken.png"] and "no image that Pillow knows" in faulty.fault.item()
    np.testing.assert_array_equal(right_of(said, splits["test"]), measured.correct)


def test_a_network_and_a_head_take_each_others_place(tmp_path):
    study, rows = study_of(load_clip("glyphworld/clip"), scans(2, every=9))
    files = save_folder({"new": study.val}, tmp_path / "new")
    for method in ("frozen", "clip_probe", "frozen"):
        kept, _ = keep(study, rows, method, tmp_path / "kept")
        assert json.loads((kept.folder / "kept.json").read_text())["method"] == method
        if method == "clip_probe":
            with pytest.raises(ValueError, match="holds a classifier of a CLIP's features, and no network"):
                load_classifier(kept.folder)
        else:
            assert load_classifier(kept.folder).num_classes == 2
        assert (classify(kept.folder, files).fault == "").all()


def test_what_is_kept_of_several_and_what_is_said_of_it(tmp_path):
    study, rows = study_of(load_clip("glyphworld/clip"), scans(2, every=9))
    best = {"frozen": 0.5, "clip_probe": 0.9, "nearest (pixels)": 0.9}
    given = [replace(row, val_accuracy=best[row.method]) for row in rows if row.method in best]
    told = str(keep_best(study, given, tmp_path / "kept"))  # of equals the one that can be kept
    assert "`clip_probe` of seed 5" in told and "learned from 2 real images" in told and "does better" not in told
    assert told.endswith("IMAGES` asks it about new images, with the CLIP glyphworld/clip, which is not copied.")
    told = str(keep_best(replace(study, clip=None), given, tmp_path / "without"))
    assert "`frozen` of seed 5" in told and "does better on them, and cannot be kept" in told
    with pytest.raises(ValueError, match="give it to `Study` as `clip`"):
        train_again(replace(study, clip=None), "clip_probe", 5)


@pytest.mark.parametrize(
    ("name", "opens"),
    [
        ("ViT-B-32/openai", ("ViT-B-32", "openai")),
        ("ViT-B-32-quickgelu/laion400m_e32", ("ViT-B-32-quickgelu", "laion400m_e32")),
        ("hf-hub:timm/ViT-B-16-SigLIP", ("hf-hub:timm/ViT-B-16-SigLIP", "")),
    ],
)
def test_a_clip_that_has_a_name_is_opened_by_it(name, opens, tiny):
    told = _clip_record(replace(load_clip(tiny), name=name, source=""))
    assert (told["model"], told["pretrained"], told["name"]) == (*opens, name)
