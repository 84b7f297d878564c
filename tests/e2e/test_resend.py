"""`fraud track --resend`: a run that was kept is told whole and once, whatever was killed; the others say why not."""

from __future__ import annotations

import json
import shutil
import socket
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import pytest

from fraud.config import load_config
from fraud.errors import ConfigError
from pipelines.console import Screen
from pipelines.records import RunRecord, held, read_untold
from pipelines.resend import resend
from pipelines.tracking import RECORD_TAG, track, track_parent
from tests.commands import call_fraud, contents, refused, run_fraud
from tests.trained import Trained, trained_bundles

_SCREEN = Screen(as_json=True)
_READY = 2  # LoggedModelStatus of MLflow


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return trained_bundles(tmp_path_factory)


@pytest.fixture
def kept(trained: Trained, tmp_path: Path) -> Path:
    """Return a record that a training kept, in a copy of its folder: it and its bundle are not where they were."""
    shutil.copytree(trained.folder / "boosting", tmp_path / "moved" / "boosting")
    shutil.copytree(trained.folder / "untracked", tmp_path / "moved" / "untracked")
    return tmp_path / "moved" / "untracked" / "boosting.json"


@pytest.fixture
def store(trained: Trained, tmp_path: Path) -> Path:
    """Return a SQLite store with MLflow's tables, which take seconds to make, and no experiment of ours."""
    path = tmp_path / "store" / "mlflow.db"
    path.parent.mkdir()
    shutil.copy(trained.log / "mlflow.db", path)
    with closing(sqlite3.connect(path)) as opened, opened:
        opened.execute("update experiments set name = 'of the trained bundles' where name = 'fraud'")
        opened.execute("delete from tags")
    return path


def _rows(store: Path, query: str) -> list[tuple[Any, ...]]:  # Any: cells of SQL
    with closing(sqlite3.connect(f"file:{store}?mode=ro", uri=True)) as opened:
        return opened.execute(query).fetchall()


def _runs(store: Path, record_id: str) -> list[str]:
    """Return the ids of the runs of a record, without those that were deleted."""
    return [
        run_id
        for (run_id,) in _rows(
            store,
            "select run_uuid from tags join runs using (run_uuid)"
            f" where key = '{RECORD_TAG}' and tags.value = '{record_id}' and lifecycle_stage = 'active'",
        )
    ]


def _record(**changes: Any) -> RunRecord:  # Any: fields of a record
    plain = RunRecord(
        name="lstm",
        parameters={"model.width": "16"},
        history=[{"held_out_loss": 0.5}, {"held_out_loss": 0.25}],
        metrics={"test_ap": 0.25},
        tags={"model": "lstm"},
        fit_s=1.5,
    )
    return replace(plain, **changes)


def test_a_kept_run_is_told_with_its_figures_its_model_and_its_times(kept: Path, store: Path) -> None:
    run, beside = read_untold(kept), contents(kept.parent.parent / "boosting")
    document = resend(kept.parent.parent, tracking_uri=f"sqlite:///{store}", screen=_SCREEN)
    ((run_id,),) = _rows(store, "select run_uuid from runs where name = 'boosting' and lifecycle_stage = 'active'")
    assert document == {"sent": [{"record": str(kept), "run_id": run_id}], "kept": []}
    assert not kept.parent.exists()
    ((status, start_ms, end_ms),) = _rows(
        store, f"select status, start_time, end_time from runs where run_uuid = '{run_id}'"
    )
    assert (status, end_ms, end_ms - start_ms) == ("FINISHED", run.ended_ms, int(run.record.fit_s * 1000))
    metrics = dict(_rows(store, f"select key, value from metrics where run_uuid = '{run_id}'"))
    assert metrics == {**run.record.metrics, "fit_s": run.record.fit_s}
    assert dict(_rows(store, f"select key, value from params where run_uuid = '{run_id}'")) == run.record.parameters
    ((model_status, location),) = _rows(
        store, f"select status, artifact_location from logged_models where source_run_id = '{run_id}'"
    )
    assert model_status == _READY
    assert contents(Path(unquote(urlparse(location).path)) / "bundle") == beside


