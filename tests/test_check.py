"""Whatever a user's folder or table looks like: every file is read, left out with a reason, or the whole is refused.

The refusal is in words, and every door reads the same pixels."""

import os
import shutil
import tempfile
import warnings
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from synthnb.cli import app
from synthnb.datasets.folders import split_word
from synthnb.datasets.layout import read_layout
from synthnb.datasets.listed import _read_batches, list_folder, load_images
from synthnb.datasets.pixels import open_image, read_image
from synthnb.datasets.reading import image_folder, stream_folder
from synthnb.studies import check_reading as reading
from synthnb.studies.check import check_images, check_page
from synthnb.studies.check_reading import smallest_gain

torch.set_num_threads(1)
WORDS = [
    "train",
    "Training",
    "test",
    "Testing",
    "val",
    "dev",
    "eval",
    "images",
    "masks",
    "unlabelled",
    "cat",
    "dog",
    "Cat",
    "créme",
    "cre\u0301me",
    "1. owl",
    "2. cat",
    "fold1",
    "fold2",
    "@eaDir",
    ".hidden",
    "a b",
    "猫",
    "%s",
    "{0}",
    "AC DC",
    "😀",
    "\u202eabc",
    "n02085620-Chihuahua",
]
ENDS = [".jpg", ".PNG", ".jfif", ".tif", ".gif", ".HEIC", ".txt", ".mp4", "", ".csv", ".jpg.zip"]
FAST = settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
names = st.one_of(
    st.sampled_from(WORDS),
    st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=8).filter(
        lambda name: name not in (".", "..")
    ),
)
files = st.tuples(st.lists(names, max_size=3), names, st.sampled_from(ENDS))


def checked(root) -> None:
    """Read a folder or table: no error but a refusal, and no file without a word."""
    try:
        layout = read_layout(root)
    except (ValueError, FileNotFoundError) as refused:
        assert str(refused).strip()
        return
    read = [path for split in layout.splits.values() for path, _ in split]
    named = {one.path for one in layout.left_out}
    assert len(read) == len(set(read)) == layout.images
    for path in layout.root.rglob("*"):
        inner = path.relative_to(layout.root).as_posix()
        if path.is_file() and path != Path(root):
            above = {parent.as_posix() for parent in Path(inner).parents}
            assert (inner in read) != (inner in named or bool(above & named)), f"{inner} is lost, or there twice"
    assert all(0 <= label < len(layout.classes) for split in layout.splits.values() for _, label in split)
    assert all({label for _, label in split} == set(range(len(layout.classes))) for split in layout.splits.values())


@FAST
@given(st.lists(files, max_size=14))
def test_no_layout_raises_anything_but_a_refusal_and_no_file_is_lost(listed):
    root = Path(tempfile.mkdtemp())
    try:
        for folders, name, end in listed:
            path = root.joinpath(*folders, name + end)
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
            except OSError:  # a file where a folder should be, or a name that is too long
                continue
        checked(root)
    finally:
        shutil.rmtree(root)


@FAST
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a.jpg", "b", "sub/c.png", "d.jpg", "", "../x.jpg", "a.jpg "]),
            st.one_of(st.sampled_from(["cat", "Cat", "007", "NA", ""]), st.text(max_size=5)),
            st.sampled_from(["train", "dev", "test", "often", ""]),
        ),
        max_size=8,
    ),
    st.sampled_from(["file,label", "image_id;class", "path\tlabel\tsplit", "file,label,split", "name,what", ""]),
    st.booleans(),
)
def test_no_table_raises_anything_but_a_refusal(rows, head, bom):
    root = Path(tempfile.mkdtemp())
    try:
        (root / "sub").mkdir()
        for name in ("a.jpg", "b.jpg", "sub/c.png", "d.jpg"):
            (root / name).touch()
        mark = next((mark for mark in ",;\t" if mark in head), ",")
        lines = [head, *(mark.join(row[: head.count(mark) + 1]) for row in rows)]
        (root / "labels.csv").write_text("\n".join(lines), encoding="utf-8-sig" if bom else "utf-8")
        checked(root / "labels.csv")
    finally:
        shutil.rmtree(root)


