"""The commands as a user meets them: what they print, what they write, how they refuse, with which exit code."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

import fraud
from fraud.config import config_to_toml
from fraud.decisions import DECISIONS
from fraud.errors import DataError
from tests.tampered import copied, with_manifest
from tests.trained import MODELS, Ended, Trained, call_fraud, run_fraud, trained_bundles

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

_SMALL_CONFIG = """
[log]
events = "events.csv"
event_id = "event_id"
[fields]
amount = "amount"
"""
_SMALL_LOG = """\
event_id,user_id,type,ts,amount
e0,u0,login,2026-11-20T10:00:00Z,
e1,u0,transfer_out,2026-11-20T10:01:00Z,12.5
e1,u0,transfer_out,2026-11-20T10:01:00Z,12.5
e2,u0,transfer_out,2026-11-20 10:02:00,1
e3,u1,login,2026-11-20T10:00:00Z,-4
e4,u1,login,2026-11-20T10:00:00Z,
"""


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return trained_bundles(tmp_path_factory)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Return the configuration of a log of six rows: three used, one repeated, two bad."""
    (tmp_path / "events.csv").write_text(_SMALL_LOG, encoding="utf-8")
    (tmp_path / "config.toml").write_text(_SMALL_CONFIG, encoding="utf-8")
    return tmp_path / "config.toml"


def _refused(ended: Ended, *says: str) -> None:
    """Check exit code 2, nothing on stdout, and one line on stderr that says what is wrong."""
    assert (ended.exit_code, ended.stdout) == (2, ""), ended.stderr
    errors = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    for part in says:
        assert part in errors[0]


def _leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith((".", "fraud-")))


# What is printed and written


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
    assert not _leftovers(small.parent)


@pytest.mark.parametrize("model", MODELS)
def test_train_prints_one_document_with_the_figures_of_the_test_period(trained: Trained, model: str) -> None:
    document = trained.document(model)  # `json.loads` refuses anything beside the one document
    assert document.keys() >= FIGURES
    assert document["n_test"] > document["n_positive"] > 0
    assert document["ap_ci"][0] <= document["ap"] <= document["ap_ci"][1]
    assert document["version"] == trained.bundle(model).version
    assert "Traceback" not in trained.said(model)
    assert not _leftovers(trained.folder)


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
    _refused(ended, "--part 'tset'", "train, valid or test")


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


# Rows that cannot be used


def _with_log(config: Path, text: str) -> Path:
    (config.parent / "events.csv").write_text(text, encoding="utf-8")
    return config


@pytest.mark.parametrize("command", ["prepare", "train", "score"])
def test_an_empty_file_is_refused(trained: Trained, small: Path, command: str) -> None:
    _with_log(small, "")
    _refused(_run(command, trained, small), "events.csv: empty (0 bytes)")
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
    _with_log(small, _HEADER)
    for command, out in (("score", "out.parquet"), ("prepare", "out")):
        ended = _run(command, trained, small)
        assert ended.exit_code == 0
        assert "warning: the log holds no row" in ended.stderr
        assert {ended.document[name] for name in COUNTS - {"seconds"}} == {0}
        assert (small.parent / out).exists()
    scores = pq.read_table(small.parent / "out.parquet")
    assert dict(zip(scores.schema.names, scores.schema.types, strict=True)) == SESSION_COLUMNS
    assert len(scores) == 0


def test_a_log_without_a_row_cannot_be_trained_on(trained: Trained, small: Path) -> None:
    _refused(_run("train", trained, _with_log(small, _HEADER)), "the log holds no row")
    assert not (small.parent / "out").exists()
    assert not _leftovers(small.parent)