def test_a_run_is_told_once(kept: Path, store: Path, tmp_path: Path) -> None:
    shutil.copy(kept, tmp_path)
    record_id = read_untold(kept).record.id
    first = resend(kept.parent, tracking_uri=f"sqlite:///{store}", screen=_SCREEN)
    assert resend(tmp_path, tracking_uri=f"sqlite:///{store}", screen=_SCREEN) == {"sent": [], "kept": []}
    kept.parent.mkdir()
    shutil.copy(tmp_path / kept.name, kept)  # as where it was told, and killed before the file was removed
    again = resend(kept.parent, tracking_uri=f"sqlite:///{store}", screen=_SCREEN)
    assert again == first
    assert _runs(store, record_id) == [first["sent"][0]["run_id"]]


# Everything is loaded once; then for each call that changes something there, one telling that is killed right after it
# (what is killed before one is killed after the one before it), and one more that goes on.
_DRIVER = """
import json, os, shutil, signal, sys
from pathlib import Path

import mlflow.pyfunc
from mlflow import MlflowClient
from pipelines.console import Screen
from pipelines.resend import resend

CALLS = ("create_experiment", "create_run", "create_logged_model", "log_outputs", "log_model_artifacts",
         "finalize_logged_model", "log_batch", "log_artifact", "set_terminated")
bundles, store, root = map(Path, sys.argv[1:])
called = []


def dying(original, name, die_after):
    def call(*args, **settings):
        result = original(*args, **settings)
        called.append(name)
        if len(called) == die_after:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return call


def run(folder, die_after=None):
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    try:
        for name in CALLS:
            setattr(MlflowClient, name, dying(getattr(MlflowClient, name), name, die_after))
        document = resend(folder / "moved", tracking_uri=f"sqlite:///{folder}/mlflow.db", screen=Screen(as_json=True))
        (folder / "called").write_text(json.dumps(called))
        os._exit(len(document["kept"]))
    finally:
        os._exit(70)


def fresh(name):
    folder = root / name
    shutil.copytree(bundles, folder / "moved")
    shutil.copy(store, folder / "mlflow.db")
    return folder


whole = fresh("whole")
points = [["whole", -9, run(whole)]]
for nth in range(1, len(json.loads((whole / "called").read_text())) + 1):
    folder = fresh(str(nth))
    points.append([folder.name, run(folder, nth), run(folder)])
print(json.dumps(points))
"""


@pytest.mark.server
@pytest.mark.timeout(900)
@pytest.mark.slow
def test_a_telling_that_is_killed_anywhere_is_gone_on_with(kept: Path, store: Path, tmp_path: Path) -> None:
    record_id = read_untold(kept).record.id
    done = run_fraud(kept.parent.parent, store, tmp_path / "points", code=_DRIVER)
    assert done.returncode == 0, done.stderr
    points = json.loads(done.stdout)
    called = json.loads((tmp_path / "points" / "whole" / "called").read_text(encoding="utf-8"))
    assert called == [
        "create_experiment", "create_run", "create_logged_model", "log_outputs", "log_model_artifacts",
        "log_model_artifacts", "finalize_logged_model", "log_batch", "log_artifact", "set_terminated",
    ]  # fmt: skip
    assert len(points) == 1 + len(called)

    def left(name: str) -> dict[str, Any]:  # Any: cells of SQL
        folder = tmp_path / "points" / name
        (run_id,) = _runs(folder / "mlflow.db", record_id)  # one
        of_run = f"where run_uuid = '{run_id}'"
        return {
            "run": _rows(folder / "mlflow.db", f"select name, status, start_time, end_time from runs {of_run}"),
            "metrics": sorted(_rows(folder / "mlflow.db", f"select key, value, timestamp, step from metrics {of_run}")),
            "parameters": sorted(_rows(folder / "mlflow.db", f"select key, value from params {of_run}")),
            "models": _rows(
                folder / "mlflow.db", f"select name, status from logged_models where source_run_id = '{run_id}'"
            ),
            "of models": len(
                _rows(folder / "mlflow.db", f"select * from logged_model_metrics where run_id = '{run_id}'")
            ),
            "outputs": len(_rows(folder / "mlflow.db", f"select * from inputs where source_id = '{run_id}'")),
            "files": sorted(name.rpartition("/artifacts/")[2] for name in contents(folder / "mlartifacts")),
            "kept": (folder / "moved" / "untracked").exists(),
        }

    whole = left("whole")
    assert whole["models"] == [("model", _READY)]
    assert (whole["outputs"], whole["kept"]) == (1, False)
    for name, killed, ended in points:
        assert (killed, ended) == (-9, 0), name
        assert left(name) == whole, name


