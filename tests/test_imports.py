"""Every module stands on its own: what a notebook defines and does not export is missing here."""

import ast
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "synthnb"
MODULES = sorted(
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    for path in PACKAGE.rglob("*.py")
    if path.stem != "__init__"
)
# The libraries take ten seconds, a module of ours takes none.
# One process imports them, and each module gets a fork of it.
SCRIPT = """
import gc, importlib, os, sys
exec(sys.stdin.read(), {})
gc.collect()
gc.freeze()  # or every fork copies what it only looks through
assert not any(name.split(".")[0] == "synthnb" for name in sys.modules)
failed = []
for name in sys.argv[1:]:
    if not (child := os.fork()):
        module = importlib.import_module(f"synthnb.{name}")
        [getattr(module, public) for public in getattr(module, "__all__", [])]
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        failed.append(name)
sys.exit(f"cannot be imported alone: {failed}" if failed else 0)
"""


def libraries() -> str:
    "All import statements of the modules but those of the package itself."
    nodes = [
        node
        for name in MODULES
        for node in ast.parse((PACKAGE / f"{name.replace('.', '/')}.py").read_text(encoding="utf-8")).body
    ]
    return "\n".join(
        {
            ast.unparse(node)
            for node in nodes
            if isinstance(node, ast.Import)
            or (
                isinstance(node, ast.ImportFrom) and not node.level and not node.module.startswith("synthnb")
            )  # nbdev leaves an import over several lines as it is
        }
        - {"import synthnb"}
    )


def import_alone(names, cwd):
    command = [sys.executable, "-W", "error::SyntaxWarning", "-c", SCRIPT, *names]
    return subprocess.run(command, input=libraries(), cwd=cwd, capture_output=True, text=True)


def test_every_module_imports_alone_and_one_that_cannot_is_named(tmp_path):
    done = import_alone([*MODULES, "no_such_module"], tmp_path)
    assert done.returncode == 1, done.stderr
    assert done.stderr.splitlines()[-1] == "cannot be imported alone: ['no_such_module']", done.stderr
    assert not list(tmp_path.iterdir()), "an import should write nothing"