@pytest.mark.parametrize("command", ["prepare", "train", "score"])
def test_rows_but_none_usable_is_refused_and_the_quarantine_is_written(
    trained: Trained, small: Path, command: str
) -> None:
    _with_log(small, f"{_HEADER}e0,u0,login,yesterday,,app\ne1,,login,2026-11-20T10:00:00Z,,app\n")
    _refused(_run(command, trained, small), "none of 2 rows can be used", "row 0, column 'ts'")
    rows = pq.read_table(small.parent / "out.quarantine.parquet").to_pylist()
    assert [(row["row"], row["column"], row["reason"]) for row in rows] == [
        (0, "ts", "bad_time"),
        (1, "user_id", "empty"),
    ]
    assert not (small.parent / "out").exists()
    assert not (small.parent / "out.parquet").exists()
    assert not _leftovers(small.parent)


def test_a_quarantine_of_an_earlier_run_does_not_stay(trained: Trained, small: Path) -> None:
    row = "e9,u0,login,2026-11-20T10:00:00Z,,app\n"
    _with_log(small, f"{_HEADER}{row}e0,u0,login,yesterday,,app\n")
    assert _run("score", trained, small).document["quarantined"] == 1
    assert (small.parent / "out.quarantine.parquet").exists()
    (small.parent / "out.parquet").unlink()
    assert _run("score", trained, _with_log(small, f"{_HEADER}{row}")).document["quarantined"] == 0
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


# What is refused


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("model.widht=3", ("unknown name 'model.widht'", "layers", "width", "trees")),
        ("modle.width=3", ("unknown name 'modle'", "log", "fields", "sessions", "model")),
        ("log.usr=x", ("unknown name 'log.usr'", "user", "time", "type")),
        ("model.width=1000000000", ("model.width = 1000000000", "1024")),
        ("model.name=lstmm", ("model.name = 'lstmm'", "boosting, lstm")),
        ("sessions.gap=30", ("sessions.gap", "30m")),
        ("labels.level=day", ("labels.level", "event", "session", "user")),
        ("width=3", ("--set 'width=3'", "SECTION.FIELD=VALUE")),
        ('fields.categorical=["channel", "fraud_flag"]', ("no column 'fraud_flag'", "fields.categorical", "channel")),
    ],
)
def test_a_wrong_setting_is_refused_with_what_is_known(
    trained: Trained, setting: str, says: tuple[str, ...], tmp_path: Path
) -> None:
    ended = call_fraud("train", trained.config_file, "-o", tmp_path / "bundle", "--set", setting)
    _refused(ended, *says)
    assert list(tmp_path.iterdir()) == []


def test_a_misspelt_key_in_the_file_names_the_file_and_the_known_ones(small: Path) -> None:
    small.write_text(_SMALL_CONFIG.replace("amount =", "ammount ="), encoding="utf-8")
    ended = call_fraud("prepare", small, "-o", small.parent / "out")
    _refused(
        ended, str(small), "unknown name 'fields.ammount'", "amount", "numeric", "categorical", "entity", "key_types"
    )


@pytest.mark.parametrize(
    "fields",
    ['fields.numeric=["fraud"]', 'fields.categorical=["fraud"]', 'fields.entity=["fraud"]', 'log.type="fraud"'],
)
def test_a_label_column_among_the_features_is_refused_by_name(small: Path, fields: str) -> None:
    ended = call_fraud("train", small, "-o", small.parent / "out", "--set", 'labels.column="fraud"', "--set", fields)
    _refused(ended, "column 'fraud' is the label")


def test_a_bundle_of_another_format_version_is_refused(trained: Trained, tmp_path: Path) -> None:
    copy = with_manifest(copied(trained.folder / "lstm", tmp_path), format_version=7)
    for command in (
        ("score", copy, trained.events, "-o", tmp_path / "out.parquet"),
        ("evaluate", copy, trained.config_file),
    ):
        _refused(call_fraud(*command), "manifest.json: format version 7; this code reads version 1")
    assert not (tmp_path / "out.parquet").exists()


