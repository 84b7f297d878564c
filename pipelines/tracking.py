"""MLflow's runs: a finished one is told whole, or kept here until the tracker is back.

Training never waits for the tracker and never fails with it: a run is logged when it is done, and when that does not
work, or is interrupted, the record stays in `untracked/` beside the bundle.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from fraud.config import Config, config_to_toml
from fraud.errors import DataError, FraudError
from fraud.manifest import VERSION_DIGITS, read_manifest
from pipelines.console import Screen
from pipelines.mlflow_client import SQLITE, absolute_uri, alone, answered, asked_once, client_of, without_password
from pipelines.pyfunc import log_model
from pipelines.records import UNTRACKED, RunRecord, UntoldRun, kept

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

RECORD_TAG = "fraud.record"  # of a run: the id of its record
_PARENT_TAG = "mlflow.parentRunId"
_FINISHED = "FINISHED"
_WAYS_OUT = "put it back, or remove the record of the run"
_MAX_PARAMETER = 500
_ATTEMPTS = 5  # to open a store that another process is just making
_PAUSE_S = 0.1  # before the second attempt twice this, and twice as long before each that follows
_COLLISIONS = ("RESOURCE_ALREADY_EXISTS", "already exists", "duplicate column", "database is locked")


def track(record: RunRecord, bundle: Path, config: Config, screen: Screen) -> str | None:
    """Return the id of the MLflow run that holds the record and the bundle as a model, None where that failed."""
    run = _untold(record, config, bundle=bundle, files=())
    return _told(run, bundle.parent / UNTRACKED / f"{bundle.name}.json", screen)


def track_parent(
    record: RunRecord, files: Sequence[Path], config: Config, screen: Screen, *, keep_as: Path
) -> str | None:
    """Return the id of the MLflow run that holds the record and these files, None where that failed.

    Other runs stand below it whose record names this one as its parent. keep_as: where the record would be kept.
    """
    run = _untold(record, config, bundle=None, files=tuple(files))
    return _told(run, keep_as.parent / UNTRACKED / f"{keep_as.name}.json", screen)


def tell(run: UntoldRun, uri: str) -> str:
    """Return the id of the MLflow run that holds all of a run, at this URI.

    May be called again, whatever ended it: a run that has the record's tag is gone on with, and never made twice.
    Raises DataError where a file of the run is gone, ConnectionError where the tracker does not take it.
    """
    with answered(uri):
        with asked_once():  # who does not answer here costs one timeout
            client, experiment_id = _opened(run.experiment, uri)
            found = _run_of(client, experiment_id, run.record.id, *run.earlier_ids)
            if found is not None and found.info.status == _FINISHED:
                return found.info.run_id
            _check_parts(run)
            if found is None:
                found = _made(client, experiment_id, run)
            elif found.data.tags[RECORD_TAG] != run.record.id:
                client.set_tag(found.info.run_id, RECORD_TAG, run.record.id)  # what stands below it says this one
        _fill(client, experiment_id, found.info.run_id, run)
        return found.info.run_id


def _untold(record: RunRecord, config: Config, *, bundle: Path | None, files: tuple[Path, ...]) -> UntoldRun:
    return UntoldRun(
        record=record,
        ended_ms=int(time.time() * 1000),
        uri=tracking_uri(config),
        experiment=config.tracking.experiment,
        config=config_to_toml(config),
        bundle=bundle,
        bundle_version=None if bundle is None else _version(bundle),
        files=files,
    )


def _told(run: UntoldRun, wanted: Path, screen: Screen) -> str | None:
    with ExitStack() as keeping:
        place: Path | None = None
        try:
            # First, and removed when the tracker has it: whatever ends this process in between, it is not lost.
            run, place = keeping.enter_context(kept(run, wanted))
        except OSError as error:
            screen.warn(f"{wanted}: the record of the run cannot be kept there ({error.strerror})")
        later = "it is lost" if place is None else f"it is kept in {place}; `fraud track --resend` logs it"
        try:
            run_id = tell(run, run.uri)
        except KeyboardInterrupt:
            screen.warn(f"interrupted before the tracker at {without_password(run.uri)} had the run; {later}")
            raise
        # The bundle is trained and must stay usable, whatever the tracker says.
        except (FraudError, OSError) as error:
            screen.warn(f"{error}; the run is not in the tracker: {later}")
            return None
        if place is not None:
            place.unlink(missing_ok=True)
        return run_id


def tracking_uri(config: Config) -> str:
    """Return the tracking URI; a relative SQLite path starts at the folder of the configuration."""
    return absolute_uri(config.tracking.uri, config.root)


def _check_parts(run: UntoldRun) -> None:
    for file in run.files:
        if not file.is_file():
            raise DataError(f"{file}: an artefact of the run {run.record.name!r} is gone; {_WAYS_OUT}")
    if run.bundle is None:
        return
    wanted = f"the bundle of the run {run.record.name!r}, version {run.bundle_version}"
    if not run.bundle.is_dir():
        raise DataError(f"{run.bundle}: expected {wanted}, which is gone; {_WAYS_OUT}")
    if (version := _version(run.bundle)) != run.bundle_version:
        raise DataError(f"{run.bundle}: expected {wanted}; found version {version}; {_WAYS_OUT}")


def _version(bundle: Path) -> str:
    return read_manifest(bundle)[1][:VERSION_DIGITS]


def _run_of(client: MlflowClient, experiment_id: str, *record_ids: str) -> Run | None:
    """Return the run of a record that has these ids, None where the tracker has none.

    There are two where the tracker made one after its answer was given up, and the next telling came before it was
    there: the one that is further stays.
    """
    runs = {
        run.info.run_id: run
        for record_id in record_ids
        for run in client.search_runs([experiment_id], f"tags.`{RECORD_TAG}` = '{record_id}'")
    }
    if not runs:
        return None
    first, *others = sorted(runs.values(), key=lambda run: (run.info.status != _FINISHED, run.info.run_id))
    for run in others:
        client.delete_run(run.info.run_id)
    return first


def _made(client: MlflowClient, experiment_id: str, run: UntoldRun) -> Run:
    """Return a new run with the tags of a record."""
    record = run.record
    tags = {"mlflow.source.name": "fraud", **record.tags, RECORD_TAG: record.id}
    if record.parent is not None:
        parent = _run_of(client, experiment_id, record.parent)
        if parent is None:
            raise DataError(f"the run {record.name!r} stands below one that the tracker does not have; resend both")
        tags[_PARENT_TAG] = parent.info.run_id
    # The run is told when it is over; its start is set back, so that its duration is that of the fit.
    started_ms = run.ended_ms - int(record.fit_s * 1000)
    return client.create_run(experiment_id, start_time=started_ms, tags=tags, run_name=record.name)


def _fill(client: MlflowClient, experiment_id: str, run_id: str, run: UntoldRun) -> None:
    """Log what a run holds, and end it. All of it is the same when it is logged again."""
    from mlflow.entities import Param

    record = run.record
    model_id = None if run.bundle is None else log_model(client, experiment_id, run_id, run.bundle)
    parameters = [Param(name, value[:_MAX_PARAMETER]) for name, value in record.parameters.items()]
    client.log_batch(run_id, _metrics(run, run_id, model_id), parameters)
    for path in run.files:
        client.log_artifact(run_id, str(path))
    with tempfile.TemporaryDirectory() as folder:
        config_file = Path(folder) / "config.toml"
        config_file.write_text(run.config, encoding="utf-8")
        client.log_artifact(run_id, str(config_file))
    client.set_terminated(run_id, end_time=run.ended_ms)


def _metrics(run: UntoldRun, run_id: str, model_id: str | None) -> list[Metric]:
    from mlflow.entities import Metric

    of_epochs = [
        Metric(name, value, run.ended_ms, step)
        for step, epoch in enumerate(run.record.history, 1)
        for name, value in epoch.items()
    ]
    figures = {**run.record.metrics, "fit_s": run.record.fit_s}
    return of_epochs + [
        Metric(name, value, run.ended_ms, 0, model_id=model_id, run_id=run_id) for name, value in figures.items()
    ]


def _opened(experiment: str, uri: str) -> tuple[MlflowClient, str]:
    """Return a client and the id of the experiment, which is made where it is not there.

    Two that use a store for the first time at once would both make its tables, or the experiment. Those of ours wait
    for each other; what another program made in between is found at the next attempt.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            client = client_of(uri)
            with alone(uri):
                found = client.get_experiment_by_name(experiment)
                if found is None:
                    return client, client.create_experiment(experiment, artifact_location=_artifacts(uri))
                return client, found.experiment_id
        # MLflow's own errors and SQLAlchemy's have no common kind; they are told apart by what they say.
        except Exception as error:
            if attempt == _ATTEMPTS or not any(mark in str(error) for mark in _COLLISIONS):
                raise
            time.sleep(_PAUSE_S * 2**attempt)
    raise AssertionError("the last attempt returns or raises")


def _artifacts(uri: str) -> str | None:
    """Return where artefacts go: beside a local SQLite store, or where a server says."""
    if uri.startswith(SQLITE):
        return (Path(uri.removeprefix(SQLITE)).parent / "mlartifacts").resolve().as_uri()
    return None
