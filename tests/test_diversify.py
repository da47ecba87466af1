"""Prompts of a real model: hostile words, failing classes, budgets, going on, kills; the notebooks test the rest."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"

import open_clip.tokenizer
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from openai import pydantic_function_tool
from pydantic import BaseModel
from transformers import CLIPTokenizer

from synthnb.diversify import PromptRequest, _pool_of_rows, compose, write_prompts
from synthnb.glyphworld import chat
from synthnb.glyphworld import world as glyphworld
from synthnb.images.plan import make_plan
from synthnb.models.answers import AnswerCache, _describe_schema
from synthnb.models.clip import load_clip
from synthnb.models.llm import ask, open_llm
from synthnb.models.questions import Reply
from synthnb.models.server import ServerLLM
from synthnb.prompts.book import load_book, prompts_by_class, save_book
from synthnb.prompts.grammar import _TOKEN_TEMPLATE, ASPECTS, TEMPLATE, Context, _token_counts, fill, tokenizers_of
from synthnb.prompts.ideas import (
    KINDS,
    Asking,
    Idea,
    Ideas,
    StylesAnswer,
    _ContextsAnswer,
    ask_ideas,
    check_answer,
    context_question,
)
from synthnb.prompts.request import SHARES

torch.set_num_threads(1)
PHRASES = {"three": "arabic digit three", "heart": "card suit heart", "anchor": "anchor"}
GENERATOR = glyphworld.folder("generator")


@pytest.fixture(scope="module")
def llm():
    return open_llm(glyphworld.folder("llm"))


@pytest.fixture(scope="module")
def tokenizers():
    return tokenizers_of(GENERATOR)


def by_hand(contexts: int, styles: int, names=PHRASES) -> tuple[Ideas, Ideas]:
    """Ideas that a person wrote."""
    seen = [Context(f"{i} spots", "" if i % 2 else "a line", "lit from above", "close up") for i in range(contexts)]
    imagined = [Idea(context, f"context {i}") for i, context in enumerate(seen)]
    drawn = [Idea(f"style {i}", f"style {i}") for i in range(styles)]
    return (
        Ideas("contexts", contexts, dict.fromkeys(names, imagined)),
        Ideas("styles", styles, dict.fromkeys(names, drawn)),
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
        _ContextsAnswer(scenes=[dict(foreground=text, background="a line", lighting=text, camera=text)]),
        StylesAnswer(styles=[text]),
    ):
        try:
            found.append([Idea(value) for value in check_answer(answer, 1)])
        except ValueError as error:
            assert "a style is empty" in str(error)  # nothing but markup: the model is asked again
            found.append([Idea("chalk")])
    ideas = [Ideas(kind, 1, dict.fromkeys(PHRASES, mine)) for kind, mine in zip(("contexts", "styles"), found)]
    book = compose(PromptRequest(PHRASES, 5, token=token, budget=200), *ideas, [styled])
    assert set(book.pool) == set(SHARES)
    for row in book.itertuples():
        lead = fill(_TOKEN_TEMPLATE if token else TEMPLATE, row.phrase, token=token)
        rest = row.prompt.removeprefix(lead)
        assert row.prompt.startswith(lead) and rest.isprintable() and not set(rest) & set("<>{}[]|\\`*")
        ids = styled(row.prompt).input_ids
        assert [i for i in ids[1:-1] if i in special] == [styled.convert_tokens_to_ids(token)] * bool(token), row.prompt
    for name in ("book.jsonl", "book.parquet"):
        pd.testing.assert_frame_equal(load_book(save_book(book, tmp_path / name)), book, check_dtype=False)
    assert len((tmp_path / "book.jsonl").read_bytes().split(b"\n")) == 16
    assert len(make_plan(prompts_by_class(book), 5, seed=0, model="x", steps=1, guidance=1)) == 15


def test_hostile_phrases_are_cleaned_or_refused(tokenizers):
    plain = dict(per_class=2, contexts=0, styles=0, shares={"plain": 1})
    hostile = {"a": "crane\n{bird} <|endoftext|>", "b": "C#"}
    book = compose(PromptRequest(hostile, **plain), None, None, tokenizers)
    assert list(book.prompt[:2]) == ["a photo of a crane bird", "a photo of a C#"]
    with pytest.raises(ValueError, match="class 'a' has the phrase '<b>'"):
        PromptRequest({"a": "<b>", "b": "x"}, **plain)
    with pytest.raises(ValueError, match="holds 'sks', which the generator reads"):
        compose(PromptRequest({"a": "asks", "b": "x"}, **plain, token="sks"), None, None, tokenizers)


@pytest.mark.parametrize("token", ["sks", "S*"])
def test_a_style_token_without_brackets_is_not_smuggled_in(token, tokenizers):
    tokenizer = tokenizers_of(GENERATOR)[0]
    tokenizer.add_tokens([token])
    styles = Ideas("styles", 1, {"a": [Idea(f"ink, {token} chalk a{token}b {token.lower()}, neon")]})
    book = compose(PromptRequest({"a": "anchor"}, 4, contexts=0, token=token), None, styles, [tokenizer])
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
    request = PromptRequest({name: PHRASES[name] for name in ("three", "heart")}, seed=3)
    asked = [ask_ideas(model, request, "contexts", 20, progress=False) for model in (llm, Backwards(llm))]
    assert asked[0].found == asked[1].found and min(map(len, asked[0].found.values())) == 20


def test_failing_class_is_named_and_asked_again_alone(llm, tmp_path):
    out, cutting = tmp_path / "book.jsonl", Cutting(llm, "card suit heart")
    request = PromptRequest(PHRASES, 10, styles=4)
    settings = dict(
        generator=GENERATOR,
        cache=AnswerCache(tmp_path / "answers.sqlite"),
        asking=Asking(patience=2, tries=2),
        progress=False,
    )
    with pytest.warns(UserWarning, match="not enough valid answers: 'heart' has 0 of .*last failure"):
        book = write_prompts(cutting, request, out, **settings)
    assert list(book.attrs["missing"]) == list(load_book(out).attrs["missing"]) == ["heart"]
    assert set(book["class"]) == {"three", "anchor"} and "0 of 7 contexts" in book.attrs["missing"]["heart"]
    assert cutting.cut == 2 * 2 * (4 + 1)  # kinds, tries, samples of two rounds
    with pytest.raises(ValueError, match="heart"):
        prompts_by_class(book)
    with pytest.warns(UserWarning):
        plain = write_prompts(cutting, replace(request, allow_plain=True), **settings)
    assert set(plain[plain["class"] == "heart"].pool) == {"plain"} and not plain.attrs["missing"]

    healthy = Cutting(llm, "nothing has this phrase")
    again = write_prompts(healthy, request, out, **settings)
    assert again.attrs["missing"] == {} and again["class"].value_counts().to_dict() == dict.fromkeys(PHRASES, 10)
    pd.testing.assert_frame_equal(again[again["class"] != "heart"].reset_index(drop=True), book)
    assert healthy.calls <= 12, "the other classes come from the cache"


def test_model_that_runs_dry_is_left_alone(llm):
    meter, request = Cutting(llm, "nothing has this phrase"), PromptRequest({"three": PHRASES["three"]})
    with pytest.warns(UserWarning, match="of 500 styles, nothing new in 2 rounds"):
        styles = ask_ideas(meter, request, "styles", 500, Asking(patience=2, samples=2), progress=False)
    assert 10 <= len(styles.found["three"]) <= 40 and meter.calls < 100
    assert len({idea.text.casefold() for idea in styles.found["three"]}) == len(styles.found["three"])


def test_server_that_is_gone_ends_it_at_once():
    started, gone = time.monotonic(), ServerLLM("http://127.0.0.1:9/v1", "nobody", tries=1)
    with pytest.raises(ConnectionError, match="not one of 6 questions was answered .*Connection error"):
        ask_ideas(gone, PromptRequest(PHRASES), "contexts", 4, Asking(samples=2), progress=False)
    assert time.monotonic() < started + 30


@pytest.mark.filterwarnings("ignore:the model ran dry")
def test_near_duplicates_are_dropped(llm):
    clip, request = load_clip(glyphworld.folder("clip"), device="cpu"), PromptRequest({"three": PHRASES["three"]})
    for near in (0.95, 0.5):
        asking = Asking(near=near, patience=1)
        found = ask_ideas(llm, request, "contexts", 8, asking, clip=clip, progress=False).found["three"]
        features = clip.encode_texts([idea.text for idea in found])
        assert (features @ features.T - torch.eye(len(found))).max() <= near + 1e-4


def test_what_cannot_be_asked_is_refused(llm):
    for wrong, why in (
        (dict(samples=0), r"samples \(0\) must be at least 1"),
        (dict(count=0, patience=-1), r"count \(0\), patience \(-1\) must"),
        (dict(near=0), r"near \(0\) above 0"),
    ):
        with pytest.raises(ValueError, match=why):
            Asking(**wrong)
    with pytest.raises(ValueError, match="contexts need a model to ask"):
        write_prompts(None, PromptRequest(PHRASES), generator=GENERATOR)


# ---- the wire: what goes to and comes from a chat model, and the keys of cached answers

LOOKS = {"three": "two open bows, one above the other", "heart": "two round lobes that meet in a point, upside down"}
WIRE = {
    "contexts": (
        'Imagine 2 different, plausible photos of "heart" (red). For each give, in a few words, "foreground" '
        '(objects around it), "background", "lighting" and "camera" (angle and distance); '
        "leave one empty where nothing is remarkable.\n"
        'Not like these: [{"foreground": "reeds", "background": "", "lighting": "early light", "camera": ""}]\n'
        'Answer in this form: {"scenes": '
        '[{"foreground": "...", "background": "...", "lighting": "...", "camera": "..."}]}'
    ),
    "styles": (
        'Name 2 different styles or materials in which "heart" (red) could be pictured, '
        'each as a phrase that can follow the words "a photo of it, ".\n'
        'Not like these: ["ink"]\nAnswer in this form: {"styles": ["..."]}'
    ),
}


class Scene(BaseModel):
    "One plausible photo in four aspects, a few words each; empty where nothing is remarkable."

    foreground: str
    background: str
    lighting: str
    camera: str


class ScenesAnswer(BaseModel):
    "What the model answers to `scene_question`."

    scenes: list[Scene]


def test_servers_are_sent_what_they_were_always_sent():
    example = {"contexts": Context("reeds", "", "early light"), "styles": "ink"}
    for kind, how in KINDS.items():
        assert how.question("heart", 2, [example[kind]], "red").messages[-1]["content"] == WIRE[kind]
    assert pydantic_function_tool(_ContextsAnswer) == pydantic_function_tool(ScenesAnswer)
    assert _describe_schema(_ContextsAnswer) == _describe_schema(ScenesAnswer), "cached answers are not found again"


def test_answers_of_an_older_version_are_found_in_the_cache(llm, tmp_path):
    cache, phrase = AnswerCache(tmp_path / "answers.sqlite"), PHRASES["three"]
    ask(llm, [context_question(phrase)], ScenesAnswer, 4, cache=cache, check=None, progress=False)
    meter, known = Cutting(llm, "nothing has this phrase"), cache.table().answer.tolist()
    contexts = ask_ideas(meter, PromptRequest({"three": phrase}), "contexts", 4, cache=cache, progress=False)
    assert meter.calls == 0 and len(contexts.found["three"]) == 4 == len(known)
    assert [list(json.loads(answer)) for answer in known] == [["scenes"]] * 4
    told = {idea.value.camera for idea in contexts.found["three"]}
    assert told <= {scene["camera"] for answer in known for scene in json.loads(answer)["scenes"]}


def test_the_shipped_model_is_taught_the_words_that_it_is_asked_in():
    chance, words = random.Random(0), set()
    for _ in range(300):
        *asked, answer = chat._conversation(chance)
        told = json.loads(answer["content"])
        words |= set(told)
        if "scenes" in told:
            assert check_answer(_ContextsAnswer(**told), len(told["scenes"])) and '"scenes"' in asked[1]["content"]
    assert words == {"senses", "scenes", "styles"}


# ---- composing


def test_any_book_begins_with_a_smaller_one(tokenizers):
    chance = random.Random(0)
    for _ in range(12):
        shares = {pool: chance.choice((0, 0.1, 0.5, 1)) for pool in SHARES} | {"CDxSD": 0.3}
        ideas, seed = by_hand(chance.randint(1, 7), chance.randint(1, 5)), chance.randrange(9)
        many, few = sorted((chance.randint(1, 40), chance.randint(1, 40)), reverse=True)
        templates = [TEMPLATE, "{a phrase}, {style}, {context}"]
        longer = PromptRequest(PHRASES, many, shares=shares, seed=seed, templates=templates)
        shorter = replace(longer, per_class=few)
        book, small = compose(longer, *ideas, tokenizers), compose(shorter, *ideas, tokenizers)
        pd.testing.assert_frame_equal(book.head(3 * few), small)
        pd.testing.assert_frame_equal(compose(longer, *ideas, tokenizers, begin=small), book)
        pools = _pool_of_rows(shares, many)
        assert all(book[book["class"] == name].pool.tolist() == pools for name in PHRASES), (
            "every class has the same pools"
        )


def test_rows_of_an_older_book_stay_whatever_the_model_says_now(tokenizers):
    request = PromptRequest(PHRASES, 10)
    old = compose(request, *by_hand(6, 4), tokenizers)
    other = [Ideas(i.kind, 9, {name: list(reversed(ideas)) for name, ideas in i.found.items()}) for i in by_hand(9, 9)]
    book = compose(replace(request, per_class=40), *other, tokenizers, begin=old)
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
    context = Context(words, words.replace("boat", "hut"), "golden light of a late evening", "from far above")
    style = "a watercolour painting on rough paper " * 5
    ideas = Ideas("contexts", 1, {"crane": [Idea(context)]}), Ideas("styles", 1, {"crane": [Idea(style)]})
    request = PromptRequest({"crane": "crane bird"}, 20)
    assert _token_counts(["a photo of a crane"], [clip_tokenizer]).item() == 7
    book = compose(request, *ideas, [clip_tokenizer])
    long = fill(TEMPLATE, "crane bird", style, asdict(context))
    assert _token_counts([long], [clip_tokenizer]).item() > 77 >= book.tokens.max()
    assert set(book[book.pool == "CDxSD"].dropped) == {"lighting"}  # without it the camera fits again
    assert set(book[book.pool == "CD"].dropped) == {""}
    assert _token_counts(book.prompt, [clip_tokenizer])[:, 0].tolist() == book.tokens.tolist()
    assert book.prompt.str.contains("crane bird").all()
    both = compose(request, *ideas, [clip_tokenizer, *tokenizers])  # the smaller room decides
    assert (_token_counts(both.prompt, tokenizers) <= 40).all()
    assert set(both[both.pool == "CDxSD"].dropped) == {"foreground, background, style"}
    with pytest.raises(ValueError, match="'crane': even the plain prompt has 106 tokens where the generator reads 77"):
        compose(PromptRequest({"crane": "crane " * 100}, 20), *ideas, [clip_tokenizer])


def test_styles_may_be_shared_and_pools_switched_off(llm, tmp_path):
    settings = dict(generator=GENERATOR, cache=AnswerCache(tmp_path / "answers.sqlite"), progress=False)
    request = PromptRequest(PHRASES, 12, contexts=0, styles=3, shared_styles=True)
    book = write_prompts(llm, request, **settings)
    shared = book.groupby("class").style.agg(lambda words: frozenset(words) - {""})
    assert set(book.pool) == {"plain", "SD"} and shared.nunique() == 1
    assert (book.context_key == "").all() and (book[book.pool == "SD"].style_key != "").all()
    with pytest.raises(ValueError, match="need CD, which is switched off"):
        PromptRequest(PHRASES, 12, contexts=0, shares={"CD": 1})


def test_no_pair_comes_twice_and_a_book_goes_on_after_any_row(tokenizers):
    request = PromptRequest({"crane": "crane bird"}, 7, shares={"CDxSD": 1})
    contexts, styles = by_hand(2, 3, ["crane"])
    book = compose(request, contexts, styles, tokenizers)
    pairs = list(zip(book.foreground, book["style"]))
    assert len(set(pairs[:6])) == 6 and pairs[6] in pairs[:6]
    turned = [*styles.found["crane"][:2][::-1], styles.found["crane"][2]]
    for n in range(1, 7):  # two styles come in another order now
        told = replace(styles, found={"crane": turned if n > 1 else styles.found["crane"]})
        begun = compose(replace(request, per_class=n), contexts, styles, tokenizers)
        pd.testing.assert_frame_equal(compose(request, contexts, told, tokenizers, begin=begun), book)


def test_a_book_that_cannot_be_composed_is_refused(tokenizers):
    ideas, request = by_hand(6, 4), PromptRequest(PHRASES, 20)
    book = compose(request, *ideas, tokenizers)
    with pytest.raises(ValueError, match="class 'three': even the plain prompt has"):
        compose(replace(request, budget=8), *ideas, tokenizers)
    for change, why in (
        (dict(per_class=10), "20 prompts of 'three', 10 more"),
        (dict(per_class=40, seed=1), "made with seed 0, not 1"),
        (dict(phrases={"heart": "outlined heart"}), "class 0 is 'three'"),
    ):
        with pytest.raises(ValueError, match=why):
            compose(replace(request, **change), *ideas, tokenizers, begin=book)


def test_a_token_takes_room_from_the_aspects(styled):
    request = PromptRequest(PHRASES, 20, token="<scans>", budget=22)
    tight = compose(request, *by_hand(6, 4), [styled])
    assert (tight.tokens <= 22).all() and tight.prompt.str.contains("photo in the style of <scans>").all()
    wide = compose(replace(request, budget=None), *by_hand(6, 4), [styled])
    lost = tight[tight.dropped != ""]
    assert 20 < len(lost) < len(tight) and lost.dropped.str.contains("camera|lighting").all()
    for row, whole in zip(lost.itertuples(), wide.loc[lost.index].itertuples()):
        gone = row.dropped.split(", ")
        for part in gone:  # none of them could have stayed
            parts = {a: "" if a in gone and a != part else getattr(whole, a) for a in (*ASPECTS, "style")}
            prompt = fill(_TOKEN_TEMPLATE, row.phrase, parts.pop("style"), parts, token="<scans>")
            assert _token_counts([prompt], [styled]).item() > 22, (row.prompt, prompt)


# ---- what a meaning looks like


class Listening(Backwards):
    """The same model; it keeps what it was asked."""

    def __init__(self, llm):
        super().__init__(llm)
        self.asked: list[str] = []

    def stream(self, chats, *arguments, **options):
        self.asked += [chat[-1]["content"] for chat in chats]
        yield from self.llm.stream(chats, *arguments, **options)


def test_looks_go_into_questions_and_prompts(llm, tmp_path):
    ear, out = Listening(llm), tmp_path / "book.jsonl"
    request = PromptRequest(PHRASES, 6, contexts=2, styles=2, looks=LOOKS, allow_plain=True)
    book = write_prompts(ear, request, out, generator=GENERATOR, asking=Asking(patience=1), progress=False)
    for name, phrase in PHRASES.items():
        told = f'"{phrase}" ({LOOKS[name]})' if name in LOOKS else f'"{phrase}"'
        own = [question for question in ear.asked if f'"{phrase}"' in question]
        assert own and all(told in question for question in own)
        bare = [question for question in own if "(" not in question.split(".")[0].replace(phrase, "")]
        assert name in LOOKS or len(bare) == len(own)
        prompts = book[book["class"] == name].prompt
        assert len(prompts) == 6 and (name not in LOOKS or prompts.str.contains(LOOKS[name], regex=False).all())
    assert load_book(out).attrs["about"]["looks"] == LOOKS
    other = replace(request, per_class=8, looks=LOOKS | {"heart": "red"})
    with pytest.raises(ValueError, match="older book was made with"):
        write_prompts(ear, other, out, generator=GENERATOR, progress=False)


def test_without_looks_nothing_changes(tokenizers):
    ideas, request = by_hand(6, 3), PromptRequest(PHRASES, 20)
    book = compose(request, *ideas, tokenizers)
    assert book.prompt.equals(compose(replace(request, looks={"heart": ""}), *ideas, tokenizers).prompt)
    assert "looks" not in book.attrs["about"] and list(book.attrs["about"]["templates"].values()) == [TEMPLATE]


def test_looks_stay_until_nothing_else_can_go_and_are_cleaned(styled):
    long = {"three": "<b>open</b> bows, <scans> one above the other"}
    request = PromptRequest(PHRASES, 20, token="<scans>", looks=long, budget=26)
    book = compose(request, *by_hand(6, 3), [styled])
    three = book[book["class"] == "three"]
    assert (book.tokens <= 26).all() and three.prompt.str.contains("open bows").all()
    assert three.prompt.str.count("<scans>").eq(1).all()
    assert (three.dropped != "").any() and not three.dropped.str.contains("looks").any()
    tight = compose(replace(request, budget=14), *by_hand(6, 3), [styled])
    three = tight[tight["class"] == "three"]
    assert (tight.tokens <= 14).all() and three.dropped.str.endswith("looks").all()
    assert three.prompt.str.contains("arabic digit three").all()


def test_looks_that_have_no_place_or_no_class_are_refused():
    with pytest.raises(ValueError, match="no place for {looks}"):
        PromptRequest(PHRASES, 4, looks=LOOKS, templates=[TEMPLATE])
    with pytest.raises(ValueError, match="looks has 'thre', which is none"):
        PromptRequest(PHRASES, 4, looks={"thre": "bows"})


# ---- files

WRITING = """
import sys
import torch
from synthnb.glyphworld import world as glyphworld
from synthnb.diversify import PromptRequest, write_prompts
from synthnb.models.llm import open_llm
from synthnb.prompts.book import load_book, save_book

