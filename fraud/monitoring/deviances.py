"""How far weeks lie off a reference, as deviances: of shares, of means and of volumes, each in its own way.

A deviance is twice the log likelihood that is lost by taking two things for the same (McCullagh and Nelder 1989,
Generalized linear models, 2.3). Dispersion is not divided out here: how much weeks differ anyway is `dispersion`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np

from fraud.events import BoolArray, FloatArray, IntArray
from fraud.monitoring.weekly import Cell, Means, Shares

Kind = Literal["share", "mean", "volume"]
_FEWEST_COUNTED = 5.0  # of a cell whose variance is believed


class Counts(NamedTuple):
    """Two counts of the rarer outcome, of the week and of the reference, and the share of the week in both."""

    k_WC: FloatArray
    of_reference_WC: FloatArray
    share_WC: FloatArray


class Block(NamedTuple):
    """The C cells of one statistic: V weeks of reference, W weeks that are held against them.

    free_C2: from where to where a week may lie for nothing. root_WC: the signed root of the deviance between a week and
    the reference. precision_WC: 1 / n of the week and 1 / n of the reference, as far as they are believed, added.
    scale_C: the variance of one value. s2_C: how many times that the weeks of the reference vary by, with d_C degrees
    of freedom; is_usable_C: enough was counted to believe it.
    """

    statistic: str
    kind: Kind
    cells: tuple[Cell, ...]
    reference_VC: FloatArray
    observed_WC: FloatArray
    expected_C: FloatArray
    free_C2: FloatArray
    root_WC: FloatArray
    counts_WC: Counts | None
    precision_WC: FloatArray
    scale_C: FloatArray
    s2_C: FloatArray
    d_C: FloatArray
    is_usable_C: BoolArray


def share_block(statistic: str, reference: Shares, judged: Shares, *, margin: float) -> Block:
    """Return shares as binomial counts. A week with more events than those of the reference counts as one of them.

    margin: a factor that a share may move by for nothing; only what lies beyond counts.
    """
    k_VC, n_VC = reference.k_WC.astype(np.float64), reference.n_WC.astype(np.float64)
    K_C, N_C = k_VC.sum(axis=0), n_VC.sum(axis=0)
    p_C = _over(K_C, N_C)
    deviance_C = (_against(k_VC, n_VC * p_C) + _against(n_VC - k_VC, n_VC * (1 - p_C))).sum(axis=0)
    d_C = np.maximum((n_VC > 0).sum(axis=0) - 1, 0).astype(np.float64)
    believed_C = _over(N_C, d_C + 1)
    k_WC, n_WC = judged.k_WC.astype(np.float64), judged.n_WC.astype(np.float64)
    kept_WC = np.minimum(1.0, _over(believed_C, n_WC, empty=1.0))
    k_WC, n_WC = k_WC * kept_WC, n_WC * kept_WC
    share_WC = _over(k_WC, n_WC)
    # The reference as it would be, had it moved towards the week as far as it may.
    K_WC = np.minimum(K_C * np.clip(_over(share_WC, p_C, empty=1.0), 1 / margin, margin), N_C)
    pooled_WC = _over(k_WC + K_WC, n_WC + N_C)
    root_WC = _root(
        _against(k_WC, n_WC * pooled_WC)
        + _against(n_WC - k_WC, n_WC * (1 - pooled_WC))
        + _against(K_WC, N_C * pooled_WC)
        + _against(N_C - K_WC, N_C * (1 - pooled_WC))
    )
    is_rare_WC = pooled_WC <= 0.5
    counts = Counts(
        np.where(is_rare_WC, k_WC, n_WC - k_WC),
        np.where(is_rare_WC, K_WC, N_C - K_WC),
        _over(n_WC, n_WC + N_C),
    )
    return Block(
        statistic=statistic,
        kind="share",
        cells=reference.cells,
        reference_VC=np.where(n_VC > 0, _over(k_VC, n_VC), np.nan),
        observed_WC=np.where(n_WC > 0, share_WC, np.nan),
        expected_C=p_C,
        free_C2=np.stack([p_C / margin, np.minimum(p_C * margin, 1.0)], axis=1),
        root_WC=np.where(n_WC > 0, np.sign(share_WC - p_C) * root_WC, 0.0),
        counts_WC=counts,
        precision_WC=_over(1.0, n_WC, empty=1.0) + _over(1.0, N_C, empty=1.0),
        # Of what never was, half an event: a band of no width would say that the first one is too many.
        scale_C=_over(K_C + 0.5, N_C + 1) * _over(N_C - K_C + 0.5, N_C + 1),
        s2_C=_over(deviance_C, d_C),
        d_C=d_C,
        is_usable_C=(np.minimum(K_C, N_C - K_C) >= _FEWEST_COUNTED) & (d_C > 0),
    )


def mean_block(statistic: str, reference: Means, judged: Means, *, margin: float) -> Block:
    """Return means, of logarithms, as those of independent values of one variance, that within the weeks.

    margin: a factor that what they are logarithms of may move by for nothing.
    """
    n_VC, sum_VC = reference.n_WC, reference.sum_WC
    N_C = n_VC.sum(axis=0)
    mean_C = _over(sum_VC.sum(axis=0), N_C)
    mean_VC = np.where(n_VC > 0, _over(sum_VC, n_VC), np.nan)
    d_C = np.maximum((n_VC > 0).sum(axis=0) - 1, 0).astype(np.float64)
    within_C = (reference.square_WC - _over(sum_VC**2, n_VC)).sum(axis=0)
    scale_C = np.maximum(_over(within_C, np.maximum(N_C - d_C - 1, 0)), 1e-12)
    between_C = (n_VC * (np.nan_to_num(mean_VC) - mean_C) ** 2).sum(axis=0)
    believed_C = _over(N_C, d_C + 1)
    n_WC = np.minimum(judged.n_WC, believed_C)
    observed_WC = np.where(n_WC > 0, _over(judged.sum_WC, judged.n_WC), np.nan)
    precision_WC = _over(1.0, n_WC, empty=1.0) + _over(1.0, N_C, empty=1.0)
    is_known = (n_WC >= _FEWEST_COUNTED) & (N_C >= _FEWEST_COUNTED)
    moved_WC = np.nan_to_num(observed_WC) - mean_C
    moved_WC = np.sign(moved_WC) * np.maximum(np.abs(moved_WC) - math.log(margin), 0.0)
    return Block(
        statistic=statistic,
        kind="mean",
        cells=reference.cells,
        reference_VC=mean_VC,
        observed_WC=observed_WC,
        expected_C=mean_C,
        free_C2=mean_C[:, None] + math.log(margin) * np.array([-1.0, 1.0]),
        root_WC=np.where(is_known, moved_WC / np.sqrt(scale_C * precision_WC), 0.0),
        counts_WC=None,
        precision_WC=precision_WC,
        scale_C=scale_C,
        s2_C=_over(between_C, d_C * scale_C),
        d_C=d_C,
        is_usable_C=(_FEWEST_COUNTED * (d_C + 1) <= N_C) & (d_C > 0),
    )


def volume_block(reference: Mapping[str, IntArray], judged: Mapping[str, IntArray]) -> Block:
    """Return volumes as Poisson counts of one week each."""
    k_VC = np.stack(list(reference.values()), axis=1).astype(np.float64)
    k_WC = np.stack([judged[name] for name in reference], axis=1).astype(np.float64)
    n_weeks = len(k_VC)
    mean_C = k_VC.mean(axis=0)
    d_C = np.full(len(mean_C), float(n_weeks - 1))
    total_WC = k_WC + k_VC.sum(axis=0)
    share = 1 / (n_weeks + 1)
    root_WC = _root(
        _against(k_WC, total_WC * share)
        + _against(np.broadcast_to(k_VC.sum(axis=0), k_WC.shape), total_WC * (1 - share))
    )
    return Block(
        statistic="volume",
        kind="volume",
        cells=tuple((name,) for name in reference),
        reference_VC=k_VC,
        observed_WC=k_WC,
        expected_C=mean_C,
        free_C2=np.stack([mean_C, mean_C], axis=1),
        root_WC=np.sign(k_WC - mean_C) * root_WC,
        counts_WC=None,
        precision_WC=np.full(k_WC.shape, 1 + 1 / n_weeks),
        scale_C=mean_C,
        s2_C=_over(_against(k_VC, np.broadcast_to(mean_C, k_VC.shape)).sum(axis=0), d_C),
        d_C=d_C,
        is_usable_C=d_C > 0,
    )


def _against(k: FloatArray, expected: FloatArray) -> FloatArray:
    """Return 2 k log(k / expected), 0 where k is: the terms of a deviance; their sum over outcomes is not negative."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(k > 0, 2 * k * np.log(k / np.where(expected > 0, expected, 1.0)), 0.0)


def _root(deviance: FloatArray) -> FloatArray:
    return np.sqrt(np.maximum(deviance, 0.0))  # rounding alone takes a sum of such terms below 0


def _over(a: FloatArray | float, b: FloatArray, *, empty: float = 0.0) -> FloatArray:
    """Return a / b, `empty` where b is 0."""
    a, b = np.broadcast_arrays(np.asarray(a, dtype=np.float64), b)
    return np.divide(a, b, out=np.full(b.shape, empty), where=b > 0)
