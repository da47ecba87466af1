"""Every ending that a run can have, with real kernels and real signals, and rules of papermill's gaps.

nbs/studies/run.ipynb shows the rest.
"""

import base64
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from io import BytesIO
from pathlib import Path

import nbformat
import numpy as np
import pytest
from hostile_names import HOSTILE
from PIL import Image

from synthnb.cli.values import gather_parameters
from synthnb.studies.folder import Busy, state, status
from synthnb.studies.index import write_index
from synthnb.studies.page import fit_report, mask_secrets
from synthnb.studies.parameters import _check_value, check_parameters, declared_parameters, read_parameters
from synthnb.studies.run import RunFailed, run

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENTS = sorted((ROOT / "nbs" / "experiments").glob("[!_.]*.ipynb"))
DECLARED = """shots: int = 4         # real images of each class
lr: float = 1e-3       # learning rate
styles: list[str] = ["chalk"]  # how images look
pause: float = 0.0     # seconds"""
ENDING = """import json, os, pathlib
folder = pathlib.Path(os.environ["SYNTHNB_RUN_FOLDER"])
(folder / "results.json").write_text(json.dumps({"rows": [], "summary": [], "conclusion": "it ran"}))"""


def experiment(path: Path, *work: str, declared: str = DECLARED) -> Path:
    """A notebook that takes a second, because it does not import this package."""
    cells = [
        nbformat.v4.new_markdown_cell("# An experiment"),
        nbformat.v4.new_code_cell(declared, metadata={"tags": ["parameters"]}),
    ]
    nbformat.write(
        nbformat.v4.new_notebook(cells=cells + [nbformat.v4.new_code_cell(source) for source in (*work, ENDING)]), path
    )
    return path


def only_run(outputs: Path) -> Path:
    (found,) = [folder for folder in outputs.glob("[!.]*/*") if folder.is_dir()]
    return found


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


# ---- names and values


NAMES = [*HOSTILE, ""]


def test_hostile_names_are_refused_before_a_kernel_starts(tmp_path):
    notebook = experiment(tmp_path / "e.ipynb")
    assert len(NAMES) == 20
    begun = time.monotonic()
    for name in NAMES:
        with pytest.raises(ValueError, match="unknown parameter"):
            run(
                notebook, {name: f"__import__('pathlib').Path({str(tmp_path / 'ran')!r}).touch()"}, tmp_path / "outputs"
            )
    assert time.monotonic() - begun < 2 and not (tmp_path / "ran").exists() and not (tmp_path / "outputs").exists()


GOOD = [
    "shots: 1",
    "shots: 0",
    "shots: -3",
    "lr: 1e-3",
    "lr: 1",
    "lr: .5",
    "lr: 2E+2",
    "lr: -0.1",
    "styles: []",
    "styles: [no, on, off]",
    "styles: [null_, yes]",
    "styles: ['1', \"2\"]",
    "styles: [12:30, 0x1F]",
    "styles:\n- a\n- b",
    "pause: 0",
    "pause: 1.5",
    "shots: 2\nlr: 0.1",
    "# nothing",
    "styles: [a b c]",
    "shots: +4",
]


@pytest.mark.parametrize("line", ["a = 1", "shots: int", "a.b: int = 1", "a[0]: int = 1", "print(1)"])
def test_a_line_that_is_no_parameter_is_named(line):
    with pytest.raises(ValueError, match="line 2 of the parameters cell is not of the form"):
        read_parameters(f"seed: int = 0\n{line}")


def test_no_good_file_is_refused(tmp_path):
    declared, file = read_parameters(DECLARED), tmp_path / "p.yaml"
    for text in GOOD:
        file.write_text(text)
        check_parameters(declared, gather_parameters(file, []))
    file.write_text("lr: 1e-3\nstyles: [no, on, null, 010, 12:30]")
    assert gather_parameters(file, []) == {"lr": 0.001, "styles": ["no", "on", "null", "010", "12:30"]}, (
        "as YAML 1.2 has it"
    )
    assert len(GOOD) == 20


