"""How decision events are cut into segments that an analyst knows: by type, amount, hour, by what came before."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from fraud.changes import Sides
from fraud.config import Config
from fraud.events import FloatArray, IntArray, Text
from fraud.segments import Column, bands
from pipelines.diff.side_by_side import N_BEFORE, Facts

IN_EVENTS_BEFORE = f"among the {N_BEFORE} events before"
_MAX_NAMES = 50  # values of one field, the most frequent; the others are one segment
_OTHER, _NONE = "(any other)", "(none)"
_SESSION_EDGES = (1, 3, 8, 16)
_SESSION_NAMES = ("none", "1 or 2", "3 to 7", "8 to 15", "16 and more")
_GAP_EDGES_S = (0, 10, 60, 600, 3600, 86_400)
_GAP_NAMES = (
    "no event before",
    "under 10 s",
    "10 s to 1 min",
    "1 to 10 min",
    "10 min to 1 h",
    "1 h to 1 day",
    "over 1 day",
)
_HOURS = 4  # of a band
_SEEN = ("seen before", "new", _NONE)


def event_columns(sides: Sides, facts: Facts, config: Config) -> list[Column]:
    """Return the columns of these events: what the log declares, when they were, and what came before them."""
    return [*_own(sides, facts, config), *_in_time(facts, config), *_before(facts), *_by_rule(facts)]


def _own(sides: Sides, facts: Facts, config: Config) -> Iterator[Column]:
    yield _of_text("type", facts.type)
    if sides.amount_D is not None:
        yield _of_amount(config.fields.amount or "amount", sides.amount_D)
    for name, column in facts.categorical.items():
        yield _of_text(name, column)
    for name, seen_D in facts.first_seen.items():
        yield Column(f"{name} to the user", _SEEN, np.where(seen_D < 0, len(_SEEN) - 1, seen_D))


def _in_time(facts: Facts, config: Config) -> Iterator[Column]:
    place_D = facts.place_D.astype(np.float64)
    yield Column("events before in the session", _SESSION_NAMES, bands(place_D, _SESSION_EDGES, _SESSION_NAMES))
    if config.log.has_clock:
        hours = tuple(f"{first:02d}:00 to {first + _HOURS:02d}:00" for first in range(0, 24, _HOURS))
        yield Column("hour of day", hours, facts.hour_D // _HOURS)
        gap_s_D = facts.gap_us_D / 1e6
        yield Column("time since the event before", _GAP_NAMES, bands(gap_s_D, _GAP_EDGES_S, _GAP_NAMES))


def _before(facts: Facts) -> Iterator[Column]:
    types = facts.before_B.values
    before_DB = facts.before_B.codes_N.reshape(-1, N_BEFORE)
    yield _of_text("event before", Text(before_DB[:, 0], types))
    for code, name in enumerate(types.tolist()):
        is_there_D = (before_DB == code).any(axis=1)
        yield Column(IN_EVENTS_BEFORE, (name,), np.where(is_there_D, 0, -1))


def _by_rule(facts: Facts) -> Iterator[Column]:
    """Yield who decided, where a list or a rule decided anything."""
    code_D: IntArray = facts.by_rule_a_D.astype(np.int64) + 2 * facts.by_rule_b_D
    if code_D.any():
        yield Column(
            "decided by", ("the model in both", "a rule in A alone", "a rule in B alone", "a rule in both"), code_D
        )


def _of_text(field: str, column: Text) -> Column:
    """Return the most frequent values as they are and the others, if there are any, as one."""
    n_V = np.bincount(column.codes_N[column.codes_N >= 0], minlength=len(column.values))
    kept = sorted(np.argsort(-n_V, kind="stable")[:_MAX_NAMES].tolist())
    code_of = np.full(len(column.values) + 1, len(kept), dtype=np.int64)
    code_of[kept] = np.arange(len(kept))
    code_of[-1] = len(kept) + 1  # of a null
    names = (*(str(column.values[code]) for code in kept), _OTHER, _NONE)
    return Column(field, names, code_of[column.codes_N])


def _of_amount(field: str, amount_D: FloatArray) -> Column:
    """Return bands between 1, 3, 10, 30 … (two to a power of ten) that hold most of the amounts."""
    present = amount_D[amount_D > 0]
    if not len(present):
        return Column(field, ("any", _NONE), np.isnan(amount_D).astype(np.int64))
    low, high = np.percentile(present, [5, 95])
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    edges = [step * 10.0**power for power in powers for step in (1, 3) if low < step * 10.0**power <= high]
    told = [f"{edge:,.10g}" for edge in edges]
    if not told:
        return Column(field, ("any", _NONE), np.isnan(amount_D).astype(np.int64))
    between = [f"{first} to {last}" for first, last in pairwise(told)]
    names = (f"under {told[0]}", *between, f"{told[-1]} and more", _NONE)
    code_D = bands(amount_D, edges, names[:-1])
    return Column(field, names, np.where(code_D < 0, len(names) - 1, code_D))
