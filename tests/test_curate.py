"""Curation with real scans, glyphworld's CLIP, real files and a real kill -9."""

import io
import json
import math
import multiprocessing
import os
import signal
import time

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from shard_images import plan_of, shard_images

from synthnb.data import DIGITS, digits
from synthnb.datasets.duplicates import thumbnails
from synthnb.datasets.listed import list_shards
from synthnb.glyphworld import world as glyphworld
from synthnb.images.curate import Curation, Filters, curate, kept_path, load_kept, read_kept, stream_kept, write_kept
from synthnb.images.drawer import Drawing
from synthnb.images.folder import _stream_shards, read_tar
from synthnb.images.plan import write_plan
from synthnb.images.scores import (
    Scores,
    _load_scores,
    _nearest,
    _pixel_statistics,
    _reference_thumbnails,
    _tree,
    class_phrases,
    class_texts,
    first_alike,
    score_images,
)
from synthnb.images.shards import generate_shards, verify
from synthnb.models.clip import Clip, load_clip

torch.set_num_threads(1)
FORK = multiprocessing.get_context("fork")
MEANT = {name: f"arabic digit {name}" for name in DIGITS}


@pytest.fixture(scope="module")
def scans():
    return digits(32)


@pytest.fixture(scope="module")
def clip():
    return load_clip(glyphworld.folder("clip"), device="cpu")


@pytest.fixture(scope="module")
def rendered():
    """200 digits of glyphworld in the order of a plan: 0 to 9, 0 to 9, ..."""
    scenes = glyphworld.sample_scenes(
        200,
        torch.Generator().manual_seed(0),
        senses=torch.tensor([glyphworld.SENSE_INDEX[MEANT[name]] for name in DIGITS]),
    )
    scenes.sense = torch.tensor([glyphworld.SENSE_INDEX[MEANT[name]] for name in DIGITS]).repeat(20)
    return glyphworld.render(scenes)


@pytest.fixture(scope="module")
def home(tmp_path_factory, rendered):
    place = tmp_path_factory.mktemp("curate")
    plan = plan_of(place / "plan.parquet", DIGITS, 20, shard_size=64)
    return shard_images(place / "shards", plan, rendered)


@pytest.fixture(scope="module")
def scores(home, clip, scans):
    return score_images(home.path, clip, phrases=MEANT, train=scans["train"], test=scans["test"], progress=False)


# ---- scores


def test_scores_are_those_of_each_image_alone(home, scores, clip, rendered, scans):
    texts = clip.encode_texts([f"a photo of a {phrase}" for phrase in MEANT.values()])
    for row in (0, 63, 64, 199):  # both sides of a shard's border
        image = rendered[row : row + 1]
        cosines = clip.encode_images(clip.prepare(image)) @ texts.T
        told = scores.table.iloc[row]
        assert told.label == row % 10 and told.clip_label == cosines.argmax()
        assert told.clip_cosine == pytest.approx(cosines[0, row % 10].item(), abs=1e-5)
        assert told.clip_probability == pytest.approx(
            (cosines * clip.model.logit_scale.exp()).softmax(1)[0, row % 10].item(), abs=1e-5
        )
        likeness = (thumbnails(image) @ thumbnails(scans["test"].images).T)[0]
        assert (
            told.test_similarity == pytest.approx(likeness.max().item(), abs=1e-3)
            and likeness[told.test_index] > likeness.max() - 1e-3
        )
        assert told.contrast == pytest.approx(image.float().mean(1).std(correction=0).item(), abs=1e-3)
    assert torch.equal(scores.tensor("thumbnail"), thumbnails(rendered).half())


def test_percentile_is_the_rank_within_the_class(scores):
    own = scores.table[scores.table.label == 3].sort_values("clip_cosine")
    assert own.clip_percentile.tolist() == pytest.approx(np.arange(1, 21) / 20)


def test_a_second_call_scores_nothing(home, scores, clip, scans, monkeypatch):
    monkeypatch.setattr(clip, "encode_images", lambda prepared: pytest.fail("scored again"))
    again = score_images(home.path, clip, phrases=MEANT, train=scans["train"], test=scans["test"], progress=False)
    pd.testing.assert_frame_equal(again.table, scores.table)
    pd.testing.assert_frame_equal(_load_scores(home.path).table, scores.table)


