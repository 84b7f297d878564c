"""kill -9 in the middle of a command: nothing partial under a final name; resumed, the same bytes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pipelines.score
import pipelines.train
from fraud.bundle import load_bundle
from fraud.config import config_to_toml
from pipelines.simulate import simulate
from tests.commands import call_fraud, run_fraud
from tests.trained import Trained, trained_bundles

# A process that has loaded everything forks one command after another, so that a run takes the time of its work alone:
# one to its end, then for each point one that is killed there and one that goes on with --resume. Points are times
# drawn within the time that the whole run took, and moments just before and after a file or folder gets its name.
_DRIVER = """
import hashlib, json, os, random, signal, sys, time, traceback
from pathlib import Path

import onnx, pandas, pyarrow.compute, pyarrow.csv, pyarrow.parquet, safetensors.numpy, torch, torch._dynamo
import fraud.models.network, fraud.models.recurrent_graph, fraud.learning, fraud.logs, fraud.training
import sklearn.ensemble
import pipelines.backtest.run, pipelines.compare, pipelines.prepare, pipelines.score, pipelines.train
from pipelines.cli import main

arguments, root = json.loads(sys.argv[1]), Path(sys.argv[2])
fraud.logs.PARTITION_BYTES = int(sys.argv[3])
pipelines.train.track = lambda *_: None  # after the bundle stands; by far the slowest part of a small training
pipelines.compare.track = pipelines.compare.track_parent = lambda *_, **__: None
pipelines.compare.pictures = lambda *_: []  # most of the time of a small comparison
pipelines.backtest.run.backtest_pictures = lambda *_: []  # likewise
read_fit = pipelines.compare.read_fit
pipelines.compare.read_fit = lambda job: read_fit(job)._replace(fit_s=1.0)  # all else must be the same
seed, n_times, n_names = json.loads(sys.argv[4])


def count_names(folder, die_at, dies_after):
    named = 0
    for method in ("rename", "replace"):
        def counting(self, target, original=getattr(Path, method)):
            nonlocal named
            named += 1
            if named == die_at and not dies_after:
                os.kill(os.getpid(), signal.SIGKILL)
            result = original(self, target)
            if named == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            (folder.parent / "named").write_text(str(named))
            return result
        setattr(Path, method, counting)


def run(folder, *options, kill_after_s=None, die_at=None, dies_after=False):
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            log = os.open(folder.parent / "said", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            count_names(folder, die_at, dies_after)
            sys.argv = ["fraud", *(a.replace("OUT", str(folder)) for a in arguments), *options]
            main()
        except SystemExit as ended:
            code = ended.code or 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    if kill_after_s is not None:
        time.sleep(kill_after_s)
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), time.monotonic() - started


def contents(folder):
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in paths}


first = run(root / "warm" / "out")  # what happens once only (a store is made, code is loaded) is not to be timed
whole = run(root / "whole" / "out")
if first[0] or whole[0]:
    sys.exit((root / "warm" / "said").read_text() + (root / "whole" / "said").read_text())
