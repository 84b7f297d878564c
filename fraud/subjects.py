"""What the events of a log can be asked by a rule, and the one check that rules, lists and tests ask no more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Literal, NamedTuple

from fraud.rule_tables import EXPECTED_HOURS, check_names, condition_tree, listed, shown
from fraud.rules import (
    ENTITY_FACTS,
    FIRST_SEEN,
    MISSING,
    MODEL,
    VALUE,
    WEEKDAYS,
    Condition,
    Hours,
    ListFile,
    OneOf,
    PolicyTest,
    Range,
    Rule,
    ValueList,
)

Kind = Literal["amount", "numeric", "text", "entity", "user", "ratio", "count", "duration", "since", "hour", "weekday"]

MAX_RULES = 1_000  # lists and rules together; each is a pass over the decision events
# What an event has beside its declared fields. Those after the first three need a clock.
DERIVED: Final[Mapping[str, Kind]] = {
    "amount_over_usual": "ratio",
    "earlier_events": "count",
    "earlier_in_session": "count",
    "gap": "duration",
    "session_age": "duration",
    "since": "since",
    "hour": "hour",
    "weekday": "weekday",
}
_NEEDS_CLOCK = ("gap", "session_age", "since", "hour", "weekday")
_RANGE, _TEXTS = "{ at_least = 5000 } or { under = 100 } or both", '["a", "b"] or { not_in = ["a", "b"] }'
_EXPECTED: Final[Mapping[Kind, str]] = {
    "amount": f"{_RANGE}, or {{ missing = true }}",
    "numeric": f"{_RANGE}, or {{ missing = true }}",
    "text": f"{_TEXTS}, {{ first_seen = true }} or {{ missing = true }}",
    "entity": f"{_TEXTS}, {{ first_seen = true }}, {{ missing = true }} or a limit such as "
    f"{{ known_frauds_28d = {{ at_least = 1 }} }} to one of {', '.join(ENTITY_FACTS)}",
    "user": _TEXTS,
    "ratio": _RANGE,
    "count": _RANGE,
    "duration": '{ at_least = "30d" } or { under = "10s" } or both',
    "since": 'one of fields.key_types with a duration, such as { login = { under = "5m" } }',
    "hour": EXPECTED_HOURS,
    "weekday": f'["sat", "sun"] or {{ not_in = ["sat", "sun"] }} of {", ".join(WEEKDAYS)}',
}


class Subjects(NamedTuple):
    """What a log's events can be asked: subjects by kind, the key types, and the types decided on (none: all)."""

    kinds: Mapping[str, Kind]
    key_types: tuple[str, ...]
    on: tuple[str, ...]


def subjects(
    declared: Mapping[str, Kind], *, key_types: tuple[str, ...], on: tuple[str, ...], has_clock: bool
) -> Subjects:
    """Return what can be asked of events with these declared fields; a declared name comes before a derived one."""
    left_out = {
        *(() if "amount" in declared.values() else ("amount_over_usual",)),
        *(() if has_clock else _NEEDS_CLOCK),
        *(() if key_types else ("since",)),
    }
    known: dict[str, Kind] = {name: kind for name, kind in DERIVED.items() if name not in left_out}
    # Without a clock nothing is known of an entity but whether it is new.
    own: dict[str, Kind] = {n: "text" if k == "entity" and not has_clock else k for n, k in declared.items()}
    return Subjects({**own, **{n: k for n, k in known.items() if n not in own}}, key_types, on)


def check_rules(
    lists: Sequence[ValueList | ListFile], rules: Sequence[Rule], known: Subjects, *, prefix: str
) -> tuple[str, ...]:
    """Return the names of lists and rules; raise ValueError for one that stands twice or asks what nobody knows.

    prefix: what stands before "lists" and "rules" in errors.
    """
    if len(lists) + len(rules) > MAX_RULES:
        raise ValueError(f"{prefix}lists, {prefix}rules: {len(lists) + len(rules)}; expected at most {MAX_RULES}")
    names: dict[str, str] = {}
    for kind, those in (("lists", lists), ("rules", rules)):
        for place, one in enumerate(those):
            where = f"{prefix}{kind}.{place} ({one.name})"
            if one.name in names:
                raise ValueError(f"{where}: {names[one.name]} has the same name; expected a name of its own")
            names[one.name] = where
            if known.on and (others := [name for name in one.types if name not in known.on]):
                on = list(known.on)
                raise ValueError(f"{where}.types = {others}: no decision is made on these; decisions.on = {on}")
            if isinstance(one, Rule):
                for condition in one.where:
                    _check_condition(condition, f"{where}.where.{condition.subject}", known)
            else:
                _check_field(one, where, known)
    return tuple(names)


def check_tests(
    tests: Sequence[PolicyTest], names: Sequence[str], columns: Sequence[str], known: Subjects, *, prefix: str
) -> None:
    """Raise ValueError for a test that names no rule, no column or no entity. columns: the log's, as declared."""
    for place, test in enumerate(tests):
        where = f"{prefix}tests.{place}"
        if test.by is not None and test.by not in names and test.by != MODEL:
            raise ValueError(f"{where}.by = {test.by!r}: expected {MODEL!r} or a list or a rule: {listed(names)}")
        for number, event in enumerate(test.events):
            check_names(event, columns, f"{where}.events.{number}")
        for field in test.risk:
            if known.kinds.get(field) != "entity":
                fields = [name for name, kind in known.kinds.items() if kind == "entity"]
                raise ValueError(f"unknown name '{where}.risk.{field}'; known here: {listed(fields)}")


def _check_field(one: ValueList | ListFile, where: str, known: Subjects) -> None:
    if known.kinds.get(one.field) not in ("text", "entity", "user"):
        fields = [name for name, kind in known.kinds.items() if kind in ("text", "entity", "user")]
        raise ValueError(f"{where}.field = {one.field!r}: expected a field of text: {listed(fields)}")


def _check_condition(condition: Condition, where: str, known: Subjects) -> None:
    kind = known.kinds.get(condition.subject)
    if kind is None:
        raise ValueError(f"unknown name '{where}'; known here: {listed(list(known.kinds))}")
    test, fact = condition.test, condition.fact
    if fact == VALUE:
        fits = {
            "amount": isinstance(test, Range) and not test.is_duration,
            "duration": isinstance(test, Range) and test.is_duration,
            "text": isinstance(test, OneOf),
            "hour": isinstance(test, Hours),
            "weekday": isinstance(test, OneOf) and test.values <= set(WEEKDAYS),
            "since": False,
        }
        as_kind = {"numeric": "amount", "ratio": "amount", "count": "amount", "entity": "text", "user": "text"}
        is_fit = fits[as_kind.get(kind, kind)]
    elif fact == FIRST_SEEN:
        is_fit = kind in ("text", "entity")
    elif fact == MISSING:
        is_fit = kind in ("amount", "numeric", "text", "entity")
    elif kind == "since":
        is_fit = fact in known.key_types and isinstance(test, Range) and test.is_duration
    else:
        is_fit = kind == "entity" and fact in ENTITY_FACTS and isinstance(test, Range) and not test.is_duration
    if not is_fit:
        asked = shown(condition_tree(condition))
        more = f"; fields.key_types = {list(known.key_types)}" if kind == "since" else ""
        raise ValueError(f"{where} = {asked}: expected {_EXPECTED[kind]}{more}")
