"""Situation -> what a user sees: each row is run through the real command, and its message judged by three questions:
what is wrong, where, what to do.

A row: name, words after `synthnb`, status, and what the message must hold as (what, where, to do). `None` for "to do"
is for commands that end well. Add rows to TABLE; what a row needs on disk is made once by `workshop`. Rows of REAL are
run once more in a process of their own.
"""

import errno
import json
import os
import random
import re
import shutil
import subprocess
import sys
import threading
import time
import unicodedata
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image
from typer.testing import CliRunner

import synthnb
from synthnb.cli import app

COMMAND = Path(sys.executable).with_name("synthnb")
NFC, NFD = (unicodedata.normalize(form, "crème") for form in ("NFC", "NFD"))
RUN = ("run", "quickstart", "-p")
COMPARE = ("run", "compare", "-p", "real_data")
CHECK = ("check", "--out", "page.html")

# fmt: off
TABLE = [
    # folders
    ("a folder with a typo, above", ["prompts", "../fotos", "-n", "2"], 2, ("no folder", "../fotos", "one folder of images")),
    ("a folder with a typo, beside the right one", ["prompts", "./photo"], 2, ("no folder", "./photo", "did you mean photos")),
    ("a folder with a slash at its end that is not there", ["prompts", "fotos/", "cats/"], 2, ("no folder", "fotos/", "class names are no paths")),
    ("a folder with one class", ["prompts", "lonely"], 2, ("only one", "lonely", "at least two classes")),
    ("a folder with nothing in it", ["prompts", "empty"], 2, ("found none", "empty", "one sub-folder of images per class")),
    ("a class folder without images", ["prompts", "hollow"], 2, ("no images", "'eight'", "add some or remove it")),
    ("an image that is none", ["prompts", "broken"], 2, ("cannot be read", "bad.png", "repair or remove")),
    ("photographs and the shipped models", ["prompts", "photos", "-n", "4"], 2, ("never taught", "glyphworld/clip", "--generator, --clip and --llm")),
    ("photographs under names that the world knows", ["prompts", "stars", "-n", "4"], 1, ("does not tell the classes apart", "CLIP clip", "parameters generator, clip and llm")),
    ("run: a folder that is not there", [*RUN, "real_data", "fotos"], 2, ("no folder fotos", "real_data", "give a folder")),
    ("run: a folder with a typo", [*RUN, "real_data", "./photo"], 2, ("no folder ./photo", "real_data", "did you mean photos")),
    ("run: a known set with a typo", [*RUN, "real_data", "diggits"], 2, ("no folder diggits", "real_data", "did you mean digits")),
    ("run: a known set that is not here", [*RUN, "real_data", "pets"], 2, ("Oxford-IIIT Pet is not in data", "real_data", "get it from")),
    ("run: photographs and the shipped models", [*RUN, "real_data", "photos"], 2, ("never taught", "'building'", "-p generator, -p clip and -p llm")),
    ("run: photographs, named by numbers", [*RUN, "real_data", "numbered"], 2, ("never taught", "'cat'", "-p generator, -p clip and -p llm")),
    ("run: photographs under names that the world knows", [*RUN, "real_data", "stars"], 2, ("does not tell the classes apart", "CLIP clip", "parameters generator, clip and llm")),
    ("run: the same, in an experiment without a CLIP", ["run", "bridge_study", "-p", "real_data", "stars", "-p", "meaning", "{class}"], 2,
     ("does not tell the classes apart", "CLIP clip", "parameters generator, clip and llm")),
    ("run: a meaning that makes nonsense of the names", ["run", "bridge_study", "-p", "real_data", "stars"], 2, ("never taught", "star (as: arabic digit star)", "-p generator")),
    ("compare: photographs, and images still to draw", ["run", "compare", "-p", "real_data", "photos"], 2, ("never taught", "'building (as: arabic digit building)'", "-p generator")),
    ("compare: a folder of images that is not there", ["run", "compare", "-p", "images", "drwan"], 2, ("no folder drwan", "images", "give a folder")),
    ("run: images on two splits", [*RUN, "real_data", "leak"], 2, ("nearly the same, mirrored", "train/three/0.png = test/three/m.png", "leave one of each")),
    ("prompts: images on two splits", ["prompts", "leak"], 2, ("nearly the same, mirrored", "train/three/0.png = test/three/m.png", "leave one of each")),
    ("run: an image that is none", [*RUN, "real_data", "broken"], 2, ("cannot be read", "eight/bad.png: no image", "repair or remove")),
    ("run: a shipped set with a typo", [*RUN, "real_data", "minst"], 2, ("no folder minst", "real_data", "did you mean mnist")),
    ("run: a shipped set that the models do not know", [*RUN, "real_data", "silhouettes"], 2, ("never taught", "'bear'", "-p generator, -p clip and -p llm")),
    ("compare: the same where it is allowed", [*COMPARE, "leak", "-p", "images", "leak/train", "-p", "near_duplicates", "1", "--dry-run"], 0,
     ("worth a look: copies", "train/three/0.png = test/three/m.png", None)),
    ("compare: images of other classes", [*COMPARE, "leak", "-p", "images", "stars"], 2, ("different classes", "'eight' not in stars and 'star' not in leak", "Rename the folders")),
    ("compare: images with splits", [*COMPARE, "leak", "-p", "images", "leak"], 2, ("for training only", "leak has the splits train, test", "give the folder of one split")),
    ("compare: damaged images", [*COMPARE, "spanish", "-p", "images", "broken"], 2, ("cannot be read", "eight/bad.png: no image", "repair or remove")),
    ("compare: a list of kept images that is not there", [*COMPARE, "leak", "-p", "images", "plan", "-p", "kept", "none.parquet"], 2,
     ("no file none.parquet", "parameter kept", "check its name")),
    ("a study on disk of a folder without splits", ["run", "imagenet_study", "-p", "real_data", "stars", "-p", "meaning", "three"], 2,
     ("has no splits", "stars", "Make folders train and test")),
    ("run: one class", [*RUN, "real_data", "lonely"], 2, ("only one", "lonely", "at least two classes")),
    ("doctor: photographs and the shipped models", ["doctor", "photos.yaml", "-e", "quickstart", "--no-measure"], 1, ("never taught", "class names", "name models that know your classes")),
    # what `check` says of folders, tables and pixels
    ("splits in another language", [*CHECK, "spanish"], 0, ("splits on top (Entrenamiento, Prueba)", "8 train, 8 test", None)),
    ("a split in a folder of its own name", [*CHECK, "archive"], 0, ("splits on top", "test_set, training_set", None)),
    ("splits of two domains", [*CHECK, "domains"], 1, ("both look like test", "'testA' and 'testB'", "rename one of them")),
    ("folds as classes", [*CHECK, "folds"], 1, ("look like parts of one set", "'fold1', 'fold2'", "a CSV of (file, label)")),
    ("images, masks and edges as classes", [*CHECK, "masked"], 1, ("images and the masks", "'edges' and 'images' and 'masks'", "one sub-folder of images per class")),
    ("masks beside the images of a class", [*CHECK, "segmented"], 0, ("8 x a mask, by the name of its folder", "eight/gt/", None)),
    ("images in one folder, without labels", [*CHECK, "flat"], 1, ("only one ('images')", "flat", "a CSV of (file, label) can say")),
    ("a table of a spreadsheet", [*CHECK, "flat/unicode.csv"], 0, ("files and labels from unicode.csv", "2 classes, 8 images", None)),
    ("a table of another machine", [*CHECK, "flat/windows.csv"], 0, ("found by the ends of their paths", r"'C:\Users\me\0.png'", None)),
    ("a table with a column that is like splits", [*CHECK, "flat/folds.csv"], 0, ("'fold' is not read", "folds.csv", "a column split with train, val and test")),
    ("a table that is not in UTF-8", [*CHECK, "flat/latin.csv"], 1, ("not in UTF-8", "latin.csv", "Save it as CSV in UTF-8")),
    ("a table with a column for each class", [*CHECK, "flat/onehot.csv"], 1, ("needs a column of files (file)", "onehot.csv", "name them so in the first line")),
    ("a table of files that are not there", [*CHECK, "flat/lost.csv"], 1, ("8 of its files are not below flat", "lost.csv", "correct the table, or put them there")),
    ("a table whose labels disagree", [*CHECK, "flat/disagree.csv"], 1, ("labels disagree", "images/0.png", "Leave one row")),
    ("a file that is no table", [*CHECK, "photos/building/0.jpg"], 1, ("is a file", "0.jpg", "give a folder")),
    ("damaged and empty files", [*CHECK, "damage"], 1, ("3 images cannot be read", "eight/empty.png: an empty file", "repair or remove them")),
    ("a page in place of an image", [*CHECK, "damage"], 1, ("3 images cannot be read", "eight/page.jpg: no image", "repair or remove them")),
    ("a link in a circle", [*CHECK, "circle"], 0, ("a link to a folder that it lies in", "eight/again", None)),
    ("every kind of image", [*CHECK, "kinds"], 0, ("with several frames the first is read", "anim.webp", None)),
    ("transparency and deep pixels", [*CHECK, "kinds"], 0, ("which become white", "1 of 16 bits", None)),
    ("a class of copies", [*CHECK, "copies"], 1, ("if copies count once", "square: 1", "add others")),
    ("a folder of images that is not there", [*CHECK, "nowhere"], 2, ("does not exist", "nowhere", "--help")),
    ("prompts for a table", ["prompts", "flat/unicode.csv", "--dry-run"], 0, ("2 classes, 40 prompts", "LLM calls", None)),
    ("a grid on a damaged folder", ["sweep", "damage.yaml", "--dry-run"], 2, ("cannot be read", "eight/empty.png: an empty file", "repair or remove")),
    # names
    ("names that the shipped models were never taught", ["prompts", "cat", "dog"], 2, ("never taught 'cat' and 'dog'", "glyphworld/llm", "--generator, --clip and --llm")),
    ("a name near one that is known", ["prompts", "tree", "eight"], 2, ("never taught 'tree'", "near 'tree' are three", "--llm")),
    ("one name only", ["prompts", "three"], 2, ("two class names or more", "three", "one folder of images")),
    ("one name twice", ["prompts", "Three", "three"], 2, ("read the same", "'Three' and 'three'", "rename one")),
    ("one name in two forms", ["prompts", NFC, NFD], 2, ("read the same", NFC, "rename one")),
    ("an empty name", ["prompts", "three", ""], 2, ("is empty", "class name ''", "give every class a name")),
    ("a name with a line break", ["prompts", "three", "a\nb"], 2, ("line break", r"a\nb", "rename it")),
    ("a name that turns the writing round", ["prompts", "three", "a\u202eb"], 2, ("control character", r"a\u202eb", "rename it")),
    ("a path as a name", ["prompts", "three", "/etc/passwd"], 2, ("no folder", "/etc/passwd", "class names are no paths")),
    ("a way up as a name", ["prompts", "three", "a/../b"], 2, ("looks like a path", "a/../b", "needs a name")),
    ("a backslash in a name", ["prompts", "three", r"a\b"], 2, ("looks like a path", r"a\b", "needs a name")),
    ("a slash in a name stays", ["prompts", "three", "AC/DC converter"], 2, ("never taught", "'AC/DC converter'", "--llm")),
    ("a quote in a name stays", ["prompts", "three", "O'Neill"], 2, ("never taught", "'O'Neill'", "--llm")),
    ("an emoji as a name stays", ["prompts", "three", "\U0001f469\u200d\U0001f692"], 2, ("never taught", "'\U0001f469\u200d\U0001f692'", "--llm")),
    ("a name from right to left stays", ["prompts", "three", "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"], 2,
     ("never taught", "'\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645'", "--llm")),
    ("a number in front of one name stays", ["prompts", "911.porsche", "three"], 2, ("never taught", "'911.porsche'", "--llm")),
    ("unknown names with a known meaning", ["prompts", "cat", "dog", "--senses", "meanings.yaml", "--dry-run"], 0, ("2 classes, 40 prompts", "LLM calls", None)),
    ("meanings of a class that is not there", ["prompts", "three", "eight", "--senses", "meanings.yaml"], 1, ("no class 'cat'", "meanings.yaml", "the nearest is")),
    ("meanings that are no YAML", ["prompts", "three", "eight", "--senses", "bad.yaml"], 1, ("is not YAML", "bad.yaml is not YAML in line 2", "write one `class: what it means` a line")),
    # arguments of run, sweep and doctor
    ("an experiment with a typo", ["run", "quickstrat"], 2, ("no experiment 'quickstrat'", "quickstrat", "did you mean quickstart")),
    ("a notebook that is not there", ["run", "elsewhere.ipynb"], 2, ("there is no notebook", "elsewhere.ipynb", "run --help` lists")),
    ("a notebook that is none", ["run", "bad.ipynb"], 2, ("is not a notebook", "bad.ipynb", "open it in Jupyter")),
    ("a parameter with a typo", [*RUN, "shot", "4"], 2, ("unknown parameter", "shot", "did you mean 'shots'")),
    ("text for a number", [*RUN, "shots", "four"], 2, ("is 'four'", "parameter shots", "must be int")),
    ("a parameter without a value", [*RUN, "shots"], 2, ("has no value", "-p shots", "write -p NAME VALUE")),
    ("a method with a typo", [*RUN, "methods", "[bridgd]"], 2, ("there is no 'bridgd'", "parameter methods", "did you mean bridged?")),
    ("a recipe that there is not", [*RUN, "recipe", "fine-tuning"], 2, ("there is no 'fine-tuning'", "parameter recipe", "did you mean fine_tuning?")),
    ("a rate below nothing", [*RUN, "lr", "-0.1"], 2, ("lr is -0.1", "parameter lr", "more than 0")),
    ("no seeds", [*RUN, "seeds", "[]"], 2, ("is empty", "parameter seeds", "give one or more")),
    ("fewer shots than none", [*RUN, "shots", "-1"], 2, ("shots is -1", "parameter shots", "at least 0")),
    ("a device of another world", [*RUN, "device", "gpu"], 2, ("device is 'gpu'", "parameter device", "auto, cpu, mps, cuda")),
    ("two faults at once are both told", ["run", "quickstart", "-p", "lr", "0", "-p", "real_data", "fotos"], 2, ("lr is 0", "no folder fotos", "give a folder")),
    ("a shipped generator with a typo", [*RUN, "generator", "glyphworld/generater"], 2, ("no shipped model", "parameter generator", "there are glyphworld/clip")),
    ("a folder of a generator that is not there", [*RUN, "generator", "./sd15"], 2, ("no folder ./sd15", "parameter generator", "give a hub id")),
    ("a classifier that timm does not know", [*RUN, "classifier", "resnet1888"], 2, ("timm knows no", "parameter classifier", "near: ")),
    ("a CLIP that open_clip does not know", [*RUN, "clip", "ViT-B-33"], 2, ("has no weights", "parameter clip", "tags of it")),
    ("a file of meanings that is not there", [*RUN, "senses", "none.yaml"], 2, ("no file none.yaml", "parameter senses", "check its name")),
    ("a file of parameters that is not there", ["run", "quickstart", "-f", "none.yaml"], 2, ("does not exist", "none.yaml", "--help")),
    ("a file of parameters that is no YAML", ["run", "quickstart", "-f", "bad.yaml"], 2, ("is not YAML", "bad.yaml is not YAML in line 2", "write one `name: value` a line")),
    ("a file of parameters that is a list", ["run", "quickstart", "-f", "list.yaml"], 2, ("holds a list", "list.yaml", "name: value")),
    ("a run that is only looked at", ["run", "quickstart", "--dry-run", "-p", "shots", "2"], 0, ("nothing was started", "quickstart would run in", None)),
    ("what an experiment can be given", ["run", "quickstart", "--help"], 0, ("Parameters of quickstart", "real images per class", None)),
    ("which experiments there are", ["run", "--help"], 0, ("Experiments", "bridge_study", None)),
    ("a grid that names no experiment", ["sweep", "grid.yaml"], 2, ("does not say which experiment", "grid.yaml", "write `experiment: NAME`")),
    ("a grid with a typo", ["sweep", "typo.yaml"], 2, ("unknown parameter", "shot", "did you mean 'shots'")),
    ("a grid with a method that there is not", ["sweep", "method.yaml", "--dry-run"], 2, ("there is no 'bridgd'", "parameter methods", "did you mean bridged?")),
    ("the doctor on a file of any experiment", ["doctor", "shots.yaml"], 2, ("does not say which experiment", "shots.yaml", "name it")),
    # plans
    ("a scheduler that there is not", ["plan", "book.jsonl", "--scheduler", "DDIMSchedular"], 2, ("has no DDIMSchedular", "--scheduler", "near: DDIMScheduler")),
    ("a size that cannot be", ["plan", "book.jsonl", "--size", "33"], 2, ("multiples of 8|multiples of 4|multiples of 2", "--size 33", "such as 32")),
    ("a generator that is nowhere", ["plan", "book.jsonl", "--generator", "sd15"], 2, ("no folder sd15", "--generator", "owner/name")),
    ("a number type that there is not", ["plan", "book.jsonl", "--dtype", "int8"], 2, ("int8", "--dtype", "float32")),
    ("a book that is none", ["plan", "bad.jsonl"], 1, ("not a book of prompts", "bad.jsonl", "`synthnb prompts` writes one")),
    ("a book of another kind", ["plan", "decisions.csv"], 1, ("cannot tell the format", "decisions.csv", "end it in .parquet or .jsonl")),
    ("a plan of another kind", ["plan", "book.jsonl", "--out", "plan.csv"], 1, ("parquet file", "plan.csv", "call it")),
    ("another plan in its place", ["plan", "book.jsonl", "-n", "2", "--steps", "3", "--out", "plan.parquet"], 1, ("is another plan", "plan.parquet", "choose another name")),
    ("a part of the steps turned round", ["plan", "book.jsonl", "--guidance-interval", "0.8", "0.2", "--out", "x.parquet"], 1, ("guidance_interval", "0.8..0.2", "such as 0.2..0.8")),
    ("a plan of names that the generator was never taught", ["plan", "cats.jsonl", "-n", "1", "--out", "cats.parquet"], 0, ("warning: glyphworld/generator was never taught", "'cat'", "--generator")),
    # drawing
    ("no plan", ["generate", "book.jsonl"], 2, ("is not a plan", "book.jsonl", "make one")),
    ("an array that is numbered from 1", ["generate", "plan.parquet", "--shards", "4::4"], 2, ("numbered from 0 to 3", "--shards 4::4", "begin the array at 0")),
    ("a part that is none", ["generate", "plan.parquet", "--shards", "1of4"], 2, ("should be i::n", "--shards 1of4", "such as 0::4")),
    ("drawn already", ["generate", "plan.parquet"], 0, ("all 4 images", "in plan", None)),
    ("the number of a shard that a budget does not reach", ["generate", "two.parquet", "--out", "two", "--images", "1"], 1, ("budget of 1 images", "one shard", "raise it")),
    ("a folder that holds no shards", ["verify", "photos"], 1, ("no folder of shards", "photos", "`synthnb generate` makes")),
    ("an image that is not in the plan", ["why", "plan/0009-nine-000000"], 1, ("plan has no image", "0009-nine-000000", "ids are such as 0000-three-000000")),
    ("an image in a folder that is none", ["why", "photos/0000-three-000000"], 1, ("no folder of shards", "photos", "`synthnb generate` makes")),
    ("a damaged shard", ["verify", "damaged"], 1, ("corrupt", "000000", "its sidecar says")),
    # curation and export
    ("a filter without a CLIP", ["curate", "plan", "--agree"], 1, ("need", "--clip", "--clip")),
    ("a filter without real images", ["curate", "plan", "--leaked"], 1, ("need", "--real", "--real")),
    ("a probability in words", ["curate", "plan", "--clip", "glyphworld/clip", "--min-probability", "high"], 1, ("high", "--min-probability", "1/N, what a random draw gives")),
    ("a list with a path for its name", ["curate", "plan", "--name", "../kept"], 1, ("cannot be the name", "../kept", "take letters and digits")),
    ("images of names that CLIP was never taught", ["curate", "cats", "--clip", "glyphworld/clip", "--agree"], 2, ("never taught 'cat' and 'dog'", "glyphworld/clip", "--clip")),
    ("a copy of a shipped CLIP under another name", ["curate", "cats", "--clip", "./eye", "--agree"], 2, ("never taught 'cat' and 'dog'", "./eye", "--clip")),
    ("curation that is only looked at", ["curate", "plan", "--clip", "glyphworld/clip", "--agree", "--dry-run"], 0, ("4 images", "plan would be measured", None)),
    ("a format that there is not", ["export", "plan", "exported", "--format", "zip"], 1, ("zip", "format", "imagefolder")),
    ("an export into a folder that is in use", ["export", "plan", "photos"], 1, ("is not empty", "photos", "choose another folder")),
    ("the licence of a part that there is not", ["export", "plan", "exported", "--licence-of", "painter=mit"], 1, ("painter", "generator", "llm")),
    ("an export that is only looked at", ["export", "plan", "exported", "--dry-run"], 0, ("4 images", "exported as imagefolder", None)),
    # the rest
    ("a name that the world does not show", ["glyphworld", "show", "cat"], 1, ("does not know 'cat'", "glyphworld", "it knows")),
    ("a stage that there is not", ["glyphworld", "build", "--only", "painter", "--out", "built"], 1, ("no stage painter", "stages are", "clip")),
    ("stages that are only looked at", ["glyphworld", "build", "--dry-run"], 0, ("minutes", "clip", None)),
    ("an option with a typo", ["prompts", "three", "eight", "--sede", "1"], 2, ("No such option", "--sede", "--seed|--help")),
    ("a command with a typo", ["promts", "three"], 2, ("No such command", "promts", "prompts|--help")),
    # replies
    ("a server that is not there", ["prompts", "three", "eight", "--llm", "m", "--llm-url", "http://127.0.0.1:9/v1", "-n", "2", "--out", "none.jsonl"], 1,
     ("not one of 8 questions was answered", "onnection", "start again later")),
]
REAL = ("a folder with a typo, above", "photographs and the shipped models", "run: a folder that is not there", "a method with a typo", "an array that is numbered from 1", "which experiments there are")
# fmt: on