torch.set_num_threads(1)
phrases, source, there, out = eval(sys.argv[1]), *sys.argv[2:]
llm, request = open_llm(glyphworld.folder("llm")), PromptRequest(phrases, 8)
write_prompts(llm, request, there, generator=glyphworld.folder("generator"), progress=False)
book = load_book(source)
save_book(book, out)
print("going", flush=True)
while True:
    save_book(book.head(30), out)
    save_book(book, out)
"""


def test_another_process_writes_the_same_bytes_and_its_kill_leaves_a_whole_book(llm, tokenizers, tmp_path):
    large = compose(PromptRequest(PHRASES, 1000), *by_hand(6, 4), tokenizers)
    source = save_book(large, tmp_path / "source.jsonl")
    here, there, out = (tmp_path / f"{name}.jsonl" for name in ("here", "there", "out"))
    process = subprocess.Popen(
        [sys.executable, "-c", WRITING, repr(PHRASES), source, there, out],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONHASHSEED": "7"},
    )
    write_prompts(llm, PromptRequest(PHRASES, 8), here, generator=GENERATOR, progress=False)
    assert process.stdout.readline() == "going\n"
    started, sizes = time.monotonic(), set()
    while time.monotonic() < started + 1.5:
        sizes.add(out.stat().st_size)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(load_book(out)) in (30, 3000)
    assert len(sizes) == 2 and max(sizes) == source.stat().st_size, "what a reader sees is one whole book or the other"
    assert there.read_bytes() == here.read_bytes()


SPOILT = {
    "is not a book of prompts": lambda text: text[:-40],
    "no column 'pool'": lambda text: text.replace('"pool"', '"pond"'),
    "should be stands 0000-000000": lambda text: text + text.split("\n")[0],
    "lacks the phrase": lambda text: text.replace("card suit heart", "crane", 1),
    "whole numbers": lambda text: text.replace('"label": 1,', '"label": "1",'),
    "two labels": lambda text: text.replace('"label": 1', '"label": 0', 1),
    "no column": lambda text: "",
}


@pytest.mark.parametrize("why", SPOILT)
def test_a_spoilt_file_is_no_book(why, tokenizers, tmp_path):
    path = save_book(compose(PromptRequest(PHRASES, 4), *by_hand(6, 4), tokenizers), tmp_path / "book.jsonl")
    path.write_text(SPOILT[why](path.read_text()))
    with pytest.raises(ValueError, match=why):
        load_book(path)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_file_keeps_rows_settings_and_missing_classes(suffix, tokenizers, tmp_path):
    contexts, styles = by_hand(6, 4)
    holes = replace(contexts, found=contexts.found | {"heart": []}, dry={"heart": "0 of 30 contexts"})
    book = compose(PromptRequest(PHRASES, 20), holes, styles, tokenizers)
    back = load_book(save_book(book, tmp_path / f"book{suffix}"))
    pd.testing.assert_frame_equal(back, book, check_dtype=False)
    assert back.attrs == json.loads(json.dumps(book.attrs)) and back.attrs["missing"] == {"heart": "0 of 30 contexts"}


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_book_of_an_older_version_is_read_and_goes_on(suffix, tokenizers, tmp_path):
    """Version 0.1 called a context a scene, in a column, in its templates and in what it told of itself."""
    request = PromptRequest(PHRASES, 6)
    now = compose(request, *by_hand(6, 4), tokenizers)
    then = now.rename(columns={"context_key": "scene_key"})
    then["template_version"] = "1-89282b87"
    about = now.attrs["about"] | {"templates": {"1-89282b87": "a photo of {a phrase}, {style}, {scene}"}}
    told = json.dumps({"missing": {}, "about": about | {"ideas": {"scenes": {"wanted": 6}, "styles": {"wanted": 4}}}})
    path = tmp_path / f"prompts{suffix}"
    if suffix == ".jsonl":
        then.to_json(path, orient="records", lines=True)
        path.with_name(f"{path.name}.about.json").write_text(told)
    else:
        table = pa.Table.from_pandas(then, preserve_index=False)
        pq.write_table(table.replace_schema_metadata({"synthnb": told}), path)
    book = load_book(path)
    pd.testing.assert_frame_equal(book, now, check_dtype=False)
    assert book.attrs["about"]["templates"] == now.attrs["about"]["templates"]
    assert book.attrs["about"]["ideas"].keys() == {"contexts", "styles"}
    longer = replace(request, per_class=12)
    pd.testing.assert_frame_equal(
        compose(longer, *by_hand(6, 4), tokenizers, begin=book), compose(longer, *by_hand(6, 4), tokenizers)
    )
