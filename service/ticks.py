"""One tick: the requests that waited are read, scored, written and committed together, and only then answered.

A tick is one transaction of the store. Its users are read before any lock is taken and written with a compare-and-set
on their sequence numbers; whoever lost to another process is read and scored again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import repeat

from fraud.entities import HOUR_US, EntityTable
from fraud.live import LiveScores
from fraud.rows import EventRow, sort_key
from service.answers import composed, never_scored
from service.context import Turn, needs_rows, turn_of
from service.counters import entity_tables_of, event_deltas, with_deltas
from service.journal import Journal
from service.models import Served
from service.offers import Offered, Unread
from service.payloads import EventAnswer, EventRecord, ModelName, record_of
from service.problems import FieldError, Problem
from service.remembered import Remembered
from service.schemas import EventsRequest, ScoreRequest
from service.state.store import Found, Store, StoredEvent, Tick, Wanted
from service.stateful import ScoredTurn, payload_hash, score_turns
from service.stateless import score_requests
from service.telling import model_name

_ATTEMPTS = 50
Outcome = bytes | Problem


class Ticker:
    """Runs ticks against one store, with the users it remembers. One thread at a time.

    counts: what happened so far, by name; read by the metrics. offered: what the last tick scored, for a challenger.
    n_users: how many users are remembered at most; no tick may have more.
    """

    def __init__(self, store: Store, *, n_users: int, now_us: Callable[[], int]) -> None:
        """Take the store, how many users are remembered at most, and the clock of what is stored."""
        self.store = store
        self.counts: Counter[str] = Counter()
        self.n_users = max(n_users, 2)
        self._now_us = now_us
        self.offered = Offered([], [])
        self._memory: Remembered | None = None
        self._served: Served | None = None

    def run(
        self, served: Served, scores: Sequence[ScoreRequest], events: Sequence[EventsRequest]
    ) -> tuple[list[Outcome], list[Outcome]]:
        """Return an answer or a problem for each request; what is answered is committed. No user twice in `events`.

        Raises StoreDown where the store is away; then nobody may be answered from here.
        """
        assert len(events) <= self.n_users, "no user of a tick may be thrown out for another of it"
        memory = self._memory_for(served)
        score_outcomes: list[Outcome] = []
        event_outcomes: dict[int, Outcome] = {}
        waiting = dict(enumerate(events))
        self.offered = offered = Offered([], [])
        for attempt in range(_ATTEMPTS):
            journal = Journal(self.store, self._now_us)
            try:
                stateless = scores if attempt == 0 else ()
                found = self.store.read(self._wanted(served, memory, stateless, list(waiting.values())))
                tables = entity_tables_of(served.bundle.scorer.config.fields.entity, found.counters)
                answers, whole = score_requests(served, stateless, tables, journal, self.counts)
                score_outcomes.extend(answers)
                turns = self._turns(served, memory, waiting, found, event_outcomes)
                places = list(turns)
                scored: list[ScoredTurn] = []
                live: LiveScores | None = None
                if turns:
                    tables = _tables_after(served, tables, found, list(turns.values()))
                    scored, live = score_turns(served, list(turns.values()), tables, memory, self.store, journal)
                lost: frozenset[str] = frozenset()
                if scored or journal.records:
                    lost = self.store.write(Tick(tuple(one.write for one in scored), journal.records, ()))
            except BaseException:
                # What is remembered of these users may be ahead of what is stored.
                for request in waiting.values():
                    memory.forget(request.user_id)
                raise
            self._note(offered, whole, scored, live, lost)
            for place, one in zip(places, scored, strict=True):
                if one.turn.user_id in lost:
                    memory.forget(one.turn.user_id)
                    continue
                self._remember(memory, one)
                event_outcomes[place] = self._answer(served, waiting[place], one.answers, found)
            waiting = {place: waiting[place] for place in places if waiting[place].user_id in lost}
            self.counts["lost"] += len(waiting)
            if not waiting:
                break
        for place in waiting:
            event_outcomes[place] = Problem(
                503, "contended", detail="other writers of this user were faster; try again", retry_after_s=1
            )
        memory.trim()
        self.counts["ticks"] += 1
        return score_outcomes, [event_outcomes[place] for place in range(len(events))]

    def score_without_store(self, served: Served, requests: Sequence[ScoreRequest]) -> list[Outcome]:
        """Return degraded answers: scored from the request alone, neither remembered nor recorded."""
        self.counts["degraded"] += len(requests)
        tables = entity_tables_of(served.bundle.scorer.config.fields.entity, [])
        answers, _ = score_requests(served, requests, tables, None, self.counts)
        return list(answers)

    @property
    def n_remembered(self) -> int:
        """Return how many users are at hand."""
        return 0 if self._memory is None else len(self._memory)

    def forget_all(self) -> None:
        """Forget every user; the store makes them again."""
        if self._memory is not None:
            self._memory.forget_all()

    def forget(self, user_id: str) -> None:
        """Forget a user."""
        if self._memory is not None:
            self._memory.forget(user_id)

    def _memory_for(self, served: Served) -> Remembered:
        if self._memory is None or self._served is not served:
            self._memory = None  # the old one is let go before the new one takes its room
            self._memory = Remembered(served.bundle.scorer, self.n_users)
            self._served = served
        return self._memory

    def _wanted(
        self, served: Served, memory: Remembered, scores: Sequence[ScoreRequest], events: Sequence[EventsRequest]
    ) -> Wanted:
        config = served.bundle.scorer.config
        by_id, fields = config.log.event_id is not None, config.fields.entity
        asked: set[tuple[str, str | None, int]] = set()
        for request in (*scores, *events):
            hours = [row.time_us // HOUR_US for row in request.events]
            for e, name in enumerate(fields):
                asked.update(zip(repeat(name), [row.entity[e] for row in request.events], hours, strict=False))
        entities = tuple((name, value, hour) for name, value, hour in asked if value is not None)
        users = tuple(
            request.user_id
            for request in events
            if needs_rows(
                memory.get(request.user_id), min(sort_key(row, by_id=by_id) for row in request.events), memory
            )
        )
        keys = tuple((request.user_id, row.event_id or "") for request in events for row in request.events)
        return Wanted(users, keys, entities)

    def _turns(
        self,
        served: Served,
        memory: Remembered,
        requests: Mapping[int, EventsRequest],
        found: Found,
        outcomes: dict[int, Outcome],
    ) -> dict[int, Turn]:
        """Return the turns that are to be scored; a request that says nothing new, or is refused, gets its outcome."""
        by_id = served.bundle.scorer.config.log.event_id is not None
        turns: dict[int, Turn] = {}
        for place, request in requests.items():
            try:
                fresh = _fresh(request, found)
                if not fresh:
                    self.counts["repeated"] += 1
                    outcomes[place] = self._answer(served, request, {}, found)
                    continue
                fresh.sort(key=lambda row: sort_key(row, by_id=by_id))
                first = min(sort_key(row, by_id=by_id) for row in request.events)
                turns[place] = turn_of(
                    request.user_id,
                    fresh,
                    found.users.get(request.user_id),
                    memory,
                    explains=request.explain,
                    was_read=needs_rows(memory.get(request.user_id), first, memory),
                    now_us=self._now_us(),
                )
            except Problem as problem:
                # Its rows may have been read, and what is remembered of it set back to where they begin.
                memory.forget(request.user_id)
                self.counts[problem.code] += 1
                outcomes[place] = problem
        return turns

    def _note(
        self,
        offered: Offered,
        whole: LiveScores | None,
        scored: Sequence[ScoredTurn],
        live: LiveScores | None,
        lost: frozenset[str],
    ) -> None:
        """Note what was scored and committed, for a challenger in shadow."""
        if whole is not None:
            offered.whole.append(whole)
        if live is None or lost:
            return
        if all(one.turn.reads_all for one in scored):
            offered.whole.append(live)
            return
        first = 0
        for one in scored:
            last = first + len(one.turn.new)
            if not one.turn.late:
                offered.unread.append(Unread(one.turn.user_id, live.score_R[first:last], live.decision_R[first:last]))
            first = last

    def _remember(self, memory: Remembered, one: ScoredTurn) -> None:
        """Bring what is remembered of a user in line with what was committed."""
        known, write = one.turn.known, one.write
        by_id = memory.live.scorer.config.log.event_id is not None
        known.sequence, known.n_events, known.newest_us = write.sequence, write.n_events, write.newest_us
        known.snapshot, known.first_index, known.n_since = write.snapshot, one.first_index, one.n_since
        if one.turn.reads_all:
            known.first = sort_key(one.kept[0].row, by_id=by_id)
            known.newest = sort_key(one.kept[-1].row, by_id=by_id)
        else:
            known.newest = sort_key(one.turn.fresh[-1], by_id=by_id)
        known.rows = one.kept if known.rows is not None else None
        if len(known.rows or ()) > 2 * memory.live.scorer.config.sessions.max_events:
            memory.forget(one.turn.user_id)  # what a large request left is rolled away from the store, not kept here
        self.counts["events"] += len(one.turn.new)
        self.counts["late"] += one.turn.late
        for answer in one.answers.values():
            self.counts[f"decision_{answer.decision}"] += 1
            self.counts["unknown_values"] += len(answer.warnings)

    def _answer(
        self, served: Served, request: EventsRequest, answers: Mapping[str, EventAnswer], found: Found
    ) -> bytes:
        """Return the answer to a request from those of its new events and those that are stored."""
        by_id = served.bundle.scorer.config.log.event_id is not None
        order = sorted(range(len(request.events)), key=lambda i: (sort_key(request.events[i], by_id=by_id), i))
        model, policy = model_name(served), served.policy_version
        listed: list[EventAnswer] = []
        for i in order:
            row = request.events[i]
            answer = answers.get(row.event_id or "")
            if answer is not None:
                model, policy = model_name(served), served.policy_version
            else:
                answer, model, policy = _stored_answer(row, found.events[request.user_id, row.event_id or ""], served)
            listed.append(answer)
        return composed(listed, order, model=model, policy_version=policy, with_reasons=request.explain)


def _tables_after(
    served: Served, tables: Mapping[str, EntityTable], found: Found, turns: Sequence[Turn]
) -> Mapping[str, EntityTable]:
    """Return the tables with the new events of a tick counted: an event knows those of the hours before its own."""
    hours = {row.time_us // HOUR_US for turn in turns for row in turn.fresh}
    config = served.bundle.scorer.config
    if len(hours) == 1 or not config.fields.entity:
        return tables
    deltas = [delta for turn in turns for row in turn.fresh for delta in event_deltas(row.time_us, row.entity, config)]
    return entity_tables_of(config.fields.entity, with_deltas(found.counters, deltas))


def _fresh(request: EventsRequest, found: Found) -> list[EventRow]:
    """Return the events that are not stored; raise Problem 409 for one that is stored with other values."""
    fresh: list[EventRow] = []
    for place, row in enumerate(request.events):
        stored = found.events.get((request.user_id, row.event_id or ""))
        if stored is None:
            fresh.append(row)
        elif stored.payload_hash != payload_hash(row):
            text = "expected the values that this event_id had before"
            raise Problem(
                409,
                "conflict",
                detail="an event_id came before with other values; nothing of this request was written",
                errors=(FieldError(f"events.{place}.event_id", "conflict", text),),
            )
    return fresh


def _stored_answer(row: EventRow, stored: StoredEvent, served: Served) -> tuple[EventAnswer, ModelName, str]:
    if stored.payload is None:
        return never_scored(row), model_name(served), served.policy_version
    record = record_of(stored.payload)
    assert isinstance(record, EventRecord)  # an event's own record
    return record.answer, record.model, record.policy_version
