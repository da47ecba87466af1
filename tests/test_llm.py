"""Asking a real server process, through a proxy that fails, with real kills.

The notebooks of `nbs/models` test the rest.

Run as a script, this file is the process that asks: `python tests/test_llm.py URL CACHE`.
"""

import ast
import asyncio
import copy
import hashlib
import json
import logging
import multiprocessing
import os
import pickle
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import traceback
import urllib.request
from contextlib import closing
from pathlib import Path

import nbformat
import pytest
from pydantic import BaseModel

from synthnb.glyphworld import world as glyphworld
from synthnb.models.answers import AnswerCache, cached_llm
from synthnb.models.llm import ask, open_llm
from synthnb.models.local_llm import LocalLLM
from synthnb.models.questions import Question, Reply, Sampling, UnfinishedThought, json_question, read_answer
from synthnb.models.server import ServerLLM, request_body, send_all
from synthnb.studies.drawing import ChatModel, write_study_prompts
from synthnb.studies.parameters import declared_parameters

sys.path.insert(0, str(Path(__file__).parent))
from chat_server import ChatServer, completion, refusal
from faulty_proxy import FaultyProxy

NAMES = list(dict.fromkeys(name for sense in glyphworld.SENSES for name in sense.names))
SHORT = Sampling(temperature=0, max_tokens=160)


class Sense(BaseModel):
    phrase: str
    looks: str


class Senses(BaseModel):
    senses: list[Sense]


def about(name: str, most: int = 4) -> Question:
    """The question that label ambiguity resolution asks."""
    return json_question(
        name,
        f'What can "{name}" mean in a picture? List up to {most} different meanings that a photo captioned "{name}" '
        'could show, the usual ones first. For each give "phrase", a short noun phrase that names this meaning and no '
        'other, and "looks", a few words on what it looks like.\n'
        'Answer in this form: {"senses": [{"phrase": "...", "looks": "..."}]}',
    )


QUESTIONS = [about(name) for name in NAMES[:24]]


def main(url: str, path: str) -> None:
    """The process that asks."""
    ask(
        ServerLLM(url, "llm", concurrency=2), QUESTIONS, Senses, sampling=SHORT, cache=AnswerCache(path), progress=False
    )


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """`transformers serve` with the shipped LLM, in a process of its own."""
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder, log = glyphworld.folder("llm"), tmp_path_factory.mktemp("server") / "log.txt"
    command = [
        Path(sys.executable).with_name("transformers"),
        "serve",
        folder.name,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--device",
        "cpu",
    ]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=folder.parent, env=environment, stdout=output, stderr=output)
    try:
        for _ in range(600):
            assert process.poll() is None, log.read_text()
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
                break
            except OSError:
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="session")
def local():
    return LocalLLM(glyphworld.folder("llm"), "cpu")


# ---- the cache, by several processes


def write_answers(path: Path, worker: int, count: int) -> None:
    cache = AnswerCache(path)
    for i in range(count):
        key = hashlib.sha256(
            f"{worker if i % 2 else 'both'} {i}".encode()
        ).hexdigest()  # every second one is written by all
        cache.put_malformed(key, 0, "three", "{}", f"no {i}", "not JSON")
        cache.put(key, "three", "{}", Reply("text", "stop", 1, 1), f'{{"writer": {worker}, "i": {i}}}', 1)
    cache.close()


def test_two_processes_write_and_one_is_killed(tmp_path):
    path, fork = tmp_path / "new" / "answers.sqlite", multiprocessing.get_context("fork")
    writers = [
        fork.Process(target=write_answers, args=(path, worker, count))
        for worker, count in ((0, 500), (1, 500), (2, 10**6))
    ]
    for writer in writers:
        writer.start()
    cache, third = AnswerCache(path), "SELECT count(*) FROM answers WHERE value LIKE '{\"writer\": 2,%'"
    for _ in range(2000):  # in the middle of its writing
        if cache.database.execute(third).fetchone()[0] > 100:
            break
        time.sleep(0.01)
    os.kill(writers[2].pid, signal.SIGKILL)
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0, -signal.SIGKILL]
    assert cache.database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    for worker in (0, 1):
        mine = [hashlib.sha256(f"{worker if i % 2 else 'both'} {i}".encode()).hexdigest() for i in range(500)]
        assert all(cache.get(key) for key in mine)
    assert cache.database.execute("SELECT count(*) FROM malformed").fetchone()[0] <= 1, (
        "only the killed one can have been between its two writes"
    )
    cache.close()
    replay = AnswerCache(path, readonly=True)
    assert replay.get(mine[0]) and [file.name for file in path.parent.iterdir()] == [path.name]


