"""Prompts from a real model's answers: hostile words, failing classes, budgets, extension, kills (nbs/03_diversify.ipynb tests the rest)."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"

import open_clip.tokenizer
import pandas as pd
import torch
from transformers import CLIPTokenizer

from synthnb.glyphworld import world as glyphworld
from synthnb.diversify import (
    ASPECTS,
    SHARES,
    TEMPLATE,
    TOKEN_TEMPLATE,
    Idea,
    Ideas,
    Scene,
    ScenesAnswer,
    StylesAnswer,
    ask_ideas,
    check_answer,
    compose,
    fill,
    load_book,
    pool_of_rows,
    prompts_by_class,
    save_book,
    token_counts,
    tokenizers_of,
    write_prompts,
)
from synthnb.images.plan import make_plan
from synthnb.lar import load_clip
from synthnb.models.llm import AnswerCache, Reply, ServerLLM, open_llm

torch.set_num_threads(1)
PHRASES = {"three": "arabic digit three", "heart": "card suit heart", "anchor": "anchor"}
GENERATOR = glyphworld.folder("generator")


@pytest.fixture(scope="module")
def llm():
    return open_llm(glyphworld.folder("llm"))


@pytest.fixture(scope="module")
def tokenizers():
    return tokenizers_of(GENERATOR)


def by_hand(scenes: int, styles: int, names=PHRASES) -> tuple[Ideas, Ideas]:
    """Ideas that a person wrote."""
    aspects = [
        Scene(
            foreground=f"{i} spots", background="" if i % 2 else "a line", lighting="lit from above", camera="close up"
        )
        for i in range(scenes)
    ]
    return (
        Ideas(
            "scenes", scenes, {name: [Idea(scene, f"scene {i}") for i, scene in enumerate(aspects)] for name in names}
        ),
        Ideas("styles", styles, {name: [Idea(f"style {i}", f"style {i}") for i in range(styles)] for name in names}),
    )


# ---- words of a model are data

HOSTILE = (
    "{phrase}",
    "{a phrase}, {token}",
    "{0.__class__} {}",
    "<scans>",
    "chalk <scans>_1 dust",
    "<|endoftext|> a cat",
    "ink<|startoftext|>",
    "one\nmore\r\nline",
    "tab\tand\x00nul\x1b[31m",
    "<b>bold</b><script>alert(1)</script>",
    "**bold** _words_ `code`",
    "\u202egnihton\u2066",
    "cut\u2028here\u2029",
    '"quoted", he said',
    "</s><s>[INST] draw a cat [/INST]",
    "%s %(x)s $HOME ${x}",
    "\\n \\u0041 \\",
    "(chalk:1.5) [ink|neon] {a|b}",
    "<lora:evil:1> chalk",
    "lone \ud800 half",
    "![x](http://example.org/y.png)",
    "<<scans>>",
    "< scans > <\nscans>",
    "#hashtag ~~gone~~ ^up^",
    "1. first\n2. second",
    "=1+1|' /C x'!A0",
    "<sca<scans>ns>",
)


@pytest.fixture(scope="module")
def styled():
    """The generator's tokenizer with a style token of two vectors."""
    tokenizer = tokenizers_of(GENERATOR)[0]
    tokenizer.add_tokens(["<scans>", "<scans>_1"])
    return tokenizer


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
@pytest.mark.parametrize("token", ["", "<scans>"])
def test_hostile_words_stay_words(text, token, styled, tmp_path):
    special = set(styled.added_tokens_decoder)
    found = []
    for answer in (
        ScenesAnswer(scenes=[Scene(foreground=text, background="a line", lighting=text, camera=text)]),
        StylesAnswer(styles=[text]),
    ):
        try:
            found.append([Idea(value) for value in check_answer(answer, 1)])
        except ValueError as error:
            assert "a style is empty" in str(error)  # nothing but markup: the model is asked again
            found.append([Idea("chalk")])
    ideas = [Ideas(kind, 1, {name: mine for name in PHRASES}) for kind, mine in zip(("scenes", "styles"), found)]
    book = compose(PHRASES, 5, *ideas, tokenizers=[styled], token=token, budget=200)
    assert set(book.pool) == set(SHARES)
    for row in book.itertuples():
        lead = fill(TOKEN_TEMPLATE if token else TEMPLATE, row.phrase, token=token)
        rest = row.prompt.removeprefix(lead)
        assert row.prompt.startswith(lead) and rest.isprintable() and not set(rest) & set("<>{}[]|\\`*")
        ids = styled(row.prompt).input_ids
        assert [i for i in ids[1:-1] if i in special] == [styled.convert_tokens_to_ids(token)] * bool(token), row.prompt
    for name in ("book.jsonl", "book.parquet"):
        pd.testing.assert_frame_equal(load_book(save_book(book, tmp_path / name)), book, check_dtype=False)
    assert len((tmp_path / "book.jsonl").read_bytes().split(b"\n")) == 16
    assert len(make_plan(prompts_by_class(book), 5, seed=0, model="x", steps=1, guidance=1)) == 15


