"""The records of one tick in the making: the ids they get, and what of them belongs to no user's state."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from service.state.store import RecordWrite, Store

_DECISION_ID = re.compile(r"([0-9a-f]{1,15})-([0-9a-f]{1,15})(?:\.([0-9]{1,9}))?")


class DecisionId(NamedTuple):
    """Where the record of a decision is. place: of the event in a stateless request; None where the id names none."""

    shard: int
    number: int
    place: int | None


def parsed_id(decision_id: str) -> DecisionId | None:
    """Return what an id says, None where it can be nobody's."""
    found = _DECISION_ID.fullmatch(decision_id)
    if found is None:
        return None
    return DecisionId(int(found[1], 16), int(found[2], 16), None if found[3] is None else int(found[3]))


class Journal:
    """Gives each decision its id, `{shard}-{number}` in hex, and collects the records of stateless answers."""

    def __init__(self, store: Store, now_us: Callable[[], int]) -> None:
        """Take the store that numbers the records and the clock they are dated with."""
        self.now_us = now_us
        self.number = 0
        self._store = store
        self._records: list[RecordWrite] = []

    def next_id(self) -> str:
        """Return the id of the next decision; `number` is then that of its record."""
        self.number = self._store.next_number()
        return f"{self._store.shard:x}-{self.number:x}"

    def add(self, user_id: str, payload: bytes) -> None:
        """Add the record of the decision whose id was given last."""
        self._records.append(RecordWrite(user_id, self.number, payload))

    @property
    def records(self) -> tuple[RecordWrite, ...]:
        """Return the records of stateless answers."""
        return tuple(self._records)
