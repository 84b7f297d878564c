"""Bytes of a request -> checked values, decoded straight into typed structs that are made once for a bundle.

The way of a good request is short: one decoding, one cheap proof that no key stood twice, one pass over the events.
Whatever is refused goes to `service.faults`, which reads the body again, slowly, to say what is wrong with it where.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from itertools import repeat
from typing import Any, NamedTuple

import msgspec
from msgspec import UNSET

from fraud.config import Config
from fraud.rows import EventRow
from service.faults import (
    LABEL_SUBJECTS,
    batch_problem,
    conflicting_repeat,
    invalid_request,
    label_problem,
    request_problem,
)
from service.fields import MAX_EVENTS, Fields, fields_of
from service.json_body import parsed_body
from service.problems import FieldError, Problem
from service.structs import LabelBody, batch_struct, request_struct
from service.values import (
    AHEAD_US,
    EARLIEST_US,
    MAX_CHARACTERS,
    MAX_SESSION_CHARACTERS,
    TimeReader,
    text_fault,
)


class ScoreRequest(NamedTuple):
    """A stateless request. events: in the order of the request, a repeated event_id only once."""

    user_id: str
    events: tuple[EventRow, ...]
    explain: bool


class EventsRequest(NamedTuple):
    """Events to remember. events: as above, event_id always set."""

    user_id: str
    events: tuple[EventRow, ...]
    explain: bool


class LabelRequest(NamedTuple):
    """What became known: of an event (user_id, event_id), of a session (session_id), or of a user (user_id alone)."""

    user_id: str | None
    event_id: str | None
    session_id: str | None
    label: int
    known_us: int
    source: str


_NULLS: repeat[None] = repeat(None)
_NOTHING: repeat[tuple[()]] = repeat(())
_ROW: Callable[[tuple[Any, ...]], EventRow] = partial(tuple.__new__, EventRow)  # _make without a Python call a row
_REFUSALS = (msgspec.MsgspecError, UnicodeError, RecursionError)
_DECODER_PATH = re.compile(r" - at `\$(.*)`$")
_MALFORMED = FieldError("", "invalid_request", "expected a request as /openapi.json describes it")


class Schema:
    """The typed decoders of one bundle's requests; all raise Problem (400 no JSON, 422 a rule is broken)."""

    def __init__(self, fields: Fields) -> None:
        self.fields = fields
        self._times = TimeReader()
        self._encoder = msgspec.json.Encoder()
        self._score = msgspec.json.Decoder(request_struct(fields, is_id_required=False))
        self._events = msgspec.json.Decoder(request_struct(fields, is_id_required=True))
        self._batch = msgspec.json.Decoder(batch_struct(fields))
        self._label = msgspec.json.Decoder(LabelBody)
        first = 3 + fields.has_amount
        ends = (first, first + fields.n_numeric)
        ends = (*ends, ends[1] + fields.n_categorical, ends[1] + fields.n_categorical + fields.n_entity)
        self._ends = ends
        self._texts = (0, 2, *range(ends[1], ends[3] + fields.has_session))
        # What an event has that names nothing: null everywhere, and its type where the log has only one.
        self._absent = (None, None, "event" if fields.fixed_type else None, *(None for _ in fields.declared))
        self._beside = tuple(place for place, field in enumerate(fields.declared) if field.is_beside)

    def decode_score(self, body: bytes, now_us: int) -> ScoreRequest:
        """Return the request of POST /v1/score. now_us: the clock that an event may be 5 minutes ahead of."""
        return ScoreRequest(*self._request(body, self._score, now_us, is_id_required=False, prefix=""))

    def decode_events(self, body: bytes, now_us: int) -> EventsRequest:
        """Return the request of POST /v1/events."""
        return EventsRequest(*self._request(body, self._events, now_us, is_id_required=True, prefix=""))

    def decode_batch(self, body: bytes, now_us: int) -> list[ScoreRequest | Problem]:
        """Return the requests of POST /v1/score/batch; one that is refused costs the others nothing."""
        sessions: list[bytes] = []
        is_good = False
        try:
            sessions = [bytes(raw) for raw in self._batch.decode(body).sessions]
            # All other quotes are inside the sessions, where they are counted again.
            is_good = body.count(b'"') - sum(session.count(b'"') for session in sessions) == 2
        except _REFUSALS as error:
            self._refuse_swollen(body, error, "")
        if not is_good:
            raise batch_problem(parsed_body(body), self.fields, now_us) or invalid_request((_MALFORMED,))
        requests: list[ScoreRequest | Problem] = []
        n_events = 0
        for place, session in enumerate(sessions):
            try:
                prefix = f"sessions.{place}."
                parts = self._request(session, self._score, now_us, is_id_required=False, prefix=prefix)
                requests.append(ScoreRequest(*parts))
                n_events += len(parts[1])
            except Problem as problem:
                requests.append(problem)
        if n_events > self.fields.max_events:
            text = f"expected at most {self.fields.max_events} events in all sessions together"
            raise invalid_request((FieldError("sessions", "too_many", text),))
        return requests

    def decode_label(self, body: bytes, now_us: int) -> LabelRequest:
        """Return the request of POST /v1/labels; known_at is now where it is not given."""
        try:
            found = self._label.decode(body)
        except _REFUSALS:
            found = None
        request = None if found is None else self._checked_label(found, now_us)
        if request is None or not self._is_each_key_once(body, found):
            problem = label_problem(parsed_body(body), now_us)
            if problem is not None or request is None:
                raise problem or invalid_request((_MALFORMED,))
        return request

    def _checked_label(self, found: LabelBody, now_us: int) -> LabelRequest | None:
        texts = {
            "user_id": found.user_id,
            "event_id": found.event_id,
            "session_id": found.session_id,
            "source": found.source,
        }
        given = {key: text for key, text in texts.items() if isinstance(text, str)}
        if any(text_fault(text, MAX_SESSION_CHARACTERS) for text in given.values()):
            return None
        if tuple(sorted(set(given) - {"source"})) not in LABEL_SUBJECTS:
            return None
        known_us: object = 0  # known when it arrives, which is later
        if isinstance(found.known_at, str):
            known_us = self._times.time_us(found.known_at)
            if not isinstance(known_us, int) or not EARLIEST_US <= known_us <= now_us + AHEAD_US:
                return None
        assert isinstance(known_us, int)  # either way
        return LabelRequest(
            given.get("user_id"), given.get("event_id"), given.get("session_id"), int(found.label), known_us,
            given.get("source", "unknown"),
        )  # fmt: skip

    def _request(
        self, body: bytes, decoder: msgspec.json.Decoder[Any], now_us: int, *, is_id_required: bool, prefix: str
    ) -> tuple[str, tuple[EventRow, ...], bool]:  # Any above: a struct that is made at run time
        """Return user, events and explain of a body, or raise the Problem that says what is wrong with it."""
        found: Any = None
        rows: tuple[EventRow, ...] | None = None
        try:
            found = decoder.decode(body)
            rows = self._rows(found, body, now_us)
        except _REFUSALS as error:
            self._refuse_swollen(body, error, prefix)
        if rows is None or not self._is_each_key_once(body, found):
            value = parsed_body(body)
            problem = request_problem(value, self.fields, is_id_required=is_id_required, now_us=now_us, prefix=prefix)
            if problem is not None or rows is None:
                raise problem or invalid_request((_MALFORMED,))
        if len({row[0] for row in rows}) != len(rows):
            rows = _without_repeats(rows, prefix)
        return found.user_id, rows, found.explain is True

    def _refuse_swollen(self, body: bytes, error: Exception, prefix: str) -> None:
        """Raise the one fault that the decoder told where a body holds more values than a good one could.

        Reading all of them again to list the faults would take a third of a second for 1 MB of "{},".
        """
        n_values = 2 * self.fields.max_events * (len(self.fields.declared) + 4)
        if body.count(b"{") > 2 * self.fields.max_events + 2 or body.count(b",") > n_values:
            found = _DECODER_PATH.search(str(error))
            path = found[1].replace("[", ".").replace("]", "").lstrip(".") if found else ""
            is_length = "length" in str(error)
            code, text = ("too_many", "expected fewer values") if is_length else (_MALFORMED.code, _MALFORMED.text)
            raise invalid_request((FieldError(prefix + path, code, text),))

    def _is_each_key_once(self, body: bytes, found: object) -> bool:
        """Return False where a key may have stood twice in the body that `found` was decoded from.

        A repeated key was dropped: written again, the request has two quotes less. Only an escaped quote can hide that.
        """
        if b"\\" in body and b"\\u0022" in body:
            return False
        return body.count(b'"') == self._encoder.encode(found).count(b'"')

    def _rows(self, found: Any, body: bytes, now_us: int) -> tuple[EventRow, ...] | None:
        """Return the events as rows; None where a rule is broken that types cannot express.

        Key by key and not event by event: 20 events take 15 us, and took 40 when each was put together by itself.
        """
        absent = self._absent
        for place in self._beside:
            if getattr(found, f"f{place}") is not UNSET:
                absent = self._absent_of(found)
                break
        columns: list[list[Any]] = [  # Any: values of several types
            [a if value is UNSET else value for value in column]
            for column, a in zip(zip(*map(msgspec.structs.astuple, found.events), strict=True), absent, strict=True)
        ]
        times_us = self._times.times_us(columns[1])
        if times_us is None or min(times_us) < EARLIEST_US or max(times_us) > now_us + AHEAD_US:
            return None
        # In printable ASCII without escapes no text can hold a control character, and only one that starts with a space
        # can be blank: then no text needs a look of its own.
        is_plain = body.isascii() and b"\\" not in body and b"\x7f" not in body
        is_plain = is_plain and (b" " not in body or b'" ' not in body)
        if not is_plain and self._has_text_fault(found, columns):
            return None
        first, second, third, fourth = self._ends
        sessions = repeat(found.user_id if self.fields.is_user_session else None)
        if self.fields.has_session:
            sessions = columns[fourth]
            if None in sessions:
                return None
        parts = zip(
            columns[0],
            times_us,
            columns[2],
            columns[3] if self.fields.has_amount else _NULLS,
            zip(*columns[first:second], strict=True) if second > first else _NOTHING,
            zip(*columns[second:third], strict=True) if third > second else _NOTHING,
            zip(*columns[third:fourth], strict=True) if fourth > third else _NOTHING,
            sessions,
            columns[-1] if self.fields.has_order else _NULLS,
            strict=False,
        )
        return tuple(map(_ROW, parts))

    def _absent_of(self, found: Any) -> tuple[Any, ...]:  # Any: a struct and values of several types
        """Return what an event of this request has for a key that it lacks."""
        absent = list(self._absent)
        for place in self._beside:
            value = getattr(found, f"f{place}")
            absent[3 + place] = None if value is UNSET else value
        return tuple(absent)

    def _has_text_fault(self, found: Any, columns: Sequence[Sequence[Any]]) -> bool:  # Any: values of several types
        max_type = self.fields.max_type_characters
        beside = (getattr(found, f"f{place}") for place in self._beside)
        if any(isinstance(text, str) and text_fault(text) for text in (found.user_id, *beside)):
            return True
        return any(
            text is not None and text_fault(text, max_type if place == 2 else MAX_CHARACTERS)
            for place in self._texts
            for text in columns[place]
        )


def schema_of(config: Config, *, max_events: int = MAX_EVENTS) -> Schema:
    """Return the decoders for a bundle of this configuration; raises ConfigError as `fields_of` does."""
    return Schema(fields_of(config, max_events=max_events))


def _without_repeats(rows: tuple[EventRow, ...], prefix: str) -> tuple[EventRow, ...]:
    """Return the events with each event_id once; Problem 422 where it stands twice with two payloads."""
    firsts: dict[str, EventRow] = {}
    kept: list[EventRow] = []
    for place, row in enumerate(rows):
        first = firsts.setdefault(row.event_id, row) if row.event_id is not None else row
        if first is row:
            kept.append(row)
        elif first != row:
            raise conflicting_repeat(place, prefix)
    return tuple(kept)
