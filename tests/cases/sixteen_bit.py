"""Situation: grey PNGs of 16 bits, as microscopes, X-ray and depth cameras write them; some use 12 of the 16 bits only.

Right: one and the same picture by every door (read_image, a listed folder, a streamed folder). A picture that is nearly
black because its values use a part of the 16 bits is stretched, or a warning says so.

Sources: github.com/pytorch/pytorch/issues/20524, github.com/pytorch/vision/issues/2218,
github.com/python-pillow/Pillow/issues/3011
"""

from pathlib import Path

import numpy as np
from _case import attempt, check, done
from PIL import Image

from synthnb.datasets.listed import list_folder, load_images
from synthnb.datasets.pixels import read_image
from synthnb.datasets.reading import stream_folder

ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
for name, turned in {"a": ramp, "b": ramp[::-1].copy()}.items():
    Path("full", name).mkdir(parents=True)
    Image.fromarray(turned).save(f"full/{name}/0.png")
Image.fromarray((ramp >> 8).astype(np.uint8)).save("eight_bits.png")
Path("twelve").mkdir()
Image.fromarray((ramp >> 4).astype(np.uint16)).save("twelve/0.png")  # the same picture in 12 of 16 bits

wanted = read_image("eight_bits.png", 64).float()
doors = {
    "read_image": lambda: read_image("full/a/0.png", 64),
    "list_folder and load_images": lambda: load_images(list_folder("full")["train"], 64).images[0],
    "stream_folder": lambda: next(iter(stream_folder("full", ["a", "b"], 1, progress=False)))[0][0],
}
for what, read in doors.items():
    found = attempt(read)
    off = None if found.error else (found.value.float() - wanted).abs().mean().item()
    check(
        f"{what}: 16 bits are the picture that 8 bits are",
        off is not None and off < 2,
        found.said
        or f"mean {found.value.float().mean():.1f} of {wanted.mean():.1f}, {(found.value > 250).float().mean():.0%} white",
    )

found = attempt(lambda: read_image("twelve/0.png", 64))
mean = None if found.error else found.value.float().mean().item()
told = any(word in found.said.lower() for word in ("16", "12", "dark", "bit", "range"))
check(
    "12 of 16 bits: no black picture without a word",
    told or (mean is not None and abs(mean - wanted.mean().item()) < 40),
    found.said or f"mean {mean:.1f} of {wanted.mean():.1f}, without a word",
)
done()
