"""What the lists and rules of a policy decide on events, before any score: the same for a log and for a request.

Precedence, in one sentence: the lists, then the rules, in the order they are written, and the first that matches
decides; where none matches the model does. They decide on the types of [decisions] `on`, with however little context:
the first event of a user may pay a known mule. All events are asked at once, list by list and rule by rule; texts are
looked up by distinct value, not by event.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple, cast

import numpy as np
import numpy.typing as npt

from fraud.decisions import DECISIONS, DecisionArray, Policy
from fraud.enrich import Enriched
from fraud.entities import RISK_NAMES
from fraud.events import NULL_CODE, BoolArray, FloatArray, IntArray, Text
from fraud.rules import FIRST_SEEN, MISSING, VALUE, WEEKDAYS, Condition, Hours, OneOf, Range
from fraud.subjects import Kind, Subjects
from fraud.tokens import Risk

NO_RULE = -1
MIN_PAST_AMOUNTS = 3  # fewer make no "usual"
RuleArray = npt.NDArray[np.int16]


class Verdicts(NamedTuple):
    """What the rules say of N events.

    decision_N: an index into DECISIONS, -1 where no rule decides. rule_N: int16, an index into `policy.in_order`, or
    NO_RULE.
    """

    decision_N: DecisionArray
    rule_N: RuleArray


def rule_verdicts(policy: Policy, enriched: Enriched, risk: Risk, *, known: Subjects) -> Verdicts:
    """Return what lists and rules decide; the policy must have passed `check_policy`.

    known: what `subjects_of` the configuration says. risk: as the model reads it.
    """
    rule_N = np.full(len(enriched.events), NO_RULE, dtype=np.int16)
    asked = _Asked(enriched, risk, known)
    open_R = np.arange(len(rule_N)) if not known.on else np.flatnonzero(_is_among(enriched.events.type, known.on))
    in_order = policy.in_order
    for place, rule in enumerate(in_order):
        if not len(open_R):
            break
        row_R = open_R
        if rule.types:
            row_R = row_R[_is_among(enriched.events.type.take(row_R), rule.types)]
        for condition in rule.where:
            if not len(row_R):
                break
            row_R = row_R[asked.holds(condition, row_R)]
        rule_N[row_R] = place
        open_R = open_R[rule_N[open_R] == NO_RULE]
    code_of = np.array([*(DECISIONS.index(rule.decision) for rule in in_order), -1], dtype=np.int8)
    return Verdicts(code_of[rule_N], rule_N)


def amount_over_usual(enriched: Enriched, row_R: IntArray) -> FloatArray:
    """Return float64 [R]: the amount over the user's usual one, NaN where there is no amount or no usual.

    The usual amount is that of the mean log1p of the user's earlier amounts, of at least MIN_PAST_AMOUNTS.
    """
    ratio_R = np.full(len(row_R), np.nan)
    log_N, mean_N, count_N = enriched.amount_log_N, enriched.past_mean_N, enriched.past_count_N
    if log_N is None or mean_N is None or count_N is None:
        return ratio_R
    has_usual_R = (count_N[row_R] >= MIN_PAST_AMOUNTS) & (mean_N[row_R] > 0)
    usual = row_R[has_usual_R]
    ratio_R[has_usual_R] = np.expm1(log_N[usual]) / np.expm1(mean_N[usual])
    return ratio_R


class _Asked:
    """The events of one pass, asked one condition at a time."""

    def __init__(self, enriched: Enriched, risk: Risk, known: Subjects) -> None:
        self._enriched = enriched
        self._risk = risk
        self._known = known

    def holds(self, condition: Condition, row_R: IntArray) -> BoolArray:
        """Return bool [R]: where the condition holds."""
        subject, test = condition.subject, condition.test
        kind = self._known.kinds[subject]
        if condition.fact == FIRST_SEEN:
            return self._enriched.first_seen[subject][row_R] == int(cast(bool, test))
        if condition.fact == MISSING:
            return self._is_missing(subject, kind, row_R) == cast(bool, test)
        if isinstance(test, Hours):
            return _in_hours(self._enriched.hour_N[row_R], test)
        if isinstance(test, OneOf):
            return self._is_one_of(subject, kind, test, row_R)
        return _in_range(self._quantity(condition, kind, row_R), cast(Range, test))

    def _is_missing(self, subject: str, kind: Kind, row_R: IntArray) -> BoolArray:
        if kind in ("text", "entity"):
            return self._text(subject).codes_N[row_R] == NULL_CODE
        return np.isnan(self._number(subject, kind, row_R))

    def _is_one_of(self, subject: str, kind: Kind, test: OneOf, row_R: IntArray) -> BoolArray:
        events = self._enriched.events
        if kind == "weekday":
            is_among_7 = np.array([name in test.values for name in WEEKDAYS], dtype=np.bool_)
            is_in_R = is_among_7[self._enriched.weekday_N[row_R]]
            return is_in_R if test.is_in else ~is_in_R
        column = Text(events.user_codes(), events.users) if kind == "user" else self._text(subject)
        taken = column.take(row_R)
        is_in_R = _is_among(taken, test.values)
        return is_in_R if test.is_in else ~is_in_R & (taken.codes_N != NULL_CODE)

    def _quantity(self, condition: Condition, kind: Kind, row_R: IntArray) -> FloatArray:
        """Return float64 [R], NaN where nobody knows; durations in microseconds."""
        enriched, subject = self._enriched, condition.subject
        if condition.fact != VALUE:
            if kind == "since":
                return _known_us(enriched.since_key_us_NK[row_R, self._known.key_types.index(condition.fact)])
            return self._risk[subject][row_R, RISK_NAMES.index(condition.fact)]
        if kind == "duration":
            return _known_us((enriched.gap_us_N if subject == "gap" else enriched.since_session_us_N)[row_R])
        if kind == "count":
            counts_N = enriched.index_N if subject == "earlier_events" else enriched.session_position_N
            return counts_N[row_R].astype(np.float64)
        return amount_over_usual(enriched, row_R) if kind == "ratio" else self._number(subject, kind, row_R)

    def _number(self, subject: str, kind: Kind, row_R: IntArray) -> FloatArray:
        events = self._enriched.events
        column_N = events.amount if kind == "amount" else events.numeric[subject]
        assert column_N is not None  # a subject of this kind is the declared amount
        return column_N[row_R]

    def _text(self, name: str) -> Text:
        events = self._enriched.events
        return events.entity[name] if name in events.entity else events.categorical[name]


def _is_among(column: Text, values: Collection[str]) -> BoolArray:
    """Return bool [N]: where the text is one of the values; each distinct one is looked up once."""
    if len(column.codes_N) < len(column.values):
        # A few events of a large dictionary: what costs its length each time would cost more than the events.
        code_V, place_N = np.unique(column.codes_N, return_inverse=True)
        return _are_among(column, code_V, values)[place_N]
    stands_V1 = np.zeros(len(column.values) + 1, dtype=np.bool_)
    stands_V1[column.codes_N] = True
    code_V = np.flatnonzero(stands_V1[:-1])
    stands_V1[code_V] = _are_among(column, code_V, values)
    stands_V1[-1] = False  # null
    return stands_V1[column.codes_N]


def _are_among(column: Text, code_V: npt.NDArray[np.integer], values: Collection[str]) -> BoolArray:
    is_among = [value in values for value in column.values[code_V].tolist()]
    return np.array(is_among, dtype=np.bool_) & (code_V != NULL_CODE)


def _in_range(number_R: FloatArray, limits: Range) -> BoolArray:
    is_in_R = ~np.isnan(number_R)
    if limits.low is not None:
        is_in_R &= number_R >= limits.low
    if limits.below is not None:
        is_in_R &= number_R < limits.below
    return is_in_R


def _in_hours(hour_R: npt.NDArray[np.int8], hours: Hours) -> BoolArray:
    after_R, before_R = hour_R >= hours.first, hour_R < hours.until
    return after_R & before_R if hours.first < hours.until else after_R | before_R


def _known_us(time_us_R: IntArray) -> FloatArray:
    return np.where(time_us_R < 0, np.nan, time_us_R)
