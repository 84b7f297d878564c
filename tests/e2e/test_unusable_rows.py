"""Empty files, rows that cannot be used, labels that match nothing: said, counted, kept apart, never scored."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.commands import Ended, call_fraud, leftovers, refused, small_log, with_rows
from tests.trained import Trained, trained_bundles

COUNTS = ("rows_in", "rows_used", "duplicates", "quarantined", "sessions", "users")


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return trained_bundles(tmp_path_factory)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return small_log(tmp_path)


@pytest.mark.parametrize("command", ["prepare", "train", "score"])
def test_an_empty_file_isrefused(trained: Trained, small: Path, command: str) -> None:
    with_rows(small, "")
    refused(_run(command, trained, small), "events.csv: empty (0 bytes)")
    assert {path.name for path in small.parent.iterdir()} == {"config.toml", "events.csv"}


def _run(command: str, trained: Trained, small: Path) -> Ended:
    """Run a command on the small log: `score` by the bundle that reads its columns, `train` with a label."""
    out = small.parent / "out"
    if command == "score":
        return call_fraud(
            "score", trained.plain, small.parent / "events.csv", "-o", out.with_suffix(".parquet"), "--json"
        )
    labels = ("--set", 'labels.column="fraud"', "--set", 'labels.path="labels.csv"', "--set", 'labels.key=["event_id"]')
    if command == "train":
        (small.parent / "labels.csv").write_text("event_id,fraud\ne1,1\n", encoding="utf-8")
        ended = call_fraud("train", small, "-o", out, "--json", *labels)
        (small.parent / "labels.csv").unlink()
        return ended
    return call_fraud("prepare", small, "-o", out, "--json")


_HEADER = "event_id,user_id,type,ts,amount,channel\n"


def test_a_log_without_a_row_is_scored_to_nothing_with_a_warning(trained: Trained, small: Path) -> None:
    with_rows(small, _HEADER)
    for command, out in (("score", "out.parquet"), ("prepare", "out")):
        ended = _run(command, trained, small)
        assert ended.exit_code == 0
        assert "warning: the log holds no row" in ended.stderr
        assert {ended.document[name] for name in COUNTS} == {0}
        assert (small.parent / out).exists()
    scores = pq.read_table(small.parent / "out.parquet")
    assert scores.schema.names[:2] == ["user_id", "session_id"]
    assert len(scores) == 0


def test_a_log_without_a_row_cannot_be_trained_on(trained: Trained, small: Path) -> None:
    refused(_run("train", trained, with_rows(small, _HEADER)), "the log holds no row")
    assert not (small.parent / "out").exists()
    assert not leftovers(small.parent)


@pytest.mark.parametrize("command", ["prepare", "train", "score"])
def test_rows_but_none_usable_is_refused_and_the_quarantine_is_written(
    trained: Trained, small: Path, command: str
) -> None:
    with_rows(small, f"{_HEADER}e0,u0,login,yesterday,,app\ne1,,login,2026-11-20T10:00:00Z,,app\n")
    refused(_run(command, trained, small), "none of 2 rows can be used", "row 0, column 'ts'")
    rows = pq.read_table(small.parent / "out.quarantine.parquet").to_pylist()
    assert [(row["row"], row["column"], row["reason"]) for row in rows] == [
        (0, "ts", "bad_time"),
        (1, "user_id", "empty"),
    ]
    assert not (small.parent / "out").exists()
    assert not (small.parent / "out.parquet").exists()
    assert not leftovers(small.parent)


def test_a_quarantine_of_an_earlier_run_does_not_stay(trained: Trained, small: Path) -> None:
    row = "e9,u0,login,2026-11-20T10:00:00Z,,app\n"
    with_rows(small, f"{_HEADER}{row}e0,u0,login,yesterday,,app\n")
    assert _run("score", trained, small).document["quarantined"] == 1
    assert (small.parent / "out.quarantine.parquet").exists()
    (small.parent / "out.parquet").unlink()
    assert _run("score", trained, with_rows(small, f"{_HEADER}{row}")).document["quarantined"] == 0
    assert not (small.parent / "out.quarantine.parquet").exists()


def test_labels_that_match_no_event_are_counted_and_said(trained: Trained, tmp_path: Path) -> None:
    labels = pq.read_table(trained.log / "labels.parquet")
    strange = pa.table(
        {
            "event_id": ["nobody", "knows"],
            "fraud": pa.array([1, 0], labels["fraud"].type),
            "known_at": labels["known_at"][:2],
        }
    )
    pq.write_table(pa.concat_tables([labels, strange]), tmp_path / "labels.parquet")
    path = ("--set", f'labels.path="{tmp_path}/labels.parquet"')
    ended = call_fraud("prepare", trained.config_file, "-o", tmp_path / "prepared", "--json", *path)
    assert (ended.document["labels"], ended.document["labels_unmatched"]) == (len(labels) + 2, 2)
    assert f"warning: 2 of {len(labels) + 2} labels match no event of the log" in ended.stderr