def test_mutated_files_are_refused(tmp_path):
    declared, file, bad = read_parameters(DECLARED), tmp_path / "p.yaml", []
    good = {"shots": "4", "lr": "0.1", "styles": "[a]", "pause": "1.0"}
    for name, value in good.items():
        bad += [f"{typo}: {value}" for typo in (name[:-1], name + "s", name[1:], name.upper(), name[0] + name)]
        bad += [f"{name}: {wrong}" for wrong in ("'text'", "true", "{a: 1}", "[[1]]", "", "'4'")]
    bad += ["shots: 4.5", "shots: 1e1", "styles: chalk", "styles: [1]", "styles: [true]", "lr: 1e-3x"]
    for text in bad:
        file.write_text(text)
        with pytest.raises(ValueError, match="unknown parameter|must be"):
            check_parameters(declared, gather_parameters(file, []))
    assert len(bad) == 50


def test_paths_are_no_parameters(tmp_path):
    with pytest.raises(ValueError, match=r"PosixPath\) *, but name must be str|must be str"):
        _check_value(read_parameters("name: str = ''")["name"], tmp_path)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_experiments_check_their_parameters_where_papermill_is_called_directly(path):
    code = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert "parameters" in code[0].metadata.get("tags", []), "the parameters come first"
    assert code[1].source.splitlines()[-1] == "check_params(globals())"
    assert declared_parameters(path)


@pytest.mark.parametrize(
    "name, fewest",
    [
        ("bridge_study", {"methods": ["vanilla_matched", "bridged"], "shots": [1], "seeds": [0, 1]}),
        ("diversify_or_finetune", {"sources": ["prompts"], "methods": ["bridged"]}),
    ],
)
def test_a_single_method_has_its_figure(tmp_path, warm_kernels, name, fewest):
    """seaborn divides by the number of colours less one: studies of one method ended there, trained for nothing."""
    folder = run(ROOT / "nbs" / "experiments" / f"{name}.ipynb", fewest, tmp_path, progress=False)
    assert state(folder) == "DONE" and list((folder / "figures").iterdir())


def test_a_notebook_without_one_parameters_cell_is_refused(tmp_path):
    node = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("shots = 1")])
    nbformat.write(node, tmp_path / "e.ipynb")
    with pytest.raises(ValueError, match="0 cells tagged 'parameters'"):
        run(tmp_path / "e.ipynb", {}, tmp_path / "outputs")


# ---- endings

FORK = multiprocessing.get_context("fork")  # what is imported once need not be imported for every signal
PAUSE = """import os, pathlib, time
begun = pathlib.Path(os.environ["SYNTHNB_RUN_FOLDER"], "begun")
if not begun.exists():  # a second start goes on
    begun.touch()
    time.sleep(pause)"""


