"""The pictures of a monitor: a figure week by week, with where it lay in the reference and between what it may lie."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np

from fraud.events import IntArray
from fraud.monitoring.drift import Series
from fraud.monitoring.figures import figure_name, in_own_unit
from fraud.monitoring.weekly import WEEK_US
from pipelines.drawing import BLUE, GREY, ORANGE, Picture, edge, picture
from pipelines.monitor.watched import Watched

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SIZE = (5.6, 2.7)


def series_picture(watched: Watched, series: Series, name: str) -> Picture:
    """Return one figure over time."""
    title = figure_name(series)
    unit = _unit(series)
    return picture(
        name, title.replace("`", ""), unit, _SIZE, lambda axes: _draw(axes, watched, series, f"{title}, {unit}")
    )


def _unit(series: Series) -> str:
    match series.statistic, series.kind:
        case (_, "share") | ("score", _):
            return "percent"
        case "gap", _:
            return "seconds"
        case "performance", _:
            return "four weeks together"
        case _:
            return "by week"


def _draw(axes: Axes, watched: Watched, series: Series, title: str) -> None:
    starts_us_V = _reference_weeks(watched, series)
    days_W = _days(watched.starts_us_W)
    axes.set_title(title.replace("`", ""), loc="left", fontsize=10.5)
    if series.statistic != "performance":
        axes.plot(_days(starts_us_V), in_own_unit(series, series.reference_V), "o-", color=GREY, markersize=3.5)
        axes.lines[-1].set_label("reference")
    low_W, high_W = in_own_unit(series, series.low_W), in_own_unit(series, series.high_W)
    if len(days_W) == 1:
        axes.errorbar(days_W, (low_W + high_W) / 2, (high_W - low_W) / 2, color=GREY, alpha=0.5, capsize=4)
    axes.fill_between(days_W, low_W, high_W, color=GREY, alpha=0.25, linewidth=0, label="no alarm")
    observed_W = in_own_unit(series, series.observed_W)
    axes.plot(days_W, observed_W, "o-", color=BLUE, markersize=3.5, label="now")
    is_off_W = series.is_off_W
    axes.plot(days_W[is_off_W], observed_W[is_off_W], "D", color=ORANGE, markersize=6.5, label="off")
    axes.axhline(float(in_own_unit(series, np.array([series.expected]))[0]), color=edge(axes), linewidth=0.8, alpha=0.5)
    if series.kind == "volume":
        axes.set_ylim(bottom=0)
    _mark_days(axes, np.concatenate([_days(starts_us_V), days_W]))


def _reference_weeks(watched: Watched, series: Series) -> IntArray:
    weekly = watched.reference.scores if series.statistic in ("score", "alert", "fraud") else watched.reference.inputs
    return weekly.starts_us_W if len(weekly.starts_us_W) == len(series.reference_V) else weekly.starts_us_W[:0]


def _days(starts_us_W: IntArray) -> np.ndarray:
    """Return the middle of each week, in days since 1970."""
    return (starts_us_W + WEEK_US // 2) / 86_400e6


def _mark_days(axes: Axes, days: np.ndarray) -> None:
    marks = np.linspace(float(days.min()), float(days.max()), 4)
    texts = [f"{_day(mark).day} {_day(mark):%b}" for mark in marks]
    axes.set_xticks(marks, texts)
    axes.tick_params(labelsize=9)
    axes.margins(x=0.03)


def _day(day: float) -> datetime:
    return datetime.fromtimestamp(day * 86_400, UTC)
