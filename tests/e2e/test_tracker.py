"""A run is tracked whole; a tracker that is away costs no bundle and no record."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest

from tests.commands import contents, run_fraud
from tests.tampered import copied
from tests.trained import Trained, trained_bundles


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
    assert contents(artifacts / "bundle") == contents(trained.folder / "lstm")
    assert (artifacts / "config.toml").exists()


def test_training_ends_well_without_a_tracker_and_keeps_the_run(trained: Trained) -> None:
    document, kept = trained.document("boosting"), trained.folder / "untracked" / "boosting.json"
    assert document["tracked"] is None
    assert f"it is kept in {kept}" in trained.said("boosting")
    assert "127.0.0.1:9" in trained.said("boosting")
    record = json.loads(kept.read_text(encoding="utf-8"))
    assert record["metrics"]["test_ap"] == document["ap"]
    assert record["parameters"]["model.trees"] == "40"


_TRACK = """
import json, pathlib, sys
from fraud.config import load_config
from pipelines.console import Screen
from pipelines.tracking import RunRecord, track
record = RunRecord(**json.loads(pathlib.Path(sys.argv[2]).read_text()))
config = load_config(sys.argv[1], [f"tracking.uri={sys.argv[4]}"])
print(track(record, pathlib.Path(sys.argv[3]), config, Screen(as_json=True)))
"""


def test_a_store_that_cannot_be_opened_costs_no_bundle(trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    bundle = copied(trained.folder / "boosting", tmp_path)
    record = trained.folder / "untracked" / "boosting.json"
    uri = f"sqlite:///{tmp_path}/file/mlflow.db"
    done = run_fraud(trained.config_file, record, bundle, uri, code=_TRACK)
    assert (done.returncode, done.stdout.strip()) == (0, "None"), done.stderr
    assert f"it is kept in {tmp_path}/untracked/boosting.json" in done.stderr
    assert (tmp_path / "untracked" / "boosting.json").read_bytes() == record.read_bytes()
