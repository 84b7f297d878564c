"""The records of one tick in the making: the ids they get, and what of them belongs to no user's state."""

from __future__ import annotations

from collections.abc import Callable

from service.state.store import RecordWrite, Store


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
