"""Dual norms in the architectures that people train, against timm's own layer and against the plain model."""

import copy

import pytest
import timm
import torch
from processes import in_two_processes
from safetensors.torch import load_file, save_file
from timm.layers import BatchNormAct2d, convert_splitbn_model, freeze_batch_norm_2d
from timm.utils import ModelEmaV3
from torch import nn

from synthnb.data import LabelledImages
from synthnb.dualbn import Dual, DualBatchNorm2d, convert, domains, gap, is_dual, strip
from synthnb.train import TrainConfig, fit

torch.set_num_threads(1)
HALF = torch.tensor([False] * 4 + [True] * 4)
ARCHITECTURES = {
    "resnet10t": {},
    "resnetv2_50": {"layers": (1, 1, 1, 1), "norm_layer": BatchNormAct2d},
    "densenet121": {},
    "efficientnet_b0": {},
    "convnext_atto": {},
    "vit_tiny_patch16_224": {"img_size": 64},
}


def build(name: str, **more) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=5, **ARCHITECTURES[name] | more)


def train_a_little(model, marks=HALF, steps=3):
    chance = torch.Generator().manual_seed(1)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(steps):
        x = torch.randn(8, 3, 64, 64, generator=chance)
        x[marks] = x[marks] * 3 + 1  # another domain
        with domains(model.train(), marks):
            loss = model(x).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_converts_trains_and_strips(name):
    plain = build(name)
    names, kinds = set(plain.state_dict()), [type(m) for m in plain.modules()]
    dual = train_a_little(convert(copy.deepcopy(plain)))
    assert is_dual(dual) and {n for n in dual.state_dict() if ".aux." not in n} == names
    layers = [m for m in dual.modules() if isinstance(m, Dual)]
    assert layers and any(not torch.equal(layer.weight, layer.aux.weight) for layer in layers), (
        "each branch learns for itself"
    )
    x = torch.randn(4, 3, 64, 64)
    single = strip(dual).eval()
    assert [type(m) for m in single.modules()] == kinds and set(single.state_dict()) == names
    assert torch.equal(single(x), dual.eval()(x))
    fresh = timm.create_model(name, num_classes=5, **ARCHITECTURES[name])
    fresh.load_state_dict(single.state_dict())
    assert torch.equal(fresh.eval()(x), single(x))


@pytest.mark.parametrize("name", ["resnetv2_50", "densenet121", "efficientnet_b0"])
def test_fused_activations_stay(name):
    plain, x = build(name), torch.randn(8, 3, 64, 64)
    fused = [m for m in plain.modules() if isinstance(m, BatchNormAct2d)]
    assert fused, "this architecture has norms with an activation inside"
    dual = convert(copy.deepcopy(plain)).train()
    with domains(dual, torch.zeros(8, dtype=torch.bool)):
        torch.manual_seed(3)
        ours = dual(x)
    torch.manual_seed(3)
    assert torch.equal(ours, plain.train()(x)), "a batch of real images goes through the plain model"


def test_bits_and_gradients_of_timms_split_batchnorm():
    plain, x = build("resnet10t"), torch.randn(8, 3, 64, 64)
    ours, theirs = convert(copy.deepcopy(plain)).train(), convert_splitbn_model(copy.deepcopy(plain), 2).train()
    for _ in range(2):
        with domains(ours, HALF):
            out = ours(x)
        out.square().sum().backward()
        reference = theirs(x)
        reference.square().sum().backward()
        assert torch.equal(out, reference)
    assert torch.equal(ours.conv1[0].weight.grad, theirs.conv1[0].weight.grad)
    assert torch.equal(ours.bn1.running_mean, theirs.bn1.running_mean) and torch.equal(
        ours.bn1.aux.running_var, theirs.bn1.aux_bn[0].running_var
    )


