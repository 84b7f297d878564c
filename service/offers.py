"""What a tick offers to a challenger in shadow, after its answers have left: events with their whole context."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fraud.carry_pool import carry_from_bytes
from fraud.decisions import DecisionArray
from fraud.events import FloatArray
from fraud.live import LiveScores
from fraud.rows import events_of_rows
from fraud.scoring import enrich_spec
from service.context import stored_rows
from service.models import Served
from service.payloads import risk_array
from service.shadow import Shadow
from service.state.store import Store, Wanted


class Unread(NamedTuple):
    """New events of a user that were scored from a carry and states: their context has to be read to score it again."""

    user_id: str
    score_R: FloatArray
    decision_R: DecisionArray


class Offered(NamedTuple):
    """What one tick scored. whole: with the contexts at hand; unread: without."""

    whole: list[LiveScores]
    unread: list[Unread]


def offer(shadow: Shadow, served: Served, offered: Offered, store: Store) -> None:
    """Offer what a tick scored; may raise StoreDown while it reads the contexts."""
    if not shadow.fits(served):
        return
    for scores in offered.whole:
        shadow.offer(
            served.version,
            events=scores.enriched.events,
            carry=scores.before,
            risk=scores.risk,
            rows_R=scores.new_R,
            score_R=scores.score_R,
            decision_R=scores.decision_R,
        )
    if not offered.unread:
        return
    found = store.read(Wanted(tuple(one.user_id for one in offered.unread), (), ())).users
    scorer = served.bundle.scorer
    for one in offered.unread:
        stored = found.get(one.user_id)
        rows = stored_rows(stored)
        n_new = len(one.score_R)
        if stored is None or n_new > len(stored.since):
            continue  # written again meanwhile
        events = events_of_rows([one.user_id], [[row.row for row in rows]], scorer.config, {})
        risk_OER = risk_array(rows)
        shadow.offer(
            served.version,
            events=events,
            carry=carry_from_bytes(stored.carry, enrich_spec(scorer.config)),
            risk={name: risk_OER[:, e] for e, name in enumerate(scorer.config.fields.entity)},
            rows_R=np.arange(len(rows) - n_new, len(rows)),
            score_R=one.score_R,
            decision_R=one.decision_R,
        )
