"""Curation: scores, near-duplicates and measures against one image at a time, and the memory that 100,000 images take.

`OMP_NUM_THREADS=1 .venv/bin/python benchmarks/r_curation.py [--rounds 5] [--images 256] [--many 100000] [--small]`;
protocol: benchmarks/README.md. Scores are measured with glyphworld's CLIP and with a ViT-B/32-shaped one of random
weights. Every measurement of the references works on one image, with what does not depend on it (texts, the test set's
thumbnails) made once. `--small` runs everything at a size that says nothing about speed, and has no bars.
"""

import argparse
import hashlib
import io
import os
import platform
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import redirect_stdout
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import open_clip
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from shard_pictures import shard_pictures

from synthnb.data import LabelledImages
from synthnb.datasets.duplicates import thumbnails
from synthnb.glyphworld.world import folder as glyphworld_folder
from synthnb.images.curate import Filters, _kept_batches, curate, write_kept
from synthnb.images.fidelity import _neighbourhoods, extract, kid, measure, open_extractor
from synthnb.images.folder import ShardFolder, read_tar
from synthnb.images.scores import _load_scores, class_texts, first_alike, score_images
from synthnb.models.clip import Clip, load_clip

BARS = {
    "scores, ViT-B/32": 1.5,
    "scores, glyphworld's CLIP": 2.0,
    "near-duplicates": 2.0,
    "measures": 5.0,
}  # set before the first run
MEMORY = 2**30  # bytes that many images may take beyond a few


def noise_folder(path: Path, images: int, classes: int, size: int) -> ShardFolder:
    """Shards of random pictures."""
    generator = torch.Generator().manual_seed(0)
    return shard_pictures(
        path,
        images,
        classes,
        lambda n: torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=generator),
        "png",
    )


@torch.inference_mode()
def scores_one_by_one(
    home: ShardFolder, clip: Clip, transform, others: torch.Tensor, phrases: dict[str, list[str]]
) -> np.ndarray:
    """Contrast, hash, nearest test image, CLIP's probability and class, of one image after the other."""
    texts, found = class_texts(clip, phrases).features, []
    for name in sorted(home.published()):
        for content, record in read_tar(home.tar(name)):
            image = Image.open(io.BytesIO(content)).convert("RGB")
            pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
            hashlib.sha256(pixels.numpy().tobytes()).hexdigest()
            near = (thumbnails(pixels) @ others.T).max().item()
            feature = torch.nn.functional.normalize(clip.model.encode_image(transform(image)[None]), dim=-1)
            cosines = (feature @ texts.T)[0]
            probability = (cosines * clip.model.logit_scale.exp()).softmax(0)
            found.append(
                (
                    pixels.float().mean(1).std(correction=0).item(),
                    near,
                    probability[record["label"]].item(),
                    cosines.argmax().item(),
                )
            )
    return np.array(found)


def scores_in_batches(home: ShardFolder, clip: Clip, test: LabelledImages, phrases: dict[str, list[str]]) -> np.ndarray:
    """The same by `score_images`, which finds neither scores nor CLIP's features of an earlier round; texts are encoded
    once for both, in the warm-up."""
    shutil.rmtree(home.own / "curation", ignore_errors=True)
    table = score_images(home.path, clip, phrases=phrases, test=test, progress=False).table
    return table[["contrast", "test_similarity", "clip_probability", "clip_label"]].to_numpy(dtype=float)


def stay_one_by_one(thumbs: torch.Tensor, alike: float) -> list[int]:
    """Which pictures stay, each compared with all that stay already."""
    stay, kept = [], torch.empty_like(thumbs)
    for i, thumb in enumerate(thumbs):
        if not stay or (kept[: len(stay)] @ thumb).max() < alike:
            kept[len(stay)] = thumb
            stay.append(i)
    return stay


