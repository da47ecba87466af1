"""The forks of tests/warm_python.py are what `python` would be: the quick way must not be another way."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import warm_python

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="there is no server but on Linux")
WARM, COLD = [sys.executable, warm_python.__file__], [sys.executable]
LOADED = "import sys; print('torch' in sys.modules)"


@pytest.fixture(autouse=True)
def as_the_server_began(monkeypatch):
    """Commands tested in this process may have left variables that libraries read, which start python anew."""
    for name in warm_python.read_at_import(os.environ):
        monkeypatch.delenv(name)


def both(*arguments, **options):
    """What `python` and a fork come to."""
    run = lambda python: subprocess.run([*python, *arguments], capture_output=True, text=True, **options)
    return [(done.returncode, done.stdout, done.stderr) for done in map(run, (COLD, WARM))]


def test_a_fork_has_the_libraries_and_python_has_not():
    assert [said for _, said, _ in both("-c", LOADED)] == ["False\n", "True\n"]


@pytest.mark.parametrize(
    "code",
    [
        "import os, sys; print(sys.argv, os.getcwd(), __name__, sys.stdin.read())",
        "import os; print(os.environ['ASKED'], 'BEFORE' in os.environ)",
        "import sys; print('to stderr', file=sys.stderr); sys.exit(7)",
        "import sys; sys.exit('in words')",
        "import atexit; atexit.register(print, 'at the end'); print('first', end=' ')",
        "import threading; threading.Timer(0.2, print, ['waited for']).start()",
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
        "import multiprocessing as m; p = m.Process(target=print, args=('a child',)); p.start(); p.join()",
        "import warnings; warnings.warn('told')",
    ],
    ids=lambda code: code.split("; ")[-1][:30],
)
def test_a_fork_does_what_python_does(code, tmp_path, monkeypatch):
    monkeypatch.setenv("BEFORE", "not for the child")
    environment = {name: value for name, value in os.environ.items() if name != "BEFORE"} | {"ASKED": "this"}
    cold, warm = both("-c", code, "a", "-b", input="typed", cwd=tmp_path, env=environment)
    assert cold == warm and any(cold)


def test_a_script_and_a_module(tmp_path):
    (tmp_path / "other.py").write_text("here = 'beside the script'")
    script = "import sys, other\nprint(other.here, sys.argv, __file__, __name__)\nraise ValueError('wrong')"
    (tmp_path / "script.py").write_text(script)
    for cold, warm in (both(tmp_path / "script.py", "x"), both("-m", "script", "x", cwd=tmp_path)):
        assert cold[:2] == warm[:2] and cold[0] == 1 and "beside the script" in cold[1]
        assert cold[2].splitlines()[-1] == warm[2].splitlines()[-1] == "ValueError: wrong"


def test_another_value_of_what_libraries_read_starts_python_anew(tmp_path):
    code = f"{LOADED}; import os; print(os.environ['HF_HOME'])"
    cold, warm = both("-c", code, env=os.environ | {"HF_HOME": str(tmp_path)})
    assert cold == warm == (0, f"False\n{tmp_path}\n", "")


def test_a_fork_sees_who_asked_as_its_parent_and_imports_from_the_same_folders():
    code = "import os, sys; print(os.getppid(), os.environ['PYTHONPATH'] in sys.path)"
    same = os.environ | {"PYTHONPATH": str(Path(warm_python.__file__).parents[1])}
    said = subprocess.check_output([*WARM, "-c", f"{LOADED}; {code}"], text=True, env=same)
    assert said == f"True\n{os.getpid()} True\n"


def test_what_a_fork_starts_is_a_fork_where_this_is_asked_for():
    code = f"import subprocess; subprocess.run([sys.executable, '-c', \"{LOADED}\"])"
    started = lambda **more: subprocess.check_output([*WARM, "-c", f"import sys; {code}"], env=os.environ | more)
    assert [started(), started(**{warm_python.FORKS_TOO: "1"})] == [b"False\n", b"True\n"]


def test_random_numbers_are_not_those_of_the_next_fork():
    code = "import random, numpy, tempfile; print(random.random(), numpy.random.rand(), tempfile.mktemp())"
    drawn = [subprocess.check_output([*WARM, "-c", code], text=True).split() for _ in range(2)]
    assert all(one != other for one, other in zip(*drawn))


SLEEPER = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_a_signal_to_who_asked_ends_the_fork(number):
    asked = subprocess.Popen([*WARM, "-c", SLEEPER], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    fork = int(asked.stdout.readline())
    asked.send_signal(number)
    assert asked.wait(30) == (1 if number == signal.SIGINT else -number)
    for _ in range(300):
        if not Path(f"/proc/{fork}").exists():
            return
        time.sleep(0.1)
    pytest.fail("the fork goes on")


def test_a_kernel_is_a_fork(warm_kernels):
    from jupyter_client.manager import start_new_kernel

    manager, client = start_new_kernel(kernel_name="python3")
    try:
        answer = client.execute_interactive("", user_expressions={"loaded": "'torch' in __import__('sys').modules"})
        assert answer["content"]["user_expressions"]["loaded"]["data"]["text/plain"] == "True"
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
