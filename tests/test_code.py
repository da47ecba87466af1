"""Keys of kept results: what the code that made them computes, and nothing else.

nbs/core/code.ipynb shows the rest.
"""

import ast
import shutil

import pytest

from synthnb.core.code import _PACKAGE, _modules_run, code_hash, code_of

STAGES = ("images.shards", "dsi", "bridge")  # modules whose functions make the stages of a study


@pytest.fixture
def copy(tmp_path):
    """The package's modules in a folder of their own, which a test may change."""
    shutil.copytree(
        _PACKAGE, tmp_path / "package", ignore=shutil.ignore_patterns("weights", "_modidx.py", "__pycache__")
    )
    return tmp_path / "package"


def keys(root) -> list[str]:
    return [*(code_hash(name, root=root) for name in STAGES), code_hash(root=root)]


def test_comments_docstrings_and_the_command_line_keep_every_stage(copy):
    before = keys(copy)
    for file in copy.rglob("*.py"):
        told = file.read_text().replace('"""', '"""Another title. ', 1)
        file.write_text(f"# a comment\n{told}\n# another\n")
    command_line = [file for file in copy.rglob("*.py") if "cli" in file.relative_to(copy).parts[0]]
    assert command_line
    for file in command_line:
        file.write_text(file.read_text() + "\nprint('other code')\n")
    assert keys(copy) == before


@pytest.mark.parametrize(
    "before, after, same",
    [
        ("def f(x, *, y=1): return x", "def f(x: int, *, y: int = 1) -> int: return x", True),
        ("async def f(x): return x", "async def f(x: int) -> int: return x", True),
        ("found = {}", "from collections.abc import Mapping\nfound: Mapping[str, int] = {}", True),
        ("def f():\n    left = []", "def f():\n    last: int\n    left: list[int] = []", True),
        ("class A:\n    def f(self): self.x = 1", "class A:\n    def f(self) -> None: self.x: int = 1", True),
        ("class A:\n    x = 1", "class A:\n    x: int = 1", False),  # a field, if it is a dataclass
        ("class A:\n    x: int = 1", "class A:\n    y: int = 1", False),
        ("found = {}", "found: dict[str, int] = {1: 1}", False),
        ("def f(x): return x", "def f(x: int) -> int: return -x", False),
    ],
)
def test_types_keep_a_key_and_values_do_not(tmp_path, before, after, same):
    hashes = []
    for name, text in ("first", before), ("second", after):
        (tmp_path / name).mkdir()
        (tmp_path / name / "low.py").write_text(text)
        hashes.append(code_hash("low", root=tmp_path / name))
    assert (hashes[0] == hashes[1]) is same


@pytest.mark.parametrize("name", ["core/streams", "generate", "images/denoise", "images/plan", "images/shards"])
def test_changed_code_loses_the_images_that_it_draws(copy, name):
    before, file = keys(copy), (copy / name).with_suffix(".py")
    file.write_text(file.read_text() + "\nCHANGED = 1\n")
    after = keys(copy)
    assert before[0] != after[0] and before[-1] != after[-1]


def test_changed_code_keeps_stages_that_do_not_run_it(copy):
    before, file = keys(copy), copy / "bridge.py"
    file.write_text(file.read_text() + "\nCHANGED = 1\n")
    assert [a == b for a, b in zip(before, keys(copy))] == [True, True, False, False]


@pytest.mark.parametrize("name", [*STAGES, "train"])
def test_the_modules_of_a_stage_are_all_that_it_imports(name):
    """Every import statement of these modules, wherever it stands, leads to a module that is among them."""
    found = _modules_run(name)
    for module in found:
        path = _PACKAGE / f"{module.replace('.', '/')}.py"
        if not path.is_file():
            continue  # a folder
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module:
                home = module.rpartition(".")[0]
                assert f"{home}.{node.module}".strip(".") in found
    assert name in found and "cli" not in found


def helper():
    return _modules_run("core.files")


def test_a_function_of_a_notebook_is_known_by_what_it_calls():
    modules, own = code_of(lambda: helper())
    assert modules == ["core.code"] and {name.rpartition(".")[2] for name, _ in own} == {"<lambda>", "helper"}
    same, other = (lambda x: x + 1), (lambda x: x + 2)
    again = lambda x: x + 1
    assert code_of(same)[1][0][1] == code_of(again)[1][0][1] != code_of(other)[1][0][1]
