"""Every named set is read from files laid out as its authors did.

Hub ids and shards are read as their libraries write them, and what is missing says so.
"""

import hashlib
import io
import json
import os
import pickle
import pkgutil
import tarfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from timm.data import ImageNetInfo
from torchvision.datasets import FakeData, Flowers102

from synthnb.data import ImageSet, LabelledImages, few_shot, few_shots, fraction, join
from synthnb.datasets.duplicates import content_hashes, copied_pairs, near_pairs
from synthnb.datasets.grid import show_images
from synthnb.datasets.known import NamedSet
from synthnb.datasets.listed import _read_batches, list_folder, list_hub, list_shards, load_images, save_folder
from synthnb.datasets.named import NAMED, _files_of, imagenet_indices, imagenet_names, list_named, prompt_name
from synthnb.datasets.reading import memory_limit
from synthnb.datasets.sets import _train_and_val, check_splits, list_set, open_set, without_near
from synthnb.images import shards
from synthnb.images.writer import _image_entries

torch.set_num_threads(1)


def shade(number: int) -> Image.Image:
    """An image that tells which one it is: noise of its own."""
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (12, 10, 3), dtype=np.uint8))


def put(path, number: int) -> str:
    """Write an image; its stem."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shade(number).save(path, "JPEG")
    return path.stem


def text(path, lines) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


# ---- originals in miniature: each returns the class names to expect, and how many images of train (with val) and test


def aircraft(root):
    home, variants = root / "fgvc-aircraft-2013b" / "data", ["707-320", "F/A-18"]
    text(home / "variants.txt", variants)
    for s, split in enumerate(("train", "val", "test")):
        text(
            home / f"images_variant_{split}.txt",
            [f"{put(home / 'images' / f'{s}{i:06d}.jpg', 10 * s + i)} {variants[i % 2]}" for i in range(4)],
        )
    return ("707-320", "FA-18"), 8, 4


def caltech101(root):
    home = root / "caltech101" / "101_ObjectCategories"
    for c, name in enumerate(("BACKGROUND_Google", "Faces_easy", "yin_yang")):
        for i in range(1, 34):
            put(home / name / f"image_{i:04d}.jpg", 100 * c + i)
    return ("close-up of a face", "yin and yang symbol"), 60, 6


def cars(root):
    home, names = root / "stanford_cars", ["AM General Hummer SUV 2000", "Ram C/V Cargo Van Minivan 2012"]
    (home / "devkit").mkdir(parents=True)
    savemat(home / "devkit" / "cars_meta.mat", {"class_names": np.array(names, dtype=object)})
    rows = np.array([(f"{i:05d}.jpg", 1 + i % 2) for i in range(6)], dtype=[("fname", object), ("class", np.uint8)])
    for s, (folder, file) in enumerate(
        (("cars_train", "devkit/cars_train_annos.mat"), ("cars_test", "cars_test_annos_withlabels.mat"))
    ):
        savemat(home / file, {"annotations": rows})
        for i, row in enumerate(rows):
            put(home / folder / row["fname"], 10 * s + i)
    return ("AM General Hummer SUV 2000", "Ram C-V Cargo Van Minivan 2012"), 6, 6


def dtd(root):
    home = root / "dtd" / "dtd"
    for s, split in enumerate(("train", "val", "test")):
        text(
            home / "labels" / f"{split}1.txt",
            [
                f"{name}/{put(home / 'images' / name / f'{name}_{s}{i:03d}.jpg', 10 * s + i)}.jpg"
                for i, name in enumerate(("banded", "polka-dotted", "banded", "polka-dotted"))
            ],
        )
    return ("banded", "polka-dotted"), 8, 4


def dogs(root):
    home, names = root / "stanford_dogs", ["n02085620-Chihuahua", "n02086240-Shih-Tzu"]
    for s, split in enumerate(("train", "test")):
        files = [
            f"{name}/{put(home / 'Images' / name / f'{name[:9]}_{s}{i}.jpg', 10 * s + i)}.jpg"
            for i, name in enumerate(names * 2)
        ]
        savemat(
            home / f"{split}_list.mat", {"file_list": np.array(files, dtype=object), "labels": np.array([1, 2, 1, 2])}
        )
    return ("Chihuahua", "Shih-Tzu"), 4, 4


def flowers102(root):
    home = root / "flowers-102"
    for i in range(1, 9):
        put(home / "jpg" / f"image_{i:05d}.jpg", i)
    savemat(home / "imagelabels.mat", {"labels": np.array([1, 60, 1, 60, 1, 60, 1, 60])})
    savemat(home / "setid.mat", {"trnid": np.array([1, 2]), "valid": np.array([3, 4]), "tstid": np.array([5, 6, 7, 8])})
    return None, 4, 4


def food101(root):
    home, names = root / "food-101", ["apple_pie", "french_onion_soup"]
    for s, split in enumerate(("train", "test")):
        text(
            home / "meta" / f"{split}.json",
            [
                json.dumps(
                    {
                        name: [
                            f"{name}/{put(home / 'images' / name / f'{s}{i}.jpg', 10 * s + i)}" for i in range(c, 4, 2)
                        ]
                        for c, name in enumerate(names)
                    }
                )
            ],
        )
    return ("apple pie", "french onion soup"), 4, 4


def pets(root):
    home, names = root / "oxford-iiit-pet", ["Abyssinian", "american_bulldog"]
    for s, split in enumerate(("trainval", "test")):
        text(
            home / "annotations" / f"{split}.txt",
            [
                f"{put(home / 'images' / f'{names[i % 2]}_{s}{i}.jpg', 10 * s + i)} {1 + i % 2} {1 + i % 2} 1"
                for i in range(4)
            ],
        )
    return ("Abyssinian", "American Bulldog"), 4, 4


def sun397(root):
    home, names, lists = (
        root / "SUN397",
        ["/a/abbey", "/a/apartment_building/outdoor"],
        {"Training_01.txt": [], "Testing_01.txt": []},
    )
    text(home / "ClassName.txt", names)
    for c, name in enumerate(names):
        for i in range(5):  # the last one is in no list, as most images of SUN397
            stem = put(home / name[1:] / f"sun_{'abcde'[i]}{c}.jpg", 10 * c + i)
            if i < 4:
                lists["Training_01.txt" if i < 3 else "Testing_01.txt"].append(f"{name}/{stem}.jpg")
    for file, lines in lists.items():
        text(home / file, lines)
    return ("abbey", "outdoor apartment building"), 6, 2


def cub(root):
    home, names = root / "CUB_200_2011", ["001.Black_footed_Albatross", "002.Laysan_Albatross"]
    text(home / "classes.txt", [f"{1 + i} {name}" for i, name in enumerate(names)])
    text(
        home / "images.txt",
        [f"{1 + i} {names[i % 2]}/{put(home / 'images' / names[i % 2] / f'Bird_{i}.jpg', i)}.jpg" for i in range(8)],
    )
    text(home / "image_class_labels.txt", [f"{1 + i} {1 + i % 2}" for i in range(8)])
    text(home / "train_test_split.txt", [f"{1 + i} {int(i < 6)}" for i in range(8)])
    return ("Black footed Albatross", "Laysan Albatross"), 6, 2


@pytest.fixture
def tiny_flowers(monkeypatch):
    """Let torchvision's check of the flowers' annotation files pass for the small ones."""
    monkeypatch.setattr("torchvision.datasets.flowers102.check_integrity", lambda path, md5=None: os.path.isfile(path))


MAKERS = [aircraft, caltech101, cars, dtd, dogs, flowers102, food101, pets, sun397, cub]


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_original_in_miniature(make, tmp_path, tiny_flowers):
    name = make.__name__
    classes, train, test = make(tmp_path)
    listed = list_named(name, tmp_path, complete=False)
    if classes is None:
        classes = tuple(prompt_name(flower) for flower in Flowers102.classes)
        assert classes[59] == "pink-yellow dahlia"
    assert all(one.classes == classes for one in listed.values())
    assert (len(listed["train"]) + len(listed.get("val", ())), len(listed["test"])) == (train, test)
    assert ("val" in listed) == (NAMED[name].splits.get("val") == "val")
    everything = [item for one in listed.values() for item in one.items]
    assert len(set(everything)) == train + test and not any(item.startswith("/") for item in everything)
    for one in listed.values():  # the label is that of the image's own class folder or annotation
        assert set(one.labels.tolist()) <= set(range(len(classes))) and len(set(one.labels.tolist())) == 2
        images = load_images(one, 8)
        assert len({hashlib.sha256(image.numpy().tobytes()).digest() for image in images.images}) == len(one)
    with pytest.raises(ValueError, match=f"not {NAMED[name].test}"):
        list_named(name, tmp_path)


@pytest.mark.parametrize(
    "kind, home, splits, names",
    [
        ("Country211", "country211", {"train": "train", "val": "valid", "test": "test"}, ("AD", "ZW")),
        ("RenderedSST2", "rendered-sst2", {"train": "train", "val": "val", "test": "test"}, ("negative", "positive")),
    ],
)
def test_what_torchvision_reads_is_a_line_of_the_table(tmp_path, monkeypatch, kind, home, splits, names):
    """Folders of classes, and pairs of files and labels, in torchvision's own layout."""
    for s, split in enumerate(splits):
        for i in range(4):  # RenderedSST2 reads .png alone
            put(tmp_path / home / (split if split != "val" else "valid") / names[i % 2] / f"{s}{i}.png", 10 * s + i)
    line = NamedSet(kind, 2, 8, 4, home, ("an address", "another"), torchvision=kind, splits=splits)
    monkeypatch.setitem(NAMED, home, line)
    listed = list_named(home, tmp_path)
    assert {split: len(one) for split, one in listed.items()} == {"train": 4, "val": 4, "test": 4}
    for one in listed.values():
        assert one.classes == names and load_images(one, 8).held == (8, 8)
        assert [Path(item).parent.name for item in one.items] == [names[label] for label in one.labels.tolist()]