def test_hostile_phrases_are_cleaned_or_refused(tokenizers):
    book = compose(
        {"a": "crane\n{bird} <|endoftext|>", "b": "C#"}, 2, None, None, tokenizers=tokenizers, shares={"plain": 1}
    )
    assert list(book.prompt[:2]) == ["a photo of a crane bird", "a photo of a C#"]
    with pytest.raises(ValueError, match="class 'a' has the phrase '<b>'"):
        compose({"a": "<b>", "b": "x"}, 2, None, None, tokenizers=tokenizers, shares={"plain": 1})
    with pytest.raises(ValueError, match="holds 'sks', which the generator reads"):
        compose({"a": "asks", "b": "x"}, 2, None, None, tokenizers=tokenizers, shares={"plain": 1}, token="sks")


@pytest.mark.parametrize("token", ["sks", "S*"])
def test_a_style_token_without_brackets_is_not_smuggled_in(token, tokenizers):
    tokenizer = tokenizers_of(GENERATOR)[0]
    tokenizer.add_tokens([token])
    styles = Ideas("styles", 1, {"a": [Idea(f"ink, {token} chalk a{token}b {token.lower()}, neon")]})
    book = compose({"a": "anchor"}, 4, None, styles, tokenizers=[tokenizer], token=token)
    assert set(book.prompt) == {
        f"An anchor photo in the style of {token}",
        f"An anchor photo in the style of {token}, ink, chalk neon",
    }


# ---- asking


class Backwards:
    """The same model behind a server that answers the last question first."""

    def __init__(self, llm):
        self.llm = llm

    def __getattr__(self, name):
        return getattr(self.llm, name)

    def stream(self, *arguments, **options):
        yield from list(self.llm.stream(*arguments, **options))[::-1]


class Cutting(Backwards):
    """The same model, whose answers about one phrase are cut; it counts the others."""

    def __init__(self, llm, phrase):
        super().__init__(llm)
        self.phrase, self.calls, self.cut = phrase, 0, 0

    def stream(self, chats, *arguments, **options):
        for i, reply in self.llm.stream(chats, *arguments, **options):
            mine = any(self.phrase in message["content"] for message in chats[i])
            self.calls, self.cut = self.calls + (not mine), self.cut + mine
            yield i, Reply(reply.text[:20], "length", reply.prompt_tokens, 9) if mine else reply


def test_order_of_arrival_does_not_matter(llm):
    two = {name: PHRASES[name] for name in ("three", "heart")}
    asked = [ask_ideas(model, two, "scenes", 20, seed=3, progress=False) for model in (llm, Backwards(llm))]
    assert asked[0].found == asked[1].found and min(map(len, asked[0].found.values())) == 20


