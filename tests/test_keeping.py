"""The best classifier of a study, kept and asked: as it was measured, in a notebook and from the command line."""

import json
import re
import warnings
from dataclasses import replace
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from synthnb.bridge import Runtime, TransferConfig, run_method
from synthnb.cli import app
from synthnb.data import digits, few_shot
from synthnb.datasets.listed import save_folder
from synthnb.glyphworld.world import folder
from synthnb.models.classifiers import load_classifier, made_for, save_classifier
from synthnb.studies.alternatives import alternatives
from synthnb.studies.keeping import Study, classify, keep_best, train_again
from synthnb.studies.stages import stages_folder
from synthnb.train import TrainConfig, Watch
from synthnb.training.prediction import predict

ROOT = Path(__file__).resolve().parents[1]


def study_of(classifier: str | Path, classes: int = 10) -> tuple[Study, dict]:
    splits = digits()
    names = splits["train"].classes[:classes]
    for name, part in splits.items():
        splits[name] = replace(part.subset((part.labels < classes).nonzero()[:, 0]), classes=names)
    splits |= {name: splits[name].subset(range(0, len(splits[name]), 4)) for name in ("val", "test")}
    few, more = ({seed: few_shot(splits["train"], n, seed) for seed in (5, 6)} for n in (2, 6))
    config = TransferConfig(TrainConfig(image_size=32, batch_size=8, lr=1e-3), steps=(2, 2))
    return Study(classifier, few, more, splits["val"], config, Runtime("cpu")), splits


@pytest.mark.parametrize(("classifier", "classes"), [("cnn", 10), ("cnn", 2), ("vit", 3)])
def test_a_kept_probe_says_what_was_measured(classifier, classes, tmp_path):
    study, splits = study_of(folder(classifier), classes)
    rows = alternatives(study.few, study.synthetic, splits["val"], splits["test"], 2, study.classifier, 32)
    kept = keep_best(study, rows, tmp_path / "kept")
    measured = next(row for row in rows if (row.method, row.seed) == (kept.method, kept.seed))
    said = predict(load_classifier(kept.folder), splits["test"], image_size=32).argmax(1)
    np.testing.assert_array_equal((said == splits["test"].labels).numpy(), measured.correct)
    assert abs(kept.val_accuracy - measured.val_accuracy) < 1e-6 and kept.method.startswith("frozen")


@pytest.mark.parametrize(
    ("classifier", "method"),
    [
        ("cnn", "bridged++"),
        ("cnn", "mixed_per_batch+dual"),
        ("vit", "mixed_per_batch+token"),
        ("cnn", "augmented"),
        ("cnn", "linear_probe"),
    ],
)
def test_a_kept_network_says_what_was_measured(classifier, method, tmp_path):
    study, splits = study_of(folder(classifier))
    run = run_method(
        method,
        study.classifier,
        study.few[6],
        study.synthetic[6],
        splits["test"],
        study.config,
        seed=6,
        watch=Watch(splits["val"]),
        runtime=study.runtime,
    )
    kept = keep_best(study, [run], tmp_path / "kept")
    said = predict(load_classifier(kept.folder), splits["test"], image_size=32).argmax(1)
    np.testing.assert_array_equal((said == splits["test"].labels).numpy(), run.correct)
    about = json.loads((kept.folder / "kept.json").read_text())
    uses = method not in ("augmented", "linear_probe")
    assert (about["method"], about["seed"], about["synthetic"]) == (method, 6, 60 * uses)


