"""Methods at their edges: a kill in either stage, what a run is known by, and recipes."""

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from synthnb import bridge
from synthnb.bridge import METHODS, Runtime, TransferConfig, check_methods, run_method, stage1_model, train_method
from synthnb.core.code import _modules_run
from synthnb.core.streams import PURPOSES
from synthnb.data import LabelledImages, check_disjoint, digits, few_shot, ordered, split_by_content
from synthnb.datasets.listed import ListedImages, list_folder, save_folder
from synthnb.glyphworld.world import folder, rendered_digits
from synthnb.models.classifiers import load_classifier, save_classifier
from synthnb.studies.alternatives import alternatives
from synthnb.train import TrainConfig, Watch, _domain_loss, fit, with_recipe
from synthnb.training import checkpoints
from synthnb.training.augmentation import TimmPolicy, ready
from synthnb.training.prediction import READINGS, predict

torch.set_num_threads(1)
CONFIG = TransferConfig(TrainConfig(batch_size=16, lr=2e-3), steps=(40, 40))
CPU = Runtime(device="cpu")
CHILD = textwrap.dedent("""
    import sys, torch
    torch.set_num_threads(1)
    from synthnb.bridge import Runtime, TransferConfig, run_method
    from synthnb.train import TrainConfig
    from synthnb.data import digits, few_shot
    from synthnb.glyphworld.world import folder
    real = digits()
    run_method("bridged++", folder("cnn"), few_shot(real["train"], 2),
            few_shot(real["train"], 4, seed=5), real["val"], CONFIG,
            runtime=Runtime(device="cpu", store=sys.argv[1], checkpoint_every=2))
""").replace("CONFIG", "TransferConfig(TrainConfig(batch_size=16, lr=2e-3), steps=(40, 40))")


def pair() -> tuple:
    "Real images, others in place of synthetic ones, and test images, as the child has them."
    real = digits()
    return few_shot(real["train"], 2), few_shot(real["train"], 4, seed=5), real["val"]


@pytest.fixture(scope="module")
def undisturbed():
    return run_method("bridged++", folder("cnn"), *pair(), CONFIG, runtime=CPU).correct.tolist()


@pytest.mark.parametrize("stage", ["stage1", "run"])
def test_killed_in_a_stage_it_goes_on_from_there(stage, undisturbed, tmp_path, monkeypatch, warm_workers):
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path)])
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(f"{stage}-*.checkpoint")) and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL, "it ended before it could be killed"
    assert len(list(tmp_path.glob("*.checkpoint"))) == 1 and not list(tmp_path.glob("run-*.json"))
    assert len(list(tmp_path.glob("stage1-*.safetensors"))) == (stage == "run")
    taken = []
    monkeypatch.setattr("synthnb.train._domain_loss", lambda *given: taken.append(1) or _domain_loss(*given))
    kept = Runtime(device="cpu", store=tmp_path, checkpoint_every=2)
    again = run_method("bridged++", folder("cnn"), *pair(), CONFIG, runtime=kept)
    assert again.correct.tolist() == undisturbed and again.stage1_found == (stage == "run")
    assert len(taken) < {"stage1": 80, "run": 40}[stage], "steps before the checkpoint are not taken twice"
    assert not list(tmp_path.glob("*.checkpoint"))


@pytest.mark.parametrize("method, alpha", [("vanilla", 0.1), ("mixed_per_batch", 0.1), ("vanilla+mixup", 0.2)])
def test_a_recipes_mixup_is_for_all_methods(method, alpha, monkeypatch):
    real, told = few_shot(digits()["train"], 2), {}

    class Enough(Exception):
        pass

    def look(model, sets, config, **settings):
        told.update(vars(config))
        raise Enough

    monkeypatch.setattr(bridge, "fit", look)
    with pytest.raises(Enough):
        config = TransferConfig(with_recipe("from_scratch"), steps=(1, 1))
        train_method(METHODS[method], folder("cnn"), real, real, config, runtime=CPU)
    assert (told["mixup"], told["cutmix"]) == (alpha, 1.0)


