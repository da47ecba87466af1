"""What a command of `synthnb` costs before it does its work: CPU seconds of whole processes.

`.venv/bin/python benchmarks/start_up.py [--rounds 5] [--small]`; protocol: benchmarks/README.md. `python -c pass` and
`synthnb --help` stand beside, and each command is also given as a multiple of `python -c pass` in the same round. The
folder that is looked at has two images, so that what is measured is the start. Bar: 0.8 s each; `--small` has none.
"""

import argparse
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

BAR = 0.8  # CPU seconds
PARAMETERS = Path(__file__).resolve().parents[1] / "nbs" / "experiments" / "params" / "glyphworld" / "quickstart.yaml"
SYNTHNB = (sys.executable, "-c", "from synthnb.cli import app; app()")
MADE = """
from synthnb.cli import app
for words in (
    "prompts one two -n 1 --out book.jsonl",
    "plan book.jsonl -n 1 --steps 1 --out drawn.parquet",
    "generate drawn.parquet --device cpu",
):
    app(words.split(), standalone_mode=False)
"""  # what the commands look at, by one process, which loads the libraries once


def cpu_of(command: tuple[str, ...], place: Path) -> float:
    """CPU seconds of a process and those it starts; ends this script where it fails."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run = subprocess.run(command, cwd=place, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if run.returncode:
        sys.exit(f"{' '.join(command)}: {run.stdout}{run.stderr}")
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--small", action="store_true")
    arguments = parser.parse_args()
    print(platform.platform(), platform.processor(), f"Python {platform.python_version()}", sep=", ")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        cpu_of((sys.executable, "-c", MADE), place)
        commands = {
            "python -c pass": (sys.executable, "-c", "pass"),
            "synthnb --help": (*SYNTHNB, "--help"),
            "synthnb why": (*SYNTHNB, "why", "drawn/0000-one-000000"),
            "synthnb verify": (*SYNTHNB, "verify", "drawn"),
            "synthnb plan": (*SYNTHNB, "plan", "book.jsonl", "--out", "new.parquet"),
            "synthnb doctor --no-measure": (*SYNTHNB, "doctor", str(PARAMETERS), "--no-measure"),
        }
        seconds: dict[str, list[float]] = {name: [] for name in commands}
        for i in range(1 if arguments.small else arguments.rounds + 1):
            for name, command in commands.items():
                (place / "new.parquet").unlink(missing_ok=True)
                spent = cpu_of(command, place)
                if i or arguments.small:  # the first round brings files into memory
                    seconds[name].append(spent)
    bare, missed = seconds["python -c pass"], False
    for name, spent in seconds.items():
        ratio = statistics.median(one / other for one, other in zip(spent, bare))
        middle = statistics.median(spent)
        missed |= middle > BAR
        print(f"{name}: {middle:.2f} s CPU (from {min(spent):.2f} to {max(spent):.2f}), {ratio:.0f}x of python -c pass")
    if arguments.small:
        return 0
    print(f"bar {BAR} s each: {'MISSED' if missed else 'met'}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
