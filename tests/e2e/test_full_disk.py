"""A disk that fills up in the middle of a write: exit 1, plain words, nothing partial; once there is room, all is well.

Each command writes to a disk of 8 KiB, then to one a bit larger, until it has room: so it runs out at every stage.
"""

from __future__ import annotations

from pathlib import Path

import pytest

import pipelines.train
from fraud.config import config_to_toml
from pipelines.simulate import simulate
from tests.commands import call_fraud, contents
from tests.registered import NAME, registered
from tests.small_disk import PAGE, sized
from tests.trained import Trained, trained_bundles

_GROWTH = 1.5


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return trained_bundles(tmp_path_factory)


def _filled_until_it_fits(disk: Path, out: Path, *command: str | Path) -> int:
    """Return how often the command ran out of room before it had enough, each time as it should."""
    n_bytes, n_full = 2 * PAGE, 0
    while True:
        sized(disk, n_bytes)
        ended = call_fraud(*command, "-o", out)
        if ended.exit_code == 0:
            break
        n_full += 1
        assert ended.exit_code == 1, ended.stderr
        assert ended.stdout == ""
        assert ended.stderr.splitlines()[-1].startswith("error: ")
        assert "No space left on device" in ended.stderr.splitlines()[-1]
        assert "Traceback" not in ended.stderr
        visible = [path.name for path in disk.iterdir() if not path.name.startswith(".")]
        # A folder that was not there before may be, the files in it have their names only when all are written.
        assert [path for name in visible for path in contents(disk / name)] == []
        n_bytes = int(n_bytes * _GROWTH) // PAGE * PAGE
    assert [path.name for path in disk.iterdir()] == [out.name], "something was left behind"
    return n_full


def _as_on_a_large_disk(out: Path, elsewhere: Path, *command: str | Path) -> None:
    assert call_fraud(*command, "-o", elsewhere).exit_code == 0
    found, expected = contents(out), contents(elsewhere)
    for files in (found, expected):
        files.pop("report.json", None)  # says how long it took
    assert found == expected


def test_simulate_on_a_full_disk(disk: Path, tmp_path: Path) -> None:
    command = ("simulate", "--users", "40", "--days", "14")
    assert _filled_until_it_fits(disk, disk / "log", *command) >= 3
    _as_on_a_large_disk(disk / "log", tmp_path / "log", *command)


def test_prepare_on_a_full_disk(trained: Trained, disk: Path, tmp_path: Path) -> None:
    command = ("prepare", trained.config_file)
    assert _filled_until_it_fits(disk, disk / "set", *command) >= 6
    _as_on_a_large_disk(disk / "set", tmp_path / "set", *command)


@pytest.mark.parametrize("name", ["scores.parquet", "scores.csv"])
@pytest.mark.parametrize("n_partitions", [1, 5])
def test_score_on_a_full_disk(
    trained: Trained, disk: Path, name: str, n_partitions: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fraud.logs.PARTITION_BYTES", trained.events.stat().st_size // n_partitions + 1)
    command = ("score", trained.folder / "lstm", trained.events, "--per-event")
    assert _filled_until_it_fits(disk, disk / name, *command) >= 4
    _as_on_a_large_disk(disk / name, tmp_path / name, *command)


def test_a_full_disk_costs_no_output_that_was_there(trained: Trained, disk: Path) -> None:
    sized(disk, 2**20)
    command = ("score", trained.folder / "lstm", trained.events, "-o", disk / "scores.parquet")
    assert call_fraud(*command).exit_code == 0
    before = contents(disk / "scores.parquet")
    used = (disk / "scores.parquet").stat().st_size // PAGE * PAGE
    sized(disk, used + 4 * PAGE)
    assert call_fraud(*command, "--overwrite").exit_code == 1
    assert contents(disk / "scores.parquet") == before


@pytest.mark.parametrize("model", ["boosting", "lstm"])
def test_train_on_a_full_disk(
    trained: Trained, disk: Path, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipelines.train, "track", lambda *_: None)
    simulate(tmp_path / "log", users=80, days=40, seed=3, fraud_rate=0.1)
    config = tmp_path / "log" / "config.toml"
    config.write_text(config_to_toml(trained.config), encoding="utf-8")
    command = ("train", config, "--set", f"model.name={model}", "--set", "training.epochs=2", "--set", "model.trees=3")
    assert _filled_until_it_fits(disk, disk / "bundle", *command) >= 8
    _as_on_a_large_disk(disk / "bundle", tmp_path / "bundle", *command)


def test_publish_on_a_full_disk(trained: Trained, disk: Path, tmp_path: Path) -> None:
    store = registered(f"sqlite:///{tmp_path}/mlflow.db", {"fused": trained.folder / "fused"}, tmp_path)
    store.registry.promote(store.versions["fused"], expected_champion=None, reason="the first")
    command = ("publish", f"models:/{NAME}@champion", "--tracking-uri", store.uri)
    assert _filled_until_it_fits(disk, disk / "versions", *command) >= 4
    assert contents(disk / "versions" / "current") == contents(trained.folder / "fused")


def test_a_full_disk_leaves_the_link_where_it_was(trained: Trained, disk: Path, tmp_path: Path) -> None:
    bundles = {name: trained.folder / name for name in ("lstm", "fused")}
    store = registered(f"sqlite:///{tmp_path}/mlflow.db", bundles, tmp_path)
    store.registry.promote(store.versions["lstm"], expected_champion=None, reason="the first")
    command = ("publish", f"models:/{NAME}@champion", "--tracking-uri", store.uri, "-o", disk / "versions")
    sized(disk, 2**22)
    assert call_fraud(*command).exit_code == 0
    used = sum(path.stat().st_size for path in disk.rglob("*") if path.is_file()) // PAGE * PAGE
    sized(disk, used + 16 * PAGE)
    store.registry.promote(store.versions["fused"], expected_champion="1", reason="better")
    assert call_fraud(*command).exit_code == 1
    assert contents(disk / "versions" / "current") == contents(trained.folder / "lstm")