@pytest.mark.parametrize(
    "content",
    [b"", b"\0" * 40, "file,label\na.jpg,caf\xe9".encode("latin-1"), b'file,label\n"a.jpg,x', b"PAR1", b"file,label\n"],
)
def test_a_damaged_table_is_refused_by_name(content, tmp_path):
    for name in ("labels.csv", "labels.parquet"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match="labels"):
            read_layout(tmp_path / name)


def test_words_of_splits():
    assert {split_word(name) for name in ("train", "Training", "TRAIN_set", "trainset", "train-2017")} == {"train"}
    assert {split_word(name) for name in ("dev", "valid", "validation_set")} == {"val"} and {
        split_word(name) for name in ("eval", "testing")
    } == {"test"}
    assert {
        split_word(name) for name in ("trains", "latest", "contest", "set", "data", "training wheels", "0", "")
    } == {None}


# ---- pixels: one reader


def pictures(home: Path) -> None:
    """One picture of every kind."""
    home.mkdir(parents=True)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)).resize((120, 80))
    clear = noise.copy()
    clear.putalpha(Image.linear_gradient("L").resize(noise.size))
    deep = Image.fromarray(np.linspace(0, 4095, 64 * 96).reshape(64, 96).astype(np.uint16))
    exif = noise.getexif()
    exif[0x0112] = 8
    for name, kind in {
        "a.jpg": "JPEG",
        "b.jfif": "JPEG",
        "c.jpe": "JPEG",
        "d.png": "PNG",
        "e.webp": "WEBP",
        "f.bmp": "BMP",
        "g.gif": "GIF",
        "h.tif": "TIFF",
        "i.avif": "AVIF",
    }.items():
        noise.save(home / name, kind)
    for name in ("j.png", "k.webp", "l.tif"):
        clear.save(home / name)
    noise.convert("L").save(home / "m.png")
    noise.convert("1").save(home / "n.png")
    noise.convert("CMYK").save(home / "o.jpg")
    noise.convert("P").save(home / "p.gif", save_all=True, append_images=[noise.rotate(90).convert("P")])
    deep.save(home / "q.png")
    deep.save(home / "r.tif")
    noise.save(home / "s.jpg", exif=exif)
    clear.convert("LA").save(home / "t.png")
    Image.fromarray(np.linspace(-3, 9, 600, dtype=np.float32).reshape(20, 30)).save(home / "u.tif")


@pytest.mark.parametrize("fit", ["crop", "pad", "resize"])
def test_every_door_reads_the_same_pixels(fit, tmp_path):
    pictures(tmp_path / "kinds" / "one")
    shutil.copytree(tmp_path / "kinds" / "one", tmp_path / "kinds" / "two")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        listed = list_folder(tmp_path / "kinds")["train"]
        listed = type(listed)(listed.items, listed.labels, listed.classes, listed.fetch, listed.name, fit)
        memory = {path: read_image(tmp_path / "kinds" / path, 32, fit) for path in listed.items}
        assert len(memory) == 42
        held = load_images(listed, 32).images
        streamed = torch.cat([batch for batch, _ in _read_batches(listed, 32, 5)])
        plain = [image for images, _ in stream_folder(tmp_path / "kinds", ["one"], progress=False) for image in images]
    for path, one, other in zip(listed.items, held, streamed):
        assert torch.equal(memory[path], one) and torch.equal(one, other), path
    whole = {np.asarray(open_image(path)).tobytes() for path in (tmp_path / "kinds" / "one").iterdir()}
    assert {image.permute(1, 2, 0).numpy().tobytes() for image in plain} == whole
    assert open_image(tmp_path / "kinds/one/s.jpg").size == (80, 120)


def test_twelve_bits_are_the_picture_that_eight_are(tmp_path):
    ramp = np.linspace(0, 65535, 4096).reshape(64, 64).astype(np.uint16)
    Image.fromarray((ramp >> 8).astype(np.uint8)).save(tmp_path / "8.png")
    wanted = read_image(tmp_path / "8.png", 64).float()
    for bits in (10, 12, 14, 16):
        for end in ("png", "tif"):
            Image.fromarray(ramp >> (16 - bits)).save(tmp_path / f"{bits}.{end}")
            assert (read_image(tmp_path / f"{bits}.{end}", 64) - wanted).abs().mean() < 1


