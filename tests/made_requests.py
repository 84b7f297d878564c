"""Requests made from numbers: each number is one event of a user, new, late, known or known with other values."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Any

from fraud.rows import EventRow
from service.schemas import EventsRequest

START_US = 1_767_225_600_000_000
# The same moment, one session, a new one, another hour, another day, a label settled.
GAPS_S = (0, 1, 60, 1900, 7200, 90_000, 14 * 86_400)
_TYPES = ("login", "add_payee", "transfer_out", "withdraw", "receive_transfer", "change_device", "never seen")
_AMOUNTS, _CHANNELS, _ENTITIES = (None, 1.0, 250.0, 9000.0), ("web", None, "x"), ("a", None, "b")
# An event a gap after the last, a late one a gap before a known one, a known one again, or with another amount.
ANY_KIND = ("new", "late", "new", "again", "new", "late", "other", "new")
NEW, LATE = ("new",), ("late",)


class Maker:
    """Makes events with ids that nobody had before."""

    def __init__(self) -> None:
        self._ids = count()

    def request(
        self, user: str, numbers: Sequence[int], known: Sequence[EventRow], kinds: Sequence[str] = ANY_KIND
    ) -> EventsRequest:
        """Return a request of a user whose known events are given, in order."""
        newest_us = known[-1].time_us if known else START_US
        rows: dict[str, EventRow] = {}
        for number in numbers:
            kind, gap_s, row = _drawn(number, kinds, GAPS_S, known or (None,))
            if row is not None and kind in ("again", "other"):
                rows[row.event_id] = row if kind == "again" else row._replace(amount=77.0)
                continue
            if row is not None and kind == "late":
                time_us = row.time_us - gap_s * 1_000_000
            else:
                time_us = newest_us = newest_us + gap_s * 1_000_000
            made = self._row(number // 1000, time_us)
            rows[made.event_id or ""] = made
        return EventsRequest(user, tuple(rows.values()), explain=False)

    def _row(self, number: int, time_us: int) -> EventRow:
        kind, amount, channel, *entity = _drawn(number, _TYPES, _AMOUNTS, _CHANNELS, _ENTITIES, _ENTITIES)
        return EventRow(f"e{next(self._ids)}", time_us, kind, amount, (), (channel,), tuple(entity), None, None)


def _drawn(number: int, *choices: Sequence[Any]) -> list[Any]:  # Any: one of each
    """Return one of each, as a number says."""
    drawn: list[Any] = []
    for values in choices:
        number, place = divmod(number, len(values))
        drawn.append(values[place])
    return drawn
