"""Rules, lists and their tests as tables of TOML: read with every value checked, and written back.

A refusal is a ValueError that names the rule, the setting, its value and what was expected; the caller says in which
file. Which fields a log has is not known here: `fraud.subjects` checks that.
Over 300 lines because what is read and what is written back must agree.
"""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import TypeVar, cast, get_args

from fraud.literals import duration_text, duration_us
from fraud.rules import (
    ENTITY_FACTS,
    FIRST_SEEN,
    MISSING,
    MODEL,
    VALUE,
    Condition,
    Decision,
    Hours,
    ListFile,
    OneOf,
    PolicyTest,
    Range,
    Rule,
    Tree,
    ValueList,
)

MAX_VALUES = 2_000_000  # of one list: 1,000,000 ids take 110 MB of memory and a second to read
EXPECTED_HOURS = "{ from = 22, until = 6 }: from an hour 0 .. 23 until before another, past midnight or not"
_MAX_CHARACTERS = 256  # of an id, as in a log
_MAX_NAME = 64
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_T = TypeVar("_T")


def read_rules(value: object, where: str) -> tuple[Rule, ...]:
    """Return the rules of an array of tables. where: the name of the array, for errors."""
    return _each(value, where, _rule)


def read_value_lists(value: object, where: str) -> tuple[ValueList | ListFile, ...]:
    """Return the lists of an array of tables. where: the name of the array, for errors."""
    return _each(value, where, _list)


def with_values(one: ListFile, content: str) -> ValueList:
    """Return the list with the values in the text of its file, one a line."""
    return ValueList(
        name=one.name,
        decision=one.decision,
        text=one.text,
        types=one.types,
        field=one.field,
        values=_values(content, one.path),
    )


def read_tests(value: object, where: str) -> tuple[PolicyTest, ...]:
    """Return the tests of an array of tables. where: the name of the array, for errors."""
    return _each(value, where, _test)


def rule_tree(rule: Rule | ValueList | ListFile) -> dict[str, object]:
    """Return the table that `read_rules` or `read_value_lists` reads back as an equal rule or list."""
    tree: dict[str, object] = {"name": rule.name}
    if not isinstance(rule, Rule):
        tree["field"] = rule.field
    tree["decision"] = rule.decision
    if rule.text:
        tree["text"] = rule.text
    if rule.types:
        tree["types"] = list(rule.types)
    if isinstance(rule, ListFile):
        tree["path"] = rule.path
    elif isinstance(rule, ValueList):
        tree["values"] = sorted(rule.values)
    elif rule.where:
        where: dict[str, object] = {}
        for one in rule.where:
            part = condition_tree(one)
            held = where.get(one.subject)
            # Facts of one subject stand in one table.
            where[one.subject] = {**cast(Tree, held), **cast(Tree, part)} if isinstance(held, Mapping) else part
        tree["where"] = where
    return tree


def policy_test_tree(test: PolicyTest) -> dict[str, object]:
    """Return the table that `read_tests` reads back as an equal test."""
    named = {"name": test.name or None, "events": test.events, "score": test.score, "expect": test.expect}
    tree = {**named, "by": test.by, "risk": test.risk or None}
    return {name: value for name, value in tree.items() if value is not None}


def check_names(tree: Tree, known: Sequence[str], where: str) -> None:
    """Raise ValueError for a name of the table that is not known."""
    if unknown := [name for name in tree if name not in known]:
        raise ValueError(f"unknown name '{where}.{unknown[0]}'; known here: {listed(known)}")


def listed(names: Sequence[str]) -> str:
    """Return the names as an error lists them."""
    return ", ".join(names[:40]) or "none"


def shown(value: object) -> str:
    """Return a value as an error shows it: cut where it is long."""
    return reprlib.repr(value)


def condition_tree(condition: Condition) -> object:
    """Return the value that stands in `where` for a condition."""
    test = condition.test
    if isinstance(test, bool):
        return {condition.fact: test}
    if isinstance(test, Hours):
        return {"from": test.first, "until": test.until}
    if isinstance(test, OneOf):
        return {"in" if test.is_in else "not_in": sorted(test.values)}
    bounds = {"at_least": test.low, "under": test.below}
    limits = {
        name: duration_text(int(bound)) if test.is_duration else bound
        for name, bound in bounds.items()
        if bound is not None
    }
    return limits if condition.fact == VALUE else {condition.fact: limits}


def _each(value: object, where: str, read: Callable[[Tree, str], _T]) -> tuple[_T, ...]:
    trees = cast("list[object]", value if isinstance(value, list) else [None])
    if not all(isinstance(tree, dict) for tree in trees):
        raise ValueError(f"{where} = {shown(trees)}: expected tables, each opened by [[{where}]]")
    return tuple(read(cast(Tree, tree), f"{where}.{place}") for place, tree in enumerate(trees))