@pytest.mark.parametrize(
    "work, timeout, message",
    [
        ("raise KeyError('three')", None, "cell 2 failed: KeyError: 'three'"),
        ("import sys; sys.exit(3)", None, "cell 2 failed: SystemExit: 3"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", None, "the kernel died"),
        ("import time; time.sleep(60)", 1, "a cell took longer than the 1 s that were allowed; it begins 'import time"),
        ("del os", None, "NameError"),
    ],
)
def test_endings_are_marked_and_keep_their_notebook(tmp_path, work, timeout, message):
    outputs = tmp_path / "outputs"
    with pytest.raises(RunFailed, match=re.escape(message)):
        run(experiment(tmp_path / "e.ipynb", work), outputs=outputs, progress=False, timeout=timeout)
    folder = only_run(outputs)
    assert state(folder) == "FAILED" and message in (folder / "FAILED").read_text()
    assert work in [cell.source for cell in nbformat.read(folder / "failed.ipynb", as_version=4).cells]
    assert not [name for name in ("DONE", "results.json", "report.ipynb", "report.html") if (folder / name).exists()]
    page = write_index(outputs).read_text()
    assert 'data-state="FAILED"' in page and 'data-state="DONE"' not in page


def run_from_a_terminal(*arguments):
    "As there, Ctrl-C interrupts; whoever starts the tests in the background may have it ignored."
    signal.signal(signal.SIGINT, signal.default_int_handler)
    run(*arguments)


@pytest.mark.parametrize(
    "number, told, found",
    [
        (signal.SIGTERM, "stopped by SIGTERM", "FAILED"),
        (signal.SIGINT, "interrupted", "FAILED"),
        (signal.SIGKILL, "", "UNFINISHED"),
    ],
)
def test_signals(tmp_path, number, told, found):
    notebook, outputs = experiment(tmp_path / "e.ipynb", PAUSE), tmp_path / "outputs"
    process = FORK.Process(target=run_from_a_terminal, args=(notebook, {"pause": 60.0}, outputs, False))
    process.start()
    wait_for(lambda: list(outputs.glob("e/*/begun")))
    folder = only_run(outputs)
    with pytest.raises(Busy, match="another process is at work"):
        run(notebook, {"pause": 60.0}, outputs, progress=False)
    assert status(folder) == "RUNNING" and 'data-state="RUNNING"' in write_index(outputs).read_text()
    os.kill(process.pid, number)
    process.join(30)
    assert process.exitcode not in (0, None)
    assert state(folder) == found and not (folder / "results.json").exists()
    if told:
        assert (folder / "FAILED").read_text().strip() == told and json.loads((folder / "run.json").read_text())[
            "interrupted"
        ]
    assert status(folder) == (found if told else "KILLED")
    page = write_index(outputs).read_text()
    assert (
        'data-state="FAILED"' in page
        and not re.search('data-state="(DONE|RUNNING|UNFINISHED)"', page)
        and (told or "killed, or the machine went down") in page
    )
    if not told:
        assert run(notebook, {"pause": 60.0}, outputs, progress=False) == folder and status(folder) == "DONE"


def test_a_finished_report_stays_until_a_new_one_is_there(tmp_path):
    "Whether the next try fails, is interrupted, or is killed and started again."
    fragile = "import os, pathlib, signal\nif (how := pathlib.Path('how')).is_file(): exec(how.read_text())"
    notebook, outputs = (
        experiment(tmp_path / "e.ipynb", f"import os; os.chdir({str(tmp_path)!r})", fragile),
        tmp_path / "outputs",
    )
    folder = run(notebook, outputs=outputs, progress=False)
    before = {
        name: (folder / name).read_bytes()
        for name in ("DONE", "results.json", "report.ipynb", "report.html", "run.json")
    }
    for how in ("raise KeyError('again')", "os.kill(os.getpid(), signal.SIGKILL)"):
        (tmp_path / "how").write_text(how)
        with pytest.raises(RunFailed, match="the report of the earlier run is kept"):
            run(notebook, outputs=outputs, progress=False)
        assert (
            state(folder) == "DONE"
            and before == {name: (folder / name).read_bytes() for name in before}
            and (folder / "failed.ipynb").is_file()
        )
    (tmp_path / "how").write_text(
        "(pathlib.Path(os.environ['SYNTHNB_RUN_FOLDER']) / 'begun').touch(); import time; time.sleep(60)"
    )
    process = FORK.Process(target=run_from_a_terminal, args=(notebook, {}, outputs, False))
    process.start()
    wait_for(lambda: (folder / "begun").exists())
    os.kill(process.pid, signal.SIGKILL)
    process.join(30)
    assert run(notebook, outputs=outputs, progress=False, again=False) == folder and before == {
        name: (folder / name).read_bytes() for name in before
    }
    (tmp_path / "how").unlink()
    assert run(notebook, outputs=outputs, progress=False) == folder and state(folder) == "DONE"
    assert (folder / "run.json").read_bytes() != before["run.json"] and not (folder / ".finished").exists()


@pytest.fixture
def small_disk(tmp_path):
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", tmp_path], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {mounted.stderr.strip()}")
    yield tmp_path
    subprocess.run(["umount", tmp_path], check=True)


