"""Write the results of a committed comparison of methods into README.md: `python tools/update_readme.py [--check]`.

Numbers are never typed: the two blocks between markers and nbs/guides/figures/gains.svg come from results.json and
run.json of the run that the first marker names (`<!-- results outputs/EXPERIMENT/RUN -->`; `--run FOLDER` writes it
there): the text around the blocks speaks of its data and its network, so a newer run never takes its place by itself.
"""

import argparse
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from synthnb.core.renamed import current_names  # noqa: E402
from synthnb.studies.cover import gains_file  # noqa: E402
from synthnb.studies.verdict import Comparison, _against, advice, comparisons, real_images  # noqa: E402

BLOCK = re.compile(r"<!-- results (\S+) -->\n.*?<!-- /results -->", re.DOTALL)  # figures and verdict, on top
TABLE = re.compile(r"<!-- table -->\n.*?<!-- /table -->", re.DOTALL)  # all methods, further down
FIGURE = ROOT / "nbs/guides/figures/gains.svg"
GAINS_WIDE = 480  # pixels, of which a name and a gain need 300
SHOWN = 2  # numbers of real images in the table


def told(run: Path) -> tuple[dict, dict]:
    """results.json and run.json."""
    results, record = (json.loads((run / f"{name}.json").read_text(encoding="utf-8")) for name in ("results", "run"))
    return current_names(results), record


def cell(comparison: Comparison, method: str) -> str:
    """Accuracy of a method, and its paired gain with the verdict, as a table shows them."""
    line = next((line for line in comparison.lines if line.method == method), None)
    if line is None:
        return "-"
    gain = "**0**" if method == comparison.against else f"{line.gain.points} {line.verdict}"
    return f"{100 * line.accuracy:.1f}" + (f", {gain}" if "nan" not in gain else "")


def own_network(results: dict, parameters: dict, compared: Comparison) -> str:
    """What generated images bring to the named classifier, fine-tuned in the run's `methods`; in Markdown."""
    rows = [row for row in results["summary"] if row["shots"] == compared.shots]
    trained = [line for line in compared.lines if line.method in parameters.get("methods", ())]
    without, with_images = ([line for line in trained if line.generated == wanted] for wanted in (False, True))
    if not without or not with_images or any("seeds_at" not in row for row in rows):
        return ""
    rival, best = (max(kind, key=lambda line: line.accuracy) for kind in (without, with_images))
    reference = next(row for row in rows if row["method"] == rival.method)
    gain, verdict, _ = _against(rows, reference, [line.method for line in with_images])[best.method]
    return (
        f"Your own classifier, fine-tuned (here `{parameters['classifier']}`): {100 * rival.accuracy:.1f} % with "
        f"`{rival.method}`, {100 * best.accuracy:.1f} % with `{best.method}`, each its kind's best on the test images: "
        f"{gain.points} points, {'inconclusive' if compared.shared else verdict}."
    )


def results_block(run: Path) -> tuple[str, str, str]:
    """The block on top with figure, images and verdict; the table and what was measured where; the figure itself."""
    results, record = told(run)
    compared = [one for one in comparisons(results) if one.shots][:SHOWN]
    at, parameters, machine = run.relative_to(ROOT).as_posix(), record["parameters"], record["machine"]
    own = run / "figures/beside.png"
    shown = [(FIGURE, "paired gains of each method", GAINS_WIDE)]
    shown += [(own, "real images beside generated ones", 830 - 10 - GAINS_WIDE)] if own.is_file() else []
    images = [
        f'<img src="{file.relative_to(ROOT).as_posix()}" alt="{what}" width="{wide}">' for file, what, wide in shown
    ]
    took = f"{record['seconds'] / 60:.0f} minutes on {machine['cores']} busy cores ({machine['device']})"
    if any(stage["found"] for stage in record.get("stages", ())):  # what an earlier start had made took no time
        took = f"{machine['cores']} cores ({machine['device']})"
    top = [
        " ".join(images),  # side by side where a page is 830 pixels wide, as on GitHub
        "",
        f"**{advice(compared[0])}**",
        own_network(results, parameters, compared[0]),
    ]
    chosen = "chosen by validation images" if compared[0].answer else "the best on the test images"
    lines = [
        f"Accuracy in %, and its difference from **0** (without generated images, {chosen}): paired by seed, 95 % "
        f"intervals over seeds{' and test images' * compared[0].images_counted}, verdicts "
        f"{'' if compared[0].corrected else 'not '}corrected for the methods of a column. "
        f"`{parameters['real_data']}`, {parameters['images_per_class']} generated images per class, "
        f"{len(parameters['seeds'])} seeds, {took}: [report]({at}/report.ipynb).",
        "",
        f"|method|{'|'.join(real_images(one.shots) for one in compared)}|",
        f"|{'---|' * (len(compared) + 1)}",
    ]
    lines += [f"|`{line.method}`|{'|'.join(cell(one, line.method) for one in compared)}|" for line in compared[0].lines]
    return "\n".join(line for line in top).strip() + "\n", "\n".join(lines) + "\n", gains_file(compared[0], GAINS_WIDE)


def updated(readme: str, run: Path | None = None) -> tuple[str, str]:
    """The README with today's results, and its figure; exits if it has no place for them."""
    if not (found := BLOCK.search(readme)) or not TABLE.search(readme):
        sys.exit(
            "README.md has no <!-- results outputs/EXPERIMENT/RUN --> ... <!-- /results --> block, or no "
            "<!-- table --> ... <!-- /table --> block"
        )
    named = run.resolve().relative_to(ROOT).as_posix() if run else found[1]
    top, table, figure = results_block(ROOT / named)
    readme = BLOCK.sub(lambda _: f"<!-- results {named} -->\n{top}<!-- /results -->", readme)
    return TABLE.sub(lambda _: f"<!-- table -->\n{table}<!-- /table -->", readme), figure


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--check", action="store_true", help="write nothing; status 1 if the README is not so")
    arguments.add_argument("--run", type=Path, help="show this run from now on")
    given = arguments.parse_args()
    path = ROOT / "README.md"
    now = path.read_text(encoding="utf-8")
    new, drawn = updated(now, given.run)
    if given.check:
        same = new == now and FIGURE.is_file() and FIGURE.read_text(encoding="utf-8") == drawn
        sys.exit(0 if same else "README.md does not show the committed results: run python tools/update_readme.py")
    path.write_text(new, encoding="utf-8")
    FIGURE.parent.mkdir(exist_ok=True)
    FIGURE.write_text(drawn, encoding="utf-8")
