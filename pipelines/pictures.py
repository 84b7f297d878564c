"""The pictures of a comparison: precision and recall, calibration, paired differences, each as SVG and PNG.

Each scorer has a colour, a line style and a marker of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from fraud.comparison import Comparison
from fraud.curves import precision_recall, reliability
from fraud.metrics import Examples
from pipelines.drawing import COLOURS, Picture, edge, picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (1, 1)))
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_SIZE = (6.4, 4.4)
_MOST_POINTS = 400


def pictures(comparison: Comparison, examples: Mapping[str, Sequence[Examples]]) -> list[Picture]:
    """Return the pictures that these data give; without a test fraud there is none. Curves are of the first seed."""
    first = {name: of_scorer[0] for name, of_scorer in examples.items()}
    drawn = curves(first)
    if comparison.paired:
        height = 1.4 + 0.42 * len(comparison.paired)
        drawn.append(
            picture(
                "differences",
                "Paired differences",
                "Average precision of the first scorer minus that of the second, on the same resamples of users: an "
                "interval that holds 0 shows no difference.",
                (_SIZE[0], height),
                lambda axes: _draw_differences(axes, comparison),
            )
        )
    if comparison.ablation and any(any(one.without.values()) for one in comparison.ablation.values()):
        height = 1.4 + 0.42 * sum(len(one.without) for one in comparison.ablation.values())
        drawn.append(
            picture(
                "ablation",
                "What order and time are worth",
                "Average precision lost when the scorer is fitted again on histories without their order, without "
                "their times. An interval that holds 0 shows no loss.",
                (_SIZE[0], height),
                lambda axes: _draw_worth(axes, comparison),
            )
        )
    return drawn


def curves(examples: Mapping[str, Examples]) -> list[Picture]:
    """Return precision and recall, and calibration, of scorers on the same examples; nothing without a fraud."""
    if not any(one.label_N.any() for one in examples.values()):
        return []
    return [
        picture(
            "precision_recall",
            "Precision and recall",
            "Going down the ranking: of the alerts so far, how many are fraud (up), and how many of the frauds are "
            "among them (right). Higher is better.",
            _SIZE,
            lambda axes: _draw_precision_recall(axes, examples),
        ),
        picture(
            "calibration",
            "Calibration",
            "Test examples in 15 groups of equal size by score: where the score says 1%, is 1% fraud? On the "
            "diagonal it is; below it, the score is too high.",
            _SIZE,
            lambda axes: _draw_reliability(axes, examples),
        ),
    ]


def _draw_precision_recall(axes: Axes, examples: Mapping[str, Examples]) -> None:
    for place, (name, one) in enumerate(examples.items()):
        curve = precision_recall(one)
        if curve is None:
            continue
        chosen = _thinned(len(curve.x_P))
        colour, dashes, _ = _style(place)
        # The first precisions are those of one or two alerts: they jump between 0 and 1 and say nothing.
        shown = chosen[curve.x_P[chosen] * one.label_N.sum() >= min(3, one.label_N.sum())]
        axes.plot(curve.x_P[shown], curve.y_P[shown], color=colour, linestyle=dashes, linewidth=1.9, label=name)
    rate = next(iter(examples.values())).label_N.mean()
    axes.axhline(rate, color=edge(axes), linewidth=0.9, alpha=0.6, label=f"chance: {rate:.2%}")
    axes.set(xlabel="recall: share of the frauds found", ylabel="precision: share of alerts that are fraud")
    axes.set(xlim=(0, 1.005), ylim=(0, 1.02))
    axes.legend(handlelength=3.2)


def _draw_reliability(axes: Axes, examples: Mapping[str, Examples]) -> None:
    curves = {name: reliability(one) for name, one in examples.items()}
    known = [curve for curve in curves.values() if curve is not None]
    lowest = min(float(min(curve.x_P.min(), _positive_min(curve.y_P))) for curve in known)
    floor = max(lowest / 2, 1e-6)
    axes.plot([floor, 1], [floor, 1], color=edge(axes), linewidth=0.9, alpha=0.6)
    for place, (name, curve) in enumerate(curves.items()):
        if curve is None:
            continue
        colour, dashes, marker = _style(place)
        is_some_P = curve.y_P > 0
        x_P, y_P = curve.x_P, np.where(is_some_P, curve.y_P, floor)
        axes.plot(x_P[is_some_P], y_P[is_some_P], color=colour, linestyle=dashes, linewidth=1.1, alpha=0.7)
        axes.plot(x_P[is_some_P], y_P[is_some_P], marker, color=colour, markersize=6, label=name)
        axes.plot(x_P[~is_some_P], y_P[~is_some_P], marker, color=colour, markersize=5, fillstyle="none", alpha=0.8)
    axes.plot([], [], "o", color=edge(axes), markersize=5, fillstyle="none", label="no fraud in the group")
    axes.set(xscale="log", yscale="log", xlim=(floor / 1.5, 1.4), ylim=(floor / 1.5, 1.4))
    axes.minorticks_off()  # two thirds of the time of drawing
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda share, _: f"{100 * share:g} %")
    axes.set(xlabel="mean score of the group", ylabel="share of the group that is fraud")
    axes.legend(handlelength=1.6)


def _draw_differences(axes: Axes, comparison: Comparison) -> None:
    rows = [(f"{a} – {b}", one.diff, one.ci) for (a, b), one in comparison.paired.items()]
    _draw_intervals(axes, rows)
    axes.set_xlabel("difference in average precision (95 % interval by user)")


def _draw_worth(axes: Axes, comparison: Comparison) -> None:
    rows = [
        (f"{what} to {name}", one[1].diff, one[1].ci)
        for name, worth in (comparison.ablation or {}).items()
        for what, one in worth.without.items()
        if one is not None
    ]
    _draw_intervals(axes, rows)
    axes.set_xlabel("average precision lost without it (95 % interval by user)")


def _draw_intervals(axes: Axes, rows: Sequence[tuple[str, float, tuple[float, float]]]) -> None:
    """Draw one interval a row: clear of 0 in colour with a full marker, else grey with a hollow one."""
    axes.axvline(0, color=edge(axes), linewidth=0.9, alpha=0.6)
    for place, (_, diff, (low, high)) in enumerate(rows):
        is_clear = low > 0 or high < 0
        colour = COLOURS[0] if is_clear else COLOURS[6]
        axes.plot([low, high], [place, place], color=colour, linewidth=2.2, solid_capstyle="butt")
        axes.plot(diff, place, "o", color=colour, markersize=6.5, fillstyle="full" if is_clear else "none")
        axes.annotate(
            f"{diff:+.3f}".replace("-", "−"),
            (diff, place),
            (0, 6),
            textcoords="offset points",
            ha="center",
            fontsize=8.5,
        )
    axes.set_yticks(range(len(rows)), [row[0] for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.7)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.margins(x=0.08)


def _style(place: int) -> tuple[str, str | tuple[int, tuple[int, ...]], str]:
    return COLOURS[place % len(COLOURS)], _DASHES[place % len(_DASHES)], _MARKERS[place % len(_MARKERS)]


def _thinned(n: int) -> np.ndarray:
    """Return at most some hundred places of n, denser at the start, where few alerts move precision most."""
    if n <= _MOST_POINTS:
        return np.arange(n)
    return np.unique(np.geomspace(1, n, _MOST_POINTS).astype(np.int64) - 1)


def _positive_min(values: np.ndarray) -> float:
    positive = values[values > 0]
    return float(positive.min()) if len(positive) else 1.0
