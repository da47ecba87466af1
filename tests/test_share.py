"""Exports and what may befall them, with real files and real kills.

nbs/images/share.ipynb opens each layout with its own reader.
"""

import json
import multiprocessing
import os
import random
import shutil
import signal
import tarfile
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image

import synthnb
from synthnb.cli.looks import look_at_study
from synthnb.generate import DrawnBatch
from synthnb.images.card import find_licence, licence_warnings
from synthnb.images.curate import Filters, curate, open_synthetic, read_kept, write_kept
from synthnb.images.folder import ShardFolder, open_folder
from synthnb.images.inspection import why
from synthnb.images.plan import write_plan
from synthnb.images.review import _ShardImages, gallery, listed_images
from synthnb.images.scores import score_images
from synthnb.images.share import About, export_images
from synthnb.images.worker import make_shards

FORMATS = ("imagefolder", "webdataset", "parquet")
FORK = multiprocessing.get_context("fork")
CLASSES = {"crane": ["a crane", "a crane at night"], 'ab: "odd" | *name*': ["an odd thing"], "kite": ["a kite"]}


def noise(rows: pd.DataFrame):
    """Batches of pictures that nothing has drawn: what matters here is files. One row fails."""
    for start in range(0, len(rows), 64):
        part = rows.iloc[start : start + 64]
        images = torch.randint(
            0,
            256,
            (len(part), 3, 16, 16),
            dtype=torch.uint8,
            generator=torch.Generator().manual_seed(int(part.seed.iloc[0] % 2**31)),
        )
        yield DrawnBatch(
            part, images, [0] * len(part), {i: "blank" for i, key in enumerate(part.id) if key == "0002-kite-000003"}
        )


def fill(path: Path, per_class: int, shard_size: int = 64) -> Path:
    """A folder of shards of such pictures."""
    plan = write_plan(
        path.with_name(f"{path.name}.parquet"),
        CLASSES,
        per_class,
        seed=0,
        model="somebody/model",
        steps=1,
        guidance=1.0,
        shard_size=shard_size,
        batch_size=64,
    )
    home = open_folder(path, plan)
    made = {
        "loop": "none",
        "revision": "abc",
        "style": "",
        "scheduler": "none",
        "dtype": "float32",
        "format": "png",
        "quality": 0,
    }
    make_shards(home, home.pieces(), noise, made)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return fill(tmp_path_factory.mktemp("home") / "shards", 300)


def export(folder, out, format, licence="", **options):
    """An export that warns of nothing: the generator's licence is said."""
    about = About(licence=licence, licences={"generator": "mit"})
    return export_images(folder, out, format, about=about, progress=False, **options)


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "export.lock"
    }


@pytest.mark.parametrize("format", FORMATS)
def test_kill_9_in_the_middle_then_whole_and_identical(folder, tmp_path, format):
    chance = random.Random(0)
    start = time.monotonic()
    worker = FORK.Process(target=export, args=(folder, tmp_path / "whole", format))
    worker.start()
    worker.join()
    assert worker.exitcode == 0
    undisturbed, took, kills = files(tmp_path / "whole"), time.monotonic() - start, 0
    for attempt in range(50):
        worker = FORK.Process(target=export, args=(folder, tmp_path / "killed", format))
        worker.start()
        while worker.is_alive() and not (tmp_path / "killed" / ".synthnb" / "export.json").exists():  # it has begun
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.3) * took * (1 + attempt / 5))
        if worker.is_alive() and not (tmp_path / "killed" / "README.md").exists():
            os.kill(worker.pid, signal.SIGKILL)
            kills += 1
        worker.join()
        if worker.exitcode == 0:
            if kills:
                break
            shutil.rmtree(tmp_path / "killed")  # it was done before the kill came
    assert worker.exitcode == 0 and kills, "a kill that hits nothing proves nothing"
    assert files(tmp_path / "killed") == undisturbed
    assert not [name for name in undisturbed if name.endswith(".partial")] and len(listed_images(folder)) == 899


def test_a_finished_export_is_not_done_again_but_its_card_is(folder, tmp_path):
    export(folder, tmp_path, "webdataset")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.tar")}
    export(folder, tmp_path, "webdataset", licence="cc0-1.0")
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.tar")} == before and len(before) == 15
    assert yaml.safe_load((tmp_path / "README.md").read_text().split("---\n")[1])["license"] == "cc0-1.0"


def test_names_that_are_no_file_names_stay_themselves(folder, tmp_path):
    export(folder, tmp_path, "imagefolder")
    assert sorted(path.name for path in (tmp_path / "train").iterdir()) == [
        "0000-crane",
        "0001-ab-odd-name",
        "0002-kite",
        "metadata.jsonl",
    ]
    record = json.loads((tmp_path / "train" / "metadata.jsonl").read_text().splitlines()[1])
    assert (
        record["class"] == 'ab: "odd" | *name*'
        and why(tmp_path / "train" / record["file_name"])["class"] == record["class"]
    )
    assert 'ab: "odd" \\| \\*name\\*' in (tmp_path / "README.md").read_text()


