"""What is wrong with a refused body, and where: up to ten faults by path, never a value that was sent.

This is the slow reading. It runs only for bodies that the typed decoders of `service.schemas` refuse, on at most 1 MB,
and stops at the tenth fault. Its verdicts must be those of the decoders; a test compares them.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from typing import Protocol

from service.fields import Field, Fields
from service.json_body import JsonObject, shown_key
from service.problems import MAX_ERRORS, FieldError, Problem
from service.values import (
    MAX_CHARACTERS,
    MAX_SESSION_CHARACTERS,
    Fault,
    TimeReader,
    integer_fault,
    number_fault,
    text_fault,
    time_fault,
)

Check = Callable[[object], Fault | None]


class _Enough(Exception):
    """Ten faults were found."""


def request_problem(
    value: object, fields: Fields, *, is_id_required: bool, now_us: int, prefix: str = ""
) -> Problem | None:
    """Return what is wrong with the JSON value of a score or events request; None where every rule is kept."""
    return _problem(_RequestReader(fields, is_id_required=is_id_required, now_us=now_us), value, prefix)


def label_problem(value: object, now_us: int) -> Problem | None:
    """Return what is wrong with the JSON value of a label."""
    return _problem(_LabelReader(now_us), value, "")


def batch_problem(value: object, fields: Fields, now_us: int) -> Problem | None:
    """Return what is wrong with the outer part of a batch, else with the first session that no decoder could read."""
    problem = _problem(_BatchReader(fields.max_events), value, "")
    if problem is not None or not isinstance(value, dict):
        return problem
    found = (
        request_problem(session, fields, is_id_required=False, now_us=now_us, prefix=f"sessions.{place}.")
        for place, session in enumerate(value["sessions"])
    )
    return next((one for one in found if one is not None), None)


def conflicting_repeat(place: int, prefix: str = "") -> Problem:
    """Return the problem of an event_id that stands twice in a request, with two payloads."""
    text = "expected the same payload as the earlier event of that event_id"
    error = FieldError(f"{prefix}events.{place}.event_id", "conflicting_duplicate", text)
    return invalid_request((error,))


def invalid_request(errors: tuple[FieldError, ...]) -> Problem:
    """Return the 422 of a request that is JSON and breaks rules."""
    return Problem(422, "invalid_request", detail="The request breaks the rules listed in errors.", errors=errors)


def _problem(reader: _Reads, value: object, prefix: str) -> Problem | None:
    with contextlib.suppress(_Enough):
        reader.read(value, prefix)
    return invalid_request(tuple(reader.errors)) if reader.errors else None


class _Reads(Protocol):
    """A reader of one kind of body."""

    errors: list[FieldError]

    def read(self, value: object, prefix: str) -> None:
        """Collect what is wrong with a value; prefix: of its paths."""
        ...


class _Reader:
    """Collects faults; the readers of requests, labels and batches say what they expect."""

    def __init__(self) -> None:
        self.errors: list[FieldError] = []

    def add(self, path: str, fault: Fault | None) -> None:
        if fault is None:
            return
        self.errors.append(FieldError(path, fault.code, fault.text))
        if len(self.errors) == MAX_ERRORS:
            raise _Enough

    def members(
        self, found: object, path: str, checks: Mapping[str, Check], required: frozenset[str]
    ) -> Mapping[str, object]:
        """Add the faults of an object's keys and values and return it; an empty one where it is no object."""
        if not isinstance(found, dict):
            self.add(path.removesuffix("."), _no_object(found))
            return {}
        members: Mapping[str, object] = found
        for key in found.repeated if isinstance(found, JsonObject) else ():
            self.add(path + shown_key(key), Fault("duplicate_key", "expected each key once"))
        for key, check in checks.items():
            if key in members:
                self.add(path + key, check(members[key]))
            elif key in required:
                self.add(path + key, Fault("missing", "expected this key"))
        for key in members:
            if key not in checks:
                self.add(path + shown_key(key), Fault("unknown_key", f"expected one of {', '.join(checks)}"))
        return members


