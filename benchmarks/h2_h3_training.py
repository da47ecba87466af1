"""H2 and H3: training steps on a GPU, images a second: plain, with dual norms, and with timm's split batch norm,
bfloat16, channels_last, synthetic input.

`python benchmarks/h2_h3_training.py` where a GPU is (ResNet-50, ViT-B/16, DeiT-S, compiled, batch 256 of 224 px);
`--small` takes small relatives, not compiled, and runs anywhere, to see that it runs. Half of each batch is synthetic,
real images first; `dual, any order` is shuffled. timm's split is measured as people run it, eager, with a plain eager
model beside it; `fit` is `train.fit` on images in the card's memory, uint8, not augmented. Before a rate counts, the
dual model's outputs in float32 are equal to the split's. Absolute bars are those of one H200, shares are for any GPU.
Exits with status 1 below a bar.
"""

import argparse
import copy
import platform
import statistics
import sys
import time
from collections.abc import Callable

import timm
import torch
import torch.nn.functional as F
from timm.layers import convert_splitbn_model
from torch import nn

from synthnb.data import LabelledImages
from synthnb.dualbn import convert, domains
from synthnb.train import TrainConfig, fit

# row, model, its small relative, floor and bar in images a second on one H200
MODELS = [
    ("H2", "resnet50", "resnet10t", 13_900, 4_500),
    ("H3", "vit_base_patch16_224", "vit_tiny_patch16_224", 7_500, 3_000),
    ("H3", "deit_small_patch16_224", "deit_tiny_patch16_224", 28_600, 9_000),
]
SHARE = 0.95  # of plain, at least, for the dual ResNet-50; aim .98


def check_equal(plain: nn.Module, size: int) -> None:
    """Dual batch norm and timm's split give the same bits in float32 on the CPU, or there is nothing to compare."""
    x, half = torch.randn(4, 3, size, size), torch.tensor([False] * 2 + [True] * 2)
    dual, split = (
        convert(copy.deepcopy(plain).float().cpu()).train(),
        convert_splitbn_model(copy.deepcopy(plain).float().cpu(), 2).train(),
    )
    with torch.no_grad(), domains(dual, half):
        if not torch.equal(dual(x), split(x)):
            sys.exit("dual and split outputs differ: there is nothing to compare")


def stepper(
    model: nn.Module, synthetic: torch.Tensor, size: int, device: str, compiled: bool
) -> Callable[[int], float]:
    """A function of a number of training steps that returns images a second."""
    model = model.to(device, memory_format=torch.channels_last).train()
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    x = torch.randn(len(synthetic), 3, size, size, device=device).to(memory_format=torch.channels_last)
    labels, forward = (
        torch.randint(model.num_classes, (len(x),), device=device),
        torch.compile(model) if compiled else model,
    )
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None

    def run(steps: int) -> float:
        wait()
        start = time.perf_counter()
        for _ in range(steps):
            with domains(model, synthetic), torch.autocast(device, torch.bfloat16):
                loss = F.cross_entropy(forward(x), labels)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
        wait()
        return steps * len(x) / (time.perf_counter() - start)

    return run


def fitter(model: nn.Module, batch: int, size: int, device: str, compiled: bool) -> Callable[[int], float]:
    """The same of `fit`: its batches, normalisation, losses, clipped gradients and checks are in it."""
    images = torch.randint(0, 256, (2 * batch, 3, size, size), dtype=torch.uint8)
    data = LabelledImages(
        images,
        torch.arange(len(images)) % model.num_classes,
        tuple(f"class {i}" for i in range(model.num_classes)),
        "noise",
    )

    def run(steps: int) -> float:
        config = TrainConfig(steps=steps, batch_size=batch, lr=1e-3, opt="sgd", augment=None, compile=compiled)
        history = fit(model, data, config, device=device, progress=False)
        return history.images / history.seconds

    return run


