"""Situation: a set unpacks as Training/ and Testing/, each with one folder of every class. It is given as it lies
there.

Right: the two are taken for the sides of a split, or refused or warned about by name. They are never silently the two
classes, whose images are then split anew. A set whose classes happen to have folders of their own (cat/2023, cat/2024,
dog/2023, dog/2024) still opens with its classes; a warning is fine there.

Sources: github.com/fastai/fastai/issues/1552, github.com/huggingface/datasets/issues/7880
"""

from _case import attempt, check, done, fill, synthnb

from synthnb.datasets.listed import list_folder
from synthnb.datasets.sets import open_real
from synthnb.studies.doctor_data import check_set

CLASSES = ("glioma", "meningioma", "no tumor")
for side in ("Training", "Testing", "train", "test"):
    for name in CLASSES:
        fill(f"{'odd' if side.istitle() else 'usual'}/{side}/{name}", 8)
for name in ("cat", "dog"):
    for year in ("2023", "2024"):
        fill(f"years/{name}/{year}", 8)


def named(said: str) -> bool:
    return "Training" in said or "Testing" in said


for door in (lambda folder: open_real(folder, 32), list_folder):
    what = "open_real" if door is not list_folder else "list_folder"
    found = attempt(lambda: door("usual"))
    check(
        f"{what}: train/ and test/ are sides",
        found.error is None and found.value["test"].classes == CLASSES,
        found.said,
    )
    found = attempt(lambda: door("years"))
    check(
        f"{what}: classes with folders of their own open",
        found.error is None and found.value["train"].classes == ("cat", "dog"),
        found.said,
    )
    found = attempt(lambda: door("odd"))
    sides = found.error is None and found.value["train"].classes == CLASSES and len(found.value.get("test", ())) == 24
    check(
        f"{what}: Training/ and Testing/ are sides, or spoken of",
        sides or named(found.said),
        found.said or {side: (len(one), one.classes) for side, one in found.value.items()},
    )

told = str(check_set("odd")[0])
check("the doctor's line on the same folder", "3 classes" in told or named(told), told)
told = synthnb("prompts", "odd", "-n", 4, "--dry-run")
check(
    "synthnb prompts FOLDER --dry-run counts three classes, or says why not",
    "3 classes" in told.said or named(told.said),
    told.said,
)
done()
