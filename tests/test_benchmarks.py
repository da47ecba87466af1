"""The script for GPUs runs where none is, in a tiny architecture: what it measures is real, only small."""
import os
import re
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "h_gpu.py"


def test_the_gpu_script_runs_at_a_small_size():
    run = subprocess.run([sys.executable, SCRIPT, "--small"], capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""})
    assert run.returncode == 0, run.stderr
    rates = dict(re.findall(r"^(H\d\w?(?: tiny decoder)?) on \S+: ([\d.]+) \w+ a second", run.stdout, re.MULTILINE))
    assert set(rates) == {"H1", "H1b", "H1c", "H1c tiny decoder", "H5"} and all(float(rate) > 0 for rate in rates.values())
    assert float(rates["H1b"]) > float(rates["H1"]), "28 passes of the network in place of 100"
    assert "of the floor" not in run.stdout, "a CPU has no share of a GPU's floor"


def test_without_a_gpu_it_says_what_to_do():
    run = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""})
    assert run.returncode == 1 and "no GPU here: --small" in run.stderr
