"""The commands as a user meets them: what they print and write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

from fraud.decisions import DECISIONS
from tests.commands import call_fraud, leftovers, refused, run_fraud, small_log
from tests.trained import MODELS, Trained, trained_bundles

_TIME = pa.timestamp("us", tz="UTC")
SESSION_COLUMNS = {
    "user_id": pa.string(), "session_id": pa.string(), "start": _TIME, "end": _TIME, "n_events": pa.int64(),
    "score": pa.float64(), "max_score": pa.float64(), "decision": pa.string(), "model_version": pa.string(),
}  # fmt: skip
EVENT_COLUMNS = {
    "event_id": pa.string(), "user_id": pa.string(), "session_id": pa.string(), "ts": _TIME, "type": pa.string(),
    "score": pa.float64(), "decision": pa.string(),
}  # fmt: skip
QUARANTINE_COLUMNS = ["file", "row", "column", "value", "reason", "text"]
COUNTS = {"rows_in", "rows_used", "duplicates", "quarantined", "sessions", "users", "seconds"}
FIGURES = {
    "ap", "ap_ci", "auc", "auc_ci", "recall_at_budget", "precision_at_budget", "alert_rate", "recall_at_threshold",
    "money_saved", "ece", "mean_score_over_base_rate", "fit_s", "n_test", "n_positive",
}  # fmt: skip


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return trained_bundles(tmp_path_factory)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return small_log(tmp_path)


def test_every_command_of_a_first_day_ends_well_in_its_own_process(tmp_path: Path) -> None:
    done = run_fraud("simulate", "-o", "log", "--users", "40", "--days", "20", "--seed", "7", "--json", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    summary = json.loads(done.stdout)
    log = pq.read_table(tmp_path / "log" / "events.parquet")
    assert (summary["n_events"], summary["n_users"]) == (len(log), 40)
    assert log.column_names == ["event_id", "user_id", "ts", "type", "amount", "channel", "payee", "device"]
    assert pq.read_schema(tmp_path / "log" / "labels.parquet").names == ["event_id", "fraud", "known_at"]
    done = run_fraud("prepare", "log/config.toml", "-o", "prepared", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "")
    assert f"{len(log):,} rows: {len(log):,} used, 0 duplicates, 0 quarantined; 40 users" in done.stderr


def test_prepare_says_where_every_row_went(small: Path) -> None:
    ended = call_fraud("prepare", small, "-o", small.parent / "prepared", "--json")
    assert ended.exit_code == 0, ended.stderr
    document = ended.document
    assert document.keys() >= COUNTS
    counted = {name: document[name] for name in ("rows_in", "rows_used", "duplicates", "quarantined", "users")}
    assert counted == {"rows_in": 6, "rows_used": 3, "duplicates": 1, "quarantined": 2, "users": 2}
    assert document["sessions"] == 2
    assert document["quarantined_by_reason"] == {"no_zone": 1, "negative": 1}
    prepared = small.parent / "prepared"
    assert json.loads((prepared / "report.json").read_text(encoding="utf-8")) == document
    quarantine = pq.read_table(prepared / "quarantine.parquet")
    assert quarantine.column_names == QUARANTINE_COLUMNS
    assert quarantine.select(["row", "column", "value"]).to_pylist() == [
        {"row": 3, "column": "ts", "value": "2026-11-20 10:02:00"},
        {"row": 4, "column": "amount", "value": "-4"},
    ]
    assert not leftovers(small.parent)


@pytest.mark.parametrize("model", MODELS)
def test_train_prints_one_document_with_the_figures_of_the_test_period(trained: Trained, model: str) -> None:
    document = trained.document(model)  # `json.loads` refuses anything beside the one document
    assert document.keys() >= FIGURES
    assert document["n_test"] > document["n_positive"] > 0
    assert document["ap_ci"][0] <= document["ap"] <= document["ap_ci"][1]
    assert document["version"] == trained.bundle(model).version
    assert "Traceback" not in trained.said(model)
    assert not leftovers(trained.folder)


@pytest.mark.parametrize("model", MODELS)
def test_evaluate_gives_the_figures_that_train_gave(trained: Trained, model: str) -> None:
    ended = call_fraud("evaluate", trained.folder / model, trained.config_file, "--json")
    assert ended.exit_code == 0, ended.stderr
    document, expected = ended.document, trained.document(model)
    assert document.keys() >= FIGURES
    for name in FIGURES - {"fit_s"}:
        assert document[name] == pytest.approx(expected[name], abs=1e-6), name


def test_evaluate_judges_the_part_it_is_asked_for(trained: Trained) -> None:
    parts = {
        part: call_fraud(
            "evaluate", trained.folder / "boosting", trained.config_file, "--part", part, "--json"
        ).document
        for part in ("train", "valid", "test")
    }
    assert len({document["n_test"] for document in parts.values()}) == 3
    assert parts["train"]["ap"] > parts["test"]["ap"]
    metrics = trained.bundle("boosting").metrics
    assert parts["valid"]["ap"] == pytest.approx(metrics["validation"]["ap"], abs=1e-6)
    ended = call_fraud("evaluate", trained.folder / "boosting", trained.config_file, "--part", "tset")
    refused(ended, "--part 'tset'", "train, valid or test")


def test_figures_are_a_table_on_stdout_for_people(trained: Trained) -> None:
    ended = call_fraud("evaluate", trained.folder / "boosting", trained.config_file)
    assert ended.exit_code == 0
    assert "AP" in ended.stdout
    assert "boosting" in ended.stdout
    assert f"{trained.document('boosting')['ap']:.3f}"[:4] in ended.stdout


@pytest.mark.parametrize("model", MODELS)
def test_score_files_have_the_promised_columns_and_agree(trained: Trained, model: str, tmp_path: Path) -> None:
    outs = {name: tmp_path / f"{name}.parquet" for name in ("sessions", "events")}
    options = {"sessions": (), "events": ("--per-event",)}
    documents: dict[str, dict[str, Any]] = {}
    for name, out in outs.items():
        ended = call_fraud("score", trained.folder / model, trained.events, "-o", out, "--json", *options[name])
        assert ended.exit_code == 0, ended.stderr
        documents[name] = ended.document
    events, sessions = pq.read_table(outs["events"]), pq.read_table(outs["sessions"])
    assert dict(zip(events.schema.names, events.schema.types, strict=True)) == EVENT_COLUMNS
    assert dict(zip(sessions.schema.names, sessions.schema.types, strict=True)) == SESSION_COLUMNS
    log = pq.read_table(trained.events)
    for document in documents.values():
        assert document.keys() >= COUNTS
        assert document["rows_in"] == document["rows_used"] == len(log)
        assert document["sessions"] == len(sessions)
    assert events["event_id"].unique().equals(events["event_id"].combine_chunks())
    assert set(events["event_id"].to_pylist()) == set(log["event_id"].to_pylist())

    order = [("user_id", "ascending"), ("ts", "ascending"), ("event_id", "ascending")]
    assert events.sort_by(order).equals(events)
    severity = pc.fill_null(pc.index_in(events["decision"], value_set=pa.array(DECISIONS)), -1)
    columns = events.append_column("severity", severity).append_column("last", events["score"])
    aggregates = [("ts", "min"), ("ts", "max"), ("event_id", "count"), ("last", "last"), ("score", "max")]
    grouped = columns.group_by(["user_id", "session_id"], use_threads=False)
    expected = grouped.aggregate([*aggregates, ("severity", "max")])
    expected = expected.sort_by([("user_id", "ascending"), ("ts_min", "ascending")])
    names = ["user_id", "session_id", "start", "end", "n_events", "score", "max_score"]
    assert sessions.select(names).equals(expected.select(expected.column_names[:7]).rename_columns(names))
    decisions = [None if code < 0 else DECISIONS[code] for code in expected["severity_max"].to_pylist()]
    assert sessions["decision"].to_pylist() == decisions
    assert set(sessions["model_version"].to_pylist()) == {trained.bundle(model).version}
    starts = pc.cast(sessions["start"], pa.int64())
    ids = pc.binary_join_element_wise(sessions["user_id"], pc.cast(starts, pa.string()), "@")
    assert sessions["session_id"].equals(ids)


def test_only_decision_events_get_a_decision_and_the_totals_count_them(trained: Trained, tmp_path: Path) -> None:
    out = tmp_path / "events.parquet"
    document = call_fraud(
        "score", trained.folder / "boosting", trained.events, "-o", out, "--per-event", "--json"
    ).document
    scores = pq.read_table(out)
    is_decision = pc.is_in(scores["type"], value_set=pa.array(trained.config.decisions.on))
    assert scores["decision"].is_valid().equals(is_decision)
    counts = {row["values"]: row["counts"] for row in pc.value_counts(scores["decision"].drop_null()).to_pylist()}
    assert document["decisions"] == {name: counts.get(name, 0) for name in DECISIONS}
    assert counts["review"] > 0
    policy = trained.bundle("boosting").scorer.policy
    alerts = scores.filter(pc.is_in(scores["decision"], value_set=pa.array(["review", "block"])))
    assert pc.min(alerts["score"]).as_py() >= policy.review_at


def test_scores_as_csv_are_those_of_the_parquet_file(trained: Trained, tmp_path: Path) -> None:
    for name in ("scores.csv", "scores.parquet"):
        assert call_fraud("score", trained.folder / "boosting", trained.events, "-o", tmp_path / name).exit_code == 0
    text = pacsv.read_csv(tmp_path / "scores.csv")
    scores = pq.read_table(tmp_path / "scores.parquet")
    assert text.column_names == scores.column_names
    assert text["session_id"].to_pylist() == scores["session_id"].to_pylist()
    np.testing.assert_array_equal(text["score"].to_numpy(), scores["score"].to_numpy())


def test_known_frauds_raise_the_risk_of_their_entities_where_labels_are_given(trained: Trained, tmp_path: Path) -> None:
    with_labels, without = tmp_path / "a.parquet", tmp_path / "b.parquet"
    bundle = trained.folder / "lstm"
    first = call_fraud("score", bundle, trained.events, "-o", with_labels, "--config", trained.config_file)
    second = call_fraud("score", bundle, trained.events, "-o", without)
    assert "no labels" not in first.stderr
    assert "no labels" in second.stderr
    assert not pq.read_table(with_labels)["score"].equals(pq.read_table(without)["score"])
