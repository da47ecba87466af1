"""Layouts that users bring, each read by the classes and splits that it says or refused with what to do."""

import json
import warnings
from pathlib import Path

import datasets
import pandas as pd
import pytest
import torch
from PIL import Image

from synthnb.data import LabelledImages
from synthnb.datasets.layout import read_layout
from synthnb.datasets.reading import image_folder
from synthnb.datasets.sets import list_set
from synthnb.generate import show_beside


def put(path: Path, number: int = 0) -> Path:
    """An image of its own colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (number * 7 % 256, number * 31 % 256, number % 256)).save(path)
    return path


# ---- a table of labels for each split


def write(path: Path, rows: list[dict]) -> None:
    """A table as one of the three kinds that Hugging Face's imagefolder reads."""
    table = pd.DataFrame(rows)
    if path.suffix == ".parquet":
        table.to_parquet(path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        table.to_csv(path, index=False)


def hub_split(
    folder: Path, name: str, images: int = 6, inside: str = "", numbers: bool = False, first: int = 0
) -> None:
    """Images and a metadata file of one split; the label is no part of any path."""
    rows = []
    for i in range(images):
        file = f"{inside}{i:04}.png"
        put(folder / file, first + i)
        rows.append({"file_name": file, "label": i % 2 if numbers else ("cat", "dog")[i % 2], "text": f"no. {i}"})
    write(folder / name, rows)


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl", "metadata.parquet"])
@pytest.mark.parametrize("inside", ["", "images/", "a/b/"])
@pytest.mark.parametrize("numbers", [False, True])
def test_a_metadata_file_in_each_split_is_read(tmp_path, name, inside, numbers):
    hub_split(tmp_path / "train", name, 8, inside, numbers)
    hub_split(tmp_path / "validation", name, 2, inside, numbers, first=20)
    hub_split(tmp_path / "test", name, 4, inside, numbers, first=30)
    found = read_layout(tmp_path)
    assert found.classes == (("0", "1") if numbers else ("cat", "dog")) and found.own_splits
    assert {split: len(files) for split, files in found.splits.items()} == {"train": 8, "val": 2, "test": 4}
    assert found.splits["test"][1] == (f"test/{inside}0001.png", 1) and not found.told()
    assert {split: len(images) for split, images in image_folder(tmp_path, 8).items()} == {
        "train": 8,
        "val": 2,
        "test": 4,
    }


def test_metadata_files_below_a_folder_of_an_archive_are_read(tmp_path):
    for split, first in (("train", 0), ("test", 50)):
        hub_split(tmp_path / "pets/data" / split, "metadata.csv", first=first)
    assert {split: files[0] for split, files in read_layout(tmp_path).splits.items()} == {
        "train": ("pets/data/train/0000.png", 0),
        "test": ("pets/data/test/0000.png", 0),
    }


def test_a_test_folder_without_metadata_has_no_labels(tmp_path):
    hub_split(tmp_path / "train", "metadata.csv")
    put(tmp_path / "test/1.png")
    found = read_layout(tmp_path)
    assert not found.own_splits and list(found.splits) == ["train"] and "1 x not named in" in found.told()


def test_tables_of_splits_that_lie_on_top_are_read(tmp_path):
    for split, first in (("train", 0), ("test", 50)):
        rows = [{"id": f"{first + i}", "label": ("cat", "dog")[i % 2]} for i in range(4)]
        for row in rows:
            put(tmp_path / "images" / f"{row['id']}.png", int(row["id"]))
        write(tmp_path / f"{split}.csv", rows)
    found = read_layout(tmp_path)
    assert found.own_splits and found.splits["test"][0] == ("images/50.png", 0) and len(found.splits["train"]) == 4


def test_one_table_on_top_takes_splits_from_the_folders_that_it_names(tmp_path):
    rows = []
    for i in range(8):
        file = f"{'test' if i > 5 else 'train'}/{i}.png"
        put(tmp_path / file, i)
        rows.append({"file_name": file, "label": ("cat", "dog")[i % 2]})
    write(tmp_path / "metadata.csv", rows)
    found = read_layout(tmp_path)
    assert found.own_splits and [path for path, _ in found.splits["test"]] == ["test/6.png", "test/7.png"]


def test_class_folders_decide_beside_captions(tmp_path):
    for split in ("train", "test"):
        rows = []
        for i, name in enumerate(("cat", "dog")):
            put(tmp_path / split / name / "1.png", i)
            rows.append({"file_name": f"{name}/1.png", "text": f"a {name}"})
        write(tmp_path / split / "metadata.csv", rows)
    found = read_layout(tmp_path)
    assert found.classes == ("cat", "dog") and len(found.splits["test"]) == 2 and not found.told()


def test_captions_alone_are_no_classes(tmp_path):
    write(tmp_path / "metadata.csv", [{"file_name": put(tmp_path / f"{i}.png").name, "text": f"no. {i}"} for i in "12"])
    with pytest.raises(ValueError, match="are none of files and labels"):
        read_layout(tmp_path)


@pytest.mark.parametrize("swapped", [False, True])
def test_a_metadata_file_is_mentioned_where_it_contradicts_the_folders(tmp_path, swapped):
    for split in ("train", "test"):
        rows = []
        for i in range(4):
            name = ("cat", "dog")[i % 2]
            put(tmp_path / split / name / f"{i}.png", i)
            rows.append({"file_name": f"{name}/{i}.png", "label": ("cat", "dog")[i // 2] if swapped else i % 2})
        write(tmp_path / split / "metadata.jsonl", rows)
    told = read_layout(tmp_path).told()
    assert ("train/metadata.jsonl, test/metadata.jsonl is not read" in told) == swapped == bool(told)


def test_metadata_files_that_disagree_name_themselves(tmp_path):
    hub_split(tmp_path / "train", "metadata.csv")
    hub_split(tmp_path / "test", "metadata.csv", 1)
    with pytest.raises(ValueError, match=r"train/metadata.csv and test/metadata.csv: test has no image of 'dog'"):
        read_layout(tmp_path)
    (tmp_path / "test/0000.png").unlink()
    with pytest.raises(ValueError, match=r"test/metadata.csv: 1 of its files are not below .*test, such as '0000.png'"):
        read_layout(tmp_path)


# ---- paths of tables


@pytest.mark.parametrize(
    "form",
    ["C:\\data\\set\\images\\{}\\{}.PNG", "/data/me/set/images/{}/{}.png", "set/images/{}/{}.png", "./images/{}/{}"],
)
def test_paths_of_another_machine_are_found_by_their_ends(tmp_path, form):
    lines = ["\ufefffile;label"]
    for i in range(6):
        name = ("three", "seven")[i % 2]
        put(tmp_path / "images" / name / f"{i // 2}.png", i)  # the same file names under both classes
        lines.append(f"{form.format(name, i // 2)};{name}")
    (tmp_path / "labels.csv").write_text("\r\n".join(lines), encoding="utf-8")
    found = read_layout(tmp_path / "labels.csv")
    assert found.splits["train"][:2] == [("images/seven/0.png", 0), ("images/seven/1.png", 0)] and found.images == 6


def test_a_name_that_two_files_end_with_is_asked_for(tmp_path):
    for folder in ("a", "b"):
        put(tmp_path / folder / "1.png")
    (tmp_path / "labels.csv").write_text("file,label\n/data/c/1.png,cat\n/data/c/1.png,cat\n")
    with pytest.raises(ValueError, match="1 of its files are not below"):
        read_layout(tmp_path / "labels.csv")


def test_a_very_long_class_name_leaves_room_for_images():
    data = LabelledImages(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.tensor([0, 1]), ("x" * 200, "cat"))
    with warnings.catch_warnings(action="error"):  # matplotlib's, of a layout that it could not make
        figure = show_beside(data, data)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["x" * 23 + "…", "cat"]


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.parquet"])
@pytest.mark.parametrize("labels", [["cat", "dog"], {"animal": "cat"}])
def test_several_labels_of_an_image_are_no_class(tmp_path, name, labels):
    write(tmp_path / name, [{"file_name": put(tmp_path / f"{i}.png", i).name, "label": labels} for i in range(4)])
    with pytest.raises(ValueError, match=f"{name}: the column 'label' holds lists, such as .*: give one label"):
        read_layout(tmp_path)


def test_folders_without_tables_are_looked_through_once(tmp_path, monkeypatch):
    """A second look took twelve seconds for a million images."""
    from synthnb.datasets import folders, layout

    for i in range(4):
        put(tmp_path / f"class {i % 2}" / f"{i}.png", i)
    tops, scan = [], folders.scan

    def counted(root, left_out, path="", above=()):
        tops.extend([root] if not path else [])
        return scan(root, left_out, path, above)

    monkeypatch.setattr(folders, "scan", counted)
    monkeypatch.setattr(layout, "scan", counted)
    assert len(read_layout(tmp_path).classes) == 2 and tops == [tmp_path]


def test_images_inside_of_parquet_are_named_with_hf(tmp_path):
    """What `hf download` and `synthnb export --format parquet` write was "only one ('data')" class."""
    kinds = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    content = [{"bytes": put(tmp_path / "x.png", i).read_bytes(), "path": None} for i in range(4)]
    (tmp_path / "set" / "data").mkdir(parents=True)
    rows = datasets.Dataset.from_dict({"image": content, "label": [0, 1, 0, 1]}, features=kinds)
    for split in ("train", "test"):
        rows.to_parquet(tmp_path / "set" / "data" / f"{split}-00000-of-00001.parquet")
    for given in ("set", "set/data", "set/data/train-00000-of-00001.parquet"):
        folder = (tmp_path / given).parent if given.endswith(".parquet") else tmp_path / given
        with pytest.raises(ValueError, match=f"give it to a run as hf:{folder} "):
            read_layout(tmp_path / given)
        assert list_set(f"hf:{folder}")["train"].classes == ("cat", "dog")


def test_folders_below_the_classes_that_may_be_the_classes_are_said(tmp_path):
    """Two classes, animals and things, were read without a word."""
    for i, name in enumerate(["animals/cat", "animals/dog", "things/cup", "things/mug"]):
        put(tmp_path / name / "1.png", i)
    found = read_layout(tmp_path)
    assert (
        found.classes == ("animals", "things")
        and "such as 'animals/cat', 'animals/dog' and 2 more, and none" in found.told()
    )
    put(tmp_path / "animals" / "1.png", 9)
    assert read_layout(tmp_path).told() == ""


def test_blanks_beside_the_commas_of_a_table_are_no_part_of_a_name(tmp_path):
    files = [put(tmp_path / f"{i}.png", i).name for i in range(4)]
    rows = [f'"{("cat", "dog, wild")[i % 2]}" , {file}' for i, file in enumerate(files)]
    (tmp_path / "labels.csv").write_text("label, file\n" + "\n".join(rows))
    assert read_layout(tmp_path).classes == ("cat", "dog, wild")


@pytest.mark.parametrize("mark", "|;")
def test_several_labels_in_one_cell_are_no_class(tmp_path, mark):
    """cat|wet and dog|wet were classes beside cat and dog."""
    rows = [{"file": put(tmp_path / f"{i}.png", i).name, "label": label} for i, label in enumerate(("cat", "dog"))]
    rows += [{"file": put(tmp_path / "2.png", 2).name, "label": f"cat{mark}wet"}]
    write(tmp_path / "labels.csv", rows)
    with pytest.raises(ValueError, match="'label' holds several labels of an image, such as 'cat.wet': give one"):
        read_layout(tmp_path)
    write(tmp_path / "labels.csv", [*rows[:2], {"file": "2.png", "label": f"AC{mark}DC"}])
    assert len(read_layout(tmp_path).classes) == 3