@pytest.mark.parametrize("probe", [True, False])
def test_a_kept_vit_is_asked_at_another_size_with_a_probe_or_without(probe, tmp_path):
    "With a probe it was refused, without one its places in the image were stretched, as timm does, without a word."
    study, splits = study_of(folder("vit"), 3)
    net = train_again(study, "frozen", 5) if probe else load_classifier(folder("vit"), 3)
    kept = save_classifier(net, tmp_path / "kept", label_names=study.val.classes)
    save_folder({"new": splits["test"].subset(range(4))}, tmp_path / "scans")
    own = made_for(net.pretrained_cfg, net._model_args)[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(classify(kept, tmp_path / "scans", image_size=own)) == 4
    with pytest.warns(match=f"kept is for images of {own} pixels and is shown {2 * own}: how good .* was not measured"):
        assert not classify(kept, tmp_path / "scans", image_size=2 * own).fault.any()
    plain = load_classifier(folder("vit"), 3, image_size=2 * own).state_dict()
    opened = load_classifier(kept, image_size=2 * own)
    own_weights = {name: weight for name, weight in opened.state_dict().items() if not name.startswith("head.")}
    assert all(torch.allclose(weight, plain[name], atol=1e-3) for name, weight in own_weights.items())
    assert tuple(opened.pretrained_cfg["label_names"]) == study.val.classes
    if probe:
        probe_there = {name: weight for name, weight in net.state_dict().items() if name.startswith("head.")}
        assert all(torch.equal(weight, opened.state_dict()[name]) for name, weight in probe_there.items())


def test_a_kept_probe_that_lost_weights_says_what_to_do(tmp_path):
    study, _ = study_of(folder("cnn"), 3)
    kept = save_classifier(train_again(study, "frozen", 5), tmp_path / "kept")
    state = load_file(kept / "model.safetensors")
    for lost in (
        next(name for name in state if name.endswith("conv1.0.weight")),
        next(name for name in state if name.endswith("linear.weight")),
    ):
        save_file({name: weight for name, weight in state.items() if name != lost}, kept / "model.safetensors")
        with pytest.raises(ValueError, match="kept does not hold the weights .*: keep it again$"):
            load_classifier(kept)


def test_what_is_no_classifier_is_refused_by_name():
    study, _ = study_of(folder("cnn"))
    for method in ("nearest (pixels)", "nearest (features)", "bridgd"):
        with pytest.raises(ValueError, match=re.escape(f"{method!r} is no classifier that can be kept")):
            train_again(study, method, 5)


def test_quickstart_keeps_and_the_command_line_asks(tmp_path, monkeypatch):
    stages_folder.cache_clear()  # another test of this process may have made the same stages
    monkeypatch.chdir(tmp_path)
    notebook = nbformat.read(ROOT / "nbs/experiments/quickstart.ipynb", 4)
    space = {"display": lambda *told: None, "__name__": "quickstart"}
    for cell in (cell for cell in notebook.cells if cell.cell_type == "code"):
        exec(cell.source, space)
        if "parameters" in cell.metadata.get("tags", []):
            space |= {"methods": ["vanilla", "mixed"], "seeds": [0], "advisor": False, "style_steps": 1}
            space |= {"denoising_steps": 1, "keep_best": True, "threads": 1}
        if "keep_classifier(" in cell.source:
            break
    kept, study = space["kept"], space["study"]
    assert study.clip is space["clip_model"] and study.phrases == space["phrases"]
    assert f"synthnb classify {kept.folder} IMAGES" in str(kept) and (kept.folder / "kept.json").is_file()
    few = digits()["test"].subset(range(7))
    save_folder({"new": few}, tmp_path / "scans")
    out = tmp_path / "said.csv"
    done = CliRunner().invoke(app, ["classify", str(kept.folder), str(tmp_path / "scans"), "--out", str(out)])
    assert done.exit_code == 0, done.output
    said = pd.read_csv(out, dtype={"class": str}, keep_default_na=False)
    assert len(said) == 7 and set(said["class"]) <= set(few.classes) and said.probability.between(0, 1).all()
    whole = classify(kept.folder, tmp_path / "scans")
    torch.testing.assert_close(
        torch.tensor(whole.probability), torch.tensor(said.probability), atol=1e-4, rtol=0, check_dtype=False
    )


@pytest.mark.parametrize(
    ("what", "told"), [("empty", "there are no images in"), ("broken", "x.png of new cannot be read")]
)
def test_images_that_are_none_are_named(what, told, tmp_path):
    new = tmp_path / "new"
    new.mkdir()
    if what == "broken":
        (new / "x.png").write_bytes(b"no image")
    study, splits = study_of(folder("cnn"))
    rows = alternatives(study.few, {}, splits["val"], splits["test"], 2, study.classifier, 32)
    kept = keep_best(study, rows, tmp_path / "kept")
    done = CliRunner().invoke(app, ["classify", str(kept.folder), str(new)])
    assert done.exit_code == (2 if what == "empty" else 1) and "Traceback" not in done.output
    assert told in done.output