def test_failing_class_is_named_and_asked_again_alone(llm, tmp_path):
    out, cutting = tmp_path / "book.jsonl", Cutting(llm, "card suit heart")
    settings = dict(
        generator=GENERATOR,
        cache=AnswerCache(tmp_path / "answers.sqlite"),
        styles=4,
        progress=False,
        patience=2,
        tries=2,
    )
    with pytest.warns(UserWarning, match="not enough valid answers: 'heart' has 0 of .*last failure"):
        book = write_prompts(cutting, PHRASES, 10, out, **settings)
    assert list(book.attrs["missing"]) == list(load_book(out).attrs["missing"]) == ["heart"] and set(book["class"]) == {
        "three",
        "anchor",
    }
    assert "0 of 7 scenes" in book.attrs["missing"]["heart"] and cutting.cut == 2 * 2 * (
        4 + 1
    )  # kinds, tries, samples of two rounds
    with pytest.raises(ValueError, match="heart"):
        prompts_by_class(book)
    with pytest.warns(UserWarning):
        plain = write_prompts(cutting, PHRASES, 10, **settings, allow_plain=True)
    assert set(plain[plain["class"] == "heart"].pool) == {"plain"} and not plain.attrs["missing"]

    healthy = Cutting(llm, "nothing has this phrase")
    again = write_prompts(healthy, PHRASES, 10, out, **settings)
    assert again.attrs["missing"] == {} and again["class"].value_counts().to_dict() == dict.fromkeys(PHRASES, 10)
    pd.testing.assert_frame_equal(again[again["class"] != "heart"].reset_index(drop=True), book)
    assert healthy.calls <= 12, "the other classes come from the cache"


def test_model_that_runs_dry_is_left_alone(llm):
    meter = Cutting(llm, "nothing has this phrase")
    with pytest.warns(UserWarning, match="of 500 styles, nothing new in 2 rounds"):
        styles = ask_ideas(meter, {"three": PHRASES["three"]}, "styles", 500, patience=2, samples=2, progress=False)
    assert 10 <= len(styles.found["three"]) <= 40 and meter.calls < 100
    assert len({idea.text.casefold() for idea in styles.found["three"]}) == len(styles.found["three"])


def test_server_that_is_gone_ends_it_at_once():
    started = time.monotonic()
    with pytest.raises(ConnectionError, match="not one of 6 questions was answered .*Connection error"):
        ask_ideas(
            ServerLLM("http://127.0.0.1:9/v1", "nobody", tries=1), PHRASES, "scenes", 4, samples=2, progress=False
        )
    assert time.monotonic() < started + 30


@pytest.mark.filterwarnings("ignore:the model ran dry")
def test_near_duplicates_are_dropped(llm):
    clip, one = load_clip(glyphworld.folder("clip"), device="cpu"), {"three": PHRASES["three"]}
    for near in (0.95, 0.5):
        found = ask_ideas(llm, one, "scenes", 8, clip=clip, near=near, patience=1, progress=False).found["three"]
        features = clip.encode_texts([idea.text for idea in found])
        assert (features @ features.T - torch.eye(len(found))).max() <= near + 1e-4


# ---- composing


def test_any_book_begins_with_a_smaller_one(tokenizers):
    chance = random.Random(0)
    for _ in range(12):
        shares = {pool: chance.choice((0, 0.1, 0.5, 1)) for pool in SHARES} | {"CDxSD": 0.3}
        ideas, seed = by_hand(chance.randint(1, 7), chance.randint(1, 5)), chance.randrange(9)
        many, few = sorted((chance.randint(1, 40), chance.randint(1, 40)), reverse=True)
        settings = dict(
            tokenizers=tokenizers, shares=shares, seed=seed, templates=[TEMPLATE, "{a phrase}, {style}, {scene}"]
        )
        book, small = compose(PHRASES, many, *ideas, **settings), compose(PHRASES, few, *ideas, **settings)
        pd.testing.assert_frame_equal(book.head(3 * few), small)
        pd.testing.assert_frame_equal(compose(PHRASES, many, *ideas, **settings, begin=small), book)
        pools = pool_of_rows(shares, many)
        assert all(book[book["class"] == name].pool.tolist() == pools for name in PHRASES), (
            "every class has the same pools"
        )


def test_rows_of_an_older_book_stay_whatever_the_model_says_now(tokenizers):
    old = compose(PHRASES, 10, *by_hand(6, 4), tokenizers=tokenizers)
    other = [Ideas(i.kind, 9, {name: list(reversed(ideas)) for name, ideas in i.found.items()}) for i in by_hand(9, 9)]
    book = compose(PHRASES, 40, *other, tokenizers=tokenizers, begin=old)
    pd.testing.assert_frame_equal(book.head(30), old)
    pairs = book[(book.pool == "CDxSD") & (book["class"] == "three")][[*ASPECTS, "style"]]
    assert len(pairs) == 16 and not pairs.duplicated().any()