def test_a_clip_looks_at_each_image_once(tmp_path, clip, monkeypatch):
    """Whoever comes first, drawing or curating: what a CLIP saw of an image is what everybody reads."""
    looks, look = [], Clip.encode_images

    def counted(self, prepared):
        looks.append(len(prepared))
        return look(self, prepared)

    monkeypatch.setattr(Clip, "encode_images", counted)
    prompts = {name: [f"a photo of arabic digit {name}, neon at night"] for name in ("three", "eight")}
    about = dict(seed=0, model="glyphworld/generator", steps=2, guidance=1.0, shard_size=8, batch_size=4)
    plan = write_plan(tmp_path / "plan.parquet", prompts, 8, **about)
    generator, scored = (
        glyphworld.folder("generator"),
        Drawing(device="cpu", kind="png", clip=glyphworld.folder("clip")),
    )
    folder, meant = tmp_path / "shards", {name: MEANT[name] for name in prompts}

    def passes(work):
        looks.clear()
        return work(), sum(looks)

    def curated(phrases, by=clip):
        return passes(lambda: score_images(folder, by, phrases=phrases, progress=False))

    assert passes(lambda: generate_shards(plan, folder, generator, drawing=scored, progress=False))[1] == 16
    found, seen = curated(meant)
    assert seen == 0, "curation reads what was seen while drawing"
    told = [record["scores"] for _, record in _stream_shards(folder)]
    cosines = (found.tensor("features").float() * clip.encode_texts([one["clip_text"] for one in told])).sum(1)
    assert np.allclose(cosines, [one["clip"] for one in told], atol=1e-3), "the same as in the provenance records"
    assert curated({"three": "a circle", "eight": "a star"})[1] == 0, "other texts are compared with what was seen"

    files = sorted((folder / ".synthnb" / "curation").glob("clip-*/*.parquet"))
    assert [file.stem for file in files] == ["000000", "000001"]
    files[0].unlink()
    assert curated({"three": "a square", "eight": "a star"})[1] == 8, "only what is missing"
    (folder / "000001.tar").unlink()
    assert passes(lambda: generate_shards(plan, folder, generator, drawing=scored, progress=False))[1] == 8
    again, seen = curated(meant)
    assert seen == 0 and again.table.equals(found.table), "a shard drawn anew was seen anew"
    assert curated(meant, load_clip(glyphworld.folder("clip"), device="cpu", dtype="bfloat16"))[1] == 16, "another CLIP"


def test_features_in_scores_of_earlier_versions_are_read(tmp_path, clip, rendered):
    home = shard_images(tmp_path / "shards", plan_of(tmp_path / "plan.parquet", DIGITS, 2), rendered[:20])
    scores = score_images(home.path, clip, phrases=MEANT, progress=False)
    values = scores.tensor("features")
    column = pa.FixedShapeTensorArray.from_numpy_ndarray(values.numpy())
    old = pq.read_table(scores.files[0])
    pq.write_table(old.append_column("features", column).replace_schema_metadata(old.schema.metadata), scores.files[0])
    next((home.own / "curation").glob("clip-*/*.parquet")).unlink()
    assert torch.equal(_load_scores(home.path).tensor("features"), values)
    assert "features" not in _load_scores(home.path).table
    pq.write_table(old, scores.files[0])
    with pytest.raises(ValueError, match="has no features of .*: take .* away and score the images again"):
        _load_scores(home.path).tensor("features")


def test_other_texts_or_other_real_images_are_other_scores(home, scores, clip, scans):
    bare = score_images(home.path, clip, train=scans["train"], test=scans["test"], progress=False)
    less = score_images(home.path, None, test=scans["val"], progress=False)
    assert len({bare.place, less.place, scores.place}) == 3
    assert "clip_label" not in less.table and "train_similarity" not in less.table
    with pytest.raises(ValueError, match="score the images with a CLIP"):
        less.tensor("features")


def test_a_shard_that_was_made_anew_is_scored_anew(tmp_path, rendered):
    plan = plan_of(tmp_path / "plan.parquet", DIGITS, 20)
    home = shard_images(tmp_path / "shards", plan, rendered)
    before = score_images(home.path, progress=False)
    home.tar("000001").unlink()
    assert len(_load_scores(home.path).table) == 200 - 64
    shard_images(home.path, plan, 255 - rendered)
    assert len(_load_scores(home.path).table) == 200 - 64, "scores of another tar do not count"
    after = score_images(home.path, progress=False).table
    changed = (after.pixels != before.table.pixels).to_numpy()
    assert np.flatnonzero(changed).tolist() == list(range(64, 128))