def test_full_disk_leaves_nothing_torn(small_disk, tmp_path_factory):
    notebook = experiment(tmp_path_factory.mktemp("notebook") / "e.ipynb", "print(('x' * 99 + '\\n') * 6_000)")
    with pytest.raises(RunFailed, match=r"the disk of .* is full, [\d.]+ MB are free; make space and start again"):
        run(notebook, outputs=small_disk / "outputs", progress=False)
    folder = only_run(small_disk / "outputs")
    assert state(folder) == "FAILED"
    assert not [
        name
        for name in ("results.json", "report.ipynb", "report.html", "report.partial.ipynb", "DONE")
        if (folder / name).exists()
    ]
    for file in folder.glob("*.ipynb"):
        nbformat.read(file, as_version=4)
    subprocess.run(["mount", "-o", "remount,size=20m", small_disk], check=True)
    assert state(run(notebook, outputs=small_disk / "outputs", progress=False)) == "DONE"


# ---- starts

SPEC = {"argv": [sys.executable, "-c", "", "{connection_file}"], "display_name": "Python 3", "language": "python"}
LAUNCHER = """import os, runpy, sys
from pathlib import Path
tries = Path({tries!r})
tries.write_text(tries.read_text() + "x" if tries.exists() else "x")
if len(tries.read_text()) <= {failures}:
    sys.exit(1)
sys.argv = ["ipykernel_launcher", "-f", sys.argv[1]]
runpy.run_module("ipykernel_launcher", run_name="__main__")"""


