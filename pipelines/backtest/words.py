"""What a backtest came to, in sentences, and what they do not hold for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fraud.instants import DAY_US, instant_us
from pipelines.backtest.rules import ALARM, NEVER, SPOKEN

Json = Mapping[str, Any]  # Any: JSON
_FEW_FRAUDS = 30  # in all: below, intervals are wider than any rule's worth


def verdict(document: Json) -> list[str]:
    """Return what each rule found beside the first of them (never, where it is one), one sentence a rule."""
    if not document["n_frauds"]:
        return ["No fraud is known of these steps: there is nothing to find."]
    base = base_rule(list(document["rules"]))
    found = f"{document['rules'][base]['recall_at_budget']:.1%} of the frauds within the alert budget"
    lines = [f"{SPOKEN[base].capitalize()} finds {found}."]
    for rule, one in document["rules"].items():
        if rule == base:
            continue
        line = f"{SPOKEN[rule].capitalize()} finds {one['recall_at_budget']:.1%}"
        if all(step["rules"][rule]["champion"] == step["rules"][base]["champion"] for step in document["steps"]):
            lines.append(
                f"{line}: {'it never had another champion' if base == NEVER else 'it had the same champions'}."
            )
            continue
        line += _told(difference(document, rule, base, "recall_at_budget"), ", {} points", 100, ".1f")
        line += _told(difference(document, rule, base, "money_saved"), "; as decided it saves {}", 1, ",.0f")
        lines.append(f"{line}.")
    return lines


def limits(document: Json) -> list[str]:
    """Return what a reader must know beside the figures."""
    lines: list[str] = []
    open_steps = [step for step in document["steps"] if not step["is_settled"]]
    if open_steps:
        lines.append(
            f"Labels are still to come for {len(open_steps)} of {len(document['steps'])} steps, from "
            f"{spoken_step(open_steps[0])} on: frauds that nobody has reported yet count as honest."
        )
    if document["n_frauds"] < _FEW_FRAUDS:
        lines.append(f"Only {document['n_frauds']} frauds in all: no rule can be told from another.")
    held = {rule for step in document["steps"] for rule, one in step["rules"].items() if _is_held(one)}
    if held:
        lines.append(
            f"A source of labels was held back, and nobody was there to accept it: {', '.join(sorted(held))} went on "
            "with an old champion for some steps."
        )
    unwatched = [step for step in document["steps"] if _unwatched(step)]
    if unwatched:
        lines.append(
            f"The rule {ALARM} could not watch its champion before {len(unwatched)} of {len(document['steps'])} steps, "
            f"which counts as no alarm; first before {spoken_step(unwatched[0])}: {_unwatched(unwatched[0])}."
        )
    gaps = [spoken_step(step) for step in document["steps"] if not step["n_examples"]]
    if gaps:
        lines.append(f"{len(gaps)} steps hold no decision, the first from {gaps[0]}.")
    return lines


def base_rule(rules: Sequence[str]) -> str:
    """Return the rule that the others are held against."""
    return NEVER if NEVER in rules else rules[0]


def difference(document: Json, a: str, b: str, figure: str) -> tuple[float, float, float] | None:
    """Return a figure of rule a minus that of rule b, and its interval; None where there is none, or a is b."""
    for one, other, sign in ((a, b, 1.0), (b, a, -1.0)):
        found = document["paired"].get(f"{one}|{other}", {}).get(figure)
        if found is not None and found["ci"] is not None:
            low, high = sorted(sign * end + 0.0 for end in found["ci"])  # + 0: no -0
            return sign * found["diff"] + 0.0, low, high
    return None


def money(value: float | None, bounds: Sequence[float] | None) -> str:
    """Return "12,300 [11,200, 13,400]", or a dash where there is none."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if bounds is None else f"{value:,.0f} [{bounds[0]:,.0f}, {bounds[1]:,.0f}]"


def spoken_step(step: Json) -> str:
    """Return when a step begins, as a person says it: the day, with the time where it is not midnight."""
    is_midnight = instant_us("at", step["at"]) % DAY_US == 0
    return step["at"][:10] if is_midnight else step["at"][:16].replace("T", " ")


def _told(found: tuple[float, float, float] | None, words: str, scale: float, form: str) -> str:
    """Return a difference in words, as ", 2.5 points more [-0.6, +6.0], which may be chance"; nothing without one."""
    if found is None:
        return ""
    diff, low, high = (scale * value for value in found)
    told = f"{words.format(f'{abs(diff):{form}}')} {'more' if diff >= 0 else 'less'} [{low:+{form}}, {high:+{form}}]"
    return told if low > 0 or high < 0 else f"{told}, which may be chance"


def _is_held(turn: Json) -> bool:
    return turn["reason"] == "labels_held_back"


def _unwatched(step: Json) -> str | None:
    """Return why the rule "alarm" heard nothing before a step, where it could not."""
    return step["rules"][ALARM]["unwatched"] if ALARM in step["rules"] else None
