"""How a scorer does in the weeks whose labels have arrived, against the figures it was promoted with.

A week alone holds few frauds, so each figure is of the four settled weeks that end with it. AP and recall at the budget
count only where they fall; the mean score may be too high or too low. Standard errors are of users, as everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from fraud.events import BoolArray, FloatArray, IntArray
from fraud.monitoring.drift import Series
from fraud.monitoring.tails import t_beyond, two_sided_t
from fraud.ranking import LabelArray, ranking_figures, resampled_ranking_figures

N_TOGETHER = 4
_FEWEST_FRAUDS = 10
_N_RESAMPLES = 200
_Z_OF_INTERVAL = 2 * 1.959964  # a 95 % interval in standard errors
# Below 1 AP and recall are far from normal at few frauds: judged with the doubt of so many degrees of freedom.
_DF = 30.0


class Outcomes(NamedTuple):
    """E settled examples of the weeks: score, label, user (any integer code) and week."""

    score_E: FloatArray
    label_E: LabelArray
    user_E: IntArray
    week_E: IntArray


class _Figure(NamedTuple):
    value: float
    error: float


def outcome_series(
    outcomes: Outcomes, promoted: Mapping[str, Any], *, is_settled_W: BoolArray, budget: float, level: float
) -> tuple[Series, ...]:
    """Return a series of AP, of recall at the budget and of the mean score over the fraud rate (its logarithm).

    promoted: the figures (JSON) of the test period. is_settled_W: the weeks of which all labels are in. A figure that
    the test period did not have gives no series. level: of one test, for the bounds.
    """
    n_weeks = len(is_settled_W)
    figures_W = [
        _figures(outcomes, w, budget=budget) if is_settled_W[max(0, w - N_TOGETHER + 1) : w + 1].all() else {}
        for w in range(n_weeks)
    ]
    return tuple(
        _series(name, before, [figures.get(name) for figures in figures_W], level=level)
        for name, before in _promoted_figures(promoted).items()
    )


def _promoted_figures(promoted: Mapping[str, Any]) -> dict[str, _Figure]:  # Any: JSON
    found: dict[str, _Figure] = {}
    for name in ("ap", "recall_at_budget"):
        value, ci = promoted.get(name), promoted.get(f"{name}_ci")
        if value is not None and ci is not None and ci[1] > ci[0]:
            found[name] = _Figure(float(value), (ci[1] - ci[0]) / _Z_OF_INTERVAL)
    ratio, n_positive = promoted.get("mean_score_over_base_rate"), promoted.get("n_positive", 0)
    if ratio and n_positive:
        found["mean_score_over_base_rate"] = _Figure(float(np.log(ratio)), float(1.2 / np.sqrt(n_positive)))
    return found


def _figures(outcomes: Outcomes, week: int, *, budget: float) -> dict[str, _Figure]:
    """Return the figures of the weeks that end with one; none where they hold hardly a fraud."""
    chosen = (outcomes.week_E > week - N_TOGETHER) & (outcomes.week_E <= week)
    score_E, label_E, user_E = outcomes.score_E[chosen], outcomes.label_E[chosen], outcomes.user_E[chosen]
    n_fraud = int(label_E.sum())
    if n_fraud < _FEWEST_FRAUDS:
        return {}
    point = ranking_figures(score_E, label_E, budget=budget)
    drawn = resampled_ranking_figures(score_E, label_E, user_E, budget=budget, seed=week, n_resamples=_N_RESAMPLES)
    users_U, place_E = np.unique(user_E, return_inverse=True)
    score_U = np.bincount(place_E, weights=score_E, minlength=len(users_U))
    fraud_U = np.bincount(place_E, weights=label_E, minlength=len(users_U))
    # The linear terms of log(sum of scores / sum of frauds), user by user.
    ratio_error = float(np.sqrt(np.sum((score_U / score_U.sum() - fraud_U / n_fraud) ** 2)))
    return {
        "ap": _Figure(float(point.ap_R[0]), float(np.nanstd(drawn.ap_R))),
        "recall_at_budget": _Figure(float(point.recall_R[0]), float(np.nanstd(drawn.recall_R))),
        "mean_score_over_base_rate": _Figure(float(np.log(score_E.sum() / n_fraud)), ratio_error),
    }


def _series(name: str, before: _Figure, now_W: list[_Figure | None], *, level: float) -> Series:
    value_W = np.array([np.nan if one is None else one.value for one in now_W])
    error_W = np.array([np.inf if one is None else np.hypot(one.error, before.error) for one in now_W])
    t_W = np.nan_to_num((value_W - before.value) / error_W)
    df_W = np.full(len(now_W), _DF)
    p_W = two_sided_t(t_W, df_W)
    is_ranking = name != "mean_score_over_base_rate"
    if is_ranking:  # better is no alarm
        p_W = np.where(t_W < 0, p_W, 1.0)
    reach_W = t_beyond(level, df_W) * np.where(np.isinf(error_W), np.nan, error_W)
    return Series(
        statistic="performance",
        cell=(name,),
        kind="mean",
        reference_V=np.array([before.value]),
        observed_W=value_W,
        expected=before.value,
        low_W=before.value - reach_W,
        high_W=np.ones_like(reach_W) if is_ranking else before.value + reach_W,
        t_W=t_W,
        p_W=p_W,
        is_off_W=np.zeros(len(now_W), dtype=np.bool_),
        dispersion=1.0,
        df=_DF,
    )
