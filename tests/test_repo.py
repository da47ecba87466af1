"""The rules of this repository: configuration, notebooks, modules, lock file."""

import ast
import configparser
import json
import re
import shutil
import subprocess
import sys
import tokenize
import tomllib
from io import StringIO
from pathlib import Path

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement

import synthnb

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted(
    path for path in (ROOT / "nbs").rglob("*.ipynb") if not re.search(r"/[._]", path.relative_to(ROOT).as_posix())
)
EXPERIMENTS = [path for path in NOTEBOOKS if path.parent.name == "experiments"]
COMPONENTS = [path for path in NOTEBOOKS if path not in EXPERIMENTS]
MODULES = sorted(path for path in (ROOT / "synthnb").rglob("*.py") if not path.name.startswith("_"))
SETTINGS = configparser.ConfigParser()
SETTINGS.read(ROOT / "settings.ini")
SETTINGS = SETTINGS["DEFAULT"]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def each(paths):
    """Parametrize a test over files, named by their path."""
    return pytest.mark.parametrize("path", paths, ids=lambda path: path.relative_to(ROOT).as_posix())


def cells(path: Path, kind: str) -> list:
    """The code or markdown cells of a notebook."""
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


def texts(path: Path) -> list[str]:
    """Everything in a notebook that a person reads: sources and the text of outputs."""
    found = []
    for cell in nbformat.read(path, as_version=4).cells:
        found.append(cell.source)
        for output in cell.get("outputs", []):
            found += [
                output.get("text", ""),
                *(str(value) for kind, value in output.get("data", {}).items() if kind.startswith("text/")),
            ]
    return found


# ---- configuration


def test_settings_and_pyproject_agree():
    project, mirror = PYPROJECT["project"], PYPROJECT["tool"]["nbdev"]
    for key, value in mirror.items():
        said = {bool: lambda text: text == "True", list: str.split, str: str}[type(value)](SETTINGS[key])
        assert said == value, f"settings.ini and [tool.nbdev] differ in {key}"
    assert mirror["allowed_cell_metadata_keys"] == ["tags"], "without it nbdev_clean removes papermill's parameters tag"
    assert project["name"] == SETTINGS["lib_name"] and project["description"] == SETTINGS["description"]
    assert project["requires-python"] == f">={SETTINGS['min_python']}"
    assert project["authors"][0]["name"] == SETTINGS["author"]
    assert project.get("urls", {}).get("Repository", "") == SETTINGS["git_url"]
    assert synthnb.__version__ == SETTINGS["version"]


def test_hooks_are_the_checks_of_make_and_install_nothing():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [repo["repo"] for repo in hooks] == ["local"], "nothing is fetched"
    entries = {hook["entry"] for hook in hooks[0]["hooks"]}
    make = re.sub(r" \\\n\s+(?=&&)", " ", (ROOT / "Makefile").read_text()).replace("$(BIN)", ".venv/bin")
    style, lint = (re.search(rf"^{name} = (.*)$", make, re.MULTILINE)[1] for name in ("STYLE", "LINT"))
    commands = set(lint.replace("$(STYLE)", style).split(" && "))
    assert commands < entries and not [entry for entry in entries - commands if f"{entry};" not in make]


def test_lock_pins_hashes_and_meets_the_floors():
    lines = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
    assert not [line for line in lines if re.search(r"https?:|file:|://|@|^\s*-[^-]|--(?!hash=)|\s/", line)], (
        "a host or a path in the lock"
    )
    pins = {}
    for line, following in zip(lines, [*lines[1:], ""]):
        if not line.startswith(" "):
            name, version = re.match(r"([\w.-]+)==([^\s;]+)", line).groups()
            pins.setdefault(name.lower().replace("_", "-"), []).append(version)
            assert following.strip().startswith("--hash=sha256:"), f"{name} has no hash"
    wanted = PYPROJECT["project"]["dependencies"] + PYPROJECT["project"]["optional-dependencies"]["dev"]
    for requirement in map(Requirement, wanted):
        versions = pins[requirement.name.lower().replace("_", "-")]
        assert all(requirement.specifier.contains(version) for version in versions), (
            f"{requirement} is locked to {versions}"
        )
    assert (pins["torch"], pins["torchvision"]) == (["2.14.1"], ["0.29.1"]), "torch and torchvision are a matched pair"