def test_hostile_names_are_only_data(tmp_path):
    names = [
        "{0}",
        "{error}",
        "{about!r}",
        "%s",
        "%(x)d",
        "<script>alert(1)</script>",
        "'; DROP TABLE answers; --",
        '"',
        "../../etc",
        "CON",
        "$(id)",
        "`id`",
        "\\N{BULLET}",
        "\\x00",
        "a" * 5000,
        "crane\ncrane",
        "鶴",
        "e\u0301",
        "\u00e9",
        "🂡",
    ]
    cache = AnswerCache(tmp_path / "answers.sqlite")
    for i, name in enumerate(names):
        question = about(name)
        assert name in question.messages[-1]["content"]
        cache.put(str(i), question.about, "{}", Reply(name, "stop", 1, 1), name, 1)
        with pytest.raises(ValueError, match="senses"):
            read_answer(Reply('{"senses": 1}', "stop", 1, 1), question, Senses)
    stored = cache.database.execute("SELECT about, reply, value FROM answers ORDER BY rowid").fetchall()
    assert stored == [(name, name, name) for name in names]


def test_fifty_refusals_are_fifty_failures():
    openings = [
        "I'm sorry, but I can't help with that.",
        "I cannot assist with this request.",
        "As an AI language model, I don't see pictures.",
        "I am unable to do so.",
        "I won't provide that.",
    ]
    dressed = [
        "{0}",
        "{0} Ask something else.",
        '{{"senses": [{{"phrase": "{0}", "looks": "-"}}]}}',
        '```json\n{{"error": "{0}"}}\n```',
        '{{"senses": [{{"phrase": "three", "looks": "{0}"}}]}}',
    ]
    replies = [
        Reply(form.format(text), finish, 1, 9)
        for text in openings
        for form in dressed
        for finish in ("stop", "refusal")
    ]
    assert len(replies) == 50
    for reply in replies:
        with pytest.raises(ValueError, match="refus"):
            read_answer(reply, about("three"), Senses)


# ---- a server


def test_without_openai_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ImportError, match=r"synthnb\[llm\]"):
        ServerLLM("http://127.0.0.1:1/v1", "llm")


def test_a_server_says_what_the_local_model_says(server, local):
    chats = [question.messages for question in QUESTIONS[:4]]
    remote = ServerLLM(server, "llm")
    replies = remote.replies(chats, SHORT, range(4), Senses)
    assert [reply.text for reply in replies] == [reply.text for reply in local.replies(chats, SHORT, range(4))]
    assert [reply.prompt_tokens for reply in replies] == [local.count_tokens(chat) for chat in chats]
    (cut,) = remote.replies(chats[:1], Sampling(temperature=0, max_tokens=5), [0])
    assert (cut.finish, cut.answer_tokens) == ("length", 5)


def test_a_model_that_is_not_there_stops_at_once(server):
    replies = ServerLLM(server, "another").replies([QUESTIONS[0].messages] * 40, SHORT, range(40))
    assert "pinned to 'llm'" in str(replies[0]) and "not asked" in str(replies[-1])
    with pytest.raises(RuntimeError, match="mostly in /v1"):
        ServerLLM(server.removesuffix("/v1"), "llm").replies([QUESTIONS[0].messages], SHORT, [0])


def test_all_is_answered_where_three_in_ten_requests_fail(server):
    proxy = FaultyProxy(server, share=0.45, delay=4)
    llm = ServerLLM(proxy.url, "llm", timeout=3, concurrency=8)
    chats = [about(name, most).messages for name in NAMES for most in (3, 4)][:60]
    replies = llm.replies(chats, Sampling(temperature=0, max_tokens=4), range(60))
    assert not [reply for reply in replies if isinstance(reply, Exception)]
    failed = sum(proxy.failed.values())
    assert set(proxy.failed) >= {"429", "500", "delay", "cut", "half", "short"} and failed / (failed + 60) > 0.25


