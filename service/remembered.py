"""What one process remembers of users between their events: a cache of the store, valid for one sequence number.

Anything here may be lost at any time (a restart, a new bundle, a full cache); the store's rows make it again.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from fraud.carry_pool import CarryPool
from fraud.live import LiveScorer
from fraud.scoring import Scorer, enrich_spec
from service.payloads import StoredRow

SortKey = tuple[int, int, str]
MAX_VALUES = 200_000  # different values of all dictionaries: some 20 MB


@dataclass(slots=True)
class Known:
    """A user in a slot of the pool, as committed under `sequence`.

    first_index: of the snapshot's first row among all events of the user. n_since: events answered since the snapshot.
    first, newest: what the stored rows are ordered by, None where there is no row. rows: the rows since first_index,
    where the model reads them at every event; else None, and the carry in the slot is that after the newest event.
    """

    slot: int
    sequence: int
    n_events: int
    newest_us: int
    snapshot: int
    first_index: int
    n_since: int
    first: SortKey | None
    newest: SortKey | None
    rows: list[StoredRow] | None


class Remembered:
    """The users that a scorer has at hand, the least recently seen thrown out first."""

    def __init__(self, scorer: Scorer, n_users: int) -> None:
        """Take the scorer and how many users are remembered at most."""
        self.n_slots = n_users
        self.pool = CarryPool(n_users, scorer.config.fields, enrich_spec(scorer.config))
        self.live = LiveScorer(scorer, self.pool, n_users)
        self._known: OrderedDict[str, Known] = OrderedDict()
        self._free = list(range(n_users))

    def __len__(self) -> int:
        return len(self._known)

    def get(self, user_id: str) -> Known | None:
        """Return what is known of a user, who then counts as just seen."""
        known = self._known.get(user_id)
        if known is not None:
            self._known.move_to_end(user_id)
        return known

    def take_slot(self) -> int:
        """Return an empty slot; the user least recently seen is forgotten for it if need be."""
        if not self._free:
            self.forget(next(iter(self._known)))
        return self._free.pop()

    def keep(self, user_id: str, known: Known) -> None:
        """Remember a user, in a slot that `take_slot` gave or that the user already had."""
        self._known[user_id] = known
        self._known.move_to_end(user_id)

    def forget(self, user_id: str) -> None:
        """Forget a user, if known."""
        known = self._known.pop(user_id, None)
        if known is not None:
            self._free.append(known.slot)

    def forget_all(self) -> None:
        """Forget everybody."""
        self._known.clear()
        self._free = list(range(self.n_slots))
        self.pool.forget_all()

    def trim(self) -> None:
        """Start anew where users have shown more different values than memory is meant for."""
        if self.pool.n_values > MAX_VALUES:
            self.forget_all()
