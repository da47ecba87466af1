"""The README shows the committed report, links to files that exist, and its Python runs."""

import json
import re
import subprocess
import sys
from pathlib import Path

import torch
from PIL import Image
from shard_images import plan_of, shard_images

from synthnb.data import digits
from synthnb.glyphworld.world import folder, render, sample_scenes

ROOT = Path(__file__).resolve().parents[1]


def test_results_are_those_of_the_committed_report():
    done = subprocess.run(
        [sys.executable, "tools/update_readme.py", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_links_lead_somewhere():
    links = re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (ROOT / link).exists()]
    assert links and not missing


def test_the_python_in_it_runs(tmp_path, monkeypatch, capsys):
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)[1]
    for told, small in {
        "224": "32",
        '"resnet50.a1_in1k"': repr(str(folder("cnn"))),
        "(5000, 2000)": "(2, 1)",
        ", 4, seed)": ", 2, seed)",
        "(0, 1, 2)": "(0, 1)",
    }.items():
        assert told in code, f"{told} is no longer what the README says"
        code = code.replace(told, small)
    torch.set_num_threads(1)
    scans = digits()
    for image, label in zip(scans["train"].images[:150], scans["train"].labels[:150].tolist()):
        place = tmp_path / "photos" / scans["train"].classes[label]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(place / f"{len(list(place.iterdir()))}.png")
    names = sorted(scans["train"].classes, reverse=True)  # a plan may have another order
    shard_images(
        tmp_path / "plan",
        plan_of(tmp_path / "plan.parquet", names, 4),
        render(sample_scenes(40, torch.Generator().manual_seed(0))),
    )
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    told = capsys.readouterr().out
    assert [
        arm for arm in ("vanilla_matched", "mixed_per_batch+dual", "bridged++") if arm not in told
    ] == [] and "NO" not in told


def test_intervals_of_the_findings_stand_in_the_ledger_or_a_report():
    """As an effect `+1.0 [-0.5, +2.5]` or with its sign turned, a loss. A number that no run has is found here."""
    plain = lambda text: re.sub(r" points(?: over \d+)?(?= \[)|%", "", text)
    tracked = subprocess.run(
        ["git", "ls-files", "outputs/*/*/results.json"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    known = plain(
        (ROOT / "outputs/ledger.md").read_text(encoding="utf-8")
        + "".join(json.loads((ROOT / path).read_text(encoding="utf-8"))["conclusion"] for path in tracked)
    )
    findings = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Results and limits")[2]
    told = re.findall(r"([+-]?\d+\.\d) \[([+-]?\d+\.\d), ([+-]?\d+\.\d)\]", plain(findings))
    signed = lambda mean, low, high: f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"
    missing = [
        one
        for one in told
        if signed(*map(float, one)) not in known and signed(*(-float(one[i]) for i in (0, 2, 1))) not in known
    ]
    assert len(told) > 12 and not missing, missing
