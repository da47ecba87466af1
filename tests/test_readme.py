"""The README shows the committed report in one screen and a half; Python and numbers of the guides are right."""

import json
import re
import subprocess
import sys
from pathlib import Path

from synthnb.data import digits
from synthnb.datasets.listed import save_folder
from synthnb.glyphworld.world import folder
from synthnb.models.classifiers import load_classifier, save_classifier
from synthnb.studies.verdict import comparisons

ROOT = Path(__file__).resolve().parents[1]


def test_results_are_those_of_the_committed_report():
    done = subprocess.run(
        [sys.executable, "tools/update_readme.py", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = json.loads((ROOT / re.search(r"<!-- results (\S+) -->", readme)[1] / "run.json").read_text())["parameters"]
    told = "the real images are MNIST's, and the classifier was pre-trained on ImageNet's photographs"
    assert (
        told in " ".join(readme.split())
        and shown["real_data"] == "mnist"
        and shown["classifier"].startswith("imagenet/")
    )


def test_it_is_one_screen_and_a_half_and_answers_early():
    """The first 200 words, as they stand, say what it is, why, how to run it on one's own images, and what it costs."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.split()) <= 700
    early = " ".join(re.sub(r"<img [^>]*>", "", text).split()[:200])
    what, why = (
        ("class names and a few real images", "better classifier"),
        ("whether generated images help", "before you"),
    )
    how = ("`synthnb check FOLDER`", "`synthnb doctor`", "`synthnb run`", "`make report`")
    cost = (
        "12 minutes",
        "7 GB",
        "needs a GPU",
        "downloads",
        "an A100 draws 1,000 images",
        "validation images per class",
    )
    for told in (*what, *why, *how, *cost):
        assert told in early, told
    assert text.index("**Not shown:**") < text.index("## Run it") < text.index("## For your images")
    assert re.search(r"For your images\s+```sh\s+synthnb check", text), "one's own images begin with a check"


def test_its_commands_can_be_pasted_in_order():
    """A checkout comes first, and `synthnb` is called only where the environment is active."""
    lines = "\n".join(re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL))
    order = [lines.index(told) for told in ("git clone", "make report", "source .venv/bin/activate", "\nsynthnb ")]
    assert order == sorted(order)
    given = re.search(r"^synthnb run compare (.*)$", lines, re.MULTILINE)[1]
    assert "-p real_data" in given and "-p images" in given, "without them it is a demonstration on built-in digits"


def test_its_words_for_methods_are_explained():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table, words = re.search(r"<!-- table -->\n(.*?)<!-- /table -->(.*?)\n## ", text, re.DOTALL).groups()
    methods = re.findall(r"^\|`([^`]+)`", table, re.MULTILINE)
    parts = {part for method in methods for part in re.findall(r"\+?\w+", method.partition(" (")[0])}
    assert len(methods) > 5 and not [part for part in parts if f"`{part}`" not in words]


def test_the_run_it_shows_can_be_chosen():
    """The table is made of any run of methods: here of one with three seeds and one number of real images."""
    sys.path.insert(0, str(ROOT / "tools"))
    import update_readme

    readme = (
        "a\n<!-- results outputs/bridge_study/other -->\nold\n<!-- /results -->\n<!-- table -->\n<!-- /table -->\nb"
    )
    run = ROOT / "outputs/quickstart/2ae7e9a1b26e"
    new, figure = update_readme.updated(readme, run)
    assert new.startswith("a\n<!-- results outputs/quickstart/2ae7e9a1b26e -->") and new.endswith("<!-- /table -->\nb")
    assert "fine-tuned (here `" in new and new.index("fine-tuned") < new.index("<!-- /results -->") < new.index("|---|")
    assert (
        "`bridged++`" in new and "+5.6 [+1.1, +10.0] inconclusive" in new and "2ae7e9a1b26e/figures/beside.png" in new
    )
    assert "bridged++" in figure and update_readme.updated(new) == (new, figure), "the marker keeps the run"


def test_findings_have_a_figure_or_a_table_each():
    text = (ROOT / "nbs/guides/results.md").read_text(encoding="utf-8")
    parts = text.partition("## Findings")[2].partition("\n## ")[0].split("\n### ")[1:]
    assert len(parts) > 4 and not [
        part[:40] for part in parts if "](../../outputs" not in part and "\n|---" not in part
    ]


def test_findings_give_the_answers_of_the_run_that_the_readme_shows():
    """README says that it is not decided with more images: the page behind that link says so, with both methods."""
    run = re.search(r"<!-- results (\S+) -->", (ROOT / "README.md").read_text(encoding="utf-8"))[1]
    text = (ROOT / "nbs/guides/results.md").read_text(encoding="utf-8")
    said = {"better": "better", "worse": "worse", "equivalent": "equivalent", "inconclusive": "not decided"}
    for one in comparisons(json.loads((ROOT / run / "results.json").read_text(encoding="utf-8"))):
        row = re.search(rf"^\|{one.shots}\|.*$", text, re.MULTILINE)[0]
        assert f"|{one.answer.gain.points}, {said[one.answer.verdict]}|" in row
        assert f"{100 * one.answer.accuracy:.1f} %|" in row


def test_findings_of_old_code_are_marked():
    listed = (ROOT / "nbs/guides/experiments.md").read_text(encoding="utf-8")
    old = [run for cell in re.findall(r"old code: ([^|;]*)", listed) for run in re.findall(r"outputs/(\w+/\w+)", cell)]
    text = (ROOT / "nbs/guides/results.md").read_text(encoding="utf-8").partition("## Findings")[2]
    assert len(old) > 3
    for part in text.split("\n### "):
        assert "*Old code.*" in part or not [run for run in old if run in part], part[:40]


def test_links_lead_somewhere():
    links = re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (ROOT / link).exists()]
    assert links and not missing


def test_the_python_that_asks_a_kept_classifier_runs(tmp_path, monkeypatch):
    guide = (ROOT / "nbs/guides/your_data.md").read_text(encoding="utf-8").partition("## Keep the best classifier")[2]
    code = "\n".join(re.findall(r"```python\n(.*?)```", guide, re.DOTALL))
    scans, place = digits(), tmp_path / "mine/outputs/compare/RUN/classifier"
    save_classifier(load_classifier(folder("cnn"), 10), place, label_names=scans["test"].classes)
    save_folder({"new": scans["test"].subset(range(3))}, tmp_path / "FOLDER")
    monkeypatch.chdir(tmp_path)
    exec(code, made := {})
    assert list(made["table"].columns) == ["file", "class", "probability", "fault"] and len(made["table"]) == 3


def test_intervals_of_the_findings_stand_in_the_ledger_or_a_report():
    """As an effect `+1.0 [-0.5, +2.5]` or with its sign turned, a loss. A number that no run has is found here."""
    plain = lambda text: re.sub(r" points(?: over \d+)?(?= \[)|%", "", text)
    tracked = subprocess.run(
        ["git", "ls-files", "outputs/*/*/results.json"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    known = plain(
        (ROOT / "outputs/ledger.md").read_text(encoding="utf-8")
        + "".join(json.loads((ROOT / path).read_text(encoding="utf-8"))["conclusion"] for path in tracked)
    )
    worth = r"are worth ([\d.]+) more real images per class \[([\d.]+), ([\d.]+)\]"  # as the notebook printed it
    exchange = (ROOT / "nbs/studies/exchange.ipynb").read_text(encoding="utf-8")
    known += "".join(f"+{mean} [+{low}, +{high}]" for mean, low, high in re.findall(worth, exchange + known))
    findings = (ROOT / "nbs/guides/results.md").read_text(encoding="utf-8").partition("## Findings")[2]
    told = re.findall(r"([+-]?\d+\.\d) \[([+-]?\d+\.\d), ([+-]?\d+\.\d)\]", plain(findings))
    signed = lambda mean, low, high: f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"
    missing = [
        one
        for one in told
        if signed(*map(float, one)) not in known and signed(*(-float(one[i]) for i in (0, 2, 1))) not in known
    ]
    assert len(told) > 12 and not missing, missing