def test_nothing_is_paid_twice_after_a_kill_and_an_interrupt(server, tmp_path, warm_workers):
    proxy, path = FaultyProxy(server, slow=0.1), tmp_path / "answers.sqlite"
    stored = 0
    for ending, code in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 1)):
        asker = subprocess.Popen(
            [sys.executable, __file__, proxy.url, path],
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # a shell's background jobs are deaf to it
        already, before = set(kept(path)), len(proxy.answered)
        while len(kept(path)) < len(already) + 5:
            assert asker.poll() is None, asker.communicate()
            time.sleep(0.02)
        asker.send_signal(ending)
        start = time.perf_counter()
        said = asker.communicate(timeout=30)[1]
        assert asker.returncode in (code, -ending), said
        assert time.perf_counter() - start < 10 and (ending == signal.SIGKILL or "KeyboardInterrupt" in said)
        assert not already & set(proxy.answered[before:]), "asked again, though answered"
        stored = len(kept(path))
        assert len(already) < stored < len(QUESTIONS)
    before, already = len(proxy.answered), set(kept(path))
    answers = ask(
        ServerLLM(proxy.url, "llm"), QUESTIONS, Senses, sampling=SHORT, cache=AnswerCache(path), progress=False
    )
    assert answers.failed == [] and len(answers.found) == len(QUESTIONS), answers.report()
    assert not already & set(proxy.answered[before:])
    before = len(proxy.answered)
    again = ask(
        ServerLLM(proxy.url, "llm"),
        QUESTIONS,
        Senses,
        sampling=SHORT,
        cache=AnswerCache(path, readonly=True),
        progress=False,
    )
    assert again == answers and len(proxy.answered) == before


def test_a_real_server_takes_further_fields(server, local):
    chats, extra = (
        [question.messages for question in QUESTIONS[:2]],
        {"temperature": 0, "top_p": None, "max_completion_tokens": 160, "reasoning_effort": "none"},
    )
    replies = ServerLLM(server, "llm", extra=extra).replies(chats, Sampling(), range(2))
    assert [reply.text for reply in replies] == [reply.text for reply in local.replies(chats, SHORT, range(2))]
    answers = ask(ServerLLM(server, "llm", extra=extra), QUESTIONS[:2], Senses, progress=False)
    assert len(answers.found) == 2, answers.report()


# ---- servers and models with quirks: real servers have each of these

GOOD = (
    '{"senses": [{"phrase": "crane bird", "looks": "a tall grey bird"}, '
    '{"phrase": "construction crane", "looks": "a steel tower"}]}'
)
DRAFT = '{"senses": [{"phrase": "DRAFT", "looks": "DRAFT"}]}'


def asked(reply, questions: int = 1, **options) -> tuple[list[str], str, list[dict]]:
    """First phrases of the answers, the errors, and the requests it took."""
    with ChatServer(reply) as server:
        llm = open_llm("m", server.url, **{"tries": 2, "concurrency": 1} | options)
        answers = ask(llm, QUESTIONS[:questions], Senses, progress=False)
        return (
            [answer.value.senses[0].phrase for answer in answers.found],
            "; ".join(failure.error for failure in answers.failed),
            server.requests,
        )


def no_system(body):
    return (
        refusal("Conversation roles must alternate user/assistant/...")
        if body["messages"][0]["role"] == "system"
        else completion(GOOD)
    )


def unless(*names, words="", status=400, both=False):
    """A server that refuses a request with these fields, saying some words about each."""

    def reply(body):
        there = [name for name in names if name in body]
        if there and (not both or len(there) == len(names)):
            return refusal(words.format(there[0]), status)
        return completion(GOOD)

    return reply


@pytest.mark.parametrize(
    "reply, kept, dropped",
    [
        (
            unless(
                "temperature",
                words="Unsupported value: '{}' does not support 0.8 with this model. "
                "Only the default (1) value is supported.",
            ),
            ["top_p", "seed"],
            ["temperature"],
        ),
        (
            unless("temperature", "top_p", words="Unsupported parameter: '{}' is not supported with this model."),
            ["max_tokens", "seed"],
            ["temperature", "top_p"],
        ),
        (
            unless("temperature", "top_p", words="bad request"),
            ["max_tokens", "seed", "response_format"],
            ["temperature", "top_p"],
        ),
        (
            unless(
                "temperature",
                "top_p",
                words="`temperature` and `top_p` cannot both be specified for this model.",
                both=True,
            ),
            ["temperature"],
            ["top_p"],
        ),
        (unless("temperature", "top_p", words="no", both=True), ["temperature"], ["top_p"]),
        (
            unless("max_tokens", "temperature", "top_p", words="Unsupported parameter: '{}'"),
            ["max_completion_tokens"],
            ["max_tokens", "temperature", "top_p"],
        ),
        (
            unless("response_format", words="the grammar could not be compiled", status=500),
            ["seed", "temperature", "top_p"],
            [],
        ),
        (unless("seed", words="{} is not permitted", status=422), ["temperature", "response_format"], ["seed"]),
        (no_system, ["seed", "temperature", "response_format"], []),
        (
            lambda body: (
                refusal("System role not supported", 500)
                if body["messages"][0]["role"] == "system"
                else completion(GOOD)
            ),
            ["seed", "temperature"],
            [],
        ),
        (
            lambda body: (
                (200, {"error": {"message": "top_p: extra inputs are not permitted", "code": 400}})
                if "top_p" in body
                else completion(GOOD)
            ),
            ["temperature", "seed"],
            ["top_p"],
        ),
    ],
)
def test_what_a_server_refuses_is_left_out_and_nothing_else(reply, kept, dropped):
    found, error, requests = asked(reply, questions=4)
    assert found == ["crane bird"] * 4, error
    assert set(kept) <= set(requests[-1]) and not set(dropped) & set(requests[-1]), sorted(requests[-1])
    assert len(requests) <= 4 + 9, "found out once, at most twice"
    text = " ".join(message["content"] for message in requests[-1]["messages"])
    assert "Answer with one JSON object" in text, "the system's text is not lost"


class Styles(BaseModel):
    senses: list[Sense]


def test_one_schema_may_be_refused_and_another_not():
    def reply(body):
        return (
            refusal("a keyword of this schema is not allowed")
            if "Styles" in json.dumps(body.get("response_format", ""))
            else completion(GOOD)
        )

    with ChatServer(reply) as server:
        llm = ServerLLM(server.url, "m", tries=2)
        for schema in (Senses, Styles, Senses):
            assert len(ask(llm, QUESTIONS[:2], schema, progress=False).found) == 2
        assert "response_format" in server.requests[-1] and llm.refused == {"response_format of Styles"}


def test_a_failure_that_passes_costs_no_setting():
    failures = iter([True])
    found, _, requests = asked(
        lambda body: refusal("overloaded", 500) if next(failures, False) else completion(GOOD), questions=3
    )
    assert len(found) == 3 and "response_format" in requests[-1]


@pytest.mark.parametrize(
    "content",
    [
        json.loads(GOOD),
        [{"type": "text", "text": GOOD[:40]}, {"type": "text", "text": GOOD[40:]}],
        [{"text": GOOD}],
        [GOOD[:9], GOOD[9:]],
        [json.loads(GOOD)],
        [{"type": "thinking", "thinking": [{"type": "text", "text": DRAFT}]}, {"type": "text", "text": GOOD}],
        [{"type": "reasoning", "text": DRAFT}, {"type": "output_text", "text": GOOD}],
        {"type": "text", "text": GOOD},
        [{"type": "text", "text": {"value": GOOD}}],
    ],
)
def test_content_in_every_form(content):
    found, error, _ = asked(lambda body: completion(content))
    assert found == ["crane bird"], error


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": "the pool is drained", "code": 7731}},
        {"error": "the pool is drained"},
        {"object": "error", "message": "the pool is drained", "code": 50001},
        {"detail": "the pool is drained"},
        {
            "choices": [
                {
                    "index": 0,
                    "finish_reason": "error",
                    "message": {"role": "assistant", "content": ""},
                    "error": {"message": "the pool is drained", "code": 502},
                }
            ]
        },
    ],
)
def test_the_words_of_an_error_with_status_200_are_told(body):
    found, error, _ = asked(lambda _: (200, body))
    assert found == [] and "the pool is drained" in error and "status 200" in error


