"""From cells that are off in some weeks to alarms: a change that lasts is one alarm, with the week it began.

A cell that is off week after week raises one alarm, not one a week, and what begins together is one alarm together: a
new type of event moves pauses and the length of sessions too. Where a change begins is looked for backwards from where
it was found: a small one may need some weeks to be sure of. A faint trace of an earlier change that is found late is
told from a new one by the weeks between: all of them together lie off the same way.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from fraud.monitoring.drift import Series

_ALREADY = 0.01  # p of an earlier week, or of earlier weeks together, that counts as the change having begun
_ALREADY_SPREADS = 2.58  # the same of a normal distribution
_TOGETHER = 1  # weeks: what begins in the middle of one shows fully in the next
_PAUSE = 4  # weeks that a change may hide in the noise and is still the same one


class Run(NamedTuple):
    """A stretch of weeks in which one cell is off the same way: where it began, was found, was worst and was last off
    (inclusive). late: how many weeks after a week its figure is known."""

    series: Series
    onset: int
    found: int
    worst: int
    last: int
    late: int

    @property
    def is_standing(self) -> bool:
        """Return True where the newest week of which the figure is known is off."""
        return self.last + self.late >= len(self.series.t_W) - 1


class Change(NamedTuple):
    """Runs that began together, the clearest first; all in weeks of one grid.

    found: the first week at whose end somebody could know; it may lie after the last week that is judged.
    """

    onset: int
    found: int
    last: int
    runs: tuple[Run, ...]

    @property
    def is_standing(self) -> bool:
        """Return True where a run of it stands: it is not over."""
        return any(run.is_standing for run in self.runs)


def changes(series: tuple[Series, ...], late: Mapping[str, int]) -> tuple[Change, ...]:
    """Return what changed, in the order of its beginning.

    late: how many weeks after a week the figures of a statistic are known, 0 where it is not named.
    """
    together: list[list[Run]] = []  # the clearest of each first
    runs = (run for one in series for run in _runs(one, late.get(one.statistic, 0)))
    for run in sorted(runs, key=lambda run: -_clarity(run)):
        akin = [
            group
            for group in together
            if abs(run.onset - group[0].onset) <= _TOGETHER or _began_with(run, group[0].onset)
        ]
        if akin:
            min(akin, key=lambda group: group[0].onset).append(run)
        else:
            together.append([run])
    found = (
        Change(
            # Of many cells some lie off by chance in the week before; the clearest one knows best.
            onset=group[0].onset,
            found=min(run.found + run.late for run in group),
            last=max(run.last for run in group),
            runs=tuple(group),
        )
        for group in together
    )
    return tuple(sorted(found, key=lambda change: (change.onset, change.found)))


def _clarity(run: Run) -> float:
    return abs(float(run.series.t_W[run.worst]))


def _began_with(run: Run, onset: int) -> bool:
    """Return True where the weeks from an earlier onset up to the run lie off the same way, taken together."""
    return onset < run.onset and _lies_off(run.series, onset, run.onset, np.sign(run.series.t_W[run.found]))


def _lies_off(series: Series, first: int, end: int, sign: float) -> bool:
    """Return True where the weeks first .. end - 1 lie off in the direction of a sign, taken together."""
    between_W = series.t_W[first:end]
    # The reference is the same in all of them: its own error does not average out.
    n_reference = max(len(series.reference_V), 1)
    error = np.sqrt((1 / len(between_W) + 1 / n_reference) / (1 + 1 / n_reference))
    return float(between_W.mean() * sign / error) >= _ALREADY_SPREADS


def _runs(series: Series, late: int) -> list[Run]:
    runs: list[Run] = []
    for found in np.flatnonzero(series.is_off_W).tolist():
        sign = np.sign(series.t_W[found])
        if runs and sign == np.sign(series.t_W[runs[-1].found]):
            after = runs[-1].last + 1
            if found - after < _PAUSE or _lies_off(series, after, found, sign):
                runs[-1] = _with_worst(runs[-1]._replace(last=found))
                continue
        first = runs[-1].last + 1 if runs else 0
        onset = found
        while onset > first and np.sign(series.t_W[onset - 1]) == sign and series.p_W[onset - 1] < _ALREADY:
            onset -= 1
        runs.append(_with_worst(Run(series, onset, found, found, found, late)))
    return runs


def _with_worst(run: Run) -> Run:
    return run._replace(worst=run.onset + int(np.argmax(np.abs(run.series.t_W[run.onset : run.last + 1]))))