def _rule(tree: Tree, where: str) -> Rule:
    check_names(tree, ("name", "decision", "text", "types", "where"), where)
    name = _name(tree, where)
    where = f"{where} ({name})"
    table = tree.get("where", {})
    if not isinstance(table, dict):
        raise ValueError(f"{where}.where = {shown(table)}: expected a table such as {{ amount = {{ at_least = 5 }} }}")
    asked = cast("dict[str, object]", table)
    return Rule(
        name=name,
        decision=_decision(tree, "decision", where),
        text=_text(tree, where),
        types=_texts(tree.get("types", []), f"{where}.types"),
        where=tuple(one for subject, part in asked.items() for one in _conditions(subject, part, f"{where}.where")),
    )


def _list(tree: Tree, where: str) -> ValueList | ListFile:
    check_names(tree, ("name", "field", "decision", "text", "types", "values", "path"), where)
    name = _name(tree, where)
    where = f"{where} ({name})"
    decision, text = _decision(tree, "decision", where), _text(tree, where)
    types = _texts(tree.get("types", []), f"{where}.types")
    field = _required_text(tree, "field", where)
    if ("values" in tree) == ("path" in tree):
        raise ValueError(f"{where}: expected either values or path, the file that holds one value a line")
    if "path" in tree:
        path = _required_text(tree, "path", where)
        return ListFile(name=name, decision=decision, text=text, types=types, field=field, path=path)
    values = _values(tree["values"], f"{where}.values")
    return ValueList(name=name, decision=decision, text=text, types=types, field=field, values=values)


def _test(tree: Tree, where: str) -> PolicyTest:
    check_names(tree, ("name", "events", "score", "expect", "by", "risk"), where)
    name = _required_text(tree, "name", where) if "name" in tree else ""
    events = tree.get("events")
    rows = cast("list[object]", events if isinstance(events, list) else [])
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise ValueError(
            f'{where}.events = {shown(tree.get("events"))}: expected an array of tables such as {{ type = "login" }}'
        )
    score = tree.get("score")
    if score is not None and not (_is_number(score) and 0 <= cast(float, score) < 1):
        raise ValueError(f"{where}.score = {shown(score)}: expected a number from 0 to below 1, as a score is")
    if "expect" not in tree and "by" not in tree:
        raise ValueError(f"{where}: expected expect (a decision), by (the name of a list or a rule, or model), or both")
    return PolicyTest(
        name=name,
        events=tuple(_event(cast(Tree, row), f"{where}.events.{place}") for place, row in enumerate(rows)),
        score=None if score is None else float(cast(float, score)),
        expect=_decision(tree, "expect", where) if "expect" in tree else None,
        by=_required_text(tree, "by", where) if "by" in tree else None,
        risk=_risk(tree.get("risk", {}), f"{where}.risk"),
    )


def _event(row: Tree, where: str) -> dict[str, object]:
    event: dict[str, object] = {}
    for name, cell in row.items():
        value = cell.isoformat() if isinstance(cell, datetime) else cell
        if not (isinstance(value, str | bool) or _is_number(value)):
            raise ValueError(f"{where}.{name} = {shown(cell)}: expected a text, a number or a time")
        event[name] = value
    return event


def _risk(value: object, where: str) -> dict[str, dict[str, float]]:
    risk: dict[str, dict[str, float]] = {}
    for field, facts in _table(value, where, "{ payee = { known_frauds_28d = 2 } }").items():
        table = _table(facts, f"{where}.{field}", "{ known_frauds_28d = 2 }")
        check_names(table, ENTITY_FACTS, f"{where}.{field}")
        for name, number in table.items():
            if not _is_number(number):
                raise ValueError(f"{where}.{field}.{name} = {shown(number)}: expected a number")
        risk[field] = {name: float(cast(float, number)) for name, number in table.items()}
    return risk


def _conditions(subject: str, part: object, where: str) -> list[Condition]:
    """Return what a value of `where` asks of its subject; which subjects there are is checked later."""
    where = f"{where}.{subject}"
    if isinstance(part, list):
        return [Condition(subject, VALUE, OneOf(_choices(cast(object, part), where), True))]
    table = _table(part, where, "an array of texts or a table such as { at_least = 5000 }")
    if not table:
        raise ValueError(f"{where} = {{}}: expected at least one condition")
    found: list[Condition] = []
    if "at_least" in table or "under" in table:
        found.append(Condition(subject, VALUE, _range(table, where)))
    if "from" in table or "until" in table:
        found.append(Condition(subject, VALUE, _hours(table, where)))
    for name, is_in in (("in", True), ("not_in", False)):
        if name in table:
            found.append(Condition(subject, VALUE, OneOf(_choices(table[name], f"{where}.{name}"), is_in)))
    for name, value in table.items():
        if name in (FIRST_SEEN, MISSING):
            if not isinstance(value, bool):
                raise ValueError(f"{where}.{name} = {shown(value)}: expected true or false")
            found.append(Condition(subject, name, value))
        elif name not in ("at_least", "under", "from", "until", "in", "not_in"):
            limits = _table(value, f"{where}.{name}", "a limit such as { at_least = 1 }")
            check_names(limits, ("at_least", "under"), f"{where}.{name}")
            found.append(Condition(subject, name, _range(limits, f"{where}.{name}")))
    return found


