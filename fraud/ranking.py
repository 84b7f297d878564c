"""Ranking figures of weighted examples, and the resamples of users that give their intervals.

Events of one user are not independent, so the unit of every interval is the user, not the event. One arithmetic serves
the figure and its interval: the figure is the resample in which every user counts once. The examples are sorted once; a
resample only changes their weights. This file knows arrays of scores, labels and users, and nothing of what they mean.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fraud.events import FloatArray, IntArray

LabelArray = npt.NDArray[np.int8]
Interval = tuple[float, float]

# Cells of float64 in a block of resamples: 16 MB; wider blocks were slower (1.2 s against 0.3 s per 1,000 resamples).
_BLOCK_CELLS = 2_000_000
_MIN_BLOCK = 4
_ROUNDING = 1e-9


class RankingFigures(NamedTuple):
    """Figures of R resamples, float64 [R] each; NaN where a resample holds no fraud (AUC also: nothing but fraud)."""

    ap_R: FloatArray
    auc_R: FloatArray
    recall_R: FloatArray
    precision_R: FloatArray


def ranking_figures(
    score_N: FloatArray, label_N: LabelArray, *, budget: float, weight_N: FloatArray | None = None
) -> RankingFigures:
    """Return the figures of the examples as they are: one resample, in which each counts once.

    weight_N: how many examples each one stands for, where some were left out; None where each stands for itself.
    """
    if len(score_N) == 0:
        return RankingFigures(*(np.full(1, np.nan) for _ in range(4)))
    order_N, starts_M = _stretches(score_N, label_N)
    all_N = np.ones(len(order_N)) if weight_N is None else weight_N[order_N]
    all_M = np.add.reduceat(all_N, starts_M)
    positive_M = np.add.reduceat(all_N * label_N[order_N], starts_M)
    return _figures(all_M[:, None], positive_M[:, None], budget)


def resampled_ranking_figures(
    score_N: FloatArray,
    label_N: LabelArray,
    user_N: IntArray,
    *,
    budget: float,
    seed: int,
    n_resamples: int,
    weight_N: FloatArray | None = None,
) -> RankingFigures:
    """Return the figures of each resample of the users; the resamples depend on the set of users and the seed alone."""
    users_U, user_N = np.unique(user_N, return_inverse=True)
    if len(users_U) == 0:
        return RankingFigures(*(np.empty(0) for _ in range(4)))
    order_N, starts_M = _stretches(score_N, label_N)
    user_N = user_N[order_N]
    fraud_rows = np.flatnonzero(label_N[order_N])
    fraud_M, fraud_starts = np.unique(np.searchsorted(starts_M, fraud_rows, side="right") - 1, return_index=True)
    fraud_user = user_N[fraud_rows]
    block = max(_MIN_BLOCK, _BLOCK_CELLS // len(user_N))
    parts: list[RankingFigures] = []
    for weight_UR in user_weights(len(users_U), n_resamples=n_resamples, seed=seed, block=block):
        all_NR, fraud_FR = weight_UR[user_N], weight_UR[fraud_user]
        if weight_N is not None:
            all_NR *= weight_N[order_N][:, None]
            fraud_FR *= weight_N[order_N][fraud_rows, None]
        all_MR = np.add.reduceat(all_NR, starts_M, axis=0)
        positive_MR = np.zeros_like(all_MR)
        if len(fraud_rows):
            positive_MR[fraud_M] = np.add.reduceat(fraud_FR, fraud_starts, axis=0)
        parts.append(_figures(all_MR, positive_MR, budget))
    return RankingFigures(*(np.concatenate(figures) for figures in zip(*parts, strict=True)))


def user_weights(n_users: int, *, n_resamples: int, seed: int, block: int) -> Iterator[FloatArray]:
    """Yield float64 [U, R]: how often each user was drawn in up to `block` resamples of U users with replacement.

    The same seed and number of users draw the same resamples, whatever the block (Efron & Tibshirani 1993, ch. 6).
    """
    generator = np.random.default_rng(seed)
    for start in range(0, n_resamples, block):
        n_here = min(block, n_resamples - start)
        drawn_RU = generator.integers(0, n_users, size=(n_here, n_users))
        cell_RU = drawn_RU * n_here + np.arange(n_here)[:, None]
        counts = np.bincount(cell_RU.ravel(), minlength=n_users * n_here)
        yield counts.reshape(n_users, n_here).astype(np.float64)


def percentile_interval(values_R: FloatArray) -> Interval | None:
    """Return the 2.5 and 97.5 percentile of the resamples in which the figure exists; None where it does in none."""
    defined = values_R[~np.isnan(values_R)]
    if len(defined) == 0:
        return None
    lo, hi = np.percentile(defined, [2.5, 97.5])
    return float(lo), float(hi)


def n_within_budget(budget: float, n_events: int) -> int:
    """Return floor(budget x n_events), but a whole number where the product misses one only by rounding (.29 x 100)."""
    return math.floor(budget * n_events + _ROUNDING)


def _stretches(score_N: FloatArray, label_N: LabelArray) -> tuple[IntArray, IntArray]:
    """Return the order of the examples, best first, and where stretches start in it.

    A stretch is the ties of a score that some fraud has, or a run of other examples between two of those: inside a run
    of non-frauds no figure needs the order, and most examples are in such runs.
    """
    order_N = np.argsort(-score_N, kind="stable")
    ranked_N = score_N[order_N]
    is_new_N = np.ones(len(ranked_N), dtype=np.bool_)
    is_new_N[1:] = ranked_N[1:] != ranked_N[:-1]
    has_fraud_G = np.bincount(np.cumsum(is_new_N) - 1, weights=label_N[order_N]) > 0
    opens_G = has_fraud_G.copy()
    opens_G[:1] = True
    opens_G[1:] |= has_fraud_G[:-1]
    return order_N, np.flatnonzero(is_new_N)[opens_G]


def _figures(all_MR: FloatArray, positive_MR: FloatArray, budget: float) -> RankingFigures:
    """Return the figures from the weight of all examples and of frauds in each stretch, best first.

    AP: precision x gain in recall, summed over stretches (Davis & Goadrich 2006). AUC: Mann-Whitney, ties count half.
    Budget: of the stretch that the cut divides, the share inside counts (the hypergeometric mean of a random order;
    exact, since a stretch with frauds is one tie).
    """
    n_until_MR, n_found_MR = np.cumsum(all_MR, axis=0), np.cumsum(positive_MR, axis=0)
    n_R, n_positive_R = all_MR.sum(axis=0), positive_MR.sum(axis=0)
    precision_MR = np.divide(n_found_MR, n_until_MR, out=np.zeros_like(n_found_MR), where=n_until_MR > 0)
    # Frauds x (others above + half the others of the same stretch), summed; others = all - frauds, multiplied out.
    n_above_R = _dot(positive_MR, n_until_MR) - _dot(positive_MR, n_found_MR)
    n_tied_R = _dot(positive_MR, all_MR) - _dot(positive_MR, positive_MR)
    cut_R = np.floor(budget * n_R + _ROUNDING)
    cut_1R = np.minimum((n_until_MR <= cut_R).sum(axis=0), len(all_MR) - 1)[None]
    until_R, found_R, size_R, frauds_R = (
        np.take_along_axis(cells_MR, cut_1R, axis=0)[0] for cells_MR in (n_until_MR, n_found_MR, all_MR, positive_MR)
    )
    outside_R = np.minimum(until_R - cut_R, size_R)
    caught_R = found_R - outside_R * np.divide(frauds_R, size_R, out=np.zeros_like(n_R), where=size_R > 0)
    caught_R[cut_R == 0] = 0.0  # and no rounding of it, which divided by 0 would be infinite
    with np.errstate(invalid="ignore"):  # 0 / 0 is the NaN of a figure that does not exist
        return RankingFigures(
            ap_R=_dot(positive_MR, precision_MR) / n_positive_R,
            auc_R=1.0 - (n_above_R - n_tied_R / 2) / n_positive_R / (n_R - n_positive_R),
            recall_R=caught_R / n_positive_R,
            precision_R=caught_R / cut_R,
        )


def _dot(a_MR: FloatArray, b_MR: FloatArray) -> FloatArray:
    return np.einsum("mr,mr->r", a_MR, b_MR)
