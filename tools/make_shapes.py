"""Draw the shapes of glyphworld's animals, clothes and things once, from openly licensed icons, into one small file.

    python tools/make_shapes.py FOLDER      # FOLDER holds the unpacked npm packages that HANDS names, one folder each

Each hand draws each thing in 64x64 pixels with 16 colours, or not at all. The file holds the licences and credits, too;
whoever uses or rebuilds the world needs neither npm nor this script. It needs `resvg-py` (pip), which renders SVG.
"""

import io
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import binary_fill_holes

from synthnb.glyphworld.drawing import _SHAPES, UNLEARNED_HANDS
from synthnb.glyphworld.signs import THINGS

SIZE, COLOURS = 64, 16
# (hand, thing) -> the drawing that really shows it, "" for none: these cats and dogs are heads, this ewe has horns
OTHERWISE = {
    ("fxemoji", "cat-face"): "cat",
    ("fxemoji", "dog-face"): "dog",
    ("fxemoji", "cat"): "",
    ("fxemoji", "dog"): "",
    ("fxemoji", "bird"): "",
    ("noto-v1", "ewe"): "",
}
# The hands of what no model learns draw this and nothing else.
PULLOVERS = {
    "icon-park": "sweater",
    "icon-park-outline": "clothes-crew-neck",
    "icon-park-solid": "clothes-turtleneck",
    "hugeicons": "jumpers",
}
WHITE, BLUE = (255, 255, 255), (47, 136, 255)  # IconPark's blue
# hand -> what its lines enclose, if not white: as for emoji, one hand of white and black is enough.
ENCLOSED = {"icon-park-solid": BLUE, "hugeicons": BLUE}
HANDS = {  # hand -> (npm package, version, licence, whose drawings)
    "fluent-flat": ("@iconify-json/fluent-emoji-flat", "1.2.6", "MIT", "Fluent Emoji, Microsoft Corporation"),
    "fluent-line": ("@iconify-json/fluent-emoji-high-contrast", "1.2.6", "MIT", "Fluent Emoji, Microsoft Corporation"),
    "fluent-3d": ("@lobehub/fluent-emoji-3d", "1.1.0", "MIT", "Fluent Emoji, Microsoft Corporation; packed by LobeHub"),
    "noto": ("@iconify-json/noto", "1.2.9", "Apache-2.0", "Noto Emoji, Google Inc"),
    "noto-v1": ("@iconify-json/noto-v1", "1.2.5", "Apache-2.0", "Noto Emoji, older drawings, Google Inc"),
    "emojione": ("@iconify-json/emojione", "1.2.3", "CC-BY-4.0", "EmojiOne 2, Emoji One (kept as EmojiTwo)"),
    "fxemoji": ("@iconify-json/fxemoji", "1.2.2", "Apache-2.0", "FxEmojis, Mozilla"),
    "twemoji": (
        "@iconify-json/twemoji",
        "1.2.5",
        "CC-BY-4.0",
        "Twitter Emoji, Twitter and contributors (jdecked/twemoji)",
    ),
    "icon-park": ("@iconify-json/icon-park", "1.2.4", "Apache-2.0", "IconPark, ByteDance"),
    "icon-park-outline": ("@iconify-json/icon-park-outline", "1.2.4", "Apache-2.0", "IconPark, outlines, ByteDance"),
    "icon-park-solid": ("@iconify-json/icon-park-solid", "1.2.4", "Apache-2.0", "IconPark, solid, ByteDance"),
    "hugeicons": ("@iconify-json/hugeicons", "1.2.35", "MIT", "Huge Icons, Hugeicons"),
}


def package_folder(root: Path, package: str) -> Path:
    """Where a package was unpacked; FileNotFoundError says how to get it, ValueError that its version or licence is
    another."""
    _, version, licence, _ = next(facts for facts in HANDS.values() if facts[0] == package)
    folder = root / package.lstrip("@").replace("/", "-")
    if not (folder / "package.json").is_file():
        raise FileNotFoundError(f"{folder} is missing: npm pack {package}@{version}, and unpack it there")
    told = json.loads((folder / "package.json").read_text())
    if (told["version"], told["license"]) != (version, licence):
        raise ValueError(
            f"{folder} holds version {told['version']} under {told['license']}, not {version} under {licence}"
        )
    return folder


