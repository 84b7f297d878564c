"""Risk of a payee, a device or a terminal: the known frauds and the volume it has seen, as known at the time.

Everything is counted in complete UTC hours before the hour of the event, so the order of events of different users
inside an hour cannot matter. Volume counts in the hour of the event; a label, fraud or honest, in the hour it BECAME
known. The counters are sums, so the table of a long log is the merged tables of its parts, and the same table serves a
batch pass and the online store.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fraud.events import NULL_CODE, BoolArray, FloatArray, IntArray, ObjectArray, Text

HOUR_US = 3600 * 10**6
NEVER_KNOWN_US = -1
RISK_WINDOWS_DAYS = (1, 7, 28)
RISK_NAMES = (
    *(f"{what}_{days}d" for what in ("known_frauds", "volume", "fraud_share") for days in RISK_WINDOWS_DAYS),
    "days_since_first_fraud",
    "days_since_last_fraud",
    "fraud_run",
    "fraud_run_days",
)
_HOUR_BITS = 22  # hours since 1970 up to 2199 need 21 bits
_HOUR_MASK = (1 << _HOUR_BITS) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class EntityTable:
    """Hourly counters of the entities of one field: E entities, sparse in time.

    values: object [E], sorted by code point. key: int64 [K], sorted: entity << 22 | hour since 1970. volume, frauds,
    honest: int64 [K]: the events of that entity in that hour, and the labels that became known in it.
    """

    values: ObjectArray
    key: IntArray
    volume: IntArray
    frauds: IntArray
    honest: IntArray


def entity_table(column: Text, time_us_N: IntArray, fraud_us_N: IntArray, honest_us_N: IntArray) -> EntityTable:
    """Return the counters of one entity field over N events.

    fraud_us_N, honest_us_N: int64, when the event became known as fraud, as honest; NEVER_KNOWN_US where it did not.
    """
    used = np.unique(column.codes_N[column.codes_N != NULL_CODE])
    values, sorted_code = np.unique(column.values[used], return_inverse=True)
    code_of = np.full(len(column.values) + 1, NULL_CODE, dtype=np.int64)
    code_of[used] = sorted_code
    entity_N = code_of[column.codes_N]
    counted: list[tuple[IntArray, IntArray]] = []
    for us_N in (time_us_N, fraud_us_N, honest_us_N):
        counted_N = (entity_N != NULL_CODE) & (us_N != NEVER_KNOWN_US)
        key_R = (entity_N[counted_N] << _HOUR_BITS) | (us_N[counted_N] // HOUR_US)
        counted.append(np.unique(key_R, return_counts=True))
    return _table(values.astype(object), counted)


def merge_entity_tables(tables: list[EntityTable]) -> EntityTable:
    """Return one table with the sums of all."""
    values, inverse = np.unique(np.concatenate([table.values for table in tables]), return_inverse=True)
    starts = np.cumsum([0, *(len(table.values) for table in tables)])
    key = np.concatenate(
        [
            (inverse[start + (table.key >> _HOUR_BITS)].astype(np.int64) << _HOUR_BITS) | (table.key & _HOUR_MASK)
            for table, start in zip(tables, starts, strict=False)
        ]
    )
    order = np.argsort(key, kind="stable")
    is_first = np.diff(key[order], prepend=-1) != 0
    counts = (np.concatenate([getattr(table, name) for table in tables]) for name in ("volume", "frauds", "honest"))
    unique = key[order][is_first]
    return _table(values.astype(object), [(unique, _sums(count[order], is_first)) for count in counts])


def _sums(values_R: IntArray, is_first_R: BoolArray) -> IntArray:
    """Return int64 [K]: the sum of the values from each first row up to the next."""
    total_R1 = np.concatenate([[0], np.cumsum(values_R)])
    return np.diff(total_R1[np.append(np.flatnonzero(is_first_R), len(values_R))])


def _table(values: ObjectArray, counted: Sequence[tuple[IntArray, IntArray]]) -> EntityTable:
    """Return the table of (keys, counts), sorted and each key once, of volume, frauds and honest labels."""
    # numpy's own unique goes through a hash table here: ten times as slow as sorting what is sorted in three parts.
    sorted_key = np.sort(np.concatenate([own for own, _ in counted]), kind="stable")
    key = sorted_key[np.diff(sorted_key, prepend=-1) != 0]
    columns = [np.zeros(len(key), dtype=np.int64) for _ in counted]
    for column, (own, count) in zip(columns, counted, strict=True):
        column[np.searchsorted(key, own)] = count
    volume, frauds, honest = columns
    return EntityTable(values=values, key=key, volume=volume, frauds=frauds, honest=honest)


def entity_risk(table: EntityTable, column: Text, time_us_N: IntArray) -> FloatArray:
    """Return float64 [N, R], the columns RISK_NAMES; NaN where the entity is null, and in days where no fraud is known.

    Counts are over the 24, 168 and 672 complete hours before the hour of the event. A share is of the labels known
    in that time, one honest label added: no label is a share of 0, and one fraud alone says less than seven. The run is
    of the frauds that became known in the last 28 days with no honest label after the first of them.
    """
    span = _span(table, column, time_us_N)
    totals = {name: np.concatenate([[0], np.cumsum(getattr(table, name))]) for name in ("volume", "frauds", "honest")}
    frauds_N1, honest_N1 = totals["frauds"], totals["honest"]
    columns: dict[str, FloatArray | IntArray] = {}
    start_N = span.end_N
    for days in RISK_WINDOWS_DAYS:
        start_N = np.searchsorted(table.key, span.base_N + np.maximum(span.hour_N - 24 * days, 0))
        known_N = frauds_N1[span.end_N] - frauds_N1[start_N]
        labels_N = known_N + honest_N1[span.end_N] - honest_N1[start_N]
        columns[f"known_frauds_{days}d"] = known_N
        columns[f"volume_{days}d"] = totals["volume"][span.end_N] - totals["volume"][start_N]
        columns[f"fraud_share_{days}d"] = known_N / (labels_N + 1)
    is_fraud_K, is_honest_K = table.frauds > 0, table.honest > 0
    next_fraud_K1, last_fraud_K1 = _next(is_fraud_K), _last(is_fraud_K)
    columns["days_since_first_fraud"] = _days_since(table, span, next_fraud_K1[span.begin_N])
    columns["days_since_last_fraud"] = _days_since(table, span, last_fraud_K1[span.end_N])
    run_N = np.maximum(_last(is_honest_K)[span.end_N] + 1, start_N)
    columns["fraud_run"] = frauds_N1[span.end_N] - frauds_N1[run_N]
    columns["fraud_run_days"] = _days_since(table, span, next_fraud_K1[run_N])
    risk_NR = np.empty((len(time_us_N), len(RISK_NAMES)), dtype=np.float64)
    for r, name in enumerate(RISK_NAMES):
        risk_NR[span.order_N, r] = columns[name]
    risk_NR[column.codes_N == NULL_CODE] = np.nan
    return risk_NR


class _Span(NamedTuple):
    """What of the table each of N events may know, by entity and time: rows begin_N : end_N.

    order_N: which event each is (in sorted order the table is read from its start to its end, from the cache, several
    times as fast). base_N: the key of its entity at hour 0.
    """

    order_N: IntArray
    base_N: IntArray
    hour_N: IntArray
    begin_N: IntArray
    end_N: IntArray


def _span(table: EntityTable, column: Text, time_us_N: IntArray) -> _Span:
    values = table.values
    place = np.minimum(np.searchsorted(values, column.values), max(len(values) - 1, 0)) if len(values) else None
    is_known = np.zeros(len(column.values), dtype=np.bool_) if place is None else values[place] == column.values
    # An entity that the table does not hold stands after all that it does, with no row of its own.
    entity_of = np.where(is_known, 0 if place is None else place, len(values)).astype(np.int64)
    key_N = (np.append(entity_of, len(values))[column.codes_N] << _HOUR_BITS) | (time_us_N // HOUR_US)
    order_N = np.argsort(key_N, kind="stable")
    key_N = key_N[order_N]
    hour_N = key_N & _HOUR_MASK
    begin_K = np.searchsorted(table.key, np.arange(len(values) + 1) << _HOUR_BITS)
    begin_N = begin_K[key_N >> _HOUR_BITS]
    return _Span(order_N, key_N - hour_N, hour_N, begin_N, np.searchsorted(table.key, key_N))


def _next(is_K: BoolArray) -> IntArray:
    """Return int64 [K + 1]: the first row from each on (and from the end) where is_K, K where there is none."""
    rows_K1 = np.append(np.where(is_K, np.arange(len(is_K)), len(is_K)), len(is_K))
    return np.minimum.accumulate(rows_K1[::-1])[::-1]


def _last(is_K: BoolArray) -> IntArray:
    """Return int64 [K + 1]: the last row before each (and before the end) where is_K, -1 where there is none."""
    return np.maximum.accumulate(np.concatenate([[-1], np.where(is_K, np.arange(len(is_K)), -1)]))


def _days_since(table: EntityTable, span: _Span, row_N: IntArray) -> FloatArray:
    """Return float64 [N]: the days since the hour of a row, NaN where the event may not know that row."""
    is_there_N = (row_N >= span.begin_N) & (row_N < span.end_N)
    row_hour_N = np.append(table.key & _HOUR_MASK, 0)[np.where(is_there_N, row_N, len(table.key))]
    return np.where(is_there_N, (span.hour_N - row_hour_N) / 24, np.nan)
