"""Why an event scored as it did, in words an analyst understands: "credit score check 40 s before the transfer out".

The names of types and fields are the log's own; the facts (how long before, new to the user, how large against the
user's usual, frauds known of an entity) are those the scorer was given. NumPy alone: a service says the same words.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from fraud.enrich import Enriched
from fraud.entities import RISK_NAMES
from fraud.explain import Explained
from fraud.rules import Rule
from fraud.tokens import Risk

N_REASONS = 3
_SMALLEST = 0.05  # of a logit: what adds less moves the odds by less than a twentieth, and is no reason
_LARGE_RATIO = 2.0  # an amount is worth a word from twice the user's usual
_MIN_PAST_AMOUNTS = 3  # fewer make no "usual"
_UNITS = ((86_400, 48 * 3600, "days"), (3600, 90 * 60, "h"), (60, 90, "min"), (1, 0, "s"))  # seconds, from, name
_KNOWN_FRAUDS = RISK_NAMES.index("known_frauds_28d")


class Reason(NamedTuple):
    """One reason for a score.

    code: "earlier_event" for an event of the context without a fact of its own, "this_event" for the explained event
    without one; else the most telling fact: "known_fraud", "new_value" or "large_amount"; "rule" for a list or a rule
    that decided before the model, which adds nothing to the score. event_index: how many events of the user came before
    the event it speaks of. contribution: in logits.
    """

    code: str
    text: str
    event_index: int
    contribution: float


class Fact(NamedTuple):
    """One thing worth knowing of an event beside its type and time."""

    code: str
    text: str


def reasons(enriched: Enriched, explained: Explained, *, n_reasons: int = N_REASONS) -> list[tuple[Reason, ...]]:
    """Return, for each explained event, the events that raise its logit most, in words, the strongest first.

    An event that adds next to nothing, or lowers the logit, is no reason; so there may be none.
    """
    return [_of_one(enriched, explained, d, n_reasons) for d in range(len(explained.rows_D))]


def rule_reason(rule: Rule, event_index: int) -> Reason:
    """Return the list or rule that decided on an event as a reason."""
    text = f"rule {rule.name}: {rule.text}" if rule.text else f"rule {rule.name}"
    return Reason("rule", text, event_index, 0.0)


def event_words(enriched: Enriched, row: int, risk: Risk, place: int) -> str:
    """Return the type of an event and its facts: "transfer out (payee new to this user, 12x the usual amount)".

    risk, place: the risk of the entities of the events of some contexts, and where the event stands among them.
    """
    told = ", ".join(fact.text for fact in facts(enriched, row, risk, place))
    return f"{type_words(enriched, row)} ({told})" if told else type_words(enriched, row)


def type_words(enriched: Enriched, row: int) -> str:
    """Return the type of an event as words: "receive_transfer" reads "receive transfer"."""
    column = enriched.events.type
    return " ".join(str(column.values[column.codes_N[row]]).replace("_", " ").split())


def duration_words(time_us: int) -> str:
    """Return a duration in the unit a person would use: "40 s", "12 min", "5 h", "3 days"."""
    seconds = time_us / 1e6
    if seconds < 1:
        return "under 1 s" if time_us else "0 s"
    size, _, name = next(unit for unit in _UNITS if seconds >= unit[1])
    return f"{seconds / size:,.0f} {name}"


def facts(enriched: Enriched, row: int, risk: Risk, place: int) -> list[Fact]:
    """Return what stands out of an event, the most telling first."""
    return [*_known_frauds(risk, place), *_new_values(enriched, row), *_large_amount(enriched, row)]


def _of_one(enriched: Enriched, explained: Explained, d: int, n_reasons: int) -> tuple[Reason, ...]:
    first, last = int(explained.starts_D1[d]), int(explained.starts_D1[d + 1])
    contribution_C = explained.contribution_C[first:last]
    strongest = np.argsort(-contribution_C, kind="stable")[:n_reasons]
    return tuple(
        _reason(enriched, explained, d, first + int(place)) for place in strongest if contribution_C[place] >= _SMALLEST
    )


def _reason(enriched: Enriched, explained: Explained, d: int, place: int) -> Reason:
    row, decision = int(explained.row_C[place]), int(explained.rows_D[d])
    found = facts(enriched, row, explained.risk_C, place)
    words = event_words(enriched, row, explained.risk_C, place)
    decided = type_words(enriched, decision)
    if row == decision:
        code, text = "this_event", f"the {words} itself"
    else:
        code, text = "earlier_event", f"{words} {_before(enriched, row, decision)} the {decided}"
    return Reason(
        code=found[0].code if found else code,
        text=text,
        event_index=int(enriched.index_N[row]),
        contribution=float(explained.contribution_C[place]),
    )


def _before(enriched: Enriched, row: int, decision: int) -> str:
    if not enriched.events.has_clock:
        n_events = int(enriched.index_N[decision] - enriched.index_N[row])
        return f"{n_events} event{'s' if n_events > 1 else ''} before"
    elapsed_us = int(enriched.events.time_us[decision] - enriched.events.time_us[row])
    return f"{duration_words(elapsed_us)} before" if elapsed_us else "right before"


def _known_frauds(risk: Risk, place: int) -> Iterator[Fact]:
    for name, risk_CR in risk.items():
        n_frauds = risk_CR[place, _KNOWN_FRAUDS]
        if n_frauds >= 1:
            plural = "s" if n_frauds > 1 else ""
            yield Fact("known_fraud", f"{_spaced(name)} with {n_frauds:,.0f} known fraud{plural} in 28 days")


def _new_values(enriched: Enriched, row: int) -> Iterator[Fact]:
    if enriched.index_N[row] == 0:
        return  # to a user without a past everything is new
    for name, first_seen_N in enriched.first_seen.items():
        if first_seen_N[row] == 1:
            yield Fact("new_value", f"{_spaced(name)} new to this user")


def _large_amount(enriched: Enriched, row: int) -> Iterator[Fact]:
    if enriched.amount_log_N is None or enriched.past_mean_N is None or enriched.past_count_N is None:
        return
    if enriched.past_count_N[row] < _MIN_PAST_AMOUNTS or not enriched.past_mean_N[row] > 0:
        return
    ratio = np.expm1(enriched.amount_log_N[row]) / np.expm1(enriched.past_mean_N[row])
    if ratio >= _LARGE_RATIO:  # False for an amount that is none
        shown = "over 1,000" if ratio >= 1000 else f"{ratio:.0f}" if ratio >= 9.95 else f"{ratio:.1f}"
        yield Fact("large_amount", f"amount {shown.removesuffix('.0')}x the user's usual")


def _spaced(name: str) -> str:
    return " ".join(name.replace("_", " ").split())
