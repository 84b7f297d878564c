"""The adapters of public logs: what leaks never reaches the log, and the protocol is the published one."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from benchmarks.datasets import bpi12_loan, fdh_cards, fdh_judge, wikipedia_bans
from fraud.config import load_config
from fraud.errors import DataError
from pipelines.console import Screen
from pipelines.prepare import prepare_log

Json = dict[str, Any]  # Any: JSON
START = datetime(2012, 1, 1, tzinfo=UTC)


def _loans(n_cases: int, seed: int = 0) -> tuple[list[Json], list[Json]]:
    """Return (events, cases) in the raw columns: cases of 1 to 60 events, with leaks, some never decided."""
    rng = np.random.default_rng(seed)
    events: list[Json] = []
    cases: list[Json] = []
    for case in range(n_cases):
        n_events = int(rng.integers(1, 60))
        time = START + timedelta(hours=int(rng.integers(0, 2000)))
        for pos in range(n_events):
            is_review = rng.random() < 0.1
            events.append(
                {
                    "case_id": f"c{case}",
                    "pos": pos,
                    "timestamp": time,
                    "activity": "W_Beoordelen fraude" if is_review else f"A_{rng.integers(5)}",
                    "lifecycle": "COMPLETE",
                    "resource": str(rng.choice(["112", *bpi12_loan.LEAKING_RESOURCES])),
                }
            )
            time += timedelta(hours=float(rng.integers(0, 40)))
        decided = None if rng.random() < 0.1 else float(rng.integers(0, n_events))
        is_declined = int(decided is not None and rng.random() < 0.5)
        cases.append({"case_id": f"c{case}", "declined": is_declined, "decision_pos": decided})
        cases[-1] |= {"accepted": 1 - is_declined, "amount_req": 100.0 * case}
    return events, cases


def _slow_examples(events: list[Json], cases: list[Json]) -> dict[str, tuple[int, str]]:
    """Return {event id: (declined, part)} of the protocol, read off its words one case at a time."""
    prefixes: dict[str, list[Json]] = {}
    for case in cases:
        if case["decision_pos"] is not None:
            own = [e for e in events if e["case_id"] == case["case_id"] and e["pos"] < case["decision_pos"]]
            kept = [e for e in own if e["activity"] != "W_Beoordelen fraude"]
            if kept:
                prefixes[case["case_id"]] = kept
    starts = sorted(kept[0]["timestamp"] for kept in prefixes.values())
    valid_from, test_from = starts[int(len(starts) * 0.72)], starts[int(len(starts) * 0.8)]
    declined = {case["case_id"]: case["declined"] for case in cases}
    found: dict[str, tuple[int, str]] = {}
    for name, kept in prefixes.items():
        start = kept[0]["timestamp"]
        for length in range(3, min(len(kept), 40) + 1):
            last = kept[length - 1]
            if start >= test_from:
                part = "test"
            elif last["timestamp"] >= test_from:
                continue
            else:
                part = "valid" if start >= valid_from else "train"
            found[f"{name}:{last['pos']}"] = (declined[name], part)
    return found


def test_each_prefix_of_a_loan_is_one_example_of_the_published_protocol() -> None:
    events, cases = _loans(150)
    log, labels = bpi12_loan.adapt(pa.Table.from_pylist(events), pa.Table.from_pylist(cases))
    examples = {
        row["event_id"]: (row["declined"], row["part"])
        for row in labels.to_pylist()
        if row["declined"] is not None and row["part"] != "history"
    }
    assert examples == _slow_examples(events, cases)
    assert {part for _, part in examples.values()} == {"train", "valid", "test"}
    assert log["event_id"].to_pylist() == labels["event_id"].to_pylist()


def test_no_leak_of_a_loan_reaches_the_log() -> None:
    events, cases = _loans(150)
    log, _ = bpi12_loan.adapt(pa.Table.from_pylist(events), pa.Table.from_pylist(cases))
    assert log.column_names == ["event_id", "case_id", "pos", "ts", "activity", "lifecycle", "amount_requested"]
    decided_at = {case["case_id"]: case["decision_pos"] for case in cases}
    for row in log.to_pylist():
        assert row["pos"] < decided_at[row["case_id"]]
        assert row["activity"] not in bpi12_loan.LEAKING_ACTIVITIES


def test_the_whole_loan_log_is_adapted_without_a_leak_and_read_whole(shared_data: Path, tmp_path: Path) -> None:
    raw = shared_data / "bpi12_loan"
    counts = bpi12_loan.write_dataset(raw, tmp_path)
    log = pq.read_table(tmp_path / "events.parquet")
    cases = pq.read_table(raw / "cases.parquet", columns=["case_id", "decision_pos"])
    decision_pos = cases["decision_pos"].take(pc.index_in(log["case_id"], value_set=cases["case_id"].cast(pa.string())))
    assert pc.all(pc.less(log["pos"], decision_pos)).as_py()
    assert not pc.any(pc.is_in(log["activity"], pa.array(bpi12_loan.LEAKING_ACTIVITIES))).as_py()
    assert "resource" not in log.column_names
    assert (counts["events"], counts["cases"]) == (219_277, 12_688)
    config = load_config(tmp_path / "config.toml")
    report = prepare_log(config, tmp_path / "prepared", overwrite=False, screen=Screen(as_json=True))
    assert (report["rows_used"], report["quarantined"], report["labels_unmatched"]) == (219_277, 0, 0)
    trains = np.fromfile(tmp_path / "prepared" / "trains_N.bin", dtype=np.bool_)
    tests = np.fromfile(tmp_path / "prepared" / "tests_N.bin", dtype=np.bool_)
    assert (int(trains.sum()), int(tests.sum())) == (counts["train"], counts["test"])


def _payments(n_days: int, per_day: int, seed: int = 0) -> pa.Table:
    """Return raw payments from 2018-07-18 on, a tenth of them fraud."""
    rng = np.random.default_rng(seed)
    n_rows = n_days * per_day
    start_ms = int(datetime(2018, 7, 18, tzinfo=UTC).timestamp() * 1000)
    time_ms = np.sort(rng.integers(0, n_days * 86_400_000, n_rows)) + start_ms
    return pa.table(
        {
            "TRANSACTION_ID": np.arange(n_rows),
            "TX_DATETIME": pa.array(time_ms).cast(pa.timestamp("ms")),
            "CUSTOMER_ID": rng.integers(0, 400, n_rows).astype(np.int32),
            "TERMINAL_ID": rng.integers(0, 50, n_rows).astype(np.int32),
            "TX_AMOUNT": rng.gamma(2, 30, n_rows),
            "TX_TIME_DAYS": np.zeros(n_rows, dtype=np.int32),
            "TX_FRAUD": (rng.random(n_rows) < 0.02).astype(np.int8),
            "TX_FRAUD_SCENARIO": np.full(n_rows, 3, dtype=np.int8),
        }
    )


def test_a_fold_of_the_cards_trains_a_week_waits_a_week_and_tests_a_week() -> None:
    log = fdh_cards.adapt(_payments(60, 40))
    assert set(log.column_names) == {*fdh_cards.COLUMNS.values(), *(f"part_{fold}" for fold in fdh_cards.FOLDS)}
    for fold in fdh_cards.FOLDS:
        train_from = datetime.fromisoformat(fold)
        for time, part in zip(log["ts"].to_pylist(), log[f"part_{fold}"].to_pylist(), strict=True):
            day = (time - train_from) // timedelta(days=1)
            expected = {-1: "valid", 0: "train", 2: "test"}.get(day // 7, "history")
            assert part == expected, (fold, time)


def test_the_scenario_of_a_fraud_never_reaches_the_cards_log() -> None:
    log = fdh_cards.adapt(_payments(60, 40))
    # By content, under whatever name: the scenario is 3 in every raw row, as nothing else is.
    assert not [name for name in log.column_names if set(log[name].to_pylist()) == {3}]


def _slow_known(log: list[Json], train_from: datetime, test_day: int) -> set[int]:
    days = [*range(7), *range(7, 7 + test_day)]
    return {r["customer"] for r in log if r["fraud"] and (r["ts"] - train_from) // timedelta(days=1) in days}


def test_a_test_day_is_judged_without_the_customers_known_as_defrauded_by_then() -> None:
    log = fdh_cards.adapt(_payments(40, 60))
    fold = fdh_cards.FOLDS[0]
    scores = pa.table({"event_id": log["event_id"].cast(pa.string()), "score": pa.array(np.arange(len(log)) / 1e6)})
    judged = fdh_judge.judged_payments(log, fold, scores)
    train_from, rows = datetime.fromisoformat(fold), log.to_pylist()
    expected = [
        (day, row["customer"], row["fraud"], n / 1e6)
        for n, row in enumerate(rows)
        if 0 <= (day := (row["ts"] - train_from) // timedelta(days=1) - 14) < 7
        and row["customer"] not in _slow_known(rows, train_from, day)
    ]
    assert len(expected) > 50
    columns = (judged.day_N, judged.customer_N, judged.label_N, judged.score_N)
    assert list(zip(*(column.tolist() for column in columns), strict=True)) == expected


def test_a_payment_without_a_score_is_an_error() -> None:
    log = fdh_cards.adapt(_payments(40, 20))
    scores = pa.table({"event_id": log["event_id"].cast(pa.string()), "score": pa.array(np.zeros(len(log)))})
    with pytest.raises(DataError, match="have no score"):
        fdh_judge.judged_payments(log, fdh_cards.FOLDS[0], scores.slice(0, 300))


def test_card_precision_takes_a_hundred_cards_a_day_and_forgets_those_caught() -> None:
    n_cards = 150
    day_N = np.repeat(np.arange(2), n_cards)
    customer_N = np.tile(np.arange(n_cards), 2)
    # On day 0 the 40 highest cards are fraud. On day 1 they are so again, but were caught; 10 others are fraud as well.
    label_N = ((customer_N < 40) | ((day_N == 1) & (customer_N >= 40) & (customer_N < 50))).astype(np.int8)
    for top in (1.0, -3.0):  # probabilities, or logits below 0
        judged = fdh_judge.Judged(day_N, n_cards - customer_N, label_N, top - customer_N / n_cards)
        assert fdh_judge.card_precision(judged) == pytest.approx((0.40 + 0.10) / fdh_judge.TEST_DAYS)


def test_wikipedias_edits_are_adapted_with_nothing_of_what_came_later(shared_data: Path, tmp_path: Path) -> None:
    assert wikipedia_bans.write_dataset(shared_data / "wikipedia_bans", tmp_path) == {"edits": 157_473, "bans": 217}
    config = load_config(tmp_path / "config.toml")
    assert pq.read_schema(tmp_path / "events.parquet").names == ["event_id", "user", "page", "ts", "banned_after"]
    report = prepare_log(config, tmp_path / "prepared", overwrite=False, screen=Screen(as_json=True))
    assert (report["rows_used"], report["quarantined"]) == (157_473, 0)


@pytest.mark.parametrize("fold", fdh_cards.FOLDS)
def test_the_configuration_of_each_fold_is_valid(fold: str, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(fdh_cards.CONFIG.format(fold=fold), encoding="utf-8")
    assert load_config(tmp_path / "config.toml").split.column == f"part_{fold}"
