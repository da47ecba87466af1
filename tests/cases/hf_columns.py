"""Situation: data sets of a hub with splits called dev and eval beside train, and with a row whose label is missing.

Right: dev and eval are taken for validation and test, or it is said that they are left out; a missing label is named
(which row, or how many) in an error or a warning that speaks of labels, never as an error of some library's types.

Sources: github.com/huggingface/datasets/issues/7549, github.com/huggingface/datasets/issues/4681
"""

import io
import re
from pathlib import Path

import numpy as np
from _case import attempt, check, done
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as Pillow

from synthnb.datasets.sets import open_set

FEATURES = Features({"image": Image(), "label": ClassLabel(names=["cat", "dog"])})


def write(name: str, splits: tuple[str, ...], missing: tuple[int, ...] = ()) -> str:
    "A folder as the hub has it: 20 pictures in each split."
    folder = Path(name, "data")
    folder.mkdir(parents=True)
    for n, split in enumerate(splits):
        pictures = []
        for i in range(20):
            file = io.BytesIO()
            Pillow.fromarray(np.random.default_rng([n, i]).integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(
                file, "PNG"
            )
            pictures.append({"bytes": file.getvalue(), "path": None})
        labels = [None if i in missing and split == "train" else i % 2 for i in range(20)]
        Dataset.from_dict({"image": pictures, "label": labels}, features=FEATURES).to_parquet(
            folder / f"{split}-00000-of-00001.parquet"
        )
    return f"hf:{name}"


def opened(name: str, *rest):
    found = attempt(lambda: {side: len(one) for side, one in open_set(write(name, *rest), 16).items()})
    return found, [line for line in found.said.splitlines() if "examples/s" not in line]


found, said = opened("usual", ("train", "test"))
check("train and test open", found.error is None and found.value["test"] == 20, said or found.value)

found, said = opened("others", ("train", "dev", "eval"))
sides = found.error is None and found.value.get("val") == 20 and found.value.get("test") == 20
check(
    "dev and eval are validation and test, or spoken of",
    sides or all(any(name in line for line in said) for name in ("dev", "eval")),
    said or found.value,
)

found, said = opened("gap", ("train", "test"), (13,))
text = "\n".join(said)
which = re.search(r"\b13\b|\b(1|one) (\w+ )?(row|label|image|picture|example|sample|of)", text)
check(
    "a row without a label: named as such",
    "label" in text and which is not None and "infer dtype" not in text,
    text or found.value,
)
done()
