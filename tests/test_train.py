"""The training loop at its edges: kills, processes, accumulation, averages, sets on disk, and losses that break."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import partial
from unittest.mock import patch

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import timm
import torch
from accelerate import Accelerator
from PIL import Image
from processes import in_two_processes
from safetensors import safe_open
from safetensors.torch import load_file
from timm.layers import convert_splitbn_model
from timm.scheduler import create_scheduler_v2
from torch import nn
from torch.nn.functional import cross_entropy

from synthnb.bridge import _read_weights, _write_weights
from synthnb.core.streams import stream
from synthnb.data import LabelledImages, digits, few_shot
from synthnb.datasets.listed import list_folder, save_folder
from synthnb.dualbn import convert, strip
from synthnb.glyphworld.world import folder
from synthnb.models.classifiers import (
    evaluation_view,
    fresh,
    load_classifier,
    normalise,
    only_head,
    put_probe,
    reset_blocks,
    save_classifier,
)
from synthnb.train import TrainConfig, Watch, _domain_loss, fit
from synthnb.training.augmentation import TimmPolicy, random_affine, random_resized_crop
from synthnb.training.checkpoints import Checkpoint, History, stage_key
from synthnb.training.engine import make_schedule, open_engine
from synthnb.training.loading import Loader
from synthnb.training.prediction import predict

torch.set_num_threads(1)
HOW = {"batch_size": 16, "lr": 2e-3, "device": "cpu"}
FIELDS = {field.name for field in fields(TrainConfig)}


def train(model, sets, *, checkpoint=None, checkpoint_every=0, **options) -> History:
    "`fit`, with all its settings by name: those of the configuration, of what is watched, and of the machine."
    config = TrainConfig(**{name: options.pop(name) for name in FIELDS & {*options}})
    watch = Watch(**{name: options.pop(name) for name in ("val", "val_every", "record_every") if name in options})
    checkpoint = Checkpoint(checkpoint, checkpoint_every) if checkpoint else None
    return fit(model, sets, config, watch=watch, checkpoint=checkpoint, progress=False, **options)


@pytest.fixture(scope="module")
def scans():
    return few_shot(digits()["train"], 8)


@pytest.fixture(scope="module")
def inverted(scans):
    return LabelledImages(255 - scans.images, scans.labels, scans.classes, "inverted")


def cnn() -> torch.nn.Module:
    return load_classifier(folder("cnn"), 10)


def weights(model) -> torch.Tensor:
    return torch.cat([value.detach().flatten().float() for value in model.state_dict().values()])


# ---- checkpoints


@contextmanager
def interrupted_after(steps: int):
    taken = []

    def stopping(*given):  # called once in each step
        if len(taken) == steps:
            raise KeyboardInterrupt
        taken.append(1)
        return _domain_loss(*given)

    with patch("synthnb.train._domain_loss", stopping), pytest.raises(KeyboardInterrupt):
        yield


CHILD = textwrap.dedent("""
    import sys, torch
    torch.set_num_threads(1)
    from synthnb.data import digits, few_shot
    from synthnb.glyphworld.world import folder
    from synthnb.models.classifiers import load_classifier
    from synthnb.train import TrainConfig, fit
    from synthnb.training.checkpoints import Checkpoint
    from synthnb.dualbn import convert
    scans = few_shot(digits()["train"], 8)
    net = convert(load_classifier(folder("cnn"), 10, drop_rate=.1))
    config = TrainConfig(steps=STEPS, synthetic=[False, True], ema=.9, mixup=.2, batch_size=16, lr=2e-3)
    checkpoint = Checkpoint(sys.argv[1], every=3)
    fit(net, [(scans, 1), (scans, 1)], config, checkpoint=checkpoint, device="cpu", progress=False)
