"""The four files of the simulator: the same bytes for the same seed, stories as promised, whole or not at all."""

from __future__ import annotations

import hashlib
import math
import resource
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from fraud.config import load_config
from fraud.errors import ConfigError
from pipelines.bank.routines import AMOUNT_TYPES, DECISION_TYPES, EVENT_TYPES, PAYEE_TYPES, STORIES
from pipelines.simulate import FILES, simulate

DAY_US = 86_400_000_000


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out_dir = tmp_path_factory.mktemp("simulated") / "bank"
    simulate(out_dir, users=1000, days=60, seed=3, fraud_rate=0.05)
    return out_dir


def _digests(out_dir: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(out_dir.iterdir())}


def test_a_decoy_differs_from_its_fraud_in_order_alone_or_in_pace_alone(simulated: Path) -> None:
    events = pq.read_table(simulated / "events.parquet", columns=["event_id", "type", "ts"])
    type_of = dict(zip(events["event_id"].to_pylist(), events["type"].to_pylist(), strict=True))
    time_us = events["ts"].cast(pa.int64()).to_pylist()
    time_of = dict(zip(events["event_id"].to_pylist(), time_us, strict=True))
    told: dict[tuple[str, str], list[tuple[str, ...]]] = {}
    span_us: dict[tuple[str, str], list[int]] = {}
    for row in pq.read_table(simulated / "oracle.parquet").to_pylist():
        if row["story"] is None:
            continue
        assert row["story_event_ids"][-1] == row["event_id"]
        key = row["story"], row["kind"]
        told.setdefault(key, []).append(tuple(type_of[e] for e in row["story_event_ids"]))
        span_us.setdefault(key, []).append(time_of[row["event_id"]] - time_of[row["story_event_ids"][0]])
    for story in STORIES:
        fraud, same = told[story, "fraud"], told[story, "honest_same"]
        order, timing = told[story, "order_decoy"], told[story, "timing_decoy"]
        assert not set(order) & set(fraud)
        short = [Counter(types) for types in fraud if len(types) <= 4]
        assert all(any(Counter(types) == bag for bag in short) for types in order if len(types) <= 3)
        common = {types for types, n in Counter(fraud).items() if n >= 5}
        assert common
        assert common <= set(timing)
        assert {types for types, n in Counter(timing).items() if n >= 20} <= set(fraud)
        assert set(same) & set(fraud)
        # Same pace for the order decoy, at least eight times slower for the timing decoy.
        fraud_us = np.median(span_us[story, "fraud"])
        assert 0.6 < np.median(span_us[story, "order_decoy"]) / fraud_us < 1.7
        assert np.median(span_us[story, "timing_decoy"]) > 8 * fraud_us


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(tmp_path: Path) -> None:
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        simulate(tmp_path / name, users=120, days=30, seed=seed, fraud_rate=0.05)
    a, b, c = (_digests(tmp_path / name) for name in "abc")
    assert set(a) == set(FILES)
    assert a == b
    assert all(a[name] != c[name] for name in FILES)


def test_events_are_in_order_with_unique_ids_and_values_where_they_belong(simulated: Path) -> None:
    events = pq.read_table(simulated / "events.parquet")
    assert events.column_names == ["event_id", "user_id", "ts", "type", "amount", "channel", "payee", "device"]
    assert events.schema.field("ts").type == pa.timestamp("us", tz="UTC")
    assert events.schema.field("amount").type == pa.float64()
    assert pc.count_distinct(events["event_id"]).as_py() == events.num_rows
    assert np.all(np.diff(events["ts"].cast(pa.int64()).to_numpy()) >= 0)
    assert events["event_id"].to_pylist() == sorted(events["event_id"].to_pylist())
    for column, types in (("amount", AMOUNT_TYPES), ("payee", PAYEE_TYPES)):
        expected = pc.is_in(events["type"], value_set=pa.array(types))
        assert pc.is_valid(events[column]).equals(expected), column
    assert pc.min(events["amount"]).as_py() > 0
    assert events["user_id"].null_count == events["type"].null_count == events["channel"].null_count == 0


