"""MLflow's runs: a finished one is told whole, or kept here until the tracker is back.

Training never waits for the tracker and never fails with it: a run is logged when it is done, and when that does not
work, or is interrupted, the record stays in `untracked/` beside the bundle.
"""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fraud.config import Config, config_to_toml
from pipelines.console import Screen
from pipelines.files import written_whole
from pipelines.pyfunc import log_model

if TYPE_CHECKING:
    from mlflow import MlflowClient

_MAX_PARAMETER = 500
_SQLITE = "sqlite:///"
_ATTEMPTS = 5  # to open a store that another process is just making
_PAUSE_S = 0.1  # before the second attempt twice this, and twice as long before each that follows
_COLLISIONS = ("RESOURCE_ALREADY_EXISTS", "already exists", "duplicate column", "database is locked")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """What the tracker is told of one training: history has the figures of each epoch, in order."""

    name: str
    parameters: Mapping[str, str]
    history: Sequence[Mapping[str, float]]
    metrics: Mapping[str, float]
    tags: Mapping[str, str]
    fit_s: float


def track(record: RunRecord, bundle: Path, config: Config, screen: Screen) -> str | None:
    """Return the id of the MLflow run that holds the record and the bundle as a model, None where that failed."""
    kept = bundle.parent / "untracked" / f"{bundle.name}.json"
    return _told(record, config, screen, bundle=bundle, files=(), kept=kept)


def track_parent(
    record: RunRecord, files: Sequence[Path], config: Config, screen: Screen, *, keep_as: Path
) -> str | None:
    """Return the id of the MLflow run that holds the record and these files, None where that failed.

    Other runs stand below it that have the tag mlflow.parentRunId. keep_as: where the record would be kept.
    """
    kept = keep_as.parent / "untracked" / f"{keep_as.name}.json"
    return _told(record, config, screen, bundle=None, files=files, kept=kept)


def _told(
    record: RunRecord, config: Config, screen: Screen, *, bundle: Path | None, files: Sequence[Path], kept: Path
) -> str | None:
    uri = tracking_uri(config)
    # First, and removed when the tracker has it: whatever ends this process in between, the record is not lost.
    _keep(record, kept, screen)
    try:
        run_id = _log(record, config, uri, bundle=bundle, files=files)
    except KeyboardInterrupt:
        screen.warn(f"interrupted before the tracker at {uri} had the run; it is kept in {kept}")
        raise
    # Whatever the tracker raises (its own errors, SQL, HTTP, sockets), the bundle is trained and must stay usable.
    except Exception as error:  # noqa: BLE001
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        screen.warn(f"the tracker at {uri} did not take the run ({reason[:200]}); it is kept in {kept}")
        return None
    kept.unlink(missing_ok=True)
    with suppress(OSError):  # others are kept there
        kept.parent.rmdir()
    return run_id


def _keep(record: RunRecord, kept: Path, screen: Screen) -> None:
    text = json.dumps(asdict(record), indent=1)
    for _ in range(_ATTEMPTS):
        try:
            with written_whole(kept) as aside:
                aside.write_text(text, encoding="utf-8")
            return
        except FileNotFoundError:  # a run beside this one was told, and removed the folder that was empty
            continue
        except OSError as error:
            screen.warn(f"{kept}: the record of the run cannot be kept there ({error.strerror})")
            return


def tracking_uri(config: Config) -> str:
    """Return the tracking URI; a relative SQLite path starts at the folder of the configuration."""
    uri = config.tracking.uri
    if uri.startswith(_SQLITE) and not uri.startswith(f"{_SQLITE}/"):
        return f"{_SQLITE}{(config.root / uri.removeprefix(_SQLITE)).resolve()}"
    return uri


def _log(record: RunRecord, config: Config, uri: str, *, bundle: Path | None, files: Sequence[Path]) -> str:
    # A tracker that is away must cost seconds, not MLflow's own minutes of retries.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")  # how it makes its tables is not ours to tell
    from mlflow.entities import Metric, Param

    client, experiment_id = _opened(config, uri)
    now_ms = int(time.time() * 1000)
    # The run is told when it is over; its start is set back, so that its duration is that of the fit.
    started_ms = now_ms - int(record.fit_s * 1000)
    tags = {"mlflow.source.name": "fraud", **record.tags}
    run = client.create_run(experiment_id, start_time=started_ms, tags=tags, run_name=record.name)
    run_id = run.info.run_id
    metrics = [
        Metric(name, value, now_ms, step)
        for step, epoch in enumerate(record.history, 1)
        for name, value in epoch.items()
    ]
    model_id = None if bundle is None else log_model(client, experiment_id, run_id, bundle)
    metrics += [
        Metric(name, value, now_ms, 0, model_id=model_id, run_id=run_id)
        for name, value in {**record.metrics, "fit_s": record.fit_s}.items()
    ]
    parameters = [Param(name, value[:_MAX_PARAMETER]) for name, value in record.parameters.items()]
    client.log_batch(run_id, metrics, parameters)
    for path in files:
        client.log_artifact(run_id, str(path))
    with tempfile.TemporaryDirectory() as folder:
        config_file = Path(folder) / "config.toml"
        config_file.write_text(config_to_toml(config), encoding="utf-8")
        client.log_artifact(run_id, str(config_file))
    client.set_terminated(run_id)
    return run_id


def _opened(config: Config, uri: str) -> tuple[MlflowClient, str]:
    """Return a client and the id of the experiment, which is made where it is not there.

    Two that use a store for the first time at once would both make its tables, or the experiment. Those of ours wait
    for each other; what another program made in between is found at the next attempt.
    """
    from mlflow import MlflowClient

    name = config.tracking.experiment
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            with _alone(uri):
                client = MlflowClient(tracking_uri=uri)
                experiment = client.get_experiment_by_name(name)
                if experiment is None:
                    return client, client.create_experiment(name, artifact_location=_artifacts(uri))
                return client, experiment.experiment_id
        # MLflow's own errors and SQLAlchemy's have no common kind; they are told apart by what they say.
        except Exception as error:
            if attempt == _ATTEMPTS or not any(mark in str(error) for mark in _COLLISIONS):
                raise
            time.sleep(_PAUSE_S * 2**attempt)
    raise AssertionError("the last attempt returns or raises")


@contextmanager
def _alone(uri: str) -> Iterator[None]:
    """Hold the folder of a local SQLite store while the block runs; the kernel lets go when the process ends."""
    if not uri.startswith(_SQLITE):
        yield
        return
    folder = Path(uri.removeprefix(_SQLITE)).parent
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _artifacts(uri: str) -> str | None:
    """Return where artefacts go: beside a local SQLite store, or where a server says."""
    if uri.startswith(_SQLITE):
        return (Path(uri.removeprefix(_SQLITE)).parent / "mlartifacts").resolve().as_uri()
    return None
