"""A backtest as one page: the verdict, the rules side by side, what was found over time, and what was done when."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.backtest.rules import SPOKEN
from pipelines.backtest.steps import WAITED
from pipelines.backtest.words import base_rule, difference, money, spoken_step
from pipelines.console import interval
from pipelines.drawing import Picture
from pipelines.pages import figures, listed, page, table, terms

Json = Mapping[str, Any]  # Any: JSON
_FIGURES = (
    ("recall at the budget", "recall_at_budget"),
    ("precision at the budget", "precision_at_budget"),
    ("recall, as decided", "recall"),
    ("precision, as decided", "precision"),
    ("share alerted", "alert_rate"),
    ("AP", "ap"),
    ("money saved", "money_saved"),
    ("money lost", "money_lost"),
)
_MONEY = ("money_saved", "money_lost")
_STYLE = ".pictures { grid-template-columns: 1fr; }"  # time runs from left to right: the wider the better
_TERMS = (
    (
        "as lived",
        "each step was decided by a champion that was made and judged from what was known at its start: no event that "
        "came later, no label that was reported later. How good it was is told by the labels as they stand now.",
    ),
    (
        "at the budget",
        "the best scores of each step, as many as the alert budget allows: how well the champion ranks, whatever its "
        "threshold.",
    ),
    (
        "as decided",
        "what the champion's own policy alerted at the time: its threshold, with lists and rules. A threshold that was "
        "set months ago may alert more, or less, than the budget.",
    ),
    (
        "money saved, lost",
        "the amounts of frauds alerted as decided, taken as saved whole, minus what the alerts cost to look at "
        "(policy.costs); and the amounts of those that were not alerted.",
    ),
    ("promoted, refused", "what the gate said of the challenger: the words of `fraud retrain` at that time."),
    ("intervals", "95 %, from drawing whole users again and again: what other users of this bank could have shown."),
)


def backtest_page(document: Json, drawn: Sequence[Picture]) -> str:
    """Return the page of the document that `fraud backtest --json` prints."""
    lead = (
        f"{document['from'][:10]} to {document['to'][:10]}, every {document['every']}: {document['n_frauds']:,} frauds "
        f"among {document['n_examples']:,} decisions; model {document['model']}, alert budget "
        f"{document['alert_budget']:.2%}."
    )
    return page(
        "Retraining by rule, as it would have been lived",
        lead,
        [
            listed("Verdict", document["verdict"]),
            listed("Limits", document["limits"]),
            figures(drawn),
            "<h2>In all</h2>" + _totals(document),
            _paired(document),
            _steps(document),
            _done(document),
            listed("The gate", [f"A challenger is promoted if {document['gate']}, and its bundle's checks hold."]),
            "<h2>How to read it</h2>" + terms(_TERMS),
        ],
        style=_STYLE,
    )


def _totals(document: Json) -> str:
    rules = document["rules"]
    rows = [
        [
            "promoted / judged",
            *(f"{one['n_promoted']} / {one['n_promoted'] + one['n_refused']}" for one in rules.values()),
        ],
        ["steps with an alarm", *(f"{one['n_alarms']}" for one in rules.values())],
    ]
    for title, name in _FIGURES:
        spoken = money if name in _MONEY else interval
        rows.append([title, *(spoken(one[name], one[f"{name}_ci"]) for one in rules.values())])
    return table(["", *(SPOKEN[rule] for rule in rules)], rows)


def _paired(document: Json) -> str:
    """Return a row for each figure: the difference of each rule that ever had another champion."""
    base = base_rule(list(document["rules"]))
    found = {rule: {name: difference(document, rule, base, name) for _, name in _FIGURES} for rule in document["rules"]}
    told = [rule for rule, of_rule in found.items() if any(one is not None and any(one) for one in of_rule.values())]
    if not told:
        return ""
    rows = [[title, *(_difference(found[rule][name], name) for rule in told)] for title, name in _FIGURES]
    return f"<h2>Difference to {SPOKEN[base]}</h2>" + table(["", *(SPOKEN[rule] for rule in told)], rows)


def _difference(found: tuple[float, float, float] | None, figure: str) -> str:
    if found is None:
        return "–"
    form = "+,.0f" if figure in _MONEY else "+.3f"
    diff, low, high = (f"{value:{form}}" for value in found)
    return f"{diff} [{low}, {high}]"


def _steps(document: Json) -> str:
    """Return a row for each step: what there was to find, and what each rule found of it."""
    rows = [
        [
            spoken_step(step) + ("" if step["is_settled"] else " *"),
            f"{step['n_examples']:,}",
            f"{step['n_frauds']:,}",
            *(f"{_share(one['recall_at_budget'])} ({_share(one['alert_rate'])})" for one in step["rules"].values()),
        ]
        for step in document["steps"]
    ]
    words = "<p>Frauds found within the alert budget and, in brackets, the share of the decisions that was alerted.</p>"
    return "<h2>Step by step</h2>" + words + table(["from", "decisions", "frauds", *document["rules"]], rows)


def _done(document: Json) -> str:
    """Return what was done at each step in which something was due, once for the rules that did the same."""
    done: dict[str, list[str]] = {}
    for step in document["steps"]:
        for rule, one in step["rules"].items():
            if one["verdict"] != WAITED:
                heard = [f"the monitor said: {alarm}" for alarm in one["alarms"]]
                words = f"{one['verdict']}; {'; '.join([one['text'], *heard])}"
                done.setdefault(f"{spoken_step(step)}, {{}}: {words}", []).append(rule)
    return listed("What was done", [words.replace("{}", ", ".join(rules), 1) for words, rules in done.items()])


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"
