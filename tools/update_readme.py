"""Write the results of the committed quickstart report into README.md: `python tools/update_readme.py [--check]`.

Numbers are never typed: everything between the two markers comes from results.json and run.json of the newest finished run
under outputs/quickstart that git knows.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"(<!-- results -->\n).*?(<!-- /results -->)", re.DOTALL)


def committed_run() -> Path:
    """The newest finished quickstart run among the files of this checkout that git tracks."""
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files", "outputs/quickstart/*/DONE"], capture_output=True, text=True, check=True)
    runs = [ROOT / Path(line).parent for line in listed.stdout.splitlines()]
    if not runs:
        sys.exit("no finished quickstart run is committed: run `make report`, then git add -f outputs/quickstart/<run>")
    return max(runs, key=lambda run: json.loads((run / "run.json").read_text())["started"])


def results_block(run: Path) -> str:
    """Picture, table and the sentence that says what was measured where."""
    results, record = (json.loads((run / f"{name}.json").read_text()) for name in ("results", "run"))
    at, parameters, machine = run.relative_to(ROOT), record["parameters"], record["machine"]
    world = "**glyphworld**, " if results.get("glyphworld") else ""
    lines = [
        f"![real scans beside generated ones]({at}/figures/beside.png)", "",
        f"{world}real images of each class: {parameters['shots']}, generated ones: {parameters['images_per_class']}, seeds: {len(parameters['seeds'])}; "
        f"accuracy on the untouched test split in %, of each seed and their mean, and the paired difference to training on the real images "
        f"alone for as many steps, in points with a 95 % interval. One run of `make report`: {record['seconds'] / 60:.1f} minutes on {machine['cores']} cores "
        f"({machine['device']}). [The report]({at}/report.ipynb).", "",
        "| method | optimiser steps | accuracy (of the seeds) | per class | paired difference | verdict |", "|---|---|---|---|---|---|"]
    for row in results["summary"]:
        seeds = ", ".join(f"{100 * value:.1f}" for value in row["seeds_at"])
        gain = "-" if row["gain"] is None else f"{100 * row['gain']:+.1f} [{100 * row['gain_low']:+.1f}, {100 * row['gain_high']:+.1f}]"
        cells = [f"`{row['arm']}`", row["steps"], f"{100 * row['accuracy']:.1f} ({seeds})", f"{100 * row['per_class']:.1f}", gain, row["verdict"] or "-"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def updated(readme: str) -> str:
    """The README with today's results; exits if it has no place for them."""
    if not BLOCK.search(readme):
        sys.exit("README.md has no <!-- results --> ... <!-- /results --> block")
    block = results_block(committed_run())
    return BLOCK.sub(lambda found: found[1] + block + found[2], readme)


if __name__ == "__main__":
    path = ROOT / "README.md"
    now = path.read_text(encoding="utf-8")
    new = updated(now)
    if "--check" in sys.argv[1:]:
        sys.exit(0 if new == now else "README.md does not show the committed results: run python tools/update_readme.py")
    path.write_text(new, encoding="utf-8")