def test_a_set_that_torchvision_keeps_otherwise_says_what_to_do():
    with pytest.raises(ValueError, match=r"FakeData does not say the files .* `_READERS` of synthnb.datasets.named"):
        _files_of(FakeData(2))


def test_labels_are_those_of_the_annotations(tmp_path):
    for make in (aircraft, cub, sun397, dogs, caltech101):
        make(tmp_path)
    for name, told in {
        "cub": "Black_footed",
        "sun397": "abbey",
        "dogs": "Chihuahua",
        "caltech101": "Faces_easy",
    }.items():
        for one in list_named(name, tmp_path, complete=False).values():
            assert [told in item for item in one.items] == [label == 0 for label in one.labels.tolist()]
    assert all("_1" in item for item in list_named("dogs", tmp_path, complete=False)["test"].items)
    test = list_named("aircraft", tmp_path, complete=False)["test"]
    assert [int(item[-5]) % 2 for item in test.items] == test.labels.tolist()


def test_the_order_of_files_on_disk_changes_no_draw(tmp_path, monkeypatch):
    sun397(tmp_path)
    before = few_shot(list_named("sun397", tmp_path, complete=False)["train"], 1, seed=3).items
    plain = Path.rglob
    monkeypatch.setattr(Path, "rglob", lambda self, pattern: iter(sorted(plain(self, pattern), reverse=True)))
    assert few_shot(list_named("sun397", tmp_path, complete=False)["train"], 1, seed=3).items == before