def test_a_model_that_thinks_long_gets_more_tokens():
    def thinks(body, needs=6000):
        enough = body.get("max_tokens", body.get("max_completion_tokens")) >= needs
        return completion(
            GOOD if enough else "", "stop" if enough else "length", reasoning_content="First I should consider ..."
        )

    found, error, requests = asked(thinks)
    assert found == ["crane bird"] and [body["max_tokens"] for body in requests] == [512, 2048, 8192], error
    assert all(len(body["messages"]) == 2 for body in requests), (
        "a thought that did not end is not sent back to be mended"
    )
    found, error, requests = asked(lambda body: thinks(body, 20_000))
    assert found == [] and "only thoughts" in error and "max_tokens" in error and "reasoning_effort" in error
    assert asked(lambda body: thinks(body, 20_000), extra={"max_tokens": 20_000})[2][0]["max_tokens"] == 20_000
    found, error, requests = asked(
        lambda body: completion(
            "" if "reasoning_effort" not in body else GOOD, "length" if "reasoning_effort" not in body else "stop"
        ),
        extra={"reasoning_effort": "none", "temperature": None},
    )
    assert len(requests) == 1 and requests[0]["reasoning_effort"] == "none" and "temperature" not in requests[0]


CLOSED = [
    "<think>First " + DRAFT + "</think>" + GOOD,
    "Perhaps " + DRAFT + "</think>" + GOOD,
    "<think>a</think><think>" + DRAFT + "</think>\n" + GOOD,
    "[THINK]" + DRAFT + "[/THINK]" + GOOD,
    "<thinking>" + DRAFT + "</thinking>```json\n" + GOOD + "\n```",
    "<seed:think>" + DRAFT + "</seed:think>" + GOOD,
    "<|channel|>analysis<|message|>"
    + DRAFT
    + "<|end|><|start|>assistant<|channel|>final <|constrain|>json<|message|>"
    + GOOD
    + "<|return|>",
    "analysisPerhaps " + DRAFT + "assistantfinal" + GOOD,
    "\u25c1think\u25b7" + DRAFT + "\u25c1/think\u25b7" + GOOD,
    "<THINK>" + DRAFT + "</THINK>" + GOOD,
]
OPEN = [
    "<think>Perhaps: " + DRAFT + " No,",
    "<think>a</think><think>" + DRAFT,
    DRAFT + "</think><think>" + DRAFT,
    "[THINK]" + DRAFT,
    "<thinking>" + DRAFT,
    "<|channel|>analysis<|message|>" + DRAFT,
    "<|channel|>analysis<|message|>" + DRAFT + "<|end|>",
    "analysisPerhaps " + DRAFT,
    "<|channel|>final<|message|>" + DRAFT + "<|end|><|start|>assistant<|channel|>analysis<|message|>Hm",
    "<think>\n```json\n" + DRAFT + "\n```",
]


@pytest.mark.parametrize("text", CLOSED)
def test_what_follows_the_last_closed_thought_is_the_answer(text):
    assert asked(lambda body: completion(text))[0] == ["crane bird"]