def measures_one_by_one(real: torch.Tensor, generated: torch.Tensor, k: int = 5) -> tuple[float, ...]:
    """KID, precision, recall, density and coverage with a loop over images; each is compared with all others of a
    side at once."""
    distance = lambda point, points: (points - point).square().sum(1).sqrt()
    real_balls, generated_balls = (
        [distance(p, side).kthvalue(k + 1).values.item() for p in side] for side in (real, generated)
    )
    inside = torch.stack([distance(p, real) <= torch.tensor(real_balls) for p in generated])
    recalled = [bool((distance(p, generated) <= torch.tensor(generated_balls)).any()) for p in real]
    kernel = lambda point, points: (points @ point / len(point) + 1) ** 3
    within = [
        sum((kernel(p, side).sum() - kernel(p, p[None]).sum()).item() for p in side) / (len(side) * (len(side) - 1))
        for side in (real, generated)
    ]
    across = sum(kernel(p, real).sum().item() for p in generated) / (len(real) * len(generated))
    return (
        sum(within) - 2 * across,
        inside.any(1).double().mean().item(),
        np.mean(recalled).item(),
        inside.double().sum(1).mean().item() / k,
        inside.any(0).double().mean().item(),
    )


def measures_at_once(real: torch.Tensor, generated: torch.Tensor) -> tuple[float, ...]:
    """The same by `fidelity`, with the bootstrap of the density that belongs to it and one draw for KID's."""
    balls = _neighbourhoods(real, generated)
    return (
        kid(real, generated, resamples=1).value,
        *(balls[name].value for name in ("precision", "recall", "density", "coverage")),
    )


def timed(work) -> tuple[float, float, object]:
    """CPU seconds, wall seconds, result."""
    cpu, wall = time.process_time(), time.perf_counter()
    result = work()
    return time.process_time() - cpu, time.perf_counter() - wall, result


def compare(what: str, reference, ours, images: int, rounds: int, tolerance: float) -> float:
    """Print every round; the median ratio of CPU times. Raises where results differ."""
    ratios = []
    for i in range(rounds + 1):  # the first one warms up
        cpu_reference, wall_reference, expected = timed(reference)
        cpu_ours, wall_ours, found = timed(ours)
        apart = np.abs(np.asarray(found, dtype=float) - np.asarray(expected, dtype=float)).max()
        if apart > tolerance:
            sys.exit(f"{what}: results differ by {apart:.1e}, allowed {tolerance:.0e}: no ratio")
        ratios.append(cpu_reference / cpu_ours)
        print(
            f"{what} round {i or 'warm-up'}: one by one {1000 * cpu_reference / images:.2f} ms/image CPU "
            f"({1000 * wall_reference / images:.2f} wall), "
            f"ours {1000 * cpu_ours / images:.2f} ({1000 * wall_ours / images:.2f}), ratio {ratios[-1]:.2f}, "
            f"differ by {apart:.0e}",
            flush=True,
        )
    return statistics.median(ratios[1:])


def child(path: str) -> None:
    """What is run in a process of its own: score, curate, write the list, measure; print the peak."""
    clip = load_clip(glyphworld_folder("clip"), device="cpu")
    for what, work in {
        "score": lambda: score_images(path, clip, progress=False),
        "curate": lambda: write_kept(
            curate(_load_scores(path), Filters(blank=2, agree=True, duplicates=0.997)), progress=False
        ),
        "measure": lambda: measure(
            *[extract(open_extractor(clip), _kept_batches(path), ShardFolder(path).plan.classes)] * 2, per_class=False
        ),
    }.items():
        cpu, _, _ = timed(work)
        print(f"{what} {cpu:.1f} {peak_bytes()}")


