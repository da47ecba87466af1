"""Situation: pictures with transparent pixels (PNG, WebP; RGBA, grey with alpha, palette). Every program hides another
colour under what nobody sees. Icons are often black on nothing, with black below the nothing.

Right: a picture is laid over one and the same ground (white, say) wherever it is read, so that what looks the same is
read the same, and a black shape on nothing stays a shape. Opaque pictures are read as they are.

Sources: github.com/kohya-ss/sd-scripts/issues/1269, github.com/mflux-community/mflux/pull/722
"""

from pathlib import Path

import torch
from _case import attempt, check, done
from PIL import Image, ImageDraw

from synthnb.datasets.listed import list_folder, load_images
from synthnb.datasets.pixels import read_image
from synthnb.datasets.reading import image_folder, stream_folder


def disc(hidden: tuple[int, int, int]) -> Image.Image:
    "A black disc on nothing; `hidden` is the colour under the nothing."
    alpha, picture = Image.new("L", (64, 64), 0), Image.new("RGB", (64, 64), hidden)
    for layer, ink in ((alpha, 255), (picture, (0, 0, 0))):
        ImageDraw.Draw(layer).ellipse((12, 12, 52, 52), fill=ink)
    picture.putalpha(alpha)
    return picture


Path("set/disc").mkdir(parents=True)
disc((0, 0, 0)).save("set/disc/hidden_black.png")
disc((255, 255, 255)).save("set/disc/hidden_white.png")
disc((0, 255, 0)).save("set/disc/hidden_green.png")
disc((255, 0, 255)).save("set/disc/hidden_magenta.webp", lossless=True, exact=True)
disc((0, 0, 0)).convert("LA").save("set/disc/grey.png")
palette = Image.new("P", (64, 64), 0)
palette.putpalette([255, 0, 255, 0, 0, 0])
ImageDraw.Draw(palette).ellipse((12, 12, 52, 52), fill=1)
palette.save("set/disc/palette.png", transparency=0)
files = sorted(Path("set/disc").iterdir())
Path("set/opaque").mkdir()
Image.new("RGB", (64, 64), (200, 30, 90)).save("set/opaque/one.png")

listed = list_folder("set")["train"]
doors = {
    "read_image": lambda: [read_image(file, 32) for file in files],
    "list_folder and load_images": lambda: list(load_images(listed, 32).images[listed.labels == 0]),
    "stream_folder": lambda: [
        image for images, _ in stream_folder("set", ["disc"], progress=False) for image in images
    ],
}
seen = {}
for what, read in doors.items():
    found = attempt(read)
    if not check(f"{what} reads them", found.error is None, found.said):
        continue
    grounds = [tuple(image[:, 0, 0].tolist()) for image in found.value]
    middles = [tuple(image[:, image.shape[1] // 2, image.shape[2] // 2].tolist()) for image in found.value]
    seen[what] = sorted(set(grounds))
    check(f"{what}: one ground for all", len(seen[what]) == 1, seen[what])
    check(
        f"{what}: the black disc can be seen on every ground",
        all(max(abs(a - b) for a, b in zip(*pair)) > 60 for pair in zip(grounds, middles)),
        f"{len([1 for pair in zip(grounds, middles) if pair[0] == pair[1]])} of {len(grounds)} are one black square",
    )
check("the same ground by every door", len({ground for grounds in seen.values() for ground in grounds}) == 1)
check(
    "an opaque picture is read as it is",
    bool((read_image("set/opaque/one.png", 32) == torch.tensor([200, 30, 90])[:, None, None]).all()),
)

for shape in ("ellipse", "rectangle"):
    Path("icons", shape).mkdir(parents=True)
    for i in range(10):
        alpha, picture = Image.new("L", (64, 64), 0), Image.new("RGB", (64, 64), (0, 0, 0))
        getattr(ImageDraw.Draw(alpha), shape)((2 * i, 10, 2 * i + 30, 40), fill=255)
        picture.putalpha(alpha)
        picture.save(f"icons/{shape}/{i}.png")
found = attempt(lambda: {side: len(one) for side, one in image_folder("icons").items()})
check("black icons of two shapes open as two classes", found.error is None, found.said or found.value)
done()