@pytest.mark.parametrize("end", ["heic", "avif"])
def test_photographs_of_telephones_are_read_where_their_plugins_are(end, tmp_path):
    smooth = np.linspace(0, 255, 64 * 64 * 3).reshape(64, 64, 3).astype(np.uint8)
    Image.fromarray(smooth).save(tmp_path / f"a.{end}", quality=95)
    Image.fromarray(smooth).save(tmp_path / "a.png")
    assert (read_image(tmp_path / f"a.{end}", 64).float() - read_image(tmp_path / "a.png", 64).float()).abs().mean() < 3


# ---- the command


def photo(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)).resize(
        (96, 72), Image.BICUBIC
    )


def test_an_image_that_is_too_large_is_refused_in_words(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    photo(0).save(tmp_path / "large.png")
    assert (
        reading.look_at(tmp_path / "large.png").error
        == "it has more than 2,000 pixels, which are not opened: make it smaller"
    )
    with pytest.raises(ValueError, match="make it smaller"):
        open_image(tmp_path / "large.png")


def test_check_names_what_a_run_would_refuse(tmp_path):
    for split, first in (("train", 0), ("test", 100)):
        for label, name in enumerate(("hill", "lake")):
            (tmp_path / "set" / split / name).mkdir(parents=True)
            for i in range(4):
                photo(first + 10 * label + i).save(tmp_path / "set" / split / name / f"{i}.png")
    run = CliRunner().invoke(
        app, ["check", str(tmp_path / "set"), "--out", str(tmp_path / "page.html"), "--size", "64"]
    )
    assert run.exit_code == 0 and "8 train, 8 test" in run.output and (tmp_path / "page.html").is_file(), run.output
    photo(2).transpose(Image.Transpose.ROTATE_90).save(tmp_path / "set/test/hill/turned.png")
    (tmp_path / "set/test/lake/broken.jpg").write_bytes(b"no image")
    run = CliRunner().invoke(
        app, ["check", str(tmp_path / "set"), "--out", str(tmp_path / "page.html"), "--size", "64"]
    )
    assert (
        run.exit_code == 1
        and "test/hill/turned.png" in run.output
        and "train/hill/2.png" in run.output
        and "broken.jpg" in run.output
    ), run.output
    (tmp_path / "file").touch()
    lost = CliRunner().invoke(app, ["check", str(tmp_path / "set"), "--out", str(tmp_path / "file/page.html")])
    assert lost.exit_code == 1 and "broken.jpg" in lost.output, "what was found is told though the page has no place"
    page = (tmp_path / "page.html").read_text()
    assert (
        "A run refuses these images." in page
        and "test/hill/turned.png" in page
        and "prefers-color-scheme: dark" in page
        and "http" not in page.replace("http-equiv", "")
    )
    with pytest.raises(ValueError):
        image_folder(tmp_path / "set", 32)
    masks = tmp_path / "masks"
    for name in ("images", "masks"):
        (masks / name).mkdir(parents=True)
        photo(1).save(masks / name / "1.png")
    found = check_images(masks)
    assert found.refused and "masks" in str(found) and "A run refuses" in check_page(found)


def test_the_smallest_gain_falls_with_the_test_set():
    gains = [smallest_gain(n) for n in (0, 1, 30, 100, 1000, 100_000)]
    assert gains[:2] == [1, 1] and gains == sorted(gains, reverse=True) and gains[4] == pytest.approx(0.028, abs=1e-3)


def test_a_large_set_keeps_no_pixels_and_finds_equal_files(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    for i in range(30):
        file = tmp_path / f"set/{'ab'[i % 2]}/{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(file)
    shutil.copy(tmp_path / "set/a/0.png", tmp_path / "set/a/again.png")
    layout = read_layout(tmp_path / "set")
    small = reading.look_at_all(layout, 2, False)
    assert list(small) == [path for path, _ in layout.splits["train"]] and all(
        one.grey is not None for one in small.values()
    )
    monkeypatch.setattr(reading, "_MOST", 20)
    large = reading.look_at_all(layout, 2, False)
    assert [one.contrast for one in large.values()] == [one.contrast for one in small.values()]
    assert all(one.grey is None for one in large.values())
    told = [one for one in reading.findings_of(layout, large, 32, "crop") if one.what == "copies"]
    assert told[0].groups == [["a/0.png", "a/again.png"]] and "by the content of their files only" in told[-1].told