@pytest.mark.parametrize("name", NAMED)
def test_a_missing_set_names_both_sources(name, tmp_path):
    with pytest.raises(FileNotFoundError) as raised:
        list_named(name, tmp_path)
    said = str(raised.value)
    assert all(source in said for source in NAMED[name].sources) and NAMED[name].where in said and str(tmp_path) in said
    assert ("download=True" in said) == (not NAMED[name].dead and bool(NAMED[name].torchvision or name == "caltech101"))
    assert not list(tmp_path.iterdir()), "looking for a set makes no folders"


def test_a_lost_image_and_a_lost_list_are_named(tmp_path):
    food101(tmp_path)
    next((tmp_path / "food-101" / "images" / "apple_pie").iterdir()).unlink()
    with pytest.raises(FileNotFoundError, match="1 of its images are missing, the first is .*apple_pie"):
        list_named("food101", tmp_path, complete=False)
    sun397(tmp_path)
    (tmp_path / "SUN397" / "Testing_01.txt").unlink()
    with pytest.raises(FileNotFoundError, match="Testing_01.txt"):
        list_named("sun397", tmp_path, complete=False)


def test_a_dead_link_is_not_tried(tmp_path, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.SUN397._download", lambda self: pytest.fail("tried"))
    monkeypatch.setattr("torchvision.datasets.StanfordCars.download", lambda self: pytest.fail("tried"))
    for name in ("cars", "sun397"):
        with pytest.raises(FileNotFoundError, match="hf:tanganke"):
            list_named(name, tmp_path, download=True)


def test_download_is_torchvisions(tmp_path, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.Food101._download", lambda self: food101(tmp_path))
    assert len(list_named("food101", tmp_path, download=True, complete=False)["train"]) == 4


# ---- ImageNet


def test_imagenet_and_variants(tmp_path):
    names = imagenet_names()
    synsets = {"imagenet-r": ["n01443537", "n01484850"], "imagenet-a": ["n01498041", "n01531178"]}
    for name, folders in synsets.items():
        home = tmp_path / NAMED[name].where
        for folder in wnids(name):
            (home / folder).mkdir(parents=True)
        for i, folder in enumerate(folders):
            put(home / folder / f"{i}.jpg", i)
        test = list_named(name, tmp_path, complete=False)["test"]
        assert len(test.classes) == 200 and test.labels.tolist() == [wnids(name).index(folder) for folder in folders]
        assert [names[imagenet_indices(name)[label]] for label in test.labels] == [
            test.classes[label] for label in test.labels
        ]
    v2 = tmp_path / NAMED["imagenet-v2"].where
    for i in range(1000):
        (v2 / str(i)).mkdir(parents=True)
    for i in (2, 10, 134):
        put(v2 / str(i) / "a.jpeg", i)
    test = list_named("imagenet-v2", tmp_path, complete=False)["test"]
    assert test.labels.tolist() == [2, 10, 134] and test.classes[134] == "crane bird"


def wnids(name: str) -> list[str]:
    """The folders of a variant, by timm's own list."""
    return pkgutil.get_data("timm.data", f"_info/{name.replace('-', '_')}_synsets.txt").decode().split()


def test_imagenet_itself(tmp_path):
    for split in ("train", "val"):
        for i, synset in enumerate(ImageNetInfo("imagenet-1k").label_names()):
            (tmp_path / "imagenet" / split / synset).mkdir(parents=True)
            if i in (0, 999):
                put(tmp_path / "imagenet" / split / synset / f"{synset}_{i}.JPEG", i)
    listed = list_named("imagenet", tmp_path, complete=False)
    assert {split: one.labels.tolist() for split, one in listed.items()} == {"train": [0, 999], "test": [0, 999]}
    assert listed["train"].classes[0] == "tench" and listed["train"].classes[999] == "toilet paper"
    with pytest.raises(ValueError, match="2 test, not 50000; 2 train, not 1281167"):
        list_named("imagenet", tmp_path)


# ---- the hub


def parquet(folder, splits, classes=("red_fox", "F/A-18"), **more):
    """A data set as the hub's Parquet files hold it."""
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=list(classes)),
            **{key: kind for key, (kind, _) in more.items()},
        }
    )
    folder.mkdir(parents=True, exist_ok=True)
    for s, (split, labels) in enumerate(splits.items()):
        rows = {"image": [shade(100 * s + i) for i in range(len(labels))], "label": labels} | {
            key: value[: len(labels)] for key, (_, value) in more.items()
        }
        datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return str(folder)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hub cache")