@pytest.mark.parametrize("failures, works", [(2, True), (3, False)])
def test_a_kernel_that_does_not_start_is_tried_three_times(tmp_path, monkeypatch, failures, works):
    folder = tmp_path / "jupyter" / "kernels" / "python3"
    folder.mkdir(parents=True)
    spec = SPEC | {
        "argv": [
            sys.executable,
            "-c",
            LAUNCHER.format(tries=str(tmp_path / "tries"), failures=failures),
            "{connection_file}",
        ]
    }
    (folder / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    notebook = experiment(tmp_path / "e.ipynb", f"open({str(tmp_path / 'ran')!r}, 'a').write('x')")
    if works:
        assert state(run(notebook, outputs=tmp_path / "outputs", progress=False)) == "DONE"
        assert (tmp_path / "ran").read_text() == "x"
    else:
        with pytest.raises(RunFailed, match="[Kk]ernel died"):
            run(notebook, outputs=tmp_path / "outputs", progress=False)
    assert (tmp_path / "tries").read_text() == "xxx"


def test_a_run_that_has_begun_is_never_repeated(tmp_path):
    work = f"open({str(tmp_path / 'ran')!r}, 'a').write('x')\nimport os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    with pytest.raises(RunFailed, match="the kernel died"):
        run(experiment(tmp_path / "e.ipynb", work), outputs=tmp_path / "outputs", progress=False)
    assert (tmp_path / "ran").read_text() == "x"


def test_the_working_directory_is_the_callers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    work = "import os; print('here', os.getcwd())"
    folder = run(experiment(tmp_path / "e.ipynb", work), outputs="outputs", progress=False)
    cells = nbformat.read(folder / "report.ipynb", as_version=4).cells
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    assert outputs[0].text == f"here {tmp_path}\n" and folder == Path("outputs/e") / folder.name


# ---- what is kept

KEYS = [
    "sk-proj-" + "aB3" * 12,
    "hf_" + "Zz9" * 11,
    "ghp_" + "q7W" * 12,
    "github_pat_" + "11A" * 12,
    "AKIAIOSFODNN7EXAMPLE",
    "AIza" + "Sy5" * 11 + "ab",
    "xoxb-123456789012-abcdefXYZ",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U",
    "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASC\n-----END PRIVATE KEY-----",
    "a value of the environment that nobody would guess",
]


def test_ten_planted_keys_and_none_survives(tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_SERVICE_API_KEY", KEYS[-1])
    assert len(KEYS) == 10
    work = f"import sys\nfor key in {KEYS!r}:\n    print('the key is', key)\n"
    work += f"    print(key, file=sys.stderr)\nraise ValueError({KEYS[0]!r})"
    for source, failing in (
        (work, True),
        (
            work.rpartition("\n")[0]
            + "\npathlib, os, json = map(__import__, ('pathlib', 'os', 'json'))"
            + "\nmore = pathlib.Path(os.environ['SYNTHNB_RUN_FOLDER'], 'more.json')"
            + f"\nmore.write_text(json.dumps(chr(10).join({KEYS!r})))",
            False,
        ),
    ):
        notebook = experiment(tmp_path / f"e{failing}.ipynb", source)
        try:
            run(notebook, {"styles": [KEYS[1]]}, tmp_path / "outputs", progress=False)
        except RunFailed:
            assert failing
        folder = next((tmp_path / "outputs" / f"e{failing}").iterdir())
        assert state(folder) == ("FAILED" if failing else "DONE")
        for file in (path for path in folder.rglob("*") if path.is_file()):
            text = file.read_bytes().decode("utf-8", "replace")
            assert not [key for key in KEYS if key in text or key in text.replace("\\n", "\n")], file.name
            assert "MIIEvQIBADANBgkqhkiG9w0BAQEFAASC" not in text, file.name
        assert "*****" in (folder / "log.txt").read_text()
        json.loads((folder / "run.json").read_text())


def test_what_is_no_key_stays(tmp_path):
    picture = base64.b64encode(np.random.default_rng(0).bytes(2_000_000)).decode()
    text = f"sha256 {'0f3a' * 16} commit 015d24f7d31e58b4335ecf39c5a1949bdf9f5f72 tokens=512 key: value "
    text += f"task-based-learning-for-images risk-adjusted {picture}"
    (tmp_path / "report.html").write_text(text)
    assert mask_secrets(tmp_path) == {} and (tmp_path / "report.html").read_text() == text


def test_a_large_report_is_made_small(tmp_path):
    work = "import numpy as np\nfrom PIL import Image\nfor i in range(3):\n"
    work += "    noise = np.random.default_rng(i).integers(0, 256, (1000, 1000, 3), dtype='uint8')\n"
    work += "    display(Image.fromarray(noise))\nprint(('a line of some length, ' * 4 + '\\n') * 20_000)"
    folder = run(experiment(tmp_path / "e.ipynb", work), outputs=tmp_path / "outputs", progress=False)
    sizes = {name: (folder / name).stat().st_size for name in ("report.ipynb", "report.html")}
    print(sizes)
    assert max(sizes.values()) < 5_000_000
    cells = nbformat.read(folder / "report.ipynb", as_version=4).cells
    pictures = [
        Image.open(BytesIO(base64.b64decode(output.data["image/png"])))
        for cell in cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 3 and min(picture.width for picture in pictures) >= 256
    nbformat.validate(fit_report(nbformat.read(folder / "report.ipynb", as_version=4), 10_000))


STAGES = """import os, signal
os.environ.setdefault("OMP_NUM_THREADS", "1")
from synthnb.studies.stages import stage
for name in ("first", "second"):
    path = stage(f"{name}.txt", shots=shots)
    if not path.exists():
        if name == "second" and not os.path.exists(marker := os.environ["SYNTHNB_RUN_FOLDER"] + "/../killed"):
            open(marker, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        path.write_text(name)"""


def test_a_killed_kernel_costs_one_stage_and_the_report_says_what_was_reused(tmp_path):
    notebook = experiment(tmp_path / "e.ipynb", STAGES)
    with pytest.raises(RunFailed, match="the kernel died"):
        run(notebook, outputs=tmp_path / "outputs", progress=False)
    folder = run(notebook, outputs=tmp_path / "outputs", progress=False)
    facts = json.loads((folder / "run.json").read_text())
    assert [(re.sub("-.*", "", note["stage"]), note["found"]) for note in facts["stages"]] == [
        ("first", True),
        ("second", False),
    ]
    assert {"parameters", "given", "versions", "commit", "machine", "seconds", "state", "started"} <= set(facts) | {
        "commit"
    }
    page = (folder / "report.html").read_text()
    assert re.search(r"Stages made: <code>second-\w+\.txt", page) and re.search(
        r"reused from earlier runs: <code>first-\w+\.txt", page
    )


# ---- the lock file


def test_a_forged_package_is_not_installed(tmp_path):
    line, digest = re.search(
        r"^(tqdm==\S+).*\n\s+(--hash=sha256:\w+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE
    ).groups()
    name, version = line.rstrip("\\ ").split("==")
    project = tmp_path / "project"
    project.mkdir()
    (project / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "setuptools.build_meta"\n'
        f'[project]\nname = "{name}"\nversion = "{version}"\n'
    )
    (project / "forged.py").touch()
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    subprocess.run(
        [*pip, "wheel", "-q", "--no-index", "--no-build-isolation", "--no-deps", "-w", tmp_path, project],
        check=True,
        capture_output=True,
    )
    (tmp_path / "lock.txt").write_text(f"{name}=={version} {digest}\n")
    done = subprocess.run(
        [
            *pip,
            "install",
            "--no-index",
            "--no-deps",
            "--require-hashes",
            "--find-links",
            tmp_path,
            "--target",
            tmp_path / "target",
            "-r",
            tmp_path / "lock.txt",
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0 and "do not match the hashes" in done.stderr.replace("\n", " ").lower(), done.stderr
    assert not (tmp_path / "target").exists() or not list((tmp_path / "target").iterdir())


@pytest.mark.parametrize("value, brackets", [(2, "[2]"), ("0,1,2", "[0,1,2]"), ("chalk", "[chalk]")])
def test_a_list_without_its_brackets_is_shown_with_them(value, brackets):
    declared = read_parameters(
        "shots: list[int] = [4]  # real images\nstyles: list[str] = ['chalk']  # how images look"
    )
    with pytest.raises(ValueError, match=re.escape(f"a list stands in brackets: {brackets}")):
        _check_value(declared["styles" if value == "chalk" else "shots"], value)


@pytest.mark.parametrize("written", ["no", "off", "False"])
def test_a_truth_value_that_is_spelt_otherwise_is_told_how_to_write_it(written, tmp_path):
    (file := tmp_path / "p.yaml").write_text(f"on: {written}\n")
    with pytest.raises(ValueError, match="must be bool; write true or false"):
        check_parameters(read_parameters("on: bool = True"), gather_parameters(file, []))


def test_of_several_files_of_parameters_all_are_read_and_the_last_wins(tmp_path):
    from typer.testing import CliRunner

    from synthnb.cli.commands import app

    command = ["run", "compare", "--dry-run", "--outputs", str(tmp_path)]
    for name, text in {"ä 1.yaml": "lr: 1e-2\nseeds: [3]", "ä 2.yaml": "seeds: [5]\nbatch_size: 16"}.items():
        (file := tmp_path / name).write_text(text)
        command += ["-f", str(file)]
    told = CliRunner().invoke(app, [*command, "-p", "batch_size", "8"], catch_exceptions=False).output
    assert "with lr 0.01, seeds [5], batch_size 8;" in " ".join(told.split())
