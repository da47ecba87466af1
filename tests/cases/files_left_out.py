"""Situation: the class folders of a phone or a scanner: .jpg beside .HEIC, .tif, .jfif, .gif. And those of a network
disk, which keeps thumbnails of its own in folders called @eaDir, beside the class folders and inside them.

Right: what can be read is read; for what is left out it is said how many files and of which kind, where the folder is
opened and by the doctor. @eaDir is nobody's class, and its thumbnails are no pictures of the set.

Sources: github.com/biolab/orange3-imageanalytics/issues/51, github.com/lstein/PhotoMapAI/issues/364,
github.com/caezium/burrow/pull/283, github.com/thumbsup/thumbsup/issues/368
"""

from pathlib import Path

from _case import attempt, check, done, fill

from synthnb.datasets.listed import list_folder
from synthnb.datasets.sets import open_real
from synthnb.studies.doctor_data import check_set


def spoken(said: str, kind: str) -> bool:
    return kind in said.lower().replace(f"with_{kind}", "")


DOORS = {"open_real": lambda folder: open_real(folder, 32), "list_folder": list_folder}

for name in ("cat", "dog"):
    fill(f"usual/{name}", 10, ".jpg")
for what, door in DOORS.items():
    found = attempt(lambda: door("usual"))
    check(f"{what}: a folder of .jpg opens, and nothing is said", found.error is None and not found.said, found.said)

for kind, format in {"tif": "TIFF", "jfif": "JPEG", "gif": "GIF", "heic": ""}.items():
    for name in ("cat", "dog"):
        fill(f"with_{kind}/{name}", 10, ".jpg")
    if format:
        fill(f"with_{kind}/dog", 10, f".{kind}", format, first=10)
    else:  # nobody writes HEIC without a package for it: the head of one
        for i in range(10):
            Path(f"with_{kind}/dog/IMG_{i:04}.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200))
    for what, door in DOORS.items():
        found = attempt(lambda: door(f"with_{kind}"))
        read = sum(map(len, found.value.values())) if found.error is None else 0
        told = spoken(found.said, kind) and "10" in found.said
        check(
            f"{what}: 10 of 20 dogs are .{kind}: read, or spoken of",
            read == 30 or told,
            f"{read} of 30 pictures are read; said: {found.said or 'nothing'}",
        )
    line = str(check_set(f"with_{kind}")[0])
    check(
        f"the doctor: 10 of 20 dogs are .{kind}: counted, or spoken of", "30 train" in line or spoken(line, kind), line
    )

for name in ("cat", "dog"):
    fill(f"disk/{name}", 10, ".jpg")
    fill(f"disk/{name}/@eaDir/0.jpg", 1, ".jpg")
fill("disk/@eaDir", 3, ".jpg")
for what, door in DOORS.items():
    found = attempt(lambda: door("disk"))
    sides = {} if found.error else found.value
    right = all(one.classes == ("cat", "dog") for one in sides.values()) and sum(map(len, sides.values())) == 20
    check(
        f"{what}: @eaDir is no class, and its thumbnails are not read",
        right,
        found.said or {side: (one.classes, len(one)) for side, one in sides.items()},
    )
done()