@pytest.mark.parametrize("finish", ["stop", "length"])
@pytest.mark.parametrize("text", OPEN)
def test_a_draft_in_an_open_thought_is_never_the_answer(text, finish):
    with pytest.raises(UnfinishedThought, match="still thinking"):
        read_answer(Reply(text, finish, 1, 20), QUESTIONS[0], Senses)


def test_a_cut_reply_with_a_draft_in_prose_is_no_answer():
    with pytest.raises(UnfinishedThought, match="draft"):
        read_answer(Reply(f"I could say {DRAFT}, but the first one", "length", 1, 20), QUESTIONS[0], Senses)
    for text in (GOOD, f"```json\n{GOOD}\n```", f"hm</think>So: {GOOD} and"):
        assert read_answer(Reply(text, "length", 1, 20), QUESTIONS[0], Senses).senses[0].phrase == "crane bird"


@pytest.mark.parametrize(
    "text",
    [
        GOOD.replace('"', "'"),
        GOOD.replace("}]}", "},]}"),
        GOOD[:-1],
        GOOD.replace("}, {", "} {"),
        GOOD.replace('"senses"', "senses"),
        GOOD.replace('bird"}', 'bird" // tall\n}'),
        f"```json\n{GOOD.replace('}]}', '},]}')}\n```\nYou may write {{phrase}}.",
        f"In the form {{phrase}}: {GOOD}",
        GOOD.replace("a tall", "a \ntall"),
        f'```\n{GOOD}\n```\nor, if that is too short, {{"more": 1}}',
    ],
)
def test_small_faults_are_mended(text):
    assert [sense.phrase for sense in read_answer(Reply(text, "stop", 1, 20), QUESTIONS[0], Senses).senses] == [
        "crane bird",
        "construction crane",
    ]


@pytest.mark.parametrize(
    "text",
    [
        GOOD[:-3],
        GOOD[:100],
        GOOD[:60],
        '{"senses": [...]}',
        GOOD + GOOD,
        '{"senses": [{"phrase": "a", "phrase": "b", "looks": "c",}]}',
        '{"senses": [{"phrase": NaN, "looks": "c",}]}',
        "{'senses': [{'phrase': 'crane', 'looks': 'it's tall, it's grey'}]}",  # was "it"
        "{'senses': [{'phrase': 'crane', 'looks': 'a farmer's hat, a dog's bowl'}]}",  # was "a farmer"
        "{'senses': [{'phrase': 'a harbours' crane', 'looks': 'bird's-eye view'}]}",  # was "bird's-eye view'}"
        '{"senses": [{"phrase": "crane", "looks": "5" tall, with a 3" beak"}]}',  # was "5"
        '{"senses": [{"phrase": "crane", "looks": "grey, red": "white"}]}',  # was 'grey, red": "white'
        '{"senses": [{"phrase": "crane", "looks": "grey"}, {"phrase": ..., "looks": ...}]}',  # was a meaning "..."
    ],
)
def test_what_is_cut_or_unclear_is_not_mended(text):
    with pytest.raises(ValueError):
        read_answer(Reply(text, "stop", 1, 20), QUESTIONS[0], Senses)


def test_a_mended_reply_holds_all_that_was_said():
    text = "{'senses': [{'phrase': 'a bird's nest', 'looks': 'caf\\u00e9 \\'red\\', twigs // and moss'}]} # done"
    (sense,) = read_answer(Reply(text, "stop", 1, 20), QUESTIONS[0], Senses).senses
    assert (sense.phrase, sense.looks) == ("a bird's nest", "café 'red', twigs // and moss")
    with pytest.raises(ValueError, match="cut after 20 tokens.*max_tokens"):  # whole but for a brace: more may follow
        read_answer(Reply(GOOD[:-2], "length", 1, 20), QUESTIONS[0], Senses)


@pytest.mark.parametrize(
    "words",
    [
        "I apologize, but this is not possible",
        "I can’t generate such images",
        "As a language model",
        "I must decline",
        "Es tut mir leid, dabei kann ich nicht helfen",
        "Lo siento, eso no",
        "Je ne peux pas vous aider",
    ],
)
def test_a_refusal_in_the_place_of_a_meaning_is_none(words):
    with pytest.raises(ValueError, match="refused inside its answer"):
        read_answer(Reply(GOOD.replace("crane bird", words), "stop", 1, 20), QUESTIONS[0], Senses)


@pytest.mark.parametrize(
    "words",
    ["a poster that says 'I apologize'", "a card with the words Lo siento in red", "the song title Mi dispiace"],
)
def test_words_of_a_refusal_within_a_meaning_are_no_refusal(words):
    answer = read_answer(Reply(GOOD.replace("crane bird", words), "stop", 1, 20), QUESTIONS[0], Senses)
    assert words in [sense.phrase for sense in answer.senses]