def render_svg(folder: Path, name: str) -> Image.Image | None:
    """A drawing of an Iconify package by its name."""
    import resvg_py

    icons = json.loads((folder / "icons.json").read_text())
    drawn = icons["icons"].get(icons.get("aliases", {}).get(name, {}).get("parent", name))
    if drawn is None:
        return None
    width, height = (drawn.get(side, icons.get(side, 16)) for side in ("width", "height"))
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="0 0 {width} {height}">{drawn["body"]}</svg>'
    )
    return Image.open(
        io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg.replace("currentColor", "#000"), width=256, height=256)))
    )


def draw(root: Path, hand: str, name: str) -> Image.Image | None:
    """One drawing, RGBA; None where this hand has none."""
    folder = package_folder(root, HANDS[hand][0])
    if hand == "fluent-3d":  # named by code point, which another package knows
        points = json.loads((package_folder(root, HANDS["noto"][0]) / "chars.json").read_text())
        code = next(code for code, told in points.items() if told == name)
        files = [folder / "assets" / f"{c}.webp" for c in (code, f"{code}-fe0f")]
        return next((Image.open(path).convert("RGBA") for path in files if path.is_file()), None)
    image = render_svg(folder, name)
    return image and image.convert("RGBA")


def as_shape(image: Image.Image, enclosed: tuple[int, int, int] = WHITE) -> Image.Image:
    """Cropped to the drawing and fitted into the square, holes filled in: alpha is the whole outline."""
    pixels = np.asarray(image).astype(np.float32)
    alpha = pixels[..., 3]
    inside = binary_fill_holes(alpha > 96)
    whole = np.where(inside, 255, alpha)
    # Where a drawing lets the paper through, inside its outline, it means white, or the colour of the garment.
    paper = np.float32(enclosed) * (whole - alpha)[..., None]
    colour = (pixels[..., :3] * alpha[..., None] + paper) / np.maximum(whole, 1)[..., None]
    rgba = Image.fromarray(np.dstack([colour, whole]).clip(0, 255).astype(np.uint8))
    rgba = rgba.crop(Image.fromarray((whole > 16).astype(np.uint8) * 255).getbbox())
    scale = 0.88 * SIZE / max(rgba.size)
    rgba = rgba.resize([max(1, round(side * scale)) for side in rgba.size], Image.Resampling.LANCZOS)
    square = Image.new("RGBA", (SIZE, SIZE), (255, 255, 255, 0))
    square.paste(rgba, ((SIZE - rgba.width) // 2, (SIZE - rgba.height) // 2))
    return square


def in_few_colours(shape: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    """Indices [64, 64] into a palette [16, 4]."""
    few = shape.quantize(COLOURS, method=Image.Quantize.FASTOCTREE)
    palette = np.zeros((COLOURS, 4), np.uint8)
    found = np.frombuffer(few.palette.getdata()[1], np.uint8).reshape(-1, 4)[:COLOURS]
    palette[: len(found)] = found
    return np.asarray(few), palette


def main(root: Path) -> None:
    things, hands, indices, palettes = [], [], [], []
    for hand in HANDS:
        names = {thing.key: OTHERWISE.get((hand, thing.key), thing.chars) for thing in THINGS}
        if hand in UNLEARNED_HANDS:
            names = {"pullover": PULLOVERS[hand]}
        for key, name in names.items():
            if name and (image := draw(root, hand, name)):
                index, palette = in_few_colours(as_shape(image, ENCLOSED.get(hand, WHITE)))
                things.append(key), hands.append(hand), indices.append(index), palettes.append(palette)
    credits = {
        hand: dict(
            package=p,
            version=v,
            licence=licence,
            drawings=whose,
            changes=f"rendered at 64x64 in 16 colours, holes filled in {'blue' if hand in ENCLOSED else 'white'}",
        )
        for hand, (p, v, licence, whose) in HANDS.items()
    }
    packed = np.stack(indices)
    np.savez_compressed(
        _SHAPES,
        thing=np.array(things),
        hand=np.array(hands),
        index=packed[..., ::2] << 4 | packed[..., 1::2],
        palette=np.stack(palettes),
        credits=np.array(json.dumps(credits)),
    )
    print(
        f"{len(things)} drawings of {len(set(things))} things by {len(HANDS)} hands, "
        f"{_SHAPES.stat().st_size / 1e3:.0f} kB: {_SHAPES.name}"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
