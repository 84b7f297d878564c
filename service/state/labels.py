"""The labels that came to a store, as a pull reads them: kept for ever, but for those of users who were erased."""

from __future__ import annotations

from typing import NamedTuple, Protocol


class StoredLabel(NamedTuple):
    """A label as it came, of an event of a user, of a session, or of a user. known_us: not before its arrival."""

    label_id: str
    user_id: str | None
    event_id: str | None
    session_id: str | None
    label: int
    known_us: int
    source: str


class KeptLabels(Protocol):
    """What a pull reads. It may raise StoreDown."""

    def labels(self, after: str, n: int) -> tuple[StoredLabel, ...]:
        """Return the next n labels after a label_id, by label_id."""
        ...
