"""Commands that only look at files import no library that draws or trains: importing those takes seconds."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from PIL import Image
from shard_images import plan_of, shard_images

from synthnb.data import DIGITS
from synthnb.datasets.known import TARGETS
from synthnb.datasets.sets import list_set
from synthnb.datasets.targets import open_target
from synthnb.images.folder import ShardFolder
from synthnb.prompts.book import COLUMNS, save_book
from synthnb.studies.doctor_data import Size, check_set

PARAMETERS = Path(__file__).resolve().parents[1] / "nbs" / "experiments" / "params"
HEAVY = ("torch", "diffusers", "transformers", "torchvision", "timm", "open_clip", "sklearn", "scipy", "matplotlib")
SCRIPT = f"""
import sys
from synthnb.cli import app
try:
    app()
finally:
    print("imported:", *(name for name in {HEAVY} if name in sys.modules))
"""


def imported(*command) -> list[str]:
    """The heavy libraries that a command has imported when it ends, in a Python of its own."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SYNTHNB_WARM")}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *map(str, command)], capture_output=True, text=True, env=environment
    )
    said = done.stdout.splitlines()
    assert done.returncode in (0, 1) and "Traceback" not in done.stderr, done.stderr
    assert len(said) > 1, f"{command} says nothing: {done.stderr}"
    return said[-1].removeprefix("imported:").split()


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A book of prompts, and a folder of shards with its plan."""
    place = tmp_path_factory.mktemp("start")
    plan = plan_of(place / "plan.parquet", DIGITS[:2], 2)
    shard_images(place / "shards", plan, torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8))
    blank = dict.fromkeys(COLUMNS, "") | {"pool": "base", "tokens": 6}
    rows = [
        blank | {"id": f"{i:04d}-000000", "label": i, "class": name, "phrase": name, "prompt": f"a photo of a {name}"}
        for i, name in enumerate(DIGITS[:2])
    ]
    save_book(pd.DataFrame(rows), place / "book.jsonl")
    return place


def test_looking_at_shards_imports_no_torch(home):
    first = ShardFolder(home / "shards").plan.rows(0, 1)["id"][0]
    assert imported("why", home / "shards" / first) == []
    assert imported("verify", home / "shards") == []


def test_planning_imports_no_torch(home):
    assert imported("plan", home / "book.jsonl", "-n", 2, "--out", home / "new.parquet") == []
    assert (home / "new.parquet").is_file()


@pytest.mark.parametrize("source", ["digits", "mnist", "silhouettes", "folder", "nowhere", "hf:ethz/food101"])
def test_a_doctor_that_measures_nothing_imports_no_torch(home, source):
    folder = home / "images"
    for name in ("train/0_cat", "train/1_dog", "test/0_cat", "test/1_dog"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20)).save(folder / name / "1.png")
    meant = folder if source == "folder" else source
    file = PARAMETERS / "glyphworld" / "volume_study.yaml"
    assert imported("doctor", file, "-p", "real_data", meant, "--no-measure") == []


def test_a_grid_is_looked_at_without_torch(home):
    grid = home / "grid.yaml"
    grid.write_text("experiment: quickstart\nbase: {real_data: mnist}\ngrid: {seeds: [[0], [1]]}\n")
    assert imported("doctor", grid, "--no-measure") == []


def test_reading_a_set_waits_for_no_library_of_models():
    script = f"import sys, synthnb.datasets.sets; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['torch', 'scipy']"


@pytest.mark.parametrize("name", TARGETS)
def test_the_doctor_counts_what_a_shipped_set_trains_with(name, tmp_path):
    opened = open_target(name)["train"]
    assert check_set(name, tmp_path)[1] == Size(len(opened.classes), len(opened))


@pytest.mark.parametrize("split", [True, False])
def test_the_doctor_counts_a_folder_as_it_is_listed(split, tmp_path):
    for i in range(5):
        for name in ("cat", "dog"):
            place = tmp_path / "pets" / ("train" if i < 3 else "test") / name if split else tmp_path / "pets" / name
            place.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (20, 20), (i, 0, 0)).save(place / f"{i}.png")
    listed = list_set(tmp_path / "pets")
    told = ", ".join(f"{len(one):,} {name}" for name, one in listed.items())
    assert f"2 classes, {told}; files were listed" in check_set(str(tmp_path / "pets"))[0].told


def test_a_folder_of_a_known_name_is_what_the_doctor_looks_at(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("cat", "dog", "owl"):
        (tmp_path / "mnist" / name).mkdir(parents=True)
        Image.new("RGB", (20, 20)).save(tmp_path / "mnist" / name / "1.png")
    found, size = check_set("mnist")
    assert size.classes == 3 and "the folder is read" in found.told
