"""The evidence page: names and words as text only, what needs a look first, WordNet's notice."""

import os
import re
from html import unescape
from html.parser import HTMLParser

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import yaml
from lar_cases import TEMPLATES, noise, senses_of

from synthnb import lar
from synthnb.data import few_shot
from synthnb.images import evidence
from synthnb.lar import resolve
from synthnb.models.clip import image_features
from synthnb.models.meanings import Candidate, find_class
from synthnb.studies import naming

torch.set_num_threads(1)


class Reader(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.attributes = [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attributes]


def test_page_holds_names_and_words_as_text_only(clip):
    nasty = "</title><script>alert(1)</script><img src=http://x/y onerror=alert(2)>"
    classes = (nasty, "'\"><svg onload=x>", "{{ 7*7 }}{% raw %}")
    candidates = {
        name: [Candidate(phrase=f"{nasty} {i}", looks=nasty, key="javascript:x") for i in range(2)] for name in classes
    }
    features = image_features(clip, [(noise(15), [0, 1, 2] * 5)], classes, progress=False)
    page = evidence._evidence_html(resolve(clip, features, candidates, {1: nasty}, ["{phrase}"]), features, title=nasty)
    reader = Reader()
    reader.feed(page)
    assert set(reader.tags) <= set(
        "html head meta title style body h1 p small section h2 span table tr td div br img pre".split()
    )
    assert not [
        a
        for a in reader.attributes
        if a[1].startswith("on") or (a[1] in ("src", "href") and not a[2].startswith("data:image/jpeg;base64,"))
    ]
    assert page.count("<img") == 15 and "{{ 7*7 }}" in page
    assert ("meta", "content", "default-src 'none'; img-src data:; style-src 'unsafe-inline'") in reader.attributes


def test_page_shows_what_needs_a_look_first(clip, scans):
    features = image_features(clip, few_shot(scans, 4), progress=False)
    candidates = senses_of(scans.classes) | {"nine": [], "eight": [Candidate(phrase="arabic digit seven")]}
    found = resolve(clip, features, candidates, {"seven": "arabic digit seven", "one": "a finger"}, TEMPLATES)
    order = [(c.name, note) for c, note in evidence._attention_order(found)]
    places = {name: i for i, (name, _) in enumerate(order)}
    undecided = {c.name for c in found.classes if not c.decided}
    assert {name for name, _ in order[: len(undecided)]} == undecided and "nine" in undecided
    assert {order[places[n]][1] for n in ("seven", "eight")} == {
        "same meaning as class 'eight', override",
        "same meaning as class 'seven'",
    }
    assert places["seven"] < places["one"] and places["eight"] < places["one"] and order[places["one"]][1] == "override"
    assert '<pre>one: "a finger"' in evidence._evidence_html(found).replace("&#34;", '"')


def test_the_line_to_paste_is_read_as_its_class():
    """By name, as the guide says; by number where two have one name, in quotes where YAML would read a value."""
    names = ["red panda", "crane", "no", "7 up", "a: b", "x\u202ey"]
    result = naming.bare_names(names)
    page = unescape(evidence._evidence_html(result))
    found = dict(re.findall(r"<small>class (\d+).*?<pre>(.*?)</pre>", page, re.DOTALL))
    assert found["0"] == 'red panda: "red panda"' and "black line" not in page
    for label, line in found.items():
        (key,) = yaml.safe_load(line)
        assert find_class(key, names, "page") == int(label), line
    assert len(found) == len(names) and evidence._key(result.classes[1], alone=False) == "1"


def test_wordnets_notice_is_on_pages_that_show_its_words(clip):
    features = image_features(clip, [(noise(8), [0, 1] * 4)], ["n02012849", "n03126707"], progress=False)
    found = resolve(clip, features, lar.wordnet_candidates(features.classes))
    page = evidence._evidence_html(found, features)
    assert "WordNet 3.0 Copyright 2006 by Princeton University" in page and "same name as class" in page
    assert "Princeton" not in evidence._evidence_html(naming.bare_names(["owl"]))
