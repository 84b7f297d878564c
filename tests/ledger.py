"""What a service acknowledged, kept outside of it: each event with its answer, to be found again unchanged."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from service.audit import Broken, verify
from service.payloads import EventRecord, record_of
from service.state.opening import open_existing_store
from service.state.sql import SqlStore
from service.state.store import Wanted
from tests.serving import Caller

Key = tuple[str, str]  # user_id, event_id
Line = dict[str, Any]  # Any: JSON; one event of an answer
_AT_ONCE = 500


class Faults(NamedTuple):
    """What is wrong. lost: acknowledged, not in the store; changed: there with another answer; twice: with two records;
    unsent: there, and nobody sent it, or it was refused; broken: what an audit of the chains finds."""

    lost: list[Key]
    changed: list[Key]
    twice: list[Key]
    unsent: list[Key]
    broken: tuple[Broken, ...]


class Ledger:
    """Every event that was sent, and every answer that came. Several threads may write."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.earliest = datetime.now(UTC) - timedelta(days=25)  # of the events: none may be in the future
        self.sent: dict[Key, dict[str, Any]] = {}
        self.acknowledged: dict[Key, Line] = {}
        self.refused: set[Key] = set()  # for good
        self.contradictions: list[Key] = []  # answered twice, differently, or with other events
        self._lock = threading.Lock()

    def note_sent(self, document: Any) -> None:
        """Note a request before it is sent."""
        with self._lock:
            for event in document["events"]:
                self.sent[document["user_id"], event["event_id"]] = event

    def note_refused(self, request: Any) -> None:
        """Note a request that was not taken, and never will be."""
        with self._lock:
            self.refused |= {(request["user_id"], event["event_id"]) for event in request["events"]}

    def note_answer(self, request: Any, answer: Any) -> None:
        """Note an answer with status 200 to a request; one that is degraded acknowledges nothing."""
        if answer["degraded"]:
            return
        user_id, sent = request["user_id"], {event["event_id"] for event in request["events"]}
        with self._lock:
            if {line["event_id"] for line in answer["events"]} != sent:
                self.contradictions.append((user_id, f"expected {sorted(sent)}, was answered {answer['events']}"))
                return
            for line in answer["events"]:
                key = (user_id, line["event_id"])
                if self.acknowledged.setdefault(key, line) != line:
                    self.contradictions.append(key)

    def requests(self) -> list[dict[str, Any]]:
        """Return requests that send all that was acknowledged again, in groups of another size."""
        by_user: dict[str, list[dict[str, Any]]] = {}
        for (user_id, event_id), _ in sorted(self.acknowledged.items()):
            by_user.setdefault(user_id, []).append(self.sent[user_id, event_id])
        return [
            {"user_id": user_id, "events": events[first : first + _AT_ONCE]}
            for user_id, events in by_user.items()
            for first in range(0, len(events), _AT_ONCE)
        ]

    def send_again(self, caller: Caller) -> None:
        """Send all that was acknowledged again; an answer that is not the one before is a contradiction."""
        for request in self.requests():
            answer = caller.ask_again("POST", "/v1/events", request)
            assert answer.status == 200, answer
            self.note_answer(request, answer.json)

    def faults(self, state: str) -> Faults:
        """Return what of this a store contradicts; a service may be writing to it meanwhile."""
        with self._lock:
            acknowledged = dict(self.acknowledged)
        store = open_existing_store(state, now_us=lambda: 0, timeout_s=10)
        try:
            found = _stored_answers(store, list(acknowledged))
            n_records = Counter((record.user_id, record.row.event_id or "") for record in event_records(store))
            return Faults(
                lost=[key for key in acknowledged if key not in found],
                changed=[key for key, line in acknowledged.items() if key in found and not _says(found[key], line)],
                twice=[key for key, n in n_records.items() if n > 1],
                unsent=[key for key in n_records if key not in self.sent or key in self.refused],
                broken=verify(store, {}).broken,
            )
        finally:
            store.close()


NO_FAULTS = Faults([], [], [], [], ())


def _says(record: EventRecord, line: Line) -> bool:
    answer = record.answer
    return all(getattr(answer, name) == value for name, value in line.items())


def _stored_answers(store: SqlStore, keys: list[Key]) -> dict[Key, EventRecord]:
    records: dict[Key, EventRecord] = {}
    for first in range(0, len(keys), _AT_ONCE):
        found = store.read(Wanted((), tuple(keys[first : first + _AT_ONCE]), ())).events
        for key, event in found.items():
            assert event.payload is not None
            record = record_of(event.payload)
            assert isinstance(record, EventRecord)
            records[key] = record
    return records


def event_records(store: SqlStore) -> Iterator[EventRecord]:
    """Yield the record of each answered event, chain by chain."""
    for head in store.shard_heads():
        after = 0
        while links := store.chain(head.shard, after, _AT_ONCE):
            after = links[-1].number
            for link in links:
                record = None if link.payload is None else record_of(link.payload)
                if isinstance(record, EventRecord):
                    yield record