def _range(table: Tree, where: str) -> Range:
    bounds = {name: table[name] for name in ("at_least", "under") if name in table}
    if not bounds:
        raise ValueError(f"{where} = {shown(dict(table))}: expected at_least, under, or both")
    is_duration = any(isinstance(value, str) for value in bounds.values())
    numbers: dict[str, float] = {}
    for name, value in bounds.items():
        if is_duration:
            try:
                numbers[name] = duration_us(value)
            except ValueError as error:
                raise ValueError(f"{where}.{name} = {shown(value)}: {error}") from None
        elif not _is_number(value):
            raise ValueError(f"{where}.{name} = {shown(value)}: expected a number, or a duration in quotes")
        else:
            numbers[name] = cast(float, value)
    low, below = numbers.get("at_least"), numbers.get("under")
    if low is not None and below is not None and not low < below:
        raise ValueError(f"{where} = {shown(dict(bounds))}: nothing is both; expected at_least below under")
    return Range(low, below, is_duration)


def _hours(table: Tree, where: str) -> Hours:
    first, until = table.get("from"), table.get("until")
    is_hour = all(isinstance(hour, int) and not isinstance(hour, bool) for hour in (first, until))
    if not is_hour or not 0 <= cast(int, first) <= 23 or not 0 <= cast(int, until) <= 24 or first == until:
        raise ValueError(f"{where} = {shown(dict(table))}: expected {EXPECTED_HOURS}")
    return Hours(cast(int, first), cast(int, until))


def _values(value: object, where: str) -> frozenset[str]:
    """Return the values of an array, or of a text with one value a line, checked as the ids of a log are."""
    if isinstance(value, str):
        # Never `splitlines`: it also cuts at characters that an id may hold.
        return _checked([line for line in value.removeprefix("\ufeff").split("\n") if line], where)
    if not isinstance(value, list):
        raise ValueError(f"{where} = {shown(value)}: expected an array of texts, or a text with one value a line")
    return _checked([_id_text(one, where) for one in cast("list[object]", value)], where)


def _checked(texts: list[str], where: str) -> frozenset[str]:
    if len(texts) > MAX_VALUES:
        raise ValueError(f"{where}: {len(texts):,} values; expected at most {MAX_VALUES:,}")
    found = frozenset(texts)
    if found and (
        max(map(len, found)) > _MAX_CHARACTERS or not all(map(str.strip, found)) or _CONTROL.search("".join(found))
    ):
        bad = next(one for one in texts if len(one) > _MAX_CHARACTERS or not one.strip() or _CONTROL.search(one))
        raise ValueError(
            f"{where}: {shown(bad)}: expected 1 to {_MAX_CHARACTERS} characters, not blank, no control character"
        )
    return found


def _id_text(value: object, where: str) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)  # as in a log: an integer is its decimal text
    if not isinstance(value, str):
        raise ValueError(f"{where} = {shown(value)}: expected texts")
    return value


def _texts(value: object, where: str) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ValueError(f"{where} = {shown(value)}: expected an array of texts")
    texts = [_id_text(one, where) for one in cast("list[object]", value)]
    _checked(texts, where)
    return tuple(dict.fromkeys(texts))


def _choices(value: object, where: str) -> frozenset[str]:
    if not (choices := frozenset(_texts(value, where))):
        raise ValueError(f"{where} = []: expected at least one text")
    return choices


def _name(tree: Tree, where: str) -> str:
    name = _required_text(tree, "name", where)
    if len(name) > _MAX_NAME or name == MODEL:
        raise ValueError(f"{where}.name = {shown(name)}: expected at most {_MAX_NAME} characters, and not {MODEL!r}")
    return name


def _decision(tree: Tree, setting: str, where: str) -> Decision:
    value = tree.get(setting)
    if value not in get_args(Decision):
        raise ValueError(f"{where}.{setting} = {shown(value)}: expected {', '.join(get_args(Decision))}")
    return cast(Decision, value)


def _text(tree: Tree, where: str) -> str:
    return _required_text(tree, "text", where) if "text" in tree else ""


def _required_text(tree: Tree, setting: str, where: str) -> str:
    value = tree.get(setting)
    if not isinstance(value, str) or not value.strip() or len(value) > _MAX_CHARACTERS or _CONTROL.search(value):
        given = "is missing" if value is None else f"= {shown(value)}"
        raise ValueError(f"{where}.{setting} {given}: expected a text of 1 to {_MAX_CHARACTERS} characters on one line")
    return value


def _table(value: object, where: str, expected: str) -> Tree:
    if not isinstance(value, dict):
        raise ValueError(f"{where} = {shown(value)}: expected {expected}")
    return cast(Tree, value)


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 2**53 if isinstance(value, int) else math.isfinite(value)
