"""What is kept of an answer: one record an event or a stateless request, as JSON, and the rows of a user's snapshot.

A record holds what the score came from (the raw event, the risk of its entities as it was) and what was answered, so
that it can be replayed to the bit. A salt stands in each, so that nobody can guess a record from its hash.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from fraud.entities import RISK_NAMES
from fraud.events import FloatArray
from fraud.rows import EventRow
from fraud.tokens import Risk

RiskCells = list[list[float | None] | None]  # by entity field; None: nothing was known of it (or there was none)

# What `entity_risk` gives of an entity that no table holds: no event, no label, and no day on which one became known.
_UNKNOWN_RISK = np.array([np.nan if "days" in name else 0.0 for name in RISK_NAMES])


class Reason(msgspec.Struct, frozen=True, gc=False):
    """One reason for a score; event_index: how many events of the user came before the one it speaks of."""

    code: str
    text: str
    event_index: int
    contribution: float


class Warned(msgspec.Struct, frozen=True, gc=False):
    """What a caller should know of an answer: path names the field."""

    code: str
    path: str
    text: str


class ModelName(msgspec.Struct, frozen=True, gc=False):
    """Which bundle answered."""

    name: str
    version: str
    sha256: str


class EventAnswer(msgspec.Struct, frozen=True):
    """What was answered of one event. score, risk: null where the event was never scored (it came by `fraud warm`).

    decision: null where the policy decides nothing on this event.
    """

    event_id: str | None
    type: str
    ts: str
    score: float | None
    risk: float | None
    decision: str | None
    decision_id: str | None
    reasons: list[Reason]
    warnings: list[Warned]


class EventRecord(msgspec.Struct, frozen=True, tag_field="kind", tag="event"):
    """An event of a user with a past. snapshot, place: the rows it was scored after.

    place >= 0: after the rows of the snapshot and the `place` events answered since; below: it is row -1 - place of the
    snapshot itself (a late event, which was put in between).
    """

    salt: str
    user_id: str
    row: EventRow
    risk: RiskCells
    snapshot: int
    place: int
    at_us: int
    model: ModelName
    policy_version: str
    answer: EventAnswer


class ScoreRecord(msgspec.Struct, frozen=True, tag_field="kind", tag="score"):
    """A stateless request and its answer; risk: by event."""

    salt: str
    user_id: str
    rows: list[EventRow]
    risk: list[RiskCells]
    explain: bool
    at_us: int
    model: ModelName
    policy_version: str
    answer: msgspec.Raw


Record = EventRecord | ScoreRecord


class StoredRow(msgspec.Struct, frozen=True, array_like=True):
    """A row of a snapshot, and the risk of its entities as it was when it was scored."""

    row: EventRow
    risk: RiskCells


ENCODER = msgspec.json.Encoder()
_RECORD = msgspec.json.Decoder(EventRecord | ScoreRecord)
_ROWS = msgspec.json.Decoder(list[StoredRow])


def record_of(payload: bytes) -> Record:
    """Return a stored record; raises msgspec.DecodeError for bytes that are none."""
    return _RECORD.decode(payload)


def rows_to_bytes(rows: list[StoredRow]) -> bytes:
    """Return the rows of a snapshot for the store."""
    return ENCODER.encode(rows)


def rows_from_bytes(content: bytes) -> list[StoredRow]:
    """Return the rows that `rows_to_bytes` wrote."""
    return _ROWS.decode(content) if content else []


def risk_cells(risk: Risk, rows: list[int]) -> list[RiskCells]:
    """Return the risk of some events as cells; where nothing is known of an entity its cells are None.

    A cell is NaN where the risk is: JSON has no such number, and it is written as null.
    """
    by_field: list[list[list[float | None] | None]] = []
    for risk_NR in risk.values():
        risk_RR = risk_NR[rows]
        says = ((risk_RR != 0.0) & (risk_RR == risk_RR)).any(axis=1).nonzero()[0]
        cells: list[list[float | None] | None] = [None] * len(rows)
        for r, own in zip(says.tolist(), risk_RR[says].tolist(), strict=True):
            cells[r] = own
        by_field.append(cells)
    return [list(cells) for cells in zip(*by_field, strict=True)] if by_field else [[] for _ in rows]


def risk_array(rows: list[StoredRow]) -> FloatArray:
    """Return float64 [rows, E, R]: what `risk_cells` was given."""
    n_fields = len(rows[0].row.entity) if rows else 0
    risk_OER = np.full((len(rows), n_fields, len(RISK_NAMES)), np.nan, dtype=np.float64)
    for o, stored in enumerate(rows):
        for e, (value, cells) in enumerate(zip(stored.row.entity, stored.risk, strict=False)):
            if cells is not None:
                risk_OER[o, e] = [np.nan if cell is None else cell for cell in cells]
            elif value is not None:
                risk_OER[o, e] = _UNKNOWN_RISK
    return risk_OER


def json_of(record: Record) -> dict[str, Any]:  # Any: JSON
    """Return a record as plain JSON values, without its salt."""
    tree = msgspec.to_builtins(record)
    tree.pop("salt")
    return tree
