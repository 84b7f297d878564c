"""`/v1/events`: the new events of users with a past, scored after it, and what of their state is then written."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fraud.carry_pool import carry_from_bytes, carry_to_bytes
from fraud.decisions import DECISIONS, REVIEW
from fraud.entities import EntityTable
from fraud.exact import sequence_positions
from fraud.live import LiveScores, Part, carries_at, kept_from
from fraud.rows import EventRow
from fraud.scoring import NO_DECISION, enrich_spec
from service.answers import instant
from service.context import Turn, stored_rows
from service.counters import event_deltas, summed
from service.journal import Journal
from service.models import Served
from service.payloads import (
    ENCODER,
    EventAnswer,
    EventRecord,
    Reason,
    RiskCells,
    StoredRow,
    risk_array,
    risk_cells,
    rows_to_bytes,
)
from service.remembered import Remembered
from service.state.store import EventWrite, NewSnapshot, Store, UserWrite, Wanted
from service.telling import carry_of, model_name, reasons_at, risk_of_part, rule_at, session_ids_of, warnings_of


class ScoredTurn(NamedTuple):
    """A user's turn, scored and not yet committed: what is written, what is answered of each event, and what the user
    is remembered by if the store takes it. n_since: events after the snapshot, these included."""

    turn: Turn
    write: UserWrite
    answers: dict[str, EventAnswer]
    first_index: int
    n_since: int
    kept: list[StoredRow]


class _Placed(NamedTuple):
    """Where a turn's events stand in what is stored: after `n_before` events since the snapshot, or inside of it."""

    snapshot: int
    first_index: int
    n_before: int
    new_snapshot: NewSnapshot | None
    kept: list[StoredRow]


def score_turns(
    served: Served,
    turns: Sequence[Turn],
    tables: Mapping[str, EntityTable],
    memory: Remembered,
    store: Store,
    journal: Journal,
) -> tuple[list[ScoredTurn], LiveScores]:
    """Return the turns of different users and their scores. What is remembered of them is then ahead of the store."""
    parts = [
        Part(turn.user_id, turn.known.slot, turn.rows, turn.new, risk_array(turn.old), turn.step_from) for turn in turns
    ]
    scores = memory.live.score(parts, tables)
    rolls = _rolls(turns, scores, memory)
    rolled = carries_at(scores, np.array(list(rolls.values()), dtype=np.int64)) if rolls else None
    cells_R = risk_cells(scores.risk, scores.new_R.tolist())
    told = _told(served, turns, scores, cells_R, store)
    slots = np.array([turn.known.slot for turn in turns], dtype=np.int64)
    if memory.live.is_stepped:
        memory.pool.put(slots, scores.after)
    elif rolled is not None:
        memory.pool.put(slots[list(rolls)], rolled)
    sessions_R = session_ids_of(scores, [turn.user_id for turn in turns])
    scored: list[ScoredTurn] = []
    first_R = 0
    for u, turn in enumerate(turns):
        cells = cells_R[first_R : first_R + len(turn.new)]
        if turn.late:
            placed = _inside(turn, cells, carry_to_bytes(scores.before, u))
        elif u in rolls:
            assert rolled is not None  # there is a roll
            n_dropped = rolls[u] - int(scores.enriched.events.user_starts[u])
            placed = _after_roll(turn, cells, n_dropped, carry_to_bytes(rolled, list(rolls).index(u)))
        else:
            placed = _after(turn, cells)
        events: list[EventWrite] = []
        answers: dict[str, EventAnswer] = {}
        for i, row in enumerate(turn.fresh):
            r = first_R + i
            place = -1 - turn.new[i] if turn.late else placed.n_before + i
            record = _record(served, turn, row, cells[i], scores, r, told.get(r, []), journal, (placed.snapshot, place))
            event_id = row.event_id or ""
            answers[event_id] = record.answer
            events.append(
                EventWrite(
                    event_id=event_id,
                    ts_us=row.time_us,
                    payload_hash=payload_hash(row),
                    session_id=sessions_R[r],
                    entities=row.entity,
                    number=journal.number,
                    ordinal=place,
                    payload=ENCODER.encode(record),
                    stored_us=record.at_us,
                )
            )
        known, config = turn.known, served.bundle.scorer.config
        write = UserWrite(
            user_id=turn.user_id,
            expected_sequence=0 if turn.is_new_user else known.sequence,
            sequence=known.sequence + 1,
            n_events=known.n_events + len(turn.new),
            newest_us=turn.rows[-1].time_us if turn.reads_all else turn.fresh[-1].time_us,
            snapshot=placed.snapshot,
            new_snapshot=placed.new_snapshot,
            events=tuple(events),
            counters=tuple(summed(d for row in turn.fresh for d in event_deltas(row.time_us, row.entity, config))),
        )
        n_since = 0 if turn.late else placed.n_before + len(turn.new)
        scored.append(ScoredTurn(turn, write, answers, placed.first_index, n_since, placed.kept))
        first_R += len(turn.new)
    return scored, scores


def payload_hash(row: EventRow) -> bytes:
    """Return the hash by which an event that is sent again is known to say the same."""
    return hashlib.sha256(ENCODER.encode(row)).digest()


