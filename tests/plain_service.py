"""What the service should answer, said plainly: each user's events in a list, all scored anew by the batch path.

Nothing is cached, cut or carried; the counters of entities are made from all events that were ever seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fraud.chunks import label_delay_us
from fraud.config import Config
from fraud.contexts import context_start
from fraud.enrich import empty_carry, enrich
from fraud.entities import NEVER_KNOWN_US, EntityTable, entity_table
from fraud.rows import EventRow, events_of_rows, sort_key
from fraud.scoring import Scorer, decided, enrich_spec, risk_of
from fraud.tokens import Risk


@dataclass(slots=True, eq=False)
class Kept:
    """An event, the risk of its entities as it was when it came (float64 [1, R] by field), and its label."""

    row: EventRow
    risk: Risk
    label: int | None = None
    known_us: int = NEVER_KNOWN_US

    @property
    def key(self) -> tuple[int, int, str]:
        return sort_key(self.row, by_id=True)


class PlainService:
    """Users with a scope of "user" and a log that declares event ids."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.kept: dict[str, list[Kept]] = {}
        self.first: dict[str, int] = {}  # the index of the first event that is stored of a user
        self._seen: list[Kept] = []  # those of erased users too: counters are sums

    def take(self, user: str, rows: Sequence[EventRow]) -> tuple[list[Kept], str]:
        """Return a request's new events, each now at its place; or none and why not: "conflict", "too_late"."""
        kept, first = self.kept.get(user, []), self.first.get(user, 0)
        known = {one.row.event_id: one.row for one in kept}
        if any(known.get(row.event_id, row) != row for row in rows):
            return [], "conflict"
        new = sorted((Kept(row, {}) for row in rows if row.event_id not in known), key=lambda one: one.key)
        if first and new and new[0].key < kept[first].key:
            return [], "too_late"
        if new and (not kept or new[0].key > kept[-1].key):
            self.first[user] = max(first, self._start(len(kept)))
        self.kept[user] = sorted([*kept, *new], key=lambda one: one.key)
        self._seen += new
        return new, ""

    def assess(self, new: Sequence[Kept]) -> None:
        """Note the risk of the entities of new events, as known now."""
        tables = self.tables()
        for one in new:
            one.risk = risk_of(events_of_rows(["u"], [[one.row]], self.config, {}), tables)

    def scores(self, scorer: Scorer, user: str) -> list[tuple[float, int]]:
        """Return (score, decision) of each event of a user, from the first on."""
        kept, spec = self.kept[user], enrich_spec(self.config)
        risk = {name: np.concatenate([one.risk[name] for one in kept]) for name in self.config.fields.entity}
        events = events_of_rows([user], [[one.row for one in kept]], self.config, {})
        enriched, _ = enrich(events, empty_carry(1, spec), spec)
        score_N = scorer.calibration.scores(scorer.model.logits(enriched, risk))
        return list(zip(score_N.tolist(), decided(scorer, enriched, risk, score_N).decision_N.tolist(), strict=True))

    def has_context(self, user: str, index: int) -> bool:
        """Return whether all that the score of an event comes from is stored."""
        return self._start(index) >= self.first.get(user, 0)

    def tables(self) -> dict[str, EntityTable]:
        """Return the counters of all entities over all events ever seen."""
        settled = [one.row.time_us + (label_delay_us(self.config) or 0) for one in self._seen]
        fraud_N, honest_N = np.full((2, len(settled)), NEVER_KNOWN_US, dtype=np.int64)
        for n, one in enumerate(self._seen):
            known_us = max(one.known_us, one.row.time_us)
            if one.label == 1:
                fraud_N[n], honest_N[n] = known_us, settled[n] if known_us > settled[n] else NEVER_KNOWN_US
            else:
                honest_N[n] = settled[n] if one.label is None else known_us
        events = events_of_rows(["all"], [[one.row for one in self._seen]], self.config, {})
        return {name: entity_table(c, events.time_us, fraud_N, honest_N) for name, c in events.entity.items()}

    def _start(self, index: int) -> int:
        return int(context_start(np.array([index]), self.config.sessions.max_events)[0])