def test_a_configuration_that_shapes_another_state_is_refused(trained: Trained, tmp_path: Path) -> None:
    other = ("--set", "sessions.gap=31m")
    says = "the bundle was made for another [log], [fields] or [sessions]"
    ended = call_fraud(
        "score",
        trained.folder / "lstm",
        trained.events,
        "-o",
        tmp_path / "x.parquet",
        "--config",
        trained.config_file,
        *other,
    )
    _refused(ended, says, "config.toml")
    _refused(call_fraud("evaluate", trained.folder / "lstm", trained.config_file, *other), says)
    # How a model is fitted shapes no state.
    same = ("--set", "model.width=8", "--set", "policy.alert_budget=0.02")
    assert call_fraud("evaluate", trained.folder / "lstm", trained.config_file, *same).exit_code == 0


@pytest.mark.parametrize("command", ["simulate", "prepare", "train", "score"])
def test_an_output_that_exists_is_refused_unless_it_may_be_replaced(
    trained: Trained, small: Path, command: str
) -> None:
    out = small.parent / ("out.parquet" if command == "score" else "out")
    arguments: dict[str, tuple[str | Path, ...]] = {
        "simulate": ("simulate", "--users", "10", "--days", "7", "-o", out),
        "prepare": ("prepare", small, "-o", out),
        "train": ("train", trained.config_file, "-o", out),
        "score": ("score", trained.plain, small.parent / "events.csv", "-o", out),
    }
    _with_log(small, _SMALL_LOG.replace("amount\n", "amount,channel\n").replace(",\n", ",,\n"))
    if command == "score":
        out.write_bytes(b"mine")
    elif command == "train":
        copied(trained.folder / "boosting", small.parent).rename(out)
    else:
        assert call_fraud(*arguments[command]).exit_code == 0
    before = _contents(out)
    _refused(call_fraud(*arguments[command]), str(out), "exists", "--overwrite")
    assert _contents(out) == before
    if command != "train":  # which the tests of a killed run do
        assert call_fraud(*arguments[command], "--overwrite").exit_code == 0
        assert _contents(out) != {out.name: b"mine"}
    assert not _leftovers(small.parent)


def _contents(path: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in ([path] if path.is_file() else path.iterdir())}