def test_damage_is_found_on_the_way_and_a_lost_picture_named(folder, tmp_path):
    home = ShardFolder(folder)
    copy = tmp_path / "shards"
    (copy / ".synthnb" / "plans").mkdir(parents=True)
    for path in [*folder.glob("*.tar"), *(folder / ".synthnb" / "plans").glob("*")]:
        (copy / path.relative_to(folder)).write_bytes(path.read_bytes())
    with tarfile.open(copy / "000002.tar") as opened:
        place = opened.getmembers()[10]
    with open(copy / "000002.tar", "r+b") as file:
        file.seek(place.offset_data + place.size - 20)
        file.write(b"x")
    rows = listed_images(folder)
    with pytest.raises(ValueError, match=f"{place.name[:-4]} of shard 000002 is not what its provenance record says"):
        export(copy, tmp_path / "out", "parquet", kept=rows)
    lost = pd.concat([rows, pd.DataFrame({"id": ["0002-kite-000003"], "shard": "000000", "label": 2, "class": "kite"})])
    with pytest.raises(ValueError, match="has no image of 0002-kite-000003"):
        export(folder, tmp_path / "lost", "webdataset", kept=lost)
    with pytest.raises(ValueError, match="has no image of 0002-kite-000003"):
        _ShardImages(folder).read("0002-kite-000003")
    assert home.published() == {f"{i:06d}" for i in range(15)}


def test_kept_list_from_its_file(folder, tmp_path):
    path = write_kept(curate(score_images(folder, progress=False), Filters(blank=2.0)), progress=False)
    kept = read_kept(path)
    assert export(folder, tmp_path / "out", "imagefolder", kept=path).images == len(kept) > 10
    assert 'filters: {"blank": 2.0}' in (tmp_path / "out" / "README.md").read_text()
    kept.attrs = {"plan": "another"}
    with pytest.raises(ValueError, match="the kept list is of the plan another"):
        export(folder, tmp_path / "other", "imagefolder", kept=kept)


@pytest.mark.parametrize("format", FORMATS)
def test_every_export_can_be_given_back_as_synthetic_images(folder, tmp_path, format):
    kept = listed_images(folder).groupby("label").head(5).reset_index(drop=True)
    kept.loc[0, ["label", "class"]] = [2, "kite"]  # as a review may find
    export(folder, tmp_path / "out", format, kept=kept)
    for i, name in enumerate(["crane", 'ab: "odd" | *name*', "kite"] * 3):
        (tmp_path / "real" / name).mkdir(parents=True, exist_ok=True)
        picture = np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(picture).save(tmp_path / "real" / name / f"{i}.png")
    look_at_study({"real_data": str(tmp_path / "real"), "images": str(tmp_path / "out")})
    order = ("kite", 'ab: "odd" | *name*', "crane")
    found = open_synthetic(tmp_path / "out", 16, order)
    assert found.per_class == {"kite": 6, 'ab: "odd" | *name*': 5, "crane": 4}
    both = open_synthetic(folder, 16, order)
    drawn = dict(zip(map(bytes, both.images.flatten(1).numpy()), both.labels.tolist()))
    moved = [drawn[bytes(image)] != label for image, label in zip(found.images.flatten(1).numpy(), found.labels)]
    assert len(drawn) == len(both) and sum(moved) == 1


def test_an_unknown_licence_is_said_to_be_unknown(folder, tmp_path):
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        export_images(folder, tmp_path, "webdataset", about=About("mit"), progress=False)
    assert [str(line.message) for line in heard] == [
        "the licence of generator somebody/model is unknown: find out before sharing, and state it"
    ]
    assert "| generator | somebody/model | unknown |" in (tmp_path / "README.md").read_text()


def test_a_path_of_this_machine_does_not_get_into_the_card(tmp_path):
    model = tmp_path / "secret" / "my-model"
    model.mkdir(parents=True)
    (model / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    part = find_licence("generator", str(model))
    assert (part.name, part.licence) == ("my-model", "cc-by-nc-4.0")
    assert "non-commercial" in licence_warnings([part], "apache-2.0")[0]
    assert find_licence("generator", str(tmp_path / "gone" / "model")).name == "model"


def test_every_line_of_the_licence_table_has_a_source_and_known_terms():
    table = json.loads((Path(synthnb.__file__).parent / "images" / "licences.json").read_text())
    for name in table:
        part = find_licence("generator", name)
        assert part.source.startswith("https://") or (Path(synthnb.__file__).parents[1] / part.source).is_file()
        assert not licence_warnings([part]), f"the terms of {part.licence} are not known"


def test_two_exports_to_one_folder_do_not_mix(folder, tmp_path):
    from filelock import FileLock

    (tmp_path / ".synthnb").mkdir()
    with FileLock(tmp_path / ".synthnb" / "export.lock"):
        worker = FORK.Process(target=export, args=(folder, tmp_path, "webdataset"))
        worker.start()
        worker.join()
    assert worker.exitcode == 1 and not list(tmp_path.glob("*.tar"))


def test_gallery_reads_a_page_not_the_folder(folder):
    view = gallery(folder, "anna", order=["kite"])
    assert len(view.cards) == 50 and {card["class"] for card in view.cards} == {"kite"}
    assert 2 <= len(view.images._places) <= 4, "50 images of every third row lie in three or four shards of 64"