@pytest.fixture(scope="module")
def clip_tokenizer(tmp_path_factory):
    """CLIP's own vocabulary, which open_clip ships, as Stable Diffusion's tokenizer."""
    simple, folder = open_clip.tokenizer.SimpleTokenizer(), tmp_path_factory.mktemp("clip")
    (folder / "vocab.json").write_text(
        json.dumps(
            {
                {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}.get(word, word): i
                for word, i in simple.encoder.items()
            }
        )
    )
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in simple.bpe_ranks))
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77)


def test_budget_of_77_with_clips_own_vocabulary(clip_tokenizer, tokenizers):
    words = "a very old wooden fishing boat with peeling paint and a torn sail beside the pier"
    scene = Scene(
        foreground=words,
        background=words.replace("boat", "hut"),
        lighting="golden light of a late evening",
        camera="from far above",
    )
    ideas = (
        Ideas("scenes", 1, {"crane": [Idea(scene)]}),
        Ideas("styles", 1, {"crane": [Idea("a watercolour painting on rough paper " * 5)]}),
    )
    assert token_counts(["a photo of a crane"], [clip_tokenizer]).item() == 7
    book = compose({"crane": "crane bird"}, 20, *ideas, tokenizers=[clip_tokenizer])
    long = fill(TEMPLATE, "crane bird", ideas[1].found["crane"][0].text, scene.model_dump())
    assert token_counts([long], [clip_tokenizer]).item() > 77 >= book.tokens.max()
    assert set(book[book.pool == "CDxSD"].dropped) == {"camera, lighting"} and set(book[book.pool == "CD"].dropped) == {
        ""
    }
    assert all(
        token_counts([row.prompt], [clip_tokenizer]).item() == row.tokens and "crane bird" in row.prompt
        for row in book.itertuples()
    )
    both = compose(
        {"crane": "crane bird"}, 20, *ideas, tokenizers=[clip_tokenizer, *tokenizers]
    )  # the smaller room decides
    assert (token_counts(both.prompt, tokenizers) <= 40).all() and set(both[both.pool == "CDxSD"].dropped) == {
        "camera, lighting, foreground, background, style"
    }
    with pytest.raises(
        ValueError, match="class 'crane': even the plain prompt has 106 tokens where the generator reads 77"
    ):
        compose({"crane": "crane " * 100}, 20, *ideas, tokenizers=[clip_tokenizer])


def test_styles_may_be_shared_and_pools_switched_off(llm, tmp_path):
    settings = dict(generator=GENERATOR, cache=AnswerCache(tmp_path / "answers.sqlite"), progress=False)
    book = write_prompts(llm, PHRASES, 12, **settings, scenes=0, styles=3, shared_styles=True)
    assert (
        set(book.pool) == {"plain", "SD"}
        and book.groupby("class").style.agg(lambda words: frozenset(words) - {""}).nunique() == 1
    )
    assert (book.scene_key == "").all() and (book[book.pool == "SD"].style_key != "").all()
    with pytest.raises(ValueError, match="need CD, which is switched off"):
        write_prompts(llm, PHRASES, 12, **settings, scenes=0, shares={"CD": 1})


# ---- what a sense looks like

LOOKS = {"three": "two open bows, one above the other", "heart": "two round lobes that meet in a point, upside down"}


class Listening(Backwards):
    """The same model; it keeps what it was asked."""

    asked: list[str] = []

    def stream(self, chats, *arguments, **options):
        self.asked += [chat[-1]["content"] for chat in chats]
        yield from self.llm.stream(chats, *arguments, **options)