@pytest.mark.parametrize("command", ["prepare", "train"])
def test_no_option_replaces_a_folder_that_is_somebody_elses(trained: Trained, command: str, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years", encoding="utf-8")
    ended = call_fraud(command, trained.config_file, "-o", tmp_path / "home", "--overwrite")
    _refused(ended, f"{tmp_path}/home", "no output of this command")
    assert (tmp_path / "home" / "thesis.txt").read_text(encoding="utf-8") == "years"


def test_scores_never_replace_the_log_itself(trained: Trained, tmp_path: Path) -> None:
    log = tmp_path / "events.parquet"
    log.write_bytes(trained.events.read_bytes())
    _refused(call_fraud("score", trained.folder / "boosting", log, "-o", log, "--overwrite"), "is the log itself")
    assert log.read_bytes() == trained.events.read_bytes()
    assert not _leftovers(tmp_path)


def test_a_score_file_of_an_unknown_kind_is_refused(trained: Trained, tmp_path: Path) -> None:
    ended = call_fraud("score", trained.folder / "boosting", trained.events, "-o", tmp_path / "scores.xlsx")
    _refused(ended, "scores.xlsx", ".parquet or .csv")


def test_what_the_system_refuses_ends_with_1_and_says_what(trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    for command in (
        ("score", trained.folder / "boosting", trained.events, "-o", tmp_path / "file" / "scores.parquet"),
        ("prepare", trained.config_file, "-o", tmp_path / "file" / "out"),
    ):
        ended = call_fraud(*command)
        assert (ended.exit_code, ended.stdout) == (1, "")
        assert ended.stderr.startswith(f"error: {tmp_path}/file")
        assert ended.stderr.count("\n") == 1


def test_a_missing_argument_is_a_usage_error() -> None:
    done = run_fraud("score")
    assert done.returncode == 2
    assert "BUNDLE" in done.stderr
    assert "Traceback" not in done.stderr


# The tracker


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
    assert _contents(artifacts / "bundle") == _contents(trained.folder / "lstm")
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


# From a notebook


# pyarrow 25 on pandas 3.1 reads a time with a zone through `Series.values`; nothing of ours can change it.
_pandas_says = pytest.mark.filterwarnings("ignore:Series.values returning an ndarray:DeprecationWarning")


@_pandas_says
@pytest.mark.parametrize("model", MODELS)
def test_a_frame_scores_as_the_file_does(trained: Trained, model: str, tmp_path: Path) -> None:
    out = tmp_path / "scores.parquet"
    assert call_fraud("score", trained.folder / model, trained.events, "-o", out, "--per-event").exit_code == 0
    expected = pq.read_table(out)
    frame = pd.read_parquet(trained.events)
    frame["channel"] = frame["channel"].astype("category")
    frame["note"] = [object()] * len(frame)  # no column of ours: what it holds is nobody's business
    bundle = fraud.load_bundle(trained.folder / model)
    assert bundle.score(frame).equals(expected)
    assert bundle.score(pa.table(pq.read_table(trained.events))).equals(expected)


@_pandas_says
def test_a_frame_that_cannot_be_read_is_refused(trained: Trained) -> None:
    frame = pd.read_parquet(trained.events)
    bundle = fraud.load_bundle(trained.folder / "boosting")
    with pytest.raises(DataError, match="no column 'user_id'"):
        bundle.score(frame.drop(columns=["user_id"]))
    frame["type"] = [b"\xff" if n % 2 else "login" for n in range(len(frame))]
    with pytest.raises(DataError, match="type"):
        bundle.score(frame)


def test_a_notebook_trains_and_scores_a_log_of_its_own(trained: Trained, tmp_path: Path) -> None:
    """Labels and parts in the log itself, a number that never has a value; none of these is needed to score."""
    table = pq.read_table(trained.events)
    labels = pq.read_table(trained.log / "labels.parquet")
    place = np.arange(len(table)) / len(table)
    log = table.append_column("fraud", pc.is_in(table["event_id"], value_set=labels["event_id"]))
    log = log.append_column("part", pa.array(np.where(place < 0.5, "train", np.where(place < 0.75, "valid", "test"))))
    log = log.append_column("empty", pa.nulls(len(log), pa.float64()))
    pacsv.write_csv(log.drop_columns(["payee", "device"]), tmp_path / "log.csv")
    (tmp_path / "config.toml").write_text(
        '[log]\nevents = "log.csv"\nevent_id = "event_id"\n[fields]\namount = "amount"\nnumeric = ["empty"]\n'
        '[labels]\ncolumn = "fraud"\n[decisions]\non = ["transfer_out", "withdraw"]\n'
        '[split]\nby = "column"\ncolumn = "part"\n[model]\nname = "boosting"\ntrees = 10\n',
        encoding="utf-8",
    )
    config = fraud.load_config(tmp_path / "config.toml")
    bundle = fraud.train(fraud.read_log(config), config, tmp_path / "bundle")
    assert bundle.metrics["test"]["auc"] > 0.6
    unlabelled = log.drop_columns(["fraud", "part", "payee", "device"])
    scores = fraud.load_bundle(tmp_path / "bundle").score(unlabelled)
    assert len(scores) == len(log)
    pq.write_table(unlabelled, tmp_path / "new.parquet")
    out = tmp_path / "scores.parquet"
    ended = call_fraud("score", tmp_path / "bundle", tmp_path / "new.parquet", "-o", out, "--per-event")
    assert ended.exit_code == 0, ended.stderr
    assert pq.read_table(out).equals(scores)


def test_the_configuration_of_a_bundle_reproduces_it(trained: Trained) -> None:
    config = trained.bundle("lstm").scorer.config
    text = (trained.folder / "lstm" / "config.toml").read_text(encoding="utf-8")
    assert config_to_toml(config) == text
    assert config.model.name == "lstm"
    assert config.training == trained.config.training
