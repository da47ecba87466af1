"""The installed command, as a shell sees it (nbs/13_cli.ipynb tests the rest)."""
import json
import subprocess
import sys
from pathlib import Path

import synthnb

COMMAND = Path(sys.executable).with_name("synthnb")


def test_version_from_anywhere(tmp_path):
    done = subprocess.run([COMMAND, "--version"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"synthnb {synthnb.__version__}\n")


def test_mistake_is_one_line(tmp_path):
    done = subprocess.run([COMMAND, "run", "nothing.ipynb"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "error: there is no notebook nothing.ipynb\n")


def test_from_names_to_images_by_two_processes(tmp_path):
    def synthnb_says(*words):
        done = subprocess.run([COMMAND, *map(str, words)], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout
    synthnb_says("prompts", "three", "club", "-n", 2, "--out", "book.parquet")
    synthnb_says("plan", "book.parquet", "-n", 8, "--steps", 3, "--scheduler", "DDIMScheduler", "--guidance-interval", 0.2, 0.8, "--shard-size", 4, "--batch-size", 4)
    assert "16 images in 4 new shards" in synthnb_says("generate", "plan.parquet", "--workers", 2, "--format", "png")
    assert "is whole" in synthnb_says("verify", "plan")
    passport = json.loads(synthnb_says("why", "plan/0001-club-000003"))
    assert (passport["guidance_from"], passport["guidance_until"], passport["drawn_with"]["scheduler"]) == (0.2, 0.8, "DDIMScheduler")
    assert "the same" in synthnb_says("replay", "plan/0001-club-000003")