def noise(folder: Path, n: int = 8, first: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(first, first + n):
        Image.fromarray(
            np.random.default_rng([i, *folder.as_posix().encode()]).integers(0, 255, (32, 32, 3), dtype=np.uint8)
        ).save(folder / f"{i}.png")


def split_folders(root: str, *tops: str) -> None:
    for i, top in enumerate(tops):
        for name in ("three", "eight"):
            noise(Path(root, top, name), 4, 10 * i)


def layouts() -> None:
    "Folders and tables that can be read in more than one way."
    split_folders("spanish", "Entrenamiento", "Prueba")
    split_folders("archive", "training_set/training_set", "test_set/test_set")
    split_folders("domains", "trainA", "trainB", "testA", "testB")
    split_folders("leak", "train", "test")
    Image.open("leak/train/three/0.png").transpose(Image.Transpose.FLIP_LEFT_RIGHT).save("leak/test/three/m.png")
    for name in (
        "folds/fold1",
        "folds/fold2",
        "masked/images",
        "masked/masks",
        "masked/edges",
        "segmented/three/img",
        "segmented/three/gt",
        "segmented/eight/img",
        "segmented/eight/gt",
    ):
        noise(Path(name), 4)
    for name in ("three", "eight"):
        for folder in (f"damage/{name}", f"circle/{name}", f"kinds/{name}"):
            noise(Path(folder), 8)
    noise(Path("flat/images"))
    tables = {
        "unicode": ("Dateiname;Klasse", "images\\{}.PNG;{}", "utf-16"),
        "windows": ("file,label", "C:\\Users\\me\\{}.png,{}", "utf-8-sig"),
        "folds": ("file,label,fold", "{}.png,{},1", "utf-8"),
        "latin": ("file,label", "{}.png,caf\xe9 {}", "latin-1"),
        "onehot": ("file,three,eight", "{}.png,{},1", "utf-8"),
        "lost": ("file,label", "there/no{}.png,{}", "utf-8"),
        "disagree": ("file,label", "0.png,{1}", "utf-8"),
    }
    for table, (head, row, coding) in tables.items():
        Path(f"flat/{table}.csv").write_text(
            "\n".join([head, *(row.format(i, ("three", "eight")[i % 2]) for i in range(8))]), encoding=coding
        )


def pixels() -> None:
    "Files that are no images, and images of many kinds."
    smooth = [
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (6, 8, 3), dtype=np.uint8)).resize((120, 90))
        for i in range(12)
    ]
    Path("damage/eight/empty.png").touch()
    Path("damage/eight/page.jpg").write_text("<!doctype html><title>404</title>")
    smooth[0].save("damage/eight/whole.jpg")
    Path("damage/eight/cut.jpg").write_bytes(Path("damage/eight/whole.jpg").read_bytes()[:-400])
    Path("damage.yaml").write_text("experiment: compare\nbase: {real_data: damage}\ngrid: {shots: [[1], [2]]}\n")
    Path("circle/eight/again").symlink_to(Path("circle").absolute())
    home, exif = Path("kinds/eight"), smooth[1].getexif()
    exif[0x0112] = 6
    smooth[1].save(home / "turned.jpg", exif=exif)
    smooth[2].convert("CMYK").save(home / "cmyk.jpg")
    smooth[3].quantize(8).save(home / "palette.png", transparency=0)
    smooth[4].save(home / "anim.webp", save_all=True, append_images=[smooth[5]], duration=50)
    smooth[6].convert("1").save(home / "bit.tif", compression="group4")
    Image.fromarray(np.linspace(0, 65535, 3000).reshape(50, 60).astype(np.uint16)).save(home / "deep.png")
    for i in range(8):
        shifted = Image.new("RGB", (90, 90), "white")
        shifted.paste((0, 0, 0), (10 + 2 * i, 20, 50 + 2 * i, 60))
        Path("copies/square").mkdir(parents=True, exist_ok=True)
        shifted.save(f"copies/square/{i}.png")
    noise(Path("copies/three"))


