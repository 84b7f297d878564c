"""The picture of a search: AP trial by trial, and against each setting that was varied.

Colours are those of Okabe & Ito (2008), which a colour-blind person tells apart; the winner also has its own marker.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipelines.search_space import Choice, Space
from pipelines.trials import Done, best_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_TRIAL, _BEST, _STEP = "#0072B2", "#D55E00", "#7F7F7F"
_COLUMNS = 3
_PANEL = (3.3, 2.7)


def tuning_picture(trials: Sequence[Done], best: Done, space: Space) -> bytes:
    """Return a PNG of the whole trials; the same trials give the same bytes."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    rows = math.ceil((1 + len(space)) / _COLUMNS)
    file = io.BytesIO()
    style: dict[Any, Any] = {
        "font.size": 9.5,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=(_PANEL[0] * _COLUMNS, _PANEL[1] * rows), layout="constrained")
        grid = figure.subplots(rows, _COLUMNS, sharey=True, squeeze=False).flatten().tolist()
        _draw_history(grid[0], trials, best)
        for axes, setting in zip(grid[1:], space, strict=False):
            _draw_setting(axes, trials, best, setting, space)
        for axes in grid[1 + len(space) :]:
            axes.set_visible(False)
        for axes in grid:
            axes.margins(x=0.08, y=0.1)
        for axes in grid[::_COLUMNS]:
            axes.set_ylabel("AP (half that chooses)")
        figure.savefig(file, format="png", dpi=140, facecolor="white", metadata={"Software": None})
    return file.getvalue()


def _draw_history(axes: Axes, trials: Sequence[Done], best: Done) -> None:
    whole = _whole(trials)
    steps = [best_of(trials[:n]).ap or 0.0 for n in range(1, len(trials) + 1)]
    axes.step(range(1, len(trials) + 1), steps, where="post", color=_STEP, linewidth=1.4, label="best so far")
    axes.plot(
        [one.number for one in whole], [one.ap or 0.0 for one in whole], "o", color=_TRIAL, markersize=5, label="trial"
    )
    axes.plot(best.number, best.ap or 0.0, "*", color=_BEST, markersize=13, label="the winner")
    axes.set(xlabel="trial (1: your own settings)")
    axes.set_xlim(0.5, len(trials) + 0.5)
    axes.legend(fontsize=8, loc="best")


def _draw_setting(axes: Axes, trials: Sequence[Done], best: Done, setting: str, space: Space) -> None:
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

    whole = _whole(trials)
    values = [one.settings[setting] for one in whole]
    axes.plot(values, [one.ap or 0.0 for one in whole], "o", color=_TRIAL, markersize=5)
    axes.plot(best.settings[setting], best.ap or 0.0, "*", color=_BEST, markersize=13)
    axes.set_xlabel(setting)
    one = space[setting]
    if isinstance(one, Choice):
        ticks = sorted({*one.values, *values})
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [str(tick) for tick in ticks], rotation=0 if len(ticks) < 5 else 45)
        axes.minorticks_off()
    elif one.is_log and min(values) > 0:
        axes.set_xscale("log")
        # Over a few decades each power of ten, over one also twos and fives; nothing that runs into its neighbour.
        subs = (1.0,) if max(values) > 50 * min(values) else (1.0, 2.0, 5.0)
        axes.xaxis.set_major_locator(LogLocator(subs=subs))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    elif isinstance(one.low, int):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _whole(trials: Sequence[Done]) -> list[Done]:
    return [one for one in trials if one.ap is not None]