def _score_slowly(folder):
    score_images(folder, batch_size=1, progress=False)


def test_kill_9_loses_at_most_one_shard(tmp_path, rendered):
    plan = plan_of(tmp_path / "plan.parquet", DIGITS, 20, shard_size=2)
    home = shard_images(tmp_path / "shards", plan, rendered)
    process = FORK.Process(target=_score_slowly, args=(home.path,))
    process.start()
    while not (done := list((home.own / "curation").glob("scores-*/*.parquet"))):
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    done = {file: file.stat().st_mtime_ns for file in (home.own / "curation").glob("scores-*/*.parquet")}
    assert 1 <= len(done) < 100, "killed too late"
    table = score_images(home.path, progress=False).table
    assert all(file.stat().st_mtime_ns == at for file, at in done.items()), "what was done is not done again"
    assert table.id.tolist() == [record["id"] for _, record in _stream_shards(home.path)]


def test_a_damaged_image_is_named(tmp_path, rendered):
    plan = plan_of(tmp_path / "plan.parquet", DIGITS, 2)
    home = shard_images(tmp_path / "shards", plan, rendered[:20])
    content, record = next(_stream_shards(home.path))
    whole = home.tar("000000").read_bytes()
    home.tar("000000").write_bytes(whole.replace(content[:60], bytes(60), 1))
    with pytest.raises(ValueError, match=f"image {record['id']} cannot be read"):
        score_images(home.path, progress=False)
    assert verify(home.path, progress=False), "which is what the message promises"


def test_an_image_that_is_not_what_its_record_says_is_named(tmp_path, rendered):
    home = shard_images(tmp_path / "shards", plan_of(tmp_path / "plan.parquet", DIGITS, 2), rendered[:20])
    _, record = next(_stream_shards(home.path))
    whole = home.tar("000000").read_bytes()
    home.tar("000000").write_bytes(whole.replace(b'"height": 32', b'"height": 16', 1))
    with pytest.raises(ValueError, match=f"image {record['id']} cannot be read .it is 32x32, its .* record says 32x16"):
        score_images(home.path, progress=False)


def test_images_of_several_sizes(tmp_path, rendered):
    plan = plan_of(tmp_path / "plan.parquet", ("a", "b"), 2, shard_size=2)
    home = shard_images(tmp_path / "shards", plan, rendered[:4])
    (tmp_path / "other").mkdir()
    other = shard_images(
        tmp_path / "other" / "shards", plan, torch.nn.functional.interpolate(rendered[:4].float(), 64).byte()
    )
    os.replace(other.tar("000001"), home.tar("000001"))
    (home.own / "stats" / "000001.json").write_bytes((other.own / "stats" / "000001.json").read_bytes())
    scores = score_images(home.path, progress=False)
    assert scores.tensor("thumbnail").shape == (4, 256)
    assert load_kept(home.path, resize=32).images.shape == (4, 3, 32, 32)


def test_phrases_of_a_plan_with_several_senses(tmp_path, clip):
    rows = [
        (label, name, f"{sense} {i}", sense, "full", i)
        for label, (name, senses) in enumerate({"crane": ["crane bird", "crane machine"], "star": ["star"]}.items())
        for i, sense in enumerate(senses)
    ]
    book = pd.DataFrame(rows, columns=["label", "class", "prompt", "phrase", "pool", "n"]).assign(
        id=lambda t: [f"{label:04d}-{n:06d}" for label, n in zip(t.label, t.n)], context_key="", style_key=""
    )
    plan = write_plan(tmp_path / "plan.parquet", book, 4, seed=0, model="elsewhere", steps=1, guidance=1.0)
    assert class_phrases(plan) == {"crane": ["crane bird", "crane machine"], "star": ["star"]}


