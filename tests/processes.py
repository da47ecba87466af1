"""A script in two processes of torch.distributed, for tests of what has to agree between them."""

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def in_two_processes(script: str, folder: Path) -> None:
    """Run `script`, which gets `folder` as its argument, in two processes; fails with what they said if one does."""
    (folder / "child.py").write_text(script)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    address = ["--master-addr", "127.0.0.1", "--master-port", str(port)]
    done = subprocess.run(
        [*launcher, *address, str(folder / "child.py"), str(folder)],
        capture_output=True,
        text=True,
        timeout=240,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
