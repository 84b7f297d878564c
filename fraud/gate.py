"""The gate: what a challenger must show on examples whose labels are known before it may replace the champion.

    ap >= champion - 0.02 and recall_at_budget >= champion - 0.05

A gate is clauses joined by "and". A clause holds when it holds at the worse end of a 95 % interval over resampled
users: of the challenger's figure, or of its difference from the champion's on the same resamples. So a clause asks for
evidence that the challenger is not worse by more than the margin, and few examples promote nothing. This file knows
scores, labels and users; where they come from, and what else a promotion needs, is `pipelines.retrain`'s.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Final, NamedTuple

from fraud.errors import ConfigError
from fraud.metrics import N_RESAMPLES, Costs, Examples
from fraud.pairing import check_same_examples
from fraud.ranking import Interval, percentile_interval
from fraud.resamples import FIGURES, Resampled, resampled_figures

WORDS: Final = {
    "ap": "average precision",
    "auc": "area under the ROC curve",
    "recall_at_budget": "recall at the alert budget",
    "precision_at_budget": "precision at the alert budget",
    "recall_at_threshold": "recall at the threshold",
    "alert_rate": "alert rate",
    "money_saved": "money saved",
    "mean_score_over_base_rate": "mean score over the fraud rate",
    "ece": "calibration error",
}
_NOT_SHARES = ("money_saved", "mean_score_over_base_rate")  # every other figure lies within 0 and 1
_NUMBER = r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"
_CLAUSE = re.compile(
    rf"(?P<figure>\w+)\s*(?P<sign>>=|<=)\s*"
    rf"(?:(?P<champion>champion)(?:\s*(?P<margin>[+-]\s*{_NUMBER}))?|(?P<number>[+-]?\s*{_NUMBER}))"
)
_EXPECTED = 'expected FIGURE >= or <= a number or "champion", which + or - a number may follow'


@dataclass(frozen=True, slots=True, kw_only=True)
class Clause:
    """figure (or challenger - champion in it, where is_paired) >= bound, or <= bound where not is_at_least."""

    text: str
    figure: str
    is_at_least: bool
    is_paired: bool
    bound: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """Clauses that must all hold; text: as it was written, single spaces between its words."""

    text: str
    clauses: tuple[Clause, ...]


class Contender(NamedTuple):
    """A scorer to be judged: its scores of the examples, and the threshold and costs that its policy alerts with."""

    examples: Examples
    threshold: float
    costs: Costs | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ruling:
    """Whether one clause held, and why. bound: what the worse end of ci must reach.

    ci: the 95 % interval that decided: of difference where the clause is against the champion, else of challenger. What
    does not exist (no fraud, no amounts, no champion) is None.
    """

    text: str
    bound: float
    challenger: float | None
    champion: float | None
    difference: float | None
    ci: Interval | None
    passed: bool
    reason: str

    def to_json(self) -> dict[str, object]:
        """Return the ruling as JSON takes it: an interval is [low, high], what does not exist null."""
        tree: dict[str, object] = asdict(self)
        return tree | {"ci": None if self.ci is None else list(self.ci)}


def parse_gate(text: str) -> Gate:
    """Return the gate that the text spells: clauses of FIGURE (>= | <=) (NUMBER | champion [(+ | -) NUMBER]).

    Raises ConfigError that names the clause and what was expected; so too for a number that the figure can never reach,
    or a margin that lets everything through.
    """
    clauses = tuple(_clause(" ".join(one.split())) for one in re.split(r"\band\b", text))
    return Gate(text=" and ".join(clause.text for clause in clauses), clauses=clauses)


def rule_on(
    gate: Gate,
    challenger: Contender,
    champion: Contender | None,
    *,
    alert_budget: float,
    price: Costs | None = None,
    seed: int = 0,
    n_resamples: int = N_RESAMPLES,
) -> tuple[Ruling, ...]:
    """Return the ruling on each clause; the challenger passes if all passed.

    price: what a review of either is charged at in money_saved; each decides by its own costs.
    Without a champion a clause against it passes; the others still count. A figure that does not exist fails.
    Raises DataError where the two were not judged on the same examples.
    """
    if champion is not None:
        check_same_examples([challenger.examples, champion.examples])
    against = [clause for clause in gate.clauses if clause.is_paired and champion is not None]

    def figures(of: Contender, clauses: Collection[Clause]) -> dict[str, Resampled]:
        return resampled_figures(
            of.examples,
            {clause.figure for clause in clauses},
            alert_budget=alert_budget,
            threshold=of.threshold,
            costs=of.costs,
            price=price,
            seed=seed,
            n_resamples=n_resamples,
        )

    of_challenger = figures(challenger, gate.clauses)
    of_champion = {} if champion is None else figures(champion, against)
    return tuple(
        _ruling(clause, of_challenger[clause.figure], of_champion.get(clause.figure) if clause.is_paired else None)
        for clause in gate.clauses
    )


def _clause(text: str) -> Clause:
    found = _CLAUSE.fullmatch(text)
    if found is None:
        raise ConfigError(f"gate: clause {text!r}: {_EXPECTED}; figures: {', '.join(FIGURES)}")
    figure, is_paired = found["figure"], found["number"] is None
    if figure not in FIGURES:
        raise ConfigError(f"gate: clause {text!r}: unknown figure {figure!r}; known: {', '.join(FIGURES)}")
    bound = float((found["margin"] or found["number"] or "0").replace(" ", ""))
    if not math.isfinite(bound):
        raise ConfigError(f"gate: clause {text!r}: {bound} is not a number to compare with")
    if figure not in _NOT_SHARES and not (-1 < bound < 1 if is_paired else 0 <= bound <= 1):
        expected = "a margin below 1, such as 0.02" if is_paired else "a number within them"
        raise ConfigError(f"gate: clause {text!r}: {figure} lies within 0 and 1; expected {expected}")
    return Clause(text=text, figure=figure, is_at_least=found["sign"] == ">=", is_paired=is_paired, bound=bound)


def _ruling(clause: Clause, challenger: Resampled, champion: Resampled | None) -> Ruling:
    """Return the ruling on a clause; champion: None where the clause does not ask for one, or there is none."""
    own, other = _defined(challenger.point), None if champion is None else _defined(champion.point)
    told, difference, judged_R = f"{WORDS[clause.figure]} {_number(clause, own)}", None, challenger.values_R
    if champion is not None:
        judged_R = judged_R - champion.values_R
        difference = None if own is None or other is None else own - other
        told += f", champion {_number(clause, other)}, difference {_number(clause, difference, sign='+')}"
    ci = percentile_interval(judged_R)
    if clause.is_paired and champion is None:
        ci, passed, why = None, True, "there is no champion to compare with"
    elif ci is None or (own if champion is None else difference) is None:
        ci, passed, why = None, False, "it does not exist on these examples"
    else:
        passed, why = _judged(clause, ci)
    return Ruling(
        text=clause.text,
        bound=clause.bound,
        challenger=own,
        champion=other,
        difference=difference,
        ci=ci,
        passed=passed,
        reason=f"{told}: {why}",
    )


def _judged(clause: Clause, ci: Interval) -> tuple[bool, str]:
    """Return whether the worse end of the interval holds the clause, and that in words."""
    end, worse = ("lower", ci[0]) if clause.is_at_least else ("upper", ci[1])
    passed = worse >= clause.bound if clause.is_at_least else worse <= clause.bound
    beside = ("at least" if passed else "below") if clause.is_at_least else ("at most" if passed else "above")
    sign = "+" if clause.is_paired else ""
    low, high = (_number(clause, value, sign=sign) for value in ci)
    return passed, f"the {end} end of [{low}, {high}] is {beside} {clause.bound:{sign}g}"


def _number(clause: Clause, value: float | None, *, sign: str = "") -> str:
    if value is None:
        return "none"
    return f"{value:{sign},.2f}" if clause.figure == "money_saved" else f"{value:{sign}.4f}"


def _defined(value: float) -> float | None:
    return None if math.isnan(value) else value
