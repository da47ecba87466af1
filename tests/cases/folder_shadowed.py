"""Situation: somebody's own folder is called as a built-in set is: `digits`, with three classes of their scans in it.
They give that name, standing beside the folder.

Right: the folder wins, or an error or a warning names both and says how to write the one that is meant. Where there is
no such folder, `digits` stays the built-in set.

Sources: github.com/huggingface/datasets/issues/5228, github.com/huggingface/transformers/pull/13836
"""

from _case import attempt, check, done, fill

from synthnb.datasets.sets import open_real
from synthnb.studies.doctor_data import check_set

OWN = ("eight", "seven", "three")
found = attempt(lambda: open_real("digits", 32)["train"].classes)
check("no folder of that name: the built-in ten digits", len(found.value or ()) == 10, found.said)

for name in OWN:
    fill(f"digits/{name}", 8)
found = attempt(lambda: open_real("./digits", 32)["train"].classes)
check("./digits is the folder", found.value == OWN, found.said or found.value)


def both(said: str) -> bool:
    return "digits" in said and ("folder" in said or "./" in said)


found = attempt(lambda: open_real("digits", 32)["train"].classes)
check(
    "digits, beside a folder digits: the folder, or both are named",
    found.value == OWN or both(found.said),
    found.said or f"opened, without a word: {found.value}",
)
told = str(check_set("digits")[0])
check("the doctor's line speaks of the folder, too", "3 classes" in told or both(told), told)
done()
