"""A Python that has imported the model libraries already, for tests that start many processes of this package.

`python tests/warm_python.py -c ..., -m ..., or a script` does what `python` does with these arguments, but in a fork of
one server instead of after seconds of imports: the same arguments, directory, variables and streams, and a process of
its own. The server is started by conftest.py and imports at the first request. It calls nothing that it imports but
`code_hash`, which remembers what it has read: it has one thread, and every fork begins where a new process would be
after its imports.

Libraries read some variables when they are imported: a fork has those of `SETTINGS` and a model cache that begins
empty. Where another value is asked for, or no server runs (there is one on Linux only), `python` is started as usual.
"""

import os
import sys
from collections.abc import Mapping

SERVER = "SYNTHNB_WARM_PYTHON"  # the server's socket
FORKS_TOO = "SYNTHNB_WARM_CHILDREN"  # set: what a fork starts by `sys.executable` is a fork as well
SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "DIFFUSERS_VERBOSITY": "error",
    "HF_HUB_VERBOSITY": "error",
    "TRANSFORMERS_VERBOSITY": "error",
    "MPLBACKEND": "Agg",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}
READ_AT_IMPORT = ("CUDA_", "DIFFUSERS_", "HF_", "MKL_", "MPL", "OMP_", "PYTHON", "TORCH", "TRANSFORMERS_")
READ_ANEW = ("CUDA_VISIBLE_DEVICES", "PYTHONWARNINGS", "PYTHONUTF8")  # by a fork, or by what it starts itself


def model_cache() -> str:
    """The model cache of all forks."""
    return os.path.join(os.path.dirname(os.environ[SERVER]), "hub")


def read_at_import(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that count when libraries are imported."""
    return {
        name: value for name, value in environment.items() if name.startswith(READ_AT_IMPORT) and name not in READ_ANEW
    }


# ---- the side of who asks: imports as little as it can


def ask(arguments: list[str]) -> int:
    """Run `arguments` in a fork of the server; its status. Signals are passed on, and the fork ends with this."""
    import json
    import signal
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.connect(os.environ[SERVER])
        wanted = {"arguments": arguments, "folder": os.getcwd(), "environment": dict(os.environ), "asker": os.getpid()}
        socket.send_fds(server, [json.dumps(wanted).encode()], [0, 1, 2])
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda number, frame: server.send(bytes([number])))
        said = server.recv(100)
    if not said:
        sys.exit("warm_python: the server has gone")
    if said == b"start it anew":
        os.execv(sys.executable, [sys.executable, *arguments])
    status = int(said)
    if status < 0:  # killed by a signal: so is who asked
        signal.signal(-status, signal.SIG_DFL) if -status != signal.SIGKILL else None
        os.kill(os.getpid(), -status)
    return status


# ---- the server


def import_all() -> None:
    """What commands, cases and experiments import."""
    import importlib
    import pkgutil

    import datasets  # noqa: F401
    import debugpy.server  # noqa: F401  # by kernels, when they start
    import ipykernel.ipkernel
    import ipykernel.kernelapp  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import openai  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import sklearn.datasets  # noqa: F401
    from diffusers import AutoPipelineForText2Image  # noqa: F401
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401

    import synthnb
    from synthnb.core.code import code_hash

    for module in pkgutil.walk_packages(synthnb.__path__, "synthnb."):
        importlib.import_module(module.name)
    code_hash()  # a second in every fork that looks whether a stage was computed by the same code


def refuse_threads() -> None:
    """A fork copies no thread but its own, so locks that others held would stay shut. jemalloc's looks after itself."""
    from pathlib import Path

    names = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    if len(set(names) - {"jemalloc_bg_thd"}) > 1 or len(names) > 2:
        sys.exit(f"warm_python: threads run after the imports, so a fork is not safe: {', '.join(names)}")


def parent_of(pid: int) -> int:
    """The process that started another one; 1 where that one has ended."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return int(file.read().rpartition(")")[2].split()[1])
    except FileNotFoundError:
        return 1


def differs(environment: Mapping[str, str]) -> bool:
    """Do the libraries read other values than the server's? Folders that it imports from already do not count."""
    import synthnb

    asked = read_at_import(environment)
    if set(asked.get("PYTHONPATH", "").split(os.pathsep)) <= {"", os.path.dirname(synthnb.__path__[0]), *sys.path[1:]}:
        asked.pop("PYTHONPATH", None)
    return bool(asked.items() - os.environ.items())


def become(wanted: dict, streams: list[int]) -> None:
    """Be the process that was asked for, to its end."""
    import atexit
    import random
    import runpy
    import signal
    import threading
    import traceback
    import types
    import warnings

    import numpy as np

    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    os.closerange(3, 256)
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # who runs as a shell's job in the background ignores it
    os.chdir(wanted["folder"])
    missing = os.environ.keys() - wanted["environment"].keys() - read_at_import(os.environ).keys()
    for name in missing:
        del os.environ[name]
    os.environ.update(wanted["environment"])
    warnings._processoptions([one for one in os.environ.get("PYTHONWARNINGS", "").split(",") if one])
    for place in reversed(os.environ.get("PYTHONPATH", "").split(os.pathsep)):
        if place and place not in sys.path:
            sys.path.insert(1, place)
    own, real = os.getpid(), os.getppid
    os.getppid = lambda: parent_of(wanted["asker"]) if os.getpid() == own else real()
    if FORKS_TOO in os.environ:
        sys.executable = os.path.join(os.path.dirname(os.environ[SERVER]), "python")
    random.seed()
    np.random.seed()
    kind, *rest = wanted["arguments"]
    status = 0
    try:
        if kind == "-c":
            code, *words = rest
            sys.argv, sys.path[0] = ["-c", *words], ""
            sys.modules["__main__"] = main = types.ModuleType("__main__")
            exec(compile(code, "<string>", "exec"), main.__dict__)
        elif kind == "-m":
            sys.argv, sys.path[0] = rest, os.getcwd()
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        else:
            sys.argv, sys.path[0] = wanted["arguments"], os.path.dirname(os.path.abspath(kind))
            runpy.run_path(kind, run_name="__main__")
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        status = 1
        traceback.print_exc()
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status & 255)