def test_clip_may_see_what_is_no_class(home, scores, clip):
    wider = score_images(home.path, clip, phrases=MEANT, others=["circled digit three", "letter o"], progress=False)
    assert wider.choices == [*DIGITS, "circled digit three", "letter o"] and wider.place != scores.place
    assert (wider.table.clip_probability <= scores.table.clip_probability + 1e-6).all() and (
        wider.table.clip_cosine - scores.table.clip_cosine
    ).abs().max() < 1e-5
    elsewhere = (wider.table.clip_label >= 10).to_numpy()
    assert 0 < elsewhere.sum() < 60 and (wider.table.clip_label == scores.table.clip_label)[~elsewhere].all()
    assert (curate(wider, Filters(agree=True)).table.reason[elsewhere] != "").all()
    below = curate(wider, Filters(min_probability="1/N")).table.reason != ""
    assert below.tolist() == (wider.table.clip_probability <= 1 / 12).tolist()


def test_a_template_may_name_the_class(clip):
    texts = class_texts(clip, {"crane": ["bird"], "star": ["sun", "light"]}, ["{name} the {phrase}"], others=["moon"])
    alone = clip.encode_texts(["crane the bird", "star the sun", "star the light", "moon the moon"])
    assert (
        torch.allclose(texts.features, alone, atol=1e-5)
        and texts.owners.tolist() == [0, 1, 1, 2]
        and texts.choices == 3
    )
    assert torch.allclose(texts.cosines(alone)[:, 1], (alone @ alone[1:3].T).amax(1), atol=1e-5)


# ---- near-duplicates


def test_nearest_is_the_brute_force_answer_across_tiles(scans):
    a, b = thumbnails(scans["test"].images), thumbnails(scans["train"].images)
    similarity, index = _nearest(a, b, tile=100)
    best = (a @ b.T).max(1)
    assert torch.allclose(similarity, best.values, atol=1e-6) and torch.equal(index, best.indices)


def test_of_those_that_stay_no_two_are_alike_and_all_others_are_alike_to_one(scans):
    thumbs = thumbnails(
        torch.cat([scans["train"].images, scans["val"].images, scans["train"].images.flip(0)])
    )  # more than one block
    found = first_alike(thumbs, 0.97)
    stay = (found < 0).nonzero().flatten()
    assert (thumbs[stay] @ thumbs[stay].T).fill_diagonal_(0).max() < 0.97
    gone = (found >= 0).nonzero().flatten()
    assert len(gone) >= 897 and torch.isin(found[gone], stay).all() and (found[gone] < gone).all()
    assert ((thumbs[gone] * thumbs[found[gone]]).sum(1) >= 0.97 - 1e-6).all()


def test_a_collapsed_set_needs_no_memory_for_its_pairs():
    same = torch.nn.functional.normalize(torch.ones(5000, 8))
    assert first_alike(same).tolist() == [-1] + [0] * 4999


@pytest.mark.parametrize("kind", ["smooth", "clusters", "equal", "blank", "one motif"])
@pytest.mark.parametrize("alike", [0.997, 0.98])
def test_a_tree_finds_what_comparing_all_with_all_finds(kind, alike):
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator)
    unit = torch.nn.functional.normalize
    falls = 1 / (1 + torch.arange(256.0))  # of most directions little is left, as in photographs
    thumbs = unit(draw(3000, 256) * falls)
    if kind == "smooth":  # each tenth is a copy
        thumbs[::10] = unit(thumbs[1::10] + 0.002 * draw(300, 256))
    elif kind == "clusters":
        thumbs = unit(thumbs[torch.arange(3000) % 200] + torch.linspace(0, 0.006, 3000)[:, None] * draw(3000, 256))
    elif kind == "equal":
        thumbs[500:2900] = thumbs[7]
    elif kind == "blank":
        thumbs[::3] = 0
    else:
        thumbs = unit(thumbs[:1] + 0.004 * draw(3000, 256))
    thumbs = thumbs.half()  # as they are stored
    if (index := _tree(thumbs, alike)) is None:
        assert kind in ("equal", "one motif", "clusters"), "a tree should help here"
    found = first_alike(thumbs, alike, least=0)
    assert torch.equal(found, first_alike(thumbs, alike, least=len(thumbs) + 1))
    similar, stay, expected = thumbs.float() @ thumbs.float().T >= alike, [], []
    for i in range(len(thumbs)):
        expected.append(bool(similar[i, stay].any()))
        stay += [] if expected[-1] else [i]
    assert (found >= 0).tolist() == expected
    assert index is None or (found >= 0).any() or kind == "blank"