def test_hub_folder(tmp_path):
    path = parquet(tmp_path / "animals", {"train": [0, 1, 0, 1], "validation": [1, 0], "test": [0, 1, 1]})
    listed = list_set(f"hf:{path}")
    assert {split: one.labels.tolist() for split, one in listed.items()} == {
        "train": [0, 1, 0, 1],
        "val": [1, 0],
        "test": [0, 1, 1],
    }
    assert listed["train"].classes == ("red fox", "F/A-18") and listed["train"].name == "animals train"
    opened = open_set(f"hf:{path}", 8)
    want = np.asarray(shade(201).crop((0, 1, 10, 11)))  # the middle square
    assert (load_images(listed["test"].subset([1]), 10).images[0].permute(1, 2, 0).numpy() == want).all()
    assert len(opened["val"]) == 2 and len(few_shot(listed["train"], 2)) == 4
    batches = list(_read_batches(listed["train"], 8, batch_size=3, workers=1))
    assert [len(labels) for _, labels in batches] == [3, 1] and torch.equal(
        torch.cat([images for images, _ in batches]), opened["train"].images
    )


def test_hub_without_labelled_test_takes_validation(tmp_path):
    listed = list_hub(
        parquet(tmp_path / "like-imagenet", {"train": [0, 1] * 5, "validation": [0, 1], "test": [-1, -1]})
    )
    assert set(listed) == {"train", "test"} and listed["test"].labels.tolist() == [0, 1]
    opened = open_set(f"hf:{tmp_path / 'like-imagenet'}", 8)
    assert {split: len(one) for split, one in opened.items()} == {"train": 8, "val": 2, "test": 2}


def test_hub_asks_which_labels(tmp_path):
    fine = datasets.ClassLabel(names=["a", "b", "c"])
    path = parquet(tmp_path / "two", {"train": [0, 1, 1]}, coarse=(fine, [0, 1, 2]))
    assert list_hub(path)["train"].classes == ("red fox", "F/A-18")  # the one called label
    assert list_hub(f"{path}#coarse")["train"].labels.tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="#COLUMN"):
        list_hub(f"{path}#size")


def test_hub_id_that_cannot_be_had():
    with pytest.raises(FileNotFoundError, match="hf download --repo-type dataset nobody/nothing"):
        list_set("hf:nobody/nothing")


def test_hub_copy_of_a_named_set_is_checked(tmp_path, monkeypatch):
    path = parquet(
        tmp_path / "stanford_cars",
        {"train": [0, 1], "test": [0, 1]},
        classes=("AM General Hummer SUV 2000", "Ram C/V Cargo Van Minivan 2012"),
    )
    plain = datasets.load_dataset
    monkeypatch.setattr(
        "datasets.load_dataset",
        lambda source, **options: plain(path if source == "tanganke/stanford_cars" else source, **options),
    )
    with pytest.raises(ValueError, match="2 classes, not 196; 2 test, not 8041; 2 train, not 8144"):
        list_set("hf:tanganke/stanford_cars")
    assert list_set("hf:tanganke/stanford_cars", complete=False)["test"].classes[1] == "Ram C-V Cargo Van Minivan 2012"


# ---- shards and folders


def shard(path, numbers, classes=("one", "two")) -> None:
    with tarfile.open(path, "w") as opened:
        for n in numbers:
            shade(n).save(image := io.BytesIO(), "PNG")
            for name, content in (
                (f"{n:06d}.png", image.getvalue()),
                (f"{n:06d}.json", json.dumps({"label": n % 2, "class": classes[n % 2]}).encode()),
            ):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                opened.addfile(info, io.BytesIO(content))


