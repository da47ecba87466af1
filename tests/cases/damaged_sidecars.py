"""Situation: a power cut or a full disk has left small files of a begun folder of shards empty or full of zeros: what
has drawn it (drawn_with.json), the facts of a published shard, a lease.

Right: generate, verify and curate go on, or name the file that is damaged; `verify --remove` mends what can be made
again. Never an error of the JSON reader without the name of a file.

Sources: github.com/openhab/openhab-core/issues/2136, github.com/HelloZeroNet/ZeroNet/issues/2125,
github.com/drt-hub/drt/issues/47
"""

import shutil
from pathlib import Path

from _case import attempt, check, done

from synthnb.images.plan import write_plan
from synthnb.images.scores import score_images
from synthnb.images.shards import generate_shards, verify
from synthnb.studies.parameters import locate

write_plan(
    "plan.parquet",
    {"three": ["three"], "eight": ["eight"]},
    2,
    seed=0,
    model="glyphworld/generator",
    steps=2,
    guidance=1.0,
    shard_size=2,
    batch_size=2,
)
COMMANDS = {
    "generate": lambda: generate_shards(
        "plan.parquet", "folder", generator=locate("glyphworld/generator"), patience=3, progress=False
    ),
    "verify": lambda: verify("folder"),
    "curate": lambda: score_images("folder", progress=False),
}
COMMANDS["generate"]()
Path("folder/000001.tar").unlink()  # one of two shards is done
Path("folder/.synthnb/stats/000001.json").unlink(missing_ok=True)
shutil.move("folder", "begun")


def damaged(name: str, content: bytes | None) -> None:
    "The begun folder with one small file that holds something else."
    shutil.rmtree("folder", ignore_errors=True)
    shutil.copytree("begun", "folder")
    if content is not None:
        Path("folder/.synthnb", name).parent.mkdir(exist_ok=True)
        Path("folder/.synthnb", name).write_bytes(content)


for what in COMMANDS:
    damaged("nothing", None)
    found = attempt(COMMANDS[what])
    check(f"nothing damaged: {what}", found.error is None, found.said if found.error else "")
for name, content, commands in (
    ("drawn_with.json", b"", COMMANDS),
    ("stats/000000.json", b"", COMMANDS),
    ("leases/000001.0", bytes(40), ["generate"]),
):
    for what in commands:
        damaged(name, content)
        found = attempt(COMMANDS[what])
        first = str(found.error).splitlines()[0] if found.error else ""  # all that the command line shows
        check(
            f"{name} {'of zeros' if content else 'empty'}: {what} goes on, or names the file",
            not found.error or Path(name).name in first or Path(name).stem in first,
            first or "went on",
        )

damaged("stats/000000.json", b"")
mended = [
    attempt(lambda: verify("folder", remove=True)),
    attempt(COMMANDS["generate"]),
    attempt(lambda: verify("folder")),
]
check(
    "stats/000000.json empty: verify --remove and generate make a whole folder",
    not any(one.error for one in mended) and not mended[-1].value,
    next((one.said for one in mended if one.error), mended[-1].value),
)
done()