@pytest.mark.parametrize("method", ["augmented", "mixed_per_batch+augmented", "bridged+augmented"])
def test_strong_augmentation_is_of_the_last_stage_alone(method, monkeypatch):
    real, configs, fit = few_shot(digits()["train"], 2), [], bridge.fit

    def look(model, sets, config, **settings):
        configs.append(config)
        return fit(model, sets, config, **settings)

    monkeypatch.setattr(bridge, "fit", look)
    config = TransferConfig(TrainConfig(batch_size=8), steps=(1, 1))
    train_method(METHODS[method], folder("cnn"), real, real, config, runtime=CPU)
    *first, last = configs
    assert (last.augment, last.cutmix) == (TimmPolicy(config.policy, config.training.augment), 1.0)
    assert [(one.augment, one.cutmix) for one in first] == [(config.training.augment, 0.0)] * ("bridged" in method)
    images = real.images[:4]
    plain, strong = (
        change(images, torch.Generator().manual_seed(0)) for change in (config.training.augment, last.augment)
    )
    assert strong.dtype == torch.uint8 and (strong.float() - plain).abs().mean() > 5


def test_runs_of_other_sets_or_models_are_not_taken_for_one_that_was_made(tmp_path):
    few = few_shot(digits()["train"], 2)
    save_folder({"train": few}, tmp_path / "a")
    save_folder({"train": LabelledImages(255 - few.images, few.labels, few.classes)}, tmp_path / "b")
    config = TransferConfig(replace(CONFIG.training, image_size=32), steps=(1, 1))
    kept = Runtime(device="cpu", store=tmp_path / "kept")
    first, second = (list_folder(tmp_path / name)["train"] for name in "ab")
    assert list(first.items) == list(second.items), "the same names, other images"
    found = lambda real, test, config=config: (
        run_method("vanilla", folder("cnn"), real, None, test, config, runtime=kept).found
    )
    assert [found(first, first) for _ in range(2)] == [False, True]
    assert not found(second, first)
    assert not found(first, second)
    assert not found(first, first, replace(config, model_args={"drop_rate": 0.5}))
    assert not found(first, first, replace(config, training=replace(config.training, lr=1e-3)))


def test_a_run_is_known_by_all_code_that_it_runs(tmp_path, monkeypatch):
    """`bridge` chooses sets, shares and heads, `training.results` measures: a change there had found old results."""
    asked = []
    monkeypatch.setattr(checkpoints, "code_hash", lambda *modules: asked.append(modules) or "code")
    short, few = replace(CONFIG, steps=(1, 1)), few_shot(digits()["train"], 1)
    run_method("bridged", folder("cnn"), few, few, few, short, runtime=Runtime("cpu", store=tmp_path))
    kinds = {file.name.split("-")[0] for file in tmp_path.iterdir()}
    assert len(asked) == len(kinds) == 2, "the run and its stage 1"
    assert all({"bridge", "train", "training.results"} <= set(_modules_run(*modules)) for modules in asked)


def test_a_validation_set_in_another_order_is_refused():
    real = digits()
    few, val = few_shot(real["train"], 2), ordered(real["val"], real["val"].classes[::-1])
    with pytest.raises(ValueError, match="only their order differs"):
        run_method("vanilla", folder("cnn"), few, None, real["test"], CONFIG, watch=Watch(val), runtime=CPU)


@pytest.mark.parametrize("method", ["bridged+new_head", "bridged++", "bridged+new_block", "vanilla+new_head"])
def test_a_new_head_begins_with_chance(method, monkeypatch):
    "It was the head that stage 1 began with: untrained it read 99 % of what stage 1 had learned."
    real, begun, fit = few_shot(digits()["train"], 20), [], bridge.fit

    def look(model, sets, config, **settings):
        begun.append((predict(model, real).argmax(1) == real.labels).float().mean().item())
        return fit(model, sets, config, **settings)

    monkeypatch.setattr(bridge, "fit", look)
    config = TransferConfig(TrainConfig(batch_size=32, lr=2e-3), steps=(60, 1))
    for seed in range(5):
        train_method(METHODS[method], folder("cnn"), real, real, config, seed=seed, runtime=CPU)
    after = sum(begun[1::2]) / 5
    assert after < 0.22, f"accuracy at step 0 of stage 2 is {after:.0%}, chance is 10 %"


