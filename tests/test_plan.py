"""Plans as a user makes them: any names, any volumes, any process."""

import json
import re
import subprocess
import sys
from itertools import pairwise

import pandas as pd
import pytest
import torch

from synthnb.images.plan import Plan, _load_plan, make_plan, plan_hash, write_plan

SETTINGS = dict(seed=0, model="some/model", steps=4, guidance=2.0)
HOSTILE = [
    "../../etc",
    "CON",
    "-rf *",
    "$(reboot)",
    "a;b",
    "st. bernard",
    "naïve",
    "Ωmega",
    "鶴",
    "🦜",
    "a" * 5000,
    "%s{0}",
    "<script>",
    "'quoted'",
    "null",
    "__init__",
    "e\u0301cole",
    "\u00e9cole 2",
    "tab key",
    ".hidden",
    "~root",
    "a|b",
    "a>b",
    "&amp;",
    "#1",
    "@all",
    "100%",
    "x=1",
    "c:",
    "*",
]


def test_keys_of_hostile_names_are_plain_and_distinct():
    names = [name.replace("/", "_") for name in HOSTILE]
    plan = make_plan({name: ["a photo"] for name in names}, 2, **SETTINGS)
    assert plan.id.is_unique and len(plan) == 2 * len(HOSTILE)
    assert all(re.fullmatch("[a-z0-9_-]{1,60}", key) for key in plan.id)
    with pytest.raises(ValueError, match="looks like a path"):
        make_plan({"../x": ["a"], "b": ["b"]}, 2, **SETTINGS)


def test_a_million_seeds_without_collision():
    plan = make_plan({f"class {i}": ["a"] for i in range(100)}, 10_000, **SETTINGS)
    assert plan.seed.is_unique and plan.id.is_unique and plan.seed.min() >= 0


@pytest.mark.parametrize("classes, shard_size, batch_size", [(2, 7, 3), (37, 1000, 64), (1300, 1024, 64)])
def test_every_larger_volume_begins_with_the_smaller(tmp_path, classes, shard_size, batch_size):
    prompts = {f"class {i}": [f"a photo of class {i}, {j}" for j in range(1 + i % 5)] for i in range(classes)}
    plans = [
        write_plan(tmp_path / f"{n}.parquet", prompts, n, **SETTINGS, shard_size=shard_size, batch_size=batch_size)
        for n in (3, 5, 20)
    ]
    for small, large in pairwise(plans):
        assert large.prefix_hash(len(small)) == small.hash
        pd.testing.assert_frame_equal(large.rows(0, len(small)), _load_plan(small.path))
    whole = _load_plan(plans[-1].path)
    assert (
        plans[-1].hash
        == plan_hash(whole)
        == plan_hash(make_plan(prompts, 20, **SETTINGS, shard_size=shard_size, batch_size=batch_size))
    )
    for number in range(plans[-1].shards):
        assert plans[-1].shard(number).id.tolist() == whole.id[whole.shard == number].tolist()
    assert [plans[-1].find(key) for key in whole.id[::97]] == list(range(0, len(whole), 97))


def test_another_process_makes_the_same_plan():
    code = (
        "import json; from synthnb.images.plan import make_plan, plan_hash; "
        f"print(plan_hash(make_plan(json.loads('{json.dumps({'a': ['x', 'y'], 'b': ['z']})}'), 5, **{SETTINGS!r})))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert found == plan_hash(make_plan({"a": ["x", "y"], "b": ["z"]}, 5, **SETTINGS))


def test_a_plan_file_appears_whole_or_not_at_all(tmp_path):
    prompts = {"a": ["x"], "b": ["y"]}
    with pytest.raises(ValueError):
        write_plan(tmp_path / "plan.parquet", prompts | {"c": [" "]}, 2, **SETTINGS)
    assert not list(tmp_path.iterdir())
    plan = write_plan(tmp_path / "plan.parquet", prompts, 2, **SETTINGS)
    with pytest.raises(FileExistsError, match="steps: 4 -> 5"):
        write_plan(plan.path, prompts, 2, **SETTINGS | {"steps": 5})
    assert Plan(plan.path).hash == plan.hash and len(list(tmp_path.iterdir())) == 1
    plan.path.write_bytes(plan.path.read_bytes()[:500])
    with pytest.raises(ValueError, match="is not a plan"):
        Plan(plan.path)


def test_noise_keeps_32_bits_of_a_seed():
    """The notebook says so, and how many pairs of 7.7 million images share their noise."""
    noise = [torch.randn(4, generator=torch.Generator("cpu").manual_seed(seed)) for seed in (7, 7 + 2**32, 8)]
    assert torch.equal(noise[0], noise[1]) and not torch.equal(noise[0], noise[2])
    assert 6800 < 7_700_000**2 / 2 / 2**32 < 7000
