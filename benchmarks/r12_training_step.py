"""R12: a training step of `fit`, against a plain hand-written loop and against what its arithmetic and its memory need.

`OMP_NUM_THREADS=1 .venv/bin/python benchmarks/r12_training_step.py [--rounds 5] [--steps 8] [--small]`; protocol and
bars: benchmarks/README.md. The shipped CNN at 32 px and timm's EfficientNet-Lite0 at 64 px, batches of 64, channels
last, in float32 and, on a CPU that computes in it, in bfloat16. The floor adds up, layer by layer, the larger of
operations / measured rate and bytes / measured bandwidth.
"""

import argparse
import copy
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from itertools import islice

os.environ.setdefault("OMP_NUM_THREADS", "1")

import timm
import torch
import torch.nn.functional as F
from torch import nn
from torch.profiler import ProfilerActivity, profile

from synthnb.data import LabelledImages
from synthnb.models.classifiers import load_classifier
from synthnb.train import TrainConfig, Watch, fit
from synthnb.training.augmentation import random_affine
from synthnb.training.loading import Loader

BAR, CLASSES, TOLERANCE = 1.5, 10, {"no": 1e-4, "bf16": 0.05}  # of the floor; of the losses of the first steps
TYPES = {"no": torch.float32, "bf16": torch.bfloat16}
LEAVES = (nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU, nn.MaxPool2d, nn.LayerNorm)


def noise(n: int, size: int) -> LabelledImages:
    """Images of noise: a step takes as long whatever they show."""
    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8)
    return LabelledImages(pixels, torch.arange(n) % CLASSES, tuple(f"class {i}" for i in range(CLASSES)), "noise")


def settings(steps: int, batch: int, precision: str, augment: Callable | None = None) -> TrainConfig:
    return TrainConfig(steps=steps, batch_size=batch, lr=1e-3, augment=augment, precision=precision)