def peak_bytes() -> int:
    """The most that this process had resident; getrusage on Linux counts what its parent had when it was started."""
    status = Path("/proc/self/status")
    if status.exists():
        return 1024 * int(re.search(r"VmHWM:\s*(\d+)", status.read_text())[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def peak(images: int, alone: bool) -> dict[str, tuple[float, int]]:
    """CPU seconds and peak resident bytes after each step on so many images of 16 pixels, in a process of its own or
    in this one."""
    with tempfile.TemporaryDirectory() as place:
        home = noise_folder(Path(place), images, 100, 16)
        if alone:
            run = subprocess.run([sys.executable, __file__, "--child", str(home.path)], capture_output=True, text=True)
            if run.returncode:
                sys.exit(run.stderr)
            said = run.stdout
        else:
            with redirect_stdout(io.StringIO()) as file:
                child(str(home.path))
            said = file.getvalue()
    return {what: (float(seconds), int(size)) for what, seconds, size in (line.split() for line in said.splitlines())}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--many", type=int, default=100_000)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--child", default="")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.child:
        child(arguments.child)
        return 0
    if arguments.small:
        arguments.rounds, arguments.images, arguments.many = 1, 20, 200
    torch.manual_seed(0)
    print(
        platform.platform(),
        platform.processor(),
        *(f"{name} {version(name)}" for name in ("torch", "open_clip_torch")),
        sep=", ",
    )
    ratios, n = {}, arguments.images
    for name, size in (("glyphworld's CLIP", 32), ("ViT-B/32", 224))[: 1 if arguments.small else 2]:
        if name == "ViT-B/32":
            model, _, transform = open_clip.create_model_and_transforms("ViT-B-32")
            clip, n = (
                Clip(model, open_clip.get_tokenizer("ViT-B-32"), "random ViT-B-32"),
                max(20, arguments.images // 8),
            )
        else:
            clip = load_clip(glyphworld_folder("clip"), device="cpu")
            transform = image_transform_v2(
                PreprocessCfg(**open_clip.get_model_preprocess_cfg(clip.model)), is_train=False
            )
        assert clip.fingerprint  # hashed once a model
        test = LabelledImages(
            torch.randint(0, 256, (600, 3, size, size), dtype=torch.uint8), torch.arange(600) % 2, ("a", "b")
        )
        with tempfile.TemporaryDirectory() as place:
            home = noise_folder(Path(place), n, 10, size)
            phrases, others = {name: [name] for name in home.plan.classes}, thumbnails(test.images)
            ratios[f"scores, {name}"] = compare(
                f"scores, {name}",
                lambda: scores_one_by_one(home, clip, transform, others, phrases),
                lambda: scores_in_batches(home, clip, test, phrases),
                n,
                arguments.rounds,
                5e-3,
            )
    n = 4 * arguments.images
    pictures = torch.randint(0, 256, (n, 3, 16, 16), dtype=torch.uint8)
    thumbs = thumbnails(torch.cat([pictures, pictures[::4]]))
    ratios["near-duplicates"] = compare(
        "near-duplicates",
        lambda: stay_one_by_one(thumbs, 0.997),
        lambda: (first_alike(thumbs) < 0).nonzero().flatten(),
        len(thumbs),
        arguments.rounds,
        0,
    )
    real, generated = (torch.randn(n, 192, dtype=torch.float64) for _ in range(2))
    ratios["measures"] = compare(
        "measures",
        lambda: measures_one_by_one(real, generated),
        lambda: measures_at_once(real, generated),
        n,
        arguments.rounds,
        1e-6,
    )
    for what, ratio in ratios.items():
        print(
            f"{what}: {ratio:.2f}x"
            + ("" if arguments.small else f", bar {BARS[what]}x: {'met' if ratio >= BARS[what] else 'MISSED'}")
        )
    count = arguments.many // 50
    many = peak(arguments.many, alone=not arguments.small)
    few = many if arguments.small else peak(count, alone=True)
    for what, (seconds, size) in many.items():
        print(
            f"{what} {arguments.many:,} images: {seconds:.1f} s CPU, peak {size / 2**20:.0f} MiB"
            + ("" if arguments.small else f", {(size - few[what][1]) / 2**20:.0f} MiB more than with {count:,}")
        )
    grown = many["measure"][1] - few["measure"][1]
    if arguments.small:
        return 0
    print(f"memory: {grown / 2**20:.0f} MiB more, bar {MEMORY / 2**20:.0f}: {'met' if grown <= MEMORY else 'MISSED'}")
    return 0 if grown <= MEMORY and all(ratios[what] >= bar for what, bar in BARS.items()) else 1


if __name__ == "__main__":
    sys.exit(main())