def photographs(root: Path, names: tuple[str, str], n: int = 16) -> None:
    for name, picture in zip(names, ("china.jpg", "flower.jpg")):
        whole, draw = Image.fromarray(load_sample_image(picture)), random.Random(0)
        (root / name).mkdir(parents=True)
        for i in range(n):
            side = draw.randint(190, 380)
            left, top = draw.randint(0, whole.width - side), draw.randint(0, whole.height - side)
            whole.crop((left, top, left + side, top + side)).resize((64, 64)).save(root / name / f"{i}.jpg")


def says(words: list[str]) -> tuple[int, str]:
    done = CliRunner().invoke(app, words, prog_name="synthnb")
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.output


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    "A folder with everything that a row needs; commands are run in it."
    import pandas as pd

    from synthnb.images.plan import write_plan
    from synthnb.images.shards import generate_shards
    from synthnb.prompts.book import COLUMNS, save_book

    home, before = tmp_path_factory.mktemp("workshop"), Path.cwd()
    os.chdir(home)
    photographs(Path("photos"), ("building", "bloom"))
    photographs(Path("stars"), ("star", "three"))
    photographs(Path("numbered"), ("0_cat", "1_dog"), 2)
    noise(Path("lonely/three"))
    Path("empty").mkdir()
    noise(Path("hollow/three"))
    Path("hollow/eight").mkdir()
    noise(Path("broken/three"))
    noise(Path("broken/eight"))
    Path("broken/eight/bad.png").write_bytes(b"no image")
    layouts()
    pixels()
    Path("photos.yaml").write_text("real_data: photos\nshots: 2\n")
    Path("shots.yaml").write_text("shots: 2\n")
    Path("meanings.yaml").write_text("cat: arabic digit three\ndog: solid star\n")
    Path("bad.yaml").write_text("a: [1\nb: 2")
    Path("list.yaml").write_text("- shots\n")
    Path("grid.yaml").write_text("grid: {shots: [1, 2]}\n")
    Path("typo.yaml").write_text("experiment: quickstart\ngrid: {shot: [1, 2]}\n")
    Path("method.yaml").write_text("experiment: quickstart\ngrid: {methods: [[bridgd], [bridged]]}\n")
    Path("bad.jsonl").write_text("{no json\n")
    Path("bad.ipynb").write_text("no notebook")
    Path("decisions.csv").write_text("id,decision\n")
    for book, names in (("book", ("three", "eight")), ("cats", ("cat", "dog"))):
        rows = [
            dict.fromkeys(COLUMNS, "")
            | {
                "id": f"{label:04d}-000000",
                "label": label,
                "class": name,
                "phrase": name,
                "prompt": f"a photo of a {name}",
                "tokens": 5,
            }
            for label, name in enumerate(names)
        ]
        save_book(pd.DataFrame(rows), f"{book}.jsonl")
    settings = dict(seed=0, model="glyphworld/generator", steps=2, guidance=1.0)
    for name, classes in (("plan", ("three", "eight")), ("cats", ("cat", "dog"))):
        plan = write_plan(
            f"{name}-drawn.parquet" if name == "cats" else "plan.parquet",
            {one: [f"a photo of a {one}"] for one in classes},
            2,
            **settings,
            shard_size=4,
            batch_size=4,
        )
        generate_shards(plan, name, generator=Path(synthnb.__file__).parent / "weights" / "generator", progress=False)
    write_plan("two.parquet", {one: [one] for one in ("three", "eight")}, 2, **settings, shard_size=4, batch_size=4)
    shutil.copytree(Path(synthnb.__file__).parent / "weights" / "clip", "eye")
    shutil.copytree("plan", "damaged")
    tar = next(Path("damaged").glob("*.tar"))
    tar.write_bytes(tar.read_bytes()[:-3000] + b"x" * 1000)
    yield home
    os.chdir(before)


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def judge(name: str, status: int, output: str, wanted: int, parts: tuple) -> None:
    "One error line, nothing of a programmer's, and the three answers."
    assert status == wanted, (name, status, output)
    for ours in (str(Path(synthnb.__file__).parent), "Traceback", "[Errno", "UserWarning", "cli.py", "site-packages"):
        assert ours not in output.replace("\nError: ", "\n"), (name, ours, output)
    assert not re.search(r"[a-z](Error|Exception): ", output), (name, output)
    if (
        status
        and "Usage:" not in output
        and "page.html" not in output
        and not name.startswith(("a damaged shard", "doctor:"))
    ):
        errors = [line for line in output.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1 and output.splitlines()[-1] == errors[0], (name, output)
    flat = " ".join(output.replace("│", " ").split())
    for part in parts:
        assert part is None or re.search("|".join(map(re.escape, part.split("|"))), flat), (name, part, output)


@pytest.mark.parametrize("row", TABLE, ids=[row[0] for row in TABLE])
def test_what_a_user_sees(row, workshop):
    name, words, wanted, parts = row
    judge(name, *says(words), wanted, parts)


def test_the_table_is_long_enough_and_writes_nothing_where_it_refuses(workshop):
    assert len(TABLE) >= 60 and len({row[0] for row in TABLE}) == len(TABLE)
    assert not any(
        Path(left).exists() for left in ("prompts.jsonl", "outputs", "x.parquet", "exported", "plan.csv", "none.jsonl")
    )


@pytest.mark.parametrize("name", REAL)
def test_the_installed_command_says_the_same(name, workshop):
    row = next(row for row in TABLE if row[0] == name)
    done = subprocess.run([COMMAND, *row[1]], capture_output=True, text=True)
    judge(name, done.returncode, done.stdout + done.stderr, row[2], row[3])


LIGHT = [
    ["why", "plan/0000-three-000000"],
    ["verify", "plan"],
    ["plan", "book.jsonl", "-n", "2", "--steps", "2", "--out", "light.parquet"],
    ["doctor", "shots.yaml", "-e", "quickstart", "--no-measure"],
    ["run", "quickstart", "--help"],
    [*RUN, "methods", "[bridgd]"],
    [*RUN, "real_data", "photos"],
    [*RUN, "real_data", "damage"],
    ["prompts", "folds"],
    [*COMPARE, "spanish", "-p", "images", "stars"],
]
LOOK = """
import resource, sys
sys.argv[0] = "synthnb"
from synthnb.cli import app
try:
    app(prog_name="synthnb")
except SystemExit:
    pass
used = resource.getrusage(resource.RUSAGE_SELF)
print(sorted({"torch", "diffusers", "transformers", "timm", "open_clip", "papermill"} & set(sys.modules)), used.ru_utime + used.ru_stime)
"""


@pytest.mark.parametrize("words", LIGHT, ids=lambda words: " ".join(words[:2]))
def test_who_only_looks_imports_no_model_library(words, workshop):
    done = subprocess.run([sys.executable, "-c", LOOK, *words], capture_output=True, text=True)
    heavy, seconds = done.stdout.splitlines()[-1].rsplit(" ", 1)
    assert heavy == "[]" and float(seconds) < 2, done.stdout + done.stderr


def test_the_shipped_models_say_all_they_were_taught():
    from synthnb.glyphworld.chat import NAMES
    from synthnb.models.names import taught_names

    for model in ("clip", "generator", "llm"):
        assert taught_names(f"glyphworld/{model}") == tuple(sorted(set(NAMES))), (
            f"`synthnb glyphworld build` writes the list of {model}"
        )


def interrupted(*args, **options):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    "where, words, kept, goes_on",
    [
        (
            "synthnb.studies.run.run",
            ["run", "quickstart", "--outputs", "stopped"],
            "is kept in stopped",
            "same command goes on",
        ),
        (
            "synthnb.diversify.write_prompts",
            ["prompts", "three", "eight", "--out", "stop.jsonl"],
            "answers so far are kept in stop.answers.sqlite",
            "same command asks only what is missing",
        ),
        (
            "synthnb.images.shards.generate_shards",
            ["generate", "two.parquet", "--out", "two"],
            "whole shards are kept in two",
            "same command goes on",
        ),
        (
            "synthnb.images.share.export_images",
            ["export", "plan", "exported"],
            "is kept in exported",
            "same command goes on",
        ),
        ("synthnb.images.scores.score_images", ["curate", "plan"], "no list was written", "measured again"),
        (
            "synthnb.images.shards.verify",
            ["verify", "plan"],
            "nothing that was there is changed",
            "the same command begins again",
        ),
    ],
)
def test_who_stops_a_command_is_told_what_is_kept(where, words, kept, goes_on, workshop, monkeypatch):
    monkeypatch.setattr(where, interrupted)
    status, output = says(words)
    assert status == 130 and "stopped: " in output and kept in output and goes_on in output, output


