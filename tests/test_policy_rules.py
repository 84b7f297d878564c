"""Lists and rules in front of the model decide what a slow reading of the log says, in the order they are written."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fraud.calibration import Calibration
from fraud.config import Config, config_to_toml, load_config, parse_config, read_lists, state_hash, subjects_of
from fraud.decisions import DECISIONS, Policy, check_policy, decide, policy_from_toml, policy_to_toml, policy_version
from fraud.enrich import empty_carry, enrich
from fraud.entities import RISK_NAMES, EntityTable, entity_table
from fraud.errors import BundleError, ConfigError
from fraud.events import Events, FloatArray, Text
from fraud.literals import toml_value
from fraud.reasons import facts, rule_reason
from fraud.rules import ENTITY_FACTS, ListFile
from fraud.scoring import Scorer, score_events
from fraud.splits import decides
from fraud.tokens import Risk, Vocabulary
from fraud.verdicts import NO_RULE, Verdicts, amount_over_usual, rule_verdicts
from tests.made_events import TYPES, enriched_whole, made_config, made_events, spec_of, state_after

SEEDS = st.integers(0, 2**32 - 1)
BASE = made_config('fields.numeric=["age"]')
_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}
# What each of these is asked: thresholds that no made-up value meets exactly but for counts.
_LIMITS = {
    "amount": [5.005, 20.005, 300.005],
    "age": [0.25001, 0.7001],
    "amount_over_usual": [0.31, 1.7, 9.3],
    "earlier_events": [0, 1, 5, 20],
    "earlier_in_session": [0, 1, 3],
}
_DURATIONS = ["1s", "90s", "20m", "3h", "2d"]


class Flat:
    """A model that gives every event the logit 0."""

    kind = "boosting"
    vocabulary = Vocabulary((), ())

    def logits(self, enriched: Any, risk: Risk) -> FloatArray:  # Any: not read
        """Return zeros."""
        return np.zeros(len(enriched.events))


def _events(seed: int, **made: Any) -> Events:
    events = made_events(seed, **made)
    age_N = np.round(np.random.default_rng(seed + 1).random(len(events)), 3)
    return replace(events, numeric={"age": np.where(age_N < 0.2, np.nan, age_N)})


def _config(*rules: Mapping[str, object], lists: Sequence[Mapping[str, object]] = (), more: str = "") -> Config:
    """Return the configuration of the made-up events with these tables of rules and lists."""
    text = config_to_toml(BASE).replace("[policy]", f"[policy]\nrules = {toml_value(list(rules))}")
    text = text.replace("[policy]", f"[policy]\nlists = {toml_value(list(lists))}")
    return parse_config(text + more, source="c.toml", root=Path())


def _policy(config: Config) -> Policy:
    return Policy(
        review_at=0.4,
        block_at=0.9,
        alert_budget=0.1,
        block_budget=0.01,
        costs=None,
        lists=read_lists(config),
        rules=config.policy.rules,
    )


def _verdicts(config: Config, events: Events, risk: Risk) -> Verdicts:
    policy = _policy(config)
    check_policy(policy, config)
    return rule_verdicts(policy, enriched_whole(events, config), risk, known=subjects_of(config))


def _risk(seed: int, n_events: int) -> dict[str, FloatArray]:
    known_NR = np.random.default_rng(seed).integers(-1, 4, (n_events, len(RISK_NAMES))).astype(np.float64)
    return {"payee": np.where(known_NR < 0, np.nan, known_NR)}


def _limits(numbers: Sequence[object]) -> st.SearchStrategy[dict[str, object]]:
    one = st.sampled_from(["at_least", "under"]).flatmap(
        lambda name: st.sampled_from(list(numbers)).map(lambda number: {name: number})
    )
    both = st.sampled_from(range(len(numbers) - 1)).map(lambda n: {"at_least": numbers[n], "under": numbers[n + 1]})
    return one | both


def _texts(values: Sequence[str]) -> st.SearchStrategy[object]:
    chosen = st.lists(st.sampled_from([*values, "nowhere"]), min_size=1, max_size=3, unique=True)
    return chosen | chosen.map(lambda some: {"not_in": some}) | chosen.map(lambda some: {"in": some})


_FLAGS = st.sampled_from(["first_seen", "missing"]).flatmap(lambda n: st.booleans().map(lambda flag: {n: flag}))
_FACTS = st.sampled_from(ENTITY_FACTS).flatmap(lambda n: _limits([1, 2, 3]).map(lambda limits: {n: limits}))
_HOURS = st.tuples(st.integers(0, 23), st.integers(0, 24)).filter(lambda pair: pair[0] != pair[1])
_CONDITIONS: dict[str, st.SearchStrategy[object]] = {
    **{name: _limits(numbers) for name, numbers in _LIMITS.items()},
    "amount or none": _limits(_LIMITS["amount"]) | st.booleans().map(lambda flag: {"missing": flag}),
    "channel": _texts(["app", "web"]) | _FLAGS,
    "payee": _texts(["p1", "p2", "p3"]) | _FLAGS | _FACTS | st.tuples(_FLAGS, _FACTS).map(lambda p: {**p[0], **p[1]}),
    "user_id": _texts(["u0", "u1"]),
    "gap": _limits(_DURATIONS),
    "session_age": _limits(_DURATIONS),
    "since": st.sampled_from(["login", "check"]).flatmap(lambda n: _limits(_DURATIONS).map(lambda x: {n: x})),
    "hour": _HOURS.map(lambda pair: {"from": pair[0], "until": pair[1]}),
    "weekday": st.lists(st.sampled_from(_DAYS), min_size=1, max_size=3, unique=True),
}
_WHERE = st.lists(st.sampled_from(sorted(_CONDITIONS)), min_size=1, max_size=2, unique=True).flatmap(
    lambda names: st.fixed_dictionaries({name.removesuffix(" or none"): _CONDITIONS[name] for name in names})
)
_RULES = st.lists(
    st.fixed_dictionaries(
        {
            "decision": st.sampled_from(DECISIONS),
            "types": st.lists(st.sampled_from([str(name) for name in TYPES]), max_size=3, unique=True),
            "where": _WHERE,
        }
    ),
    max_size=4,
).map(lambda rules: [{"name": f"r{n}", **rule} for n, rule in enumerate(rules)])


class _Past:
    """One event and its user's earlier ones, as plain values, read anew for each question."""

    def __init__(self, events: Events, row: int, user: int, known: Mapping[str, float]) -> None:
        self.rows = range(int(events.user_starts[user]), row + 1)
        self.row, self.events, self.known = row, events, known
        self.user = events.users[user]

    def value(self, name: str, row: int | None = None) -> Any:  # Any: text, number or None
        events, row = self.events, self.row if row is None else row
        if name == "user_id":
            return self.user
        if name in ("amount", "age"):
            number = (events.amount if name == "amount" else events.numeric[name])[row]  # type: ignore[index]
            return None if math.isnan(number) else float(number)
        column = {"channel": events.categorical, "payee": events.entity}[name][name]
        return None if column.codes_N[row] < 0 else column.values[column.codes_N[row]]

    def is_first_seen(self, name: str) -> bool | None:
        own = self.value(name)
        if own is None:
            return None
        earlier = [self.value(name, row) for row in self.rows[:-1]]
        return own not in [one for one in earlier if one is not None][-256:]

    def quantity(self, name: str) -> float | None:
        times = [int(self.events.time_us[row]) for row in self.rows]
        opens = [0, *(n for n in range(1, len(times)) if times[n] - times[n - 1] > 30 * 60 * 10**6)]
        if name == "earlier_events":
            return len(times) - 1
        if name == "earlier_in_session":
            return len(times) - 1 - opens[-1]
        if name == "session_age":
            return times[-1] - times[opens[-1]]
        if name == "gap":
            return times[-1] - times[-2] if len(times) > 1 else None
        if name == "amount_over_usual":
            amounts = [self.value("amount", row) for row in self.rows]
            earlier = [math.log1p(amount) for amount in amounts[:-1] if amount is not None]
            if amounts[-1] is None or len(earlier) < 3:
                return None
            return amounts[-1] / math.expm1(sum(earlier) / len(earlier))
        if name in ("amount", "age"):
            return self.value(name)
        key, types = name.removeprefix("since "), self.events.type
        moments = [times[n] for n, row in enumerate(self.rows[:-1]) if types.values[types.codes_N[row]] == key]
        return times[-1] - moments[-1] if moments else None

    def moment(self) -> datetime:
        at = datetime.fromtimestamp(int(self.events.time_us[self.row]) // 10**6, UTC)
        return at.astimezone(ZoneInfo("Europe/Berlin"))

    def holds(self, name: str, asked: Any) -> bool:  # Any: a value of TOML
        if name == "hour":
            first, until, hour = asked["from"], asked["until"], self.moment().hour
            return first <= hour < until if first < until else not until <= hour < first
        if name == "weekday":
            return _DAYS[self.moment().weekday()] in asked
        if isinstance(asked, list):
            return self.value(name) in asked
        said: list[bool] = []
        for what, limit in asked.items():
            if what == "in":
                said.append(self.value(name) in limit)
            elif what == "not_in":
                said.append(self.value(name) is not None and self.value(name) not in limit)
            elif what == "first_seen":
                said.append(self.is_first_seen(name) is limit)
            elif what == "missing":
                said.append((self.value(name) is None) is limit)
            elif what in ("at_least", "under"):
                said.append(_within(self.quantity(name), {what: limit}))
            else:
                found = self.quantity(f"since {what}") if name == "since" else self.known[what]
                said.append(_within(found, limit))
        return all(said)


def _within(number: float | None, limits: Mapping[str, Any]) -> bool:  # Any: number or duration
    if number is None or math.isnan(number):
        return False
    bounds = {n: int(b[:-1]) * _UNITS_S[b[-1]] * 10**6 if isinstance(b, str) else b for n, b in limits.items()}
    return bounds.get("at_least", -math.inf) <= number < bounds.get("under", math.inf)


def _read_slowly(rules: Sequence[Mapping[str, Any]], events: Events, risk: Risk) -> list[int]:
    """Return, event by event, which rule decides, -1 = none."""
    decided: list[int] = []
    for row, user in enumerate(events.user_codes().tolist()):
        past = _Past(events, row, user, dict(zip(RISK_NAMES, risk["payee"][row], strict=True)))
        kind = events.type.values[events.type.codes_N[row]]
        matching = (
            n
            for n, rule in enumerate(rules)
            if (not rule["types"] or kind in rule["types"]) and all(past.holds(*one) for one in rule["where"].items())
        )
        decided.append(next(matching, NO_RULE))
    return decided


@given(SEEDS, _RULES)
def test_the_first_rule_whose_conditions_all_hold_decides(seed: int, rules: list[dict[str, Any]]) -> None:
    events = _events(seed, n_users=3, max_count=25)
    config, risk = _config(*rules), _risk(seed, len(events))
    verdicts = _verdicts(config, events, risk)
    assert verdicts.rule_N.tolist() == _read_slowly(rules, events, risk)
    codes = [*(DECISIONS.index(rule["decision"]) for rule in rules), NO_RULE]
    assert verdicts.decision_N.tolist() == [codes[n] for n in verdicts.rule_N.tolist()]
    assert (verdicts.rule_N.dtype, verdicts.decision_N.dtype) == (np.int16, np.int8)


@pytest.mark.parametrize("name", sorted(_CONDITIONS))
def test_every_kind_of_condition_is_met_and_missed(name: str) -> None:
    seen: set[bool] = set()

    @settings(max_examples=30)
    @given(SEEDS, _CONDITIONS[name])
    def ask(seed: int, asked: object) -> None:
        events = _events(seed, n_users=3, max_count=25)
        rule = {"name": "r", "decision": "review", "types": [], "where": {name.removesuffix(" or none"): asked}}
        risk = _risk(seed, len(events))
        rule_N = _verdicts(_config(rule), events, risk).rule_N
        assert rule_N.tolist() == _read_slowly([rule], events, risk)
        seen.update((rule_N == 0).tolist())

    ask()
    assert seen == {True, False}


@settings(max_examples=30)
@given(SEEDS, _RULES)
def test_what_is_written_is_read_back(seed: int, rules: list[dict[str, Any]]) -> None:
    # Three quotes end the text that a bundle's values stand in, so such a list is written as an array.
    listed = {"name": "l", "decision": "allow", "field": "payee", "values": ["p1", "it's", "'''", "a\u2028b"]}
    filed = {"name": "f", "decision": "block", "text": "said", "types": ["view"], "field": "channel", "path": "a b.txt"}
    tests = '\n[[policy.tests]]\nevents = [{ type = "view", amount = 2.5 }]\nby = "l"\nrisk.payee.volume_7d = 3\n'
    config = _config(*rules, lists=[listed, filed])
    assert parse_config(config_to_toml(config), source="again", root=Path()) == config
    text = config_to_toml(_config(*rules, lists=[listed])).replace("[tracking]", f"{tests}\n[tracking]")
    tested = parse_config(text, source="c.toml", root=Path())
    assert tested.policy.tests[0].by == "l"
    assert parse_config(config_to_toml(tested), source="again", root=Path()) == tested
    policy = _policy(tested)
    assert policy_from_toml(policy_to_toml(policy)) == policy
    assert state_hash(config) == state_hash(tested) == state_hash(BASE)


@settings(max_examples=50)
@given(SEEDS, _RULES)
def test_a_log_cut_anywhere_and_carried_on_gets_the_same_verdicts(seed: int, rules: list[dict[str, Any]]) -> None:
    events, config = _events(seed, n_users=3), _config(*rules)
    risk = _risk(seed, len(events))
    whole = _verdicts(config, events, risk)
    carry, window = state_after(events, spec_of(config), "user", config.sessions.max_events)
    enriched, _ = enrich(window, carry, spec_of(config))
    of_window = {name: risk_NR[window.row] for name, risk_NR in risk.items()}
    verdicts = rule_verdicts(_policy(config), enriched, of_window, known=subjects_of(config))
    np.testing.assert_array_equal(verdicts.rule_N, whole.rule_N[window.row])
    for user in range(events.n_users):
        alone = events.take_users(user, user + 1)
        mine = {name: risk_NR[alone.row] for name, risk_NR in risk.items()}
        np.testing.assert_array_equal(_verdicts(config, alone, mine).rule_N, whole.rule_N[alone.row])


def _scorer(config: Config, policy: Policy) -> Scorer:
    calibration = Calibration(kind="shift", slope=1.0, shift=0.0, n_positive=1, n_negative=1)
    return Scorer(config=config, model=Flat(), calibration=calibration, policy=policy, version="made")


def _tables(events: Events) -> dict[str, EntityTable]:
    never_N = np.full(len(events), -1)
    return {name: entity_table(column, events.time_us, never_N, never_N) for name, column in events.entity.items()}


@given(SEEDS, st.integers(1, 4))
def test_without_rules_every_decision_is_the_models(seed: int, min_events: int) -> None:
    events, config = _events(seed), replace(BASE, decisions=replace(BASE.decisions, min_events=min_events))
    policy = _policy(config)
    scored, _ = score_events(
        _scorer(config, policy), events, empty_carry(events.n_users, spec_of(config)), _tables(events)
    )
    expected_N = decide(policy, np.full(len(events), 0.5), amount_N=events.amount)
    expected_N = np.where(decides(scored.enriched, config), expected_N, -1)
    np.testing.assert_array_equal(scored.decision_N, expected_N)
    assert (scored.rule_N == NO_RULE).all()


@given(SEEDS)
def test_rules_decide_on_decision_types_alone_however_little_context_there_is(seed: int) -> None:
    events = _events(seed)
    config = _config({"name": "all", "decision": "block"})
    config = replace(config, decisions=replace(config.decisions, on=("transfer", "withdraw"), min_events=3))
    carry = empty_carry(events.n_users, spec_of(config))
    scored, _ = score_events(_scorer(config, _policy(config)), events, carry, _tables(events))
    is_on_N = np.isin(TYPES.astype(str), ["transfer", "withdraw"])[events.type.codes_N]
    np.testing.assert_array_equal(scored.decision_N, np.where(is_on_N, DECISIONS.index("block"), -1))
    np.testing.assert_array_equal(scored.rule_N, np.where(is_on_N, 0, NO_RULE))


def test_lists_come_before_rules_and_each_in_the_order_written() -> None:
    events = _events(3, n_users=8)
    lists = [
        {"name": "trusted", "decision": "allow", "field": "user_id", "values": ["u1", "u2"]},
        {"name": "mules", "decision": "block", "field": "payee", "values": ["p1", "p2", "p3"]},
    ]
    rules = [
        {"name": "large", "decision": "review", "where": {"amount": {"at_least": 50}}},
        {"name": "same", "decision": "block", "where": {"amount": {"at_least": 50}}},
    ]
    config = _config(*rules, lists=lists)
    rule_N = _verdicts(config, events, _risk(0, len(events))).rule_N
    assert [rule.name for rule in _policy(config).in_order] == ["trusted", "mules", "large", "same"]
    is_trusted_N = np.isin(events.user_codes(), [1, 2])
    is_mule_N = np.isin(events.entity["payee"].to_objects().astype(str), ["p1", "p2", "p3"])
    assert events.amount is not None
    expected_N = np.where(is_trusted_N, 0, np.where(is_mule_N, 1, np.where(events.amount >= 50, 2, NO_RULE)))
    np.testing.assert_array_equal(rule_N, expected_N)
    assert set(rule_N.tolist()) == {NO_RULE, 0, 1, 2}


def test_a_large_dictionary_of_few_events_and_a_small_one_say_the_same() -> None:
    events = _events(5)
    small = events.entity["payee"]
    others = np.array([f"other{n}" for n in range(10 * len(events))], dtype=object)
    values = ["p1", "p7", others[-1]]  # where a null, code -1, would be looked up
    config = _config(lists=[{"name": "l", "decision": "block", "field": "payee", "values": values}])
    large = Text(small.codes_N, np.concatenate([small.values, others]))
    of_large = replace(events, entity={"payee": large})
    risk = _risk(0, len(events))
    rule_N = _verdicts(config, events, risk).rule_N
    np.testing.assert_array_equal(_verdicts(config, of_large, risk).rule_N, rule_N)
    assert set(rule_N.tolist()) == {0, NO_RULE}


def test_the_usual_amount_is_that_of_the_reasons_in_words() -> None:
    enriched = enriched_whole(_events(11, n_users=20), BASE)
    ratio_N = amount_over_usual(enriched, np.arange(len(enriched.events)))
    for row, ratio in enumerate(ratio_N.tolist()):
        told = [fact for fact in facts(enriched, row, {}, 0) if fact.code == "large_amount"]
        assert bool(told) == (ratio >= 2.0)
    assert (ratio_N >= 2.0).any()


def test_entity_facts_are_those_a_model_reads() -> None:
    assert set(ENTITY_FACTS) <= set(RISK_NAMES)


def test_the_name_of_a_policy_changes_with_what_it_decides_and_with_nothing_else() -> None:
    def version(*rules: Mapping[str, object], values: Sequence[str] = ("a", "b"), decision: str = "block") -> str:
        mules = {"name": "mules", "decision": decision, "field": "payee", "values": list(values)}
        return policy_version(_policy(_config(*rules, lists=[mules])))

    rule = {"name": "r", "decision": "review", "where": {"amount": {"at_least": 5}}}
    assert version() == version(values=("b", "a", "b"))
    others = [version(), version(rule), version(rule | {"decision": "allow"}), version(rule, {**rule, "name": "s"})]
    others += [version(values=("a",)), version(decision="review"), policy_version(_policy(BASE))]
    assert len(set(others)) == len(others)
    assert all(len(name) == 12 and int(name, 16) >= 0 for name in others)


def test_a_policy_without_rules_is_written_as_it_always_was() -> None:
    text = policy_to_toml(_policy(BASE))
    assert text.endswith("alert_budget = 0.1\nblock_budget = 0.01\n")
    assert policy_from_toml(text) == _policy(BASE)
    assert "rules" not in config_to_toml(BASE)


def test_a_rule_is_a_reason_with_its_name_and_text() -> None:
    config = _config(
        {"name": "r", "decision": "review", "text": "because"},
        {"name": "s", "decision": "review"},
        lists=[{"name": "mules", "decision": "block", "field": "payee", "values": ["a"]}],
    )
    told = [rule_reason(rule, 7) for rule in _policy(config).in_order]
    assert [reason.text for reason in told] == ["rule mules: payee is listed", "rule r: because", "rule s"]
    assert {(reason.code, reason.event_index, reason.contribution) for reason in told} == {("rule", 7, 0.0)}


def test_a_list_is_an_array_a_text_or_a_file_of_one_value_a_line(tmp_path: Path) -> None:
    (tmp_path / "mules.txt").write_bytes("\ufeffp1\r\np 2\r\n\r\n  p3\u2028x\n007".encode())
    log = '[log]\n[fields]\nentity = ["payee"]\n'
    texts = {
        "array": 'values = ["p1", "p 2", "  p3\\u2028x", "007"]',
        "text": "values = '''\np1\np 2\n\n  p3\u2028x\n007'''",
        "file": 'path = "mules.txt"',
    }
    found = {}
    for name, values in texts.items():
        config = tmp_path / f"{name}.toml"
        config.write_text(f'{log}[[policy.lists]]\nname = "m"\nfield = "payee"\ndecision = "block"\n{values}\n')
        (found[name],) = read_lists(load_config(config))
    assert found["array"].values == {"p1", "p 2", "  p3\u2028x", "007"}
    assert found["array"] == found["text"] == found["file"]
    number = parse_config(
        f'{log}[[policy.lists]]\nname = "m"\nfield = "payee"\ndecision = "block"\nvalues = [7]\n',
        source="c.toml",
        root=tmp_path,
    )
    assert read_lists(number)[0].values == {"7"}


def test_a_million_values_cost_seconds_and_are_looked_up_by_distinct_value(tmp_path: Path) -> None:
    values = [f"p{n}" for n in range(1_000_000)]
    (tmp_path / "mules.txt").write_text("\n".join(values), encoding="utf-8")
    started_s = time.process_time()
    config = replace(_config(lists=[{"name": "m", "decision": "block", "field": "payee", "path": "mules.txt"}]))
    policy = _policy(replace(config, root=tmp_path))
    assert policy_from_toml(policy_to_toml(policy)) == policy
    assert time.process_time() - started_s < 20
    events = _events(1, n_users=200)
    enriched, known = enriched_whole(events, config), subjects_of(config)
    started_s = time.process_time()
    verdicts = rule_verdicts(policy, enriched, {}, known=known)
    assert time.process_time() - started_s < 0.5
    np.testing.assert_array_equal(verdicts.rule_N == 0, events.entity["payee"].codes_N >= 0)


_RULE = '[[policy.rules]]\nname = "r"\ndecision = "review"\n'
_LIST = '[[policy.lists]]\nname = "m"\nfield = "payee"\ndecision = "block"\n'
_TEST = '[[policy.tests]]\nevents = [{ type = "view" }]\n'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[policy]\nrules = 3\n", "policy.rules = [None]: expected tables, each opened by [[policy.rules]]"),
        ('[[policy.rules]]\ndecision = "review"\n', "policy.rules.0.name is missing: expected a text"),
        (
            '[[policy.rules]]\nname = "model"\ndecision = "block"\n',
            "policy.rules.0.name = 'model': expected at most 64",
        ),
        ('[[policy.rules]]\nname = "r\\n"\ndecision = "block"\n', "on one line"),
        ('[[policy.rules]]\nname = "r"\ndecision = "stop"\n', "(r).decision = 'stop': expected allow, review, block"),
        (_RULE + "wher = {}\n", "unknown name 'policy.rules.0.wher'; known here: name, decision, text, types, where"),
        (_RULE + _RULE, "policy.rules.1 (r): policy.rules.0 (r) has the same name"),
        (_RULE + _LIST.replace('"m"', '"r"') + "values = []\n", "has the same name"),
        (
            _RULE + 'types = ["view", "login"]\n',
            "types = ['view']: no decision is made on these; decisions.on = ['login'",
        ),
        (_RULE + "types = [2.5]\n", "policy.rules.0 (r).types = 2.5: expected texts"),
        (_RULE + "where = []\n", "policy.rules.0 (r).where = []: expected a table"),
        (
            _RULE + "where = { amuont = { under = 5 } }\n",
            "known here: user_id, amount, channel, payee, amount_over_usual",
        ),
        (_RULE + "where = { amount = 5 }\n", "where.amount = 5: expected an array of texts or a table"),
        (_RULE + "where = { amount = {} }\n", "where.amount = {}: expected at least one condition"),
        (_RULE + "where = { amount = { over = 5 } }\n", "where.amount.over = 5: expected a limit"),
        (_RULE + "where = { amount = { under = nan } }\n", "where.amount.under = nan: expected a number"),
        (_RULE + "where = { amount = { under = true } }\n", "where.amount.under = True: expected a number"),
        (
            _RULE + 'where = { amount = { under = "5m" } }\n',
            "(r).where.amount = {'under': '5m'}: expected { at_least =",
        ),
        (_RULE + "where = { amount = { at_least = 9, under = 5 } }\n", "nothing is both"),
        (_RULE + "where = { amount = { first_seen = true } }\n", "where.amount = {'first_seen': True}: expected"),
        (_RULE + "where = { gap = { under = 5 } }\n", "where.gap = {'under': 5}: expected { at_least = \"30d\" }"),
        (_RULE + 'where = { gap = { under = "5 m" } }\n', "where.gap.under = '5 m': expected a duration such as"),
        (_RULE + 'where = { since = { view = { under = "5m" } } }\n', "fields.key_types = ['login', 'check']"),
        (_RULE + 'where = { since = { under = "5m" } }\n', "expected one of fields.key_types"),
        (_RULE + "where = { hour = { from = 22 } }\n", "where.hour = {'from': 22}: expected { from = 22, until = 6 }"),
        (_RULE + "where = { hour = { from = 6, until = 6 } }\n", "expected { from = 22, until = 6 }"),
        (_RULE + "where = { hour = { from = 1, until = 25 } }\n", "expected { from = 22, until = 6 }"),
        (_RULE + 'where = { weekday = ["Sunday"] }\n', "of mon, tue, wed, thu, fri, sat, sun"),
        (_RULE + "where = { channel = [] }\n", "where.channel = []: expected at least one text"),
        (_RULE + "where = { channel = { first_seen = 1 } }\n", "where.channel.first_seen = 1: expected true or false"),
        (_RULE + "where = { channel = { volume_7d = { under = 5 } } }\n", "{'volume_7d': {'under': 5}}: expected"),
        (_RULE + "where = { payee = { volume_9d = { under = 5 } } }\n", "to one of known_frauds_1d, known_frauds_7d"),
        (_RULE + "where = { user_id = { missing = true } }\n", "where.user_id = {'missing': True}: expected"),
        (_LIST, "policy.lists.0 (m): expected either values or path"),
        (_LIST + 'values = []\npath = "x"\n', "expected either values or path"),
        (_LIST + "values = 3\n", "policy.lists.0 (m).values = 3: expected an array of texts, or a text"),
        (_LIST + 'values = ["a", ""]\n', "policy.lists.0 (m).values: '': expected 1 to 256 characters, not blank"),
        (_LIST + 'values = ["a", "\\t"]\n', "(m).values: '\\t': expected 1 to 256 characters"),
        (_LIST + 'values = ["a", "b\\u0000"]\n', "(m).values: 'b\\x00': expected 1 to 256 characters"),
        (_LIST + f'values = ["{"a" * 257}"]\n', "expected 1 to 256 characters"),
        (_LIST + "values = [1.0]\n", "policy.lists.0 (m).values = 1.0: expected texts"),
        (
            _LIST.replace("payee", "amount") + "values = []\n",
            "field = 'amount': expected a field of text: user_id, channel",
        ),
        (_LIST.replace("payee", "hour") + "values = []\n", "(m).field = 'hour': expected a field of text"),
        (_TEST, "policy.tests.0: expected expect (a decision), by"),
        (_TEST + 'by = "r"\n', "policy.tests.0.by = 'r': expected 'model' or a list or a rule: none"),
        (_TEST + 'by = "model"\nscore = 1\n', "policy.tests.0.score = 1: expected a number from 0 to below 1"),
        (_TEST + 'by = "model"\nrisk.channel.volume_7d = 1\n', "unknown name 'policy.tests.0.risk.channel'"),
        (_TEST + 'by = "model"\nrisk.payee.volume_9d = 1\n', "unknown name 'policy.tests.0.risk.payee.volume_9d'"),
        ('[[policy.tests]]\nevents = []\nby = "model"\n', "policy.tests.0.events = []: expected an array of tables"),
        ('[[policy.tests]]\nevents = [{ typ = "view" }]\nby = "model"\n', "unknown name 'policy.tests.0.events.0.typ'"),
        ('[[policy.tests]]\nevents = [{ type = [] }]\nby = "model"\n', "policy.tests.0.events.0.type = []: expected"),
        ("x = 1" + "0" * 5000 + "\n", "not valid TOML"),
    ],
)
def test_a_mistake_is_refused_with_its_name(text: str, words: str) -> None:
    base = config_to_toml(BASE).replace("[policy]\nalert_budget = 0.01\nblock_budget = 0.001\n", "")
    base = base.replace("on = []", 'on = ["login", "transfer"]').replace('numeric = ["age"]', "numeric = []")
    with pytest.raises(ConfigError) as caught:
        parse_config(base + text, source="c.toml", root=Path())
    assert words in str(caught.value)
    assert str(caught.value).startswith("c.toml: ")
    assert len(str(caught.value)) < 700