def test_clean_keeps_the_parameters_tag(tmp_path):
    for name in ("settings.ini", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    cell = nbformat.v4.new_code_cell(
        "alpha: float = 0.5  # learning rate", metadata={"tags": ["parameters"], "trusted": True}
    )
    path = tmp_path / "nbs" / "experiment.ipynb"
    path.parent.mkdir()
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), path)
    subprocess.run([Path(sys.executable).with_name("nbdev_clean")], cwd=tmp_path, check=True)
    assert nbformat.read(path, as_version=4).cells[0].metadata == {"tags": ["parameters"]}


# ---- notebooks


@each(NOTEBOOKS)
def test_notebook_opens_with_title_and_line(path):
    first = nbformat.read(path, as_version=4).cells[0]
    assert first.cell_type == "markdown" and re.match(r"# \S.*\n+> \S", first.source), (
        "the first cell is `# Title` and `> one line`"
    )


@each(NOTEBOOKS)
def test_notebook_is_fit_to_commit(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    assert path.stat().st_size < 500_000, "smaller pictures, fewer of them"
    code = cells(path, "code")
    assert not [output for cell in code for output in cell.outputs if output.output_type == "error"], "a stored error"
    assert any(cell.outputs for cell in code), f"no stored outputs: make nb NB={path.relative_to(ROOT)}"
    bars = [text for text in texts(path) if re.search(r"\d+%\|.*\||TqdmWarning", text)]
    assert not bars, f"progress-bar noise: {bars[0][:80]}"


@each(EXPERIMENTS)
def test_figures_of_experiments_share_one_style(path):
    code = [cell.source for cell in cells(path, "code")]
    if any("import matplotlib.pyplot as plt" in source for source in code):
        assert any("plt.rcParams.update(FIGURE_STYLE)" in source for source in code), "or its colours are matplotlib's"


@each([path for path in NOTEBOOKS if path.parent.name == "nbs" and path.name[:2].isdigit()])
def test_method_notebooks_have_at_most_60_cells(path):
    assert len(nbformat.read(path, as_version=4).cells) <= 60, "an evening's reading: join cells, or move some behind"


@each(NOTEBOOKS)
def test_code_cells_are_short(path):
    for cell in cells(path, "code"):
        if "parameters" in cell.metadata.get("tags", []):
            continue  # a list, a line for each parameter, and papermill takes one cell of them
        lines = [line for line in cell.source.splitlines() if line.strip()]
        name = next((line for line in lines if not line.startswith("#")), "")
        assert len(lines) <= 40, f"{len(lines)} lines in the cell of {name!r}: split it"


@each(NOTEBOOKS)
def test_parameters_cell(path):
    tagged = [cell for cell in cells(path, "code") if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == (path in EXPERIMENTS), "one parameters cell in an experiment, none in a component"
    for cell in tagged:
        comments = {
            token.start[0]
            for token in tokenize.generate_tokens(StringIO(cell.source).readline)
            if token.type == tokenize.COMMENT
        }
        for statement in ast.parse(cell.source).body:
            assert isinstance(statement, ast.AnnAssign) and statement.value, (
                f"line {statement.lineno}: `name: type = default  # help`"
            )
            assert statement.end_lineno in comments, (
                f"line {statement.lineno}: say what {statement.target.id} is in a comment"
            )


@each(COMPONENTS)
def test_component_exports_one_module(path):
    names = re.findall(
        r"^#\|\s*default_exp\s+(\S+)", "\n".join(cell.source for cell in cells(path, "code")), re.MULTILINE
    )
    assert len(names) == 1 and (ROOT / "synthnb" / f"{names[0].replace('.', '/')}.py").is_file()
    place = re.sub(r"^\d\d_", "", path.relative_to(ROOT / "nbs").with_suffix("").as_posix()).replace("/", ".")
    assert place == names[0], "the notebook is called after its module and lies in a folder of the same name"


@each(EXPERIMENTS)
def test_experiment_defines_nothing_reusable(path):
    assert not [
        cell for cell in cells(path, "code") if re.search(r"^#\|\s*(export|default_exp)", cell.source, re.MULTILINE)
    ]


def test_every_committed_report_is_listed():
    listed = (ROOT / "nbs/guides/experiments.md").read_text(encoding="utf-8")
    found = subprocess.run(
        ["git", "ls-files", "outputs/*/report.ipynb"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert [report for report in found.stdout.split() if report not in listed] == []


@each(EXPERIMENTS)
def test_experiment_says_how_long_it_takes(path):
    first = nbformat.read(path, as_version=4).cells[0].source
    assert re.search(r"(?:^|\s)\*\*Time\*\*: \S", first), (
        "`**Time**:` and what was measured, or that nothing was, in the opening cell"
    )


# ---- modules

LAYERS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["synthnb"]["layers"]


def dotted(path: Path) -> str:
    "The name of a module inside of the package."
    return ".".join(path.relative_to(ROOT / "synthnb").with_suffix("").parts)


def imported(node: ast.ImportFrom, own: str) -> list[str]:
    "The modules of this package that an import statement names, relative or not."
    home = own.split(".")[:-1]
    base = home[: len(home) + 1 - node.level] if node.level else []
    whole = [*base, *(node.module or "").removeprefix("synthnb").strip(".").split(".")]
    name = ".".join(part for part in whole if part)
    return [name] if name in LAYERS else [f"{name}.{alias.name}".strip(".") for alias in node.names]


def test_layers_name_every_module_once():
    assert sorted(LAYERS) == sorted(map(dotted, MODULES))


def test_an_import_of_a_later_layer_is_seen():
    statements = {
        "from ..lar import Clip": "lar",
        "from . import hub": "models.hub",
        "from synthnb.models.hub import x": "models.hub",
        "from synthnb import lar": "lar",
        "from .hub import x": "models.hub",
    }
    for text, name in statements.items():
        assert imported(ast.parse(text).body[0], "models.names") == [name], text
    assert imported(ast.parse("from .models.names import x").body[0], "lar") == ["models.names"]


@each(MODULES)
def test_module_has_its_notebook(path):
    notebook = re.search(r"File to edit: (\S+\.ipynb)", path.read_text())
    assert notebook, "no notebook in the header: modules are exported, not written"
    assert (path.parent / notebook[1].rstrip(".")).resolve() in COMPONENTS, (
        f"{notebook[1]} is gone: delete the module too"
    )


@each(MODULES)
def test_module_imports_only_what_stands_before_it(path):
    place = {name: number for number, name in enumerate(LAYERS)}
    own = dotted(path)
    assert own in place, "name it in [tool.synthnb] layers of pyproject.toml, after all that it imports"
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert "*" not in [alias.name for alias in node.names], f"line {node.lineno}: star import"
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        roots = {
            name.split(".")[0]
            for name in ([node.module] if getattr(node, "module", None) and not node.level else names)
        }
        assert not roots & {"nbdev", "fastcore", "pickle"}, f"line {node.lineno}: {roots} in an exported module"
        if isinstance(node, ast.ImportFrom) and (node.level or roots == {"synthnb"}):
            later = [name for name in imported(node, own) if place.get(name, -1) >= place[own]]
            assert not later, f"line {node.lineno}: {later} stands after {own}"


@each(MODULES)
def test_module_loads_neither_pickles_nor_remote_code(path):
    found = re.findall(
        r"torch\.load\(|weights_only\s*=\s*False|trust_remote_code\s*=\s*True|custom_pipeline\s*=|use_safetensors\s*=\s*False",
        path.read_text(),
    )
    assert not found


# ---- everything


def test_no_path_of_somebodys_machine():
    pattern = re.compile(r"(?<![\w.])/(?:tmp|work|root|home|opt|Users)/[\w.]")
    files = [
        path
        for kind in (
            "*.md",
            "*.toml",
            "*.ini",
            "Makefile",
            "tests/*.py",
            "tools/*",
            "synthnb/**/*.py",
            "nbs/**/*.yaml",
            "nbs/**/*.md",
            "benchmarks/*",
        )
        for path in ROOT.glob(kind)
        if path.is_file()
    ]
    said = {path: path.read_text() for path in files} | {path: "\n".join(texts(path)) for path in NOTEBOOKS}
    found = {
        path.relative_to(ROOT).as_posix(): pattern.findall(text) for path, text in said.items() if pattern.search(text)
    }
    assert not found


def test_shipped_models_are_small_and_safe():
    files = [path for path in (ROOT / "synthnb" / "weights").glob("[!.]*/**/*") if path.is_file()]
    assert {path.suffix for path in files} <= {".json", ".txt", ".md", ".jinja", ".safetensors"}, (
        "what the wheel would leave out"
    )
    assert sum(path.stat().st_size for path in files) < 50e6
    for path in files:
        if path.suffix == ".json":
            json.loads(path.read_text())