def test_a_child_waits_for_its_parent_and_stands_below_it(trained: Trained, store: Path, tmp_path: Path) -> None:
    config = load_config(trained.config_file, ["tracking.uri=http://127.0.0.1:9"])
    bundle = Path(shutil.copytree(trained.folder / "boosting", tmp_path / "out" / "boosting"))
    report = tmp_path / "out" / "report.json"
    report.write_text("{}", encoding="utf-8")
    parent = _record(name="all of them")
    assert track_parent(parent, [report], config, _SCREEN, keep_as=tmp_path / "out" / "zz") is None
    assert track(_record(parent=parent.id), bundle, config, _SCREEN) is None
    untracked = tmp_path / "out" / "untracked"
    (untracked / "zz.json").rename(tmp_path / "zz.json")
    uri = f"sqlite:///{store}"
    (waits,) = resend(tmp_path, tracking_uri=uri, screen=_SCREEN)["kept"]
    assert "stands below one that the tracker does not have" in waits["reason"]
    (tmp_path / "zz.json").rename(untracked / "zz.json")
    told = {
        Path(one["record"]).stem: one["run_id"] for one in resend(tmp_path, tracking_uri=uri, screen=_SCREEN)["sent"]
    }
    tags = _rows(store, "select run_uuid, value from tags where key = 'mlflow.parentRunId'")
    assert tags == [(told["boosting"], told["zz"])]
    assert {path.rpartition("/")[2] for path in contents(store.parent / "mlartifacts") if told["zz"] in path} == {
        "report.json", "config.toml",
    }  # fmt: skip


def _another_bundle(kept: Path, trained: Trained) -> None:
    shutil.rmtree(kept.parent.parent / "boosting")
    shutil.copytree(trained.folder / "lstm", kept.parent.parent / "boosting")


def _no_bundle(kept: Path, trained: Trained) -> None:
    shutil.rmtree(kept.parent.parent / "boosting")


def _of_another_version(kept: Path, trained: Trained) -> None:
    record = json.loads(kept.read_text(encoding="utf-8"))["record"]
    kept.write_text(json.dumps({name: record[name] for name in record if name not in ("id", "parent")}))


def _cut(kept: Path, trained: Trained) -> None:
    kept.write_bytes(kept.read_bytes()[:100])


def _of_another_type(kept: Path, trained: Trained) -> None:
    kept.write_text(json.dumps({**json.loads(kept.read_text(encoding="utf-8")), "ended_ms": "noon"}))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_another_bundle, "; found version "),
        (_no_bundle, "which is gone; put it back, or remove the record"),
        (
            _of_another_version,
            "no record, ended_ms, uri, experiment, config, bundle, bundle_version, files",
        ),
        (_cut, "cannot be read (Unterminated string"),
        (_of_another_type, "ended_ms: Input should be a valid integer"),
    ],
)
def test_what_cannot_be_told_stays_and_says_why(
    kept: Path, store: Path, trained: Trained, damage: Any, says: str
) -> None:
    damage(kept, trained)
    before = kept.read_bytes()
    document = resend(kept.parent, tracking_uri=f"sqlite:///{store}", screen=_SCREEN)
    ((one,), sent) = document["kept"], document["sent"]
    assert (one["record"], sent) == (str(kept), [])
    assert says in one["reason"]
    assert kept.read_bytes() == before


def test_a_run_that_a_command_is_telling_is_left_to_it(kept: Path, store: Path) -> None:
    with held(kept) as is_held:
        assert is_held
        document = resend(kept.parent, tracking_uri=f"sqlite:///{store}", screen=_SCREEN)
    assert document["kept"] == [{"record": str(kept), "reason": "a command is telling it just now"}]
    assert len(resend(kept.parent, tracking_uri=f"sqlite:///{store}", screen=_SCREEN)["sent"]) == 1


