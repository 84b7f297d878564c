"""Two bundles on one log: what each decides on the same events, and what is known of these events."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fraud.changes import Known, Side, Sides
from fraud.chunks import Chunk, Labelled, chunks, known_table, labelled
from fraud.config import Config, SplitConfig
from fraud.enrich import Enriched, empty_carry, enrich
from fraud.events import BoolArray, FloatArray, IntArray, ObjectArray, Text, concat_texts
from fraud.instants import as_of
from fraud.logs import Log
from fraud.parallel import in_order
from fraud.scoring import NO_DECISION, Scorer, Tables, decided, enrich_spec, risk_of
from fraud.splits import END_OF_TIME_US, Cuts, supervise
from fraud.tables import tables_of
from fraud.verdicts import NO_RULE

N_BEFORE = 10  # events before a decision whose types are looked at


class Period(NamedTuple):
    """From when until when (exclusive) decisions are compared; microseconds."""

    since_us: int
    until_us: int


class Facts(NamedTuple):
    """What is said of D events beside their decisions, in the order of `fraud.changes.Sides`.

    first_seen: by entity field, 1 new to the user, 0 seen, -1 none. place_D: how many events of the session came
    before. gap_us_D: since the user's event before, -1 at the first. before_B: the types of the N_BEFORE events before
    each, D times N_BEFORE of them, the newest first. by_rule_a_D, by_rule_b_D: True where a list or a rule decides.
    """

    event_id: pa.Array
    time_us_D: IntArray
    hour_D: IntArray
    type: Text
    categorical: dict[str, Text]
    first_seen: dict[str, IntArray]
    place_D: IntArray
    gap_us_D: IntArray
    before_B: Text
    by_rule_a_D: BoolArray
    by_rule_b_D: BoolArray


@dataclass(frozen=True, slots=True, kw_only=True)
class SideBySide:
    """The D events of a period that both bundles decide on. known: None without labels. users: object [U], by code.

    n_only_a, n_only_b: events that one of them alone decides on. n_unsettled: judged examples that are too young for
    their frauds to be known yet.
    """

    sides: Sides
    known: Known | None
    facts: Facts
    users: ObjectArray
    n_only_a: int
    n_only_b: int
    n_unsettled: int


def side_by_side(
    a: Scorer, b: Scorer, log: Log, config: Config, period: Period, *, progress: Callable[[int, int], None]
) -> SideBySide:
    """Return what both make of the decision events of a period; what came before it is read as context.

    Held in memory: the decision events of the period, about 200 bytes each. progress is told how many events are done,
    and of how many.
    """
    until_us = as_of(config.split)
    as_of_us = END_OF_TIME_US if until_us is None else until_us
    known_rows = known_table(log, as_of_us)
    asked = _Asked(
        a=a,
        b=b,
        # The period is the test: labels as the table has them or, with split.as_of, as they were known then.
        config=replace(config, split=SplitConfig(by="time")),
        tables=tables_of(log, config),
        period=period,
        cuts=Cuts(period.since_us, period.since_us, as_of_us, is_lived=until_us is not None),
        horizon_us=_newest_us(log),
    )
    parts: list[_Part] = []
    done = 0
    for part in in_order(lambda chunk: _part(_labelled(chunk, log, config, known_rows), asked), chunks(log)):
        parts.append(part)
        done += part.n_events
        progress(done, log.n_events)
    return _joined(parts)


class _OneChunk(NamedTuple):
    """Some whole users of the log, labelled, and the ids of their events."""

    labelled: Labelled
    event_ids: pa.Array


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """What is asked of every chunk. horizon_us: the newest that anything is known of."""

    a: Scorer
    b: Scorer
    config: Config
    tables: Tables
    period: Period
    cuts: Cuts
    horizon_us: int


class _Columns(NamedTuple):
    """The D events of some whole users; user_D: codes into `users`."""

    users: ObjectArray
    user_D: IntArray
    amount_D: FloatArray | None
    a: Side
    b: Side
    known: Known | None
    facts: Facts


class _Part(NamedTuple):
    """What became of a chunk of n_events, by column, and what is only counted."""

    columns: _Columns
    n_events: int
    n_only_a: int
    n_only_b: int
    n_unsettled: int


class _Made(NamedTuple):
    """What one scorer makes of all N events of a chunk; scores are of the asked ones alone."""

    side_N: Side
    by_rule_N: BoolArray


def _labelled(chunk: Chunk, log: Log, config: Config, known_rows: pa.Table | None) -> _OneChunk:
    return _OneChunk(labelled(chunk, log, config, known_rows), chunk.event_ids)


def _part(chunk: _OneChunk, asked: _Asked) -> _Part:
    enriched, events = chunk.labelled.enriched, chunk.labelled.enriched.events
    asked_N = (events.time_us >= asked.period.since_us) & (events.time_us < asked.period.until_us)
    made_a, made_b = (_made(scorer, enriched, asked.tables, asked_N) for scorer in (asked.a, asked.b))
    decides_a, decides_b = (asked_N & (made.side_N.decision_D != NO_DECISION) for made in (made_a, made_b))
    rows = np.flatnonzero(decides_a & decides_b)
    known, n_unsettled = _known(chunk.labelled, rows, asked)
    columns = _Columns(
        users=events.users,
        user_D=events.user_codes()[rows].astype(np.int64),
        amount_D=None if events.amount is None else events.amount[rows],
        a=made_a.side_N.take(rows),
        b=made_b.side_N.take(rows),
        known=known,
        facts=_facts(enriched, chunk.event_ids, rows, made_a.by_rule_N, made_b.by_rule_N),
    )
    return _Part(
        columns,
        n_events=len(events),
        n_only_a=int((decides_a & ~decides_b).sum()),
        n_only_b=int((decides_b & ~decides_a).sum()),
        n_unsettled=n_unsettled,
    )


def _made(scorer: Scorer, enriched: Enriched, tables: Tables, asked_N: BoolArray) -> _Made:
    events, on = enriched.events, scorer.config.decisions.on
    spec = enrich_spec(scorer.config)
    own = enriched if spec == enriched.spec else enrich(events, empty_carry(events.n_users, spec), spec)[0]
    risk = risk_of(events, tables)
    is_on_V = (
        np.isin(events.type.values.astype(str), np.array(on)) if on else np.ones(len(events.type.values), np.bool_)
    )
    wanted_N = asked_N & is_on_V[events.type.codes_N]
    logit_N = np.where(wanted_N, scorer.model.logits(own, risk, wanted_N=wanted_N), 0.0)
    score_N = scorer.calibration.scores(logit_N)
    decision_N, rule_N = decided(scorer, own, risk, score_N)
    return _Made(Side(score_N, decision_N), rule_N != NO_RULE)


def _known(one: Labelled, rows: IntArray, asked: _Asked) -> tuple[Known | None, int]:
    """Return what is known of the events at `rows`, and how many of the judged ones are not settled."""
    if one.labels is None or one.known is None or asked.config.labels is None:
        return None, 0
    tested = supervise(one.enriched, one.labels, one.known, asked.cuts, asked.config, None)
    known = Known(tested.label_N[rows], tested.tests_N[rows])
    settled_us_D = one.labels.time_us_N[rows] + (asked.config.labels.delay or 0)
    return known, int((known.judged_D & (settled_us_D > asked.horizon_us)).sum())


def _facts(enriched: Enriched, ids: pa.Array, rows: IntArray, by_rule_a_N: BoolArray, by_rule_b_N: BoolArray) -> Facts:
    events, type_codes_N = enriched.events, enriched.events.type.codes_N
    before_DB = np.full((len(rows), N_BEFORE), -1, dtype=np.int32)
    for lag in range(1, N_BEFORE + 1):
        has_D = enriched.index_N[rows] >= lag
        before_DB[has_D, lag - 1] = type_codes_N[rows[has_D] - lag]
    return Facts(
        event_id=ids.take(pa.array(rows)),
        time_us_D=events.time_us[rows],
        hour_D=enriched.hour_N[rows].astype(np.int64),
        type=events.type.take(rows),
        categorical={name: column.take(rows) for name, column in events.categorical.items()},
        first_seen={name: seen_N[rows].astype(np.int64) for name, seen_N in enriched.first_seen.items()},
        place_D=enriched.session_position_N[rows],
        gap_us_D=enriched.gap_us_N[rows],
        before_B=Text(before_DB.ravel(), events.type.values),
        by_rule_a_D=by_rule_a_N[rows],
        by_rule_b_D=by_rule_b_N[rows],
    )


def _newest_us(log: Log) -> int:
    """Return the time of the newest event or label."""
    newest_us = int(log.time_us.max()) if len(log.time_us) else 0
    if log.label_table is not None and "known_us" in log.label_table.column_names:
        newest_us = max(newest_us, pc.max(log.label_table["known_us"]).as_py() or 0)
    return newest_us


def _joined(parts: Sequence[_Part]) -> SideBySide:
    n_users = 0
    columns: list[_Columns] = []
    for part in parts:
        columns.append(part.columns._replace(user_D=part.columns.user_D + n_users))
        n_users += len(part.columns.users)
    whole: _Columns = _concatenated(columns)
    return SideBySide(
        sides=Sides(a=whole.a, b=whole.b, user_D=whole.user_D, amount_D=whole.amount_D),
        known=whole.known,
        facts=whole.facts,
        users=whole.users,
        n_only_a=sum(part.n_only_a for part in parts),
        n_only_b=sum(part.n_only_b for part in parts),
        n_unsettled=sum(part.n_unsettled for part in parts),
    )


def _concatenated(parts: Sequence[Any]) -> Any:  # Any: arrays, and what is made of arrays
    """Return columns one after another: arrays, texts, Arrow arrays, None, or mappings and named tuples of such."""
    first = parts[0]
    if first is None:
        return None
    if isinstance(first, Text):
        return concat_texts(list(parts))
    if isinstance(first, Mapping):
        return {name: _concatenated([part[name] for part in parts]) for name in first}
    if isinstance(first, tuple):
        return type(first)(*(_concatenated(column) for column in zip(*parts, strict=True)))
    return pa.concat_arrays(parts) if isinstance(first, pa.Array) else np.concatenate(parts)
