"""Risk of a payee, a device or a terminal: the known frauds and the volume it has seen, as known at the time.

Everything is counted in complete UTC hours before the hour of the event, so the order of events of different users
inside an hour cannot matter. Volume counts in the hour of the event; a label, fraud or honest, in the hour it BECAME
known. The counters are sums, so the table of a long log is the merged tables of its parts, and the same table serves a
batch pass and the online store.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fraud.events import NULL_CODE, BoolArray, FloatArray, IntArray, ObjectArray, Text
from fraud.lookups import sorted_places

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
_HOURS_W1 = 24 * np.array(RISK_WINDOWS_DAYS)[:, None]
_SHORT_TABLE = 2_048  # rows of a table that are read as they are, even for one cell
_ROWS_A_CELL = 16  # and as many more for each cell; of a longer table only the rows of the entities are read
_CELLS_TOGETHER = 16_384  # cells of all fields up to which the fields are read together; above, it only fills the cache


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
    used = np.flatnonzero(np.bincount(column.codes_N[column.codes_N != NULL_CODE], minlength=len(column.values)))
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
    return _risks([table], [column], time_us_N)[0]


def entity_risks(
    tables: Mapping[str, EntityTable], columns: Mapping[str, Text], time_us_N: IntArray
) -> dict[str, FloatArray]:
    """Return `entity_risk` of each column, by name; of a small input all fields are read together."""
    names = list(columns)
    step = max(1, _CELLS_TOGETHER // max(len(time_us_N), 1))
    risk: dict[str, FloatArray] = {}
    for first in range(0, len(names), step):
        some = names[first : first + step]
        risk_FNR = _risks([tables[name] for name in some], [columns[name] for name in some], time_us_N)
        risk |= zip(some, risk_FNR, strict=True)
    return risk


def _risks(tables: Sequence[EntityTable], columns: Sequence[Text], time_us_N: IntArray) -> FloatArray:
    """Return `entity_risk` of some fields [F, N, R]."""
    cells = _cells(tables, columns, time_us_N)
    risk_CR = np.full((len(columns) * len(time_us_N), len(RISK_NAMES)), np.nan)
    if cells.counted is not None:
        for first in range(0, len(cells.order_E), _CELLS_TOGETHER):
            some = slice(first, first + _CELLS_TOGETHER)
            risk_CR[cells.order_E[some]] = _risk(cells.counted, cells.base_E[some], cells.hour_E[some]).T
    return risk_CR.reshape(len(columns), len(time_us_N), len(RISK_NAMES))


class _Counted(NamedTuple):
    """One table after another, as one table of all their entities: what lies before each row, and before the end.

    volume, frauds, honest: the sums of all rows before. hour: of each row, 0 at the end. n_fraud_rows: how many rows
    before have a fraud; fraud_rows: which these are, then K. n_honest_rows, after_honest_rows: likewise, but the rows
    AFTER those with an honest label, then 0.
    """

    key_K: IntArray
    hour_K1: IntArray
    volume_K1: IntArray
    frauds_K1: IntArray
    honest_K1: IntArray
    n_fraud_rows_K1: IntArray
    fraud_rows: IntArray
    n_honest_rows_K1: IntArray
    after_honest_rows: IntArray


class _Cells(NamedTuple):
    """E cells that are not null, sorted by entity and hour: order_E, which of the [F, N] cells each is.

    In sorted order the tables are read from start to end, from the cache, several times as fast. base_E: the key of the
    entity at hour 0. counted: the tables of the fields that have such a cell, None where none has.
    """

    order_E: IntArray
    base_E: IntArray
    hour_E: IntArray
    counted: _Counted | None


def _cells(tables: Sequence[EntityTable], columns: Sequence[Text], time_us_N: IntArray) -> _Cells:
    hour_N = time_us_N // HOUR_US
    cells: list[IntArray] = []
    keys: list[IntArray] = []
    used: list[EntityTable] = []
    first_entity = 0
    for f, (table, column) in enumerate(zip(tables, columns, strict=True)):
        rows = (column.codes_N != NULL_CODE).nonzero()[0]
        if not len(rows):
            continue
        # An entity that the table does not hold stands after all that it does, with no row of its own.
        entity = sorted_places(column.codes_N[rows], column.values, table.values)
        used.append(_few_rows(table, entity))
        keys.append((entity + first_entity << _HOUR_BITS) | hour_N[rows])
        cells.append(rows + f * len(hour_N))
        first_entity += len(table.values) + 1
    if not used:
        none = np.zeros(0, dtype=np.int64)
        return _Cells(none, none, none, None)
    key_E, cell_E = np.concatenate(keys), np.concatenate(cells)
    order = key_E.argsort(kind="stable")
    key_E = key_E[order]
    hour_E = key_E & _HOUR_MASK
    return _Cells(cell_E[order], key_E - hour_E, hour_E, _counted(used))


def _few_rows(table: EntityTable, entity_E: IntArray) -> EntityTable:
    """Return the table with the rows of these entities alone where it is far longer than they are many.

    Sums over a whole table cost 8 us for each 1,000 rows: nothing beside a chunk of a log, all beside a few events.
    """
    if len(table.key) < _SHORT_TABLE + _ROWS_A_CELL * len(entity_E):
        return table
    own = np.unique(entity_E)
    begin, end = table.key.searchsorted(np.stack([own, own + 1]) << _HOUR_BITS)
    n_rows = end - begin
    rows = np.arange(int(n_rows.sum())) + (end - n_rows.cumsum()).repeat(n_rows)
    return EntityTable(
        values=table.values,
        key=table.key[rows],
        volume=table.volume[rows],
        frauds=table.frauds[rows],
        honest=table.honest[rows],
    )


def _counted(tables: Sequence[EntityTable]) -> _Counted:
    volume_K, frauds_K, honest_K = (
        np.concatenate([getattr(table, name) for table in tables]) for name in ("volume", "frauds", "honest")
    )
    keys: list[IntArray] = []
    first_entity = 0
    for table in tables:
        keys.append(table.key + (first_entity << _HOUR_BITS))
        first_entity += len(table.values) + 1
    key_K = np.concatenate(keys)
    is_fraud_K, is_honest_K = frauds_K > 0, honest_K > 0
    return _Counted(
        key_K=key_K,
        hour_K1=np.append(key_K & _HOUR_MASK, 0),
        volume_K1=_sum_before(volume_K),
        frauds_K1=_sum_before(frauds_K),
        honest_K1=_sum_before(honest_K),
        n_fraud_rows_K1=_sum_before(is_fraud_K),
        fraud_rows=np.append(is_fraud_K.nonzero()[0], len(key_K)),
        n_honest_rows_K1=_sum_before(is_honest_K),
        after_honest_rows=np.append(is_honest_K.nonzero()[0] + 1, 0),
    )


def _sum_before(values_K: IntArray | BoolArray) -> IntArray:
    """Return int64 [K + 1]: the sum of the values before each row, and of all."""
    total_K1 = np.zeros(len(values_K) + 1, dtype=np.int64)
    np.add.accumulate(values_K, dtype=np.int64, out=total_K1[1:])
    return total_K1


def _risk(counted: _Counted, base_E: IntArray, hour_E: IntArray) -> FloatArray:
    """Return float64 [R, E]: the columns RISK_NAMES of each cell."""
    n_windows = len(RISK_WINDOWS_DAYS)
    key_WE = np.empty((n_windows + 2, len(base_E)), dtype=np.int64)
    np.maximum(hour_E - _HOURS_W1, 0, out=key_WE[:n_windows])
    key_WE[-2], key_WE[-1] = 0, hour_E
    key_WE += base_E
    row_WE = counted.key_K.searchsorted(key_WE)
    # The windows start at rows start_WE; what the event may know of its entity are the rows begin_E : end_E.
    start_WE, begin_E, end_E = row_WE[:n_windows], row_WE[-2], row_WE[-1]
    frauds_E = counted.frauds_K1[end_E]
    known_WE = frauds_E - counted.frauds_K1[start_WE]
    labels_WE = counted.honest_K1[end_E] - counted.honest_K1[start_WE] + known_WE
    run_E = np.maximum(counted.after_honest_rows[counted.n_honest_rows_K1[end_E] - 1], start_WE[-1])
    first_3E = np.array([begin_E, end_E, run_E])
    n_fraud_rows_3E = counted.n_fraud_rows_K1[first_3E]
    n_fraud_rows_3E[1] -= 1  # the last fraud before the end, not the first one after it
    fraud_3E = counted.fraud_rows[n_fraud_rows_3E]
    days_3E = (hour_E - counted.hour_K1[fraud_3E]) / 24
    days_3E[(fraud_3E < begin_E) | (fraud_3E >= end_E)] = np.nan
    return np.concatenate(
        [
            known_WE,
            counted.volume_K1[end_E] - counted.volume_K1[start_WE],
            known_WE / (labels_WE + 1),
            days_3E[:2],
            [frauds_E - counted.frauds_K1[run_E]],
            days_3E[2:],
        ],
        dtype=np.float64,
    )
