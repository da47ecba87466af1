"""What the scripts of this folder share: a temporary folder to work in, the command line, and a verdict.

Import it first: it sets the environment (one thread, no network, an empty model cache) and makes a
temporary folder the working directory; the folder is gone when the script ends.
"""

import atexit
import contextlib
import io
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import NamedTuple

HERE = Path(tempfile.mkdtemp(prefix="synthnb-case-"))
atexit.register(shutil.rmtree, HERE, ignore_errors=True)
atexit.register(os.chdir, Path.home())  # runs first: a folder that is the working directory cannot always be removed
os.chdir(HERE)
sys.path.append(str(Path(__file__).resolve().parents[1]))
import warm_python  # noqa: E402

os.environ.update(warm_python.SETTINGS | {"PYTHONUTF8": "1", "COLUMNS": "200"})
os.environ["HF_HOME"] = warm_python.model_cache() if warm_python.SERVER in os.environ else str(HERE / ".hf")
_wrong = []


class Outcome(NamedTuple):
    "What a call or a command came to."

    value: object  # of a call: what it gave; of a command: its exit status
    error: Exception | None
    said: str  # the error, warnings, log lines and prints


def attempt(call) -> Outcome:
    "Call something and listen."
    heard, value, error = io.StringIO(), None, None
    handler = logging.StreamHandler(heard)
    logging.getLogger().addHandler(handler)
    try:
        with (
            warnings.catch_warnings(record=True) as caught,
            contextlib.redirect_stdout(heard),
            contextlib.redirect_stderr(heard),
        ):
            warnings.simplefilter("always")
            try:
                value = call()
            except Exception as raised:
                error = raised
    finally:
        logging.getLogger().removeHandler(handler)
    said = [f"{type(error).__name__}: {error}"] if error else []
    return Outcome(
        value,
        error,
        "\n".join(
            [
                *said,
                *(str(w.message) for w in caught if not issubclass(w.category, DeprecationWarning | FutureWarning)),
                _plain(heard.getvalue()),
            ]
        ).strip(),
    )


def synthnb(*words: object, timeout: float = 600, folder: Path | None = None) -> Outcome:
    "Run the command line in a process of its own."
    run = subprocess.run(
        [
            sys.executable,
            warm_python.__file__,
            "-c",
            "from synthnb.cli import app; app(prog_name='synthnb')",
            *map(str, words),
        ],
        cwd=folder,
        text=True,
        encoding="utf-8",
        errors="replace",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=timeout,
    )
    return Outcome(run.returncode, None, _plain(run.stdout))


def _plain(text: str) -> str:
    "Without progress bars."
    lines = (line.rsplit("\r", 1)[-1].rstrip() for line in text.splitlines())
    return "\n".join(line for line in lines if line and not re.search(r"\[\d+:\d\d.*/s\]|\d%\|", line))


def fill(folder: str | Path, n: int = 10, suffix: str = ".png", kind: str | None = None, first: int = 0) -> None:
    "Write n different pictures of coloured noise into a folder."
    import numpy as np
    from PIL import Image

    Path(folder).mkdir(parents=True, exist_ok=True)
    for i in range(first, first + n):
        noise = np.random.default_rng([i, *str(folder).encode()]).integers(0, 255, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(noise).save(Path(folder) / f"{i}{suffix}", kind)


def check(what: str, ok: bool, told: object = "") -> bool:
    "Print one verdict."
    print(
        f"{'right' if ok else 'WRONG'}: {what}"
        + (f"\n       {' / '.join(str(told).split(chr(10)))[:400]}" if str(told) else ""),
        flush=True,
    )
    if not ok:
        _wrong.append(what)
    return ok


def done() -> None:
    "End the script: status 1 while anything is wrong."
    print(f"{len(_wrong)} wrong" if _wrong else "all right")
    sys.exit(bool(_wrong))
