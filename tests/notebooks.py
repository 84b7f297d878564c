"""Running the notebooks as a reader does, from top to bottom in a fresh kernel.

`python -m tests.notebooks` runs them all and writes what they show back into notebooks/, without what changes from run
to run (times, machine paths, versions).
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nbformat
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from traitlets import default

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = tuple(sorted((ROOT / "notebooks").glob("*.ipynb")))
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


class _ThisPython(KernelSpecManager):
    """The interpreter that runs the tests is the kernel: none needs to be installed."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=argv, display_name=kernel_name, language="python")


class _Kernel(AsyncKernelManager):
    """A kernel that the client starts, and ends."""

    @default("kernel_spec_manager")
    def _this_python(self) -> KernelSpecManager:
        return _ThisPython()


def executed(notebook: nbformat.NotebookNode, cwd: Path, environment: dict[str, str]) -> nbformat.NotebookNode:
    """Return the notebook after a run in the folder `cwd`; raise CellExecutionError where a cell fails."""
    client = NotebookClient(
        notebook,
        kernel_manager_class=_Kernel,
        timeout=280,
        record_timing=False,
        resources={"metadata": {"path": str(cwd)}},
    )
    return client.execute(env=environment)


def tidy(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Return the notebook as it is kept: no metadata but the language, cells numbered, no text beside a picture."""
    notebook.metadata = nbformat.from_dict(METADATA)
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number:02d}"
        cell["metadata"] = nbformat.NotebookNode()
        for output in cell.get("outputs", []):
            shown: Any = output.get("data", {})  # Any: JSON
            if "image/png" in shown:
                output["data"] = nbformat.NotebookNode({"image/png": shown["image/png"]})
                output["metadata"] = nbformat.NotebookNode()
    return notebook


def pictures(notebook: nbformat.NotebookNode) -> list[int]:
    """Return how many pictures each cell shows."""
    return [sum("image/png" in output.get("data", {}) for output in cell.get("outputs", [])) for cell in notebook.cells]


def _main() -> None:
    import os

    for path in NOTEBOOKS:
        with TemporaryDirectory() as cwd:
            environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
            done = tidy(executed(nbformat.read(path, as_version=4), Path(cwd), environment))
        nbformat.write(done, path)


if __name__ == "__main__":
    _main()
