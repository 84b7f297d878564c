"""What a caller is answered: the JSON of a stateless score, of events, of a label, of a timeline.

An answer to events is composed from what was stored of each, so a retry in another grouping gets the same again.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from functools import lru_cache

import msgspec

from fraud.decisions import DECISIONS
from fraud.rows import EventRow
from service.payloads import ENCODER, EventAnswer, ModelName, Reason, Warned

_EPOCH_DAY = date(1970, 1, 1).toordinal()
_MINUTES = tuple(f"T{minute // 60:02}:{minute % 60:02}:" for minute in range(1440))
_SECONDS = tuple(f"{second:02}" for second in range(60))
_SEVERITY = {name: place for place, name in enumerate(DECISIONS)}


class EventLine(msgspec.Struct, frozen=True, gc=False):
    """One event of an answer."""

    event_id: str | None
    type: str
    ts: str
    score: float | None
    decision: str | None
    decision_id: str | None


class Answer(msgspec.Struct, frozen=True):
    """The answer of DESIGN 7. score, risk, decision_id, model: of the last event; decision: the most severe."""

    decision_id: str | None
    score: float | None
    risk: float | None
    decision: str | None
    reasons: Sequence[Reason]
    events: Sequence[EventLine]
    model: ModelName
    policy_version: str
    warnings: Sequence[Warned]
    degraded: bool


def instant(time_us: int) -> str:
    """Return a time as RFC 3339 in UTC, with a fraction only where it has one."""
    # 0.6 us: a datetime takes 2.7, and twenty of them are most of an answer.
    minutes = time_us // 60_000_000
    us = time_us % 60_000_000
    text = f"{_day(minutes // 1440)}{_MINUTES[minutes % 1440]}{_SECONDS[us // 1_000_000]}"
    us %= 1_000_000
    return f"{text}.{us:06}Z" if us else text + "Z"


@lru_cache(maxsize=1024)
def _day(days: int) -> str:
    """Return the date of a day, counted from 1970: an answer has many times, and few days."""
    return date.fromordinal(_EPOCH_DAY + days).isoformat()


def composed(
    answers: Sequence[EventAnswer],
    paths: Sequence[int],
    *,
    model: ModelName,
    policy_version: str,
    with_reasons: bool,
) -> bytes:
    """Return the answer to a request from those of its events, in the user's order.

    paths: the place of each event in the request. The reasons are those of the most severe decision, the last of
    several; of one that lets pass, only where they were asked for.
    """
    last = answers[-1]
    decision: str | None = None
    told = last
    for answer in answers:
        severity = -1 if answer.decision is None else _SEVERITY[answer.decision]
        if answer.decision is not None and (decision is None or severity >= _SEVERITY[decision]):
            decision, told = answer.decision, answer
    shown = told.reasons if with_reasons or decision not in (None, DECISIONS[0]) else []
    return ENCODER.encode(
        Answer(
            decision_id=last.decision_id,
            score=last.score,
            risk=last.risk,
            decision=decision or DECISIONS[0],
            reasons=shown,
            events=[event_line(answer) for answer in answers],
            model=model,
            policy_version=policy_version,
            warnings=[
                msgspec.structs.replace(warned, path=f"events.{path}.{warned.path}")
                for path, answer in zip(paths, answers, strict=True)
                for warned in answer.warnings
            ],
            degraded=False,
        )
    )


def event_line(answer: EventAnswer) -> EventLine:
    """Return one event of an answer."""
    return EventLine(answer.event_id, answer.type, answer.ts, answer.score, answer.decision, answer.decision_id)


def never_scored(row: EventRow) -> EventAnswer:
    """Return what is said of an event that came by `fraud warm` and was sent again: it has no score of its own."""
    warned = Warned("known_from_log", "event_id", "came with the log this store was warmed from; it was never scored")
    return EventAnswer(row.event_id, row.type, instant(row.time_us), None, None, None, None, [], [warned])
