"""A bundle as an MLflow model: `mlflow.pyfunc.load_model(uri).predict(frame)` gives the scores of each event.

Stored are the bundle's own files and, beside them, an MLmodel that names this module: no code and no pickle. Whoever
loads it runs the `fraud` that is installed there, which checks the bundle before it scores.
"""

from __future__ import annotations

import json
import logging
import platform
import tempfile
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fraud.bundle import Bundle, load_bundle
from fraud.cells import CsvCells, JsonCells, as_floats, as_integers, as_text, as_times
from fraud.columns import Declared, declared_columns
from fraud.config import Config, parse_config
from fraud.errors import DataError
from fraud.events import Events
from fraud.golden import golden_from_json
from fraud.manifest import MANIFEST, VERSION_DIGITS, read_manifest
from fraud.tables import EVENT_SCHEMA, score_rows, scoring_config
from pipelines.mlflow_client import asked_once

if TYPE_CHECKING:
    import pandas as pd
    from mlflow import MlflowClient
    from mlflow.models import ModelSignature

_LOG = logging.getLogger(__name__)
MODEL = "model"  # its name in the tracker: runs:/RUN_ID/model
BUNDLE = "bundle"  # the folder of the bundle beside MLmodel
_EXAMPLE = "input_example.json"
_EXAMPLE_EVENTS = 8
# What `fraud[batch]` brings, and MLflow. Not `fraud` itself: it comes from where you got it, not from a public index.
_REQUIRED = ("mlflow", "numpy", "onnxruntime", "pandas", "pyarrow", "pydantic", "rich", "safetensors", "typer")


class BundleModel:
    """What `mlflow.pyfunc.load_model` gives for a bundle."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        if bundle.scorer.config.fields.entity:
            _LOG.warning("no labels are read here: the frauds known of each entity count as 0, unlike with --config")

    def predict(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Return the columns of `fraud score --per-event`, one row for each row of the frame and with its index.

        A row that cannot be used holds nulls only; one that repeats an event has that event's answer. Raises DataError
        where a declared column is missing.
        """
        table = as_table(frame, scoring_config(self.bundle.scorer.config, labels=None))
        return score_rows(self.bundle.scorer, table).to_pandas().set_index(frame.index)


def _load_pyfunc(path: str) -> BundleModel:
    """Return the model of the bundle at `path`: the name and the signature are MLflow's. Raises BundleError."""
    return BundleModel(load_bundle(path))


def as_table(frame: pd.DataFrame, config: Config) -> pa.Table:
    """Return the declared columns of a frame as an Arrow table, each of the type that a log's column has.

    A frame may come from CSV or from JSON: numbers and times may be text, and a column may mix types. What cannot be
    read becomes a cell that validation refuses, so that its row alone goes without a score. Raises DataError for a
    column that stands twice, or that Arrow has no type for.
    """
    names = [str(name) for name in frame.columns]
    arrays: dict[str, pa.Array] = {}
    for column in declared_columns(config):
        if names.count(column.column) > 1:
            raise DataError(f"column {column.column!r} stands twice in the frame; expected each name once")
        if column.column in names:
            arrays[column.column] = _array(frame.iloc[:, names.index(column.column)], column, config)
    return pa.table(arrays)


def _array(series: pd.Series, column: Declared, config: Config) -> pa.Array:
    try:
        array = pa.Array.from_pandas(series)
    except pa.ArrowException:
        return _typed(JsonCells([_plain(cell) for cell in series.tolist()]), column, config)
    array = array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
    array = array.dictionary_decode() if pa.types.is_dictionary(array.type) else array
    if column.kind == "text" and pa.types.is_floating(array.type) and pc.all(array.is_null(nan_is_null=True)).as_py():
        return pa.nulls(len(array), pa.string())  # MLflow hands a column of nothing but nulls over as numbers
    is_text = pa.types.is_string(array.type) or pa.types.is_large_string(array.type)
    if column.kind == "text" or not is_text:
        return array
    return _typed(CsvCells(array.cast(pa.string())), column, config)