@pytest.mark.parametrize(
    "text, looks",
    [
        ('{"senses": [{"phrase": "C# logo", // the language\n "looks": "#1"}]}', "#1"),
        ("{'senses': [{'phrase': 'C# logo', 'looks': \"letters 'A', 'B' and 'C'\"}]}", "letters 'A', 'B' and 'C'"),
        ('{"senses": [{"phrase": "C# logo", "looks": "letters \\"A\\", \\"B\\"",}]}', 'letters "A", "B"'),
    ],
)
def test_comments_and_quoted_lists_are_mended_right(text, looks):
    (sense,) = read_answer(Reply(text, "stop", 1, 20), QUESTIONS[0], Senses).senses
    assert (sense.phrase, sense.looks) == ("C# logo", looks)


def test_a_whole_but_wrong_answer_is_corrected_though_chatter_after_it_was_cut():
    wrong = json.dumps({"senses": "none"}) + " and so on"
    answers = iter([completion(wrong, "length"), completion(GOOD)])
    found, error, requests = asked(lambda body: next(answers))
    assert found == ["crane bird"] and [body["max_tokens"] for body in requests] == [512, 512], error
    assert [len(body["messages"]) for body in requests] == [2, 4]


def test_a_long_answer_gets_more_tokens_once():
    def verbose(body, needs=1000):
        whole = body["max_tokens"] >= needs
        return completion(GOOD if whole else GOOD[:60], "stop" if whole else "length")

    found, error, requests = asked(verbose)
    assert found == ["crane bird"] and [body["max_tokens"] for body in requests] == [512, 2048], error
    found, error, requests = asked(lambda body: verbose(body, 10**6))
    assert found == [] and [body["max_tokens"] for body in requests] == [512, 2048, 2048] and "max_tokens" in error


def test_a_small_server_may_take_minutes(monkeypatch):
    import openai

    waits, Client = [], openai.AsyncOpenAI
    monkeypatch.setattr(openai, "AsyncOpenAI", lambda **how: waits.append(how["timeout"]) or Client(**how))
    assert asked(lambda body: completion(GOOD))[0] == ["crane bird"]
    assert waits[0].read >= 300 and waits[0].connect <= 30  # eight questions at half a minute each, one after the other


def test_a_server_that_asks_for_an_hour_is_asked_once():
    with ChatServer(lambda body: (*refusal("too many requests", 429), {"Retry-After": "3600"})) as server:
        with pytest.raises(RuntimeError, match="asks to wait 3,600 s: start again then"):
            ask(ServerLLM(server.url, "m"), QUESTIONS, Senses, progress=False)
        assert len(server.requests) == 1
        # Whoever reads the refusal may be slow: no request goes out meanwhile
        llm, put = ServerLLM(server.url, "m"), []
        body = request_body(llm, QUESTIONS[0].messages, Sampling(), 0, Senses)
        asyncio.run(send_all(llm, [body] * 3, put.append))
        assert len(put) == 1 and len(server.requests) == 2


def test_further_fields_belong_to_the_key(tmp_path, local):
    with (
        ChatServer(lambda body: completion(GOOD)) as server,
        closing(AnswerCache(tmp_path / "answers.sqlite")) as cache,
    ):

        def keys(extra):
            return [
                answer.key
                for answer in ask(
                    open_llm("m", server.url, extra=extra), QUESTIONS[:1], Senses, cache=cache, progress=False
                ).found
            ]

        several = [
            keys(extra)
            for extra in (
                None,
                {"reasoning_effort": "low"},
                {"reasoning_effort": "high"},
                {"temperature": None},
                {"max_tokens": 600},
            )
        ]
        assert (
            len({key for one in several for key in one}) == 5
            and keys({}) == several[0]
            and keys({"reasoning_effort": "low"}) == several[1]
        )
        assert len(server.requests) == 5
        with pytest.raises(ValueError, match="3 models"):
            cached_llm(cache)
    with pytest.raises(ValueError, match="environment variable"):
        open_llm("m", "http://127.0.0.1:1/v1", extra={"api_key": "sk-1"})


# ---- local models that think, or are not plain causal language models


def test_a_local_model_is_read_as_a_server_is(local):
    tokenizer, ids = local.tokenizer, lambda text: local.tokenizer(text, add_special_tokens=False).input_ids
    from synthnb.models.local_llm import reply_text

    opened = ids("Say it.<think>\n")
    assert reply_text(local, opened, ids(DRAFT)).startswith("<think>"), "the template opened the thought"
    with pytest.raises(UnfinishedThought):
        read_answer(Reply(reply_text(local, opened, ids(f"Perhaps {DRAFT}")), "stop", 1, 9), QUESTIONS[0], Senses)
    assert reply_text(local, ids("Say <think> or not.\n"), ids("yes")) == "yes"
    end = tokenizer.eos_token_id
    assert reply_text(local, ids("x"), [*ids("yes"), end]) == "yes", "other special tokens are left out"