def test_shards(tmp_path):
    shard(tmp_path / "00000.tar", range(3))
    shard(tmp_path / "00001.tar", range(3, 6))
    listed = list_set(tmp_path)["synthetic"]
    assert listed.labels.tolist() == [0, 1, 0, 1, 0, 1] and listed.classes == ("one", "two")
    for i in (0, 4):
        assert Image.open(io.BytesIO(listed.fetch(listed.items[i]))).tobytes() == shade(i).tobytes()
    assert set(open_set(tmp_path, 8)) == {"synthetic"} and len(pickle.dumps(listed)) < 10_000
    whole = (tmp_path / "00001.tar").read_bytes()
    for left in (700, 3000):
        (tmp_path / "00001.tar").write_bytes(whole[:left])
        with pytest.raises(ValueError, match="00001.tar is damaged|images and"):
            list_shards(tmp_path)


def test_shards_that_synthnb_draws(tmp_path):
    """Shards of `images.writer` are read as `images.shards` reads them."""
    record = {"id": "0000-one-000000", "label": 0, "class": "one"}
    with open(tmp_path / "00000.tar", "wb") as opened:
        for label, name in enumerate(("one", "two")):
            image = torch.from_numpy(np.asarray(shade(label)).copy()).permute(2, 0, 1)
            own = record | {"id": f"{label:04d}-{name}-000000", "label": label, "class": name}
            opened.write(_image_entries(image, own, "png", 90))
        opened.write(bytes(1024))
    ours, theirs = list_shards(tmp_path), list(shards.read_tar(tmp_path / "00000.tar"))
    assert [ours.fetch(item) for item in ours.items] == [content for content, _ in theirs]
    assert ours.labels.tolist() == [record["label"] for _, record in theirs] == [0, 1]


def test_folder_stays_on_disk(tmp_path):
    for split, n in (("train", 4), ("validation", 2), ("test", 2)):
        for c, name in enumerate(("a cat", "dog")):
            for i in range(n):
                put(tmp_path / split / name / "deep" / f"{i}.jpg", 100 * n + 10 * c + i)
    (tmp_path / "train" / "dog" / ".hidden.jpg").write_bytes(b"")
    listed = list_folder(tmp_path)
    assert {split: one.per_class for split, one in listed.items()} == {
        split: {"a cat": n, "dog": n} for split, n in (("test", 2), ("train", 4), ("val", 2))
    }
    assert listed["train"].items[0] == "train/a cat/deep/0.jpg"
    (tmp_path / "test" / "cow").mkdir()
    with pytest.raises(ValueError, match="in class folder 'cow'"):
        list_folder(tmp_path)
    with pytest.raises(FileNotFoundError, match="no set that can be opened"):
        list_set(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["pets", "imagenet", "mnist", "digits"])