n_named = int((root / "whole" / "named").read_text())
chance = random.Random(seed)
points = [{"kill_after_s": whole[1] * (k + chance.random()) / n_times} for k in range(n_times)]
for k in range(n_names):
    points.append({"die_at": n_named - k * (n_named // n_names), "dies_after": k % 2 == 1})
points.append({"die_at": n_named, "dies_after": True})
report = {"whole": contents(root / "whole" / "out"), "n_named": n_named, "points": []}
for k, point in enumerate(points):
    folder = root / str(k) / "out"
    killed, _ = run(folder, **point)
    after = contents(folder)
    resumed, _ = run(folder, "--resume")
    report["points"].append(
        {"point": point, "killed": killed, "after": after, "resumed": resumed, "end": contents(folder),
         "said": (folder.parent / "said").read_text()}
    )
report["whole_s"] = whole[1]
print(json.dumps(report))
"""


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return trained_bundles(tmp_path_factory)


def _driven(arguments: list[str], root: Path, *, partition_bytes: int, n_times: int, n_names: int) -> dict[str, Any]:
    done = run_fraud(json.dumps(arguments), root, str(partition_bytes), json.dumps([3, n_times, n_names]), code=_DRIVER)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _visible(contents: dict[str, str]) -> dict[str, str]:
    """Return the files under a final name: hidden ones are work in progress."""
    return {name: sha for name, sha in contents.items() if not name.startswith(".")}


def _check(report: dict[str, Any], *, at_least: int) -> None:
    """Check that what a killed run left under a final name was whole, and what its --resume left equals a whole run."""
    assert report["whole"]
    assert not [name for name in report["whole"] if name.startswith(".")]
    assert sum(point["killed"] == -9 for point in report["points"]) >= at_least
    for point in report["points"]:
        assert point["killed"] in (0, -9), point["said"]
        assert _visible(point["after"]) in ({}, report["whole"]), point["point"]
        # A run that was over when the kill came has nothing to resume, and its output stays as it is.
        was_over = point["after"] == report["whole"] and "no unfinished run is there to resume" in point["said"]
        assert point["resumed"] == (2 if was_over else 0), point["said"]
        assert point["end"] == report["whole"], point["point"]  # leftovers would be in it, hidden ones too


@pytest.mark.server
def test_scoring_killed_anywhere_and_resumed_gives_the_same_bytes(trained: Trained, tmp_path: Path) -> None:
    metadata = pq.read_metadata(trained.events)
    size = sum(metadata.row_group(g).total_byte_size for g in range(metadata.num_row_groups))
    arguments = ["score", str(trained.folder / "lstm"), str(trained.events), "-o", "OUT/scores.parquet", "--per-event"]
    report = _driven(arguments, tmp_path, partition_bytes=size // 6, n_times=8, n_names=6)
    assert report["n_named"] >= 6 + 1, "the log was one partition"
    assert report["whole"].keys() == {"scores.parquet"}
    _check(report, at_least=10)
    assert any(point["after"].keys() > {".scores.parquet.work/part-1.parquet"} for point in report["points"])


@pytest.mark.server
def test_training_killed_anywhere_and_resumed_gives_the_same_bytes(trained: Trained, tmp_path: Path) -> None:
    # Small, so that it is run two dozen times in a few seconds.
    simulate(tmp_path / "log", users=80, days=40, seed=3, fraud_rate=0.1)
    config = tmp_path / "log" / "config.toml"
    config.write_text(config_to_toml(trained.config), encoding="utf-8")
    arguments = ["train", str(config), "-o", "OUT/bundle", "--set", "training.epochs=5"]
    report = _driven(arguments, tmp_path, partition_bytes=2**29, n_times=8, n_names=6)
    assert {name.partition("/")[0] for name in report["whole"]} == {"bundle"}
    _check(report, at_least=10)
    assert any(".bundle.work/lstm.checkpoint" in point["after"] for point in report["points"])
    load_bundle(tmp_path / "whole" / "out" / "bundle")


@pytest.mark.server
@pytest.mark.slow
def test_a_comparison_killed_anywhere_and_resumed_gives_the_same_bytes(trained: Trained, tmp_path: Path) -> None:
    simulate(tmp_path / "log", users=80, days=40, seed=3, fraud_rate=0.1)
    config = tmp_path / "log" / "config.toml"
    config.write_text(config_to_toml(trained.config), encoding="utf-8")
    arguments = ["compare", str(config), "-o", "OUT/comparison", "--models", "boosting", "--ablate"]
    arguments += ["--jobs", "1", "--set", "model.trees=10"]
    report = _driven(arguments, tmp_path, partition_bytes=2**29, n_times=4, n_names=4)
    assert {"comparison/comparison.json", "comparison/bundles/boosting/manifest.json"} <= report["whole"].keys()
    _check(report, at_least=5)
    assert any(".comparison.work/fits/boosting-0/fit/fit.json" in point["after"] for point in report["points"])


@pytest.mark.server
def test_a_backtest_killed_anywhere_and_resumed_gives_the_same_bytes(tmp_path: Path) -> None:
    simulate(tmp_path / "log", users=100, days=75, seed=3, fraud_rate=0.1)
    arguments = ["backtest", str(tmp_path / "log" / "config.toml"), "-o", "OUT/backtest", "--rules", "never,weekly"]
    arguments += ["--from", "2025-03-03T00:00:00Z", "--to", "2025-03-17T00:00:00Z"]
    arguments += ["--set", "model.name=boosting", "--set", "model.trees=10", "--set", "retrain.positives=10"]
    report = _driven(arguments, tmp_path, partition_bytes=2**29, n_times=5, n_names=4)
    assert {"backtest/backtest.json", "backtest/steps/2025-03-10T000000Z.parquet"} <= report["whole"].keys()
    assert any(name.startswith("backtest/challengers/2025-03-10T000000Z/") for name in report["whole"])
    _check(report, at_least=6)
    one_step, no_step = ".backtest.work/steps/2025-03-03T000000Z.parquet", ".backtest.work/run.json"
    assert any(one_step in point["after"] for point in report["points"])
    assert any(no_step in point["after"] and one_step not in point["after"] for point in report["points"])


def _stopped(monkeypatch: pytest.MonkeyPatch, where: object, name: str, *command: str | Path) -> None:
    """Run a command until it calls `name`, where the disk is full."""

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "disk")

    with monkeypatch.context() as patch:
        patch.setattr(where, name, full)
        ended = call_fraud(*command)
    assert (ended.exit_code, ended.stderr.splitlines()[-1]) == (1, "error: disk: No space left on device")


def test_a_resumed_score_takes_up_what_was_scored(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("score", trained.folder / "lstm", trained.events, "-o", tmp_path / "scores.parquet")
    _stopped(monkeypatch, pipelines.score, "_join", *command)
    assert {path.name for path in tmp_path.iterdir()} == {".scores.parquet.work"}

    def never(*_: object) -> None:
        raise AssertionError("scored again")

    monkeypatch.setattr(pipelines.score, "scored_chunks", never)
    assert call_fraud(*command, "--resume").exit_code == 0
    assert {path.name for path in tmp_path.iterdir()} == {"scores.parquet"}


def test_a_resumed_score_takes_up_nothing_of_another_run(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other labels know other frauds of an entity, other bundles score otherwise: their parts must not mix."""
    table = pq.read_table(trained.log / "labels.parquet")
    pq.write_table(table.append_column("never", pa.repeat(0, len(table))), tmp_path / "labels.parquet")
    out, fresh = tmp_path / "scores.parquet", tmp_path / "fresh.parquet"
    inputs = (trained.events, "-o", out)
    command = ("score", trained.folder / "lstm", *inputs, "--config", trained.config_file)
    command = (*command, "--set", f'labels.path="{tmp_path}/labels.parquet"', "--set")
    assert call_fraud(*command, "labels.column=never").exit_code == 0
    shutil.move(out, fresh)
    others: tuple[tuple[str | Path, ...], ...] = (
        (*command, "labels.column=fraud"),
        ("score", trained.folder / "lstm", *inputs),
        ("score", trained.folder / "boosting", *inputs),
        (*command, "labels.column=never", "--per-event"),
    )
    for other in others:
        _stopped(monkeypatch, pipelines.score, "_join", *other)
        assert call_fraud(*command, "labels.column=never", "--resume").exit_code == 0
        assert out.read_bytes() == fresh.read_bytes()
        out.unlink()
    assert call_fraud(*others[0]).exit_code == 0
    assert out.read_bytes() != fresh.read_bytes(), "these labels make no difference, so nothing was shown"


def test_a_resumed_training_prepares_and_fits_nothing_again(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipelines.train, "track", lambda *_: None)
    command = ("train", trained.config_file, "-o", tmp_path / "bundle", "--set", "training.epochs=1")
    _stopped(monkeypatch, pipelines.train, "publish", *command)
    assert {path.name for path in tmp_path.iterdir()} == {".bundle.work"}

    def never(*_: object, **__: object) -> None:
        raise AssertionError("done again")

    for name in ("prepare", "_write_checkpoint"):
        monkeypatch.setattr(pipelines.train, name, never)
    ended = call_fraud(*command, "--resume")
    assert ended.exit_code == 0
    assert "taking up the prepared set" in ended.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"bundle"}


def test_a_training_killed_while_it_cleans_up_can_be_resumed(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bug that happened: half of the prepared set was gone, and what said that it was whole was not."""
    monkeypatch.setattr(pipelines.train, "track", lambda *_: None)
    command = ("train", trained.config_file, "-o", tmp_path / "bundle", "--set", "model.name=boosting")
    remove = shutil.rmtree

    def killed_half_way(path: Path, **options: bool) -> None:
        if (path / "prepared").exists():
            (path / "prepared" / "vocabulary.json").unlink()
            raise KeyboardInterrupt
        remove(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed_half_way)
        assert call_fraud(*command).exit_code == 1
    assert (tmp_path / ".bundle.work").exists()
    assert call_fraud(*command, "--resume").exit_code == 0
    assert {path.name for path in tmp_path.iterdir()} == {"bundle"}


def test_a_mistake_while_resuming_costs_no_checkpoint(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("train", trained.config_file, "-o", tmp_path / "bundle", "--set", "model.name=boosting")
    _stopped(monkeypatch, pipelines.train, "publish", *command)
    assert call_fraud(*command, "--resume", "--set", "model.name=bosting").exit_code == 2
    assert (tmp_path / ".bundle.work" / "log.json").exists()
