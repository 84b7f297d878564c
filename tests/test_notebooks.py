"""The notebooks run from top to bottom in a fresh kernel, and what they show in the repository is what a run shows."""

from __future__ import annotations

import ast
import os
import re
from copy import deepcopy
from pathlib import Path

import nbformat
import psutil
import pytest
from nbclient.exceptions import CellExecutionError

from tests.notebooks import METADATA, NOTEBOOKS, ROOT, executed, pictures, tidy

# How many pictures and checks each has at least: so that neither can be lost unseen.
EXPECTED = {
    "1-from-a-log-to-tokens": (3, 8),
    "2-the-gates-of-an-lstm": (4, 6),
    "3-attention-step-by-step": (5, 10),
    "4-what-order-and-time-are-worth": (2, 6),
}
MOST_BYTES = 1_500_000  # of all four: they are read on slow lines too
MACHINE = re.compile(r"/(?:tmp|home|root|work|Users)/|\bat 0x[0-9a-f]+")


def _read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def _environment(folder: Path) -> dict[str, str]:
    """Return the variables of a kernel that finds the project and leaves all it writes below `folder`."""
    (folder / "tmp").mkdir()
    own = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TMPDIR": str(folder / "tmp"), "IPYTHONDIR": str(folder)}
    return {**os.environ, **own}


def _checks(source: str) -> int:
    """Return how many checks a cell holds: asserts, and calls of numpy's assert_allclose."""
    return sum(
        isinstance(node, ast.Assert)
        or (isinstance(node, ast.Call) and ast.unparse(node.func).endswith("testing.assert_allclose"))
        for node in ast.walk(ast.parse(source))
    )


def test_all_notebooks_are_known_and_small() -> None:
    assert [path.stem for path in NOTEBOOKS] == sorted(EXPECTED)
    assert sum(path.stat().st_size for path in NOTEBOOKS) < MOST_BYTES


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_with_its_pictures_and_without_traces_of_a_machine(path: Path) -> None:
    notebook = _read(path)
    nbformat.validate(notebook)
    assert notebook.metadata == METADATA
    assert notebook == tidy(deepcopy(notebook)), "run `python -m tests.notebooks`: it keeps no times and no metadata"
    opening = notebook.cells[0]
    assert opening.cell_type == "markdown"
    assert opening.source.startswith(f"# {path.stem[0]}. ")
    assert "will see" in opening.source
    assert re.search(r"about \d+ seconds", opening.source)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), "run from top to bottom"
    for cell in code:
        for output in cell.outputs:
            assert output.output_type != "error"
            assert output.get("name") != "stderr", output
            shown = [output.get("text", ""), *(v for k, v in output.get("data", {}).items() if k.startswith("text/"))]
            assert not MACHINE.search("\n".join(shown))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_shows_the_pictures_that_are_kept(path: Path, tmp_path: Path) -> None:
    kept = _read(path)
    cwd = tmp_path / "reader"
    cwd.mkdir()
    fresh = deepcopy(kept)
    for cell in fresh.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    fresh = tidy(executed(fresh, cwd, _environment(tmp_path)))
    code = [cell for cell in fresh.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)
    n_pictures, n_checks = EXPECTED[path.stem]
    assert sum(_checks(cell.source) for cell in code) >= n_checks
    assert sum(pictures(fresh)) >= n_pictures
    assert pictures(fresh) == pictures(kept)
    assert not [output for cell in code for output in cell.outputs if output.get("name") == "stderr"]
    assert not list(cwd.iterdir()), "a notebook leaves nothing behind"
    # Torch and ONNX Runtime keep a file of their own among the temporary ones.
    assert not [found for found in (tmp_path / "tmp").iterdir() if found.name.startswith(("tmp", "fraud-"))]


def test_a_check_that_fails_in_a_notebook_is_seen_and_no_kernel_stays(tmp_path: Path) -> None:
    cell = nbformat.v4.new_code_cell("import fraud\nassert fraud.__all__ == []")
    with pytest.raises(CellExecutionError, match="AssertionError"):
        executed(nbformat.v4.new_notebook(cells=[cell]), tmp_path, _environment(tmp_path))
    assert not [child for child in psutil.Process().children() if "ipykernel_launcher" in child.cmdline()]
