"""The pictures of a diff: score against score, where decisions change, and after which order of events.

Orange and a triangle that points up: B is stricter. Blue and one that points down: B is milder.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fraud.bundle import Bundle
from fraud.events import FloatArray
from fraud.segments import Order, Segment
from pipelines.diff.report import Diff, times
from pipelines.diff.side_by_side import SideBySide
from pipelines.drawing import BLUE, GREEN, GREY, ORANGE, Picture, edge, picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_POINTS = 1_500  # changes drawn one by one; more, and the page is slow to open
_MOST_BARS = 12
_LOWEST = 1e-5  # scores below are drawn there
_TICKS = (1e-5, 1e-4, 1e-3, 1e-2, 0.1, 0.5, 0.9, 0.99)


def diff_pictures(diff: Diff, found: SideBySide, a: Bundle, b: Bundle) -> list[Picture]:
    """Return the pictures that there is something to draw for."""
    drawn = [
        picture(
            "scores",
            "Score under A and under B",
            "Each decision by its two scores; grey where many lie. Dashed: from here on A (upright) or B (level) "
            "reviews, dotted: blocks. Coloured are the decisions that change, full where a fraud is known.",
            (6.4, 5.6),
            lambda axes: _draw_scores(axes, found, a, b),
        )
    ]
    if bars := _worth_a_bar(diff):
        drawn.append(
            picture(
                "segments",
                "Where decisions change",
                "Share of the decisions of a segment that change; the segments in which clearly more changes than "
                "elsewhere, and how many times the average that is. The line is the average.",
                (6.4, 1.5 + 0.36 * len(bars)),
                lambda axes: _draw_segments(axes, bars, diff),
            )
        )
    if diff.orders:
        orders = diff.orders[: _MOST_BARS // 2]
        drawn.append(
            picture(
                "orders",
                "The same events before, in another order",
                "Decisions with both events among those before: the share that changes, by which of the two came last.",
                (6.4, 1.3 + 0.62 * len(orders)),
                lambda axes: _draw_orders(axes, orders),
            )
        )
    return drawn


def _worth_a_bar(diff: Diff) -> list[Segment]:
    """Return the clearest segments, at most some of each field: ten bars of one field would hide the others."""
    kept: list[Segment] = []
    for segment in diff.telling_segments:
        if sum(one.field == segment.field for one in kept) < _MOST_BARS // 3 and len(kept) < _MOST_BARS:
            kept.append(segment)
    return sorted(kept, key=lambda segment: -segment.share)


def _draw_scores(axes: Axes, found: SideBySide, a: Bundle, b: Bundle) -> None:
    sides, known = found.sides, found.known
    x_D, y_D = _log_odds(sides.a.score_D), _log_odds(sides.b.score_D)
    axes.hexbin(x_D, y_D, gridsize=55, bins="log", cmap=_fading(edge(axes)), mincnt=1, linewidths=0)
    low, high = (float(end(np.append(x_D, y_D))) for end in (np.min, np.max))
    axes.plot([low, high], [low, high], color=edge(axes), linewidth=0.8, alpha=0.6)
    for policy, line in ((a.scorer.policy, axes.axvline), (b.scorer.policy, axes.axhline)):
        for at, dashes in ((policy.review_at, "--"), (policy.block_at, ":")):
            if at < 1:
                line(_log_odds(np.array([at]))[0], color=edge(axes), linewidth=1.1, linestyle=dashes)
    change_D = sides.change_D
    is_fraud_D = np.zeros(len(change_D), dtype=np.bool_) if known is None else known.label_D == 1
    for name, chosen_D, colour, marker in (
        ("B stricter", change_D > 0, ORANGE, "^"),
        ("B milder", change_D < 0, BLUE, "v"),
    ):
        for fill, kept_D in (("none", chosen_D & ~is_fraud_D), ("full", chosen_D & is_fraud_D)):
            rows = _some(np.flatnonzero(kept_D))
            axes.plot(x_D[rows], y_D[rows], marker, color=colour, markersize=5.5, fillstyle=fill, alpha=0.9)
        axes.plot([], [], marker, color=colour, markersize=6, label=f"{name} ({int(chosen_D.sum()):,})")
    ticks = [tick for tick in _TICKS if low - 0.5 <= float(_log_odds(np.array([tick]))[0]) <= high + 0.5]
    at, names = _log_odds(np.array(ticks)).tolist(), [f"{100 * tick:g} %" for tick in ticks]
    axes.set_xticks(at, names)
    axes.set_yticks(at, names)
    axes.set(xlabel=f"score under A ({a.manifest.name})", ylabel=f"score under B ({b.manifest.name})")
    axes.legend(loc="upper left", handletextpad=0.2)


def _draw_segments(axes: Axes, bars: Sequence[Segment], diff: Diff) -> None:
    places = np.arange(len(bars))
    stricter = np.array([100 * one.stricter / one.n for one in bars])
    milder = np.array([100 * one.milder / one.n for one in bars])
    axes.barh(places, stricter, height=0.62, color=ORANGE, label="B stricter")
    axes.barh(places, milder, left=stricter, height=0.62, color=BLUE, label="B milder")
    for place, one in zip(places, bars, strict=True):
        axes.annotate(
            f"{one.share:.1%}, {times(one.ratio)}",
            (100 * one.share, place),
            (4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
        )
    axes.axvline(100 * diff.n_changed / diff.n, color=edge(axes), linewidth=1.1, linestyle="--")
    _name_rows(axes, [_short(f"{one.field}: {one.name}") for one in bars])
    axes.set_xlim(0, 1.22 * float((stricter + milder).max()))
    axes.set_xlabel("decisions that change, %")
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderpad=0)


def _draw_orders(axes: Axes, orders: Sequence[Order]) -> None:
    names: list[str] = []
    for pair, one in enumerate(orders):
        rows = (
            (f"{one.first}, then {one.then}", one.share, one.changed, one.n, GREEN),
            (f"{one.then}, then {one.first}", one.share_other, one.changed_other, one.n_other, GREY),
        )
        for line, (name, share, changed, n, colour) in enumerate(rows):
            place = 2.4 * pair + line
            axes.barh(place, 100 * share, height=0.8, color=colour)
            text = f"{share:.1%} ({changed:,} of {n:,})"
            axes.annotate(text, (100 * share, place), (4, 0), textcoords="offset points", va="center", fontsize=8.5)
            names.append(_short(name))
    _name_rows(axes, names, [2.4 * (n // 2) + n % 2 for n in range(len(names))])
    axes.set_xlim(0, 1.4 * 100 * max(one.share for one in orders))
    axes.set_xlabel("decisions that change, %")


def _name_rows(axes: Axes, names: Sequence[str], places: Sequence[float] | None = None) -> None:
    axes.set_yticks(list(range(len(names))) if places is None else list(places), names)
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def _fading(ink: Any) -> Any:  # Any: a colour, and a map of colours, as matplotlib has them
    """Return the ink of a page from faint to dense, so that a cell reads on light paper and on dark."""
    from matplotlib.colors import LinearSegmentedColormap, to_rgb

    return LinearSegmentedColormap.from_list("ink", [(*to_rgb(ink), 0.1), (*to_rgb(ink), 0.7)])


def _log_odds(score: FloatArray) -> FloatArray:
    kept = np.clip(score, _LOWEST, 1 - _LOWEST)
    return np.log(kept) - np.log1p(-kept)


def _some(rows: np.ndarray) -> np.ndarray:
    """Return at most so many rows, evenly taken: the same diff gives the same picture."""
    return rows[:: max(1, -(-len(rows) // _MOST_POINTS))]


def _short(text: str, length: int = 44) -> str:
    """Return a text that leaves room for bars; a dollar sign would begin a formula."""
    return (text if len(text) <= length else text[: length - 1] + "…").replace("$", r"\$")