class _RequestReader(_Reader):
    def __init__(self, fields: Fields, *, is_id_required: bool, now_us: int) -> None:
        super().__init__()
        self._fields = fields
        self._is_id_required = is_id_required
        self._event_checks: dict[str, Check] = {
            "event_id": _text,
            "ts": _time_check(now_us),
            "type": _fixed_type if fields.fixed_type else _text_check(fields.max_type_characters),
            **{field.key: _check_of(field, fields) for field in fields.declared},
        }

    def read(self, value: object, prefix: str) -> None:
        fields = self._fields
        beside = {field.key: _check_of(field, fields) for field in fields.declared if field.is_beside}
        checks: dict[str, Check] = {"user_id": _text, "events": self._events, "explain": _boolean, **beside}
        members = self.members(value, prefix, checks, frozenset({"user_id", "events"}))
        events = members.get("events")
        if not isinstance(events, list) or len(events) > fields.max_events:
            return
        required = {field.key for field in fields.declared if field.is_required} - set(members)
        required |= (
            {"ts"} | ({"event_id"} if self._is_id_required else set()) | (set() if fields.fixed_type else {"type"})
        )
        for place, event in enumerate(events):
            self.members(event, f"{prefix}events.{place}.", self._event_checks, frozenset(required))

    def _events(self, value: object) -> Fault | None:
        if not isinstance(value, list):
            return Fault("wrong_type", f"expected a list of events, got {_kind(value)}")
        if not value:
            return Fault("too_few", "expected at least one event")
        if len(value) > self._fields.max_events:
            return Fault("too_many", f"expected at most {self._fields.max_events} events")
        return None


class _LabelReader(_Reader):
    def __init__(self, now_us: int) -> None:
        super().__init__()
        self._now_us = now_us

    def read(self, value: object, prefix: str) -> None:
        checks: dict[str, Check] = {
            "user_id": _text, "event_id": _text, "session_id": _session_id,
            "label": _label, "known_at": _time_check(self._now_us), "source": _text,
        }  # fmt: skip
        members = self.members(value, prefix, checks, frozenset({"label"}))
        if isinstance(value, dict):
            named = tuple(sorted({"user_id", "event_id", "session_id"} & set(members)))
            if named not in LABEL_SUBJECTS:
                text = "expected user_id with event_id, or session_id alone, or user_id alone"
                self.add("user_id" if named == ("event_id",) or not named else named[0], Fault("no_subject", text))


class _BatchReader(_Reader):
    def __init__(self, max_sessions: int) -> None:
        super().__init__()
        self._max_sessions = max_sessions

    def read(self, value: object, prefix: str) -> None:
        self.members(value, prefix, {"sessions": self._sessions}, frozenset({"sessions"}))

    def _sessions(self, value: object) -> Fault | None:
        if not isinstance(value, list):
            return Fault("wrong_type", f"expected a list of requests, got {_kind(value)}")
        if not value:
            return Fault("too_few", "expected at least one request")
        if len(value) > self._max_sessions:
            return Fault("too_many", f"expected at most {self._max_sessions} requests")
        return None


LABEL_SUBJECTS = (("event_id", "user_id"), ("session_id",), ("user_id",))
_KINDS: tuple[tuple[type | tuple[type, ...], str], ...] = (
    (bool, "true or false"), (str, "text"), ((int, float), "a number"), (list, "a list"), (dict, "an object"),
)  # fmt: skip


def _kind(value: object) -> str:
    return next((name for kind, name in _KINDS if isinstance(value, kind)), "null")


def _no_object(value: object) -> Fault:
    return Fault("wrong_type", f"expected an object, got {_kind(value)}")


def _text_check(max_characters: int) -> Check:
    def check(value: object) -> Fault | None:
        if not isinstance(value, str):
            return Fault("wrong_type", f"expected text, got {_kind(value)}")
        return text_fault(value, max_characters)

    return check


_text = _text_check(MAX_CHARACTERS)
_session_id = _text_check(MAX_SESSION_CHARACTERS)


def _time_check(now_us: int) -> Check:
    times = TimeReader()

    def check(value: object) -> Fault | None:
        if not isinstance(value, str):
            return Fault("wrong_type", f"expected an RFC 3339 time as text, got {_kind(value)}")
        time_us = times.time_us(value)
        return time_us if isinstance(time_us, Fault) else time_fault(time_us, now_us)

    return check


def _fixed_type(value: object) -> Fault | None:
    return None if value == "event" else Fault("wrong_type", 'expected "event", the only type of this model')


def _boolean(value: object) -> Fault | None:
    return None if isinstance(value, bool) else Fault("wrong_type", f"expected true or false, got {_kind(value)}")


def _label(value: object) -> Fault | None:
    is_label = isinstance(value, bool) or (type(value) is int and value in (0, 1))
    return None if is_label else Fault("bad_label", "expected 0 or 1")


def _check_of(field: Field, fields: Fields) -> Check:
    """Return the check of a declared field; null is a value unless the field is required."""

    def check(value: object) -> Fault | None:
        if value is None and not field.is_required:
            return None
        if field.kind == "text":
            return _text(value)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return Fault("wrong_type", f"expected a number, got {_kind(value)}")
        if field.kind == "integer":
            return integer_fault(value) if isinstance(value, int) else Fault("bad_integer", "expected an integer")
        if field.kind == "amount":
            return number_fault(value, lowest=fields.lowest_amount, largest=fields.max_amount)
        return number_fault(value, lowest=-math.inf, largest=math.inf)

    return check
