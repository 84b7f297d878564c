"""Risk of a payee, a device or a terminal: the known frauds and the volume it has seen, as known at the time.

Everything is counted in complete UTC hours before the hour of the event, so the order of events of different users
inside an hour cannot matter. Volume counts in the hour of the event, a fraud in the hour it BECAME known. The counters
are sums, so the table of a long log is the merged tables of its parts, and the same table serves a batch pass and the
online store.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fraud.events import NULL_CODE, FloatArray, IntArray, ObjectArray, Text

HOUR_US = 3600 * 10**6
RISK_WINDOWS_DAYS = (1, 7, 28)
RISK_NAMES = (
    *(f"{what}_{days}d" for what in ("known_frauds", "volume") for days in RISK_WINDOWS_DAYS),
    "days_since_first_fraud",
    "days_since_last_fraud",
)
_HOUR_BITS = 22  # hours since 1970 up to 2199 need 21 bits


@dataclass(frozen=True, slots=True, kw_only=True)
class EntityTable:
    """Hourly counters of the entities of one field: E entities, sparse in time.

    values: object [E], sorted by code point. volume_key, fraud_key: int64 [K], sorted: entity << 22 | hour since 1970.
    volume, frauds: int64 [K], the counts of that entity in that hour.
    """

    values: ObjectArray
    volume_key: IntArray
    volume: IntArray
    fraud_key: IntArray
    frauds: IntArray


def entity_table(column: Text, time_us_N: IntArray, is_fraud_N: IntArray, known_us_N: IntArray) -> EntityTable:
    """Return the counters of one entity field over N events.

    is_fraud_N: 1 where the event has a fraud label, else 0. known_us_N: when that label became known (int64).
    """
    used = np.unique(column.codes_N[column.codes_N != NULL_CODE])
    values, sorted_code = np.unique(column.values[used], return_inverse=True)
    code_of = np.full(len(column.values) + 1, NULL_CODE, dtype=np.int64)
    code_of[used] = sorted_code
    entity_N = code_of[column.codes_N]
    present_N = entity_N != NULL_CODE
    volume_key, volume = np.unique(_key(entity_N[present_N], time_us_N[present_N]), return_counts=True)
    fraud_N = present_N & (is_fraud_N == 1)
    fraud_key, frauds = np.unique(_key(entity_N[fraud_N], known_us_N[fraud_N]), return_counts=True)
    return EntityTable(
        values=values.astype(object), volume_key=volume_key, volume=volume, fraud_key=fraud_key, frauds=frauds
    )


def merge_entity_tables(tables: list[EntityTable]) -> EntityTable:
    """Return one table with the sums of all."""
    values, inverse = np.unique(np.concatenate([table.values for table in tables]), return_inverse=True)
    starts = np.cumsum([0, *(len(table.values) for table in tables)])

    def moved(key: IntArray, start: int) -> IntArray:
        return (inverse[start + (key >> _HOUR_BITS)].astype(np.int64) << _HOUR_BITS) | (key & ((1 << _HOUR_BITS) - 1))

    def summed(keys: list[IntArray], counts: list[IntArray]) -> tuple[IntArray, IntArray]:
        unique, place = np.unique(np.concatenate(keys), return_inverse=True)
        total = np.zeros(len(unique), dtype=np.int64)
        np.add.at(total, place, np.concatenate(counts))
        return unique, total

    volume_key, volume = summed(
        [moved(t.volume_key, s) for t, s in zip(tables, starts, strict=False)], [t.volume for t in tables]
    )
    fraud_key, frauds = summed(
        [moved(t.fraud_key, s) for t, s in zip(tables, starts, strict=False)], [t.frauds for t in tables]
    )
    return EntityTable(
        values=values.astype(object), volume_key=volume_key, volume=volume, fraud_key=fraud_key, frauds=frauds
    )


def entity_risk(table: EntityTable, column: Text, time_us_N: IntArray) -> FloatArray:
    """Return float64 [N, 8], the columns RISK_NAMES; NaN where the entity is null, and for "days since" where no fraud
    is known.

    Counts are over the 24, 168 and 672 complete hours before the hour of the event.
    """
    place = np.searchsorted(table.values, column.values) if len(table.values) else np.zeros(len(column.values), int)
    place = np.minimum(place, max(len(table.values) - 1, 0))
    is_known = table.values[place] == column.values if len(table.values) else np.zeros(len(column.values), np.bool_)
    entity_of = np.append(np.where(is_known, place, NULL_CODE), NULL_CODE).astype(np.int64)
    entity_N = entity_of[column.codes_N]
    hour_N = time_us_N // HOUR_US
    base_N = np.where(entity_N == NULL_CODE, -1, entity_N << _HOUR_BITS)
    risk_NR = np.zeros((len(time_us_N), len(RISK_NAMES)), dtype=np.float64)
    for offset, (key, count) in enumerate(((table.fraud_key, table.frauds), (table.volume_key, table.volume))):
        total = np.concatenate([[0], np.cumsum(count)])
        end_N = np.searchsorted(key, base_N + hour_N)
        for w, days in enumerate(RISK_WINDOWS_DAYS):
            start_N = np.searchsorted(key, base_N + np.maximum(hour_N - 24 * days, 0))
            risk_NR[:, offset * len(RISK_WINDOWS_DAYS) + w] = total[end_N] - total[start_N]
    risk_NR[:, -2:] = np.nan
    end_N = np.searchsorted(table.fraud_key, base_N + hour_N)
    first_N = np.searchsorted(table.fraud_key, base_N)
    has_N = (entity_N != NULL_CODE) & (end_N > first_N)
    mask = (1 << _HOUR_BITS) - 1
    risk_NR[has_N, -2] = (hour_N[has_N] - (table.fraud_key[first_N[has_N]] & mask)) / 24
    risk_NR[has_N, -1] = (hour_N[has_N] - (table.fraud_key[end_N[has_N] - 1] & mask)) / 24
    risk_NR[entity_N == NULL_CODE] = 0.0
    risk_NR[entity_N == NULL_CODE, -2:] = np.nan
    risk_NR[column.codes_N == NULL_CODE] = np.nan
    return risk_NR


def _key(entity_R: IntArray, time_us_R: IntArray) -> IntArray:
    return (entity_R << _HOUR_BITS) | (time_us_R // HOUR_US)
