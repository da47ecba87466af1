"""Run notebooks top to bottom and store their outputs: `python tools/run_notebook.py nbs/03_x.ipynb ...`

A fresh kernel starts in the notebook's own folder. The notebook is replaced only when every cell has run; a failing
cell is printed and leaves the file as it was. Cells that `nbdev_test` skips (`#| eval: false`, `#| slow`, `#| gpu`)
keep the outputs they have; FLAGS="slow gpu" in the environment runs them too.
"""

import base64
import io
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
PROGRESS = re.compile(
    r"\d+%\|.*\||\d+it \[|TqdmWarning|notebook_tqdm|torch\.jit\.script` is deprecated|^  warnings\.warn\($"
)  # tqdm's bars, its complaint about missing widgets, and what diffusers' import says
ANSI = re.compile(r"\x1b\[[0-9;]*m")


def nbdev(tool: str, *arguments: str) -> None:
    """Run one of nbdev's commands of this environment in the repository."""
    done = subprocess.run([Path(sys.executable).with_name(tool), *arguments], cwd=ROOT, capture_output=True, text=True)
    if done.returncode or "Failed to" in done.stderr:
        sys.exit(f"{tool} failed:\n{done.stdout}{done.stderr}")


def is_skipped(source: str, flags: str) -> bool:
    """Does `nbdev_test` skip a cell with this source?"""
    directives = re.findall(r"^#\|\s*(.*?)\s*$", source, re.MULTILINE)
    skipped = {"slow", "gpu"} - set(flags.split())
    return any(
        re.fullmatch(r"eval:\s*false", line, re.IGNORECASE) or line.split(" ")[0] in skipped for line in directives
    )


class SkippingClient(NotebookClient):
    """nbclient that leaves the cells alone that `nbdev_test` skips."""

    async def async_execute_cell(self, cell, cell_index, *args, **kwargs):
        if cell.cell_type == "code" and is_skipped(cell.source, os.environ.get("FLAGS", "")):
            return cell
        return await super().async_execute_cell(cell, cell_index, *args, **kwargs)


def without_home(outputs: list) -> None:
    """Write `~` for this machine's home folder in all text."""
    home = re.compile(re.escape(str(Path.home())) + r"(?=/)")
    for output in outputs:
        data = output.get("data", {})
        data.update({kind: home.sub("~", text) for kind, text in data.items() if kind.startswith("text/")})
        if "text" in output:
            output.text = home.sub("~", output.text)


def without_progress(outputs: list) -> list:
    """`outputs` without progress bars and widgets; other lines of stderr stay."""
    kept = []
    for output in outputs:
        if output.output_type == "stream" and output.name == "stderr":
            lines = re.split(r"[\r\n]+", output.text)
            output.text = "\n".join(line for line in lines if line.strip() and not PROGRESS.search(line))
            if not output.text:
                continue
            output.text += "\n"
        if "application/vnd.jupyter.widget-view+json" not in output.get("data", {}):
            kept.append(output)
    return kept


def in_256_colours(outputs: list) -> None:
    """Store figures with a palette where that is smaller: git keeps every version of them."""
    for output in outputs:
        data = output.get("data", {})
        if "image/png" in data:
            buffer = io.BytesIO()
            image = Image.open(io.BytesIO(base64.b64decode(data["image/png"])))
            image.convert("RGB").quantize(256).save(buffer, "PNG", optimize=True)
            smaller = base64.b64encode(buffer.getvalue()).decode()
            data["image/png"] = min(data["image/png"], smaller, key=len)


def run(path: Path) -> None:
    """Execute the notebook at `path` and put the executed, cleaned copy in its place."""
    os.environ.pop("MPLBACKEND", None)  # a shell that sets Agg, as tests do, would store a notebook without its figures
    start = time.perf_counter()
    notebook = nbformat.read(path, as_version=4)
    client = SkippingClient(
        notebook,
        kernel_name="python3",
        timeout=None,
        coalesce_streams=True,
        resources={"metadata": {"path": str(path.parent)}},
    )
    client.create_kernel_manager()
    with (
        tempfile.TemporaryDirectory() as sockets
    ):  # sockets of its own: TCP ports are shared, unencrypted and warned about
        client.km.transport, client.km.ip = "ipc", f"{sockets}/kernel"
        try:
            client.execute()
        except (CellExecutionError, DeadKernelError) as error:
            sys.exit(f"{path.name} is unchanged, a cell failed:\n{ANSI.sub('', str(error))}")
        except AssertionError:
            if client.km is not None:
                raise
            sys.exit(
                f"{path.name} is unchanged: interrupted"
            )  # nbclient answers Ctrl-C by dropping the kernel it then asks for
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = without_progress(cell.outputs)
            without_home(cell.outputs)
            in_256_colours(cell.outputs)
    notebook.metadata.pop("widgets", None)
    partial = path.with_name(f"_partial-{path.name}")  # nbdev passes over names with an underscore
    try:
        nbformat.write(notebook, partial)
        nbdev("nbdev_clean", "--fname", str(partial))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    print(
        f"{path.name}: {len(notebook.cells)} cells, {time.perf_counter() - start:.1f} s, "
        f"{path.stat().st_size / 1e3:.0f} KB",
        flush=True,
    )


def main() -> None:
    paths = [Path(name).resolve() for name in sys.argv[1:]]
    missing = [name for name, path in zip(sys.argv[1:], paths) if path.suffix != ".ipynb" or not path.is_file()]
    if missing or not paths:
        sys.exit(f"no such notebook: {', '.join(missing)}" if missing else __doc__)
    nbdev("nbdev_export")  # the kernel must see the modules as the notebooks have them now
    for path in paths:
        run(path)
    nbdev("nbdev_export")


if __name__ == "__main__":
    main()
