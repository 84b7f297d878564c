"""Rules and lists in front of the model: what they are.

A list decides by one field's value, a rule by conditions that must all hold. What may be asked of an event is a small
closed set. Nothing here knows an event (`fraud.verdicts`) or how a rule is written (`fraud.rule_tables`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

Decision = Literal["allow", "review", "block"]
Tree = Mapping[str, object]  # a table of TOML

VALUE, FIRST_SEEN, MISSING = "value", "first_seen", "missing"
MODEL: Final = "model"  # what decides where no rule does
WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
# Of what `fraud.entities` knows of an entity, what a person can set a limit to.
ENTITY_FACTS = (
    *(f"{what}_{days}d" for what in ("known_frauds", "volume", "fraud_share") for days in (1, 7, 28)),
    "days_since_first_fraud",
    "days_since_last_fraud",
)


@dataclass(frozen=True, slots=True)
class Range:
    """low <= x < below; None: no limit. Of durations: in microseconds."""

    low: float | None
    below: float | None
    is_duration: bool


@dataclass(frozen=True, slots=True)
class Hours:
    """From the hour `first` (0..23) until before the hour `until` (0..24), past midnight where first > until."""

    first: int
    until: int


@dataclass(frozen=True, slots=True)
class OneOf:
    """is_in: the text is one of the values; else it is there and none of them."""

    values: frozenset[str]
    is_in: bool


@dataclass(frozen=True, slots=True)
class Condition:
    """One thing that must hold of an event: of its `subject` (a declared field, or a name of DERIVED) the `fact`.

    fact: VALUE, FIRST_SEEN, MISSING, one of ENTITY_FACTS, or the key type of "since". test: bool for the second and
    third. A null, or what nobody knows (a usual amount, the gap of a first event), meets no condition but MISSING.
    """

    subject: str
    fact: str
    test: Range | Hours | OneOf | bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """[[policy.rules]]: decides where the event is of one of `types` (none: any) and all of `where` holds."""

    name: str
    decision: Decision
    text: str
    types: tuple[str, ...]
    where: tuple[Condition, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueList:
    """[[policy.lists]]: decides where the text in `field` is one of the values."""

    name: str
    decision: Decision
    text: str
    types: tuple[str, ...]
    field: str
    values: frozenset[str]

    def as_rule(self) -> Rule:
        """Return the rule that says the same."""
        text = self.text or f"{self.field} is listed"
        where = (Condition(self.field, VALUE, OneOf(self.values, True)),)
        return Rule(name=self.name, decision=self.decision, text=text, types=self.types, where=where)


@dataclass(frozen=True, slots=True, kw_only=True)
class ListFile:
    """[[policy.lists]] whose values stand in a file of their own, one a line; `fraud.config.read_lists` reads it."""

    name: str
    decision: Decision
    text: str
    types: tuple[str, ...]
    field: str
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyTest:
    """[[policy.tests]]: a user's events, the score of the last, and what is to be decided on it, and by what.

    events: by column of the log. score: None where the model has no say. expect, by: None: any will do. risk: by entity
    field, what is known of the last event's.
    """

    name: str
    events: tuple[Tree, ...]
    score: float | None
    expect: Decision | None
    by: str | None
    risk: Mapping[str, Mapping[str, float]]