def _typed(cells: CsvCells | JsonCells, column: Declared, config: Config) -> pa.Array:
    """Return the cells in the type of their column; one that has not this type becomes what no rule lets pass."""
    if column.kind == "text":
        typed, refused = as_text(cells), pa.scalar("")
    elif column.kind == "time":
        typed = as_times(cells, unit=config.log.time_unit, zone=config.log.zone)
        typed, refused = typed._replace(values=typed.values.cast(pa.timestamp("us", tz="UTC"))), None
    elif column.kind in ("integer", "position"):
        typed, refused = as_integers(cells), None
    else:
        typed, refused = as_floats(cells), pa.scalar(float("nan"))
    if typed.faults_N is None:
        return typed.values
    # A time, an integer or a position is required, so that nothing in its place is refused as well.
    refused = pa.scalar(None, typed.values.type) if refused is None else refused
    return pc.if_else(pa.array(typed.faults_N != 0), refused, typed.values)


def _plain(cell: object) -> object:
    """Return a cell of an object column as JSON would hold it."""
    if isinstance(cell, datetime):
        return cell.isoformat()
    if isinstance(cell, np.generic):
        cell = cell.item()
    return None if cell is None or cell != cell else cell  # NaN and NaT are no value


def log_model(client: MlflowClient, experiment_id: str, run_id: str, bundle: Path) -> str:
    """Return the id of the model that MLflow now holds: the bundle's files and what loads them.

    A run has one: what an earlier call began is gone on with.
    """
    from mlflow.entities import LoggedModelOutput

    begun = client.search_logged_models([experiment_id], filter_string=f"source_run_id = '{run_id}'")
    if not begun:
        bundle_version = read_manifest(bundle)[1][:VERSION_DIGITS]
        tags = {"bundle_version": bundle_version}
        with asked_once():
            begun = [
                client.create_logged_model(
                    experiment_id, name=MODEL, source_run_id=run_id, tags=tags, model_type="fraud"
                )
            ]
    model_id, outputs = begun[0].model_id, client.get_run(run_id).outputs
    if outputs is None or model_id not in {output.model_id for output in outputs.model_outputs}:
        with asked_once():
            client.log_outputs(run_id, [LoggedModelOutput(model_id, step=0)])
    if begun[0].status != "READY":
        with tempfile.TemporaryDirectory() as folder:
            write_flavour(bundle, Path(folder), model_id=model_id, run_id=run_id)
            client.log_model_artifacts(model_id, folder)
        client.log_model_artifacts(model_id, str(bundle), BUNDLE)
        client.finalize_logged_model(model_id, "READY")
    return model_id


def write_flavour(bundle: Path, folder: Path, *, model_id: str | None, run_id: str | None) -> None:
    """Write what makes `folder`, with the bundle's files in its folder "bundle", a model that MLflow loads."""
    from mlflow.models import Model
    from mlflow.pyfunc import add_to_model

    manifest, sha256 = read_manifest(bundle)
    config = parse_config((bundle / "config.toml").read_text(encoding="utf-8"), source="config.toml", root=bundle)
    config = scoring_config(config, labels=None)
    golden = golden_from_json((bundle / "golden.json").read_text(encoding="utf-8"), config)
    example = input_example(golden.events, config)
    (folder / _EXAMPLE).write_text(json.dumps(example, ensure_ascii=False), encoding="utf-8")
    environment = {"python": platform.python_version(), "dependencies": ["-r requirements.txt"]}
    # JSON is YAML.
    (folder / "python_env.yaml").write_text(json.dumps(environment, indent=1) + "\n", encoding="utf-8")
    (folder / "requirements.txt").write_text("\n".join(_requirements()) + "\n", encoding="utf-8")
    model = Model(
        artifact_path=MODEL,
        run_id=run_id,
        model_id=model_id,
        signature=_signature(config),
        saved_input_example_info={"artifact_path": _EXAMPLE, "type": "dataframe", "pandas_orient": "split"},
        model_size_bytes=sum((bundle / name).stat().st_size for name in [MANIFEST, *manifest.files]),
        metadata={
            "bundle_version": sha256[:VERSION_DIGITS],
            "columns": {column.column: _meaning(column, config) for column in declared_columns(config)},
        },
    )
    add_to_model(model, loader_module="pipelines.pyfunc", data=BUNDLE, python_env="python_env.yaml")
    model.save(str(folder / "MLmodel"))


