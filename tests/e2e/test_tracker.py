"""A run is tracked whole; a tracker that is away costs no bundle and no record."""

from __future__ import annotations

import fcntl
import os
import shutil
import sqlite3
import threading
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest

from fraud.config import Config, load_config
from pipelines.console import Screen
from pipelines.records import RunRecord, read_untold
from pipelines.tracking import track, track_parent
from tests.commands import contents, run_fraud
from tests.tampered import copied
from tests.trained import Trained, trained_bundles

_READY = 2  # LoggedModelStatus of MLflow


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return trained_bundles(tmp_path_factory)


def test_a_run_is_tracked_with_its_metrics_and_its_bundle(trained: Trained) -> None:
    run_id = trained.document("lstm")["tracked"]
    with sqlite3.connect(f"file:{trained.log / 'mlflow.db'}?mode=ro", uri=True) as store:
        (status,) = store.execute("select status from runs where run_uuid = ?", [run_id]).fetchone()
        metrics = store.execute("select key, step, value from metrics where run_uuid = ?", [run_id]).fetchall()
        parameters = dict(store.execute("select key, value from params where run_uuid = ?", [run_id]).fetchall())
    assert status == "FINISHED"
    last = {key: value for key, _, value in metrics}
    document = trained.document("lstm")
    assert last["test_ap"] == document["ap"]
    assert (last["test_ap_ci_low"], last["test_ap_ci_high"]) == tuple(document["ap_ci"])
    steps = sorted(step for key, step, _ in metrics if key == "held_out_loss")
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) > 1
    assert parameters["model.width"] == "16"
    assert parameters["training.learning_rate"] == "0.01"
    (artifacts,) = (trained.log / "mlartifacts").glob(f"**/{run_id}/artifacts")
    assert (artifacts / "config.toml").exists()
    with sqlite3.connect(f"file:{trained.log / 'mlflow.db'}?mode=ro", uri=True) as store:
        models = store.execute(
            "select model_id, status, artifact_location from logged_models where source_run_id = ?", [run_id]
        ).fetchall()
        ((model_id, status, location),) = models
        (of_model,) = store.execute(
            "select metric_value from logged_model_metrics where model_id = ? and metric_name = 'test_ap'", [model_id]
        ).fetchone()
    assert status == _READY
    assert of_model == document["ap"]
    # Once in the store, as the model of the run (what it is otherwise: test_pyfunc.py).
    assert contents(Path(unquote(urlparse(location).path)) / "bundle") == contents(trained.folder / "lstm")


def test_what_the_tracker_took_is_not_kept_beside_it(trained: Trained) -> None:
    assert trained.document("lstm")["tracked"]
    assert {path.name for path in (trained.folder / "untracked").iterdir()} == {"boosting.json"}


def test_training_ends_well_without_a_tracker_and_keeps_the_run(trained: Trained) -> None:
    document, kept = trained.document("boosting"), trained.folder / "untracked" / "boosting.json"
    assert document["tracked"] is None
    assert f"it is kept in {kept}" in trained.said("boosting")
    assert "127.0.0.1:9" in trained.said("boosting")
    run = read_untold(kept)
    assert run.record.metrics["test_ap"] == document["ap"]
    assert run.record.parameters["model.trees"] == "40"
    assert (run.uri, run.bundle_version) == ("http://127.0.0.1:9", document["version"])
    assert run.bundle is not None
    assert run.bundle.samefile(trained.folder / "boosting")


def _record() -> RunRecord:
    return RunRecord(
        name="lstm",
        parameters={"model.width": "16"},
        history=[{"held_out_loss": 0.5}],
        metrics={"test_ap": 0.25},
        tags={"model": "lstm"},
        fit_s=1.5,
    )


def _config(trained: Trained, folder: Path) -> Config:
    return load_config(trained.config_file, [f"tracking.uri=sqlite:///{folder}/mlflow.db"])


def test_an_interrupt_while_the_tracker_is_told_keeps_the_record(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, record = copied(trained.folder / "boosting", tmp_path), _record()
    kept = tmp_path / "untracked" / "boosting.json"

    def interrupted(*_: object, **__: object) -> str:
        assert read_untold(kept).record.metrics == {"test_ap": 0.25}  # before it is told
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pipelines.tracking.tell", interrupted)
        with pytest.raises(KeyboardInterrupt):
            track(record, bundle, _config(trained, tmp_path), Screen(as_json=True))
    assert read_untold(kept).record == record
    monkeypatch.setattr("pipelines.tracking.tell", lambda *_, **__: "a run")
    assert track(record, bundle, _config(trained, tmp_path), Screen(as_json=True)) == "a run"
    assert not kept.parent.exists()


def test_the_later_of_two_first_uses_of_a_store_finds_what_the_other_made(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    shutil.copy(trained.log / "mlflow.db", tmp_path)
    look, asked = MlflowClient.get_experiment_by_name, []

    def too_early(self: MlflowClient, name: str) -> object:
        asked.append(name)
        return None if len(asked) == 1 else look(self, name)  # the other one makes it just after the first look

    monkeypatch.setattr(MlflowClient, "get_experiment_by_name", too_early)
    config = _config(trained, tmp_path)
    run_id = track_parent(_record(), [trained.config_file], config, Screen(as_json=True), keep_as=tmp_path / "parent")
    assert len(asked) == 2
    with sqlite3.connect(tmp_path / "mlflow.db") as store:
        assert store.execute("select status from runs where run_uuid = ?", [run_id]).fetchone() == ("FINISHED",)
        assert store.execute("select count(*) from experiments where name = 'fraud'").fetchone() == (1,)
    assert not (tmp_path / "untracked").exists()


def test_a_store_is_opened_by_one_at_a_time(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two that make its tables at once break it: "duplicate column name", seen with four first runs side by side."""
    from mlflow import MlflowClient

    shutil.copy(trained.log / "mlflow.db", tmp_path)
    look, asked = MlflowClient.get_experiment_by_name, threading.Event()

    def noted(self: MlflowClient, name: str) -> object:
        asked.set()
        return look(self, name)

    monkeypatch.setattr(MlflowClient, "get_experiment_by_name", noted)
    config, screen, runs = _config(trained, tmp_path), Screen(as_json=True), list[str | None]()
    other = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    run = threading.Thread(
        target=lambda: runs.append(track_parent(_record(), [], config, screen, keep_as=tmp_path / "parent"))
    )
    run.start()
    assert not asked.wait(1.0)
    os.close(other)
    run.join(60)
    assert runs[0] is not None


_TRACK = """
import pathlib, sys
from fraud.config import load_config
from pipelines.console import Screen
from pipelines.records import read_untold
from pipelines.tracking import track
record = read_untold(pathlib.Path(sys.argv[2])).record
config = load_config(sys.argv[1], [f"tracking.uri={sys.argv[4]}"])
print(track(record, pathlib.Path(sys.argv[3]), config, Screen(as_json=True)))
"""


def test_a_store_that_cannot_be_opened_costs_no_bundle(trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    bundle = copied(trained.folder / "boosting", tmp_path)
    kept = trained.folder / "untracked" / "boosting.json"
    uri = f"sqlite:///{tmp_path}/file/mlflow.db"
    done = run_fraud(trained.config_file, kept, bundle, uri, code=_TRACK)
    assert (done.returncode, done.stdout.strip()) == (0, "None"), done.stderr
    assert f"it is kept in {tmp_path}/untracked/boosting.json" in done.stderr
    assert read_untold(tmp_path / "untracked" / "boosting.json").record == read_untold(kept).record