# ---- filters


@pytest.fixture(scope="module")
def planted(tmp_path_factory, scans):
    """2,000 images, a JPEG each, with 60 test scans among them: as they are, as JPEG of quality 50, brighter by 20."""
    place = tmp_path_factory.mktemp("leak")
    strangers = glyphworld.render(glyphworld.sample_scenes(2000 - 897, torch.Generator().manual_seed(1)))
    images = torch.cat([scans["train"].images, strangers])
    rows, leaks = torch.arange(7, 2000, 33)[:60], scans["test"].images[torch.arange(60) * 10].clone()
    for i in range(20, 40):
        Image.fromarray(leaks[i].permute(1, 2, 0).numpy()).save(file := io.BytesIO(), "JPEG", quality=50)
        leaks[i] = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)
    leaks[40:] = (leaks[40:].float() + 20).clamp(max=255).byte()
    images[rows] = leaks
    plan = plan_of(place / "plan.parquet", DIGITS, 200, shard_size=500)
    return shard_images(place / "shards", plan, images, kind="jpeg"), rows.tolist()


def test_planted_test_images_are_found(planted, scans):
    home, rows = planted
    table = curate(score_images(home.path, test=scans["test"], progress=False), Filters(leaked=0.997)).table
    found = np.flatnonzero(table.reason == "near a test image").tolist()
    assert table.like[rows].tolist() == [f"test image {10 * i}" for i in range(60)]
    assert set(rows) <= set(found), "20 of 20 in each of the three kinds"
    assert len(set(found) - set(rows)) <= 0.01 * (len(table) - len(rows))


def test_memorised_training_images_are_found(planted, scans):
    home, rows = planted
    table = curate(score_images(home.path, train=scans["train"], progress=False), Filters(memorised=0.997)).table
    found, scanned = set(np.flatnonzero(table.reason == "near a training image")), set(range(897)) - set(rows)
    assert scanned <= found and len(found - scanned) <= 0.01 * (2000 - 897)


def test_a_set_on_disk_serves_as_well(home, planted, scans):
    on_disk = list_shards(planted[0].path)
    assert torch.allclose(
        _reference_thumbnails(on_disk, 32).float(), thumbnails(load_kept(planted[0].path).images), atol=1e-3
    )
    assert (score_images(home.path, test=on_disk, progress=False).table.test_similarity < 1.001).all()


def test_every_filter_takes_what_it_says(scores):
    table = scores.table
    assert curate(scores).reasons == {}
    for filters, bad in (
        (Filters(agree=True), table.clip_label != table.label),
        (Filters(min_probability=0.5), table.clip_probability <= 0.5),
        (Filters(min_probability="1/N"), table.clip_probability <= 0.1),
        (Filters(min_percentile=0.25), table.clip_percentile <= 0.25),
        (Filters(blank=table.contrast.median()), table.contrast < table.contrast.median()),
    ):
        found = curate(scores, filters)
        assert (found.table.reason != "").tolist() == bad.tolist() and 0 < bad.sum() < len(bad), filters.asked
    assert (table[table.clip_percentile <= 0.25].label.value_counts() == 5).all()


def test_of_two_alike_the_one_without_another_fault_stays(tmp_path, rendered, clip):
    images = rendered[:40].clone()
    images[11] = images[0]  # row 0 is a zero, row 11 shows it under the class "one"
    images[30] = images[0]
    images[5], images[6] = 0, 77
    images[8] = torch.randint(0, 2, (3, 32, 32), dtype=torch.uint8) + 100
    home = shard_images(tmp_path / "shards", plan_of(tmp_path / "plan.parquet", DIGITS, 4), images)
    scores = score_images(home.path, clip, phrases=MEANT, progress=False)
    scores.table.loc[0, "clip_label"] = 1  # CLIP errs in the first
    reason = curate(scores, Filters(blank=2, agree=True, duplicates=0.997)).table.reason
    assert (reason[0], reason[11], reason[30]) == ("CLIP sees another class", "CLIP sees another class", "")
    assert curate(scores, Filters(duplicates=0.997)).table.like[[11, 30]].tolist() == [scores.table.id[0]] * 2
    assert reason[[5, 6, 8]].tolist() == ["black", "blank", "blank"]
    assert curate(scores, Filters(duplicates=1)).table.reason[[0, 11, 30]].tolist() == ["", "duplicate", "duplicate"]