""")


def trained(scans, steps, **options):
    net = convert(load_classifier(folder("cnn"), 10, drop_rate=0.1))
    history = train(
        net, [(scans, 1), (scans, 1)], synthetic=[False, True], steps=steps, ema=0.9, mixup=0.2, **HOW, **options
    )
    return weights(net), history


@pytest.mark.parametrize("delay", [0.0, 0.2, 0.45])
def test_killed_and_started_again_is_as_if_never_killed(scans, tmp_path, delay, warm_workers):
    file, steps = tmp_path / "run.safetensors", 60
    child = subprocess.Popen([sys.executable, "-c", CHILD.replace("STEPS", str(steps)), str(file)])
    deadline = time.monotonic() + 120
    while not file.exists() and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(delay)
    child.send_signal(signal.SIGKILL)
    child.wait()
    with safe_open(file, "pt") as opened:
        reached = json.loads(opened.metadata()["facts"])["history"]["steps"]
    assert 3 <= reached < steps, "it was killed on its way"
    whole, whole_history = trained(scans, steps)
    resumed, history = trained(scans, steps, checkpoint=file, checkpoint_every=3)
    assert (
        torch.equal(resumed, whole)
        and history.records == whole_history.records
        and history.images == whole_history.images
    )
    again, history = trained(scans, steps, checkpoint=file)
    assert torch.equal(again, whole) and history.steps == steps, "a finished run is found"


def test_a_checkpoint_of_another_run_or_a_damaged_one_is_refused(scans, tmp_path):
    file = tmp_path / "run.safetensors"
    train(cnn(), scans, steps=2, checkpoint=file, **HOW)
    for other in (
        {"steps": 3},
        {"steps": 2, "seed": 1},
        {"steps": 2, "ema": 0.5},
        {"steps": 2, "label_smoothing": 0.1},
    ):
        with pytest.raises(ValueError, match="is of another run"):
            train(cnn(), scans, checkpoint=file, **other, **HOW)
    with pytest.raises(ValueError, match="is of another run"):
        train(cnn(), scans.subset(range(70)), steps=2, checkpoint=file, **HOW)
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(ValueError, match="is damaged"):
        train(cnn(), scans, steps=2, checkpoint=file, **HOW)
    assert [path.name for path in tmp_path.iterdir()] == ["run.safetensors"]


@pytest.mark.parametrize(
    "opt, layout",
    [
        *((opt, torch.contiguous_format) for opt in ("sgd", "lamb", "nadamw", "lion", "lookahead_adamw")),
        *((opt, torch.contiguous_format) for opt in ("adafactor", "adafactorbv")),  # the latter has a number type
        *((opt, torch.channels_last) for opt in ("adamw", "sgd", "lamb")),
    ],
)  # a file holds no layout, and a fused step reads memory as it lies
def test_every_optimisers_state_is_kept(scans, tmp_path, opt, layout):
    file = tmp_path / "run.safetensors"
    made = lambda: cnn().to(memory_format=layout)
    whole = made()
    train(whole, scans, steps=6, opt=opt, **HOW)
    with interrupted_after(3):
        train(made(), scans, steps=6, opt=opt, checkpoint=file, checkpoint_every=1, augment=plain, **HOW)
    resumed, reference = made(), made()
    assert train(resumed, scans, steps=6, opt=opt, checkpoint=file, augment=plain, **HOW).steps == 6
    train(reference, scans, steps=6, opt=opt, augment=plain, **HOW)
    assert torch.equal(weights(resumed), weights(reference)) and not torch.equal(weights(resumed), weights(whole))


def plain(images, generator):
    return images.float()


# ---- processes, accumulation, precision


PROCESS = textwrap.dedent("""
    import json, sys, torch
    torch.set_num_threads(1)
    from accelerate import Accelerator
    from synthnb.data import LabelledImages, digits, few_shot
    from synthnb.glyphworld.world import folder
    from synthnb.models.classifiers import load_classifier
    from synthnb.train import TrainConfig, Watch, fit
    from synthnb.training.checkpoints import Checkpoint
    from safetensors.torch import save_file
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == 2
    scans = few_shot(digits()["train"], 8)
    other = LabelledImages(255 - scans.images, scans.labels, scans.classes, "inverted")
    net = load_classifier(folder("vit"), 10)
    config = TrainConfig(steps=5, batch_size=16, lr=2e-2, opt="sgd", mixup=.2,
                         synthetic=[False, True], synthetic_weight=.5)
    file = Checkpoint(sys.argv[1] + "/run.safetensors")
    history = fit(net, [(scans, 3), (other, 1)], config, device=accelerator, watch=Watch(record_every=1),
                  checkpoint=file, progress=False)
    save_file(net.state_dict(), f"{sys.argv[1]}/{accelerator.process_index}.safetensors")
    if accelerator.is_main_process:
        json.dump(history.records, open(sys.argv[1] + "/records.json", "w"))
