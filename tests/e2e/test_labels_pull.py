"""`fraud labels pull`: what /v1/labels brought is in the file once, whole or not at all, and can be trained from."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from fraud.config import config_to_toml, load_config
from fraud.quarantine import Quarantine
from fraud.readers import read_labels
from service.label_export import COLUMNS
from service.state.sql import SqlStore
from service.state.store import LabelWrite, Tick
from tests.commands import ROOT, run_fraud
from tests.made_ticks import NOW_US
from tests.serving import Caller, serving
from tests.states import Opened
from tests.trained import Trained, trained_bundles

SEED = int(os.environ.get("FRAUD_KILL_SEED", time.time_ns()))
N_KILLS = int(os.environ.get("FRAUD_KILLS", "8"))


@pytest.fixture(params=["sqlite", "postgresql"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Opened]:
    """Yield what opens stores on one new database."""
    with Opened.on(request, tmp_path) as opened:
        yield opened


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return trained_bundles(tmp_path_factory)


def _write(store: SqlStore, *labels: tuple[str, str | None, str | None, str | None, int, int]) -> None:
    """Write labels (label_id, user, event, session, label, known) of events that the store does not keep."""
    writes = tuple(
        LabelWrite(
            label_id, user, event, session, label, known_us,
            source="branch", stored_us=NOW_US, counters=(), events=(),
        )
        for label_id, user, event, session, label, known_us in labels
    )  # fmt: skip
    store.write(Tick((), (), writes))


def _command(state: str, out: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "service", "labels", "pull", "--state", state, "-o", str(out), *more]


def _pull(state: str, out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(_command(state, out, *more), capture_output=True, text=True, cwd=ROOT, check=False)


def _pulled(state: str, out: Path, *more: str) -> dict[str, Any]:
    done = _pull(state, out, "--json", *more)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _many_labels(state: str, n: int, first: int = 0) -> None:
    """Write labels past the store, which would take its time."""
    with closing(sqlite3.connect(state.removeprefix("sqlite:///"))) as database, database:
        rows = ((f"{i * 2654435761 % 2**32:032x}", f"u{i}", f"e{i}", NOW_US + i) for i in range(first, first + n))
        database.executemany("INSERT INTO labels VALUES (?, ?, ?, NULL, 1, ?, 'branch', 0)", rows)


def test_each_label_is_in_the_file_once_and_a_correction_beside_it(opened: Opened, tmp_path: Path) -> None:
    store, out = opened.store(), tmp_path / "labels.jsonl"
    assert _pulled(opened.url, out) == {"pulled": 0, "labels": 0, "path": None}
    assert not out.exists()
    _write(store, ("b", "u", "e1", None, 1, NOW_US), ("a", None, None, "u@1", 0, NOW_US + 1))
    assert _pulled(opened.url, out)["pulled"] == 2
    first = out.read_bytes()
    assert _rows(out) == [
        dict(zip(COLUMNS, row, strict=True))
        for row in (
            (None, None, "u@1", 0, "2026-09-21T14:13:20.000001Z", "branch", "a"),
            ("u", "e1", None, 1, "2026-09-21T14:13:20Z", "branch", "b"),
        )
    ]
    assert _pulled(opened.url, out) == {"pulled": 0, "labels": 2, "path": str(out)}
    assert out.read_bytes() == first
    _write(store, ("aa", "u", "e1", None, 0, NOW_US + 9))
    assert _pulled(opened.url, out) == {"pulled": 1, "labels": 3, "path": str(out)}
    assert out.read_bytes().startswith(first)
    assert [row["label"] for row in _rows(out)] == [0, 1, 0]


def test_a_new_state_does_not_take_the_labels_of_an_old_one_away(tmp_path: Path) -> None:
    out = tmp_path / "labels.jsonl"
    for name in ("old", "new"):
        database = Opened(f"sqlite:///{tmp_path / name}")
        with closing(database.store()) as store:
            _write(store, (name, "u", "e", None, 1, NOW_US))
        _pulled(database.url, out)
    assert [row["label_id"] for row in _rows(out)] == ["old", "new"]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        (
            "labels.jsonl",
            '{"event_id": "e", "fraud": 1}\n',
            "its columns are event_id, fraud; expected user_id, event_id",
        ),
        ("labels.jsonl", "event_id,fraud\n", "line 1: "),
        ("labels.csv", None, "expected a name that ends in .jsonl"),
    ],
)
def test_a_file_of_others_is_refused_and_left_as_it_is(
    name: str, content: str | None, says: str, tmp_path: Path
) -> None:
    database = Opened(f"sqlite:///{tmp_path / 'state.db'}")
    with closing(database.store()) as store:
        _write(store, ("a", "u", "e", None, 1, NOW_US))
    if content is not None:
        (tmp_path / name).write_text(content)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.name.startswith("labels")}
    done = _pull(database.url, tmp_path / name)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert says in done.stderr
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if "labels" in path.name} == before


def test_without_a_state_or_a_folder_for_the_file_it_says_so(tmp_path: Path) -> None:
    done = _pull(f"sqlite:///{tmp_path / 'state.db'}", tmp_path / "labels.jsonl")
    assert done.returncode == 2
    assert "there is no state store" in done.stderr
    database = Opened(f"sqlite:///{tmp_path / 'state.db'}")
    database.store().close()
    done = _pull(database.url, tmp_path / "nowhere" / "labels.jsonl")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.endswith("nowhere/.labels.jsonl.partial: No such file or directory\n")


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    database = Opened(f"sqlite:///{tmp_path / 'state.db'}")
    database.store().close()
    out = tmp_path / "labels.jsonl"
    _many_labels(database.url, 1000)
    _pulled(database.url, out)
    before = out.read_bytes()
    _many_labels(database.url, 10_000, first=1000)
    process = subprocess.Popen(
        _command(database.url, out), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    # No file of this process may grow beyond 1 MB: to it that is a disk without room.
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
    stdout, stderr = process.communicate()
    assert (process.returncode, stdout) == (1, "")
    assert stderr == "error: File too large\n"
    assert out.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir() if "labels" in path.name] == ["labels.jsonl"]
    assert _pulled(database.url, out)["labels"] == 11_000


@pytest.mark.server
@pytest.mark.slow
def test_killed_at_any_point_the_file_is_the_old_or_the_new_one_and_a_second_run_finishes(tmp_path: Path) -> None:
    rng = random.Random(SEED)
    database = Opened(f"sqlite:///{tmp_path / 'state.db'}")
    database.store().close()
    state, out = database.url, tmp_path / "labels.jsonl"
    _many_labels(state, 20_000)
    began = time.monotonic()
    _pulled(state, out)
    whole_s = time.monotonic() - began
    n_killed = 0
    for n in range(1, N_KILLS + 1):
        n_before = len(out.read_bytes().splitlines())
        _many_labels(state, 20_000, first=20_000 * n)
        process = subprocess.Popen(_command(state, out), cwd=ROOT, stdout=subprocess.DEVNULL)
        time.sleep(rng.uniform(0.3, 1.2) * whole_s * (1 + n / 4))
        process.kill()
        n_killed += process.wait() == -signal.SIGKILL
        assert process.returncode in (0, -signal.SIGKILL)
        ids = [row["label_id"] for row in _rows(out)]
        assert len(ids) in (n_before, 20_000 * (n + 1)), f"seed {SEED}"
        assert len(set(ids)) == len(ids), f"seed {SEED}"
        if n % 3 == 0:
            continue  # the next one is killed upon what this one left
        assert _pulled(state, out)["labels"] == 20_000 * (n + 1), f"seed {SEED}"
        assert sorted(path.name for path in tmp_path.iterdir() if "labels" in path.name) == ["labels.jsonl"]
    assert n_killed, "every pull had ended before it was killed, so nothing was shown"
    assert _pulled(state, out)["labels"] == 20_000 * (N_KILLS + 1), f"seed {SEED}"
    assert len({row["label_id"] for row in _rows(out)}) == 20_000 * (N_KILLS + 1)


@pytest.mark.server
def test_two_pulls_at_once_leave_each_label_once(tmp_path: Path) -> None:
    database = Opened(f"sqlite:///{tmp_path / 'state.db'}")
    database.store().close()
    _many_labels(database.url, 50_000)
    out = tmp_path / "labels.jsonl"
    pulls = [
        subprocess.Popen(_command(database.url, out), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        for _ in range(4)
    ]
    said = [process.communicate()[1].decode() for process in pulls]
    codes = [process.returncode for process in pulls]
    assert codes.count(0) >= 1, said
    assert all(code == 0 or "another run is writing it" in text for code, text in zip(codes, said, strict=True)), said
    assert len({row["label_id"] for row in _rows(out)}) == len(_rows(out)) == 50_000


def _most_mb(command: Sequence[str]) -> float:
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_maxrss / 1024


@pytest.mark.server
def test_memory_does_not_grow_with_the_labels(tmp_path: Path) -> None:
    # 300,000 labels are a file of 54 MB, and their ids alone 25 MB as a set.
    used: list[float] = []
    for name, n_labels in (("few", 5_000), ("many", 300_000)):
        database = Opened(f"sqlite:///{tmp_path / name}.db")
        database.store().close()
        _many_labels(database.url, n_labels)
        command = _command(database.url, tmp_path / f"{name}.jsonl")
        used.append(max(_most_mb(command), _most_mb(command)))
    assert used[1] - used[0] < 12


@pytest.mark.server
def test_what_is_trained_from_is_the_banks_own_labels_and_those_that_were_sent(
    trained: Trained, tmp_path: Path
) -> None:
    """Half of the labels are sent to the service and pulled, half are the bank's own file: the same model comes out."""
    own = pq.read_table(trained.log / "labels.parquet")
    own = own.append_column("source", pa.array(["branch", "app"] * len(own))[: len(own)])
    half = len(own) // 2
    (tmp_path / "labels").mkdir()
    pq.write_table(own, tmp_path / "all.parquet")
    pq.write_table(own.slice(half), tmp_path / "labels" / "own.parquet")
    overrides = (
        f'log.events="{trained.events}"', 'labels.path="labels/*"', 'labels.source="source"', "model.name=boosting",
        f'tracking.uri="sqlite:///{tmp_path}/mlflow.db"',
    )  # fmt: skip
    config = tmp_path / "config.toml"
    config.write_text(config_to_toml(load_config(trained.config_file, overrides)), encoding="utf-8")
    state = f"sqlite:///{tmp_path}/state.db"
    # The clock of the log: these labels became known long ago, not now.
    with (
        serving(trained.folder / "boosting", state, "--clock", "log", folder=tmp_path) as server,
        closing(Caller(server)) as caller,
    ):
        events = pq.read_table(trained.events)
        users = dict(zip(events["event_id"].to_pylist(), events["user_id"].to_pylist(), strict=True))
        for row in own.slice(0, half).to_pylist():
            label = {
                "user_id": users[row["event_id"]], "event_id": row["event_id"], "label": row["fraud"],
                "known_at": row["known_at"].isoformat(), "source": row["source"],
            }  # fmt: skip
            assert caller.ask("POST", "/v1/labels", label).status == 202
    assert _pulled(state, tmp_path / "labels" / "online.jsonl", "--config", str(config))["pulled"] == half
    read = {path: _read(config, path) for path in ("labels/*", "all.parquet")}
    assert read["labels/*"].equals(read["all.parquet"])
    documents = []
    for name, path in (("merged", "labels/*"), ("whole", "all.parquet")):
        done = run_fraud("train", config, "-o", tmp_path / name, "--set", f'labels.path="{path}"', "--json")
        assert done.returncode == 0, done.stderr
        documents.append(json.loads(done.stdout))
    assert documents[0]["ap"] == documents[1]["ap"]
    assert (tmp_path / "merged" / "boosting.onnx").read_bytes() == (tmp_path / "whole" / "boosting.onnx").read_bytes()


def _read(config: Path, path: str) -> pa.Table:
    table = read_labels(load_config(config, (f'labels.path="{path}"',)), Quarantine())
    return table.take(pc.sort_indices(table, [(name, "ascending") for name in ("event_id", "known_us", "source")]))
