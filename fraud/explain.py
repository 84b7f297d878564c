"""Why an event scored as it did: what each event of its context adds to the logit (DESIGN 5), by event occlusion.

contribution = logit(all) - logit(that event's type and fields set to unknown, its time kept). For every decision the
context is copied, once as it is and once per event with that event unknown; the copies are enriched by the one
`enrich`, so that what later events say of it ("since the last login", "first time with this payee") follows, and the
model reads them all in a few batches. Nothing here knows what kind of model that is: occlusion after Zeiler & Fergus
(2014, section 3.2), of events in place of pixels. Decisions whose contexts begin at one event share their copies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fraud.carries import Carries, ranges
from fraud.contexts import context_rows
from fraud.enrich import Carry, Enriched, enrich
from fraud.entities import entity_risk
from fraud.events import NULL_CODE, BoolArray, Events, FloatArray, IntArray, Text
from fraud.scoring import Scorer, Tables
from fraud.tokens import FIRST_ID, UNKNOWN_ID, Risk

COPIED_EVENTS = 32_768  # events of the copies that are enriched and scored at once: what bounds the memory
# No log has it: control characters are refused in types and categories. So it stands in no vocabulary.
_UNKNOWN_TEXT = "\x00"
_NOBODY = -1  # the event that is unknown in the copy that is left as it is
_UNKNOWN_SEEN = UNKNOWN_ID - FIRST_ID  # what `encode` makes the unknown id of


class Explained(NamedTuple):
    """What each event of the contexts of D explained events adds to their logits.

    rows_D: int64, the explained events. logit_D: float64, their logits, as scored. starts_D1: int64 [D + 1]; the
    context of d, itself included as the last, has places starts_D1[d] : starts_D1[d + 1] of row_C (int64, the event),
    contribution_C (float64, in logits) and risk_C (of the entities of the event, by field [C, 8]).
    """

    rows_D: IntArray
    logit_D: FloatArray
    starts_D1: IntArray
    row_C: IntArray
    contribution_C: FloatArray
    risk_C: Risk


class _Copies(NamedTuple):
    """K copies of contexts: the rows first_K .. last_K, of which hidden_K is unknown (or none); group_K names the
    decisions they serve."""

    first_K: IntArray
    last_K: IntArray
    hidden_K: IntArray
    group_K: IntArray

    def take(self, chosen: slice) -> _Copies:
        return _Copies(*(column[chosen] for column in self))


class _Pass(NamedTuple):
    """A pass over a log, and what its copies need: rows_R, the events of any context, sorted; risk_R, theirs."""

    enriched: Enriched
    carries: Carries
    rows_R: IntArray
    risk_R: Risk

    def risk_of(self, rows: IntArray) -> dict[str, FloatArray]:
        """Return the risk of the entities of some events of the contexts."""
        place = np.searchsorted(self.rows_R, rows)
        return {name: risk_RR[place] for name, risk_RR in self.risk_R.items()}


def explain(scorer: Scorer, enriched: Enriched, before: Carry, tables: Tables, rows_D: IntArray) -> Explained:
    """Return the contributions to the logits of the events at rows_D (int64, increasing).

    enriched, before: a pass of `enrich` and the carry it began with. As for `score_events`, the events must hold the
    whole context of each row. The cost of an event's explanation grows with the square of its context, the memory does
    not.
    """
    return _explain(scorer, enriched, before, lambda rows_R: _risk(enriched.events, rows_R, tables), rows_D)


def explain_known(scorer: Scorer, enriched: Enriched, before: Carry, risk: Risk, rows_D: IntArray) -> Explained:
    """Return what `explain` does where the risk of each event is known already, as it was when the event was scored."""

    def risk_at(rows_R: IntArray) -> Risk:
        return {name: risk_NR[rows_R] for name, risk_NR in risk.items()}

    return _explain(scorer, enriched, before, risk_at, rows_D)


def _explain(
    scorer: Scorer, enriched: Enriched, before: Carry, risk_at: Callable[[IntArray], Risk], rows_D: IntArray
) -> Explained:
    sessions = scorer.config.sessions
    first_D = context_rows(enriched, sessions.scope, sessions.max_events)[rows_D]
    n_D = rows_D - first_D + 1
    starts_D1 = np.concatenate([[0], np.cumsum(n_D)])
    row_C = ranges(first_D, n_D)
    logit_D, without_C = np.empty(len(rows_D)), np.empty(len(row_C))
    is_new_D = np.append(True, first_D[1:] != first_D[:-1])[: len(rows_D)]
    opening = np.append(np.flatnonzero(is_new_D), len(rows_D))
    rows_R = np.unique(row_C)
    whole = _Pass(enriched, Carries(enriched, before), rows_R, risk_at(rows_R))
    for copies in _chunks(_copies(first_D, rows_D, opening)):
        logit_P, starts_K1 = _logits(scorer, copies, whole)
        # Each copy is read at every decision of its group that its unknown event does not come after.
        n_K = (opening[1:] - opening[:-1])[copies.group_K]
        copy_Q = np.repeat(np.arange(len(n_K)), n_K)
        decision_Q = ranges(opening[:-1][copies.group_K], n_K)
        hidden_Q = copies.hidden_K[copy_Q]
        logit_Q = logit_P[starts_K1[copy_Q] + rows_D[decision_Q] - copies.first_K[copy_Q]]
        is_whole_Q = hidden_Q == _NOBODY
        logit_D[decision_Q[is_whole_Q]] = logit_Q[is_whole_Q]
        counts_Q = ~is_whole_Q & (hidden_Q <= rows_D[decision_Q])
        place_Q = starts_D1[decision_Q] + hidden_Q - first_D[decision_Q]
        without_C[place_Q[counts_Q]] = logit_Q[counts_Q]
    return Explained(rows_D, logit_D, starts_D1, row_C, np.repeat(logit_D, n_D) - without_C, whole.risk_of(row_C))


def _risk(events: Events, rows_R: IntArray, tables: Tables) -> dict[str, FloatArray]:
    """Return the risk of the entities of some events, as `risk_of` does for all; none without a clock."""
    if not events.has_clock:
        return {}
    risk: dict[str, FloatArray] = {}
    for name, column in events.entity.items():
        # A table is searched for each value of a dictionary, and that of a log is far larger than these rows need.
        used, code_R = np.unique(column.codes_N[rows_R], return_inverse=True)
        n_null = int(len(used) > 0 and used[0] == NULL_CODE)
        few = Text((code_R - n_null).astype(np.int32), column.values[used[n_null:]])
        risk[name] = entity_risk(tables[name], few, events.time_us[rows_R])
    return risk


def _copies(first_D: IntArray, rows_D: IntArray, opening: IntArray) -> _Copies:
    """Return, per group of decisions with one context start, a whole copy and one per event up to the last decision."""
    first_G, last_G = first_D[opening[:-1]], rows_D[opening[1:] - 1]
    n_G = last_G - first_G + 2
    group_K = np.repeat(np.arange(len(n_G)), n_G)
    hidden_K = ranges(first_G - 1, n_G)
    hidden_K[hidden_K < first_G[group_K]] = _NOBODY
    return _Copies(first_G[group_K], last_G[group_K], hidden_K, group_K)


def _chunks(copies: _Copies) -> Iterator[_Copies]:
    """Yield some copies at a time, about COPIED_EVENTS events each."""
    end_K = np.cumsum(copies.last_K - copies.first_K + 1)
    first = 0
    while first < len(end_K):
        done = int(end_K[first - 1]) if first else 0
        last = max(first + 1, int(np.searchsorted(end_K, done + COPIED_EVENTS, side="right")))
        yield copies.take(slice(first, last))
        first = last


def _logits(scorer: Scorer, copies: _Copies, whole: _Pass) -> tuple[FloatArray, IntArray]:
    """Return the logit of each event of the copies, each copy as a user of its own, and where each copy starts."""
    n_K = copies.last_K - copies.first_K + 1
    starts_K1 = np.concatenate([[0], np.cumsum(n_K)])
    row_P = ranges(copies.first_K, n_K)
    is_hidden_P = row_P == np.repeat(copies.hidden_K, n_K)
    events = _copied(whole.carries.events, row_P, starts_K1, is_hidden_P)
    again, _ = enrich(events, whole.carries.at(copies.first_K), whole.enriched.spec)
    risk_P = whole.risk_of(row_P)
    for risk_PR in risk_P.values():
        risk_PR[is_hidden_P] = np.nan
    return scorer.model.logits(_with_unknown(again, is_hidden_P), risk_P), starts_K1


def _copied(events: Events, row_P: IntArray, starts_K1: IntArray, is_hidden_P: BoolArray) -> Events:
    """Return the events at row_P, the hidden ones without fields and of unknown type; times and sessions stay."""

    def none(column: Text) -> Text:
        return Text(np.where(is_hidden_P, np.int32(NULL_CODE), column.codes_N[row_P]), column.values)

    def no_number(column: FloatArray) -> FloatArray:
        return np.where(is_hidden_P, np.nan, column[row_P])

    return Events(
        users=np.full(len(starts_K1) - 1, "", dtype=object),
        user_starts=starts_K1,
        time_us=events.time_us[row_P],
        has_clock=events.has_clock,
        zone=events.zone,
        type=_unknown(events.type.take(row_P), is_hidden_P),
        amount=None if events.amount is None else no_number(events.amount),
        numeric={name: no_number(column) for name, column in events.numeric.items()},
        categorical={name: none(column) for name, column in events.categorical.items()},
        entity={name: none(column) for name, column in events.entity.items()},
        session=None if events.session is None else events.session.take(row_P),
        row=row_P,
    )


def _with_unknown(enriched: Enriched, is_hidden_P: BoolArray) -> Enriched:
    """Return the hidden events with categories nobody knows, after `enrich` took them for none.

    Before it they would be "first seen", which says much where fraud is done; now nobody knows that either.
    """
    events = enriched.events
    unseen = np.int8(_UNKNOWN_SEEN)
    first_seen: dict[str, npt.NDArray[np.int8]] = {
        name: np.where(is_hidden_P, unseen, column) for name, column in enriched.first_seen.items()
    }
    categorical = {name: _unknown(column, is_hidden_P) for name, column in events.categorical.items()}
    known = replace(events, categorical=categorical)
    return replace(enriched, events=known, first_seen=first_seen, is_unknown_N=is_hidden_P)


def _unknown(column: Text, is_hidden_P: BoolArray) -> Text:
    values = np.append(column.values, np.array([_UNKNOWN_TEXT], dtype=object))
    return Text(np.where(is_hidden_P, np.int32(len(column.values)), column.codes_N), values)