def _rolls(turns: Sequence[Turn], scores: LiveScores, memory: Remembered) -> dict[int, int]:
    """Return, by turn, the row of the tick that becomes the first one stored, where a block was left behind.

    The new snapshot ends before the new events: those are the first ones after it.
    """
    rolls: dict[int, int] = {}
    config = memory.live.scorer.config
    position_N = sequence_positions(scores.enriched, config)
    for u, (turn, start) in enumerate(zip(turns, scores.enriched.events.user_starts.tolist(), strict=False)):
        if not turn.reads_all or turn.late or not turn.old:
            continue
        first_index = kept_from(turn.known.n_events, int(position_N[start + len(turn.old)]), config.sessions.max_events)
        if first_index > turn.known.first_index:
            rolls[u] = start + first_index - turn.known.first_index
    return rolls


def _after(turn: Turn, cells: Sequence[RiskCells]) -> _Placed:
    known = turn.known
    new_snapshot = NewSnapshot(0, b"", b"") if turn.is_new_user else None
    return _Placed(known.snapshot, known.first_index, known.n_since, new_snapshot, [*turn.old, *_new_rows(turn, cells)])


def _after_roll(turn: Turn, cells: Sequence[RiskCells], n_dropped: int, carry: bytes) -> _Placed:
    first_index, kept = turn.known.first_index + n_dropped, turn.old[n_dropped:]
    snapshot = NewSnapshot(first_index, carry, rows_to_bytes(kept))
    return _Placed(turn.known.snapshot + 1, first_index, 0, snapshot, [*kept, *_new_rows(turn, cells)])


def _inside(turn: Turn, cells: Sequence[RiskCells], carry: bytes) -> _Placed:
    """Return the place of late events: a new snapshot holds all rows in their order, these among them."""
    new = dict(zip(turn.new, _new_rows(turn, cells), strict=True))
    old = iter(turn.old)
    kept = [new[at] if at in new else next(old) for at in range(len(turn.rows))]
    snapshot = NewSnapshot(turn.known.first_index, carry, rows_to_bytes(kept))
    return _Placed(turn.known.snapshot + 1, turn.known.first_index, 0, snapshot, kept)


def _new_rows(turn: Turn, cells: Sequence[RiskCells]) -> list[StoredRow]:
    return [StoredRow(row, own) for row, own in zip(turn.fresh, cells, strict=True)]


def _told(
    served: Served, turns: Sequence[Turn], scores: LiveScores, cells_R: Sequence[RiskCells], store: Store
) -> dict[int, list[Reason]]:
    """Return the reasons for the new events that somebody will read: those not let pass, or all where asked for."""
    alerts_R = (scores.decision_R >= REVIEW).tolist()
    wanted: dict[int, list[int]] = {}
    first_R = 0
    for u, turn in enumerate(turns):
        n_new = len(turn.new)
        places = [i for i in range(n_new) if turn.explains or alerts_R[first_R + i]]
        if places:
            wanted[u] = [first_R + i for i in places]
        first_R += n_new
    if not wanted:
        return {}
    # Where the carry and the states stood for a user's past, its rows are read now.
    users = tuple(turns[u].user_id for u in wanted if not turns[u].reads_all)
    found = store.read(Wanted(users, (), ())).users if users else {}
    told: dict[int, list[Reason]] = {}
    starts = scores.enriched.events.user_starts.tolist()
    for u, rows_R in wanted.items():
        turn = turns[u]
        if turn.reads_all:
            before, rows = carry_of(scores.before, u, served), turn.rows
            risk = risk_of_part(scores, starts[u], starts[u + 1])
            places = [int(scores.new_R[r]) - starts[u] for r in rows_R]
        else:
            stored = found.get(turn.user_id)
            if stored is None or stored.sequence != turn.known.sequence:
                continue  # another process wrote the user meanwhile: this turn is lost and will be scored again
            old = stored_rows(stored)
            before = carry_from_bytes(stored.carry, enrich_spec(served.bundle.scorer.config))
            rows = [*(one.row for one in old), *turn.fresh]
            own = risk_of_part(scores, starts[u], starts[u + 1])
            past_OER = risk_array(old)
            risk = {name: np.concatenate([past_OER[:, e], own[name]]) for e, name in enumerate(own)}
            places = [len(old) + int(scores.new_R[r]) - starts[u] for r in rows_R]
        for r, reasons in zip(rows_R, reasons_at(served, turn.user_id, rows, before, risk, places), strict=True):
            told[r] = [*rule_at(served, scores, r), *reasons]
    return told


def _record(
    served: Served,
    turn: Turn,
    row: EventRow,
    cells: RiskCells,
    scores: LiveScores,
    r: int,
    reasons: list[Reason],
    journal: Journal,
    placed: tuple[int, int],
) -> EventRecord:
    score, decision = float(scores.score_R[r]), int(scores.decision_R[r])
    return EventRecord(
        salt=secrets.token_hex(8),
        user_id=turn.user_id,
        row=row,
        risk=cells,
        snapshot=placed[0],
        place=placed[1],
        at_us=journal.now_us(),
        model=model_name(served),
        policy_version=served.policy_version,
        answer=EventAnswer(
            event_id=row.event_id,
            type=row.type,
            ts=instant(row.time_us),
            score=score,
            risk=served.risk_percentile(score),
            decision=None if decision == NO_DECISION else DECISIONS[decision],
            decision_id=journal.next_id(),
            reasons=reasons,
            warnings=warnings_of(served, row),
        ),
    )