def test_nan_of_clip_is_not_kept(scores):
    broken = Scores(scores.home.path, scores.place)
    broken.table.loc[7, ["clip_probability", "clip_percentile"]] = np.nan
    for filters in (Filters(min_probability=0.0), Filters(min_percentile=0.0)):
        assert curate(broken, filters).table.reason[7] != ""


@pytest.mark.parametrize(
    "wrong", [dict(duplicates=1.5), dict(min_probability="N"), dict(leaked=-1), dict(min_percentile=30)]
)
def test_senseless_thresholds(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Filters(**wrong)


def test_a_filter_without_its_measurement_says_what_to_do(home):
    scores = score_images(home.path, progress=False)
    for filters, needed in (
        (Filters(agree=True), "clip="),
        (Filters(leaked=0.99), "test="),
        (Filters(memorised=0.99), "train="),
    ):
        with pytest.raises(ValueError, match=needed):
            curate(scores, filters)


def test_report_counts_everything_once(tmp_path, rendered, clip):
    plan = plan_of(tmp_path / "plan.parquet", DIGITS, 4)
    home = shard_images(
        tmp_path / "shards",
        plan,
        rendered[:40],
        failed={3: "blank", 13: "not finite", 7: "flagged by the safety checker"},
    )
    report = curate(
        score_images(home.path, clip, phrases=MEANT, progress=False), Filters(agree=True, duplicates=0.997)
    ).report()
    assert report["never drawn"].tolist() == [0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 3]
    assert report.loc["(all classes)", "images"] == 37
    others = report.drop(columns=["images", "kept", "keep-rate", "never drawn"]).sum(axis=1)
    assert (report.kept + others == report.images).all() and np.allclose(
        report["keep-rate"], report.kept / report.images
    )


# ---- people


def test_the_last_word_of_people(scores):
    ids, table = scores.table.id, scores.table
    wrong = np.flatnonzero(table.clip_label != table.label)[:2]
    decisions = pd.DataFrame(
        [
            (ids[wrong[0]], "reject", "", "ann", 1.0),
            (ids[wrong[0]], "accept", "", "bo", 2.0),
            (ids[wrong[1]], "relabel", "seven", "bo", 1.0),
            (ids[50], "accept", "", "ann", 1.0),
            (ids[50], "reject", None, "ann", 3.0),
        ],
        columns=["id", "decision", "class", "reviewer", "time"],
    )
    found = curate(scores, Filters(agree=True), decisions=decisions.sample(frac=1, random_state=0))
    assert found.table.reason[wrong].tolist() == ["", ""] and found.table.reason[50] == "rejected by ann"
    moved = found.kept.set_index("id").loc[ids[wrong[1]]]
    assert (moved["class"], moved.label) == ("seven", 7) and found.decisions == 5
    assert found.report().images[:-1].eq(20).all(), "counted where it was drawn"
    streamed = {record["id"]: record for _, record in stream_kept(scores.home.path, found.kept)}[ids[wrong[1]]]
    assert (streamed["class"], streamed["label"], streamed["drawn_as"]) == ("seven", 7, table["class"][wrong[1]])


@pytest.mark.parametrize(
    "wrong, says",
    [
        (dict(decision="maybe"), "'maybe'"),
        (dict(decision="relabel", **{"class": "ten"}), "'ten'"),
        (dict(id="nobody"), "'nobody'"),
    ],
)
def test_decisions_that_make_no_sense(scores, wrong, says):
    row = {"id": scores.table.id[0], "decision": "accept", "class": "", "reviewer": "ann", "time": 0.0} | wrong
    with pytest.raises(ValueError, match=says):
        curate(scores, decisions=pd.DataFrame([row]))
    assert isinstance(curate(scores, decisions=pd.DataFrame(columns=list(row))), Curation)


# ---- kept lists


def test_kept_list_and_rejects_are_the_folder(scores):
    found = curate(scores, Filters(agree=True, min_percentile=0.1))
    path = write_kept(found, "by clip", progress=False)
    assert path == kept_path(scores.home.path, "by clip")
    kept = read_kept(path)
    pd.testing.assert_frame_equal(kept, found.kept, check_dtype=False)
    assert (
        kept.label.dtype == np.int64
        and kept.attrs["plan"] == scores.home.plan.hash
        and kept.attrs["filters"] == {"agree": True, "min_percentile": 0.1}
    )
    assert kept.attrs["rejected_per_reason"] == found.reasons and sum(
        kept.attrs["kept_per_class"].values()
    ) == kept.attrs["kept"] == len(kept)
    rejected = [pair for tar in sorted((path.parent / "by clip.rejects").glob("*.tar")) for pair in read_tar(tar)]
    assert {record["rejected"]["reason"] for _, record in rejected} == set(found.reasons)
    files = {record["id"]: content for content, record in [*rejected, *stream_kept(scores.home.path, path)]}
    assert (
        files == {record["id"]: content for content, record in _stream_shards(scores.home.path)}
        and len(rejected) + len(kept) == 200
    )
    assert [record["id"] for _, record in stream_kept(scores.home.path, path)] == kept.id.tolist()


def test_thresholds_are_changed_without_scoring(scores):
    write_kept(curate(scores, Filters(agree=True)), "tuned", progress=False)
    (kept_path(scores.home.path, "tuned").parent / "tuned.rejects.1.partial").mkdir()  # of a call that was killed
    path = write_kept(curate(_load_scores(scores.home.path), Filters()), "tuned", progress=False)
    assert len(read_kept(path)) == 200 and not list((path.parent / "tuned.rejects").iterdir())
    assert not list(path.parent.glob("*.partial"))


def test_webdataset_reads_the_rejects(scores):
    import webdataset

    path = write_kept(curate(scores, Filters(agree=True)), "wds", progress=False)
    tars = [str(tar) for tar in sorted((path.parent / "wds.rejects").glob("*.tar"))]
    samples = list(webdataset.WebDataset(tars, shardshuffle=False))
    assert len(samples) == 200 - len(read_kept(path)) and "rejected" in json.loads(samples[0]["json"])


def test_a_class_that_keeps_nothing_warns(scores):
    few = scores.table.label != 4
    decisions = pd.DataFrame({"id": scores.table.id[~few], "decision": "reject"})
    with pytest.warns(UserWarning, match="1 classes keep no image"):
        path = write_kept(curate(scores, decisions=decisions), "gap", progress=False)
    assert load_kept(scores.home.path, path).per_class["four"] == 0
    assert set(json.loads(json.dumps(read_kept(path).attrs["rejected_per_reason"]))) == {"rejected by somebody"}


def test_what_is_listed_must_be_there(scores, tmp_path, rendered):
    kept = curate(scores).kept
    other = shard_images(tmp_path / "shards", plan_of(tmp_path / "plan.parquet", DIGITS, 2), rendered[:20])
    with pytest.raises(ValueError, match="not in shard 000000"):
        list(stream_kept(other.path, kept))
    with pytest.raises(ValueError, match="no shard 000001"):
        list(stream_kept(other.path, kept[kept.shard == "000001"]))
    with pytest.raises(ValueError, match="no image of"):
        load_kept(other.path, kept[:0])


def test_pixel_statistics_of_plain_images():
    assert _pixel_statistics(torch.full((2, 3, 8, 8), 9, dtype=torch.uint8))["contrast"].tolist() == [0, 0]
    half = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    half[..., 4:] = 200
    assert _pixel_statistics(half)["contrast"].item() == 100 and _pixel_statistics(half)["brightest"].item() == 200


@pytest.mark.parametrize(
    "asked, why",
    [
        ({"agree": "no"}, "must be true or false"),  # a text, which would turn the filter on
        ({"leaked": False}, "must be a number, or left out"),  # every image is at least as alike as that
        ({"min_percentile": True}, "must be a number"),
        ({"duplicates": "0.99"}, "must be a number"),
        ({"min_probability": "0.3"}, "a number or '1/N'"),
        ({"blank": math.nan}, "must lie in 0..255"),
        ({"blank": -1}, "must lie in 0..255"),
    ],
)
def test_thresholds_of_the_wrong_kind_are_refused_before_anything_is_drawn(asked, why):
    with pytest.raises(ValueError, match=f"{next(iter(asked))} is .*{why}"):
        Filters.named(asked)
