"""Situation: reasoning models behind servers that do not part thoughts from answers. The thoughts stand in the reply;
often they try out a draft of the asked JSON, or quote the asked form. max_tokens may end them before any answer has
come.

Right: what stands in an unclosed thought is never taken for the answer, and the message says that the reply was cut
while the model was thinking. Where the thought is closed (also by </think> alone, since many templates write <think>
themselves), the object after it is the answer, whatever stands in the thought. A fenced object is the answer, braces in
a remark or not.

Sources: github.com/antirez/ds4/issues/509, github.com/jundot/omlx/issues/3796, github.com/vllm-
project/vllm/issues/13125, github.com/deepseek-ai/DeepSeek-R1/issues/352, github.com/langgenius/dify/issues/42451
"""

from _case import attempt, check, done
from _stub_server import Server, completion

from synthnb.lar import SensesAnswer, check_senses, sense_question
from synthnb.models.llm import ask, open_llm

GOOD = '{"senses": [{"phrase": "crane bird", "looks": "a tall grey bird"}, {"phrase": "construction crane", "looks": "a steel tower"}]}'
DRAFT = '{"senses": [{"phrase": "DRAFT one", "looks": "DRAFT"}, {"phrase": "DRAFT two", "looks": "DRAFT"}]}'
ANSWERABLE = {
    "the answer alone": GOOD,
    "a closed thought with a draft in it": f"<think>First {DRAFT}, no.</think>\n{GOOD}",
    "only </think>, plain thoughts before it": f"I should name two.\n</think>\n\n{GOOD}",
    "only </think>, the asked form quoted before it": f'The form is {{"senses": [...]}}, so I name two.\n</think>\n\n{GOOD}',
    "only </think>, a whole draft before it": f"Perhaps {DRAFT}. Better:\n</think>\n\n{GOOD}",
    "two closed thoughts": f"<think>Hm.</think><think>{DRAFT}</think>{GOOD}",
    "a fence, then a remark with braces": f"```json\n{GOOD}\n```\nYou may put other words for {{phrase}}.",
}
CUT = {
    "an unclosed <think> with a draft, cut (length)": (
        f"<think>\nPerhaps: {DRAFT}\nNo, the first one should",
        "length",
    ),
    "an unclosed <think> with a draft, no cut told": (f"<think>\nPerhaps: {DRAFT}\nNo, the first one should", "stop"),
}


def answered(text: str, finish: str = "stop"):
    "What comes of one question to a model that always replies this."
    server = Server(lambda body: completion(text, finish))
    found = attempt(
        lambda: ask(
            open_llm("m", server.url),
            [sense_question("crane")],
            SensesAnswer,
            check=check_senses,
            tries=2,
            progress=False,
        )
    )
    if found.error:
        return "", found.said
    return "".join(answer.value.model_dump_json() for answer in found.value.found), "; ".join(
        failure.error for failure in found.value.failed
    )


for what, text in ANSWERABLE.items():
    answer, error = answered(text)
    check(f"{what}: answered", "crane bird" in answer, error or ("the draft was taken" if "DRAFT" in answer else ""))
for what, (text, finish) in CUT.items():
    answer, error = answered(text, finish)
    if check(
        f"{what}: the draft is not taken",
        "DRAFT" not in answer,
        "the draft was taken for the answer" if answer else error,
    ):
        check(
            f"{what}: the message speaks of the thought",
            any(word in error.lower() for word in ("think", "thought", "reasoning")),
            error,
        )
done()