def test_a_log_without_a_clock_or_an_amount_cannot_be_asked_for_them() -> None:
    head = '[log]\ntime = "position"\nposition = "pos"\n[split]\nby = "user"\n[fields]\nentity = ["payee"]\n'
    for where in (
        "{ gap = { under = '5m' } }",
        "{ hour = { from = 1, until = 2 } }",
        "{ payee = { volume_7d = { under = 5 } } }",
        "{ amount_over_usual = { at_least = 5 } }",
    ):
        with pytest.raises(ConfigError, match=r"policy\.rules\.0"):
            parse_config(f"{head}{_RULE}where = {where}\n", source="c.toml", root=Path())
    parse_config(f"{head}{_RULE}where = {{ payee = {{ first_seen = true }} }}\n", source="c.toml", root=Path())


def test_a_declared_field_comes_before_a_derived_one_of_its_name() -> None:
    text = f'[log]\n[fields]\nnumeric = ["hour"]\n{_RULE}where = {{ hour = {{ at_least = 5 }} }}\n'
    assert parse_config(text, source="c.toml", root=Path()).policy.rules[0].where[0].subject == "hour"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "cannot be read (No such file or directory)"),
        (lambda path: path.mkdir(), "is no file"),
        (lambda path: path.write_bytes(b"p1\n\xff\n"), "not UTF-8 text"),
        (lambda path: path.write_text("p1\n \n"), "' ': expected 1 to 256 characters"),
        (lambda path: path.write_text("x" * 300), "expected 1 to 256 characters"),
    ],
)
def test_a_bad_file_of_values_is_refused_when_the_configuration_is_loaded(
    make: Any, words: str, tmp_path: Path
) -> None:
    make(tmp_path / "mules.txt")
    config = tmp_path / "c.toml"
    config.write_text(f'[log]\n[fields]\nentity = ["payee"]\n{_LIST}path = "mules.txt"\n', encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(config)
    for part in (str(config), "policy.lists (m).path", "mules.txt", words):
        assert part in str(caught.value)


def test_a_configuration_of_a_bundle_names_a_file_and_reads_none(tmp_path: Path) -> None:
    text = f'[log]\n[fields]\nentity = ["payee"]\n{_LIST}path = "../secret"\n'
    (one,) = parse_config(text, source="config.toml", root=tmp_path).policy.lists
    assert isinstance(one, ListFile)
    assert one.path == "../secret"


_GOOD = "review_at = 0.5\nblock_at = 0.75\nalert_budget = 0.01\nblock_budget = 0.001\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[[rules]]\nname = "r"\ndecision = "stop"\n', "policy.toml: rules.0 (r).decision = 'stop'"),
        ("rules = 3\n", "policy.toml: rules"),
        (
            '[[lists]]\nname = "m"\nfield = "payee"\ndecision = "block"\npath = "x"\n',
            "policy.toml: lists: a list names",
        ),
        ('[[rules]]\nname = "r"\ndecision = "block"\nwhere = { iban = ["x"] }\n', "policy.toml: unknown name 'rules.0"),
        ('[[lists]]\nname = "m"\nfield = "iban"\ndecision = "block"\nvalues = ""\n', "policy.toml: lists.0 (m).field"),
        ("x = 1" + "0" * 5000, "policy.toml: not valid TOML"),
    ],
)
def test_a_policy_that_the_events_cannot_answer_is_a_bundle_error(text: str, words: str) -> None:
    with pytest.raises(BundleError) as caught:
        check_policy(policy_from_toml(_GOOD + text), BASE)
    assert words in str(caught.value)