@pytest.mark.parametrize(
    "where, words, kept",
    [
        ("synthnb.studies.run.run", ["run", "quickstart", "--outputs", "."], "is kept in ."),
        ("synthnb.studies.sweep.run_sweep", ["sweep", "grid.yaml", "--outputs", "."], "finished cells are kept"),
    ],
)
def test_who_stops_a_command_twice_is_told_once_what_is_kept(where, words, kept, workshop, monkeypatch):
    "While the page of all runs was made a second Ctrl-C said that nothing was changed and all begins again."
    Path("grid.yaml").write_text("experiment: quickstart\ngrid:\n  seeds: [[0], [1]]\n", encoding="utf-8")
    monkeypatch.setattr(where, interrupted)
    monkeypatch.setattr("synthnb.studies.index.write_index", interrupted)
    status, output = says(words)
    assert status == 130 and output.count("stopped") == 1 and kept in output and "begins again" not in output, output


def test_a_disk_that_fills_inside_a_shard_is_named_with_what_is_needed(workshop, monkeypatch):
    "The command said that the disk is full, and neither which nor how much is missing."
    from synthnb.images.writer import ShardWriter

    write = ShardWriter._write

    def full(writer, content):
        if writer.images == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(writer, content)

    monkeypatch.setattr(ShardWriter, "_write", full)
    status, output = says(["generate", "two.parquet", "--out", "narrow"])
    said = (
        r"error: the disk of \S*narrow is full: [\d.]+ MB are free, about [\d.]+ MB are needed for the rest of the plan"
    )
    assert status == 1 and re.search(f"{said}. 0 of 1 shards are published and whole; make space and start", output), (
        output
    )


