"""Names, tables and overrides as users write them: hostile, duplicate, misspelt, misread by YAML."""

import json
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from lar_cases import noise

from synthnb import lar
from synthnb.images import evidence
from synthnb.lar import resolve
from synthnb.models import clip as clip_module
from synthnb.models import meanings
from synthnb.models.clip import image_features
from synthnb.models.meanings import Candidate

torch.set_num_threads(1)


HOSTILE = (
    "../../etc/passwd",
    "..",
    "<script>alert(1)</script>",
    "a\x00b\x1b[31m\n",
    "猫",
    "मकर",
    "ნ" * 300,
    "x" * 5000,
    "no",
    "{looks}",
    "$(reboot)",
    "a,b: - [c]",
)


@pytest.mark.filterwarnings("ignore:Glyph")  # matplotlib's font draws boxes for some scripts
def test_hostile_names_go_all_the_way(clip, tmp_path):
    labels = torch.arange(len(HOSTILE)).repeat_interleave(5)
    features = image_features(clip, [(noise(len(labels)), labels)], HOSTILE, progress=False)
    candidates = lar.wordnet_candidates(HOSTILE)
    candidates |= {
        name: [Candidate(phrase=f"thing {name}"), Candidate(phrase=f"{name} letter")] for name in HOSTILE[:6]
    }
    found = resolve(clip, features, candidates, {6: "a hat"}, ["a {name}, {phrase}"])
    assert [c.name for c in found.classes] == list(HOSTILE) and found.classes[6].phrase == "a hat"
    assert meanings.load_resolutions(meanings.save_resolutions(found, tmp_path / "senses.json")) == found
    again = clip_module.load_features(clip_module.save_features(features, tmp_path / "f.safetensors"), clip)
    assert again.classes == HOSTILE and torch.equal(again.features, features.features)
    evidence.write_evidence(found, tmp_path / "page.html", features)
    evidence.show_evidence(found, features, most=12)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.safetensors", "page.html", "senses.json"], (
        "a name made a path"
    )
    said = [c.phrase for c in found.classes] + [s.candidate.phrase for c in found.classes for s in c.ranked]
    assert all(text.isprintable() and len(text) <= 300 for text in said)


def test_names_given_twice_are_listed_with_both_ways_out(clip):
    classes = ["crane", "owl", "CRANE", "teapot_", "tea pot", "teapot"]
    with pytest.raises(ValueError) as error:
        meanings.check_names(classes)
    for said in (
        "'crane' (class 0) and 'CRANE' (class 2)",
        "n02012849",
        "n03126707",
        "'teapot' (class 3) and 'teapot' (class 5)",
        "{0: ..",
    ):
        assert said in str(error.value)
    with pytest.raises(ValueError, match="read the same"):
        image_features(clip, [(noise(1), [0])], classes, progress=False)
    with pytest.raises(ValueError, match="read the same"):
        meanings.check_names(["crane", "crane"], {0: "n02012849", 1: "n02012849"})
    overrides = meanings.read_overrides({0: "n02012849", 2: "building crane", 5: "tea kettle"}, classes)
    assert meanings.check_names(classes, overrides) == (
        "n02012849",
        "owl",
        "building crane",
        "teapot_",
        "tea pot",
        "tea kettle",
    )
    with pytest.raises(ValueError, match=r"names classes \[0, 2\]: use the number"):
        meanings.read_overrides({"Crane": "n02012849"}, classes)


@pytest.mark.parametrize(
    "text, why",
    [
        ("thre: die\n", "nearest is 'three'"),
        ("three: [die]\n", r"got \['die'\] \(list\)"),
        ("three: 3\n", r"got 3 \(int\)"),
        ("three:\n", "NoneType"),
        ("no: x\n", "quotes"),
        ("three: a\nthree: b\n", "twice"),
        ("- three\n", "holds list"),
        ("three: 'a\n", "not YAML"),
        ("three: n99999999\n", "none of that number"),
        ("7: x\n", "no class number 7"),
        ("three: !!python/object/apply:os.system ['true']\n", "not YAML"),
    ],
)
def test_override_file_that_does_not_fit(text, why, tmp_path):
    path = tmp_path / "overrides.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=why):
        meanings.read_overrides(path, ["three", "four"])


def test_override_file_may_be_empty(tmp_path):
    (tmp_path / "overrides.yaml").write_text("# three: die face three\n")
    assert meanings.read_overrides(tmp_path / "overrides.yaml", ["three", "four"]) == {}
    with pytest.raises(FileNotFoundError, match="no override file"):
        meanings.read_overrides(tmp_path / "nowhere.yaml", ["three", "four"])


def test_table_candidates_from_files(tmp_path):
    rows = "class,phrase,looks,key\nNA,salt,white grains,na\nnull,zero hypothesis,,\n3,die face three,,d3\n"
    (tmp_path / "senses.csv").write_text(rows)
    found = meanings.table_candidates(tmp_path / "senses.csv", ["NA", "null", "3"])
    assert [c.phrase for name in ("NA", "null", "3") for c in found[name]] == [
        "salt",
        "zero hypothesis",
        "die face three",
    ]
    assert found["3"][0].key == "d3"
    (tmp_path / "bad.csv").write_text("name,phrase\na,b\n")
    with pytest.raises(ValueError, match="needs the columns class and phrase"):
        meanings.table_candidates(tmp_path / "bad.csv", ["a"])
    with pytest.raises(FileNotFoundError):
        meanings.table_candidates(tmp_path / "nowhere.yaml", ["a"])


def test_a_result_without_its_score_is_of_the_mean(tmp_path):
    chosen = Candidate(phrase="owl")
    row = meanings.Resolution(label=0, name="owl", chosen=chosen, decided=True, reason="the only candidate")
    made = meanings.Resolutions(method="LAR", classes=(row,))
    old = json.loads(made.model_dump_json())
    assert "mean cosine" in old.pop("score")
    (tmp_path / "senses.json").write_text(json.dumps(old))
    assert meanings.load_resolutions(tmp_path / "senses.json") == made
