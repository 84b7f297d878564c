"""Figures of several fits of one scorer on the same examples, and paired differences between scorers.

Several seeds count as one scorer: its figure is the mean over its fits. Every fit and every scorer is judged on the
same resamples of the users, so the interval of a difference holds nothing of which users happened to be drawn twice.
The interval is of users; how far the fits lie apart stands beside it. This file knows no model and no period.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np

from fraud.errors import DataError
from fraud.events import FloatArray
from fraud.metrics import N_RESAMPLES, Examples
from fraud.ranking import (
    Interval,
    RankingFigures,
    percentile_interval,
    ranking_figures,
    resampled_ranking_figures,
)
from fraud.resamples import resampled_totals


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranked:
    """The ranking figures of one scorer. points: of each fit, on the examples as they are; resampled: means of fits."""

    points: tuple[RankingFigures, ...]
    resampled: RankingFigures

    @property
    def ap_by_fit(self) -> tuple[float, ...] | None:
        """Return the AP of each fit; None without a fraud."""
        values = tuple(float(point.ap_R[0]) for point in self.points)
        return None if np.isnan(values).any() else values


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """AP of one scorer minus that of another, its 95 % interval over the resamples that both share, and by fit."""

    diff: float
    ci: Interval
    by_fit: tuple[float, ...]

    @property
    def is_clear(self) -> bool:
        """Return True where the interval lies on one side of 0."""
        return self.ci[0] > 0 or self.ci[1] < 0


def ranked(
    fits: Sequence[Examples],
    *,
    budget: float,
    seed: int,
    weight_N: FloatArray | None = None,
    n_resamples: int = N_RESAMPLES,
) -> Ranked:
    """Return the ranking figures of the fits of one scorer; weight_N as in `fraud.ranking`.

    The same seed and the same users give the same resamples, whatever the scorer. Raises DataError where the fits were
    not judged on the same examples.
    """
    check_same_examples(fits)
    points = [ranking_figures(one.score_N, one.label_N, budget=budget, weight_N=weight_N) for one in fits]
    resampled = [
        resampled_ranking_figures(
            one.score_N,
            one.label_N,
            one.user_N,
            budget=budget,
            seed=seed,
            n_resamples=n_resamples,
            weight_N=weight_N,
        )
        for one in fits
    ]
    means = RankingFigures(*(np.mean(figure, axis=0) for figure in zip(*resampled, strict=True)))
    return Ranked(points=tuple(points), resampled=means)


def difference(a: Ranked, b: Ranked) -> Difference | None:
    """Return the AP of a minus that of b; None without a fraud. By fit where both have as many."""
    ap_a, ap_b = a.ap_by_fit, b.ap_by_fit
    if ap_a is None or ap_b is None:
        return None
    interval = percentile_interval(a.resampled.ap_R - b.resampled.ap_R)
    if interval is None:
        return None
    by_fit = tuple(one - other for one, other in zip(ap_a, ap_b, strict=True)) if len(ap_a) == len(ap_b) else ()
    return Difference(diff=float(np.mean(ap_a) - np.mean(ap_b)), ci=interval, by_fit=by_fit)


def differences(scorers: Mapping[str, Ranked]) -> dict[tuple[str, str], Difference]:
    """Return the difference of every pair, in the order of the names; empty without a fraud."""
    found = {(a, b): difference(scorers[a], scorers[b]) for a, b in combinations(scorers, 2)}
    return {pair: one for pair, one in found.items() if one is not None}


def mean_score_over_base_rate_ci(
    fits: Sequence[Examples], *, seed: int, n_resamples: int = N_RESAMPLES
) -> Interval | None:
    """Return the interval of the mean over fits of (sum of scores / number of frauds), on those same resamples."""
    if len(fits[0]) == 0:
        return None
    score_N = np.mean([one.score_N for one in fits], axis=0)
    columns = [score_N, fits[0].label_N.astype(np.float64)]
    score_R, n_fraud_R = resampled_totals(columns, fits[0].user_N, seed=seed, n_resamples=n_resamples)
    nothing_R = np.full(len(n_fraud_R), np.nan)
    return percentile_interval(np.divide(score_R, n_fraud_R, out=nothing_R, where=n_fraud_R > 0))


def check_same_examples(fits: Sequence[Examples]) -> None:
    """Raise DataError where two fits were not judged on the same examples in the same order."""
    for first, second in pairwise(fits):
        for name in ("user_N", "label_N"):
            if not np.array_equal(getattr(first, name), getattr(second, name)):
                raise DataError(f"comparison: expected the same examples of every fit, but {name} differs")