@pytest.mark.parametrize(
    "marks", [[0, 1, 0, 1, 0, 1, 0, 1], [1, 1, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 1, 1], [1] * 8]
)
def test_an_image_sees_its_own_domain_only(marks):
    marks, x = torch.tensor(marks, dtype=torch.bool), torch.randn(8, 3, 64, 64)
    dual = train_a_little(convert(build("resnet10t"))).train()
    other = x.clone()
    other[marks] = torch.randn(int(marks.sum()), 3, 64, 64)
    with torch.no_grad(), domains(dual, marks):
        a, b = copy.deepcopy(dual)(x), copy.deepcopy(dual)(other)
    assert torch.allclose(a[~marks], b[~marks], atol=1e-5) and not torch.allclose(a[marks], b[marks], atol=1e-3)


def test_a_frozen_branch_normalises_with_its_own_running_statistics():
    dual = train_a_little(convert(build("resnet10t")))
    for layer in [m for m in dual.modules() if isinstance(m, Dual)]:
        layer.eval()
    before = dual.bn1.aux.running_mean.clone()
    with torch.no_grad(), domains(dual, HALF):
        split = dual(torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(5)))
    assert torch.equal(before, dual.bn1.aux.running_mean) and split.isfinite().all()
    frozen = freeze_batch_norm_2d(build("resnet10t"))
    with pytest.raises(ValueError, match="no batchnorm and no layernorm|has no batchnorm"):
        convert(frozen)


def test_copies_averages_and_state_dicts_keep_the_branches():
    dual = train_a_little(convert(build("resnet10t")))
    average = ModelEmaV3(dual, decay=0.5)
    train_a_little(dual)
    average.update(dual)
    other = convert(build("resnet10t"))
    other.load_state_dict(dual.state_dict())
    x = torch.randn(8, 3, 64, 64)
    with torch.no_grad():
        with domains(other.eval(), HALF), domains(dual.eval(), HALF):
            assert torch.equal(other(x), dual(x))
        assert not torch.equal(average.module(x), dual(x)), (
            "evaluation of an average takes its main branch and needs no domains"
        )
    assert gap(dual)["mean"].max() > 0 and len(gap(dual)) == sum(isinstance(m, DualBatchNorm2d) for m in dual.modules())


def test_half_precision_channels_last_compile_and_checkpointing():
    dual = convert(build("resnet10t")).to(memory_format=torch.channels_last).train()
    x = torch.randn(8, 3, 64, 64).to(memory_format=torch.channels_last)
    with domains(dual, HALF), torch.autocast("cpu", torch.bfloat16):
        assert dual(x).isfinite().all()
    with torch.no_grad(), domains(dual.eval(), HALF):
        whole = dual(x)
        compiled = torch.compile(dual, backend="eager", fullgraph=True)
        assert torch.allclose(compiled(x), whole, atol=1e-5)
    dual.train()
    plain = copy.deepcopy(dual)
    dual.set_grad_checkpointing(True)
    with domains(dual, HALF), domains(plain, HALF):  # the second pass of checkpointing is inside as well
        dual(x).square().sum().backward()
        plain(x).square().sum().backward()
    assert torch.allclose(dual.conv1[0].weight.grad, plain.conv1[0].weight.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["efficientnet_b0", "resnetv2_50"])
