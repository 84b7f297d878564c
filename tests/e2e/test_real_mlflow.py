"""Training, comparing and resending against an MLflow server on PostgreSQL: over HTTP alone, away, slow, killed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlparse

import pandas as pd
import psycopg
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from fraud.bundle import load_bundle
from fraud.config import load_config
from pipelines.console import Screen
from pipelines.mlflow_client import client_of, download
from pipelines.records import read_untold
from pipelines.registry import open_registry
from pipelines.resend import resend
from pipelines.tracking import RECORD_TAG, track
from tests.commands import ROOT, Ended, call_fraud, contents, run_fraud
from tests.links import link_to
from tests.mlflow_server import MlflowServer, running_mlflow
from tests.postgres import PostgresServer, running_postgres
from tests.trained import Trained, trained_bundles

# pyarrow 25 on pandas 3.1 reads a time with a zone through `Series.values`; nothing of ours can change it.
pytestmark = [
    pytest.mark.server,
    pytest.mark.filterwarnings("ignore:Series.values returning an ndarray:DeprecationWarning"),
]

_SCREEN = Screen(as_json=True)
_TIMEOUT_S = 2
_WAIT_S = 120.0


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return trained_bundles(tmp_path_factory)


@pytest.fixture(autouse=True)
def _short_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", str(_TIMEOUT_S))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")


@pytest.fixture(scope="module")
def database() -> Iterator[PostgresServer]:
    """Return the database server that is the tracker's alone; who stops it starts it again."""
    with running_postgres() as postgres:
        yield postgres


