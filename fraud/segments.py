"""Where changed decisions lie: in which segments of the events, and after which order of earlier ones.

Events of one user are not independent, so each difference is set against how much users differ, and each table is
corrected for how many differences it tests (Bonferroni). This file knows no log, and no words but the names it is
given.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fraud.changes import Sides
from fraud.events import BoolArray, CodeArray, FloatArray, IntArray

MIN_EVENTS = 30  # fewer events make no segment
MAX_TYPES = 24  # the most frequent types before an event whose order is looked at: 276 pairs
_ERROR = 0.05  # chance that any difference of a table stands out where there is none


class Column(NamedTuple):
    """One way to cut D events into segments. code_D: int [D], an index into names, below 0 where one is in none."""

    field: str
    names: tuple[str, ...]
    code_D: IntArray | CodeArray


class Segment(NamedTuple):
    """The events of one name of a column: how many there are, change either way, and are alerted by either scorer.

    ratio: the share that changes over that of all events; None where nothing changes. z: how clear the difference from
    the other events is; 0 where nobody can say. stands_out: clear after the correction for all segments.
    """

    field: str
    name: str
    n: int
    stricter: int
    milder: int
    alerted_a: int
    alerted_b: int
    ratio: float | None
    z: float
    stands_out: bool

    @property
    def share(self) -> float:
        """Return the share that changes."""
        return (self.stricter + self.milder) / self.n


class Order(NamedTuple):
    """Events that have both types before them: `first` then `then`, by the last of each, against the other order."""

    first: str
    then: str
    n: int
    changed: int
    n_other: int
    changed_other: int
    z: float

    @property
    def share(self) -> float:
        """Return the share that changes after this order."""
        return self.changed / self.n

    @property
    def share_other(self) -> float:
        """Return the share that changes after the other order."""
        return self.changed_other / self.n_other


def segments(columns: Sequence[Column], sides: Sides) -> tuple[Segment, ...]:
    """Return every segment of at least MIN_EVENTS events, column by column."""
    found = [segment for column in columns for segment in _of_column(column, sides)]
    clear = clear_from(len(found))
    return tuple(segment._replace(stands_out=abs(segment.z) >= clear) for segment in found)


def orders(before_DL: CodeArray, types: Sequence[str], changed_D: BoolArray, user_D: IntArray) -> tuple[Order, ...]:
    """Return the pairs of earlier types whose order makes a clear difference, the largest difference first.

    before_DL: the types of the events before each event, the newest first, codes into `types`, below 0 for none.
    """
    nearest_VD, chosen = _nearest(before_DL, len(types))
    found: list[Order] = []
    n_tests = 0
    for one, other in combinations(range(len(chosen)), 2):
        rows = np.flatnonzero((nearest_VD[one] > 0) & (nearest_VD[other] > 0))
        is_one_first_R = nearest_VD[one][rows] > nearest_VD[other][rows]
        n_one_first = int(is_one_first_R.sum())
        if min(n_one_first, len(rows) - n_one_first) < MIN_EVENTS:
            continue
        n_tests += 1
        changed_R = changed_D[rows]
        z = difference_z(changed_R, is_one_first_R, user_D[rows])
        n_one, n_other = n_one_first, len(rows) - n_one_first
        k_one, k_other = int(changed_R[is_one_first_R].sum()), int(changed_R[~is_one_first_R].sum())
        name, other_name = types[chosen[one]], types[chosen[other]]
        found.append(
            Order(name, other_name, n_one, k_one, n_other, k_other, z)
            if z >= 0
            else Order(other_name, name, n_other, k_other, n_one, k_one, -z)
        )
    clear = clear_from(n_tests)
    return tuple(
        sorted((order for order in found if order.z >= clear), key=lambda order: order.share_other - order.share)
    )


def difference_z(changed_D: BoolArray, inside_D: BoolArray, user_D: IntArray) -> float:
    """Return how many standard errors the share that changes lies higher inside than outside; 0 where nobody can say.

    user_D: codes that never fall; whole users are the independent ones. Of two variances the larger counts: the one
    that sums what each user adds (Liang & Zeger 1986), too small where hardly anything changes inside; and that of
    changes spread at random, as correlated within each user as they are on average, too small where they come in heaps.
    """
    if not len(changed_D):
        return 0.0
    starts_U = np.flatnonzero(np.diff(user_D, prepend=user_D[0] - 1))
    inside_off_D, changed_off_D = inside_D - inside_D.mean(), changed_D - changed_D.mean()

    def by_user(value_D: FloatArray) -> FloatArray:
        return np.add.reduceat(value_D, starts_U)

    added_U, square_D = by_user(inside_off_D * changed_off_D), np.square(changed_off_D)
    n_U = np.diff(np.append(starts_U, len(changed_D)))
    n_pairs = float((n_U * (n_U - 1)).sum())
    covariance = float((np.square(by_user(changed_off_D)) - by_user(square_D)).sum()) / n_pairs if n_pairs else 0.0
    alone, together = float(np.square(inside_off_D).sum()), float(np.square(by_user(inside_off_D)).sum())
    at_random = float(square_D.mean()) * alone + max(covariance, 0.0) * (together - alone)
    variance = max(float(np.square(added_U).sum()), at_random)
    # Below is what is left of sums that are 0: a change everywhere or nowhere, a segment that is everything.
    return float(added_U.sum()) / variance**0.5 if variance > 1e-18 * len(changed_D) else 0.0


def clear_from(n_tests: int) -> float:
    """Return the z from which one of so many differences stands out."""
    return NormalDist().inv_cdf(1.0 - _ERROR / 2 / max(n_tests, 1))


def _of_column(column: Column, sides: Sides) -> Iterator[Segment]:
    change_D, code_D, n_names = sides.change_D, column.code_D, len(column.names)
    overall = float((change_D != 0).mean()) if len(change_D) else 0.0

    def counted(chosen_D: BoolArray) -> list[int]:
        return np.bincount(code_D[chosen_D & (code_D >= 0)], minlength=n_names).tolist()

    counts = zip(
        counted(np.ones(len(code_D), dtype=np.bool_)),
        counted(change_D > 0),
        counted(change_D < 0),
        counted(sides.a.alerted_D),
        counted(sides.b.alerted_D),
        strict=True,
    )
    for code, (n, stricter, milder, alerted_a, alerted_b) in enumerate(counts):
        if n >= MIN_EVENTS:
            ratio = (stricter + milder) / n / overall if overall else None
            z = difference_z(change_D != 0, code_D == code, sides.user_D)
            yield Segment(column.field, column.names[code], n, stricter, milder, alerted_a, alerted_b, ratio, z, False)


def _nearest(before_DL: CodeArray, n_types: int) -> tuple[npt.NDArray[np.int16], list[int]]:
    """Return int16 [V, D], how many events ago each type was last, 0 for not at all, and which V types these are."""
    n_lags = before_DL.shape[1]
    n_T = np.bincount(before_DL[before_DL >= 0], minlength=n_types)
    chosen = sorted(np.argsort(-n_T, kind="stable")[: min(MAX_TYPES, int((n_T > 0).sum()))].tolist())
    nearest_VD = np.zeros((len(chosen), len(before_DL)), dtype=np.int16)
    for place, code in enumerate(chosen):
        for lag in range(n_lags, 0, -1):
            nearest_VD[place][before_DL[:, lag - 1] == code] = lag
    return nearest_VD, chosen


def bands(value_D: FloatArray, edges: Sequence[float], names: Sequence[str]) -> CodeArray:
    """Return int32 [D], which band a value is in: below edges[0] the first, from the last edge on the last; NaN: -1."""
    assert len(names) == len(edges) + 1
    code_D = np.searchsorted(np.array(edges), value_D, side="right").astype(np.int32)
    return np.where(np.isnan(value_D), np.int32(-1), code_D).astype(np.int32)
