"""What is asked beside scores: a label's arrival, a decision, a user's timeline, an erasure, the model.

Run by the thread of the ticks, which alone speaks to the store.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from fraud.carry_pool import carry_from_bytes
from fraud.contexts import context_start
from fraud.enrich import enrich
from fraud.exact import exact_logits, sequence_positions
from fraud.rows import events_of_rows
from fraud.scoring import enrich_spec
from service.answers import instant
from service.clock import Clock
from service.context import stored_rows
from service.counters import LabelState, label_deltas, summed
from service.journal import DecisionId, parsed_id
from service.models import ModelHolder, Served
from service.payloads import ENCODER, EventRecord, json_of, record_of, risk_array
from service.problems import Problem
from service.schemas import LabelRequest
from service.state.erasures import is_erasure
from service.state.store import (
    CounterDelta,
    LabelledEvent,
    LabelWrite,
    StoredEvent,
    StoredUser,
    Tick,
    Wanted,
)
from service.ticks import Ticker

_ATTEMPTS = 20
_MOST_EVENTS = 10_000  # of a user, that one label speaks of


class Inquiries:
    """Answers what needs the store and no tick."""

    def __init__(self, holder: ModelHolder, ticker: Ticker, clock: Clock) -> None:
        """Take the bundle, the ticks (for their store) and the clock."""
        self._holder = holder
        self._ticker = ticker
        self._store = ticker.store
        self._clock = clock

    def label(self, request: LabelRequest) -> bytes:
        """Return {"label_id"}: the label is kept, and counted from the later of known_at and its arrival on.

        The same label again changes nothing; of several for one event the one known last holds.
        """
        config = self._holder.current.bundle.scorer.config
        label_id = _label_id(request)
        known_us = max(request.known_us, self._clock.arrival_us())
        for _ in range(_ATTEMPTS):
            deltas: list[CounterDelta] = []
            changed: list[LabelledEvent] = []
            for user_id, event_id, stored in self._labelled(request):
                was = LabelState(stored.label, stored.label_known_us)
                if was.known_us is not None and was.known_us > known_us:
                    continue
                now = LabelState(request.label, known_us)
                deltas += label_deltas(stored.ts_us, stored.entities, config, was=was, now=now)
                changed.append(LabelledEvent(user_id, event_id, was.label, was.known_us))
            write = LabelWrite(
                label_id=label_id,
                user_id=request.user_id,
                event_id=request.event_id,
                session_id=request.session_id,
                label=request.label,
                known_us=known_us,
                source=request.source,
                stored_us=self._clock.wall_us(),
                counters=tuple(summed(deltas)),
                events=tuple(changed),
            )
            if not self._store.write(Tick((), (), (write,))):
                self._ticker.counts["labels"] += 1
                self._ticker.counts["labels_of_no_event"] += not changed
                return ENCODER.encode({"label_id": label_id})
        raise Problem(503, "contended", detail="other writers of these events were faster; try again", retry_after_s=1)

    def decision(self, decision_id: str) -> bytes:
        """Return the record of a decision: what was answered, of which events, by which model."""
        named = parsed_id(decision_id)
        payload = None if named is None else self._payload(named)
        tree = None if payload is None else json_of(record_of(payload))
        if tree is None or named is None or (named.place is not None and named.place >= len(tree.get("rows", ()))):
            raise Problem(404, "not_found", detail="there is no decision of this id")
        tree["at"] = instant(tree.pop("at_us"))
        return ENCODER.encode({"decision_id": decision_id, **tree})

    def timeline(self, user_id: str) -> bytes:
        """Return a user's stored events in order: the score each has now, and what was answered when it came.

        A late event changes the scores that those after it have now; what was answered stands. score is null where the
        events before it are no longer kept.
        """
        stored = self._store.read(Wanted((user_id,), (), ())).users.get(user_id)
        if stored is None:
            raise Problem(404, "not_found", detail="no event of this user is kept")
        served = self._holder.current
        rows = stored_rows(stored)
        scores = _scores_now(served, user_id, stored)
        keys = tuple((user_id, one.row.event_id or "") for one in rows)
        found = self._store.read(Wanted((), keys, ())).events
        events: list[dict[str, object]] = []
        for place, (one, score) in enumerate(zip(rows, scores, strict=True)):
            event = found.get((user_id, one.row.event_id or ""))
            record = None if event is None or event.payload is None else record_of(event.payload)
            answered = record.answer if isinstance(record, EventRecord) else None
            events.append(
                {
                    "index": stored.first_index + place,
                    "event_id": one.row.event_id,
                    "type": one.row.type,
                    "ts": instant(one.row.time_us),
                    "score": score,
                    "answered": None if answered is None else answered,
                    "label": None if event is None else event.label,
                }
            )
        return ENCODER.encode(
            {
                "user_id": user_id,
                "n_events": stored.n_events,
                "events": events,
                "model": {"name": served.name, "version": served.version, "sha256": served.sha256},
            }
        )

    def erase(self, user_id: str) -> bytes:
        """Return {"erased": number of records}: all that is kept of a user is deleted, the sums of entities are not."""
        n_records = self._store.erase(user_id)
        self._ticker.forget(user_id)
        return ENCODER.encode({"erased": n_records})

    def model(self) -> bytes:
        """Return which bundle answers and what is known of it."""
        served = self._holder.current
        manifest = served.bundle.manifest
        return ENCODER.encode(
            {
                "name": served.name,
                "version": served.version,
                "sha256": served.sha256,
                "kind": manifest.kind,
                "policy_version": served.policy_version,
                "state_hash": manifest.state_hash,
                "newest_event": manifest.newest_event,
                "newest_label": manifest.newest_label,
                "fingerprint": manifest.fingerprint,
                "policy": {
                    "review_at": served.bundle.scorer.policy.review_at,
                    "block_at": served.bundle.scorer.policy.block_at,
                },
                "swaps": dict(self._holder.counts),
            }
        )

    def _payload(self, named: DecisionId) -> bytes | None:
        """Return what is kept of a decision, None where there never was one; raises Problem 410 where it was erased."""
        record = self._store.record(named.shard, named.number)
        if record is not None and record.payload is None:
            raise Problem(410, "erased", detail="the user of this decision was erased")
        # That of an erasure stands in the chain too, and is no decision.
        return None if record is None or is_erasure(record.payload) else record.payload

    def _labelled(self, request: LabelRequest) -> Sequence[tuple[str, str, StoredEvent]]:
        if request.event_id is not None and request.user_id is not None:
            key = (request.user_id, request.event_id)
            return [(*key, event) for event in self._store.read(Wanted((), (key,), ())).events.values()]
        if request.session_id is not None:
            return self._store.session_events(request.session_id)
        user_id = request.user_id or ""
        return [(user_id, event_id, event) for event_id, event in self._store.recent_events(user_id, _MOST_EVENTS)]


def _scores_now(served: Served, user_id: str, stored: StoredUser) -> list[float | None]:
    """Return the score that each stored event of a user has under this bundle, from what is stored before it."""
    scorer, rows = served.bundle.scorer, stored_rows(stored)
    if not rows:
        return []
    events = events_of_rows([user_id], [[one.row for one in rows]], scorer.config, {})
    spec = enrich_spec(scorer.config)
    enriched, _ = enrich(events, carry_from_bytes(stored.carry, spec), spec)
    risk_OER = risk_array(rows)
    risk = {name: risk_OER[:, e] for e, name in enumerate(scorer.config.fields.entity)}
    position_N = sequence_positions(enriched, scorer.config)
    # Known again where the context begins at a row that is here, not at one that was dropped before them.
    n_context_N = position_N - context_start(position_N, scorer.config.sessions.max_events)
    known = np.flatnonzero(n_context_N <= np.arange(len(rows)))
    listed: list[float | None] = [None] * len(rows)
    if not len(known):
        return listed
    scores = scorer.calibration.scores(exact_logits(scorer.model, enriched, risk, known))
    for place, score in zip(known.tolist(), scores.tolist(), strict=True):
        listed[place] = score
    return listed


def _label_id(request: LabelRequest) -> str:
    return hashlib.sha256(ENCODER.encode(request)).hexdigest()[:32]
