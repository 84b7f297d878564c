"""The house keeps its shape: imports go one way, the library is pure, nothing heavy is loaded before it is needed."""

from __future__ import annotations

import ast
import importlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
CODE_FOLDERS = ("fraud", "pipelines", "service", "benchmarks")

# A module of fraud/ imports only from modules before it.
FLOW = (
    "errors", "parallel", "literals", "rules", "rule_tables", "subjects", "config", "instants", "events", "localtime",
    "quarantine", "timestamps", "columns", "json_cells", "cells", "validation", "csv_rows", "json_rows", "readers",
    "repeats", "ordering", "logs", "label_guard",
    "sessions", "lookups", "recents", "enrich", "carries", "contexts", "entities", "fields", "tokens", "features",
    "labels", "splits", "batches", "sampling",
    "models.dropout", "models.embedding", "models.graph", "models.recurrent_graph", "models.recurrent",
    "models.rotary", "models.transformer_graph", "models.transformer", "models.average", "models.boosting", "models",
    "models.network", "models.fusion",
    "ranking", "metrics", "resamples", "curves", "pairing", "gate", "objectives", "training", "pretraining",
    "calibration", "decisions",
    "verdicts", "runtime", "scoring", "explain", "reasons", "rows", "carry_pool", "steps", "exact", "live",
    "gradients", "arrays", "chunks", "periods", "padding", "chunk_arrays", "preparation", "tables",
    "monitoring", "monitoring.weekly", "monitoring.tally", "monitoring.tails", "monitoring.dispersion",
    "monitoring.deviances", "monitoring.drift", "monitoring.outcomes", "monitoring.reference", "monitoring.alarms",
    "monitoring.attribution", "monitoring.figures",
    "golden", "manifest", "bundle", "learning", "judging",
    "histories", "ablation", "lineup", "comparison", "changes", "segments",
)  # fmt: skip

NEVER_IN_FRAUD = {"mlflow", "fastapi", "pandas"}
# A library without clock, network, environment or chance of its own; `Generator`s are handed in by seed.
IMPURE = {
    "time",
    "socket",
    "ssl",
    "http",
    "urllib",
    "requests",
    "httpx",
    "subprocess",
    "random",
    "secrets",
    "logging.config",
}
IMPURE_CALLS = {"datetime.now", "datetime.utcnow", "datetime.today", "date.today", "os.environ", "os.getenv"}
EXECUTES_ON_LOAD = {"pickle", "cPickle", "dill", "joblib", "cloudpickle", "shelve", "marshal"}
HEAVY = ("torch", "sklearn", "pyarrow", "onnx", "onnxruntime", "mlflow", "pandas", "pydantic", "scipy", "matplotlib")
NAMES_THAT_SAY_NOTHING = {"utils", "util", "common", "helpers", "helper", "misc", "base", "core"}


class Import(NamedTuple):
    """One imported module, and the names taken from it."""

    module: str
    names: tuple[str, ...]
    line: int


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def _files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def _where(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT)}:{line}"


def _imports(path: Path) -> Iterator[Import]:
    """Yield every import that runs, those inside functions too; under TYPE_CHECKING nothing runs."""
    unseen: list[ast.AST] = [_tree(path)]
    while unseen:
        node = unseen.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            unseen.extend(node.orelse)
            continue
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, (), node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield Import(node.module or "", tuple(alias.name for alias in node.names), node.lineno)
        unseen.extend(ast.iter_child_nodes(node))


def _module(path: Path) -> str:
    """Return the name inside the package: "models.boosting", and "" for fraud/__init__.py."""
    return ".".join(path.relative_to(ROOT / "fraud").with_suffix("").parts).removesuffix("__init__").removesuffix(".")


def _fraud_modules_of(found: Import) -> set[str]:
    """Return the modules of fraud/ that an import names, whether `from fraud import x` or `from fraud.x import y`."""
    package, _, module = found.module.partition(".")
    if package != "fraud":
        return set()
    named = {f"{module}.{name}".lstrip(".") for name in found.names} & set(FLOW)
    return named or {module}


def _packages(path: Path) -> dict[str, int]:
    return {found.module.partition(".")[0]: found.line for found in _imports(path)}


def test_every_module_of_fraud_has_its_place_in_the_flow() -> None:
    assert {_module(path) for path in _files("fraud")} - {""} == set(FLOW)


def test_imports_go_one_way() -> None:
    wrong = [
        f"{_where(path, found.line)} imports fraud.{module}"
        for path in _files("fraud")
        if _module(path)
        for found in _imports(path)
        for module in _fraud_modules_of(found)
        if module not in FLOW[: FLOW.index(_module(path))]
    ]
    assert not wrong


def test_fraud_imports_no_edge_tracker_web_framework_or_dataframe() -> None:
    forbidden = NEVER_IN_FRAUD | {"pipelines", "service", "benchmarks", "tests", "typer", "rich"}
    assert not [
        f"{path.name}: {sorted(found)}" for path in _files("fraud") if (found := forbidden & set(_packages(path)))
    ]