def serve(place: str) -> None:
    """Answer requests at the socket `place` until standard input is closed."""
    import gc
    import json
    import selectors
    import signal
    import socket
    from contextlib import redirect_stderr, suppress
    from io import StringIO

    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(place)
    listener.listen(64)
    print("ready", flush=True)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.environ[SERVER] = place
    os.environ.update(SETTINGS | {"HF_HOME": model_cache()})
    waiting, running = selectors.DefaultSelector(), {}
    waiting.register(listener, selectors.EVENT_READ, "asked")
    waiting.register(0, selectors.EVENT_READ, "end")
    imported = False

    def end(pid: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)

    while True:
        for key, _ in waiting.select():
            if key.data == "end":
                for pid in running.values():
                    end(pid)
                return
            if key.data == "asked":
                connection, _ = listener.accept()
                message, streams, _, _ = socket.recv_fds(connection, 1 << 20, 3)
                wanted = json.loads(message)
                if not imported:
                    with redirect_stderr(StringIO()):  # what libraries say to whoever imports them
                        import_all()
                    gc.collect()
                    gc.freeze()
                    refuse_threads()
                    imported = True
                if differs(wanted["environment"]):
                    connection.send(b"start it anew")
                    connection.close()
                else:
                    pid = os.fork()
                    if not pid:
                        become(wanted, streams)
                    running[connection] = pid
                    waiting.register(connection, selectors.EVENT_READ, "signal")
                    waiting.register(os.pidfd_open(pid), selectors.EVENT_READ, connection)
                for stream in streams:
                    os.close(stream)
            elif key.data == "signal":
                number = key.fileobj.recv(1)
                if number:
                    os.kill(running[key.fileobj], number[0])
                else:  # who asked was killed
                    waiting.unregister(key.fileobj)
                    end(running[key.fileobj])
            else:
                connection = key.data
                _, status = os.waitpid(running.pop(connection), 0)
                waiting.unregister(key.fileobj)
                os.close(key.fileobj)
                with suppress(KeyError):
                    waiting.unregister(connection)
                with suppress(BrokenPipeError):
                    connection.send(str(os.waitstatus_to_exitcode(status)).encode())
                connection.close()


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        serve(sys.argv[2])
    elif SERVER in os.environ:
        sys.exit(ask(sys.argv[1:]))
    else:
        os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
