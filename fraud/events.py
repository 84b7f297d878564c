"""Events in memory: one NumPy array per field, grouped by user and in order of time.

This file knows no file format, no session and no label. `Events` is what every later stage takes: training, batch
scoring, the service and the distributed job build it from their own input and from here on call the same functions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
CodeArray = npt.NDArray[np.int32]
FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
ObjectArray = npt.NDArray[np.object_]

NULL_CODE = -1


@dataclass(frozen=True, slots=True)
class Text:
    """A column of text, dictionary-encoded.

    codes_N: int32 [N], an index into `values`, or -1 where the cell is null. values: object [V] of distinct str.
    """

    codes_N: CodeArray
    values: ObjectArray

    def take(self, rows: IntArray | slice) -> Text:
        """Return the column at `rows`; the dictionary is shared."""
        return Text(self.codes_N[rows], self.values)

    def to_objects(self) -> ObjectArray:
        """Return object [N] of str or None."""
        with_null = np.append(self.values, np.array([None], dtype=object))
        return with_null[self.codes_N]


def text_from_objects(cells: ObjectArray) -> Text:
    """Return a `Text` of str-or-None cells [N], its values sorted by Unicode code point."""
    present = np.array([cell is not None for cell in cells], dtype=np.bool_)
    values, codes = np.unique(cells[present].astype(object), return_inverse=True)
    codes_N = np.full(len(cells), NULL_CODE, dtype=np.int32)
    codes_N[present] = codes
    return Text(codes_N, values.astype(object))


def concat_texts(parts: list[Text]) -> Text:
    """Return the parts one after another under one merged dictionary."""
    first = parts[0].values
    if all(part.values is first for part in parts):
        return Text(np.concatenate([part.codes_N for part in parts]), first)
    values, inverse = np.unique(np.concatenate([part.values for part in parts]), return_inverse=True)
    codes: list[CodeArray] = []
    start = 0
    for part in parts:
        mapping = np.append(inverse[start : start + len(part.values)], NULL_CODE).astype(np.int32)
        codes.append(mapping[part.codes_N])
        start += len(part.values)
    return Text(np.concatenate(codes), values.astype(object))


@dataclass(frozen=True, slots=True, kw_only=True)
class Events:
    """N events of U users; the events of user u are rows user_starts[u] : user_starts[u + 1], in order.

    users: object [U] of str. user_starts: int64 [U + 1]. time_us: int64 [N], microseconds since 1970 UTC (or the
    position, where the log has no clock: then has_clock is False). zone: the IANA zone the hour of day is taken in,
    None for UTC. amount: float64 [N], NaN = none, or None where no amount is declared. numeric: float64 [N] each, NaN =
    none. session: the log's own session id, or None. row: int64 [N], where the event stood in its source (used to bring
    back columns that no model reads).
    """

    users: ObjectArray
    user_starts: IntArray
    time_us: IntArray
    has_clock: bool
    zone: str | None
    type: Text
    amount: FloatArray | None
    numeric: Mapping[str, FloatArray]
    categorical: Mapping[str, Text]
    entity: Mapping[str, Text]
    session: Text | None
    row: IntArray

    def __len__(self) -> int:
        return len(self.time_us)

    @property
    def n_users(self) -> int:
        """Return U."""
        return len(self.users)

    def user_codes(self) -> CodeArray:
        """Return int32 [N]: the index of each event's user in `users`."""
        return np.repeat(np.arange(self.n_users, dtype=np.int32), np.diff(self.user_starts))

    def first_of_user(self) -> BoolArray:
        """Return bool [N]: True at the first event of each user."""
        first_N = np.zeros(len(self), dtype=np.bool_)
        starts = self.user_starts[:-1]
        first_N[starts[np.diff(self.user_starts) > 0]] = True
        return first_N

    def take_users(self, first: int, last: int) -> Events:
        """Return the events of users first .. last - 1 as views."""
        rows = slice(int(self.user_starts[first]), int(self.user_starts[last]))
        return _at(self, rows, self.users[first:last], self.user_starts[first : last + 1] - self.user_starts[first])

    def keep(self, kept_N: BoolArray) -> Events:
        """Return the events where kept_N is True; every user stays, some perhaps without events."""
        counts = np.concatenate([[0], np.cumsum(kept_N)])
        return _at(self, np.flatnonzero(kept_N), self.users, counts[self.user_starts])


def _at(events: Events, rows: IntArray | slice, users: ObjectArray, user_starts: IntArray) -> Events:
    return Events(
        users=users,
        user_starts=user_starts,
        time_us=events.time_us[rows],
        has_clock=events.has_clock,
        zone=events.zone,
        type=events.type.take(rows),
        amount=None if events.amount is None else events.amount[rows],
        numeric={name: column[rows] for name, column in events.numeric.items()},
        categorical={name: column.take(rows) for name, column in events.categorical.items()},
        entity={name: column.take(rows) for name, column in events.entity.items()},
        session=None if events.session is None else events.session.take(rows),
        row=events.row[rows],
    )