def test_fraud_is_pure() -> None:
    wrong = [_where(path, found.line) for path in _files("fraud") for found in _imports(path) if found.module in IMPURE]
    wrong += [
        _where(path, node.lineno)
        for path in _files("fraud")
        for node in ast.walk(_tree(path))
        if isinstance(node, ast.Attribute) and ast.unparse(node) in IMPURE_CALLS
    ]
    assert not wrong


def test_mlflow_is_imported_in_three_files_only() -> None:
    # Runs; a bundle as a model; and where a tracker is and how it fails, which runs and versions share.
    allowed = {ROOT / "pipelines" / f"{name}.py" for name in ("tracking", "pyfunc", "mlflow_client")}
    assert not [path for path in _files(*CODE_FOLDERS) if path not in allowed and "mlflow" in _packages(path)]


def test_the_edges_never_import_each_other() -> None:
    assert not [path for path in _files("pipelines") if "service" in _packages(path)]
    service = [path for path in _files("service") if {"pipelines", "torch", "pandas", "sklearn"} & set(_packages(path))]
    assert not service


def test_private_names_stay_in_their_file() -> None:
    wrong = [
        f"{_where(path, found.line)} takes {name} from {found.module}"
        for path in _files(*CODE_FOLDERS, "tests")
        for found in _imports(path)
        if found.module.partition(".")[0] in CODE_FOLDERS
        for name in found.names
        if name.startswith("_") and not name.startswith("__")
    ]
    assert not wrong


def test_nothing_is_printed_by_the_library() -> None:
    calls = [
        _where(path, node.lineno)
        for path in _files("fraud")
        for node in ast.walk(_tree(path))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {"print", "sys.stdout.write", "sys.stderr.write"}
    ]
    assert not calls


def test_nothing_is_loaded_that_can_execute() -> None:
    wrong = [path for path in _files(*CODE_FOLDERS) if EXECUTES_ON_LOAD & set(_packages(path))]
    assert not wrong
    calls = [
        _where(path, node.lineno)
        for path in _files(*CODE_FOLDERS)
        for node in ast.walk(_tree(path))
        if isinstance(node, ast.Call)
        and (
            ast.unparse(node.func) in {"torch.load", "torch.save", "eval", "exec"}
            or any(keyword.arg == "allow_pickle" for keyword in node.keywords)
        )
    ]
    assert not calls


def test_a_file_over_300_lines_says_why() -> None:
    long = [
        path
        for path in _files(*CODE_FOLDERS)
        if len(path.read_text(encoding="utf-8").splitlines()) > 300
        and "Over 300 lines because" not in (ast.get_docstring(_tree(path)) or "")
    ]
    assert not long


def test_file_names_say_something() -> None:
    assert not [path for path in _files(*CODE_FOLDERS, "tests") if path.stem in NAMES_THAT_SAY_NOTHING]


def test_public_names_are_importable_and_listed() -> None:
    import fraud

    assert fraud.__all__ == sorted(fraud.__all__)
    assert {"load_config", "read_log", "from_pandas", "train", "compare", "load_bundle"} <= set(fraud.__all__)
    for name in fraud.__all__:
        assert callable(getattr(fraud, name)), name


def _loaded(code: str) -> set[str]:
    """Return which HEAVY packages a fresh interpreter has loaded after `code`."""
    report = f"{code}\nimport sys; sys.stderr.write('LOADED ' + ' '.join(set({HEAVY}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stderr.rpartition("LOADED ")[2].split())


HELP = "import sys\nfrom pipelines.cli import main\nsys.argv = ['fraud', '--help']\n"


@pytest.mark.parametrize(
    ("code", "allowed"),
    [
        ("import fraud", set[str]()),
        ("import fraud.scoring, fraud.bundle", {"pydantic", "onnxruntime"}),
        ("import fraud.models, fraud.config", {"pydantic"}),
        (f"{HELP}try:\n    main()\nexcept SystemExit:\n    pass", set[str]()),
    ],
    ids=["fraud", "scoring", "models", "help"],
)
def test_nothing_heavy_is_loaded_before_it_is_needed(code: str, allowed: set[str]) -> None:
    assert _loaded(code) <= allowed


def test_a_test_cannot_reach_the_network() -> None:
    with pytest.raises(RuntimeError, match="no network"):
        socket.create_connection(("192.0.2.1", 80), timeout=0.1)
    with pytest.raises(RuntimeError, match="no network"):
        socket.getaddrinfo("example.org", 80)


def _cpu_s(code: str) -> float:
    """Return the CPU seconds of a fresh interpreter that runs `code`."""
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, cwd=ROOT)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    assert child.returncode == 0
    return usage.ru_utime + usage.ru_stime


def test_help_costs_under_a_third_of_a_second_of_cpu() -> None:
    importlib.import_module("pipelines.cli")  # compiled once, as it is for anyone who has run it before
    extra_s = min(_cpu_s(f"{HELP}main()") for _ in range(5)) - min(_cpu_s("pass") for _ in range(5))
    assert extra_s < 0.3