def test_two_stages_on_the_same_images_take_different_batches(monkeypatch):
    "The control vanilla+new_head trained twice on the same augmented batches."
    few, taken = few_shot(digits()["train"], 8), []

    def look(parts, *rest):
        batch = ready(parts, *rest)
        taken.append((parts[0][1].tolist(), batch[0].clone()))
        return batch

    monkeypatch.setattr("synthnb.train.ready", look)
    config = TransferConfig(TrainConfig(batch_size=16), steps=(5, 5))
    train_method(METHODS["vanilla+new_head"], folder("cnn"), few, None, config, runtime=CPU)
    first, second = taken[:5], taken[5:]
    assert len(second) == 5 and all(a[0] != b[0] and not torch.equal(a[1], b[1]) for a, b in zip(first, second))


def test_every_purpose_of_random_draws_is_used_in_one_place():
    "A purpose in two modules would be two uses of one stream."
    texts = {
        path.stem: path.read_text(encoding="utf-8")
        for path in Path(bridge.__file__).parent.rglob("*.py")
        if path.stem != "streams"
    }
    users = {
        name: [
            module for module, text in texts.items() if re.search(r"import .*\bstream\b", text) and f'"{name}"' in text
        ]
        for name in PURPOSES
    }
    assert not {name: modules for name, modules in users.items() if len(modules) > 1}


def test_a_dual_network_keeps_both_branches_and_is_read_in_four_ways():
    real = digits()
    few = few_shot(real["train"], 20)
    other = LabelledImages(255 - few.images, few.labels, few.classes, "inverted")
    config, method = TransferConfig(TrainConfig(batch_size=32, lr=2e-3), steps=(0, 80)), "mixed_per_batch+dual"
    net, *_ = train_method(replace(METHODS[method], scratch=True), folder("cnn"), few, other, config, runtime=CPU)
    share = lambda images, read: (predict(net, images, read=read).argmax(1) == real["val"].labels).float().mean().item()
    negatives = 255 - real["val"].images
    assert share(real["val"].images, "main") > share(real["val"].images, "auxiliary") + 0.1
    assert share(negatives, "auxiliary") > share(negatives, "main") + 0.3, (
        "what the inverted images teach sits in the auxiliary branch"
    )
    measured = lambda method, steps: run_method(
        method, folder("cnn"), few, other, real["val"], replace(config, steps=steps), runtime=CPU
    )
    run = measured(method, (0, 80))
    assert list(run.readings) == list(READINGS) and abs(run.readings["main"] - run.accuracy) < 1e-6
    assert measured("mixed_per_batch", (0, 1)).readings == {}


@pytest.fixture(scope="module")
def digits_and_renders():
    real = digits()
    rendered = LabelledImages(*rendered_digits(400), real["train"].classes, "rendered digits")
    return {"real": few_shot(real["train"], 1), "synthetic": rendered, "test": real["test"], "val": real["val"]}


@pytest.fixture(scope="module")
def in_files(digits_and_renders, tmp_path_factory):
    home = tmp_path_factory.mktemp("sets")
    paths = {name: home / name for name in digits_and_renders}
    return {name: on_disk(data, paths[name]) for name, data in digits_and_renders.items()}


def on_disk(data: LabelledImages, home: Path) -> ListedImages:
    "The same images, in the same order."
    home.mkdir()
    files = [home / f"{i}.png" for i in range(len(data))]
    for image, file in zip(data.images, files):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file)
    return ListedImages(files, data.labels, data.classes, Path.read_bytes, f"{data.name} in files")


SHORT = TransferConfig(steps=(6, 6))
AT32 = replace(SHORT, training=TrainConfig(image_size=32))


