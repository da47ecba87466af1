"""H4 and H4b: images a second that CLIP scores on a GPU, from tensors in its memory and from JPEG shards, random
weights, bfloat16.

`python benchmarks/h4_clip.py` where a GPU is (ViT-B/32 and ViT-L/14); `--small` takes glyphworld's CLIP, few images and
a CPU, to see that it runs. The reference is what people write: Pillow's transform of one image, one image through the
network, its prompt encoded again; ratios to it are for any GPU, floors and bars are those of one H200 with 16 cores.
Before a rate counts, glyphworld's trained CLIP gives the reference's cosines, to 0.02 in bfloat16 and to 0.001 in
float32. Exits with status 1 below a bar.
"""

import argparse
import platform
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import open_clip
import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image
from shard_pictures import shard_pictures

from synthnb.core.workers import usable_cores
from synthnb.generate import ClipScore
from synthnb.glyphworld.world import folder as glyphworld_folder
from synthnb.glyphworld.world import rendered_digits
from synthnb.images.folder import ShardFolder
from synthnb.images.scores import score_images
from synthnb.models.clip import Clip, load_clip

# row, model: floor and bar in images a second
BARS = {("H4", "ViT-B-32"): (89_600, 20_000), ("H4", "ViT-L-14"): (4_880, 2_400), ("H4b", "ViT-B-32"): (10_000, 4_000)}


def pictures(count: int, size: int, seed: int) -> torch.Tensor:
    """uint8 [N, 3, H, W]: coloured clouds with some grain, which JPEG files of photographs weigh about as much as."""
    generator = torch.Generator().manual_seed(seed)
    clouds = torch.rand(count, 3, 16, 16, generator=generator)
    return (
        (
            F.interpolate(clouds, (size, size), mode="bicubic") * 230
            + torch.rand(count, 1, size, size, generator=generator) * 20
        )
        .clamp(0, 255)
        .byte()
    )


@torch.inference_mode()
def one_by_one(clip: Clip, transform, images: torch.Tensor, texts: list[str]) -> tuple[float, list[float]]:
    """Images a second and cosines of the plain loop."""
    start, cosines = time.perf_counter(), []
    for pixels, text in zip(images, texts):
        prepared = transform(Image.fromarray(pixels.permute(1, 2, 0).numpy()))[None].to(clip.device, clip.dtype)
        image, told = clip.model.encode_image(prepared), clip.model.encode_text(clip.tokenizer([text]).to(clip.device))
        cosines.append(F.cosine_similarity(image.float(), told.float()).item())
    return len(images) / (time.perf_counter() - start), cosines


def from_tensors(clip: Clip, images: torch.Tensor, rows, batches: int) -> tuple[float, list[float]]:
    """Images a second of `ClipScore`, which scores what was just drawn, and its cosines."""
    score = ClipScore(clip, "{text}")
    score(images, rows)  # texts are encoded once
    start = time.perf_counter()
    for _ in range(batches):
        found = score(images, rows)
    return batches * len(images) / (time.perf_counter() - start), [one["clip"] for one in found]


def from_shards(clip: Clip, home: ShardFolder) -> float:
    """Images a second of `score_images`: read, decoded, hashed, compared, encoded, written."""
    shutil.rmtree(home.own / "curation", ignore_errors=True)  # scores, and CLIP's features
    start = time.perf_counter()
    table = score_images(home.path, clip, batch_size=256, progress=False).table
    return len(table) / (time.perf_counter() - start)


def check_equal(device: str) -> None:
    """Glyphworld's CLIP, which tells its digits apart, gives the cosines of the plain loop in the number type of the
    card; random weights would agree on any pictures."""
    clip = load_clip(glyphworld_folder("clip"), device=device)
    transform = open_clip.create_model_and_transforms(f"local-dir:{glyphworld_folder('clip')}")[2]
    images, labels = rendered_digits(32)
    rows = pd.DataFrame({"sense": "", "prompt": [f"a photo of an arabic digit {label}" for label in labels.tolist()]})
    tolerance = 1e-3 if clip.dtype == torch.float32 else 0.02
    _, expected = one_by_one(clip, transform, images, list(rows.prompt))
    _, cosines = from_tensors(clip, images.to(device).float() / 255, rows, 1)
    if (apart := max(abs(a - b) for a, b in zip(cosines, expected))) > tolerance:
        sys.exit(f"cosines differ by {apart:.3f}: there is nothing to compare")
    if max(abs(a - b) for a, b in zip(cosines[1:], expected)) < 2 * tolerance:
        sys.exit("the cosines of different pictures are alike: their being equal says nothing")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--images", type=int, default=4096, help="in shards")
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    gpu = torch.cuda.is_available()
    if asked.small:
        torch.set_num_threads(1)
    if not (gpu or asked.small):
        sys.exit("no GPU here: --small shows that the script runs")
    device, card = ("cuda", torch.cuda.get_device_name()) if gpu else ("cpu", platform.machine())
    judged = gpu and not asked.small and "H200" in card
    batch, images, rounds, size = (8, 16, 1, 32) if asked.small else (asked.batch, asked.images, asked.rounds, 512)
    print(
        f"{card}, {usable_cores()} cores, torch {torch.__version__}, open_clip {open_clip.__version__}, batch {batch}"
    )
    torch.manual_seed(0)
    below = []
    check_equal(device)
    with tempfile.TemporaryDirectory() as scratch:
        drawn = pictures(64, size, 0)
        home = shard_pictures(Path(scratch), images, 8, lambda n: drawn[:n], "jpeg", 64, shard_size=min(512, images))
        rows = home.plan.rows(0, batch) if batch <= images else home.plan.rows(0, images)
        for name in ("glyphworld",) if asked.small else ("ViT-B-32", "ViT-L-14"):
            if asked.small:
                clip = load_clip(glyphworld_folder("clip"), device=device)
                transform = open_clip.create_model_and_transforms(f"local-dir:{glyphworld_folder('clip')}")[2]
            else:
                net, _, transform = open_clip.create_model_and_transforms(name, device=device)
                clip = Clip(net, open_clip.get_tokenizer(name), f"random {name}", torch.device(device), torch.bfloat16)
            side = open_clip.get_model_preprocess_cfg(clip.model)["size"]
            side = side if isinstance(side, int) else side[0]
            drawn, few = pictures(len(rows), side, 1), 8 if asked.small else 64
            theirs, _ = one_by_one(clip, transform, drawn[:few], list(rows.prompt)[:few])
            on_gpu, passes = drawn.to(device).float() / 255, 2 if asked.small else 8
            found = [from_tensors(clip, on_gpu, rows, passes)[0] for _ in range(rounds)]
            rates = {"H4": statistics.median(found)}
            if name != "ViT-L-14":
                from_shards(clip, home)  # starts kernels, and pins memory
                rates["H4b"] = statistics.median(from_shards(clip, home) for _ in range(rounds))
            for row, rate in rates.items():
                floor, bar = BARS.get((row, name), (0, 0))
                share = f", {rate / floor:.0%} of the floor of {floor}, bar {bar}" if judged and bar else ""
                what = f"{side} px, from memory" if row == "H4" else f"{size} px, from JPEG shards"
                print(
                    f"{row} {name} on {card}, {what}: {rate:.0f} images a second, "
                    f"{rate / theirs:.1f}x of one by one ({theirs:.0f}){share}",
                    flush=True,
                )
                below += [f"{row} {name}"] if judged and rate < bar else []
    print(f"below the bar: {below}" if below else "no bar missed" if judged else "no bars on this device")
    return bool(below)


if __name__ == "__main__":
    sys.exit(main())
