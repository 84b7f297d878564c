"""The pictures of a backtest: what each rule found over time with what was done when, and the money saved so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from fraud.instants import DAY_US, instant_us
from pipelines.backtest.rules import ALARM, MONTHLY, NEVER, SPOKEN, WEEKLY
from pipelines.backtest.steps import PROMOTED, REFUSED
from pipelines.drawing import BLUE, GREEN, GREY, ORANGE, PINK, Picture, edge, picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Json = Mapping[str, Any]  # Any: JSON
# Colour, dashes and width; rules with one champion lie on one another, so each is thinner than the one below it.
_STYLES = {
    NEVER: (GREY, "-", 5.0),
    WEEKLY: (BLUE, "-", 2.8),
    MONTHLY: (GREEN, "--", 1.9),
    ALARM: (ORANGE, ":", 1.5),
}
_LANE = 0.085  # of the height of the curves


def backtest_pictures(document: Json) -> list[Picture]:
    """Return the pictures that there is something to draw for."""
    if not document["n_frauds"]:
        return []
    n_lanes = len(_acting(document))
    drawn = [
        picture(
            "recall",
            "Frauds found within the alert budget, step by step",
            "Below the curves, what each rule did: a triangle is a promotion, a cross a refusal by the gate, a bar an "
            "alarm of the monitor. Grey: the labels are not all in yet.",
            (9.6, 4.2 + 0.25 * n_lanes),
            lambda axes: _draw_recall(axes, document),
        )
    ]
    if any(step["rules"][rule]["money_saved"] for step in document["steps"] for rule in document["rules"]):
        drawn.append(
            picture(
                "money",
                "Money saved so far",
                "The amounts of the frauds that were alerted as decided at the time, minus what the alerts cost to "
                "look at; thin: had every fraud been alerted, for nothing.",
                (9.6, 4.0),
                lambda axes: _draw_money(axes, document),
            )
        )
    return drawn


def _draw_recall(axes: Axes, document: Json) -> None:
    steps = document["steps"]
    found = {rule: [step["rules"][rule]["recall_at_budget"] for step in steps] for rule in document["rules"]}
    top = min(1.0, 1.15 * max(share for shares in found.values() for share in shares if share is not None))
    top = top if top > 0 else 1.0
    for rule, shares in found.items():
        colour, dashes, width = _STYLES[rule]
        told = [(when, share) for when, share in zip(_middles(steps), shares, strict=True) if share is not None]
        axes.plot(*zip(*told, strict=True), color=colour, linestyle=dashes, linewidth=width, label=SPOKEN[rule])
    lanes = _acting(document)
    for place, rule in enumerate(lanes):
        _draw_lane(axes, steps, rule, -(place + 1) * _LANE * top)
    _shade_open_steps(axes, steps)
    shares = [share / 100 for share in range(0, 101, _tick_step(top)) if share / 100 <= top * 1.001]
    ticks = [-(place + 1) * _LANE * top for place in range(len(lanes))]
    axes.set_yticks([*shares, *ticks], [*(f"{share:.0%}" for share in shares), *lanes])
    axes.axhline(0, color=edge(axes), linewidth=0.7, alpha=0.5)
    axes.set_ylim(-(len(lanes) + 0.6) * _LANE * top, 1.02 * top)
    axes.set_ylabel("share of the step's frauds found", y=0.6)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.12), ncols=len(found), handlelength=3.2)
    _date_axis(axes, steps)


def _draw_lane(axes: Axes, steps: Sequence[Json], rule: str, y: float) -> None:
    colour = _STYLES[rule][0]
    for step in steps[1:]:
        turn, when = step["rules"][rule], _day(step["at"])
        if turn["alarms"]:
            axes.plot(when, y, "|", color=PINK, markersize=13, markeredgewidth=2.2)
        if turn["verdict"] == PROMOTED:
            axes.plot(when, y, "^", color=colour, markersize=7)
        if turn["verdict"] == REFUSED:
            axes.plot(when, y, "x", color=colour, markersize=6, markeredgewidth=1.6)


def _draw_money(axes: Axes, document: Json) -> None:
    steps = document["steps"]
    ends = [_day(steps[0]["at"]), *(_day(step["until"]) for step in steps)]
    for rule in document["rules"]:
        colour, dashes, width = _STYLES[rule]
        saved = [step["rules"][rule]["money_saved"] or 0.0 for step in steps]
        so_far = list(accumulate(saved, initial=0.0))
        axes.plot(ends, so_far, color=colour, linestyle=dashes, linewidth=width, label=SPOKEN[rule])
    any_rule = next(iter(document["rules"]))
    there = [step["rules"][any_rule]["fraud_amount"] or 0.0 for step in steps]
    axes.plot(
        ends, list(accumulate(there, initial=0.0)), color=edge(axes), linewidth=0.8, alpha=0.7, label="all there was"
    )
    _shade_open_steps(axes, steps)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_ylabel("saved since the start")
    axes.legend(handlelength=3.2)
    _date_axis(axes, steps)


def _acting(document: Json) -> list[str]:
    """Return the rules that did or heard anything after the start."""
    return [
        rule
        for rule in document["rules"]
        if any(
            step["rules"][rule]["alarms"] or step["rules"][rule]["verdict"] in (PROMOTED, REFUSED)
            for step in document["steps"][1:]
        )
    ]


def _shade_open_steps(axes: Axes, steps: Sequence[Json]) -> None:
    first = next((step for step in steps if not step["is_settled"]), None)
    if first is not None:
        axes.axvspan(_day(first["at"]), _day(steps[-1]["until"]), color=GREY, alpha=0.18, linewidth=0)


def _date_axis(axes: Axes, steps: Sequence[Json]) -> None:
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    locator = AutoDateLocator(minticks=4, maxticks=9)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    axes.set_xlim(_day(steps[0]["at"]), _day(steps[-1]["until"]))


def _middles(steps: Sequence[Json]) -> list[float]:
    return [(_day(step["at"]) + _day(step["until"])) / 2 for step in steps]


def _day(text: str) -> float:
    """Return a time as matplotlib counts it: days since 1970."""
    return instant_us("at", text) / DAY_US


def _tick_step(top: float) -> int:
    return 25 if top > 0.6 else 10 if top > 0.25 else 5