def input_example(events: Events, config: Config) -> dict[str, Any]:  # Any: cells of JSON
    """Return the first golden events as a frame in the log's columns ("split" orientation); no user's own data."""
    declared = declared_columns(config)
    n = min(_EXAMPLE_EVENTS, len(events))
    columns = [_cells(column, events, config)[:n] for column in declared]
    return {
        "columns": [column.column for column in declared],
        "data": [list(row) for row in zip(*columns, strict=True)],
    }


def _cells(column: Declared, events: Events, config: Config) -> list[Any]:  # Any: cells of JSON
    """Return the cells of one column of the log for golden events."""
    kind, _, name = column.name.partition(":")
    if kind == "type":
        # Several columns make a type; one never seen has no bars to part it at.
        parts = [str(text).split("|") for text in events.type.to_objects()]
        return [part[int(name)] if len(part) == len(config.log.type_columns) else part[0] for part in parts]
    if kind == "time_us":
        return [_time(int(time_us), config) for time_us in events.time_us]
    if kind in ("amount", "numeric"):
        numbers = events.amount if kind == "amount" else events.numeric[name]
        assert numbers is not None  # it is declared
        return [None if number != number else float(number) for number in numbers]
    match kind:
        case "user":
            return events.users[events.user_codes()].tolist()
        case "event_id":
            return [f"golden-event-{n}" for n in range(len(events))]
        case "order":
            return list(range(len(events)))
        case "session":
            text = events.session
        case "categorical":
            text = events.categorical[name]
        case _:
            text = events.entity[name]
    assert text is not None  # it is declared
    return text.to_objects().tolist()


def _time(time_us: int, config: Config) -> int | str:
    if not config.log.has_clock:
        return time_us
    unit = config.log.time_unit
    if unit is not None:
        return time_us // {"s": 10**6, "ms": 10**3, "us": 1}[unit]
    return pa.scalar(time_us, pa.timestamp("us", tz="UTC")).cast(pa.string()).as_py().replace(" ", "T")


def _signature(config: Config) -> ModelSignature:
    """Return the columns that go in and come out.

    What goes in has no type for MLflow: an id may be text or a whole number, a time a time, text or a number, an amount
    a number or its text, as in a log; a cell that is none of it costs its row the score, not the whole frame.
    """
    from mlflow.models import ModelSignature
    from mlflow.types.schema import AnyType, ColSpec, DataType, Schema, TensorSpec

    inputs: list[ColSpec | TensorSpec] = [ColSpec(AnyType(), column.column) for column in declared_columns(config)]
    kinds = {pa.string(): DataType.string, pa.float64(): DataType.double}
    outputs: list[ColSpec | TensorSpec] = [
        ColSpec(kinds.get(field.type, DataType.datetime), field.name, required=False) for field in EVENT_SCHEMA
    ]
    return ModelSignature(Schema(inputs), Schema(outputs))


def _meaning(column: Declared, config: Config) -> str:
    unit = f", a number of {config.log.time_unit}" if column.kind == "time" and config.log.time_unit else ""
    return f"{column.setting}: {column.kind}{unit}{'' if column.is_required else ', or nothing'}"


def _requirements() -> list[str]:
    found: list[str] = []
    for name in _REQUIRED:
        try:
            found.append(f"{name}=={version(name)}")
        except PackageNotFoundError:
            continue
    return found
