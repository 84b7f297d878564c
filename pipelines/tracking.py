"""MLflow, and the only file that knows it: a finished run is told whole, or kept here until the tracker is back.

Training never waits for the tracker and never fails with it: a run is logged when it is done, and when that does not
work the record stays in `untracked/` beside the bundle.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from fraud.config import Config, config_to_toml
from pipelines.console import Screen
from pipelines.files import written_whole

_MAX_PARAMETER = 500
_SQLITE = "sqlite:///"


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
    """Return the id of the MLflow run that holds the record and the bundle's files, None where that failed."""
    uri = tracking_uri(config)
    try:
        return _log(record, bundle, config, uri)
    # Whatever the tracker raises (its own errors, SQL, HTTP, sockets), the bundle is trained and must stay usable.
    except Exception as error:  # noqa: BLE001
        kept = bundle.parent / "untracked" / f"{bundle.name}.json"
        with written_whole(kept) as aside:
            aside.write_text(json.dumps(asdict(record), indent=1), encoding="utf-8")
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        screen.warn(f"the tracker at {uri} did not take the run ({reason[:200]}); it is kept in {kept}")
        return None


def tracking_uri(config: Config) -> str:
    """Return the tracking URI; a relative SQLite path starts at the folder of the configuration."""
    uri = config.tracking.uri
    if uri.startswith(_SQLITE) and not uri.startswith(f"{_SQLITE}/"):
        return f"{_SQLITE}{(config.root / uri.removeprefix(_SQLITE)).resolve()}"
    return uri


def _log(record: RunRecord, bundle: Path, config: Config, uri: str) -> str:
    # A tracker that is away must cost seconds, not MLflow's own minutes of retries.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(config.tracking.experiment)
    if experiment is None:
        experiment_id = client.create_experiment(config.tracking.experiment, artifact_location=_artifacts(uri))
    else:
        experiment_id = experiment.experiment_id
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
    metrics += [Metric(name, value, now_ms, 0) for name, value in {**record.metrics, "fit_s": record.fit_s}.items()]
    parameters = [Param(name, value[:_MAX_PARAMETER]) for name, value in record.parameters.items()]
    client.log_batch(run_id, metrics, parameters)
    client.log_artifacts(run_id, str(bundle), "bundle")
    with tempfile.TemporaryDirectory() as folder:
        config_file = Path(folder) / "config.toml"
        config_file.write_text(config_to_toml(config), encoding="utf-8")
        client.log_artifact(run_id, str(config_file))
    client.set_terminated(run_id)
    return run_id


def _artifacts(uri: str) -> str | None:
    """Return where artefacts go: beside a local SQLite store, or where a server says."""
    if uri.startswith(_SQLITE):
        return (Path(uri.removeprefix(_SQLITE)).parent / "mlartifacts").resolve().as_uri()
    return None
