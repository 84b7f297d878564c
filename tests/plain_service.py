"""What the service should answer, said plainly: each user's events in a list, all scored anew by the batch path.

Nothing is cached, cut or carried; the counters of entities are made from all events that were ever seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fraud.config import Config
from fraud.contexts import context_start
from fraud.enrich import empty_carry, enrich
from fraud.entities import NEVER_KNOWN_US, EntityTable, entity_table
from fraud.events import FloatArray
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
        new = [Kept(row, {}) for row in sorted(rows, key=_key) if row.event_id not in known]
        if first and new and _key(new[0].row) < _key(kept[first].row):
            return [], "too_late"
        if new and (not kept or _key(new[0].row) > _key(kept[-1].row)):
            self.first[user] = max(first, self._start(len(kept)))
        self.kept[user] = sorted([*kept, *new], key=lambda one: _key(one.row))
        self._seen += new
        return new, ""

    def assess(self, new: Sequence[Kept]) -> None:
        """Note the risk of the entities of new events, as known now."""
        tables = self.tables()
        for one in new:
            one.risk = risk_of(events_of_rows(["u"], [[one.row]], self.config, {}), tables)

    def scores(self, scorer: Scorer, user: str) -> list[tuple[float, int]]:
        """Return (score, decision) of each event of a user, from the first on."""
        kept = self.kept[user]
        risk = {name: np.concatenate([one.risk[name] for one in kept]) for name in self.config.fields.entity}
        enriched, _ = enrich(
            events_of_rows([user], [[one.row for one in kept]], self.config, {}),
            empty_carry(1, enrich_spec(self.config)),
            enrich_spec(self.config),
        )
        score_N: FloatArray = scorer.calibration.scores(scorer.model.logits(enriched, risk))
        return list(zip(score_N.tolist(), decided(scorer, enriched, risk, score_N).decision_N.tolist(), strict=True))

    def has_context(self, user: str, index: int) -> bool:
        """Return whether all that the score of an event comes from is stored."""
        return self._start(index) >= self.first.get(user, 0)

    def _start(self, index: int) -> int:
        return int(context_start(np.array([index]), self.config.sessions.max_events)[0])

    def label(self, labelled: Sequence[Kept], label: int, known_us: int) -> None:
        """Take a label that became known."""
        for one in labelled:
            one.label, one.known_us = label, max(known_us, one.row.time_us)

    def erase(self, user: str) -> None:
        """Forget a user."""
        self.kept.pop(user, None)
        self.first.pop(user, None)

    def tables(self) -> dict[str, EntityTable]:
        """Return the counters of all entities over all events ever seen."""
        assert self.config.labels is not None
        assert self.config.labels.delay is not None
        settled = [one.row.time_us + self.config.labels.delay for one in self._seen]
        fraud_N, honest_N = np.full((2, len(settled)), NEVER_KNOWN_US, dtype=np.int64)
        for n, one in enumerate(self._seen):
            if one.label == 1:
                fraud_N[n] = one.known_us
                honest_N[n] = settled[n] if one.known_us > settled[n] else NEVER_KNOWN_US
            else:
                honest_N[n] = settled[n] if one.label is None else one.known_us
        events = events_of_rows(["all"], [[one.row for one in self._seen]], self.config, {})
        return {name: entity_table(column, events.time_us, fraud_N, honest_N) for name, column in events.entity.items()}


def _key(row: EventRow) -> tuple[int, int, str]:
    return sort_key(row, by_id=True)
