"""The picture of the gate: the share promoted against how much better the challenger truly is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pipelines.drawing import BLUE, GREY, ORANGE

_COLOURS, _DASHES, _MARKERS = (BLUE, ORANGE), ("-", "--"), ("o", "s")


class Curve(NamedTuple):
    """The power on paper against the true difference of AP, for one kind of challenger and number of frauds."""

    kind: str
    positives: int
    true_ap: Sequence[float]
    power: Sequence[float]


def draw(document: Mapping[str, Any], curves: Sequence[Curve], path: Path) -> None:
    """Write a PNG, one panel a kind: what was counted as points with their 95 % interval, the curves on paper."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    kinds = list(dict.fromkeys(curve.kind for curve in curves))
    counts = sorted({curve.positives for curve in curves})
    margin = document["margin"]
    with mpl.rc_context({"font.size": 10.5, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(10.4, 4.4), layout="constrained")
        for axes, kind in zip(figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0], kinds, strict=True):
            axes.axvspan(-2.3 * margin, -margin, color=GREY, alpha=0.15, linewidth=0)
            axes.axhline(0.8, color=GREY, linewidth=0.9, linestyle=":")
            axes.text(-2.25 * margin, 0.83, "goal for twice the margin", color=GREY, fontsize=9)
            axes.text(-2.25 * margin, 0.5, "worse by more\nthan the margin", color="#555555", fontsize=9)
            for place, positives in enumerate(counts):
                for curve in curves:
                    if (curve.kind, curve.positives) == (kind, positives):
                        axes.plot(curve.true_ap, curve.power, _DASHES[place], color=_COLOURS[place], linewidth=1.6)
                cells = [one for one in document["cells"] if (one["kind"], one["positives"]) == (kind, positives)]
                shift = (place - 0.5) * 0.06 * margin  # so that the two intervals at one place do not lie on each other
                share = [one["promoted"] / one["pairs"] for one in cells]
                around = [
                    [abs(p - one["promoted_ci"][end]) for p, one in zip(share, cells, strict=True)] for end in (0, 1)
                ]
                axes.errorbar(
                    [one["true_difference"]["ap"] + shift for one in cells],
                    share,
                    yerr=around,
                    fmt=_MARKERS[place],
                    linestyle="none",
                    color=_COLOURS[place],
                    capsize=3,
                    label=f"{positives:,} frauds",
                )
            axes.set(title=f"Challenger: {kind}", xlabel="true average precision, challenger - champion")
            axes.set(xlim=(-2.3 * margin, 2.3 * margin), ylim=(-0.02, 1.03))
        first = figure.axes[0]
        first.set_ylabel("share promoted")
        first.legend(frameon=False, loc="lower right")
        figure.suptitle(f"{document['gate']}   (points: counted; lines: on paper)", fontsize=10.5)
        figure.savefig(path, dpi=140, facecolor="white", metadata={"Software": None})
