"""The picture of the year: what each way of keeping a model finds, week by week, and what happened when."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from yearly.bank import Year

from pipelines.drawing import BLUE, GREEN, GREY, ORANGE, PINK, Picture, picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Json = Mapping[str, Any]  # Any: JSON
_SIZE = (10.0, 7.2)
_STYLES = {
    "oracle": ("the best possible", GREY, ":", 1.6),
    "gated": ("retrained weekly, behind the gate", BLUE, "-", 2.4),
    "ungated": ("retrained weekly, no gate", GREEN, "-.", 1.3),
    "never": ("never retrained", ORANGE, "--", 2.0),
}
_TEXT = (
    "Of each week's frauds, how many are among the alerts that the budget allows: of all fraud, and of the story that "
    "began in week {later}. Below, what each week's retraining ended with, and when the monitor spoke."
)


def year_picture(document: Json, year: Year) -> Picture:
    """Return the picture of what `benchmarks/year.py --json` prints."""

    def draw(axes: Axes) -> None:
        axes.set_axis_off()
        spec, figure = axes.get_subplotspec(), axes.get_figure()
        assert spec is not None
        assert figure is not None
        grid = spec.subgridspec(3, 1, height_ratios=(3.0, 3.0, 0.8), hspace=0.08)
        above = figure.add_subplot(grid[0])
        middle, below = (figure.add_subplot(grid[row], sharex=above) for row in (1, 2))
        _draw_recall(above, document["weeks"], "recall", "all fraud found within the budget")
        _draw_recall(middle, document["weeks"], "later_recall", "of the new story")
        _draw_verdicts(below, document["weeks"])
        _mark(above, (middle, below), year)
        middle.axvline(year.caught_by_week, color=GREY, linewidth=0.9, linestyle=":")
        middle.annotate("due: delay + 4 weeks", (year.caught_by_week, 0.06), (4, 0), textcoords="offset points")
        for panel in (above, middle):
            panel.tick_params(labelbottom=False)
        above.legend(loc="lower left", ncols=2, fontsize=9.5)

    return picture("year", "A year of a model", _TEXT.format(later=year.later_story_week), _SIZE, draw)


def _draw_recall(axes: Axes, weeks: Sequence[Json], figure: str, label: str) -> None:
    for name, (text, colour, dashes, width) in _STYLES.items():
        told = [(one["week"], one[figure][name]) for one in weeks if one[figure][name] is not None]
        if told:
            week, share = zip(*told, strict=True)
            axes.plot(week, share, color=colour, linestyle=dashes, linewidth=width, label=text)
    axes.set(ylim=(0, 1.04), ylabel=label)
    axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.0f} %")


def _draw_verdicts(axes: Axes, weeks: Sequence[Json]) -> None:
    rows = {"promoted": (2, BLUE, "^"), "refused": (1, GREY, "x"), "alarm": (0, PINK, "D")}
    for name, (row, colour, marker) in rows.items():
        of_kind = [one["week"] for one in weeks if (one["alarms"] if name == "alarm" else one["verdict"] == name)]
        axes.plot(of_kind, [row] * len(of_kind), marker, color=colour, markersize=5.5, linestyle="none")
    axes.set_yticks([row for row, _, _ in rows.values()], list(rows))
    axes.set(ylim=(-0.6, 2.6), xlabel="week")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def _mark(above: Axes, others: Sequence[Axes], year: Year) -> None:
    """Mark what happens, with words above the uppermost panel."""
    marks = {
        year.later_story_week: "a new story of fraud",
        year.new_app_week: "a new app: new events",
        year.cents_week: "amounts in cents",
    }
    until = {year.cents_week: year.cents_week + year.cents_weeks}
    for panel in (above, *others):
        for week in marks:
            panel.axvline(week, color=GREY, linewidth=0.9, alpha=0.7)
            if week in until:
                panel.axvspan(week, until[week], color=GREY, alpha=0.15, linewidth=0)
    for week, text in marks.items():
        above.annotate(
            text,
            (week, 1.0),
            (0, 3),
            xycoords=above.get_xaxis_transform(),
            textcoords="offset points",
            annotation_clip=False,
            fontsize=9,
            ha="center",
        )