def test_a_model_that_also_reads_images_is_asked(tmp_path):
    import shutil

    from transformers import Mistral3Config, Mistral3ForConditionalGeneration, MistralConfig, PixtralVisionConfig

    shipped = LocalLLM(glyphworld.folder("llm"), "cpu")
    shutil.copytree(
        glyphworld.folder("llm"), tmp_path / "m", ignore=shutil.ignore_patterns("*.safetensors", "config.json")
    )
    text = MistralConfig(
        vocab_size=len(shipped.tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
    )
    vision = PixtralVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    Mistral3ForConditionalGeneration(Mistral3Config(text_config=text, vision_config=vision)).save_pretrained(
        tmp_path / "m"
    )
    llm = LocalLLM(tmp_path / "m", "cpu")
    (reply,) = llm.replies([QUESTIONS[0].messages], Sampling(max_tokens=5), [0])
    assert reply.answer_tokens <= 5 and reply.prompt_tokens == llm.count_tokens(QUESTIONS[0].messages)


TEMPLATES = {
    "no system role": (  # Phi-3-mini, as it came out
        "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') %}{{'<|user|>' + '\n' + "
        "message['content'] + '<|end|>' + '\n' + '<|assistant|>' + '\n'}}{% elif (message['role'] == 'assistant') %}"
        "{{message['content'] + '<|end|>' + '\n'}}{% endif %}{% endfor %}"
    ),
    "lines": (  # SmolVLM
        "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}{% if message['content'][0]['type'] "
        "== 'image' %}{{':'}}{% else %}{{': '}}{% endif %}{% for line in message['content'] %}{% if line['type'] == "
        "'text' %}{{line['text']}}{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}"
        "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
    ),
    "parts of the user's": (  # as LLaVA's, without a system
        "{% for message in messages if message['role'] != 'system' %}{{'<|im_start|>' + message['role'] + ' '}}"
        "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] }}"
        "{% endfor %}{% endfor %}"
    ),
}


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_no_template_loses_a_word_of_a_question(local, template):
    from synthnb.models.local_llm import chat_tokens

    tokenizer = copy.deepcopy(local.tokenizer)
    tokenizer.chat_template = template
    written = tokenizer.decode(chat_tokens(tokenizer, QUESTIONS[0].messages))
    for message in QUESTIONS[0].messages:
        assert written.count(message["content"]) == 1
    tokenizer.chat_template = "{% for message in messages %}{{ message['role'] }}{% endfor %}"
    with pytest.raises(ValueError, match="leaves out what is asked"):
        chat_tokens(tokenizer, QUESTIONS[0].messages)


CLOCKS = {
    "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "{{ date_string }}": "26 Jul 2024",  # Llama 3.2
    "{{ strftime_now('%Y-%m-%d') }}": "2024-07-26",  # gpt-oss, Mistral Small
    "{{ strftime_now('%B %d, %Y') }}": "July 26, 2024",  # Granite
}


@pytest.mark.parametrize("clock, day", CLOCKS.items(), ids=CLOCKS.values())
def test_the_same_seed_says_the_same_on_another_day(local, clock, day):
    from synthnb.models.local_llm import chat_tokens

    tokenizer = copy.deepcopy(local.tokenizer)
    tokenizer.chat_template = f"Today: {clock}|{{% for m in messages %}}{{{{ m.content }}}}{{% endfor %}}"
    assert tokenizer.decode(chat_tokens(tokenizer, QUESTIONS[0].messages)).startswith(f"Today: {day}|")


# ---- experiments that ask a server

EXPERIMENTS = [
    path
    for path in sorted((Path(__file__).resolve().parents[1] / "nbs" / "experiments").glob("[!_.]*.ipynb"))
    if "llm_url" in declared_parameters(path)
]


@pytest.mark.parametrize("notebook", EXPERIMENTS, ids=lambda path: path.stem)
def test_every_experiment_passes_further_fields_on(notebook):
    declared = declared_parameters(notebook)
    assert (declared["llm_extra"].type, declared["llm_extra"].default) == ("dict", {})
    calls = [
        call
        for cell in nbformat.read(notebook, as_version=4).cells
        if cell.cell_type == "code"
        for call in ast.walk(ast.parse(cell.source))
        if isinstance(call, ast.Call)
    ]
    named = [
        {
            name.id
            for name in ast.walk(ast.Tuple([*call.args, *(word.value for word in call.keywords)]))
            if isinstance(name, ast.Name)
        }
        for call in calls
    ]
    asking = [names for names in named if "llm_url" in names]
    assert asking and all("llm_extra" in names for names in asking), "a call that gets the URL gets the fields, too"


def as_the_shipped_model_answers():
    """A server that knows glyphworld, and what it was asked."""
    llm = LocalLLM(glyphworld.folder("llm"), "cpu")
    return ChatServer(
        lambda body: completion(
            llm.replies([body["messages"]], Sampling(max_tokens=512), [body.get("seed", 0)])[0].text
        )
    )


def test_further_fields_reach_the_server_from_the_command_line(tmp_path, monkeypatch, warm_kernels, warm_workers):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    command = [sys.executable, "-c", "from synthnb.cli import app; app(prog_name='synthnb')"]
    with as_the_shipped_model_answers() as server:
        given = [
            "-p",
            "llm",
            "m",
            "-p",
            "llm_url",
            server.url,
            "-p",
            "llm_extra",
            '{"reasoning_effort": "none", "temperature": null, "max_tokens": 700}',
        ]
        done = subprocess.run(
            [*command, "run", "lar_benchmark", *given, "-p", "seeds", "[0]", "--outputs", str(tmp_path)],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert len(server.requests) >= 10
        for body in server.requests:
            assert body["reasoning_effort"] == "none" and body["max_tokens"] == 700 and "temperature" not in body
    refused = subprocess.run(
        [
            *command,
            "run",
            "lar_benchmark",
            *given[:6],
            "-p",
            "llm_extra",
            '{"api_key": "sk-1"}',
            "--outputs",
            str(tmp_path / "b"),
        ],
        capture_output=True,
        text=True,
    )
    assert refused.returncode == 2 and "environment variable" in refused.stderr and not (tmp_path / "b").exists()


def test_further_fields_reach_the_server_from_prompts_of_studies():
    with as_the_shipped_model_answers() as server:
        write_study_prompts(
            {"three": "arabic digit three"},
            2,
            ChatModel("m", server.url, {"reasoning_effort": "low"}),
            generator="glyphworld/generator",
        )
        assert server.requests and all(body["reasoning_effort"] == "low" for body in server.requests)


def kept(path: Path) -> list[str]:
    """Questions whose answers are in a cache that another process writes."""
    if not path.exists():
        return []
    with closing(sqlite3.connect(path, timeout=10)) as database:
        try:
            return [
                row[0] for row in database.execute("SELECT json_extract(request, '$.messages[1].content') FROM answers")
            ]
        except sqlite3.OperationalError:  # not made yet
            return []


def test_a_key_is_nowhere(server, tmp_path, monkeypatch, caplog, capfd):
    key = "sk-planted-4242424242"
    monkeypatch.setenv("PLANTED", f" {key}\n")
    caplog.set_level(logging.DEBUG)
    proxy, path, found = FaultyProxy(server), tmp_path / "answers.sqlite", []
    llm, cache = ServerLLM(proxy.url, "llm", key_env="PLANTED", tries=2), AnswerCache(path)
    ask(llm, QUESTIONS[:2], Senses, sampling=SHORT, cache=cache, progress=True)
    for status in (400, 429, 500):
        proxy.always = status, '{"error": {"message": "your key is {authorization}", "code": "{authorization}"}}'
        answers = ask(llm, QUESTIONS[2:4], Senses, sampling=SHORT, cache=cache, progress=True)
        assert len(answers.failed) == 2 and "***" in answers.report()
        found += [answers.report(), repr(answers)]
    found += [
        repr(error) + repr(vars(error)) + repr(error.__context__) + str(pickle.dumps(error))
        for error in llm.replies([QUESTIONS[5].messages], SHORT, [0])
    ]
    proxy.always = 401, "{authorization}"
    with pytest.raises(RuntimeError, match="PLANTED is not accepted") as caught:
        ask(llm, QUESTIONS[2:4], Senses, sampling=SHORT, cache=cache, progress=True)
    found += [
        "".join(traceback.format_exception(caught.value)),
        repr(vars(caught.value)),
        repr(caught.value.__context__),
        repr(llm),
        repr(vars(llm)),
    ]
    found += [
        caplog.text,
        *capfd.readouterr(),
        *(file.read_bytes().decode(errors="ignore") for file in tmp_path.iterdir()),
    ]
    assert not [text for text in found if key[3:] in text]


@pytest.mark.parametrize(
    "text, read",  # what stands in the reply, and its phrases; None: asked again
    [
        ("{'senses': [{'phrase': 'it's', 'looks': 'x'}]}", ["it's"]),
        ("{'senses': [{'phrase': 'bishop's hat', 'looks': 'tall'}]}", ["bishop's hat"]),
        ("{'senses': [{'phrase': 'x', 'looks': 'it's'}]}", None),
        ("{'senses': [{'phrase': 'd'or', 'looks': 'l'or'}]}", None),
        ("{'senses': [{'phrase': 'crane's, 'looks': 'x'}]}", None),
        ("{'senses': [{'phrase': '5' tall', 'looks': 'say 'x', it's'}]}", None),
        ("{'senses': [{'phrase': \"it's\", 'looks': 'caf\\u00e9'}]}", ["it's"]),
        ('{"senses": [{"phrase": "the "big" one", "looks": "x",}]}', ['the "big" one']),
    ],
)
def test_an_apostrophe_between_pythons_quotes_is_read_right_or_asked_about(text, read):
    reply = Reply(text, "stop", 1, 20)
    if read is None:
        with pytest.raises(ValueError, match="its JSON is broken or cut"):
            read_answer(reply, QUESTIONS[0], Senses)
    else:
        assert [sense.phrase for sense in read_answer(reply, QUESTIONS[0], Senses).senses] == read


if __name__ == "__main__":
    main(*sys.argv[1:])