@pytest.fixture(scope="module")
def server(database: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """Return a server of these tests alone; who kills it starts it again."""
    with running_mlflow(database, tmp_path_factory.mktemp("mlflow-server")) as server:
        yield server


def _settings(url: str, experiment: str) -> list[str]:
    settings = ["model.name=boosting", f"tracking.uri={url}", f"tracking.experiment={experiment}"]
    return [part for setting in settings for part in ("--set", setting)]


def _train(trained: Trained, out: Path, url: str, experiment: str) -> Ended:
    ended = call_fraud("train", trained.config_file, "-o", out, *_settings(url, experiment), "--json")
    assert ended.exit_code == 0, ended.stderr
    return ended


def _runs(client: MlflowClient, experiment: str) -> list[Run]:
    found = client.get_experiment_by_name(experiment)
    return [] if found is None else client.search_runs([found.experiment_id])


def _told(client: MlflowClient, run_id: str, bundle: Path, folder: Path) -> Run:
    """Return a run, once its figures and its model are those of the bundle; folder: for what is downloaded."""
    run = client.get_run(run_id)
    figures = json.loads((bundle / "metrics.json").read_text(encoding="utf-8"))
    assert run.info.status == "FINISHED"
    assert run.data.metrics["test_ap"] == figures["test"]["ap"]
    assert run.data.params["model.name"] == '"boosting"'
    assert run.outputs is not None
    (output,) = run.outputs.model_outputs
    model = client.get_logged_model(output.model_id)
    assert model.status == "READY"
    assert [metric.value for metric in model.metrics or () if metric.key == "test_ap"] == [figures["test"]["ap"]]
    folder.mkdir()
    found = download(f"{model.artifact_location}/bundle", folder, uri=client.tracking_uri)
    assert contents(found) == contents(bundle)
    return run


def _later(url: str, bundle: Path, experiment: str) -> Run:
    """Return the one run that resending what was kept beside a bundle has made, with all that it holds."""
    kept = read_untold(bundle.parent / "untracked" / f"{bundle.name}.json")
    document = resend(bundle.parent, tracking_uri=None, screen=_SCREEN)
    assert document["kept"] == []
    ((run_id,),) = ([one["run_id"]] for one in document["sent"])
    client = client_of(url)
    run = _told(client, run_id, bundle, bundle.parent / "found")
    assert [found.info.run_id for found in _runs(client, experiment)] == [run_id]
    assert run.info.end_time == kept.ended_ms
    assert run.data.tags[RECORD_TAG] == kept.record.id
    return run


def _tell(trained: Trained, url: str, experiment: str, folder: Path) -> str | None:
    """Return the id of the run that the tracker took of a copy of a trained bundle."""
    record = read_untold(trained.folder / "untracked" / "boosting.json").record
    config = load_config(trained.config_file, [f"tracking.uri={url}", f"tracking.experiment={experiment}"])
    bundle = Path(shutil.copytree(trained.folder / "boosting", folder / "boosting"))
    return track(replace(record, id=uuid.uuid4().hex), bundle, config, _SCREEN)


@contextmanager
def _locked(server: MlflowServer, table: str) -> Iterator[None]:
    """Hold off whoever writes to a table of the server's database while the block runs; who reads goes on."""
    with psycopg.connect(server.database) as connection:
        connection.execute(f"LOCK TABLE {table} IN EXCLUSIVE MODE".encode())
        yield


def _until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _WAIT_S
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_training_is_a_run_with_a_model_whose_files_come_through_the_server(
    trained: Trained, server: MlflowServer, tmp_path: Path
) -> None:
    ended = _train(trained, tmp_path / "bundle", server.url, "trained")
    client = client_of(server.url)
    run = _told(client, ended.document["tracked"], tmp_path / "bundle", tmp_path / "found")
    assert urlparse(run.info.artifact_uri).scheme == "mlflow-artifacts"
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["config.toml"]
    assert not (tmp_path / "untracked").exists()


_PREDICT = """
import sys
import mlflow
import pandas as pd
url, run_id, events, out = sys.argv[1:]
mlflow.set_tracking_uri(url)
model = mlflow.pyfunc.load_model(f"runs:/{run_id}/model")
model.predict(pd.read_parquet(events)).to_parquet(out)
"""


def test_the_model_of_a_run_loads_over_http_and_gives_the_scores_of_its_bundle(
    trained: Trained, server: MlflowServer, tmp_path: Path
) -> None:
    run_id = _train(trained, tmp_path / "bundle", server.url, "loaded").document["tracked"]
    done = run_fraud(server.url, run_id, trained.events, tmp_path / "found.parquet", code=_PREDICT)
    assert done.returncode == 0, done.stderr
    command = ("score", tmp_path / "bundle", trained.events, "-o", tmp_path / "scores.parquet", "--per-event")
    assert call_fraud(*command).exit_code == 0
    found, scores = (pd.read_parquet(tmp_path / f"{name}.parquet") for name in ("found", "scores"))
    pd.testing.assert_frame_equal(
        found.set_index("event_id").sort_index(), scores.set_index("event_id").sort_index(), check_exact=True
    )


def test_a_comparison_is_a_run_with_its_page_and_a_run_of_each_scorer_below_it(
    trained: Trained, server: MlflowServer, tmp_path: Path
) -> None:
    ended = call_fraud(
        "compare", trained.config_file, "-o", tmp_path / "out", "--models", "boosting,average",
        *_settings(server.url, "compared"), "--set", "training.epochs=1", "--json",
    )  # fmt: skip
    assert ended.exit_code == 0, ended.stderr
    client, tracked = client_of(server.url), ended.document["tracked"]
    assert {run.info.run_id for run in _runs(client, "compared")} == set(tracked.values())
    for name in ("boosting", "average"):
        run = client.get_run(tracked[name])
        assert run.data.tags["mlflow.parentRunId"] == tracked["comparison"]
        assert run.data.metrics["test_ap"] == ended.document["models"][name]["ap"]
    assert {"comparison.json", "comparison.html", "config.toml"} <= {
        file.path for file in client.list_artifacts(tracked["comparison"])
    }


@pytest.mark.slow
def test_a_comparison_without_a_tracker_is_told_later_with_its_runs_in_their_places(
    trained: Trained, server: MlflowServer, tmp_path: Path
) -> None:
    ended = call_fraud(
        "compare", trained.config_file, "-o", tmp_path / "out", "--models", "boosting,average",
        *_settings("http://127.0.0.1:9", "compared later"), "--set", "training.epochs=1", "--json",
    )  # fmt: skip
    assert set(ended.document["tracked"].values()) == {None}
    document = resend(tmp_path, tracking_uri=server.url, screen=_SCREEN)
    assert document["kept"] == []
    told = {Path(one["record"]).stem: one["run_id"] for one in document["sent"]}
    client = client_of(server.url)
    parents = {run.info.run_id: run.data.tags.get("mlflow.parentRunId") for run in _runs(client, "compared later")}
    parent = told.pop("comparison")
    assert parents == {parent: None, told["boosting"]: parent, told["average"]: parent}
    assert not list(tmp_path.rglob("untracked"))


def test_a_retraining_promotes_its_challenger_through_the_server(
    trained: Trained, server: MlflowServer, tmp_path: Path
) -> None:
    for name in ("events.parquet", "labels.parquet", "small.toml"):
        shutil.copy(trained.log / name, tmp_path)
    command = ["retrain", tmp_path / "small.toml", *_settings(server.url, "retrained"), "--json"]
    command += ["--set", "tracking.model_name=retrained", "--set", "retrain.positives=20"]
    promoted = call_fraud(*command).document
    assert (promoted["verdict"], promoted["reason"]) == ("promoted", "first_model")
    registry = open_registry(server.url, "retrained")
    champion = registry.champion()
    assert champion is not None
    assert champion.number == promoted["version"]
    run = registry.client.get_run(champion.run_id)
    parent = registry.client.get_run(run.data.tags["mlflow.parentRunId"])
    assert (run.info.status, parent.info.status) == ("FINISHED", "FINISHED")
    assert {"verdict.json", "verdict.html"} <= {
        file.path for file in registry.client.list_artifacts(parent.info.run_id)
    }
    assert load_bundle(registry.fetch(champion, tmp_path / "fetched")).version == champion.bundle
    assert call_fraud(*command).document["verdict"] == "unchanged"
    assert len(_runs(registry.client, "retrained")) == 2


def test_a_server_that_is_killed_while_a_scorer_trains_gets_the_run_afterwards(
    trained: Trained, server: MlflowServer, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", "from pipelines.cli import main; main()", "train", str(trained.config_file)]
    command += ["-o", str(tmp_path / "bundle"), *_settings(server.url, "killed"), "--json"]
    training = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    _until(lambda: (tmp_path / ".bundle.work").exists() or training.poll() is not None)
    server.kill()
    stdout, stderr = training.communicate(timeout=240)
    assert training.returncode == 0, stderr
    assert json.loads(stdout)["tracked"] is None
    assert f"it is kept in {tmp_path}/untracked/bundle.json; `fraud track --resend` logs it" in stderr
    server.start()
    _later(server.url, tmp_path / "bundle", "killed")


@pytest.mark.slow
def test_a_slow_server_takes_the_run(trained: Trained, server: MlflowServer, tmp_path: Path) -> None:
    with link_to(server.port) as link:
        link.delay_s = 0.2  # both ways
        ended = _train(trained, tmp_path / "bundle", f"http://127.0.0.1:{link.port}", "slow")
        assert ended.document["tracked"] is not None
    _told(client_of(server.url), ended.document["tracked"], tmp_path / "bundle", tmp_path / "found")


def test_a_server_that_hangs_costs_one_timeout_and_gets_the_run_afterwards(
    trained: Trained, server: MlflowServer, tmp_path: Path
) -> None:
    client_of(server.url)  # MLflow is loaded: what is timed is the wait
    server.pause()
    try:
        started = time.monotonic()
        assert _tell(trained, server.url, "hanging", tmp_path) is None
        spent_s = time.monotonic() - started
    finally:
        server.resume()
    assert _TIMEOUT_S <= spent_s < 3 * _TIMEOUT_S
    _later(server.url, tmp_path / "boosting", "hanging")


def test_a_server_without_its_database_gets_the_run_afterwards(
    trained: Trained, server: MlflowServer, database: PostgresServer, tmp_path: Path
) -> None:
    database.stop()
    try:
        assert _tell(trained, server.url, "no database", tmp_path) is None
        (kept,) = resend(tmp_path, tracking_uri=None, screen=_SCREEN)["kept"]
        assert f"the tracker at {server.url} did not" in kept["reason"]
    finally:
        database.start()
    _later(server.url, tmp_path / "boosting", "no database")


def test_a_run_that_the_server_made_after_its_answer_was_given_up_is_found_again(
    trained: Trained, server: MlflowServer, tmp_path: Path
) -> None:
    with _locked(server, "runs"):
        assert _tell(trained, server.url, "made late", tmp_path) is None
    client = client_of(server.url)
    _until(lambda: len(_runs(client, "made late")) == 1)
    (late,) = _runs(client, "made late")
    assert late.info.status == "RUNNING"
    assert _later(server.url, tmp_path / "boosting", "made late").info.run_id == late.info.run_id


def test_of_two_runs_that_the_server_made_late_one_stays(
    trained: Trained, server: MlflowServer, tmp_path: Path
) -> None:
    with _locked(server, "runs"):
        assert _tell(trained, server.url, "made twice", tmp_path) is None
        assert len(resend(tmp_path, tracking_uri=None, screen=_SCREEN)["kept"]) == 1  # the first is not there yet
    _until(lambda: len(_runs(client_of(server.url), "made twice")) == 2)
    _later(server.url, tmp_path / "boosting", "made twice")


def test_a_server_that_is_killed_while_it_is_told_gets_the_rest_of_the_same_run(
    trained: Trained, server: MlflowServer, tmp_path: Path
) -> None:
    client, told = client_of(server.url), list[str | None]()
    with _locked(server, "metrics"):
        telling = threading.Thread(target=lambda: told.append(_tell(trained, server.url, "half", tmp_path)))
        telling.start()
        _until(lambda: any(run.outputs and run.outputs.model_outputs for run in _runs(client, "half")))
        server.kill()
        telling.join()
    assert told == [None]
    server.start()
    (half,) = _runs(client, "half")
    assert half.info.status == "RUNNING"
    assert _later(server.url, tmp_path / "boosting", "half").info.run_id == half.info.run_id
