"""Bring the verdict in the committed reports up to date: `python tools/update_reports.py [--check]`.

A report is an executed notebook; the cell under its title says what the run's results.json says.
"""

import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from synthnb.studies.folder import read_record, read_results  # noqa: E402
from synthnb.studies.report_page import put_verdict  # noqa: E402


def renewed(report: Path) -> tuple[str, str]:
    """The text of a report as it is and as it should be."""
    notebook, folder = nbformat.read(report, as_version=4), report.parent
    before = nbformat.writes(notebook)
    put_verdict(notebook, read_results(folder), read_record(folder), folder)
    return before, nbformat.writes(notebook)


def main(check: bool) -> int:
    """1 if `check` finds a report that says something else than its results."""
    stale = []
    for report in sorted((ROOT / "outputs").glob("*/*/report.ipynb")):
        before, after = renewed(report)
        if before != after:
            stale.append(report)
            if not check:
                report.write_text(after, encoding="utf-8")
    told = "is not current: run python tools/update_reports.py" if check else "has a new verdict"
    for report in stale:
        print(f"{report.relative_to(ROOT)} {told}")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
