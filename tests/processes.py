"""What tests with several processes share: a script in two of torch.distributed, and patience with Ray."""

import os
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import warm_python

ROOT = Path(__file__).resolve().parents[1]


def in_two_processes(script: str, folder: Path, seconds: float = 240) -> None:
    """Run `script`, which gets `folder` as its argument, in two processes; fails with what they said if one does.

    They get the variables that torchrun sets; its launcher would import torch a third time.
    """
    (folder / "child.py").write_text(script)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = os.environ | {"OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, warm_python.__file__, folder / "child.py", folder]
    logs, children, end = [folder / f"{rank}.log" for rank in "01"], [], time.monotonic() + seconds
    try:
        for rank, log in zip("01", logs):
            own = shared | {"RANK": rank, "LOCAL_RANK": rank}
            with log.open("w") as said:
                children.append(subprocess.Popen(command, cwd=ROOT, env=own, stdout=said, stderr=said))
        while any(child.poll() is None for child in children) and time.monotonic() < end:
            if any(child.poll() for child in children):  # the other one would wait for it without end
                break
            time.sleep(0.05)
        states = [child.poll() for child in children]
        assert states == [0, 0], (states, *(log.read_text()[-3000:] for log in logs))
    finally:
        for child in children:
            child.kill()
            child.wait()


def patiently(start, tries: int = 6):
    """What `start` returns. Ray gives its own agent 15 seconds, whatever is set: a busy machine tries again."""
    before = set(psutil.Process().children(recursive=True))
    for left in reversed(range(tries)):
        try:
            return start()
        except Exception as error:
            if not left or "timed out during startup" not in str(error):
                raise
        for process in set(psutil.Process().children(recursive=True)) - before:  # what the failed try left running
            with suppress(psutil.NoSuchProcess):
                process.kill()
