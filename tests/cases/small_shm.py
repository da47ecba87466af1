"""Situation: a container whose /dev/shm has 64 MB, as it has unless more is asked for. Eight processes read images and
hand their batches over through it; the settings for whole data sets ask for 8 and 14.

Right: all images are read (with fewer processes, or by another way), or an error says that shared memory is short and
what to do. Never a wait without end. The doctor, asked about a run with many such processes, speaks of shared memory.

Needs Linux, and the right to mount in a namespace of one's own; without it nothing can be told, and the status is 2.

Sources: github.com/pytorch/pytorch/issues/1355, github.com/logicalclocks/hopsworks/issues/1557
"""

import os
import shutil
import signal
import subprocess
import sys

from _case import HERE, check, done

READ = """
import numpy as np
from pathlib import Path
from PIL import Image
from synthnb.datasets.sets import list_folder, load_images

for name in ("cat", "dog"):
    Path("set", name).mkdir(parents=True, exist_ok=True)
    for i in range(500):
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(f"set/{name}/{i}.jpg")
print(len(load_images(list_folder("set")["train"], 224, workers=WORKERS)), "images were read")
"""
DOCTOR = """
from pathlib import Path
from synthnb.cli import app

Path("params.yaml").write_text("real_data: digits\\nworkers: 14\\n")
app(["doctor", "params.yaml", "-e", "imagenet_study", "--no-measure"], prog_name="synthnb")
"""
SMALL = ["unshare", "-Urm", "sh", "-c", 'mount -t tmpfs -o size=64m tmpfs /dev/shm && exec "$@"', "sh"]


def run(*words: str, seconds: float = 90) -> tuple[int | None, str]:
    "Status and words of a command beside a small /dev/shm; None if it does not come to an end."
    process = subprocess.Popen(
        [*SMALL, *words], cwd=HERE, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        said, _ = process.communicate(timeout=seconds)
        return process.returncode, said
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return None, process.communicate()[0]


if not shutil.which("unshare") or run("true")[0] != 0:
    print("cannot tell: no namespace with a /dev/shm of its own can be made here")
    sys.exit(2)


def spoken(said: str) -> bool:
    return any(word in said for word in ("shared memory", "/dev/shm", "--shm-size"))


status, said = run(sys.executable, "-c", READ.replace("WORKERS", "0"))
check(
    "1,000 images in one process: read",
    "1000 images were read" in said,
    said.strip().splitlines()[-1] if said.strip() else status,
)
status, said = run(sys.executable, "-c", READ.replace("WORKERS", "8"))
last = said.strip().splitlines()[-1] if said.strip() else ""
check(
    "1,000 images of 224 pixels, eight processes, 64 MB: read, or an error that says what is short",
    "1000 images were read" in said or (status not in (0, None) and spoken(said)),
    f"no end after 90 seconds; last words: {last}" if status is None else f"status {status}: {last}",
)
status, said = run(sys.executable, "-c", DOCTOR)
check(
    "the doctor, workers: 14: speaks of shared memory",
    spoken(said),
    said.strip().splitlines()[-1] if said.strip() else status,
)
done()
