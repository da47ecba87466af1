"""R7: CLIP scores of real images with a prompt: `synthnb.lar` against one image at a time with the prompt encoded again
for each.

`OMP_NUM_THREADS=1 .venv/bin/python benchmarks/r7_clip_scoring.py [--rounds 5] [--images 16]`; protocol and bars:
benchmarks/README.md. A ViT-B/32-shaped CLIP with random weights; bfloat16 only on a CPU that computes in it.
"""

import argparse
import copy
import os
import platform
import statistics
import sys
import time
from importlib.metadata import version

os.environ.setdefault("OMP_NUM_THREADS", "1")

import open_clip
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from synthnb.data import LabelledImages
from synthnb.lar import class_scores
from synthnb.models.clip import Clip, image_features
from synthnb.models.meanings import Candidate

CLASSES, TEMPLATES = ("crane", "star"), ("a photo of a {phrase}",)
CANDIDATES = {"crane": [Candidate(phrase="crane bird")], "star": [Candidate(phrase="star in the night sky")]}
BARS = {"float32": (2.3, 1e-5), "bfloat16": (5.0, 5e-3)}


@torch.inference_mode()
def reference(model, transform, tokenizer, data: LabelledImages) -> torch.Tensor:
    """Score by score: Pillow preprocessing of one image, encode it, encode its prompt."""
    scores = []
    for pixels, label in zip(data.images, data.labels.tolist()):
        prepared = transform(Image.fromarray(pixels.permute(1, 2, 0).numpy()))[None]
        prompt = TEMPLATES[0].format(phrase=CANDIDATES[CLASSES[label]][0].phrase)
        image, text = (
            F.normalize(model.encode_image(prepared), dim=-1),
            F.normalize(model.encode_text(tokenizer([prompt])), dim=-1),
        )
        scores.append((image @ text.T).item())
    return torch.tensor(scores)


def ours(clip: Clip, data: LabelledImages, batch_size: int) -> torch.Tensor:
    """The same scores through the component: batched images, each distinct prompt encoded once."""
    clip.known.clear()  # every round encodes its prompts
    features = image_features(clip, data, images_per_class=None, batch_size=batch_size, thumbnails=0, progress=False)
    by_class = class_scores(clip, features, CANDIDATES, TEMPLATES)
    return torch.cat([torch.from_numpy(by_class[name][:, 0]) for name in CLASSES])  # `data` is sorted by class


def timed(work) -> tuple[float, float, torch.Tensor]:
    """CPU seconds, wall seconds, result."""
    cpu, wall = time.process_time(), time.perf_counter()
    result = work()
    return time.process_time() - cpu, time.perf_counter() - wall, result


def has_bfloat16() -> bool:
    """Does this CPU compute in bfloat16, rather than emulate it?"""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


@torch.inference_mode()
def products_rate(dtype: torch.dtype, rows: int) -> float:
    """Operations a second of the image tower's largest linear layer, the best of some rounds."""
    layer, x = torch.nn.Linear(768, 3072, dtype=dtype), torch.randn(rows, 768, dtype=dtype)
    return 2 * rows * 768 * 3072 / min(timed(lambda: layer(x))[0] for _ in range(20))


def measure(dtype: str, model, transform, tokenizer, data: LabelledImages, rounds: int, batch_size: int) -> bool:
    """Print every round; True if the bar is met."""
    bar, tolerance = BARS[dtype]
    # A copy: `Clip` changes the model that it is given, and the reference is open_clip's as it comes
    clip = Clip(copy.deepcopy(model), tokenizer, "random ViT-B-32", dtype=getattr(torch, dtype))
    assert clip.fingerprint  # hashed once per model, not per score
    torch.backends.mha.set_fastpath_enabled(False)  # its operations are not counted
    with FlopCounterMode(display=False) as count, torch.inference_mode():
        model.encode_image(torch.zeros(1, 3, 224, 224))
    torch.backends.mha.set_fastpath_enabled(True)
    ratios, references, rates = [], [], []
    for i in range(rounds + 1):  # the first one warms up
        cpu_reference, wall_reference, expected = timed(lambda: reference(model, transform, tokenizer, data))
        cpu_ours, wall_ours, scores = timed(lambda: ours(clip, data, batch_size))
        apart = (scores - expected).abs().max().item()
        if apart > tolerance:
            print(f"{dtype}: scores differ by {apart:.1e}, allowed {tolerance:.0e}: no ratio")
            return False
        ratios.append(cpu_reference / cpu_ours)
        references.append(cpu_reference / len(data))
        rates.append(products_rate(getattr(torch, dtype), 50 * batch_size))
        per = 1000 / len(data)
        print(
            f"{dtype} round {i or 'warm-up'}: "
            f"reference {cpu_reference * per:.1f} ms/image CPU ({wall_reference * per:.1f} wall), "
            f"ours {cpu_ours * per:.1f} ({wall_ours * per:.1f}), ratio {ratios[-1]:.2f}, scores differ by {apart:.1e}",
            flush=True,
        )
    ratio, floor = statistics.median(ratios[1:]), count.get_total_flops() / max(rates)
    print(
        f"{dtype}: {count.get_total_flops() / 1e9:.2f} GFLOP an image at {max(rates) / 1e9:.0f} GFLOP/s are "
        f"{1000 * floor:.1f} ms, so that {statistics.median(references[1:]) / floor:.2f}x is the most"
    )
    print(f"R7 {dtype}: {ratio:.2f}x, bar {bar}x: {'met' if ratio >= bar else 'MISSED'}")
    return ratio >= bar


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=8)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(
        platform.platform(),
        platform.processor(),
        *(f"{name} {version(name)}" for name in ("torch", "open_clip_torch")),
        sep=", ",
    )
    model, _, transform = open_clip.create_model_and_transforms("ViT-B-32")
    model = model.eval().requires_grad_(False)
    pixels = torch.randint(0, 256, (arguments.images, 3, 224, 224), dtype=torch.uint8)
    labels = (torch.arange(arguments.images) * len(CLASSES)) // arguments.images
    data = LabelledImages(pixels, labels, CLASSES, "noise")
    kinds = ["float32"] + ["bfloat16"] * has_bfloat16()
    if len(kinds) == 1:
        print("bfloat16 is left out: this CPU does not compute in it")
    met = [
        measure(
            kind, model, transform, open_clip.get_tokenizer("ViT-B-32"), data, arguments.rounds, arguments.batch_size
        )
        for kind in kinds
    ]
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
