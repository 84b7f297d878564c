"""The same event_id of one user again: a duplicate where every value is the same, else a conflict.

Found by a hash of user and id, then told apart by the values themselves: a collision of hashes costs time, never a row.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from fraud.events import BoolArray, CodeArray, IntArray
from fraud.quarantine import Fault, Quarantine, printable

_HashArray = npt.NDArray[np.uint64]

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio (Knuth, The Art of Computer Programming 3, 6.4)
_FIRST_BYTES = np.array([(1 << 8 * n) - 1 for n in range(9)], dtype=np.uint64)


class Repeats(NamedTuple):
    """Rows of the table, ascending: those that say again what an earlier row says, and those of contradictory ids."""

    duplicate: IntArray
    conflicting: IntArray


def find_repeats(table: pa.Table, user_N: CodeArray) -> Repeats:
    """Return the rows of a canonical table whose (user, event_id) stands in it before, or with other values."""
    none = np.zeros(0, dtype=np.int64)
    hashes_N = _id_hashes(table["event_id"], user_N)
    ordered = np.sort(hashes_N)
    repeated = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    if len(repeated) == 0:
        return Repeats(none, none)
    rows = np.flatnonzero(np.isin(hashes_N, repeated))
    rows = rows[np.lexsort((rows, _ranks(table["event_id"].take(pa.array(rows))), user_N[rows]))]
    here = table.take(pa.array(rows))
    is_again = np.append(False, _same_as_before(here.select(["user", "event_id"])))
    is_changed = is_again & ~np.append(False, _same_as_before(here.drop_columns(["row"])))
    group = np.cumsum(~is_again) - 1
    is_conflict = np.bincount(group, weights=is_changed)[group] > 0
    return Repeats(np.sort(rows[is_again & ~is_conflict]), np.sort(rows[is_conflict]))


def refuse_conflicts(table: pa.Table, rows: IntArray, column: str, quarantine: Quarantine) -> None:
    """Put rows of a canonical table into the quarantine: their event_id (`column` of the log) contradicts itself."""
    chosen = pa.array(rows, pa.int64())
    ids = [printable(value) for value in table["event_id"].take(chosen).to_pylist()]
    row_N: IntArray = table["row"].take(chosen).to_numpy()
    quarantine.add_global(row_N, column=column, values=ids, fault=Fault.CONFLICTING_DUPLICATE)


def _id_hashes(ids: pa.ChunkedArray, user_N: CodeArray) -> _HashArray:
    """Return uint64 [N]: a hash of each user and id, eight bytes of text at a time."""
    parts: list[_HashArray] = []
    first = 0
    for chunk in ids.chunks:
        _, offsets, content = chunk.buffers()
        bounds = np.frombuffer(offsets, dtype=np.int32)[chunk.offset : chunk.offset + len(chunk) + 1].astype(np.int64)
        padded = np.frombuffer(content.to_pybytes() + bytes(8), dtype=np.uint8)
        words: _HashArray = np.ndarray(len(padded) - 7, dtype="<u8", buffer=padded, strides=(1,))
        starts, lengths = bounds[:-1], np.diff(bounds)
        seeds = (user_N[first : first + len(chunk)].astype(np.uint64) << np.uint64(32)) ^ lengths.astype(np.uint64)
        # Mixed before the first word: user and text would cancel each other out otherwise.
        hashes = (seeds + _MULTIPLIER) * _MULTIPLIER
        hashes ^= hashes >> np.uint64(29)
        hashes *= _MULTIPLIER
        for place in range(0, int(lengths.max(initial=0)), 8):
            n_left = np.clip(lengths - place, 0, 8)
            word = words[np.minimum(starts + place, len(words) - 1)] & _FIRST_BYTES[n_left]
            hashes = (hashes ^ word) * _MULTIPLIER
            hashes ^= hashes >> np.uint64(29)
        parts.append(hashes)
        first += len(chunk)
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.uint64)


def _ranks(ids: pa.ChunkedArray) -> IntArray:
    return pc.rank(ids, sort_keys="ascending", tiebreaker="dense").to_numpy()


def _same_as_before(table: pa.Table) -> BoolArray:
    """Return bool [N - 1]: True where a row has the values of the row before it, nulls being equal."""
    same = np.ones(max(len(table) - 1, 0), dtype=np.bool_)
    for column in table.columns:
        values = column.combine_chunks()
        later, earlier = values[1:], values[:-1]
        is_equal = pc.fill_null(pc.equal(later, earlier), False)
        is_null = pc.and_(pc.is_null(later), pc.is_null(earlier))
        same &= pc.or_(is_equal, is_null).to_numpy(zero_copy_only=False)
    return same