def ways_of(plain: nn.Module, batch: int, compiled: bool) -> dict[str, tuple[nn.Module, torch.Tensor, bool]]:
    """What is measured: model, its domains, and if it is compiled."""
    half = torch.arange(batch) >= batch // 2
    dual = convert(copy.deepcopy(plain))
    ways = {
        "plain": (plain, half, compiled),
        "dual": (dual, half, compiled),
        "dual, any order": (copy.deepcopy(dual), half[torch.randperm(batch)], compiled),
    }
    if any(isinstance(m, nn.BatchNorm2d) for m in plain.modules()):
        ways |= {
            "plain, eager": (copy.deepcopy(plain), half, False),
            "timm split, eager": (convert_splitbn_model(copy.deepcopy(plain), 2), half, False),
        }
    elif hasattr(plain, "patch_embed"):
        ways["domain token"] = (convert(copy.deepcopy(plain), "token"), half, compiled)
    return ways


def measure(
    plain: nn.Module, batch: int, size: int, device: str, compiled: bool, steps: int, rounds: int, ways: list[str]
) -> dict[str, list[float]]:
    """Images a second of each way, one value a round, the ways taking turns."""
    torch._dynamo.reset()  # the limit of recompilations counts all models of a class
    runs, rates = (
        {
            name: stepper(model, marks, size, device, quick)
            for name, (model, marks, quick) in ways_of(plain, batch, compiled).items()
            if name in (ways or [name])
        },
        {},
    )
    runs["fit"] = fitter(copy.deepcopy(plain), batch, size, device, compiled)
    if "plain, eager" in runs:
        runs["fit, eager"] = fitter(copy.deepcopy(plain), batch, size, device, False)
    for name, run in runs.items():
        start = time.perf_counter()
        run(3)
        print(f"  {name}: first steps {time.perf_counter() - start:.0f} s", flush=True)  # compiling is in them
    for i in range(rounds):
        for name in list(runs) if i % 2 else list(runs)[::-1]:
            rates.setdefault(name, []).append(runs[name](steps))
    return {name: rates[name] for name in runs}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, default=20, help="in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--models", nargs="*", default=[full for _, full, *_ in MODELS], help="some of them")
    parser.add_argument("--ways", nargs="*", default=[], help="some of them, plain among them; default: all")
    asked = parser.parse_args()
    gpu = torch.cuda.is_available()
    if asked.small:
        torch.set_num_threads(1)
    if not (gpu or asked.small):
        sys.exit("no GPU here: --small shows that the script runs")
    judged = gpu and not asked.small
    device, card = ("cuda", torch.cuda.get_device_name()) if gpu else ("cpu", platform.machine())
    size, batch, steps, rounds = (64, 8, 1, 2) if asked.small else (224, asked.batch, asked.steps, asked.rounds)
    print(
        f"{card}, torch {torch.__version__}, timm {timm.__version__}, "
        f"batch {batch} of {size} px{', small models' if asked.small else ''}"
    )
    torch.manual_seed(0)
    below = []
    for row, full, small, floor, bar in (row for row in MODELS if row[1] in asked.models):
        name = small if asked.small else full
        plain = timm.create_model(name, num_classes=1000, **({"img_size": size} if row == "H3" else {}))
        if row == "H2":
            check_equal(plain, size)
        rates = measure(plain, batch, size, device, judged, steps, rounds, asked.ways)
        for way, found in rates.items():
            reference = "plain, eager" if way.endswith("eager") else "plain"
            share = statistics.median(ours / theirs for ours, theirs in zip(found, rates[reference]))
            rate, absolute = statistics.median(found), judged and "H200" in card and way == "plain"
            floors = f", {rate / floor:.0%} of the floor of {floor}, bar {bar}" if absolute else ""
            print(
                f"{row} {name} on {card}, {way}: {rate:.1f} images a second, {share:.3f} of {reference}{floors}",
                flush=True,
            )
            if (absolute and rate < bar) or (judged and row == "H2" and way == "dual" and share < SHARE):
                below.append(f"{name}, {way}")
    print(f"below the bar: {below}" if below else "no bar missed" if judged else "no bars without a GPU")
    return bool(below)


if __name__ == "__main__":
    sys.exit(main())
