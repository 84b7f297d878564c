"""kill -9 at random points of `fraud retrain`: the champion is one whole bundle all along, a second call finishes.

A process that has loaded everything forks one retraining after another, each in the same folder as it was with its
first champion: one to its end, then for each point one that is killed there and one that goes on.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from fraud.config import config_to_toml, load_config
from pipelines.simulate import simulate
from tests.commands import call_fraud, run_fraud
from tests.trained import Trained, trained_bundles

_DRIVER = """
import json, os, random, shutil, signal, sys, time, traceback
from pathlib import Path

import onnx, pandas, pyarrow.parquet, sklearn.ensemble, mlflow, sqlalchemy, alembic, matplotlib.figure
import mlflow.store.tracking.sqlalchemy_store, mlflow.pyfunc
import fraud.learning, pipelines.retrain
from fraud.bundle import load_bundle
from fraud.config import load_config
from pipelines.cli import main
from pipelines.registry import open_registry
from pipelines.tracking import tracking_uri

world, kept, seed, n_points = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
config = world / "retrain.toml"


def forked(work, kill_after_s=None):
    started = time.monotonic()
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            code = work() or 0
        except SystemExit as ended:
            code = ended.code or 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    if kill_after_s is not None:
        time.sleep(kill_after_s)
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), time.monotonic() - started


def retrain():
    out = os.open(world / "out.json", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(os.open(world / "said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    sys.argv = ["fraud", "retrain", str(config), "--promote-if", "ap >= 0", "--json"]
    main()


def look():
    # The registry as anybody finds it: who is champion, and is his bundle whole?
    read = load_config(config)
    registry = open_registry(tracking_uri(read), read.tracking.model_name)
    champion, runs = registry.champion(), []
    experiment = registry.client.get_experiment_by_name(read.tracking.experiment)
    for run in registry.client.search_runs([experiment.experiment_id]):
        runs.append([run.data.tags["mlflow.runName"], run.info.status])
    shutil.rmtree(world / "fetched", ignore_errors=True)
    bundle = load_bundle(registry.fetch(champion, world / "fetched"))
    found = {"champion": champion.number, "bundle": bundle.version, "runs": sorted(runs)}
    found |= {"versions": len(registry.versions()), "pending": registry.pending() is not None}
    found |= {"folders": sorted(p.name for p in world.iterdir() if p.name.startswith("."))}
    (world / "look.json").write_text(json.dumps(found))


def looked():
    code, _ = forked(look)
    return json.loads((world / "look.json").read_text()) if code == 0 else {"failed": code}


def back():
    shutil.rmtree(world)
    shutil.copytree(kept, world, symlinks=True)


report = {"before": looked(), "points": []}
code, whole_s = forked(retrain)
report |= {"whole": looked(), "code": code, "verdict": json.loads((world / "out.json").read_text())["verdict"]}
chance = random.Random(seed)
for k in range(n_points):
    back()
    at_s = whole_s * (k + chance.random()) / n_points
    killed, _ = forked(retrain, kill_after_s=at_s)
    after = looked()
    code, _ = forked(retrain)
    said = (world / "out.json").read_text() or (world / "said").read_text()
    report["points"].append(
        {"at_s": at_s, "killed": killed, "after": after, "code": code, "said": said, "end": looked()}
    )
report["whole_s"] = whole_s
print(json.dumps(report))
"""


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return trained_bundles(tmp_path_factory)


@pytest.fixture
def world(trained: Trained, tmp_path: Path) -> Path:
    """Return a folder with a log and its first champion."""
    folder = tmp_path / "world"
    simulate(folder, users=120, days=50, seed=3, fraud_rate=0.1)
    kept = ("model.name=boosting", "model.trees=10", "retrain.positives=10", "sessions.max_events=16")
    kept = (*kept, "retrain.max_miscalibration=100")  # ten frauds calibrate nothing
    small = config_to_toml(load_config(trained.config_file, kept))
    (folder / "retrain.toml").write_text(small, encoding="utf-8")
    first = call_fraud("retrain", folder / "retrain.toml", "--set", "split.as_of=2025-02-09T00:00:00Z", "--json")
    assert first.document["verdict"] == "promoted", first.stderr
    return folder


def _check(report: dict[str, Any]) -> None:
    before, whole = report["before"], report["whole"]
    assert (report["code"], report["verdict"]) == (0, "promoted")
    assert whole["versions"] == before["versions"] + 1
    for point in report["points"]:
        after, end = point["after"], point["end"]
        assert point["killed"] in (0, -9)
        assert after.get("bundle") in (before["bundle"], whole["bundle"]), point
        assert point["code"] == 0, point
        assert json.loads(point["said"])["verdict"] in ("promoted", "unchanged")
        # The same versions and runs as if nobody had been killed: none twice, none left open, no folder behind.
        assert end == whole, point


@pytest.mark.server
@pytest.mark.parametrize("n_points", [4, pytest.param(30, marks=pytest.mark.slow)])
def test_a_retraining_killed_anywhere_leaves_one_whole_champion_and_a_second_call_finishes(
    world: Path, n_points: int
) -> None:
    kept = world.with_name("kept")
    shutil.copytree(world, kept)
    done = run_fraud(world, kept, "7", str(n_points), code=_DRIVER, timeout_s=280 if n_points < 10 else 1500)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    _check(report)
    assert sum(point["killed"] == -9 for point in report["points"]) >= n_points // 2