def test_a_lease_that_a_full_disk_leaves_empty_is_not_waited_for(tmp_path, monkeypatch):
    from synthnb.images import worker

    def full(owner):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(worker.json, "dumps", full)
        with pytest.raises(OSError, match=re.escape(str(tmp_path / "000000.0"))):
            worker.Leases(tmp_path).claim("000000")
    assert worker.Leases(tmp_path).claim("000000")


class Talker(BaseHTTPRequestHandler):
    "A chat server that answers every question with the text `reply`."

    reply, asked = "", 0

    def do_POST(self):
        Talker.asked += 1
        self.rfile.read(int(self.headers["Content-Length"]))
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": Talker.reply}}
        body = json.dumps(
            {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
        ).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    serving = HTTPServer(("127.0.0.1", 0), Talker)
    thread = threading.Thread(target=serving.serve_forever, daemon=True)
    thread.start()
    Talker.asked = 0
    yield f"http://127.0.0.1:{serving.server_port}/v1"
    serving.shutdown()
    thread.join()


@pytest.mark.parametrize(
    "reply", ["", "I'm sorry, I cannot help with that.", "hello there", '{"scenes": [', "<think>it may be a digit"]
)
def test_replies_that_are_no_answers_make_no_book(reply, server, workshop):
    Talker.reply = reply
    status, output = says(
        [
            "prompts",
            "cat",
            "dog",
            "--llm",
            "m",
            "--llm-url",
            server,
            "-n",
            "2",
            "--out",
            f"reply{abs(hash(reply))}.jsonl",
        ]
    )
    judge(
        "a reply that is no answer", status, output, 1, ("not one of 8 questions|no prompts", "answered|cat", "again")
    )
    assert Talker.asked


def test_bad_names_cost_no_question(server, workshop):
    for names in (["three", "a\nb"], ["cat", "Cat"], ["cat"], ["../cats"]):
        status, output = says(["prompts", *names, "--llm", "m", "--llm-url", server])
        assert status == 2 and not Talker.asked, output


def test_refusals_are_quick(workshop):
    begun = time.process_time()
    for words in ([*RUN, "real_data", "fotos"], [*RUN, "methods", "[bridgd]"], [*RUN, "real_data", "photos"]):
        assert says(words)[0] == 2
    assert time.process_time() - begun < 2
