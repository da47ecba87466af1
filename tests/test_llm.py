"""Asking a real server process, through a proxy that fails, with real kills (nbs/02_llm.ipynb tests the rest).

Run as a script, this file is the process that asks: `python tests/test_llm.py URL CACHE`.
"""
import hashlib
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

import pytest
from pydantic import BaseModel

from synthnb import glyphworld
from synthnb.llm import AnswerCache, LocalLLM, Question, Reply, Sampling, ServerLLM, ask, json_question, read_answer

sys.path.insert(0, str(Path(__file__).parent))
from faulty_proxy import FaultyProxy  # noqa: E402

NAMES = [name for name in dict.fromkeys(name for sense in glyphworld.SENSES for name in sense.names)]
SHORT = Sampling(temperature=0, max_tokens=160)


class Sense(BaseModel):
    phrase: str
    looks: str


class Senses(BaseModel):
    senses: list[Sense]


def about(name: str, most: int = 4) -> Question:
    """The question that label ambiguity resolution asks."""
    return json_question(name, f'What can "{name}" mean in a picture? List up to {most} different meanings that a photo captioned "{name}" could show, the usual '
                         'ones first. For each give "phrase", a short noun phrase that names this meaning and no other, and "looks", a few words on what it '
                         'looks like.\nAnswer in this form: {"senses": [{"phrase": "...", "looks": "..."}]}')


QUESTIONS = [about(name) for name in NAMES[:24]]


def main(url: str, path: str) -> None:
    """The process that asks."""
    ask(ServerLLM(url, "llm", concurrency=2), QUESTIONS, Senses, sampling=SHORT, cache=AnswerCache(path), progress=False)


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """`transformers serve` with the shipped LLM, in a process of its own."""
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder, log = glyphworld.folder("llm"), tmp_path_factory.mktemp("server") / "log.txt"
    command = [Path(sys.executable).with_name("transformers"), "serve", folder.name, "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
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
        key = hashlib.sha256(f"{worker if i % 2 else 'both'} {i}".encode()).hexdigest()  # every second one is written by all
        cache.put_malformed(key, 0, "three", "{}", f"no {i}", "not JSON")
        cache.put(key, "three", "{}", Reply("text", "stop", 1, 1), f'{{"writer": {worker}, "i": {i}}}', 1)
    cache.close()


def test_two_processes_write_and_one_is_killed(tmp_path):
    path, fork = tmp_path / "new" / "answers.sqlite", multiprocessing.get_context("fork")
    writers = [fork.Process(target=write_answers, args=(path, worker, count)) for worker, count in ((0, 500), (1, 500), (2, 10 ** 6))]
    for writer in writers:
        writer.start()
    cache, third = AnswerCache(path), 'SELECT count(*) FROM answers WHERE value LIKE \'{"writer": 2,%\''
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
    assert cache.database.execute("SELECT count(*) FROM malformed").fetchone()[0] <= 1, "only the killed one can have been between its two writes"
    cache.close()
    replay = AnswerCache(path, readonly=True)
    assert replay.get(mine[0]) and [file.name for file in path.parent.iterdir()] == [path.name]


def test_hostile_names_are_only_data(tmp_path):
    names = ["{0}", "{error}", "{about!r}", "%s", "%(x)d", "<script>alert(1)</script>", "'; DROP TABLE answers; --", '"', "../../etc", "CON", "$(id)", "`id`",
             "\\N{BULLET}", "\\x00", "a" * 5000, "crane\ncrane", "鶴", "e\u0301", "\u00e9", "🂡"]
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
    openings = ["I'm sorry, but I can't help with that.", "I cannot assist with this request.", "As an AI language model, I don't see pictures.", "I am unable to do so.",
                "I won't provide that."]
    dressed = ["{0}", "{0} Ask something else.", '{{"senses": [{{"phrase": "{0}", "looks": "-"}}]}}', '```json\n{{"error": "{0}"}}\n```',
               '{{"senses": [{{"phrase": "three", "looks": "{0}"}}]}}']
    replies = [Reply(form.format(text), finish, 1, 9) for text in openings for form in dressed for finish in ("stop", "refusal")]
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
    cut, = remote.replies(chats[:1], Sampling(temperature=0, max_tokens=5), [0])
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


def test_nothing_is_paid_twice_after_a_kill_and_an_interrupt(server, tmp_path):
    proxy, path = FaultyProxy(server, slow=0.1), tmp_path / "answers.sqlite"
    stored = 0
    for ending, code in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 1)):
        asker = subprocess.Popen([sys.executable, __file__, proxy.url, path], stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
                                 preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # a shell's background jobs are deaf to it
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
    answers = ask(ServerLLM(proxy.url, "llm"), QUESTIONS, Senses, sampling=SHORT, cache=AnswerCache(path), progress=False)
    assert answers.failed == [] and len(answers.found) == len(QUESTIONS), answers.report()
    assert not already & set(proxy.answered[before:])
    before = len(proxy.answered)
    again = ask(ServerLLM(proxy.url, "llm"), QUESTIONS, Senses, sampling=SHORT, cache=AnswerCache(path, readonly=True), progress=False)
    assert again == answers and len(proxy.answered) == before


def kept(path: Path) -> list[str]:
    """Questions whose answers are in a cache that another process writes."""
    if not path.exists():
        return []
    with closing(sqlite3.connect(path, timeout=10)) as database:
        try:
            return [row[0] for row in database.execute("SELECT json_extract(request, '$.messages[1].content') FROM answers")]
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
    found += [repr(error) + repr(vars(error)) + repr(error.__context__) + str(pickle.dumps(error))
              for error in llm.replies([QUESTIONS[5].messages], SHORT, [0])]
    proxy.always = 401, "{authorization}"
    with pytest.raises(RuntimeError, match="PLANTED is not accepted") as caught:
        ask(llm, QUESTIONS[2:4], Senses, sampling=SHORT, cache=cache, progress=True)
    found += ["".join(traceback.format_exception(caught.value)), repr(vars(caught.value)), repr(caught.value.__context__), repr(llm), repr(vars(llm))]
    found += [caplog.text, *capfd.readouterr(), *(file.read_bytes().decode(errors="ignore") for file in tmp_path.iterdir())]
    assert not [text for text in found if key[3:] in text]


if __name__ == "__main__":
    main(*sys.argv[1:])
