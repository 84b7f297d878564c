"""A user as a tick finds it: what is stored, what is remembered, and which of its rows a scorer has to read again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fraud.carry_pool import carry_from_bytes
from fraud.contexts import context_start
from fraud.enrich import Carry
from fraud.rows import EventRow, sort_key
from fraud.scoring import Scorer, enrich_spec
from service.payloads import EventRecord, StoredRow, record_of, rows_from_bytes
from service.problems import FieldError, Problem
from service.remembered import Known, Remembered, SortKey
from service.state.store import StoredUser


@dataclass(slots=True)
class Turn:
    """One request of a user, its new events placed among what is there.

    fresh: the new events, in order. rows: what the scorer reads, the new events at the places `new`; old: the stored
    rows among them. late: a new event stands before a stored one, so the snapshot is written again. reads_all: `rows`
    begin with all that is stored; else with the new events, after the carry and the states that are remembered.
    """

    user_id: str
    explains: bool
    fresh: list[EventRow]
    known: Known
    rows: list[EventRow]
    new: tuple[int, ...]
    old: list[StoredRow]
    step_from: int
    late: bool
    is_new_user: bool
    reads_all: bool


def needs_rows(known: Known | None, first: SortKey, memory: Remembered) -> bool:
    """Return True where the stored rows of a user must be read before events from the key `first` on can be scored."""
    if known is None:
        return True
    if known.rows is not None:
        return _is_too_late(known, first)  # unless another process erased the user meanwhile: it is asked
    is_late = known.newest is not None and first < known.newest
    return is_late or _is_roll_due(known, memory)


def turn_of(
    user_id: str,
    fresh: list[EventRow],
    stored: StoredUser | None,
    memory: Remembered,
    *,
    explains: bool,
    was_read: bool,
    now_us: int,
) -> Turn:
    """Return how the new events of a user (sorted) stand to what is there; the user is then remembered, in a slot.

    stored: what the store has, where it was read. Raises Problem 409 for an event before the first stored one.
    """
    scorer, by_id = memory.live.scorer, memory.live.scorer.config.log.event_id is not None
    known = memory.get(user_id)
    is_new_user = False
    old: list[StoredRow] | None = None if known is None else known.rows
    states_hold = known is not None
    if was_read:
        states_hold = known is not None and stored is not None and known.sequence == stored.sequence
        old = stored_rows(stored)
        slot = memory.take_slot() if known is None else known.slot
        is_new_user = stored is None
        known = _known_of(stored, old, slot, by_id=by_id, now_us=now_us, keeps_rows=not memory.live.is_stepped)
        memory.keep(user_id, known)
        memory.pool.put(np.array([slot]), _carry_of(stored, scorer))
        if not states_hold:
            memory.live.reset([slot])
    assert known is not None  # a user who is not remembered is read
    keys = [sort_key(row, by_id=by_id) for row in fresh]
    if _is_too_late(known, keys[0]):
        raise Problem(
            409,
            "too_late",
            detail="an event is older than the first event that is kept of this user; nothing was written",
            errors=(FieldError("events", "too_late", "expected no event before the first kept event of the user"),),
        )
    late = known.newest is not None and keys[0] < known.newest
    if old is None:
        places = tuple(range(len(fresh)))
        return Turn(user_id, explains, fresh, known, fresh, places, [], 0, late, is_new_user, reads_all=False)
    rows, new = _merged(old, fresh, by_id=by_id) if late else ([one.row for one in old], ())
    if not late:
        new = tuple(range(len(old), len(old) + len(fresh)))
        rows.extend(fresh)
    step_from = len(old) if states_hold and not late else 0
    if late:
        memory.live.reset([known.slot])
    return Turn(user_id, explains, fresh, known, rows, new, old, step_from, late, is_new_user, reads_all=True)


def _is_too_late(known: Known, first: SortKey) -> bool:
    return known.first is not None and known.first_index > 0 and first < known.first


def _is_roll_due(known: Known, memory: Remembered) -> bool:
    max_events = memory.live.scorer.config.sessions.max_events
    return int(context_start(np.array([known.n_events]), max_events)[0]) > known.first_index


def stored_rows(stored: StoredUser | None) -> list[StoredRow]:
    """Return the rows of a user since the start of the stored block, in order."""
    if stored is None:
        return []
    rows = rows_from_bytes(stored.rows)
    for payload in stored.since:
        record = record_of(payload)
        assert isinstance(record, EventRecord)  # only events have a place after a snapshot
        rows.append(StoredRow(record.row, record.risk))
    return rows


def _carry_of(stored: StoredUser | None, scorer: Scorer) -> Carry:
    return carry_from_bytes(b"" if stored is None else stored.carry, enrich_spec(scorer.config))


def _known_of(
    stored: StoredUser | None, rows: list[StoredRow], slot: int, *, by_id: bool, now_us: int, keeps_rows: bool
) -> Known:
    first = sort_key(rows[0].row, by_id=by_id) if rows else None
    newest = sort_key(rows[-1].row, by_id=by_id) if rows else None
    kept = rows if keeps_rows else None
    if stored is None:
        # No sequence of a former life of this user may come again: another process may still remember it.
        return Known(slot, now_us, 0, 0, 0, 0, 0, None, None, kept)
    return Known(
        slot=slot,
        sequence=stored.sequence,
        n_events=stored.n_events,
        newest_us=stored.newest_us,
        snapshot=stored.snapshot,
        first_index=stored.first_index,
        n_since=len(stored.since),
        first=first,
        newest=newest,
        rows=kept,
    )


def _merged(old: Sequence[StoredRow], fresh: list[EventRow], *, by_id: bool) -> tuple[list[EventRow], tuple[int, ...]]:
    """Return stored and new rows in one order (a new one after stored ones of its key), and where the new ones are."""
    keyed = [(sort_key(stored.row, by_id=by_id), 0, place) for place, stored in enumerate(old)]
    keyed += [(sort_key(row, by_id=by_id), 1, place) for place, row in enumerate(fresh)]
    keyed.sort()
    rows = [fresh[place] if is_new else old[place].row for _, is_new, place in keyed]
    return rows, tuple(at for at, (_, is_new, _) in enumerate(keyed) if is_new)
