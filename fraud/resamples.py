"""Every figure of a scorer by name: as it is, and on each resample of the users.

`fraud.metrics` says what a figure means, and a test holds the two together; here is what an interval of any figure, or
of the difference of two scorers in it, is taken from. The same users and the same seed give the same resamples,
whatever the scorer and the figure. This file knows no model and no period.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fraud.events import FloatArray, IntArray
from fraud.metrics import N_CALIBRATION_BINS, Costs, Examples, alerts, expected_calibration_error
from fraud.ranking import RankingFigures, ranking_figures, resampled_ranking_figures, user_weights

_BLOCK_CELLS = 2_000_000  # of float64 in a block of resamples: 16 MB

_RANKING: Mapping[str, Callable[[RankingFigures], FloatArray]] = {
    "ap": lambda figures: figures.ap_R,
    "auc": lambda figures: figures.auc_R,
    "recall_at_budget": lambda figures: figures.recall_R,
    "precision_at_budget": lambda figures: figures.precision_R,
}
# Figures that are a total over the events, or one total by another: see `_parts`.
_TOTALS = ("recall_at_threshold", "alert_rate", "money_saved", "mean_score_over_base_rate")
FIGURES = (*_RANKING, *_TOTALS, "ece")


class Resampled(NamedTuple):
    """One figure on the examples as they are, and on each of R resamples; NaN where it does not exist."""

    point: float
    values_R: FloatArray


def resampled_figures(
    examples: Examples,
    names: Collection[str],
    *,
    alert_budget: float,
    threshold: float,
    costs: Costs | None,
    price: Costs | None,
    seed: int,
    n_resamples: int,
) -> dict[str, Resampled]:
    """Return those of FIGURES that are named; what is not asked for is not worked out. Arguments as of `evaluate`.

    costs: what the policy decides by; price: what its reviews are charged at, the same for all that are compared.
    """
    if len(examples) == 0:
        return {name: Resampled(np.nan, np.full(n_resamples, np.nan)) for name in names}
    found: dict[str, Resampled] = {}
    if ranking := [name for name in names if name in _RANKING]:
        point = ranking_figures(examples.score_N, examples.label_N, budget=alert_budget)
        resampled = resampled_ranking_figures(
            examples.score_N,
            examples.label_N,
            examples.user_N,
            budget=alert_budget,
            seed=seed,
            n_resamples=n_resamples,
        )
        found |= {name: Resampled(float(_RANKING[name](point)[0]), _RANKING[name](resampled)) for name in ranking}
    for name in names:
        if name in _TOTALS:
            parts = _parts(examples, name, threshold=threshold, costs=costs, price=price)
            found[name] = _ratio(*parts, examples.user_N, seed=seed, n_resamples=n_resamples)
    if "ece" in names:
        point_ece = expected_calibration_error(examples.score_N, examples.label_N)
        values_R = resampled_calibration_error(examples, seed=seed, n_resamples=n_resamples)
        found["ece"] = Resampled(np.nan if point_ece is None else point_ece, values_R)
    return found


def resampled_totals(values: Sequence[FloatArray], user_N: IntArray, *, seed: int, n_resamples: int) -> FloatArray:
    """Return float64 [V, R]: the total of each of V columns [N] over each resample of the users."""
    users_U, user_N = np.unique(user_N, return_inverse=True)
    if len(users_U) == 0:
        return np.zeros((len(values), n_resamples))
    total_VU = np.stack([np.bincount(user_N, weights=one) for one in values])
    block = max(1, _BLOCK_CELLS // len(users_U))
    weights = user_weights(len(users_U), n_resamples=n_resamples, seed=seed, block=block)
    return np.concatenate([total_VU @ weight_UR for weight_UR in weights], axis=1)


def resampled_calibration_error(examples: Examples, *, seed: int, n_resamples: int) -> FloatArray:
    """Return float64 [R]: the expected calibration error of each resample, as `fraud.metrics` gives it of the rows."""
    users_U, user_N = np.unique(examples.user_N, return_inverse=True)
    order_N = np.argsort(examples.score_N, kind="stable")
    score_N, user_N = examples.score_N[order_N], user_N[order_N]
    starts_G = np.flatnonzero(np.diff(score_N, prepend=-np.inf) > 0)
    fraud_rows = np.flatnonzero(examples.label_N[order_N])
    fraud_group = np.searchsorted(starts_G, fraud_rows, side="right") - 1
    values: list[float] = []
    block = max(1, _BLOCK_CELLS // len(users_U))
    for weight_UR in user_weights(len(users_U), n_resamples=n_resamples, seed=seed, block=block):
        for weight_U in np.ascontiguousarray(weight_UR.T):
            n_G = np.add.reduceat(weight_U[user_N], starts_G)
            values.append(_calibration_error(score_N[starts_G], n_G, fraud_group, weight_U[user_N[fraud_rows]]))
    return np.array(values)


def _calibration_error(score_G: FloatArray, n_G: FloatArray, fraud_group: IntArray, n_fraud: FloatArray) -> float:
    """Return the error of groups of n equal scores, ascending, and of frauds that stand in some of the groups.

    Inside a tie the sum of (score - fraud rate) grows by the same with each event, so a bin that ends there takes its
    share of the tie.
    """
    until_G, score_until_G = np.cumsum(n_G), np.cumsum(score_G * n_G)
    n_events = int(until_G[-1])
    edge_B = np.arange(1, N_CALIBRATION_BINS + 1) * n_events // N_CALIBRATION_BINS
    at_B = np.searchsorted(until_G, edge_B)  # the group in which a bin ends
    frauds_until = np.append(0.0, np.cumsum(n_fraud))
    before_B, after_B = (frauds_until[np.searchsorted(fraud_group, at_B, side=side)] for side in ("left", "right"))
    excess_B = score_until_G[at_B] - after_B
    of_tie_B = score_G[at_B] * n_G[at_B] - (after_B - before_B)
    outside_B = np.divide(until_G[at_B] - edge_B, n_G[at_B], out=np.zeros(len(at_B)), where=n_G[at_B] > 0)
    return float(np.abs(np.diff(excess_B - outside_B * of_tie_B, prepend=0.0)).sum() / n_events)


def _parts(
    examples: Examples, name: str, *, threshold: float, costs: Costs | None, price: Costs | None
) -> tuple[FloatArray, FloatArray | None]:
    """Return what each event adds to the figure and, where the figure is a ratio, to what it is divided by."""
    label_N, amount_N = examples.label_N.astype(np.float64), examples.amount_N
    if name == "mean_score_over_base_rate":
        return examples.score_N, label_N
    alerted_N = alerts(examples.score_N, amount_N, threshold=threshold, costs=costs).astype(np.float64)
    if name == "recall_at_threshold":
        return alerted_N * label_N, label_N
    if name == "alert_rate":
        return alerted_N, np.ones(len(examples))
    if amount_N is None or bool(np.isnan(amount_N).all()):
        return np.full(len(examples), np.nan), None
    review_cost = price["review"] if price else 0.0
    return np.nan_to_num(amount_N) * alerted_N * label_N - review_cost * alerted_N, None


def _ratio(
    above_N: FloatArray, below_N: FloatArray | None, user_N: IntArray, *, seed: int, n_resamples: int
) -> Resampled:
    """Return the total of above, by that of below where there is one; NaN where that is 0."""
    columns = [above_N] if below_N is None else [above_N, below_N]
    total_VR = resampled_totals(columns, user_N, seed=seed, n_resamples=n_resamples)
    total_VR = np.concatenate([np.array([[one.sum()] for one in columns]), total_VR], axis=1)
    values_R = total_VR[0]
    if below_N is not None:
        values_R = np.divide(values_R, total_VR[1], out=np.full(len(values_R), np.nan), where=total_VR[1] > 0)
    return Resampled(float(values_R[0]), values_R[1:])
