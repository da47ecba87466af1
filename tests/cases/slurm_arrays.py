"""Situation: the shards of a plan are parted among the tasks of a job array by `--shards ID::COUNT`, and the array is
numbered from 1 (1-2), or is the rest of an older one (5,6).

Right: a task number that is not below the count is refused, with a word on numbering from 0; or no shard is left out
whatever the numbers are. Never: status 0, and a shard that nobody draws.

Sources: github.com/uabrc/uabrc.github.io/issues/1032, github.com/janosh/matbench-discovery/pull/303
"""

from pathlib import Path

from _case import check, done, synthnb

from synthnb.images.plan import write_plan

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


def array(numbers: list[int], folder: str) -> tuple[list[int], int, str]:
    "Statuses of the tasks, shards that are there afterwards, and what was said last."
    runs = [
        synthnb("generate", "plan.parquet", "--out", folder, "--shards", f"{number}::{len(numbers)}")
        for number in numbers
    ]
    return [run.value for run in runs], len(list(Path(folder).glob("*.tar"))), runs[-1].said.splitlines()[-1]


statuses, shards, said = array([0, 1], "from_zero")
check("--array=0-1: both shards", statuses == [0, 0] and shards == 2, said)
for numbers in ([1, 2], [5, 6]):
    statuses, shards, said = array(numbers, f"from_{numbers[0]}")
    check(
        f"tasks {numbers}: refused, or both shards",
        shards == 2 or any(statuses),
        f"statuses {statuses}, {shards} of 2 shards; the last task said: {said}",
    )
done()
