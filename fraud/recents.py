"""First-seen values: which value of a field is not among the last ones of the user, and what is remembered of it.

The fields of a small input are read together, as if each user were one user a field: what it costs then is the number
of calls, not the number of rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fraud.events import NULL_CODE, BoolArray, CodeArray, IntArray, Text, concat_texts

SeenArray = npt.NDArray[np.int8]
_CELLS_TOGETHER = 16_384  # cells of all fields up to which they are read together; above, it only fills the cache
_PAIRS_TOGETHER = 65_536  # pairs of a new and a carried value compared at once: what bounds the memory


class Recent(NamedTuple):
    """The last values (at most 256 non-null ones) of one field: user u has values starts_U1[u] : starts_U1[u + 1]."""

    values: Text
    starts_U1: IntArray


class _Groups(NamedTuple):
    """Non-null values of G groups, a group being a field of a user, group by group: group g has n_G[g] of codes_R."""

    codes_R: CodeArray
    n_G: IntArray


def first_seen(
    columns: Mapping[str, Text], user_starts: IntArray, before: Mapping[str, Recent], n_recent: int
) -> tuple[dict[str, SeenArray], dict[str, Recent]]:
    """Return, by field, 1 = first seen, 0 = seen, -1 = null as int8 [N], and each user's last values after.

    First seen: not among the user's n_recent non-null values before. The values after are under the dictionary of the
    column, where that is also the carried one or nothing was carried.
    """
    first: dict[str, SeenArray] = {}
    after: dict[str, Recent] = {}
    names = list(columns)
    n_rows = int(user_starts[-1])
    step = max(1, _CELLS_TOGETHER // max(n_rows, 1))
    for start in range(0, len(names), step):
        some = names[start : start + step]
        merged = [_merged(columns[name], before.get(name)) for name in some]
        first_FN, kept, starts_G1 = _first_seen(merged, user_starts, n_recent)
        n_users = len(user_starts) - 1
        for f, name in enumerate(some):
            starts_U1 = starts_G1[f * n_users : (f + 1) * n_users + 1]
            begin, end = int(starts_U1[0]), int(starts_U1[-1])
            first[name] = first_FN[f]
            after[name] = Recent(Text(kept[begin:end], merged[f].column.values), starts_U1 - begin)
    return first, after


class _Merged(NamedTuple):
    """A column and its carried values under one dictionary; carried: None where there is no carried value."""

    column: Text
    carried: Recent | None


def _merged(column: Text, recent: Recent | None) -> _Merged:
    if recent is None or not len(recent.values.codes_N):
        return _Merged(column, None)
    if recent.values.values is column.values:
        return _Merged(column, recent)
    n_carried = len(recent.values.codes_N)
    both = concat_texts([recent.values, column])
    return _Merged(both.take(slice(n_carried, None)), Recent(both.take(slice(n_carried)), recent.starts_U1))


def _first_seen(
    merged: list[_Merged], user_starts: IntArray, n_recent: int
) -> tuple[npt.NDArray[np.int8], CodeArray, IntArray]:
    """Return first seen [F, N], and the last values of each group, group by group, with the start of each [G + 1]."""
    n_groups = len(merged) * (len(user_starts) - 1)
    codes_C = np.concatenate([one.column.codes_N for one in merged])
    n_cells_G = np.concatenate([user_starts[1:] - user_starts[:-1]] * len(merged))
    rows_R = (codes_C != NULL_CODE).nonzero()[0]
    codes_R, group_R = codes_C[rows_R], np.arange(n_groups).repeat(n_cells_G)[rows_R]
    new = _Groups(codes_R, np.bincount(group_R, minlength=n_groups))
    key_R = group_R * max(1, *(len(one.column.values) for one in merged)) + codes_R
    order_R = key_R.argsort(kind="stable")
    sorted_R = key_R[order_R]
    is_first_R = np.empty(len(order_R), dtype=np.bool_)  # in the order of the keys: one group's equal values in a row
    is_first_R[:1] = True
    is_other_R = sorted_R[1:] != sorted_R[:-1]
    # The values of one group lie together, so a difference of places counts them.
    np.logical_or(is_other_R, order_R[1:] - order_R[:-1] > n_recent, out=is_first_R[1:])
    carried = _carried(merged, user_starts)
    if carried is not None:
        opens_H = np.append(0, is_other_R.nonzero()[0] + 1)[: len(order_R)]
        places_H = order_R[opens_H]
        is_first_R[opens_H] = _not_carried(places_H, group_R[places_H], new, carried, n_recent)
    first_C = np.empty(len(codes_C), dtype=np.int8)
    first_C.fill(-1)
    first_C[rows_R[order_R]] = is_first_R
    kept = _last_of(new if carried is None else _joined(carried, new), n_recent)
    starts_G1 = np.zeros(n_groups + 1, dtype=np.int64)
    np.add.accumulate(kept.n_G, out=starts_G1[1:])
    return first_C.reshape(len(merged), -1), kept.codes_R, starts_G1


def _carried(merged: list[_Merged], user_starts: IntArray) -> _Groups | None:
    """Return the carried values of all groups, None where there is none."""
    if all(one.carried is None for one in merged):
        return None
    none = Recent(Text(np.zeros(0, dtype=np.int32), merged[0].column.values), np.zeros_like(user_starts))
    recents = [none if one.carried is None else one.carried for one in merged]
    return _Groups(
        np.concatenate([recent.values.codes_N for recent in recents]),
        np.concatenate([recent.starts_U1[1:] - recent.starts_U1[:-1] for recent in recents]),
    )


def _not_carried(places_H: IntArray, group_H: IntArray, new: _Groups, carried: _Groups, n_recent: int) -> BoolArray:
    """Return bool [H]: True where none of the n_recent values before the new one at each place is a carried same.

    No new one before it may be the same. Each is held against the carried ones of its group, the latest first, so that
    neither a sort nor a search reads all that is carried.
    """
    before_H = places_H - (new.n_G.cumsum() - new.n_G)[group_H]
    n_H, end_H = carried.n_G[group_H], carried.n_G.cumsum()[group_H]
    asked = ((before_H < n_recent) & (n_H > 0)).nonzero()[0]
    is_new_H = np.ones(len(places_H), dtype=np.bool_)
    width = int(n_H.max(initial=1))
    back_W = np.arange(1, width + 1)
    step = max(1, _PAIRS_TOGETHER // width)
    for start in range(0, len(asked), step):
        some = asked[start : start + step]
        code_A = new.codes_R[places_H[some]]
        # Rows of the group before this one, and below 0, may be read; a match there is none.
        is_same_AW = carried.codes_R[end_H[some, None] - back_W] == code_A[:, None]
        nth_A = is_same_AW.argmax(axis=1)
        is_there_A = is_same_AW[np.arange(len(some)), nth_A] & (nth_A < n_H[some])
        is_new_H[some] = ~is_there_A | (before_H[some] + nth_A >= n_recent)
    return is_new_H


def _joined(carried: _Groups, new: _Groups) -> _Groups:
    """Return the carried and then the new values of each group."""
    codes_M = np.empty(len(carried.codes_R) + len(new.codes_R), dtype=np.int32)
    is_carried_M = np.ones(len(codes_M), dtype=np.bool_)
    place_R = np.arange(len(new.codes_R)) + carried.n_G.cumsum().repeat(new.n_G)
    is_carried_M[place_R] = False
    codes_M[place_R], codes_M[is_carried_M] = new.codes_R, carried.codes_R
    return _Groups(codes_M, carried.n_G + new.n_G)


def _last_of(groups: _Groups, n_recent: int) -> _Groups:
    """Return the last n_recent values of each group."""
    if groups.n_G.max(initial=0) <= n_recent:
        return groups
    too_many_G = np.maximum(groups.n_G - n_recent, 0)
    first_G = groups.n_G.cumsum() - groups.n_G
    dropped = np.arange(int(too_many_G.sum())) + (first_G - too_many_G.cumsum() + too_many_G).repeat(too_many_G)
    is_kept_R = np.ones(len(groups.codes_R), dtype=np.bool_)
    is_kept_R[dropped] = False
    return _Groups(groups.codes_R[is_kept_R], groups.n_G - too_many_G)