@pytest.mark.parametrize("method", ["mixed", "mixed_per_batch+dual", "bridged++"])
def test_sets_on_disk_train_the_same_classifier(method, digits_and_renders, in_files):
    "To the last prediction; they are read at `image_size`, batch by batch."
    runs = []
    for sets, config in ((digits_and_renders, SHORT), (in_files, AT32)):
        given, watch = {name: data for name, data in sets.items() if name != "val"}, Watch(sets["val"])
        run = run_method(method, folder("cnn"), **given, config=config, watch=watch, runtime=CPU)
        runs.append((run.correct.tolist(), run.val_accuracy))
    assert runs[0] == runs[1]


def test_few_images_in_memory_and_many_on_disk_train_together(digits_and_renders, in_files):
    few, test = digits_and_renders["real"], digits_and_renders["test"]
    runs = [
        run_method("mixed_per_batch", folder("cnn"), few, synthetic, test, config, runtime=CPU).correct.tolist()
        for synthetic, config in ((in_files["synthetic"], AT32), (digits_and_renders["synthetic"], SHORT))
    ]
    assert runs[0] == runs[1]


@pytest.mark.parametrize("which", ["fit", "train_method", "alternatives"])
def test_a_set_with_the_classes_in_another_order_is_refused(which):
    train, val, _ = digits().values()
    few = few_shot(train, 2)
    turned, one_step = ordered(val, val.classes[::-1]), TrainConfig(steps=1, batch_size=4)
    with pytest.raises(ValueError, match="only their order differs"):
        if which == "fit":  # it said 0 % of a set that it knew
            fit(load_classifier(folder("cnn"), 10), few, one_step, device="cpu", watch=Watch(turned), progress=False)
        elif which == "train_method":
            config = TransferConfig(one_step, (1, 1))
            train_method(METHODS["bridged"], folder("cnn"), few, turned, config, runtime=Runtime(device="cpu"))
        else:
            alternatives({0: few}, {0: turned}, val, val, 2, folder("cnn"), 32)


def test_a_set_on_disk_is_ordered_or_says_that_its_pixels_are_needed(in_files):
    real = in_files["real"]
    turned = ordered(real, real.classes[::-1])
    assert turned.items == real.items and turned.labels.tolist() == [9 - label for label in real.labels.tolist()]
    for asked in (lambda: check_disjoint({"train": real, "val": real}), lambda: split_by_content(real, 1, 1)):
        with pytest.raises(ValueError, match="stays on disk, and its pixels are needed"):
            asked()


def test_sets_on_disk_that_cannot_be_read_at_one_size_are_refused(digits_and_renders, in_files):
    few, test = digits_and_renders["real"], digits_and_renders["test"]
    run = lambda method, config: run_method(method, folder("cnn"), few, in_files["synthetic"], test, config)
    with pytest.raises(ValueError, match="give image_size"):
        run("bridged", SHORT)
    with pytest.raises(ValueError, match="fewer than image_size=64"):
        run("bridged", TransferConfig(TrainConfig(image_size=64)))
    with pytest.raises(ValueError, match="make them alike"):
        run("mixed", AT32)


@pytest.mark.parametrize(
    "names, why",
    [
        (["briged"], "did you mean 'bridged'"),
        (["bridged", "bridged"], "different names"),
        ([], "different names"),
        (["bridged"], "must have vanilla_matched"),
    ],
)
def test_lists_of_methods_that_cannot_be_compared_are_refused(names, why):
    with pytest.raises(ValueError, match=why):
        check_methods(names, always=["vanilla_matched"])


def test_runs_that_cannot_work_are_refused_before_they_cost_anything(digits_and_renders, monkeypatch):
    few, synthetic, test, _ = digits_and_renders.values()
    monkeypatch.setattr(bridge, "fit", lambda *given, **more: pytest.fail("it trained"))
    run = lambda method, *given, **more: run_method(method, folder("cnn"), *given, **more)
    with pytest.raises(ValueError, match="did you mean 'bridged'"):
        run("briged", few, synthetic, test)
    with pytest.raises(ValueError, match="needs synthetic images"):
        run("mixed", few, None, test)
    with pytest.raises(ValueError, match="no store to keep checkpoints in"):
        run("vanilla", few, None, test, runtime=Runtime(checkpoint_every=5))
    with pytest.raises(ValueError, match="different image sizes"):
        run("mixed", few, synthetic, digits(16)["test"])
    with pytest.raises(ValueError, match="no images of 'zero'"):
        run("vanilla", few.subset((few.labels > 0).nonzero().flatten()), None, test)
    with pytest.raises(ValueError, match="no patch embedding"):
        run("mixed_per_batch+token", few, synthetic, test)


