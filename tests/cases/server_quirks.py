"""Situation: OpenAI-compatible servers and models that are a little different: the content comes in parts or as an
object; the template has no system role; temperature and top_p may not come together; an error comes with status 200; a
grammar fails with status 500; one of two schemas is refused; a model thinks 1,500 tokens before it says a word.

Right: parts of text are joined, an object is the answer; what a server refuses is left out or put otherwise (the system
message into the user's), as is done for seed and response_format; the server's own words are in the message; where
thinking has used up the tokens, that is said, and there is a way to give more.

Sources: github.com/simonw/llm-mistral/pull/39, github.com/mistralai/client-python/issues/252, github.com/vllm-
project/vllm/pull/2964, github.com/huggingface/chat-ui/issues/1386, github.com/sgl-project/sglang/issues/892,
github.com/skydiscover-ai/skydiscover/issues/15, github.com/lmstudio-ai/lmstudio-bug-tracker/issues/618,
github.com/ggml-org/llama.cpp/pull/19349, github.com/NousResearch/hermes-agent/pull/3444
"""

from _case import attempt, check, done, synthnb
from _stub_server import QUIRKS, Server

from synthnb.diversify import StylesAnswer, style_question
from synthnb.lar import SensesAnswer, check_senses, sense_question
from synthnb.models.llm import ask, open_llm


def asked(quirk: str, styles: bool = False) -> tuple[int, str, int]:
    "How many questions were answered, the error of the rest, and the requests it took."
    server = Server(QUIRKS[quirk])
    llm = open_llm("m", server.url, tries=2)  # two tries of a request that may pass: enough here, and quick

    def both():
        answers = [ask(llm, [sense_question("three")], SensesAnswer, check=check_senses, progress=False)]
        return answers + ([ask(llm, [style_question("three")], StylesAnswer, progress=False)] if styles else [])

    found = attempt(both)
    if found.error:
        return 0, f"raised {found.said}", len(server.requests)
    return (
        sum(len(one.found) for one in found.value),
        "; ".join(failure.error for one in found.value for failure in one.failed),
        len(server.requests),
    )


for quirk, what in {
    "plain": "a server without quirks",
    "parts": "content in parts, thoughts and text",
    "object": "content is the object itself",
    "no_system_role": "no system role",
    "one_of_two": "temperature or top_p, not both",
    "format_500": "500 where response_format is asked for",
}.items():
    answers, error, requests = asked(quirk)
    check(f"{what}: answered", answers == 1, error and f"{error} ({requests} requests)")

answers, error, requests = asked("second_schema", styles=True)
check("the second of two schemas is refused: both questions are answered", answers == 2, error)
answers, error, requests = asked("error_in_200")
check("an error with status 200: the server's own words are told", "drained" in error, error)

server = Server(QUIRKS["long_thoughts"])
run = synthnb("prompts", "three", "eight", "--llm", "m", "--llm-url", server.url, "-n", 3, "--out", "book.jsonl")
options = [
    line.split()[0]
    for line in synthnb("prompts", "--help").said.splitlines()
    if line.strip().startswith("--") and "token" in line.split()[0]
]
said = run.said.splitlines()[-1] if run.said else ""
named = any(word in said.lower() for word in ("think", "thought", "reasoning")) and bool(options)
check(
    "1,500 tokens of thoughts: answered, or the message says what used the tokens up and an option gives more",
    run.value == 0 or named,
    f"{said} (options for tokens: {', '.join(options) or 'none'})",
)
done()
