"""The risk of an entity: what was known of it in complete hours before the event, by a plain loop over all events."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fraud.entities import (
    HOUR_US,
    NEVER_KNOWN_US,
    RISK_NAMES,
    RISK_WINDOWS_DAYS,
    EntityTable,
    entity_risk,
    entity_risks,
    entity_table,
    merge_entity_tables,
)
from fraud.events import IntArray, Text, text_from_objects

SEEDS = st.integers(0, 2**32 - 1)
START_US = 500_000 * HOUR_US


def _made(seed: int, n_events: int = 60) -> tuple[Text, IntArray, IntArray, IntArray]:
    """Return (entities, times, known as fraud, known as honest) of events over two months; some labels never come."""
    rng = np.random.default_rng(seed)
    cells = rng.choice(np.array([None, "p", "q", "r"], dtype=object), n_events)
    time_us = np.sort(START_US + rng.integers(0, 60 * 24, n_events) * HOUR_US + rng.integers(0, 3, n_events))
    known_us = time_us + rng.integers(0, 20 * 24, n_events) * HOUR_US
    label = rng.choice([-1, 0, 0, 1, 1], n_events)
    fraud_us, honest_us = (np.where(label == value, known_us, NEVER_KNOWN_US) for value in (1, 0))
    return text_from_objects(cells), time_us, fraud_us, honest_us


def _slow_risk(column: Text, time_us: IntArray, fraud_us: IntArray, honest_us: IntArray, n: int) -> dict[str, float]:
    own = column.to_objects()
    same = [k for k in range(len(own)) if own[k] is not None and own[k] == own[n]]
    hour = time_us[n] // HOUR_US

    def ages(us: IntArray) -> list[int]:
        return [hour - us[k] // HOUR_US for k in same if us[k] != NEVER_KNOWN_US and us[k] // HOUR_US < hour]

    frauds, honest, volume = ages(fraud_us), ages(honest_us), ages(time_us)
    risk: dict[str, float] = {}
    for days in RISK_WINDOWS_DAYS:
        known, settled, seen = (sum(age <= 24 * days for age in of) for of in (frauds, honest, volume))
        risk |= {f"known_frauds_{days}d": known, f"volume_{days}d": seen}
        risk[f"fraud_share_{days}d"] = known / (known + settled + 1)
    run = [age for age in frauds if age <= 24 * 28 and age < min(honest, default=10**9)]
    risk["days_since_first_fraud"] = max(frauds, default=math.nan) / 24
    risk["days_since_last_fraud"] = min(frauds, default=math.nan) / 24
    return risk | {"fraud_run": len(run), "fraud_run_days": max(run, default=math.nan) / 24}


@given(seed=SEEDS)
def test_the_risk_of_an_entity_equals_a_plain_loop_over_all_events(seed: int) -> None:
    column, time_us, fraud_us, honest_us = _made(seed)
    got = entity_risk(entity_table(column, time_us, fraud_us, honest_us), column, time_us)
    for n in range(len(time_us)):
        if column.codes_N[n] < 0:
            assert np.isnan(got[n]).all()
        else:
            expected = _slow_risk(column, time_us, fraud_us, honest_us, n)
            assert dict(zip(RISK_NAMES, got[n], strict=True)) == pytest.approx(expected, nan_ok=True)


@given(seed=SEEDS)
def test_the_tables_of_the_parts_of_a_log_add_up_to_the_table_of_the_whole(seed: int) -> None:
    column, *times = _made(seed)
    cuts = [0, 13, 13, 40, len(column.codes_N)]
    parts = [
        entity_table(column.take(np.arange(first, last)), *(us[first:last] for us in times))
        for first, last in pairwise(cuts)
    ]
    whole, merged = entity_table(column, *times), merge_entity_tables(parts)
    for name in EntityTable.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(merged, name), getattr(whole, name))


def test_entity_risk_counts_complete_hours_and_known_frauds_only() -> None:
    time_us = START_US + np.array([0, 1, 30 * 60 * 10**6, HOUR_US, 24 * HOUR_US + 5, 25 * HOUR_US])
    column = Text(np.zeros(6, dtype=np.int32), np.array(["p"], dtype=object))
    fraud_us = np.array([START_US + 24 * HOUR_US, *[NEVER_KNOWN_US] * 5])
    table = entity_table(column, time_us, fraud_us, np.full(6, NEVER_KNOWN_US))
    risk = dict(zip(RISK_NAMES, entity_risk(table, column, time_us).T, strict=True))
    assert risk["volume_1d"].tolist() == [0, 0, 0, 3, 4, 2]  # the last: hours 1 .. 24 before it
    assert risk["volume_7d"].tolist() == [0, 0, 0, 3, 4, 5]
    assert risk["known_frauds_1d"].tolist() == [0, 0, 0, 0, 0, 1]  # known in hour 24, so it counts from hour 25 on
    assert np.isnan(risk["days_since_last_fraud"][4])
    assert risk["days_since_last_fraud"][5] == pytest.approx(1 / 24)


def test_an_entity_that_the_table_does_not_hold_has_no_frauds_and_no_volume() -> None:
    column, time_us, fraud_us, honest_us = _made(1)
    stranger = Text(np.zeros(3, dtype=np.int32), np.array(["zz"], dtype=object))
    tables = [
        entity_table(column, time_us, fraud_us, honest_us),
        entity_table(column.take(np.arange(0)), *(us[:0] for us in (time_us, fraud_us, honest_us))),
    ]
    for table in tables:
        risk = dict(zip(RISK_NAMES, entity_risk(table, stranger, time_us[-3:]).T, strict=True))
        assert all((risk[name] == 0).all() for name in RISK_NAMES if "days" not in name)
        assert all(np.isnan(risk[name]).all() for name in RISK_NAMES if "days" in name)


@given(seed=SEEDS)
def test_fields_that_are_read_together_have_the_risk_that_each_has_alone(seed: int) -> None:
    rng = np.random.default_rng(seed)
    columns: dict[str, Text] = {}
    tables: dict[str, EntityTable] = {}
    n_rows = int(rng.integers(0, 60))
    for name in ("payee", "device", "never set"):
        column, *times = _made(int(rng.integers(0, 2**31)))
        tables[name] = entity_table(column, *times)
        # In the order of another dictionary, one value of which the table does not hold, with room to grow.
        values = np.array([*rng.permutation(np.append(column.values, ["zz"])), *[None] * 9], dtype=object)
        codes = rng.integers(-1, len(column.values) + 1, n_rows) if name != "never set" else np.full(n_rows, -1)
        columns[name] = Text(codes.astype(np.int32), values)
    time_us = START_US + rng.integers(0, 90 * 24, n_rows) * HOUR_US
    together = entity_risks(tables, columns, time_us)
    assert list(together) == list(columns)
    for name, column in columns.items():
        alone = text_from_objects(column.to_objects())
        np.testing.assert_array_equal(together[name], entity_risk(tables[name], alone, time_us))


def test_of_a_long_table_a_few_events_read_their_own_entities_with_the_same_result() -> None:
    rng = np.random.default_rng(3)
    n_events = 6_000
    column = Text(rng.integers(0, 40, n_events).astype(np.int32), np.array([f"p{k:02d}" for k in range(40)], object))
    time_us = np.sort(START_US + rng.integers(0, 60 * 24, n_events) * HOUR_US)
    is_fraud = rng.random(n_events) < 0.05
    fraud_us, honest_us = (np.where(known, time_us + 30 * HOUR_US, NEVER_KNOWN_US) for known in (is_fraud, ~is_fraud))
    table = entity_table(column, time_us, fraud_us, honest_us)
    assert len(table.key) > 3_000
    whole = entity_risk(table, column, time_us)
    for first in range(0, n_events, 500):
        few = np.arange(first, first + 5)
        np.testing.assert_array_equal(entity_risk(table, column.take(few), time_us[few]), whole[few])
