"""From a score to a decision: allow, review or block.

The thresholds are fitted on the decision events of the validation period and stored in the bundle as policy.toml, which
a person may read and edit, with the lists and rules that decide before the model (`fraud.verdicts`). This file knows
scores and amounts, not the model, the user or the clock.
"""

from __future__ import annotations

import hashlib
import math
import sys
import tomllib
from dataclasses import dataclass, fields
from typing import Final, cast

import numpy as np
import numpy.typing as npt

from fraud.config import Config, PolicyConfig, subjects_of
from fraud.errors import BundleError, ConfigError, DataError
from fraud.events import FloatArray
from fraud.literals import toml_value
from fraud.metrics import Costs, alerts
from fraud.ranking import n_within_budget
from fraud.rule_tables import read_rules, read_value_lists, rule_tree
from fraud.rules import Rule, ValueList
from fraud.subjects import check_rules

DecisionArray = npt.NDArray[np.int8]

# In order of severity: the most severe of several decisions is the maximum of their codes.
DECISIONS: Final = ("allow", "review", "block")
ALLOW, REVIEW, BLOCK = range(3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """review_at <= block_at: the scores in [0, 1] from which an event is reviewed or blocked; 1 is never reached.

    costs: what a review costs, in the unit of amount, or None where the budget alone decides. lists, rules: what
    decides before the scores are looked at, see `fraud.verdicts`.
    """

    review_at: float
    block_at: float
    alert_budget: float
    block_budget: float
    costs: Costs | None
    lists: tuple[ValueList, ...] = ()
    rules: tuple[Rule, ...] = ()

    @property
    def in_order(self) -> tuple[Rule, ...]:
        """Return the lists, as rules, then the rules: the first that matches an event decides on it."""
        return (*(one.as_rule() for one in self.lists), *self.rules)


def fit_policy(score_N: FloatArray, amount_N: FloatArray | None, *, config: PolicyConfig) -> Policy:
    """Return the policy whose alerts, and blocks, stay within their budgets on these validation decision events.

    A threshold lies halfway between the last score inside the budget and the next below. Ties are inside whole or not
    at all, so that a budget is never exceeded; where it admits nothing (few events, or one tie), the threshold lies
    halfway between the highest score seen and 1. A block budget of 0 blocks nothing, ever. With costs, the threshold of
    review decides only about events without an amount: see `decide`.
    Raises DataError without events or for a score outside 0 <= score < 1, ConfigError for a block budget above the
    alert budget or costs without amounts.
    """
    if len(score_N) == 0:
        raise DataError("policy: the validation period has no decision event; thresholds need at least one")
    is_bad_N = ~((score_N >= 0.0) & (score_N < 1.0))
    if is_bad_N.any():
        row = int(np.argmax(is_bad_N))
        raise DataError(f"policy: score {score_N[row]} of validation event {row}: expected a calibrated score below 1")
    if config.block_budget > config.alert_budget:
        raise ConfigError(
            f"policy.block_budget = {config.block_budget} is more than policy.alert_budget = {config.alert_budget}; "
            "a blocked event counts as an alert too"
        )
    if config.costs is not None and amount_N is None:
        raise ConfigError(
            f"policy.costs = {config.costs}: costs are in the unit of amount, so [fields] amount is needed"
        )
    return Policy(
        review_at=_threshold(score_N, config.alert_budget),
        block_at=_threshold(score_N, config.block_budget) if config.block_budget > 0 else 1.0,
        alert_budget=config.alert_budget,
        block_budget=config.block_budget,
        costs=config.costs,
    )


def decide(policy: Policy, score_N: FloatArray, *, amount_N: FloatArray | None) -> DecisionArray:
    """Return int8 [N], indices into DECISIONS.

    Review: as `fraud.metrics.alerts` says: the score reaches review_at or, with costs, score x amount exceeds the cost
    of a review. Block: what is worth a review and whose score reaches block_at. What a review would cost more than it
    saves is therefore not blocked either, and with costs no budget bounds the reviews.
    """
    is_alert_N = alerts(score_N, amount_N, threshold=policy.review_at, costs=policy.costs)
    is_block_N = is_alert_N & (score_N >= policy.block_at)
    return is_alert_N.astype(np.int8) + is_block_N.astype(np.int8)


def policy_to_toml(policy: Policy) -> str:
    """Return TOML text that `policy_from_toml` reads back as an equal policy."""
    lines = [
        "# An event is reviewed from score review_at and blocked from block_at (0 .. 1; 1 is never reached).",
        "# They were fitted to the budgets: the shares of decision events that may be alerted, and blocked.",
        *(f"{name} = {getattr(policy, name)!r}" for name in _NUMBERS),
    ]
    if policy.costs is not None:
        lines += [
            "",
            "# Where an event has an amount: it is reviewed if score x amount exceeds this cost of a review.",
            "[costs]",
            f"review = {policy.costs['review']!r}",
        ]
    if policy.lists or policy.rules:
        lines += ["", "# Before the scores: the lists, then the rules, in this order; the first that matches decides."]
    for kind, those in (("lists", policy.lists), ("rules", policy.rules)):
        for one in those:
            tree = rule_tree(one)
            values = cast("list[str]", tree.pop("values", []))
            lines += ["", f"[[{kind}]]", *(f"{name} = {toml_value(value)}" for name, value in tree.items())]
            lines += [f"values = {_one_a_line(values)}"] if kind == "lists" else []
    return "\n".join(lines) + "\n"


def policy_version(policy: Policy) -> str:
    """Return 12 hex digits that name the policy: the start of the sha256 of its TOML text."""
    return hashlib.sha256(policy_to_toml(policy).encode()).hexdigest()[:12]


def check_policy(policy: Policy, config: Config) -> None:
    """Raise BundleError where a list or a rule asks what the events of this configuration cannot tell."""
    try:
        check_rules(policy.lists, policy.rules, subjects_of(config), prefix="")
    except ValueError as error:
        raise BundleError(f"policy.toml: {error}") from None


def policy_from_toml(text: str) -> Policy:
    """Return the policy of a policy.toml; raise BundleError that names the setting, its value and what was expected."""
    try:
        tree = cast(dict[str, object], tomllib.loads(text))
    except ValueError as error:  # TOMLDecodeError is one; a number of 5,000 digits is another
        raise BundleError(f"policy.toml: not valid TOML: {error}") from None
    except RecursionError:
        raise BundleError("policy.toml: not valid TOML: nested too deeply") from None
    known = {column.name for column in fields(Policy)}
    if unknown := sorted(set(tree) - known):
        raise BundleError(f"policy.toml: unknown name {unknown[0]!r}; known here: {', '.join(sorted(known))}")
    numbers = {name: _number(tree, name, low=0.0, high=1.0) for name in _NUMBERS}
    if numbers["block_at"] < numbers["review_at"]:
        raise BundleError(
            f"policy.toml: block_at = {numbers['block_at']} is below review_at = {numbers['review_at']}; "
            "expected block_at >= review_at"
        )
    try:
        lists = read_value_lists(tree.get("lists", []), "lists")
        rules = read_rules(tree.get("rules", []), "rules")
    except ValueError as error:
        raise BundleError(f"policy.toml: {error}") from None
    whole = tuple(one for one in lists if isinstance(one, ValueList))
    if len(whole) < len(lists):
        raise BundleError("policy.toml: lists: a list names a file; expected its values")
    return Policy(**numbers, costs=_costs(tree), lists=whole, rules=rules)


_NUMBERS = ("review_at", "block_at", "alert_budget", "block_budget")


def _one_a_line(values: list[str]) -> str:
    """Return the values as a literal text, which is read 15 times as fast as an array, or as an array if they must."""
    if any("'''" in value for value in values):
        return toml_value(values)
    return "\n".join(["'''", *values, "'''"])


def _threshold(score_N: FloatArray, budget: float) -> float:
    """Return the lowest cut that at most floor(budget x N) scores reach."""
    ranked_N = np.append(1.0, -np.sort(-score_N))  # 1 stands above every score: what the first one is compared with
    n_inside = min(n_within_budget(budget, len(score_N)), len(score_N) - 1)
    outside = float(ranked_N[n_inside + 1])
    inside = float(ranked_N[: n_inside + 1][ranked_N[: n_inside + 1] > outside].min(initial=1.0))
    cut = (inside + outside) / 2
    return cut if cut > outside else inside  # between neighbouring floats there is no number


def _costs(tree: dict[str, object]) -> Costs | None:
    if "costs" not in tree:
        return None
    costs = tree["costs"]
    if not isinstance(costs, dict) or set(cast(dict[str, object], costs)) != {"review"}:
        raise BundleError(f"policy.toml: costs = {costs!r}: expected a table with the one name review")
    review = _number(cast(dict[str, object], costs), "review", low=0.0, high=math.inf)
    if review <= 0:
        raise BundleError(f"policy.toml: costs.review = {review}: expected a number above 0")
    return {"review": review}


def _number(tree: dict[str, object], name: str, *, low: float, high: float) -> float:
    if name not in tree:
        raise BundleError(f"policy.toml: {name} is missing; expected a number from {low} to {high}")
    value = tree[name]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    number = cast(float, value)
    if not is_number or not low <= number <= min(high, sys.float_info.max):
        raise BundleError(f"policy.toml: {name} = {value!r}: expected a number from {low} to {high}")
    return float(number)