@contextmanager
def _closing_door() -> Iterator[tuple[str, list[int]]]:
    """Yield the URL of a port that closes each connection, and a list that gets an entry for each."""
    met = list[int]()
    with socket.create_server(("127.0.0.1", 0)) as door:

        def close_each() -> None:
            while True:
                try:
                    guest, _ = door.accept()
                except OSError:
                    return
                met.append(1)
                guest.close()

        thread = threading.Thread(target=close_each)
        thread.start()
        try:
            yield f"http://127.0.0.1:{door.getsockname()[1]}", met
        finally:
            door.shutdown(socket.SHUT_RDWR)
            thread.join()


def test_a_tracker_that_is_away_is_asked_once_for_all_runs(kept: Path) -> None:
    for nth in range(2, 5):
        shutil.copy(kept, kept.with_name(f"boosting-{nth}.json"))
    with _closing_door() as (url, met):
        document = resend(kept.parent, tracking_uri=url, screen=_SCREEN)
    assert len(document["kept"]) == 4
    assert all(url in one["reason"] for one in document["kept"])
    assert len(met) == 1


def test_the_same_run_is_kept_once_and_another_one_beside_it(trained: Trained, tmp_path: Path) -> None:
    config = load_config(trained.config_file, ["tracking.uri=http://127.0.0.1:9"])

    def keep(record: RunRecord) -> list[str]:
        assert track_parent(record, [], config, _SCREEN, keep_as=tmp_path / "tuned") is None
        return sorted(path.name for path in (tmp_path / "untracked").iterdir())

    first, again, other = _record(), _record(fit_s=9.0), _record(metrics={"test_ap": 0.5})
    assert len({first.id, again.id, other.id}) == 3
    assert keep(first) == ["tuned.json"]
    assert keep(again) == ["tuned.json"]  # the command was killed, and did its work again
    run = read_untold(tmp_path / "untracked" / "tuned.json")
    assert (run.record.id, run.earlier_ids, run.record.fit_s) == (again.id, (first.id,), first.fit_s)
    assert keep(other) == ["tuned-2.json", "tuned.json"]


def test_a_command_that_gives_its_record_the_same_id_finds_its_run_again(
    trained: Trained, store: Path, tmp_path: Path
) -> None:
    config, record = load_config(trained.config_file, [f"tracking.uri=sqlite:///{store}"]), _record(id="retrain-1")
    away = load_config(trained.config_file, ["tracking.uri=http://127.0.0.1:9"])
    assert [track_parent(record, [], away, _SCREEN, keep_as=tmp_path / "verdict") for _ in range(2)] == [None, None]
    run_id = track_parent(record, [], config, _SCREEN, keep_as=tmp_path / "verdict")
    assert run_id is not None
    assert track_parent(replace(record, fit_s=9.0), [], config, _SCREEN, keep_as=tmp_path / "verdict") == run_id
    document = resend(tmp_path, tracking_uri=f"sqlite:///{store}", screen=_SCREEN)
    assert [one["run_id"] for one in document["sent"]] == [run_id]
    assert _runs(store, "retrain-1") == [run_id]


def test_the_command_ends_with_1_while_a_run_is_kept(kept: Path, store: Path) -> None:
    refused(call_fraud("track", kept.parent), "expected --resend")
    away = call_fraud("track", "--resend", kept.parent, "--json")
    assert (away.exit_code, away.document["sent"]) == (1, [])
    assert f"{kept} is still kept: the tracker at http://127.0.0.1:9 did not" in away.stderr
    there = call_fraud("track", "--resend", kept.parent, "--tracking-uri", f"sqlite:///{store}", "--json")
    assert (there.exit_code, there.document["kept"]) == (0, [])
    nothing = call_fraud("track", "--resend", kept.parent.parent)
    assert (nothing.exit_code, nothing.stdout) == (0, "")
    assert "no run is kept in or below it" in nothing.stderr


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        resend(tmp_path / "nowhere", tracking_uri=None, screen=_SCREEN)
    assert resend(tmp_path, tracking_uri=None, screen=_SCREEN) == {"sent": [], "kept": []}
