"""The board on renders whose truth is known, with glyphworld's CLIP; its page with hostile names and prompts."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from scipy import stats
from shard_images import plan_of, shard_images

from synthnb.data import DIGITS, LabelledImages, digits
from synthnb.glyphworld import world as glyphworld
from synthnb.glyphworld.recognisers import judged, load_judge
from synthnb.images.board import _board_html, _rank_classes, make_board, show_board, write_board
from synthnb.images.fidelity import extract, kid, open_extractor
from synthnb.images.scores import score_images
from synthnb.models.clip import load_clip

torch.set_num_threads(1)
PHRASES = [sense.phrase for sense in glyphworld.SENSES[::4]]
EACH = 12


@pytest.fixture(scope="module")
def clip():
    return load_clip(glyphworld.folder("clip"), device="cpu")


@pytest.fixture(scope="module")
def mixed(tmp_path_factory, clip):
    """Renders of 28 senses in which 0 to 12 of 12 show another sense; scores and the share that is right."""
    place, rng = tmp_path_factory.mktemp("board"), np.random.default_rng(0)
    wrong = {phrase: i % (EACH + 1) for i, phrase in enumerate(PHRASES)}
    senses = [
        glyphworld.SENSE_INDEX[phrase] if index >= wrong[phrase] else rng.choice(len(glyphworld.SENSES))
        for index in range(EACH)
        for phrase in PHRASES
    ]
    scenes = glyphworld.sample_scenes(len(senses), torch.Generator().manual_seed(0), senses=torch.tensor([0]))
    scenes.sense, scenes.font = (
        torch.tensor(senses),
        torch.zeros(len(senses), dtype=torch.int64),
    )  # the first font has every sign
    images = glyphworld.render(scenes)
    home = shard_images(place / "shards", plan_of(place / "plan.parquet", PHRASES, EACH), images)
    scores = score_images(home.path, clip, progress=False)
    right = judged(load_judge(glyphworld.folder("judge")), images)[0] == torch.tensor(
        [glyphworld.SENSE_INDEX[p] for p in PHRASES]
    ).repeat(EACH)
    return scores, dict(zip(PHRASES, right.view(EACH, -1).float().mean(0).tolist()))


def test_the_order_is_the_judges(mixed):
    scores, judge = mixed
    table = _rank_classes(scores)
    assert stats.spearmanr(range(len(table)), [judge[name] for name in table.index]).statistic >= 0.7


def test_worst_first_with_wilson_intervals(mixed):
    table = _rank_classes(mixed[0])
    assert (
        table.agreement.is_monotonic_increasing
        and ((table.low >= 0) & (table.low <= table.agreement) & (table.agreement <= table.high)).all()
    )
    for _, same in table.groupby("agreement"):
        assert same.probability.is_monotonic_increasing
    seen = mixed[0].table.assign(seen=lambda t: t.clip_label == t.label).groupby("class").seen.mean()
    assert table.agreement.to_dict() == pytest.approx(seen.to_dict())


def test_blank_failed_and_copied_images_count(tmp_path, clip):
    scenes = glyphworld.sample_scenes(40, torch.Generator().manual_seed(0), senses=torch.tensor([0]))
    scenes.sense = torch.tensor([glyphworld.SENSE_INDEX[f"arabic digit {name}"] for name in DIGITS]).repeat(4)
    images = glyphworld.render(scenes)
    images[[11, 21]], images[[12, 22, 32]] = 0, images[2].clone()  # class 1: two blank; class 2: one picture four times
    plan = plan_of(tmp_path / "plan.parquet", DIGITS, 4)
    home = shard_images(
        tmp_path / "shards", plan, images, failed={3: "blank", 13: "not finite", 23: "blank", 33: "blank", 4: "blank"}
    )
    scores = score_images(home.path, clip, phrases={name: f"arabic digit {name}" for name in DIGITS}, progress=False)
    table = _rank_classes(scores)
    assert (table.planned == 4).all()
    assert (table.blank["one"], table.blank["three"], table.blank["four"], table.blank["zero"]) == (0.5, 1, 0.25, 0)
    assert table.agreement["one"] <= 0.5 and table.agreement["three"] == 0 and table.index[0] == "three", (
        "nothing of it was drawn"
    )
    assert (
        table.copies["two"] == 0.75
        and table.diversity["two"] == pytest.approx(0, abs=1e-3)
        and table.copies["zero"] == 0
    )
    board = make_board(scores)
    assert board.images["three"] == [] and show_board(board) and "three" in _board_html(board)


def test_distance_to_real_is_kid_in_the_same_clip(mixed, clip):
    scores, _ = mixed
    scenes = glyphworld.sample_scenes(5 * len(PHRASES), torch.Generator().manual_seed(1), senses=torch.tensor([0]))
    scenes.sense, scenes.font = (
        torch.tensor([glyphworld.SENSE_INDEX[p] for p in PHRASES]).repeat(5),
        torch.zeros(5 * len(PHRASES), dtype=torch.int64),
    )
    real = extract(
        open_extractor(clip),
        LabelledImages(glyphworld.render(scenes), torch.arange(len(PHRASES)).repeat(5), tuple(PHRASES)),
    )
    table = _rank_classes(scores, real)
    mine = torch.from_numpy(np.flatnonzero(scores.table["class"] == PHRASES[3]))
    assert table.distance[PHRASES[3]] == pytest.approx(
        kid(real.of(3), scores.tensor("features")[mine].float()).value, abs=1e-9
    )
    assert (table.distance_low <= table.distance).all() and "distance to real" in _board_html(make_board(scores, real))
    with pytest.raises(ValueError, match="same CLIP"):
        _rank_classes(scores, extract(open_extractor(clip), digits(32)["val"]))


def test_without_a_clip_it_says_so(mixed):
    with pytest.raises(ValueError, match="with a CLIP"):
        _rank_classes(score_images(mixed[0].home.path, progress=False))


def test_images_are_the_worst_of_the_worst(mixed):
    scores, _ = mixed
    board = make_board(scores, worst=3, images=4)
    assert list(board.images) == board.table.index[:3].tolist()
    for name, shown in board.images.items():
        own = scores.table[scores.table["class"] == name].nsmallest(4, "clip_probability")
        assert [image.id for image in shown] == own.id.tolist()
        assert [image.seen for image in shown] == [scores.classes[label] for label in own.clip_label]
        assert all(name in image.prompt for image in shown)
    assert len(show_board(board).axes) == 3


class Page(HTMLParser):
    "Tags and attributes that a browser would see."

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes


def test_a_hostile_page(tmp_path, clip):
    hostile = ("<img src=x onerror=alert(1)>", '"><script>alert(2)', "$x$ {{ 7*7 }}")
    prompts = {name: f"{name} & </td><script>alert(3)</script>" for name in hostile}
    images = glyphworld.render(glyphworld.sample_scenes(6, torch.Generator().manual_seed(0)))
    plan = plan_of(tmp_path / "plan.parquet", hostile, 2, **prompts)
    board = make_board(score_images(shard_images(tmp_path / "shards", plan, images).path, clip, progress=False))
    text = write_board(board, tmp_path / "board.html", "<b>board</b>").read_text(encoding="utf-8")
    page = Page(text)
    assert "script" not in page.tags and page.tags.count("img") == 6 and "b" not in page.tags
    assert not [name for name, value in page.attributes if name.startswith("on")]
    assert all(value.startswith("data:image/png;base64,") for name, value in page.attributes if name == "src")
    assert not re.search(r"https?:", text) and "{{ 7*7 }}" in text and "default-src 'none'" in text
    show_board(board).savefig(tmp_path / "board.png")
    assert (tmp_path / "board.png").stat().st_size > 5000