def test_the_oracle_has_one_row_per_decision_event_and_its_truth_follows_its_kind(simulated: Path) -> None:
    events = pq.read_table(simulated / "events.parquet")
    decisions = events.filter(pc.is_in(events["type"], value_set=pa.array(DECISION_TYPES)))
    oracle = pq.read_table(simulated / "oracle.parquet")
    assert oracle.column_names == [
        "event_id", "user_id", "p_fraud", "is_fraud", "story", "kind", "story_event_ids",
    ]  # fmt: skip
    assert oracle.select(["event_id", "user_id"]).equals(decisions.select(["event_id", "user_id"]))
    for row in oracle.to_pylist():
        assert row["is_fraud"] == (row["kind"] in ("fraud", "atypical"))
        assert (row["story"] is None) == (row["kind"] in ("normal", "atypical"))
        assert bool(row["story_event_ids"]) == (row["kind"] != "normal")
        assert 0.0 <= row["p_fraud"] <= 1.0


def test_reported_labels_miss_some_fraud_accuse_some_honesty_and_come_days_late(simulated: Path) -> None:
    labels = pq.read_table(simulated / "labels.parquet")
    oracle = pq.read_table(simulated / "oracle.parquet")
    events = pq.read_table(simulated / "events.parquet", columns=["event_id", "ts"])
    fraud = set(oracle.filter(oracle["is_fraud"])["event_id"].to_pylist())
    reported = set(labels["event_id"].to_pylist())
    assert len(reported) == labels.num_rows
    assert reported <= set(oracle["event_id"].to_pylist())
    assert pc.all(pc.equal(labels["fraud"], 1)).as_py()
    assert 0.02 < len(fraud - reported) / len(fraud) < 0.16
    assert 0.002 < len(reported - fraud) / len(fraud) < 0.1
    joined = labels.join(events, "event_id")
    delay_us = pc.subtract(joined["known_at"].cast(pa.int64()), joined["ts"].cast(pa.int64())).to_numpy()
    assert delay_us.min() > 0.3 * DAY_US
    assert 2 * DAY_US < np.quantile(delay_us, 0.2) < 7 * DAY_US
    assert 9 * DAY_US < np.quantile(delay_us, 0.95) < 30 * DAY_US


def test_the_config_loads_and_names_columns_and_types_that_exist(simulated: Path) -> None:
    config = load_config(simulated / "config.toml")
    columns = pq.read_schema(simulated / config.log.events).names
    named = [config.log.user, config.log.time, *config.log.type_columns, config.log.event_id, config.fields.amount]
    assert {*named, *config.fields.categorical, *config.fields.entity} == set(columns)
    assert set(config.fields.key_types) < set(EVENT_TYPES)
    assert set(config.decisions.on) == set(DECISION_TYPES)
    assert config.labels is not None
    assert config.labels.path is not None
    label_columns = pq.read_schema(simulated / config.labels.path).names
    assert [*config.labels.key, config.labels.column, config.labels.known_at] == label_columns


def test_the_summary_counts_what_the_files_hold(tmp_path: Path) -> None:
    summary = simulate(tmp_path / "bank", users=10, days=7)
    oracle = pq.read_table(tmp_path / "bank" / "oracle.parquet")
    assert summary["n_events"] == pq.read_metadata(tmp_path / "bank" / "events.parquet").num_rows
    assert summary["n_decisions"] == oracle.num_rows == sum(summary["kinds"].values())  # type: ignore[union-attr]
    assert summary["n_fraud"] == pc.sum(oracle["is_fraud"], min_count=0).as_py()
    assert summary["n_users"] == 10


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("users", 9),
        ("users", 10.5),
        ("users", True),
        ("days", 6),
        ("seed", -1),
        ("fraud_rate", 0.0),
        ("fraud_rate", 0.11),
        ("fraud_rate", math.nan),
    ],
)
def test_an_argument_out_of_range_is_refused_by_name_and_value(tmp_path: Path, name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"^{name} = {value!r}: expected "):
        simulate(tmp_path / "bank", **{name: value})  # type: ignore[arg-type]
    assert not (tmp_path / "bank").exists()


def test_a_folder_with_something_in_it_is_refused_until_told_to_overwrite(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"notes\.txt"):
        simulate(tmp_path, users=10, days=7)
    simulate(tmp_path, users=60, days=20, fraud_rate=0.1, overwrite=True)
    before = _digests(tmp_path)
    simulate(tmp_path, users=60, days=20, fraud_rate=0.1, seed=1, overwrite=True)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert all(_digests(tmp_path)[name] != before[name] for name in FILES)
    with pytest.raises(ConfigError, match="is a file"):
        simulate(tmp_path / "notes.txt", users=10, days=7, overwrite=True)


def test_no_room_leaves_no_file_and_more_room_mends_it(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            simulate(tmp_path / "bank", users=200, days=20)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list((tmp_path / "bank").iterdir())
    simulate(tmp_path / "bank", users=200, days=20)
    assert set(_digests(tmp_path / "bank")) == set(FILES)
