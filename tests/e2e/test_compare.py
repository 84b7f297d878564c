"""`fraud compare` as a user meets it: what it prints, writes and tracks; killed, interrupted, refused."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

import pipelines.compare
from fraud.bundle import load_bundle
from tests.commands import ROOT, Ended, call_fraud, contents, leftovers, refused, run_fraud
from tests.trained import Trained, trained_bundles

NAMES = ("boosting", "average", "fused")
FAST = ("--set", "training.epochs=2", "--set", "model.trees=10")
FIGURES = {
    "ap", "ap_ci", "auc", "auc_ci", "recall_at_budget", "precision_at_budget", "alert_rate", "recall_at_threshold",
    "money_saved", "ece", "mean_score_over_base_rate", "fit_s", "n_test", "n_positive", "detection_delay",
}  # fmt: skip


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return trained_bundles(tmp_path_factory)


def _arguments(trained: Trained, out: Path, *options: str, models: str) -> tuple[str | Path, ...]:
    tracking = ("--set", f"tracking.uri=sqlite:///{out.parent}/mlflow.db")
    return ("compare", trained.config_file, "-o", out, "--models", models, *FAST, *tracking, *options)


def _compare(trained: Trained, out: Path, *options: str, models: str = ",".join(NAMES)) -> Ended:
    return call_fraud(*_arguments(trained, out, *options, models=models))


@pytest.fixture(scope="session")
def compared(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Return the folder of a comparison and what it printed, in a process of its own: the tracker warns of much."""
    out = tmp_path_factory.mktemp("compare") / "out"
    done = run_fraud(*_arguments(trained, out, "--jobs", "1", "--json", models=",".join(NAMES)))
    assert done.returncode == 0, done.stderr
    return out, json.loads(done.stdout)


def _untimed(document: dict[str, Any]) -> dict[str, Any]:
    """Return a comparison without what depends on the machine's speed."""
    return document | {"models": {n: one | {"fit_s": None} for n, one in document["models"].items()}}


