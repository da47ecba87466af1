"""Write the results of the committed comparison of methods into README.md: `python tools/update_readme.py [--check]`.

Numbers are never typed: everything between the two markers comes from results.json and run.json of the newest finished
run under outputs/bridge_study that git knows, has several numbers of real images, and gave each seed a generated set of
its own.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"(<!-- results -->\n).*?(<!-- /results -->)", re.DOTALL)
SHOWN = (1, 4)  # real images of each class


def told(run: Path) -> tuple[dict, dict]:
    """results.json and run.json."""
    return tuple(json.loads((run / f"{name}.json").read_text(encoding="utf-8")) for name in ("results", "run"))


def is_fit(run: Path) -> bool:
    """Does the run show what the table needs?"""
    results, record = told(run)
    return results.get("generated_sets", 0) >= len(record["parameters"]["seeds"]) and set(SHOWN) <= set(
        record["parameters"]["shots"]
    )


def committed_run() -> Path:
    """The newest run among the files of this checkout that git tracks."""
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "outputs/bridge_study/*/DONE"], capture_output=True, text=True, check=True
    )
    runs = [run for run in (ROOT / Path(line).parent for line in listed.stdout.splitlines()) if is_fit(run)]
    if not runs:
        sys.exit("no such run is committed: run bridge_study, then git add -f outputs/bridge_study/<run>")
    return max(runs, key=lambda run: told(run)[1]["started"])


def cells(row: dict) -> list[str]:
    """Accuracy, and the paired difference with its verdict, as a table shows them."""
    accuracy = f"{100 * row['accuracy']:.1f} [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"
    if row["gain"] is None:
        return [accuracy, "-"]
    return [
        accuracy,
        f"{100 * row['gain']:+.1f} [{100 * row['gain_low']:+.1f}, {100 * row['gain_high']:+.1f}] {row['verdict']}",
    ]


def results_block(run: Path) -> str:
    """Picture, table and the sentence that says what was measured where."""
    results, record = told(run)
    at, parameters, machine = run.relative_to(ROOT), record["parameters"], record["machine"]
    rows = {n: {row["arm"]: row for row in results["summary"] if row["shots"] == n} for n in SHOWN}
    heads = [f"{what}, {n} real image{'s' * (n > 1)}" for n in SHOWN for what in ("accuracy", "difference")]
    lines = [
        f"![paired gains over real images, and accuracies]({at}/figures/shots.png)",
        "",
        f"**glyphworld**, {parameters['images_per_class']} generated images of each class, {len(parameters['seeds'])} seeds, each with generated images of "
        f"its own: accuracy on the untouched test split in %, and the difference in points, paired by seed, to training on the real images alone for as many "
        f"steps; 95 % intervals, verdicts corrected for the methods of a table. {record['seconds'] / 60:.0f} minutes on {machine['cores']} busy cores "
        f"({machine['device']}). [The report]({at}/report.ipynb).",
        "",
        f"| method | {' | '.join(heads)} |",
        f"|{'---|' * (len(heads) + 1)}",
    ]
    lines += [
        f"| {' | '.join([f'`{arm}`', *cells(row), *cells(rows[SHOWN[1]][arm])])} |"
        for arm, row in rows[SHOWN[0]].items()
    ]
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
        sys.exit(
            0 if new == now else "README.md does not show the committed results: run python tools/update_readme.py"
        )
    path.write_text(new, encoding="utf-8")
