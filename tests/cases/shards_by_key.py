"""Situation: a tar of pictures and records made elsewhere, in which one sample has lost its record and another one its
picture, as after a broken download or a filter between two steps. There are as many pictures as records.

Right: picture and record belong together by their key (the name before the first dot), never by their place. A key with
only one of the two is named, in an error or in a warning; no picture ever stands under another class.

Sources: github.com/webdataset/webdataset/issues/140, github.com/webdataset/webdataset/issues/371,
github.com/ray-project/ray/pull/65044
"""

import io
import json
import tarfile
from pathlib import Path

from _case import attempt, check, done
from PIL import Image

from synthnb.datasets.listed import list_shards, load_images

COLOURS = {"red": (220, 20, 20), "blue": (20, 20, 220)}


def sample(key: int) -> list[tuple[str, bytes]]:
    "A picture of one colour, and the record that says which."
    name, file = list(COLOURS)[key % 2], io.BytesIO()
    Image.new("RGB", (16, 16), COLOURS[name]).save(file, "PNG")
    return [
        (f"{key:04}.png", file.getvalue()),
        (f"{key:04}.json", json.dumps({"label": key % 2, "class": name}).encode()),
    ]


def write(folder: str, files: list[tuple[str, bytes]]) -> str:
    Path(folder).mkdir()
    with tarfile.open(Path(folder, "0.tar"), "w") as tar:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return folder


def strangers(folder: str) -> int:
    "How many pictures stand under a class of another colour."
    listed = list_shards(folder)
    seen = load_images(listed, 16)
    return sum(
        ("red" if image[0, 8, 8] > 100 else "blue") != listed.classes[label]
        for image, label in zip(seen.images, seen.labels.tolist())
    )


whole = [file for key in range(4) for file in sample(key)]
found = attempt(lambda: strangers(write("whole", whole)))
check("a whole tar opens, every picture under its class", found.value == 0, found.said)
found = attempt(lambda: strangers(write("records_first", [file for key in range(4) for file in reversed(sample(key))])))
check("records before pictures make no difference", found.value == 0, found.said)

lost = [file for file in whole if file[0] != "0000.json"] + [
    sample(9)[1]
]  # key 0 without its record, key 9 without its picture
found = attempt(lambda: strangers(write("one_of_each_lost", lost)))
check(
    "one record and one picture lost: no picture under another class",
    found.error is not None or found.value == 0,
    f"{found.value} of 4 pictures under another class" if found.error is None else found.said,
)
check(
    "one record and one picture lost: a key without its partner is named",
    "0000" in found.said or "0009" in found.said,
    found.said or "not a word",
)
done()