def test_looks_go_into_questions_and_prompts(llm, tmp_path):
    ear = Listening(llm)
    book = write_prompts(
        ear,
        PHRASES,
        6,
        tmp_path / "book.jsonl",
        generator=GENERATOR,
        scenes=2,
        styles=2,
        looks=LOOKS,
        patience=1,
        progress=False,
        allow_plain=True,
    )
    for name, phrase in PHRASES.items():
        told = f'"{phrase}" ({LOOKS[name]})' if name in LOOKS else f'"{phrase}"'
        own = [question for question in ear.asked if f'"{phrase}"' in question]
        assert own and all(
            told in question and (name in LOOKS or "(" not in question.split(".")[0].replace(phrase, ""))
            for question in own
        )
        prompts = book[book["class"] == name].prompt
        assert len(prompts) == 6 and all(
            (LOOKS[name] in prompt) == (name in LOOKS) for prompt in prompts if name in LOOKS
        )
    assert load_book(tmp_path / "book.jsonl").attrs["about"]["looks"] == LOOKS
    with pytest.raises(ValueError, match="older book was made with"):
        write_prompts(
            ear,
            PHRASES,
            8,
            tmp_path / "book.jsonl",
            generator=GENERATOR,
            scenes=2,
            styles=2,
            looks=LOOKS | {"heart": "red"},
            progress=False,
        )


def test_without_looks_nothing_changes(tokenizers):
    ideas = by_hand(6, 3)
    book = compose(PHRASES, 20, *ideas, tokenizers=tokenizers)
    assert book.prompt.equals(compose(PHRASES, 20, *ideas, tokenizers=tokenizers, looks={"heart": ""}).prompt)
    assert "looks" not in book.attrs["about"] and list(book.attrs["about"]["templates"].values()) == [TEMPLATE]


def test_looks_stay_until_nothing_else_can_go_and_are_cleaned(styled):
    long = {"three": "<b>open</b> bows, <scans> one above the other"}
    book = compose(PHRASES, 20, *by_hand(6, 3), tokenizers=[styled], token="<scans>", looks=long, budget=26)
    three = book[book["class"] == "three"]
    assert (
        (book.tokens <= 26).all()
        and three.prompt.str.contains("open bows").all()
        and three.prompt.str.count("<scans>").eq(1).all()
    )
    assert (three.dropped != "").any() and not three.dropped.str.contains("looks").any()
    tight = compose(PHRASES, 20, *by_hand(6, 3), tokenizers=[styled], token="<scans>", looks=long, budget=14)
    three = tight[tight["class"] == "three"]
    assert (
        (tight.tokens <= 14).all()
        and three.dropped.str.endswith("looks").all()
        and three.prompt.str.contains("arabic digit three").all()
    )


def test_looks_that_have_no_place_or_no_class_are_refused(tokenizers):
    ideas = by_hand(2, 2)
    with pytest.raises(ValueError, match="no place for {looks}"):
        compose(PHRASES, 4, *ideas, tokenizers=tokenizers, looks=LOOKS, templates=[TEMPLATE])
    with pytest.raises(ValueError, match="looks has 'thre', which is none"):
        compose(PHRASES, 4, *ideas, tokenizers=tokenizers, looks={"thre": "bows"})


# ---- files

WRITING = """
import sys
import torch
from synthnb.glyphworld import world as glyphworld
from synthnb.diversify import load_book, save_book, write_prompts
from synthnb.models.llm import open_llm

torch.set_num_threads(1)
phrases, source, there, out = eval(sys.argv[1]), *sys.argv[2:]
write_prompts(open_llm(glyphworld.folder("llm")), phrases, 8, there, generator=glyphworld.folder("generator"), progress=False)
book = load_book(source)
save_book(book, out)
print("going", flush=True)
while True:
    save_book(book.head(30), out)
    save_book(book, out)
"""


def test_another_process_writes_the_same_bytes_and_its_kill_leaves_a_whole_book(llm, tokenizers, tmp_path):
    source = save_book(compose(PHRASES, 1000, *by_hand(6, 4), tokenizers=tokenizers), tmp_path / "source.jsonl")
    here, there, out = (tmp_path / f"{name}.jsonl" for name in ("here", "there", "out"))
    process = subprocess.Popen(
        [sys.executable, "-c", WRITING, repr(PHRASES), source, there, out],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONHASHSEED": "7"},
    )
    write_prompts(llm, PHRASES, 8, here, generator=GENERATOR, progress=False)
    assert process.stdout.readline() == "going\n"
    started, sizes = time.monotonic(), set()
    while time.monotonic() < started + 1.5:
        sizes.add(out.stat().st_size)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(load_book(out)) in (30, 3000)
    assert len(sizes) == 2 and max(sizes) == source.stat().st_size, "what a reader sees is one whole book or the other"
    assert there.read_bytes() == here.read_bytes()