@pytest.mark.parametrize(
    "name, method, why",
    [
        ("test_nfnet", "mixed_per_batch+dual", "no batchnorm and no layernorm"),
        ("test_resnet", "mixed_per_batch+token", "no patch embedding"),
        ("xcit_nano_12_p16_224", "mixed_per_batch+token", "does not give one vector"),  # seen in a forward pass alone
    ],
)
def test_a_classifier_that_a_later_method_cannot_train_is_refused_before_the_first(name, method, why, tmp_path):
    save_classifier(timm.create_model(name), tmp_path)
    config = TransferConfig(TrainConfig(image_size=48))
    check_methods(["vanilla", "bridged", method])  # no classifier is named
    with pytest.raises(ValueError, match=f"cannot be trained by method .*{why}"):
        check_methods(["vanilla", "bridged", method], classifier=tmp_path, config=config)
    check_methods(["vanilla", "bridged"], classifier=tmp_path, config=config)


def test_a_classifier_is_checked_at_the_size_of_images_in_memory(digits_and_renders, tmp_path, monkeypatch):
    "As it is trained; it had been checked at the 224 pixels of its architecture."
    net = timm.create_model("vit_tiny_patch16_224", embed_dim=24, depth=2, num_heads=2, num_classes=3)
    save_classifier(net, tmp_path)
    seen, load = [], bridge.load_classifier

    def look(*given, **told):
        net = load(*given, **told)
        net.register_forward_pre_hook(lambda _, given: seen.append(tuple(given[0].shape[-2:])))
        return net

    monkeypatch.setattr(bridge, "load_classifier", look)
    few, test = digits_and_renders["real"], digits_and_renders["test"]
    run_method("bridged+new_block", tmp_path, few, few, test, replace(CONFIG, steps=(1, 1)), runtime=CPU)
    assert set(seen) == {(32, 32)}


def test_all_experiments_with_methods_check_the_classifier():
    for path in Path(__file__).parents[1].glob("nbs/experiments/*.ipynb"):
        text = path.read_text(encoding="utf-8")
        if re.search('"(methods: list|norms: list|method: str)', text):  # what to train is a parameter
            assert re.search(r"check_methods\(.*classifier=locate\(classifier\), config=", text), path.name


def test_damaged_stage_1_weights_are_named(digits_and_renders, tmp_path):
    few, config = digits_and_renders["real"], TrainConfig(steps=1, batch_size=8)
    kept = Runtime(device="cpu", store=tmp_path)
    stage1_model(folder("cnn"), few, config, runtime=kept)
    [file] = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match="is damaged"):
        stage1_model(folder("cnn"), few, config, runtime=kept)


def test_gaps_come_with_a_run_of_dual_batch_norms_alone(digits_and_renders):
    few, synthetic, test, _ = digits_and_renders.values()
    config = TransferConfig(TrainConfig(batch_size=8), steps=(5, 5))
    run = lambda name, method: run_method(method, folder(name), few, synthetic, test, config, runtime=CPU)
    assert {row["step"] for row in run("cnn", "mixed_per_batch+dual").gaps} == {2, 4, 6, 8, 10}
    assert run("vit", "mixed_per_batch+dual").gaps == run("vit", "mixed_per_batch+token").gaps == []


def test_a_result_has_accuracies_that_fit_each_other(digits_and_renders):
    few, _, test, _ = digits_and_renders.values()
    result = run_method("vanilla", folder("cnn"), few, None, test, SHORT, runtime=CPU)
    by_hand = np.mean([result.correct[test.labels.numpy() == i].mean() for i in range(10)])
    assert result.accuracy == result.correct.mean() and result.per_class == pytest.approx(by_hand, abs=1e-6)
    assert result.top5 >= result.accuracy and 0 <= result.calibration <= 1
