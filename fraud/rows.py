"""One raw event as plain values, and some users' rows as `Events`: what a request, a store and a stream have in common.

Values are checked where they come in; here they are only put into arrays. A log read in batch never becomes rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fraud.config import Config
from fraud.events import NULL_CODE, Events, FloatArray, IntArray, ObjectArray, Text

_NAN = float("nan")


class EventRow(NamedTuple):
    """One raw event. numeric, categorical, entity: in the order of [fields]; None = null.

    event_id: None where there is none. session: the log's own session id. order: what breaks ties of time.
    """

    event_id: str | None
    time_us: int
    type: str
    amount: float | None
    numeric: tuple[float | None, ...]
    categorical: tuple[str | None, ...]
    entity: tuple[str | None, ...]
    session: str | None
    order: int | None


class Dictionary:
    """A growing dictionary of one field: each value has one code for as long as the dictionary lives.

    A carry that is kept in memory holds codes into it, and so do the events that are enriched with that carry. The
    array has room to grow; what stands behind the last value is None and no code points there.
    """

    def __init__(self) -> None:
        self._code_of: dict[str, int] = {}
        self._values: ObjectArray = np.full(64, None, dtype=object)

    def __len__(self) -> int:
        return len(self._code_of)

    @property
    def values(self) -> ObjectArray:
        """Return object [V] of str, None behind the last."""
        return self._values

    def codes(self, cells: Iterable[str | None]) -> list[int]:
        """Return the code of each cell, NULL_CODE for None; new values get the next ones."""
        code_of = self._code_of
        codes: list[int] = []
        for cell in cells:
            if cell is None:
                codes.append(NULL_CODE)
                continue
            code = code_of.get(cell)
            if code is None:
                code = code_of[cell] = len(code_of)
                if code == len(self._values):
                    self._values = np.append(self._values, np.full(len(self._values), None, dtype=object))
                self._values[code] = cell
            codes.append(code)
        return codes

    def text(self, cells: Iterable[str | None]) -> Text:
        """Return the cells as a column of this dictionary."""
        codes_N = np.array(self.codes(cells), dtype=np.int32)
        return Text(codes_N, self._values)


def compact_text(cells: Iterable[str | None]) -> Text:
    """Return the cells as a column under a dictionary of their own, in order of appearance."""
    cells = list(cells)
    names = [name for name in dict.fromkeys(cells) if name is not None]
    code_of: dict[str | None, int] = dict(zip(names, range(len(names)), strict=True))
    code_of[None] = NULL_CODE
    values: ObjectArray = np.empty(len(names), dtype=object)
    values[:] = names
    return Text(np.array(list(map(code_of.__getitem__, cells)), dtype=np.int32), values)


def events_of_rows(
    users: Sequence[str], rows_U: Sequence[Sequence[EventRow]], config: Config, dictionaries: Mapping[str, Dictionary]
) -> Events:
    """Return the events of some users, each user's rows in order.

    dictionaries: those of the fields whose carries are kept in memory, by the name of the field; every other column
    gets a dictionary of its own. Two entries may be of one user: they are told apart by place alone.
    """
    starts: list[int] = [0]
    for rows in rows_U:
        starts.append(starts[-1] + len(rows))
    columns = list(zip(*(row for rows in rows_U for row in rows), strict=True)) or [()] * len(EventRow._fields)
    _, time_us, kind, amount, numeric, categorical, entity, session, _ = columns
    fields, n_rows = config.fields, starts[-1]

    def texts(names: tuple[str, ...], cells: tuple[tuple[str | None, ...], ...]) -> dict[str, Text]:
        by_field = list(zip(*cells, strict=True)) or [()] * len(names)
        return {
            name: dictionaries[name].text(column) if name in dictionaries else compact_text(column)
            for name, column in zip(names, by_field, strict=True)
        }

    user_objects: ObjectArray = np.empty(len(users), dtype=object)
    user_objects[:] = users
    return Events(
        users=user_objects,
        user_starts=np.array(starts, dtype=np.int64),
        time_us=np.array(time_us, dtype=np.int64),
        has_clock=config.log.has_clock,
        zone=config.log.zone,
        type=compact_text(kind),
        amount=None if fields.amount is None else _numbers(amount),
        numeric={
            name: _numbers(column)
            for name, column in zip(
                fields.numeric, list(zip(*numeric, strict=True)) or [()] * len(fields.numeric), strict=True
            )
        },
        categorical=texts(fields.categorical, categorical),
        entity=texts(fields.entity, entity),
        session=None if config.log.session is None else compact_text(session),
        row=np.arange(n_rows),
    )


def rows_of_events(events: Events, rows: IntArray, event_ids: Sequence[str]) -> list[EventRow]:
    """Return some events as rows, for a store; event_ids: those of the events at `rows`."""
    n_rows = len(rows)

    def objects(column: Text) -> list[str | None]:
        return column.take(rows).to_objects().tolist()

    def numbers(column: FloatArray) -> list[float | None]:
        return [None if np.isnan(cell) else cell for cell in column[rows].tolist()]

    def tuples(columns: Sequence[Sequence[object]]) -> list[tuple[object, ...]]:
        return list(zip(*columns, strict=True)) if columns else [()] * n_rows

    return [
        EventRow(*cells)
        for cells in zip(
            event_ids,
            events.time_us[rows].tolist(),
            objects(events.type),
            [None] * n_rows if events.amount is None else numbers(events.amount),
            tuples([numbers(column) for column in events.numeric.values()]),
            tuples([objects(column) for column in events.categorical.values()]),
            tuples([objects(column) for column in events.entity.values()]),
            [None] * n_rows if events.session is None else objects(events.session),
            [None] * n_rows,
            strict=True,
        )
    ]


def sort_key(row: EventRow, *, by_id: bool) -> tuple[int, int, str]:
    """Return what a user's events are ordered by: time, then `order`, then the event_id where the log declares one."""
    return (row.time_us, row.order or 0, (row.event_id or "") if by_id else "")


def _numbers(cells: Iterable[float | None]) -> FloatArray:
    return np.array([_NAN if cell is None else cell for cell in cells], dtype=np.float64)