def test_syncbn_keeps_the_activations(name):
    plain, x = build(name).eval(), torch.randn(4, 3, 64, 64)
    dual = convert(copy.deepcopy(plain), sync=True)
    with torch.no_grad(), domains(dual, torch.tensor([True, False, False, True])):
        assert torch.allclose(dual(x), plain(x), rtol=1e-4, atol=1e-5), (
            "new branches are copies: the outputs are the plain model's"
        )
    assert torch.allclose(strip(dual)(x), plain(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["auto", "layernorm", "token"])
def test_compiled_training_takes_the_step_of_plain_python(kind):
    torch._dynamo.reset()
    dual = convert(build("resnet10t" if kind == "auto" else "vit_tiny_patch16_224"), kind).train()
    reference, x = copy.deepcopy(dual), torch.randn(8, 3, 64, 64)
    compiled = torch.compile(dual, backend="aot_eager", fullgraph=True)
    for i, marks in enumerate([HALF, HALF[torch.randperm(8)], HALF[torch.randperm(8)]]):
        # one graph with real images first, one for every other order: nothing is compiled at each step
        with domains(dual, marks), domains(reference, marks), torch._dynamo.config.patch(error_on_recompile=i == 2):
            compiled(x).square().sum().backward()
            reference(x).square().sum().backward()
    for ours, theirs in zip(dual.parameters(), reference.parameters()):
        assert ours.grad is theirs.grad is None or torch.allclose(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)


def test_the_training_loop_takes_gradient_checkpointing():
    dual = convert(build("resnet10t"))
    dual.set_grad_checkpointing(True)
    data = LabelledImages(
        torch.randint(256, (20, 3, 64, 64), dtype=torch.uint8), torch.arange(20) % 5, tuple("abcde"), "noise"
    )
    config = TrainConfig(steps=2, batch_size=8, synthetic=[False, True])
    history = fit(dual, [(data, 0.5), (data, 0.5)], config, device="cpu", progress=False)
    assert history.steps == 2


def test_statistics_that_are_not_kept_have_no_gap():
    with pytest.raises(ValueError, match="running statistics"):
        gap(convert(nn.Sequential(nn.BatchNorm2d(4, track_running_stats=False))))


def test_a_batch_that_cannot_be_told_apart_is_refused():
    dual, x = convert(build("resnet10t")).train(), torch.zeros(8, 3, 64, 64)
    with pytest.raises(RuntimeError, match="dual norms is trained inside of"):
        dual(x)
    with pytest.raises(RuntimeError, match="domain token is trained inside of"):
        convert(build("vit_tiny_patch16_224"), "token").train()(x)
    with pytest.raises(ValueError, match="8 images, but `domains` was told of 4"), domains(dual, HALF[:4]):
        dual(x)
    with pytest.raises(ValueError, match="leaves a branch with one"), domains(dual, torch.arange(8) == 7):
        dual(x)
    with pytest.raises(ValueError, match=r"must be bool \[B\]"), domains(dual, HALF.int()):
        dual(x)
    with pytest.raises(ValueError, match="has dual norms already"):
        convert(dual)
    with pytest.raises(ValueError, match="unknown kind 'groupnorm'"):
        convert(build("resnet10t"), "groupnorm")
    with pytest.raises(ValueError, match="no patch embedding"):
        convert(build("resnet10t"), "token")


@pytest.mark.parametrize(
    "name, kind, why",
    [
        ("levit_128s", "auto", "a norm reads parts of images one by one"),
        ("pit_ti_224", "token", "ConvEmbedding does not give one vector of 256 numbers for each patch"),
        ("xcit_nano_12_p16_224", "token", "ConvPatchEmbed does not give one vector of 128 numbers"),
    ],
)
def test_networks_that_cannot_tell_their_images_apart_say_so(name, kind, why):
    net = convert(timm.create_model(name, num_classes=5), kind).train()
    with pytest.raises(ValueError, match=why), domains(net, HALF):
        net(torch.zeros(8, 3, 224, 224))


def test_syncbn_on_request():
    dual = convert(build("resnet10t"), sync=True)
    assert (
        isinstance(dual.bn1, Dual)
        and isinstance(dual.bn1, nn.SyncBatchNorm)
        and isinstance(dual.bn1.aux, nn.SyncBatchNorm)
        and not isinstance(dual.bn1.aux, Dual)
    )
    with domains(dual.train(), HALF):  # one process: what plain batch norm does
        ours = dual(torch.ones(8, 3, 64, 64).cumsum(0))
    plain = convert(build("resnet10t")).train()
    with domains(plain, HALF):
        assert torch.allclose(ours, plain(torch.ones(8, 3, 64, 64).cumsum(0)), atol=1e-5)


# ---- several processes

PROCESS = """
import sys
import torch
from torch import distributed as dist
from safetensors.torch import load_file, save_file
sys.path.insert(0, "tests")
from test_dualbn import build
from synthnb.dualbn import convert, domains

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, folder = dist.get_rank(), sys.argv[1]
given = load_file(f"{folder}/given.safetensors")
for name in ("resnet10t", "resnetv2_50"):
    net = convert(build(name)).double().train()  # synchronised, since there is a group
    for mine in ([0, 1, 2], [3, 4, 5, 6, 7]), ([0, 2, 4, 6], [1, 3, 5, 7]), ([4, 5, 6, 7, 3], [0, 1, 2]):
        part = torch.tensor(mine[rank])
        net.zero_grad()
        with domains(net, given["marks"][part].bool()):
            out = net(given["images"][part])
        (out * given["weights"][part]).sum().backward()
    result = {f"output {i}": row for i, row in zip(mine[rank], out.detach())}
    for key, value in net.named_parameters():
        dist.all_reduce(value.grad)
        result[f"gradient {key}"] = value.grad
    buffers = {f"buffer {key}": value.clone() for key, value in net.named_buffers()}
    save_file({**result, **buffers}, f"{folder}/{name} {rank}.safetensors")
"""


def test_two_processes_have_the_statistics_of_one(tmp_path):
    chance = torch.Generator().manual_seed(4)
    marks, images, weights = (
        torch.tensor([0, 1, 0, 1, 0, 0, 0, 1]),
        torch.randn(8, 3, 48, 48, generator=chance).double(),
        torch.randn(8, 5, generator=chance).double(),
    )
    images[marks.bool()] = images[marks.bool()] * 3 + 1
    save_file({"marks": marks.int(), "images": images, "weights": weights}, tmp_path / "given.safetensors")
    in_two_processes(PROCESS, tmp_path)
    for name in ("resnet10t", "resnetv2_50"):
        net = convert(build(name), sync=False).double().train()
        for _ in range(3):
            net.zero_grad()
            with domains(net, marks.bool()):
                out = net(images)
            (out * weights).sum().backward()
        parts = [load_file(tmp_path / f"{name} {rank}.safetensors") for rank in range(2)]
        for i, row in enumerate(out.detach()):
            torch.testing.assert_close(
                next(part[f"output {i}"] for part in parts if f"output {i}" in part), row, rtol=1e-6, atol=1e-8
            )
        for part in parts:
            for key, value in net.named_buffers():
                torch.testing.assert_close(part[f"buffer {key}"], value, rtol=1e-6, atol=1e-8)
            for key, value in net.named_parameters():
                scale = value.grad.abs().max().item() + 1e-6
                torch.testing.assert_close(
                    part[f"gradient {key}"] / scale,
                    value.grad / scale,
                    rtol=0,
                    atol=1e-6,
                    msg=lambda text: f"{name} {key}: {text}",
                )


DROPOUT = """
import sys
import torch
from accelerate import Accelerator
from safetensors.torch import save_file
sys.path.insert(0, "tests")
from test_dualbn import build
from synthnb.data import LabelledImages
from synthnb.train import TrainConfig, fit

net, masks = build("resnet10t"), []
net.fc = torch.nn.Sequential(torch.nn.Dropout(.5), net.fc)
dropped = lambda given, out: torch.where(given != 0, (out == 0).float(), torch.nan)
net.fc[0].register_forward_hook(lambda layer, given, out: masks.append(dropped(given[0], out)[:1]))
data = LabelledImages(torch.full((16, 3, 32, 32), 9, dtype=torch.uint8), torch.arange(16) % 5, tuple("abcde"), "grey")
accelerator = Accelerator(cpu=True)
fit(net, data, TrainConfig(steps=2, batch_size=8, mixup=.5), seed=1, device=accelerator, progress=False)
kept = {"masks": torch.cat(masks), "weight": net.conv1[0].weight.detach().clone()}
save_file(kept, f"{sys.argv[1]}/{accelerator.process_index}.safetensors")
"""


def test_each_process_has_dropout_of_its_own(tmp_path):
    in_two_processes(DROPOUT, tmp_path)
    first, second = (load_file(tmp_path / f"{rank}.safetensors") for rank in range(2))
    assert torch.equal(first["weight"], second["weight"]), "one network"
    alike = (first["masks"][0] - second["masks"][0]).abs()
    assert 0.3 < alike[~alike.isnan()].mean() < 0.7, "other units are dropped in each"