""")


def with_vit(
    scans, inverted, **options
):  # SGD: AdamW makes a whole step of what rounding leaves of a gradient near zero
    net = load_classifier(folder("vit"), 10)
    history = train(
        net,
        [(scans, 3), (inverted, 1)],
        synthetic=[False, True],
        synthetic_weight=0.5,
        steps=5,
        batch_size=16,
        lr=2e-2,
        opt="sgd",
        record_every=1,
        mixup=0.2,
        **options,
    )
    return net, history


def test_two_processes_train_as_one(scans, inverted, tmp_path):
    in_two_processes(PROCESS, tmp_path)
    net, history = with_vit(scans, inverted, device="cpu")
    records = json.loads((tmp_path / "records.json").read_text())
    assert [r["loss"] for r in records] == pytest.approx([r["loss"] for r in history.records], rel=1e-4)
    assert [r["accuracy"] for r in records] == [r["accuracy"] for r in history.records]
    first, second = (load_file(tmp_path / f"{i}.safetensors") for i in range(2))
    for name, value in net.state_dict().items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], value, rtol=1e-3, atol=2e-4)
    assert (tmp_path / "run.safetensors").is_file()


def test_accumulated_steps_are_whole_steps(scans, inverted):
    whole, history = with_vit(scans, inverted, device="cpu")
    parts, accumulated = with_vit(scans, inverted, device=Accelerator(cpu=True, gradient_accumulation_steps=4))
    assert [r["loss"] for r in accumulated.records] == pytest.approx([r["loss"] for r in history.records], rel=1e-4)
    torch.testing.assert_close(weights(parts), weights(whole), rtol=1e-3, atol=2e-4)
    with pytest.raises(ValueError, match="cannot be dealt to 3 equal pieces"):
        with_vit(scans, inverted, device=Accelerator(cpu=True, gradient_accumulation_steps=3))


def test_bf16_is_near_and_leaves_a_plain_model(scans, inverted):
    from accelerate.state import AcceleratorState

    _, history = with_vit(scans, inverted, device="cpu")
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        net, half = with_vit(scans, inverted, device=Accelerator(cpu=True, mixed_precision="bf16"))
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    assert (
        half.records[0]["loss"] == pytest.approx(history.records[0]["loss"], rel=0.02)
        and half.records[0]["loss"] != history.records[0]["loss"]
    )
    assert {p.dtype for p in net.parameters()} == {torch.float32} and net(
        normalise(net, scans.images[:2])
    ).dtype == torch.float32
    assert torch.equal(net(scans.images[:2].float()), type(net).forward(net, scans.images[:2].float())), (
        "nothing of accelerate is left"
    )


# ---- the numbers themselves


def test_two_steps_are_those_of_a_loop_written_out(scans, inverted):
    "Draws, augmentation, both losses, the optimiser; each draws from the stream that it is named after."
    sets, ours, theirs = [(scans, 1), (inverted, 1)], cnn(), cnn().train()
    options = {"steps": 2, "opt": "sgd", "weight_decay": 0, "clip_grad": 0, "warmup": 0, "synthetic": [False, True]}
    history = train(ours, sets, seed=3, record_every=1, synthetic_weight=0.5, **options, **HOW)
    draw = lambda *purpose: torch.Generator().manual_seed(stream(3, *purpose))
    orders = [torch.randperm(len(data), generator=draw("batches", i)) for i, (data, _) in enumerate(sets)]
    chance, optimiser = draw("augmentation"), torch.optim.SGD(theirs.parameters(), momentum=0.9, nesterov=True, lr=0)
    for step, record in enumerate(history.records):
        optimiser.param_groups[0]["lr"] = record["lr"]
        rows = [order[8 * step : 8 * step + 8] for order in orders]
        parts = [random_affine(data.images[own], chance) for (data, _), own in zip(sets, rows)]
        logits = theirs(torch.cat([normalise(theirs, part) for part in parts])).split(8)
        real, synthetic = (cross_entropy(said, scans.labels[own]) for said, own in zip(logits, rows))
        loss = (real + 0.5 * synthetic) / 1.5
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        assert record["loss"] == pytest.approx(loss.item(), rel=1e-5)
    torch.testing.assert_close(weights(ours), weights(theirs), rtol=1e-4, atol=1e-6)
    assert [record["lr"] for record in history.records] == [2e-3, pytest.approx(1e-3)], "half of a cosine"


@pytest.mark.parametrize("shape", [(32, 96), (96, 32)])
def test_a_picture_in_a_long_frame_is_turned_as_in_a_square_one(shape):
    square = torch.full((4, 3, 96, 96), 200, dtype=torch.uint8)
    square[..., 38:58, 38:58] = torch.randint(256, (4, 3, 20, 20), generator=torch.Generator().manual_seed(0)).byte()
    inside = (..., *(slice((96 - side) // 2, (96 + side) // 2) for side in shape))
    turned, whole = (
        random_affine(images, torch.Generator().manual_seed(1), 30, translate=0, flip=0.5)
        for images in (square[inside], square)
    )
    torch.testing.assert_close(turned, whole[inside], rtol=0, atol=0.1)
    assert (whole - square).abs().max() > 50, "it was turned"


def test_a_step_with_dual_norms_is_that_of_timms_split_batch_norm(scans, inverted):
    ours, theirs = convert(cnn()), convert_splitbn_model(cnn(), 2).train()
    options = {
        "opt": "sgd",
        "weight_decay": 0,
        "warmup": 0,
        "augment": None,
        "clip_grad": 0,
        "synthetic": [False, True],
    }
    train(ours, [(scans, 1), (inverted, 1)], steps=1, synthetic_weight=0.5, **options, **HOW)
    parts = next(Loader([(scans, 1), (inverted, 1)], 16, 0).batches(torch.device("cpu")))
    logits = theirs(normalise(theirs, torch.cat([images for images, _ in parts]))).split(8)
    real, synthetic = (cross_entropy(said, labels) for said, (_, labels) in zip(logits, parts))
    ((real + 0.5 * synthetic) / 1.5).backward()
    torch.optim.SGD(theirs.parameters(), lr=HOW["lr"], momentum=0.9, nesterov=True).step()
    for name, value in strip(ours).state_dict().items():
        torch.testing.assert_close(value, theirs.state_dict()[name], rtol=1e-5, atol=1e-6)


def test_a_crop_of_the_whole_image_is_resizing(scans):
    "Images may be larger than the network sees them: crops are taken from all of their pixels."
    pixels = torch.nn.functional.interpolate(scans.images, (48, 48), mode="bilinear", antialias=True)
    large, options = LabelledImages(pixels, scans.labels, scans.classes, "larger"), {"steps": 3, "image_size": 32}
    whole = partial(random_resized_crop, size=32, scale=(1, 1), ratio=(1, 1), flip=0)
    first, second = (train(cnn(), large, augment=how, **options, **HOW).records for how in (whole, None))
    assert [row["loss"] for row in first] == pytest.approx([row["loss"] for row in second], abs=1e-3)
    net = cnn()
    train(net, large, augment=random_resized_crop, **options, **HOW)
    with torch.inference_mode():
        seen = net.eval()(normalise(net, evaluation_view(net, large.images, 32))).softmax(1)
    torch.testing.assert_close(predict(net, large, image_size=32), seen, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "told, why",
    [
        ({"steps": 0}, "steps must be 1 or more"),
        ({"clip_grad": -1}, "clip_grad must be 0 or more"),  # it climbed the loss
        ({"warmup": -5}, "warmup must be 0 or more"),
        ({"synthetic_weight": -1.0}, "synthetic_weight must be 0 or more"),
        ({"label_smoothing": 1.5}, "label_smoothing must lie in 0..1"),
        ({"ema": 1.0}, "ema must lie in 0..1"),
        ({"batch_size": 6, "mixup": 0.2}, r"must be even, got \[3, 3\]"),
        ({"synthetic": [True]}, "1 values for 2 sets"),
        ({"net": lambda: load_classifier(folder("cnn"))}, "use reset_head"),
        ({"net": lambda: convert(cnn())}, "say which of the sets are synthetic"),
    ],
)
def test_what_would_spoil_a_run_is_refused(scans, told, why):
    net, options = told.get("net", cnn)(), {key: value for key, value in told.items() if key != "net"}
    with pytest.raises(ValueError, match=why):
        train(net, [(scans, 1), (scans, 1)], **HOW | {"steps": 1} | options)


def test_every_field_of_a_configuration_decides_what_a_checkpoint_belongs_to(scans):
    net, plain = cnn(), TrainConfig(steps=2)
    others = {
        int: 7,
        float: 0.125,
        str: "other",
        bool: True,
        tuple: (True,),
        type(None): 3,
        type(random_affine): random_resized_crop,
    }
    keys = [
        stage_key(net, [scans], {"config": replace(plain, **{field.name: others[type(getattr(plain, field.name))]})})
        for field in fields(TrainConfig)
    ]
    assert len({*keys, stage_key(net, [scans], {"config": plain})}) == len(fields(TrainConfig)) + 1


def test_networks_that_differ_by_no_weight_are_known_apart():
    layers = [nn.Sequential(nn.Linear(2, 2), act, nn.Linear(2, 2)) for act in (nn.ReLU(), nn.GELU())]
    layers[1].load_state_dict(layers[0].state_dict())
    assert len({stage_key(net, [], {}) for net in layers}) == 2
    # TensorFlow's padding, as of many shipped weights: the sums of a step differ, and no layer has another weight
    pads = [timm.create_model(name) for name in ("mobilenetv3_small_075", "tf_mobilenetv3_small_075")]
    pads[1].load_state_dict(pads[0].state_dict())
    for name in ("mean", "std", "crop_pct", "interpolation"):
        pads[1].pretrained_cfg[name] = pads[0].pretrained_cfg[name]
    assert len({stage_key(net, [], {}) for net in pads}) == 2


def test_the_checkpoint_of_a_probe_is_not_taken_for_a_whole_network(scans, tmp_path):
    file, net = tmp_path / "run.safetensors", cnn()
    with only_head(net):
        train(net, scans, steps=2, checkpoint=file, **HOW)
    with pytest.raises(ValueError, match="is of another run"):
        train(cnn(), scans, steps=2, checkpoint=file, **HOW)


class Tied(nn.Module):
    "A network that has one tensor under two names, as CoaT has."

    def __init__(self):
        super().__init__()
        self.num_classes, self.body = 10, nn.Linear(8, 8)
        self.twin, self.first, self.head = self.body, nn.Conv2d(3, 8, 1, 2), nn.Linear(8, 10)

    def forward(self, images):
        return self.head(self.twin(self.body(self.first(images).mean((2, 3)))))


def test_tied_weights_are_kept(scans, tmp_path):
    whole = Tied()
    train(whole, scans, steps=2, checkpoint=tmp_path / "run.safetensors", **HOW)
    _write_weights(whole, tmp_path / "stage1.safetensors")
    _read_weights(again := Tied(), tmp_path / "stage1.safetensors")
    assert torch.equal(again.twin.weight, whole.body.weight)
    coat = timm.create_model("coat_tiny")
    save_classifier(coat, tmp_path / "coat")
    assert torch.equal(load_classifier(tmp_path / "coat").head.weight, coat.head.weight)


def test_a_network_whose_gradient_would_corrupt_memory_reads_rows_on_cpus(scans):
    images = torch.zeros(2, 3, 8, 8)  # of one strided convolution of three channels torch 2.14 writes beyond its memory
    assert normalise(Tied(), images).is_contiguous()
    assert normalise(cnn(), images).is_contiguous(memory_format=torch.channels_last)


def test_networks_that_cannot_be_used_so_are_refused(tmp_path):
    save_classifier(timm.create_model("test_resnet", in_chans=1), tmp_path / "grey")
    with pytest.raises(ValueError, match="reads 1-channel images"):
        load_classifier(tmp_path / "grey", 10)
    save_classifier(timm.create_model("test_resnet", global_pool=""), tmp_path / "maps")
    with pytest.raises(ValueError, match="judges no image as a whole"):
        load_classifier(tmp_path / "maps", 10)
    with pytest.raises(ValueError, match="timm does not say which weights of Tied are its last blocks"):
        reset_blocks(Tied(), 1)


@pytest.mark.parametrize(
    "name, size",
    [
        ("resnetv2_18", 32),  # the last layer is a convolution
        ("caformer_s18", 32),  # the head has a hidden layer
        ("sequencer2d_s", 224),  # timm gives head for the last layer, which is head.fc
    ],
)
def test_a_probe_takes_the_place_of_a_head_and_is_found_again(name, size, tmp_path):
    net, images = timm.create_model(name, num_classes=5).eval(), torch.randn(2, 3, size, size)
    with torch.inference_mode():
        features = net.forward_head(net.forward_features(images), pre_logits=True).flatten(1)
        weight, bias = torch.randn(3, features.shape[1]), torch.randn(3)
        probed = put_probe(net, weight, bias).eval()(images)
        again = load_classifier(save_classifier(net, tmp_path)).eval()(images)
    torch.testing.assert_close(probed, nn.functional.normalize(features) @ weight.T + bias, atol=1e-4, rtol=1e-4)
    assert torch.equal(again, probed)


# ---- averages, schedules, sets on disk


def test_the_average_is_what_is_returned_and_measured(scans):
    by_hand, steps = cnn(), 6
    kept = []

    def keep(images, generator):
        kept.append({name: value.clone() for name, value in by_hand.state_dict().items()})
        return images.float()

    train(by_hand, scans, steps=steps, augment=keep, **HOW)
    states, averaged = [*kept[1:], by_hand.state_dict()], cnn()
    history = train(averaged, scans, steps=steps, augment=plain, ema=0.8, val=scans, **HOW)
    expected = dict(cnn().state_dict())
    for step, state in enumerate(states, 1):
        decay = max(0.0, min(0.8, 1 - step ** (-2 / 3)))  # timm's warm-up: the first step replaces the average
        expected = {
            name: torch.lerp(old, state[name], 1 - decay) if old.is_floating_point() else state[name]
            for name, old in expected.items()
        }
    for name, value in averaged.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5)
    assert (
        history.records[-1]["val_accuracy"]
        == (predict(averaged, scans).argmax(1) == scans.labels).float().mean().item()
    )


@pytest.mark.parametrize("sched", ["cosine", "step", "wsd", "rsqrt", "tanh"])
def test_schedules_warm_up_to_the_rate_and_fall(scans, sched):
    rates = train(cnn(), scans, steps=20, sched=sched, warmup=5, record_every=1, **HOW).frame.lr
    assert (
        rates.iloc[5] == pytest.approx(2e-3, rel=0.02)
        and rates.iloc[:6].is_monotonic_increasing
        and rates.iloc[-1] < 0.8 * rates.iloc[5]
    )


@pytest.mark.parametrize("sched", ["cosine", "tanh", "constant", "wsd", "rsqrt"])
def test_schedules_are_timms_of_the_same_steps(sched):
    own, theirs = (torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5) for _ in range(2))
    made = make_schedule(own, sched, 100, 10)
    timms, _ = create_scheduler_v2(theirs, sched, 90, warmup_epochs=10, warmup_lr=0.005, warmup_prefix=True)
    for step in range(100):
        made.step_update(step)
        timms.step(step)
        assert own.param_groups[0]["lr"] == pytest.approx(theirs.param_groups[0]["lr"]), step


@pytest.mark.parametrize("sched", ["poly", "multistep", "plateau", "none", "linear"])
def test_a_schedule_whose_constants_cannot_be_set_is_refused(scans, sched):
    with pytest.raises(ValueError, match=f"sched is '{sched}': it may be cosine, tanh, step, constant, wsd, rsqrt"):
        train(cnn(), scans, steps=2, sched=sched, **HOW)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_set_on_disk_trains_as_it_does_in_memory(scans, inverted, tmp_path, workers):
    for i, (image, label) in enumerate(zip(scans.images, scans.labels.tolist())):
        home = tmp_path / f"{label} {scans.classes[label]}"
        home.mkdir(exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(home / f"{i:03d}.png")
    listed = list_folder(tmp_path)["train"]
    resident = LabelledImages(
        torch.stack([scans.images[int(item.split("/")[-1][:3])] for item in listed.items]),
        listed.labels,
        listed.classes,
        "in memory",
    )
    other = LabelledImages(inverted.images, inverted.labels, listed.classes, "inverted")
    one, two = cnn(), cnn()
    train(one, [(resident, 1), (other, 1)], steps=8, **HOW)
    train(two, [(listed, 1), (other, 1)], steps=8, image_size=32, workers=workers, **HOW)
    assert torch.equal(weights(one), weights(two))
    with pytest.raises(ValueError, match="give image_size"):
        train(two, listed, steps=1, **HOW)


def test_a_broken_loss_names_the_step_and_its_images(scans):
    net = cnn()
    before = []

    def poison(images, generator):
        before.append(weights(net))
        return images.float() * (float("nan") if len(before) == 3 else 1)

    with pytest.raises(
        FloatingPointError, match=r"step 3 of 9: loss nan.*digits train, 8 shots, seed 0 \[\d+, .*\d\] \.\.\."
    ):
        train(net, scans, steps=9, augment=poison, **HOW)
    assert len(before) == 3, "it stops at once"


# ---- parts of a network


@pytest.mark.parametrize("name", ["resnet18", "resnetv2_50", "efficientnet_b0", "vit_tiny_patch16_224"])
def test_last_blocks_are_new_and_the_rest_stays(name):
    import timm

    torch.manual_seed(3)
    net = timm.create_model(name, num_classes=5)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    reset_blocks(net, 1)
    new = [key for key, value in net.state_dict().items() if not torch.equal(value, before[key])]
    blocks = {".".join(key.split(".")[:2]) for key in new}
    last = {"resnet18": {"layer4.0", "layer4.1"}, "vit_tiny_patch16_224": {"blocks.11"}}.get(name, set())
    assert last <= blocks and any(key.startswith(("fc", "head", "classifier")) for key in new)
    assert len(new) < 0.8 * len(before) and next(iter(before)) not in new
    with pytest.raises(ValueError, match="blocks must lie in 1"):
        reset_blocks(net, 99)


@pytest.mark.parametrize("name", ["cnn", "vit"])
def test_a_linear_probe_moves_the_head_alone(name, scans):
    net = load_classifier(folder(name), 10)
    before, head = (
        {key: value.clone() for key, value in net.state_dict().items()},
        {id(p) for p in net.get_classifier().parameters()},
    )
    with only_head(net):
        train(net, scans, steps=5, **HOW)
    names = {key for key, p in net.named_parameters() if id(p) in head}
    assert {key for key, value in net.state_dict().items() if not torch.equal(value, before[key])} == names
    assert all(p.requires_grad for p in net.parameters()) and list(net.state_dict()) == list(before)
    assert not torch.equal(weights(fresh(net, 0)), weights(fresh(net, 1))) and fresh(net).num_classes == 10


# ---- precision and compiling


def test_half_precision_is_autocast_with_float32_weights(scans):
    exact, half, asked = cnn(), cnn(), cnn()
    told = train(exact, scans, steps=4, **HOW)
    rough = train(half, scans, steps=4, precision="bf16", **HOW)
    train(asked, scans, steps=4, precision="no", **HOW)
    assert torch.equal(weights(asked), weights(exact)), "auto is float32 on a CPU"
    assert {p.dtype for p in half.parameters()} == {torch.float32}
    assert 0 < abs(rough.records[-1]["loss"] - told.records[-1]["loss"]) < 0.005, "the same steps, in fewer digits"


@pytest.mark.parametrize("able", [True, False])
def test_a_cpu_trains_in_float32_whatever_instructions_it_has(able, monkeypatch):
    # Instructions do not decide: depthwise convolutions take twice as long in bfloat16 on a CPU that has them
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: able)
    assert open_engine("cpu", "auto").precision == "no"
    assert open_engine("cpu", "bf16").precision == "bf16", "but what is asked for is done"


def test_a_compiled_network_takes_the_steps_of_a_plain_one(scans, inverted):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    plain, compiled = convert(cnn()), convert(cnn())
    for net, how in ((plain, False), (compiled, "aot_eager")):
        train(net, [(scans, 1), (inverted, 1)], synthetic=[False, True], steps=3, compile=how, **HOW)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1, "all steps by one graph"
    assert torch.allclose(weights(plain), weights(compiled), rtol=1e-4, atol=1e-5)
    assert not any("_orig_mod" in name for name in compiled.state_dict()), "what comes back is the model that was given"


def test_a_policy_of_timm_goes_on_where_it_was_and_belongs_to_its_checkpoint(scans, tmp_path):
    policy, calls = TimmPolicy("rand-m9-mstd0.5-inc1", random_resized_crop), []

    class Stopped(TimmPolicy):  # called as its parent is
        def __call__(self, images, generator):
            calls.append(len(images))
            if len(calls) > 2:
                raise KeyboardInterrupt
            return super().__call__(images, generator)

    whole, again, kept = cnn(), cnn(), dict(checkpoint=tmp_path / "c.safetensors", checkpoint_every=1)
    train(whole, scans, steps=4, augment=policy, **HOW)
    Stopped.__qualname__ = "TimmPolicy"  # a checkpoint knows its policy by name
    with pytest.raises(KeyboardInterrupt):
        train(cnn(), scans, steps=4, augment=Stopped(policy.policy, policy.first), **kept, **HOW)
    train(again, scans, steps=4, augment=policy, **kept, **HOW)
    assert torch.equal(weights(again), weights(whole))
    with pytest.raises(ValueError, match="of another run"):
        train(cnn(), scans, steps=4, augment=TimmPolicy("rand-m5-mstd0.5-inc1", random_resized_crop), **kept, **HOW)


def test_sets_on_disk_leave_torchs_chance_alone(scans, tmp_path):
    listed, kept, how = (
        list_folder(save_folder({"train": scans}, tmp_path / "digits"))["train"],
        dict(checkpoint=tmp_path / "c.safetensors", checkpoint_every=3),
        HOW | {"image_size": 32},
    )

    def dropping(steps, **options):
        net = load_classifier(folder("cnn"), 10, drop_rate=0.5)
        train(net, listed, steps=steps, **how, **options)
        return weights(net)

    whole = dropping(6)
    assert torch.equal(dropping(6, val=listed, val_every=2), whole), "measuring changes nothing"
    with interrupted_after(4):
        dropping(6, **kept)
    assert torch.equal(dropping(6, **kept), whole)


def test_precision_is_part_of_what_a_checkpoint_belongs_to(scans, tmp_path):
    train(cnn(), scans, steps=2, checkpoint=tmp_path / "c.safetensors", checkpoint_every=1, **HOW)
    with pytest.raises(ValueError, match="of another run"):
        train(cnn(), scans, steps=2, checkpoint=tmp_path / "c.safetensors", precision="bf16", **HOW)


def test_precision_and_compiling_are_asked_of_whoever_brings_them(scans):
    with pytest.raises(ValueError, match="unknown precision 'fp16'"):
        train(cnn(), scans, steps=1, precision="fp16", **HOW)
    with pytest.raises(ValueError, match="an accelerator brings precision"):
        train(cnn(), scans, steps=1, compile=True, **HOW | {"device": Accelerator(cpu=True)})


@pytest.mark.parametrize("real, weight", [(16, 1.0), (24, 1.0), (8, 0.5), (30, 3.0), (16, 0.25)])
def test_the_loss_of_a_mixed_batch_is_a_mean(real, weight):
    """With the same image everywhere, the gradient of a batch is that of one kind, for any share and weight.

    It was (1 + weight) times as long."""
    torch.manual_seed(0)
    weights, image = torch.randn(10, 5, dtype=torch.double, requires_grad=True), torch.randn(10, dtype=torch.double)
    targets = torch.eye(5, dtype=torch.double)[[2] * 32]
    logits = (image @ weights).expand(32, 5)
    [mixed] = torch.autograd.grad(
        _domain_loss(logits, targets, torch.arange(32) >= real, weight), weights, retain_graph=True
    )
    [pooled] = torch.autograd.grad(torch.nn.functional.cross_entropy(logits, targets), weights)
    assert (mixed - pooled).abs().max() < 1e-6


def test_equal_halves_of_equal_weight_are_one_batch():
    torch.manual_seed(0)
    logits, targets = torch.randn(32, 5, dtype=torch.double), torch.eye(5, dtype=torch.double)[torch.arange(32) % 5]
    whole = torch.nn.functional.cross_entropy(logits, targets)
    assert abs(_domain_loss(logits, targets, torch.arange(32) % 2 == 1, 1.0) - whole) < 1e-6


# ---- classifiers of timm as their configurations ask for


def test_a_distilled_network_is_probed_by_both_heads():
    net = timm.create_model(
        "deit_tiny_distilled_patch16_224", img_size=32, patch_size=8, embed_dim=24, depth=1, num_heads=2, num_classes=3
    )
    body = net.blocks[0].mlp.fc1.weight.clone()
    heads = [net.head.weight.clone(), net.head_dist.weight.clone()]
    with only_head(net):
        assert {name.partition(".")[0] for name, value in net.named_parameters() if value.requires_grad} == {
            "head",
            "head_dist",
        }
        train(net, _three_classes(), steps=3, **HOW | {"batch_size": 6})
    assert torch.equal(net.blocks[0].mlp.fc1.weight, body)
    assert not torch.equal(net.head.weight, heads[0]) and not torch.equal(net.head_dist.weight, heads[1])
    assert all(value.requires_grad for value in net.parameters())


def _three_classes() -> LabelledImages:
    images = torch.randint(256, (12, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return LabelledImages(images, torch.arange(12) % 3, ["a", "b", "c"])


@pytest.mark.parametrize(
    "name, size, said",  # weights of one size, a network that can read one
    [
        ("levit_128s", 96, "its weights stages.0"),
        ("mixer_s32_224", 96, "its weights blocks.0.mlp_tokens"),
        ("pit_ti_224", 96, "its weights pos_embed"),
        ("efficientformer_l1", 96, "The size of tensor a"),
    ],
)
def test_a_network_of_one_size_says_so_at_another(name, size, said, tmp_path):
    save_classifier(timm.create_model(name, num_classes=3), tmp_path)
    with pytest.raises(ValueError, match=f"made for images of 224 pixels and cannot see {size}: .*{said}") as error:
        load_classifier(tmp_path, 3, image_size=size)
    assert "Give image_size: 224" in str(error.value) and len(str(error.value)) < 400
    assert "a ViT" not in str(error.value) and ".. " not in str(error.value)


def test_a_network_saved_for_a_size_is_said_to_be_made_for_that_one(tmp_path):
    "Not for that of its architecture, at which it cannot be opened either."
    save_classifier(timm.create_model("levit_128s", num_classes=3, img_size=96), tmp_path)
    for size in (128, 224):
        with pytest.raises(ValueError, match=f"made for images of 96 pixels and cannot see {size}: .* image_size: 96,"):
            load_classifier(tmp_path, 3, image_size=size)
    assert load_classifier(tmp_path, 3, image_size=96).num_classes == 3


SMALL_VIT = {"embed_dim": 24, "depth": 1, "num_heads": 2, "num_classes": 3}


def test_a_network_for_images_that_are_not_square_is_opened(tmp_path):
    "JSON keeps the pair as a list."
    net = timm.create_model("vit_tiny_patch16_224", img_size=(64, 32), **SMALL_VIT)
    saved = save_classifier(net, tmp_path / "vit")
    assert load_classifier(saved, 3)(torch.zeros(1, 3, 64, 32)).shape == (1, 3)
    assert load_classifier(saved, 3, img_size=(32, 96))(torch.zeros(1, 3, 32, 96)).shape == (1, 3)
    assert load_classifier(saved, 3, image_size=48)(torch.zeros(1, 3, 48, 48)).shape == (1, 3)
    save_classifier(timm.create_model("levit_128s", num_classes=3, img_size=(64, 32)), tmp_path / "levit")
    with pytest.raises(ValueError, match="made for images of 64x32 pixels and cannot see 64: .*Give images of that"):
        load_classifier(tmp_path / "levit", 3, image_size=64)


def test_a_network_of_one_size_says_so_at_a_size_that_its_patches_do_not_divide(tmp_path):
    save_classifier(timm.create_model("vit_tiny_patch16_224", dynamic_img_size=True, **SMALL_VIT), tmp_path)
    with pytest.raises(ValueError, match=r"patch size \(16\)\. Give image_size: 224, .* a ResNet or a ConvNeXt$"):
        load_classifier(tmp_path, 3, image_size=100)


def test_a_network_for_grey_images_says_so_at_another_size_too(tmp_path):
    save_classifier(timm.create_model("vit_tiny_patch16_224", in_chans=1, **SMALL_VIT), tmp_path)
    with pytest.raises(ValueError, match="reads 1-channel images"):
        load_classifier(tmp_path, 3, image_size=64)


@pytest.mark.parametrize(
    "name, size, small",  # the first two resize their input themselves, the last is refused when it is made for 100
    [
        ("crossvit_tiny_240", 32, {"num_classes": 3}),
        ("samvit_base_patch16", 32, SMALL_VIT | {"global_attn_indexes": ()}),
        ("xcit_nano_12_p16_224", 100, {"num_classes": 3}),
    ],
)
def test_a_network_that_reads_a_size_without_being_made_for_it_is_opened_as_it_is(name, size, small, tmp_path):
    net = timm.create_model(name, **small)
    opened = load_classifier(save_classifier(net, tmp_path), image_size=size).eval()
    images = torch.rand(2, 3, size, size)
    assert torch.equal(opened(images), net.eval()(images))


def test_a_network_for_one_size_takes_the_images_size(tmp_path, monkeypatch):
    net = timm.create_model("vit_small_patch14_dinov2", img_size=56, embed_dim=24, depth=1, num_heads=2, num_classes=3)
    saved = save_classifier(net, tmp_path / "dinov2")
    images = torch.randint(256, (2, 3, 28, 28), dtype=torch.uint8)
    for size, tokens in ((0, 16), (56, 16), (28, 4)):
        opened = load_classifier(saved, 3, image_size=size)
        assert opened.patch_embed.num_patches == tokens
    assert predict(opened, images).shape == (2, 3)
    again = load_classifier(save_classifier(opened, tmp_path / "again"))
    assert again.patch_embed.num_patches == 4 and torch.equal(again.pos_embed, opened.pos_embed)
    assert load_classifier(folder("cnn"), 10, image_size=64).num_classes == 10, (
        "a network that takes any size is opened as it is"
    )
    from safetensors.torch import save_file

    whole = timm.create_model("vit_tiny_patch16_224", embed_dim=24, depth=1, num_heads=2)
    save_file(whole.state_dict(), tmp_path / "hub.safetensors")
    monkeypatch.setattr("synthnb.models.classifiers.hf_hub_download", lambda *_, **__: tmp_path / "hub.safetensors")
    opened = load_classifier(
        "vit_tiny_patch16_224.augreg_in21k_ft_in1k", 3, image_size=64, embed_dim=24, depth=1, num_heads=2
    )
    assert opened.patch_embed.num_patches == 16


@pytest.mark.parametrize("crop, interpolation", [(0.875, "bilinear"), (0.95, "bicubic"), (1.0, "bicubic")])
def test_images_are_evaluated_as_timms_own_transform_shows_them(crop, interpolation, tmp_path):
    from PIL import Image
    from timm.data import create_transform, resolve_data_config

    net = timm.create_model(
        "test_resnet", num_classes=3, pretrained_cfg_overlay={"crop_pct": crop, "interpolation": interpolation}
    ).eval()
    smooth = torch.nn.functional.interpolate(
        torch.rand(4, 3, 9, 9, generator=torch.Generator().manual_seed(1)), (80, 80), mode="bicubic"
    ).clamp(0, 1)
    images = (smooth * 255).byte()
    transform = create_transform(**resolve_data_config({"input_size": (3, 64, 64)}, model=net))
    shown = torch.stack([transform(Image.fromarray(image.permute(1, 2, 0).numpy())) for image in images])
    wanted = net(shown).softmax(-1).detach()
    torch.testing.assert_close(predict(net, images, image_size=64), wanted, atol=2e-3, rtol=0)
    torch.testing.assert_close(normalise(net, evaluation_view(net, images, 64)), shown, atol=0.05, rtol=0)


@pytest.mark.parametrize("crop", [0.875, 1.0])
def test_images_that_are_not_square_are_evaluated_whole_in_their_own_shape(crop):
    "Training sees them as they are, so reading them must, too."
    net = timm.create_model("test_resnet", num_classes=3, pretrained_cfg_overlay={"crop_pct": crop}).eval()
    rows = torch.arange(48).expand(1, 3, 32, 48).byte() * 5
    seen = evaluation_view(net, rows)
    assert seen.shape == rows.shape
    margin = 24 * (1 - crop)  # columns that the crop takes away on each side
    assert abs(seen[0, 0, 16, 0] / 5 - margin) <= 1.5 and abs(seen[0, 0, 16, -1] / 5 - (47 - margin)) <= 1.5
    assert torch.equal(evaluation_view(net, rows[..., :32], 32), evaluation_view(net, rows[..., :32]))


def test_no_batch_of_one_image_gives_statistics():
    net = timm.create_model("test_resnet", num_classes=3).eval()
    images = torch.randint(0, 255, (5, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for n, size in ((3, 2), (2, 1), (5, 4), (5, 2)):
        assert predict(net, images[:n], batch_size=size, read="adapted").shape == (n, 3)
    pooled = predict(net, images[:3], batch_size=3, read="adapted")
    torch.testing.assert_close(predict(net, images[:3], batch_size=2, read="adapted"), pooled)
