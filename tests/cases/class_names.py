"""Situation: class names with a slash, a dot or digits in them: "T - shirt / top" of a well-known clothes set, "AC/DC
converter", "911.porsche"; read from a data set's own label names, or typed.

Right: a name keeps its words in their order (rules for the folder names of one known set are for that set only), or it
is refused by name. A typed name that cannot go all the way is refused before a single question is put to the language
model.

Source: huggingface.co/datasets/zalando-datasets/fashion_mnist
"""

import io
import re
from pathlib import Path

import numpy as np
from _case import attempt, check, done, synthnb
from _stub_server import QUIRKS, Server
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as Pillow

from synthnb.datasets.named import NAMED, prompt_name
from synthnb.datasets.sets import open_set

NAMES = ["Trouser", "T - shirt / top", "AC/DC converter", "911.porsche", "20/20 vision"]


def picture(i: int) -> dict:
    file = io.BytesIO()
    Pillow.fromarray(np.random.default_rng(i).integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def words(name: str) -> list[str]:
    return re.findall(r"\w+", name.casefold())


def kept(name: str, now: str) -> bool:
    "Are the words of a name still there, in their order?"
    rest = iter(words(now))
    return all(word in rest for word in words(name))


folder = Path("clothes/data")
folder.mkdir(parents=True)
features = Features({"image": Image(), "label": ClassLabel(names=NAMES)})
for n, side in enumerate(("train", "test")):
    rows = {"image": [picture(100 * n + i) for i in range(50)], "label": [i % len(NAMES) for i in range(50)]}
    Dataset.from_dict(rows, features=features).to_parquet(folder / f"{side}-00000-of-00001.parquet")
found = attempt(lambda: open_set("hf:clothes", 16)["train"].classes)
for name, now in zip(NAMES, found.value or ["refused"] * len(NAMES)):
    check(
        f"of a data set's own labels: {name!r}",
        kept(name, now) or (found.error is not None and "/" in found.said),
        found.said if found.error else repr(now),
    )
check(
    "a known set's rule is still its own",
    "outdoor" in prompt_name("apartment_building/outdoor") and len(NAMED) > 10,
    prompt_name("apartment_building/outdoor"),
)

server = Server(QUIRKS["plain"])
run = synthnb(
    "prompts", "T-shirt/top", "trouser", "--llm", "m", "--llm-url", server.url, "-n", 3, "--out", "typed.jsonl"
)
plan = synthnb("plan", "typed.jsonl", "-n", 2, "--out", "typed.parquet") if run.value == 0 else run
check(
    "typed: refused before the first question, or good for a plan",
    (run.value != 0 and not server.requests) or plan.value == 0,
    f"{len(server.requests)} questions asked, then: {plan.said.splitlines()[-1]}",
)
server = Server(QUIRKS["plain"])
run = synthnb(
    "prompts", "rock & roll", "50% off", "O'Neill", "--llm", "m", "--llm-url", server.url, "-n", 3, "--out", "odd.jsonl"
)
plan = synthnb("plan", "odd.jsonl", "-n", 2, "--out", "odd.parquet")
check("typed: other odd names go all the way", run.value == 0 and plan.value == 0, plan.said.splitlines()[-1])
done()
