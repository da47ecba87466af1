"""Situation: people's decisions about images come back as a CSV in which an image is relabelled to a class called "7".
Tables read such a column as numbers.

Right: text is text: `synthnb curate --decisions` relabels the image to the class "7", also where other lines have no
class.

Sources: github.com/deepset-ai/FARM/pull/67, github.com/chanzuckerberg/cellxgene/pull/1115,
github.com/bedapub/besca/pull/300
"""

from pathlib import Path

from _case import check, done, synthnb

from synthnb.images.curate import kept_path, read_kept
from synthnb.images.plan import write_plan
from synthnb.images.shards import generate_shards
from synthnb.studies.parameters import locate

CLASSES = ("0", "1", "7")
write_plan(
    "plan.parquet",
    {name: [f"a photo of an arabic digit {name}"] for name in CLASSES},
    2,
    seed=0,
    model="glyphworld/generator",
    steps=2,
    guidance=1.0,
    shard_size=6,
    batch_size=6,
)
generate_shards("plan.parquet", "drawn", generator=locate("glyphworld/generator"), progress=False)
ids = [f"{label:04d}-{name}-{n:06d}" for n in range(2) for label, name in enumerate(CLASSES)]


def curated(lines: list[str]) -> tuple[dict[str, str], str]:
    "Class of every kept image after these decisions, and what was said."
    Path("decisions.csv").write_text("\n".join(["id,decision,class,reviewer,time", *lines, ""]), encoding="utf-8")
    run = synthnb("curate", "drawn", "--decisions", "decisions.csv")
    if run.value:
        return {}, run.said.splitlines()[-1]
    kept = read_kept(kept_path("drawn"))
    return dict(zip(kept["id"], kept["class"].astype(str))), ""


kept, said = curated([f"{ids[0]},reject,,me,2024-01-02T00:00:00"])
check("a rejection", ids[0] not in kept and len(kept) == 5, said)
kept, said = curated([f"{ids[0]},relabel,7,me,2024-01-02T00:00:00"])
check("relabelled to 7, the only decision", kept.get(ids[0]) == "7" and len(kept) == 6, said or kept)
kept, said = curated([f"{ids[0]},relabel,7,me,2024-01-02T00:00:00", f"{ids[1]},accept,,me,2024-01-02T00:00:01"])
check("relabelled to 7, and a line without a class", kept.get(ids[0]) == "7" and kept.get(ids[1]) == "1", said or kept)
done()