def test_a_path_with_the_name_of_a_known_set_is_a_folder(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    for opened in (list_set, partial(open_set, size=8)):
        with pytest.raises(FileNotFoundError, match=f"'{name}' is no set that can be opened"):
            opened(Path(name))


# ---- subsets and reading


def test_copies_under_two_names_are_one_shot(tmp_path):
    for name in ("cat", "dog"):
        for i in range(6):
            put(tmp_path / name / f"{i}.jpg", (0 if name == "cat" else 50) + i // 2)  # every image twice
    train = list_folder(tmp_path)["train"]
    assert len({train.fetch(item) for item in few_shot(train, 3, seed=1).items}) == 6
    with pytest.raises(ValueError, match="class 'cat' of .* has 3 distinct images, fewer than 4 shots"):
        few_shot(train, 4)
    assert set(fraction(train, 1 / 3).per_class.values()) == {2}


def test_a_subset_is_taken_by_numbers_of_any_kind(tmp_path):
    for name in ("cat", "dog"):
        for i in range(3):
            put(tmp_path / name / f"{i}.jpg", i)
    listed = list_folder(tmp_path)["train"]
    for data in (listed, load_images(listed, 8)):
        for wanted in ([1, 5], range(1, 6, 4), torch.tensor([1, 5]), np.array([1, 5])):
            assert data.subset(wanted).labels.tolist() == [0, 1]
        assert not len(data.subset([])) and not len(data.subset(torch.tensor([], dtype=torch.int64)))
    assert listed.subset(torch.tensor([1, 5])).items == ["cat/1.jpg", "dog/2.jpg"]


def test_an_image_that_cannot_be_read_is_named(tmp_path):
    for name in ("cat", "dog"):
        put(tmp_path / name / "0.jpg", len(name))
    (tmp_path / "dog" / "cut.jpg").write_bytes((tmp_path / "dog" / "0.jpg").read_bytes()[:300])
    with pytest.raises(ValueError, match="dog/cut.jpg of .* cannot be read"):
        load_images(list_folder(tmp_path)["train"], 8)


def test_more_images_than_a_batch_keep_their_places(tmp_path):
    for c, name in enumerate(("cat", "dog")):
        for i in range(75):
            put(tmp_path / name / f"{i:02d}.jpg", 100 * c + i)
    train = list_folder(tmp_path)["train"]
    loaded, last = load_images(train, 10), load_images(train.subset([149]), 10)
    assert (
        torch.equal(loaded.images[149], last.images[0])
        and len({image.numpy().tobytes() for image in loaded.images}) == 150
    )


def test_what_does_not_fit_in_memory_is_refused(tmp_path):
    for name in ("cat", "dog"):
        put(tmp_path / name / "0.jpg", len(name))
    with pytest.raises(ValueError, match="its `batches`"):
        load_images(list_folder(tmp_path)["train"], 224, max_bytes=1000)


@pytest.mark.parametrize("free, limit", [(2 << 30, 8 << 30), (64 << 30, 32 << 30)])
def test_a_set_may_take_half_of_the_memory_that_is_free(monkeypatch, free, limit):
    monkeypatch.setattr("synthnb.datasets.reading.psutil.virtual_memory", lambda: SimpleNamespace(available=free))
    assert memory_limit() == limit


# ---- hygiene


@pytest.fixture(scope="module")
def scans():
    return open_set("digits", 32)


def test_near_pairs_in_parts_as_at_once(scans):
    images = torch.cat([scans["train"].images, scans["test"].images])  # more than one part
    pairs = near_pairs(images, images)
    assert {tuple(pair) for pair in pairs.tolist()} == {(i, i) for i in range(len(images))}
    assert near_pairs(images[:0], images).shape == near_pairs(images, images[:0]).shape == (0, 2)


def test_blank_images_are_near_to_nothing():
    blank = torch.full((2, 3, 32, 32), 200, dtype=torch.uint8)
    assert len(near_pairs(blank, blank)) == 0


def test_negatives_are_other_pictures_and_mirrored_ones_are_copies(scans):
    images, labels = scans["test"].images, scans["test"].labels
    assert len(near_pairs(images, 255 - images)) == 0
    for turned in (images.flip(-1), images.rot90(1, (2, 3)), images.rot90(2, (2, 3))):
        pairs = near_pairs(images, turned)
        assert {(i, i) for i in range(len(images))} <= {tuple(pair) for pair in pairs.tolist()}
        assert (labels[pairs[:, 0]] == labels[pairs[:, 1]]).all(), "a turned 6 is no 9"
        assert len(pairs) < len(images) + 20  # a symmetrical zero is nearly its own mirror image
        assert len(near_pairs(images, turned, copies=False)) < 20


def test_the_digits_hold_no_copies(scans):
    images = torch.cat([data.images for data in scans.values()])
    assert len(copied_pairs(images, images)) == 0


def test_planted_copies_stop_a_run(scans):
    copies = scans["test"].subset(range(20))
    smaller = torch.nn.functional.interpolate(copies.images.float(), 24, mode="bilinear", antialias=True)
    smaller = torch.nn.functional.interpolate(smaller, 32, mode="bilinear").round().byte()
    planted = join([scans["train"], type(copies)(smaller, copies.labels, copies.classes, "planted")])
    with pytest.raises(ValueError, match=r"synthetic & test +917 & 600 +0 +20"):
        check_splits({"synthetic": planted, "test": scans["test"]})
    assert check_splits({"synthetic": planted, "test": scans["test"]}, allowed=20)["nearly the same"].tolist() == [20]
    assert torch.equal(without_near(planted, [scans["test"]]).images, scans["train"].images)
    with pytest.raises(ValueError, match=r"train & test +897 & 897 +897"):
        check_splits({"train": scans["train"], "test": scans["train"]}, allowed=10_000)


def test_a_set_on_disk_is_refused_where_pixels_are_compared(scans, tmp_path):
    few = {split: few_shot(one, 2) for split, one in scans.items()}
    on_disk = list_folder(save_folder(few, tmp_path / "scans"))
    how = r"stays on disk.*load_images\(it, size\)"
    for mixed in (on_disk, few | {"test": on_disk["test"]}):
        with pytest.raises(ValueError, match=how):
            check_splits(mixed)
        with pytest.raises(ValueError, match=how):
            without_near(mixed["train"], [mixed["test"]])
        with pytest.raises(ValueError, match=how):
            save_folder(mixed, tmp_path / "copy")
        with pytest.raises(ValueError, match=how):
            show_images(mixed["test"])
    assert not (tmp_path / "copy").exists()
    read = {split: load_images(one, 32) for split, one in on_disk.items()}
    assert not check_splits(read)["the same"].any() and len(without_near(read["train"], [read["test"]])) == len(
        few["train"]
    )


def test_two_sets_are_compared_once(scans, monkeypatch):
    """A study checks its real splits with each of its generated sets; other pixels and bounds are compared anew."""
    compared = []
    monkeypatch.setattr("synthnb.datasets.sets._NEAR_COUNTS", {})
    monkeypatch.setattr(
        "synthnb.datasets.sets.near_pairs", lambda *pair: compared.append(pair) or near_pairs(*pair, copies=False)
    )
    real = {split: data.subset(range(30)) for split, data in scans.items()}
    first = check_splits(real)
    assert len(compared) == 3
    drawn = scans["train"].subset(range(40, 70))
    again = check_splits(real | {"synthetic": drawn})
    assert len(compared) == 6 and again.iloc[[0, 1, 3]].equals(first)
    check_splits({split: data.subset(range(30)) for split, data in real.items()})
    assert len(compared) == 6
    dimmed = type(drawn)((drawn.images * 0.9).byte(), drawn.labels, drawn.classes, "planted")
    with pytest.raises(ValueError, match="train & test +30 & 30 +0 +30"):
        check_splits({"train": drawn, "test": dimmed})
    check_splits(real, alike=0.999)
    assert len(compared) == 10


def test_sides_of_different_sizes_are_compared(scans):
    small = open_set("digits", 16)["test"]
    with pytest.raises(ValueError, match="nearly the same"):
        check_splits({"synthetic": small, "test": scans["test"]})


def with_copies(scans: torch.Tensor) -> torch.Tensor:
    """Scans, of which the first 120 are copies of others: mirrored, turned, dimmed, with noise, or cut; and images of
    one colour, rings and crosses, which are their own mirror images."""
    cut = torch.nn.functional.interpolate(scans[80:120, :, 1:, 1:].float(), 32, mode="bilinear")
    noise = torch.randn(scans[60:80].shape, generator=torch.Generator().manual_seed(0))
    changed = [
        scans[:20].flip(-1),
        scans[20:40].rot90(1, (2, 3)),
        (scans[40:60] * 0.9).byte(),
        (scans[60:80] + noise).clamp(0, 255).byte(),
        cut.round().byte(),
    ]
    line = torch.linspace(-1, 1, 32)
    ring = ((line[:, None] ** 2 + line**2).sqrt() - 0.6).abs() < 0.2
    cross = (line[:, None].abs() < 0.2) | (line.abs() < 0.2)
    shapes = torch.stack([200 * ring, 180 * cross, 0 * ring, 90 + 0 * ring]).byte()[:, None].expand(-1, 3, -1, -1)
    return torch.cat([*changed, shapes, shapes[2:], scans[200:500]])


def test_large_sets_are_compared_by_trees_with_the_same_result(scans, monkeypatch):
    """The tree loses no pair that is alike, and of the copies none of these."""
    images = {split: with_copies(scans[split].images) for split in scans}
    images["test"] = torch.cat([with_copies(scans["train"].images[:300]), images["test"]])
    images["val"][-60:] = images["val"][-1]  # a motif that is there many times
    kind, classes = type(scans["test"]), scans["test"].classes
    sets = {split: kind(some, torch.zeros(len(some), dtype=torch.int64), classes) for split, some in images.items()}

    def told(**how):
        with pytest.raises(ValueError, match="share images") as error:
            check_splits(sets, **how)
        return str(error.value)

    pairs = [(sets[a].images, sets[b].images) for a, b in (("train", "test"), ("test", "train"), ("val", "val"))]
    alone = [near_pairs(a, b, alike, copies=False) for a, b in pairs for alike in (0.997, 0.9)]
    before = [near_pairs(a, b) for a, b in pairs], told(), told(alike=0.99)
    assert len(before[0][0]) > 100 and "train & test" in before[1]
    monkeypatch.setattr("synthnb.datasets.duplicates._ALL", 0)
    monkeypatch.setattr("synthnb.datasets.sets._NEAR_COUNTS", {})  # or what was found before would be told again
    for found, expected in zip(
        (near_pairs(a, b, alike, copies=False) for a, b in pairs for alike in (0.997, 0.9)), alone
    ):
        assert torch.equal(found, expected)
    for (a, b), expected in zip(pairs, before[0]):
        assert torch.equal(near_pairs(a, b), expected)
    assert (told(), told(alike=0.99)) == before[1:]
    blank = torch.full((3, 3, 32, 32), 200, dtype=torch.uint8)
    assert len(near_pairs(blank, blank)) == len(near_pairs(blank, scans["test"].images)) == 0


# ---- all means all, and what is kept of an image


def hollow_aircraft(root):
    """Aircraft's own counts, classes of 66 and 67 training images: one tiny file for all images."""
    home, variants = root / "fgvc-aircraft-2013b" / "data", [f"type {i:03d}" for i in range(100)]
    text(home / "variants.txt", variants)
    first = put(home / "images" / "0.jpg", 0)
    for split, count in (("train", 3334), ("val", 3333), ("test", 3333)):
        lines = []
        for i in range(count):
            (home / "images" / f"{split}{i:05d}.jpg").hardlink_to(home / "images" / f"{first}.jpg")
            lines.append(f"{split}{i:05d} {variants[(i + (split == 'val') * 34) % 100]}")
        text(home / f"images_variant_{split}.txt", lines)


def hollow_dtd(root):
    home, names = root / "dtd" / "dtd", [f"texture {i:02d}" for i in range(47)]
    first = home / "images" / "one.jpg"
    put(first, 0)
    for name in names:
        (home / "images" / name).mkdir()
        for i in range(120):
            (home / "images" / name / f"{i:03d}.jpg").hardlink_to(first)
    for s, split in enumerate(("train", "val", "test")):
        text(
            home / "labels" / f"{split}1.txt",
            [f"{name}/{i:03d}.jpg" for name in names for i in range(40 * s, 40 * s + 40)],
        )


def hollow_flowers(root):
    home = root / "flowers-102"
    first = home / "one.jpg"
    put(first, 0)
    (home / "jpg").mkdir()
    for i in range(1, 8190):
        (home / "jpg" / f"image_{i:05d}.jpg").hardlink_to(first)
    savemat(home / "imagelabels.mat", {"labels": np.arange(8189) % 102 + 1})
    savemat(
        home / "setid.mat",
        {"trnid": np.arange(1, 1021), "valid": np.arange(1021, 2041), "tstid": np.arange(2041, 8190)},
    )


@pytest.mark.parametrize(
    "name, make, images",
    [("dtd", hollow_dtd, 3760), ("flowers102", hollow_flowers, 2040), ("aircraft", hollow_aircraft, 6667)],
)
def test_all_is_train_and_official_validation_of_every_class(name, make, images, tmp_path, tiny_flowers):
    make(tmp_path)
    listed = list_named(name, tmp_path)
    everything = _train_and_val(listed)
    assert len(everything) == images == NAMED[name].train
    assert len(few_shots(everything, [0], [3])[0, 3]) == images, "no class is cut down to the smallest"
    held = open_set(name, 4, root=tmp_path)
    assert len(_train_and_val(held)) == images and sum(_train_and_val(held).per_class.values()) == images
    sizes = set(few_shots(_train_and_val(held), [0], [0])[0, 0].per_class.values())
    assert sizes == {"dtd": {80}, "flowers102": {20}, "aircraft": {66, 67}}[name]


def test_keep_and_fit_reach_every_door(tmp_path):
    for label, name in enumerate(("left", "right")):
        (tmp_path / "wide" / name).mkdir(parents=True)
        for i in range(8):
            row = np.full((30, 90, 3), 255, np.uint8)
            row[:, :20] = (
                np.random.default_rng([label, i]).integers(0, 255, (3, 2, 3)).repeat(10, 0).repeat(10, 1)
            )  # outside of the middle square
            Image.fromarray(row).save(tmp_path / "wide" / name / f"{i}.png")
    images = {}
    for fit in ("crop", "pad", "resize"):
        listed = list_set(tmp_path / "wide", fit=fit)["train"]
        assert listed.subset([0]).fit == fit == _train_and_val({"train": listed, "val": listed}).fit
        images[fit] = load_images(listed, 30).images
        assert torch.equal(images[fit], torch.cat([batch for batch, _ in _read_batches(listed, 30, 5)]))
    assert (images["crop"] == 255).all() and (images["pad"] < 128).any() and (images["resize"] < 128).any()
    for fit in ("pad", "resize"):
        opened = open_set(tmp_path / "wide", 30, fit=fit, keep=45)
        everything = torch.cat([split.images for split in opened.values()])
        assert everything.shape[1:] == (3, 45, 45)
        assert set(content_hashes(everything)) == set(
            content_hashes(load_images(list_set(tmp_path / "wide", fit=fit)["train"], 45).images)
        )
    with pytest.raises(ValueError, match="unknown fit 'centre'"):
        open_set(tmp_path / "wide", 30, fit="centre")
    with pytest.raises(ValueError, match="open both alike"):
        join([listed, replace(listed, fit="pad")])


def test_one_protocol_for_sets_in_memory_and_on_disk(tmp_path):
    """Both kinds answer the same questions, give the same batches in any order, and are not joined with each other."""
    for i in range(6):
        put(tmp_path / "ab"[i % 2] / f"{i}.jpg", i)
    listed = list_folder(tmp_path)["train"]
    loaded = load_images(listed, 10)
    assert isinstance(listed, ImageSet) and isinstance(loaded, ImageSet)
    assert (listed.held, loaded.held) == (None, (10, 10))
    order = [torch.tensor([4, 0, 5]), torch.tensor([1, 1])]
    for how in ({"size": 4}, {"order": order}, {"order": order, "device": torch.device("cpu")}):
        there, here = list(listed.batches(image_size=10, **how)), list(loaded.batches(**how))
        assert len(there) == len(here) == 2
        for one, other in zip(there, here):
            assert all(torch.equal(a, b) for a, b in zip(one, other))
    assert listed.fingerprint() != loaded.fingerprint() != loaded.subset([0]).fingerprint()
    assert torch.equal(join([loaded, loaded.subset([2])]).labels, join([listed, listed.subset([2])]).labels)
    with pytest.raises(ValueError, match="one of .* is in memory and one on disk: make them alike"):
        join([loaded, listed])
    with pytest.raises(ValueError, match="stays on disk: give image_size"):
        next(listed.batches())


def test_whole_batches_in_memory_are_views():
    """A step of training takes its images from the resident tensor: nothing else is copied."""
    images = torch.arange(8 * 3 * 4 * 4).to(torch.uint8).view(8, 3, 4, 4)
    data = LabelledImages(images, torch.arange(8) % 2, ("a", "b"))
    whole, _ = next(data.batches(8))
    assert whole.data_ptr() == images.data_ptr()
    assert next(data.batches(order=iter([torch.tensor([1, 2])])))[0].shape == (2, 3, 4, 4)