def plain(model: nn.Module, data: LabelledImages, order: list[torch.Tensor], rates: list[float], kind: str) -> list:
    """The loop that one would write: the losses of its steps."""
    model.train()
    weights = list(model.parameters())
    groups = [
        {"params": [p for p in weights if p.ndim > 1]},
        {"params": [p for p in weights if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.05, fused=True)
    mean, std = (torch.tensor(model.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    losses = []
    for index, rate in zip(order, rates):
        for group in optimiser.param_groups:
            group["lr"] = rate
        x = ((data.images[index].float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=kind == "bf16"):
            logits = model(x)
        loss = F.cross_entropy(logits.float(), data.labels[index])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        losses.append(loss.item())
    return losses


def rate_of(kind: str) -> float:
    """Operations a second of a product of large matrices, the best of five."""
    a, times = torch.randn(1024, 1024, dtype=TYPES[kind]), []
    for _ in range(6):
        start = time.process_time()
        a @ a
        times.append(time.process_time() - start)
    return 2 * 1024**3 / min(times)


def bandwidth_of(size: int) -> float:
    """Bytes a second, read and written, of copies of `size` bytes, the best of five."""
    a, times = torch.zeros(size, dtype=torch.uint8), []
    b = torch.zeros_like(a)
    for _ in range(6):
        start = time.process_time()
        for _ in range(4):
            b.copy_(a)
        times.append((time.process_time() - start) / 4)
    return 2 * size / min(times)


def layers_of(model: nn.Module, x: torch.Tensor) -> list[tuple[str, float, float]]:
    """Kind, multiplications and additions, and numbers read or written of each layer's step, forward and backward.

    Forward reads input and weights and writes the output; backward reads the output's gradient, input and weights and
    writes the gradients of input and weights; AdamW reads weight, gradient and two moments and writes all but the
    gradient. What an activation in place or a kernel for two layers at once saves is not counted as saved.
    """
    found, first = [], []

    def note(layer, inputs, output):
        weights = sum(p.numel() for p in layer.parameters())
        moved = 3 * inputs[0].numel() + 2 * output.numel() + (3 + 7) * weights
        flop = 0
        if isinstance(layer, nn.Conv2d | nn.Linear):
            flop = 2 * output.numel() * layer.weight[0].numel() * (3 if first else 2)  # no gradient of the images
            first.append(layer)
        found.append((type(layer).__name__, flop, moved))

    hooks = [layer.register_forward_hook(note) for layer in model.modules() if isinstance(layer, LEAVES)]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return found


def floor(model: nn.Module, x: torch.Tensor, kind: str) -> float:
    """Seconds of CPU that a step needs at least, and what they are made of."""
    layers, wide = layers_of(copy.deepcopy(model).train(), x), TYPES[kind].itemsize
    largest = max(moved for *_, moved in layers) * wide // 5  # about the size of a large layer's input
    rate, bandwidth = rate_of(kind), bandwidth_of(int(largest))
    needs = [(flop / rate, moved * wide / bandwidth) for _, flop, moved in layers]
    total = sum(map(max, needs))
    bound = sum(max(need) for need in needs if need[1] > need[0]) / total
    print(
        f"  floor {total * 1e3:.1f} ms: "
        f"{sum(flop for _, flop, _ in layers) / 1e9:.2f} GFLOP at {rate / 1e9:.0f} GFLOP/s, "
        f"{sum(moved for *_, moved in layers) * wide / 1e9:.2f} GB at {bandwidth / 1e9:.1f} GB/s; "
        f"{bound:.0%} of it in layers that wait for memory",
        flush=True,
    )
    return total


def where(step: Callable[[], object]) -> str:
    """The five operations that take most of a step's time."""
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        step()
    events = sorted(seen.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    return ", ".join(f"{event.key} {event.self_cpu_time_total / total:.0%}" for event in events[:5])


def measure(name: str, model: nn.Module, size: int, kind: str, asked: argparse.Namespace) -> tuple[float, float]:
    """Milliseconds of CPU of a step of `fit`, and how many times the floor; prints every round."""
    data, steps, batch = noise(4 * asked.batch, size), asked.steps, asked.batch
    order = list(islice(Loader([(data, 1.0)], batch, 0).walks()[0], steps))
    told = fit(copy.deepcopy(model), data, settings(steps, batch, kind), watch=Watch(record_every=1), progress=False)
    rates = [record["lr"] for record in told.records]
    losses = plain(copy.deepcopy(model), data, order, rates, kind)
    apart = max(abs(a - record["loss"]) for a, record in zip(losses[:2], told.records))
    if apart > TOLERANCE[kind]:
        sys.exit(f"{name}, {kind}: losses differ by {apart:.1e}, allowed {TOLERANCE[kind]:.0e}: no ratio")
    ways = {
        "plain": lambda net: plain(net, data, order, rates, kind),
        "fit": lambda net: fit(net, data, settings(steps, batch, kind), progress=False),
        "fit, moved": lambda net: fit(net, data, settings(steps, batch, kind, random_affine), progress=False),
    }
    times = {way: [] for way in ways}
    for i in range(asked.rounds):
        for way in list(ways) if i % 2 else list(ways)[::-1]:
            net = copy.deepcopy(model)
            start = time.process_time()
            ways[way](net)
            times[way].append((time.process_time() - start) / steps)
        print(f"  round {i}: " + ", ".join(f"{way} {times[way][-1] * 1e3:.1f} ms" for way in ways), flush=True)
    x = torch.randn(batch, 3, size, size).contiguous(memory_format=torch.channels_last)
    least = floor(model, x, kind)
    against = statistics.median(ours / theirs for ours, theirs in zip(times["fit"], times["plain"]))
    moved = statistics.median(ours / theirs for ours, theirs in zip(times["fit, moved"], times["plain"]))
    step = statistics.median(times["fit"])
    print(
        f"R12 {name}, {size} px, batch {batch}, {str(TYPES[kind]).removeprefix('torch.')}: "
        f"fit {step * 1e3:.1f} ms a step, "
        f"{against:.3f}x of plain ({moved:.3f}x with random_affine), {step / least:.2f}x of the floor; "
        f"losses differ by {apart:.0e}"
    )
    print("  " + where(lambda: plain(copy.deepcopy(model), data, order[:1], rates, kind)), flush=True)
    return step, step / least


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="one round of small batches: it works, and judges nothing")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8, help="in a round")
    parser.add_argument("--batch", type=int, default=64)
    asked = parser.parse_args()
    if asked.small:
        asked.rounds, asked.steps, asked.batch = 1, 2, 8
    torch.set_num_threads(1)
    torch.manual_seed(0)
    has_bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    print(f"torch {torch.__version__}, timm {timm.__version__}, {platform.machine()}, one thread, bfloat16: {has_bf16}")
    networks = [
        ("shipped CNN", load_classifier("glyphworld/cnn", CLASSES), 32),
        ("EfficientNet-Lite0", timm.create_model("efficientnet_lite0", num_classes=CLASSES), 64),
    ]
    missed = []
    for name, model, size in networks:
        for kind in ["no"] + ["bf16"] * has_bf16:
            _, times = measure(name, model, size, kind, asked)
            missed += [f"{name} in {kind} {times:.2f}x"] * (times > BAR)
    print(f"bar {BAR}x of the floor: " + (f"MISSED by {', '.join(missed)}" if missed else "met"))
    return 0 if asked.small else bool(missed)


if __name__ == "__main__":
    sys.exit(main())
