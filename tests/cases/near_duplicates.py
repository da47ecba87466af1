"""Situation: a folder holds some pictures twice, the second time smaller and compressed again, with a rim of 2 or 5 %
cut away, mirrored, or turned by a quarter.

Right: a picture and its copy come to lie on one side when the folder is split, or it is said that such copies are not
looked for where the split is made. Different pictures are still parted as before.

Sources: arxiv.org/abs/1902.00423, github.com/mrdbourke/nutrify/issues/50, github.com/cleanlab/cleanlab/issues/1157
"""

from pathlib import Path

import numpy as np
from _case import attempt, check, done
from PIL import Image

from synthnb.datasets.duplicates import content_hashes
from synthnb.datasets.pixels import read_image
from synthnb.datasets.sets import open_real

COPIES = {
    "smaller and compressed": lambda image: image.resize((image.width * 3 // 4, image.height * 3 // 4)),
    "2 % cut away": lambda image: image.crop((image.width // 50, image.height // 50, image.width, image.height)),
    "5 % cut away": lambda image: image.crop((image.width // 20, image.height // 20, image.width, image.height)),
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "turned by a quarter": lambda image: image.transpose(Image.Transpose.ROTATE_90),
}


def cloudy(seed: int, side: int = 160) -> Image.Image:
    "Coloured clouds with the spectrum of photographs, each one different."
    noise, steps = np.random.default_rng(seed).standard_normal((3, side, side)), np.fft.fftfreq(side)
    length = np.hypot(steps[:, None], steps[None]).clip(1 / side)
    picture = np.fft.ifft2(np.fft.fft2(noise) / length**1.3).real
    low, high = picture.min((1, 2), keepdims=True), picture.max((1, 2), keepdims=True)
    return Image.fromarray(((picture - low) / (high - low) * 255).astype(np.uint8).transpose(1, 2, 0).copy())


def pairs_apart(change, folder: str) -> tuple[int, int]:
    "Of the pairs of picture and copy, how many lie on two sides, and how many there are."
    for label, name in enumerate(("hill", "lake")):
        Path(folder, name).mkdir(parents=True)
        for i in range(16):
            image = cloudy(100 * label + i)
            image.save(f"{folder}/{name}/{i}.png")
            change(image).save(f"{folder}/{name}/{i}_copy.jpg", quality=80)
    found = attempt(lambda: open_real(folder, 64))
    if found.error:
        return -1, found.said
    side = {h: name for name, images in found.value.items() for h in content_hashes(images.images)}
    sides = [
        [side[content_hashes(read_image(f"{folder}/{name}/{i}{end}", 64)[None])[0]] for end in (".png", "_copy.jpg")]
        for name in ("hill", "lake")
        for i in range(16)
    ]
    return sum(a != b for a, b in sides), found.said


for n, (what, change) in enumerate(COPIES.items()):
    apart, said = pairs_apart(change, f"set{n}")
    told = any(word in said.lower() for word in ("copies", "duplicate", "nearly the same", "near-duplicate"))
    check(
        f"{what}: pairs lie on one side",
        apart == 0 or (apart > 0 and told),
        f"{apart} of 32 pairs lie on two sides; said: {said or 'nothing'}" if apart else "",
    )

for label, name in enumerate(("hill", "lake")):
    Path("different", name).mkdir(parents=True)
    for i in range(20):
        cloudy(1000 + 100 * label + i).save(f"different/{name}/{i}.png")
found = attempt(lambda: {side: len(images) for side, images in open_real("different", 64).items()})
check(
    "40 different pictures are parted as before",
    found.value == {"train": 24, "val": 8, "test": 8},
    found.said or found.value,
)
done()