def test_the_document_holds_what_is_promised_and_the_folder_what_it_names(
    compared: tuple[Path, dict[str, Any]], trained: Trained
) -> None:
    out, document = compared
    assert list(document["models"]) == list(NAMES)
    for one in document["models"].values():
        assert one.keys() >= FIGURES
        assert one["ap_ci"][0] <= one["ap"] <= one["ap_ci"][1]
    assert set(document["paired"]) == {"boosting|average", "boosting|fused", "average|fused"}
    assert document["picked"] == max(NAMES, key=lambda name: document["models"][name]["choice_ap"])
    written = json.loads((out / "comparison.json").read_text(encoding="utf-8"))
    assert {name: document[name] for name in written} == written
    for name in NAMES:
        bundle = load_bundle(out / document["bundles"][name])
        assert bundle.manifest.name == name
        assert bundle.metrics["test"]["ap"] == document["models"][name]["ap"]
    ended = call_fraud("evaluate", out / "bundles" / "fused", trained.config_file, "--json")
    assert ended.document["ap"] == pytest.approx(document["models"]["fused"]["ap"], abs=1e-6)
    assert {path.name for path in (out / "pictures").iterdir()} == {
        "precision_recall.png", "calibration.png", "differences.png",
    }  # fmt: skip
    assert (out / "comparison.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert not [name for name in leftovers(out.parent) if name != "mlflow.db"]


def test_the_tracker_has_a_parent_with_table_and_pictures_and_a_child_for_each_scorer(
    compared: tuple[Path, dict[str, Any]],
) -> None:
    out, document = compared
    tracked = document["tracked"]
    with sqlite3.connect(f"file:{out.parent / 'mlflow.db'}?mode=ro", uri=True) as store:
        tags = store.execute("select run_uuid, value from tags where key = 'mlflow.parentRunId'").fetchall()
        metrics = dict(
            store.execute("select key, value from metrics where run_uuid = ?", [tracked["comparison"]]).fetchall()
        )
    assert dict(tags) == {tracked[name]: tracked["comparison"] for name in NAMES}
    assert metrics["fused_test_ap"] == document["models"]["fused"]["ap"]
    (artifacts,) = (out.parent / "mlartifacts").glob(f"**/{tracked['comparison']}/artifacts")
    assert {path.name for path in artifacts.iterdir()} == {
        "config.toml", "comparison.json", "comparison.html", "precision_recall.png", "calibration.png",
        "differences.png",
    }  # fmt: skip


@pytest.fixture
def untracked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the tracker, by far the slowest part of a small comparison; it comes after the folder stands."""
    for name in ("track", "track_parent"):
        monkeypatch.setattr(pipelines.compare, name, lambda *_, **__: None)


@pytest.mark.usefixtures("untracked")
def test_a_table_and_the_verdict_are_printed_for_people(trained: Trained, tmp_path: Path) -> None:
    ended = _compare(trained, tmp_path / "out", "--jobs", "1", models="boosting,average")
    assert ended.exit_code == 0, ended.stderr
    assert "boosting *" in ended.stdout or "average *" in ended.stdout
    assert "validation picks" in ended.stdout
    assert "better than" in ended.stdout or "do not differ" in ended.stdout
    assert "is fitted: 2 of 2" in ended.stderr
    assert str(tmp_path / "out" / "comparison.html") in ended.stderr


@pytest.mark.usefixtures("untracked")
def test_processes_side_by_side_give_what_one_gives(
    trained: Trained, compared: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    ended = _compare(trained, tmp_path / "out", "--jobs", "2")
    assert ended.exit_code == 0, ended.stderr
    text = (tmp_path / "out" / "comparison.json").read_text(encoding="utf-8")
    expected = json.loads((compared[0] / "comparison.json").read_text(encoding="utf-8"))
    assert _untimed(json.loads(text)) == _untimed(expected)
    for name in ("comparison.html", "pictures"):
        assert (tmp_path / "out" / name).exists()


@pytest.mark.usefixtures("untracked")
def test_order_and_time_are_weighed_and_what_is_done_is_not_done_again(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--jobs", "1", "--ablate", "--seeds", "2")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "disk")

    with monkeypatch.context() as patch:
        patch.setattr(pipelines.compare, "write_contest", full)
        assert _compare(trained, tmp_path / "out", *options, models="boosting,average,fused").exit_code == 1
    assert ".out.work" in leftovers(tmp_path)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("done again")

    for where, name in ((pipelines.compare, "histories"), (pipelines.jobs, "fit_resumed")):
        monkeypatch.setattr(where, name, never)
    ended = _compare(trained, tmp_path / "out", *options, "--resume", "--json")
    assert ended.exit_code == 0, ended.stderr
    assert ended.document["seeds"] == 2
    assert set(ended.document["ablation"]) == set(NAMES)
    for worth in ended.document["ablation"].values():
        assert worth.keys() == {"intact", "order", "time"}
        assert worth["order"].keys() >= {"ap", "ap_diff", "ci"}
    assert (tmp_path / "out" / "pictures" / "ablation.png").exists()
    assert not leftovers(tmp_path)


_COMMAND = "import pipelines.compare as c\nc.track = c.track_parent = lambda *_, **__: None\n"
_COMMAND += "from pipelines.cli import main\nif __name__ == '__main__':\n    main()"


def _begin(trained: Trained, out: Path) -> subprocess.Popen[str]:
    """Return a comparison of networks in processes of their own that has just saved its first checkpoint."""
    arguments = ["compare", str(trained.config_file), "-o", str(out), "--models", "average,lstm", "--jobs", "2"]
    arguments += ["--set", "training.epochs=6", "--set", "model.trees=10"]
    arguments += ["--set", f"tracking.uri=sqlite:///{out.parent}/mlflow.db"]
    return subprocess.Popen(
        [sys.executable, "-c", _COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, start_new_session=True,
    )  # fmt: skip


def _wait_for(found: Any, begun: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not found():
        assert time.monotonic() < deadline
        assert begun.poll() is None, begun.communicate()
        time.sleep(0.02)


def _end(begun: subprocess.Popen[str], out: Path, sent: signal.Signals) -> str:
    """Return what a comparison said that was ended in the middle; neither it nor its processes go on."""
    fits = out.with_name(f".{out.name}.work") / "fits"
    _wait_for(lambda: list(fits.glob("*/*.checkpoint")), begun)
    children = psutil.Process(begun.pid).children(recursive=True)
    assert len(children) >= 2
    os.kill(begun.pid, sent)
    _, said = begun.communicate(timeout=60)
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive
    assert not out.exists()
    return said


@pytest.mark.usefixtures("untracked")
def test_a_killed_run_leaves_no_process_behind_and_resumed_gives_the_same(trained: Trained, tmp_path: Path) -> None:
    begun = _begin(trained, tmp_path / "out")
    _end(begun, tmp_path / "out", signal.SIGKILL)
    assert begun.returncode == -signal.SIGKILL
    options = ("--jobs", "1", "--set", "training.epochs=6")
    resumed = _compare(trained, tmp_path / "out", *options, "--resume", models="average,lstm")
    assert resumed.exit_code == 0, resumed.stderr
    assert "taking up the prepared set" in resumed.stderr
    assert _compare(trained, tmp_path / "whole", *options, models="average,lstm").exit_code == 0
    folders = (tmp_path / "out", tmp_path / "whole")
    documents = [json.loads((folder / "comparison.json").read_text(encoding="utf-8")) for folder in folders]
    assert _untimed(documents[0]) == _untimed(documents[1])
    assert contents(tmp_path / "out" / "bundles") == contents(tmp_path / "whole" / "bundles")
    assert not leftovers(tmp_path)


def test_ctrl_c_stops_every_process_and_says_so(trained: Trained, tmp_path: Path) -> None:
    begun = _begin(trained, tmp_path / "out")
    said = _end(begun, tmp_path / "out", signal.SIGINT)
    assert begun.returncode == 1
    assert said.splitlines()[-1] == "interrupted"
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("options", "models", "says"),
    [
        ((), "lstmm,boosting", ("lstmm", "known here: average, boosting, fused")),
        ((), "fused,lstm", ("a fused scorer stacks two or more other scorers",)),
        (("--set", 'model.members=["lstm", "nobody"]'), "fused", ("nobody", "known here")),
        ((), "lstm,lstm", ("'lstm' stands twice",)),
        (("--seeds", "0"), "lstm", ("--seeds 0", "1 or more")),
        (("--set", "labels.delay=300d"), "boosting", ("holds no known fraud",)),
        (("--set", 'log.events="none.parquet"'), "boosting", ("none.parquet",)),
        (("--set", "policy.alert_budget=0.0001"), "boosting", ("policy.block_budget",)),
    ],
)
def test_what_cannot_be_compared_is_refused_and_leaves_nothing(
    trained: Trained, tmp_path: Path, options: tuple[str, ...], models: str, says: tuple[str, ...]
) -> None:
    refused(_compare(trained, tmp_path / "out", "--jobs", "1", *options, models=models), *says)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_fit_that_fails_names_its_scorer(trained: Trained, tmp_path: Path, jobs: str) -> None:
    options = ("--jobs", jobs, "--set", "training.learning_rate=1", "--set", "training.weight_decay=1")
    ended = _compare(trained, tmp_path / "out", *options, "--set", "training.device=cuda", models="average,boosting")
    refused(ended, "average: training.device")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("untracked")
def test_a_budget_under_one_alert_is_a_limit_that_is_said(trained: Trained, tmp_path: Path) -> None:
    budget = ("--set", "policy.alert_budget=0.0001", "--set", "policy.block_budget=0.0")
    ended = _compare(trained, tmp_path / "out", "--jobs", "1", "--json", *budget, models="boosting")
    assert ended.exit_code == 0, ended.stderr
    (limit,) = ended.document["limits"]
    assert "is under one alert" in limit
    assert limit in ended.stderr.replace("\n", " ")
    assert ended.document["models"]["boosting"]["precision_at_budget"] is None


def test_an_output_that_exists_is_refused_unless_it_may_be_replaced(
    trained: Trained, compared: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    refused(_compare(trained, compared[0], "--jobs", "1"), "exists", "--overwrite")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years", encoding="utf-8")
    refused(_compare(trained, tmp_path / "home", "--overwrite"), "no output of this command")
