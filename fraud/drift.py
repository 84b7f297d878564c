"""Which weeks of a log are off: each figure against its own variation from week to week in the reference.

A share (k of n), a mean or a volume of a week is held against the weeks of the reference by a quasi-likelihood test,
as edgeR does for counts (Lund et al. 2012, Detecting differential expression in RNA-sequence data using
quasi-likelihood with shrunken dispersion estimates):

- *Variation.* Of the reference weeks of each cell: s2 = deviance / (weeks - 1), how many times the variance of the
  binomial (mean: of independent values, volume: of the Poisson) the weeks differ by. Users come in clusters and weeks
  have their moods, so it is 1 in no real log.
- *Moderation.* A dozen weeks say little about one variance but much about those of all cells of a statistic: s2 is
  shrunk towards their common value s0 by the empirical Bayes of limma (Smyth 2004, Linear models and empirical Bayes
  methods, eq. 6.1-6.3): (d0 s0 + d s2) / (d0 + d), with d0 + d degrees of freedom. It never counts as below 1.
- *Test.* The signed root of the deviance between the week and the reference, over the root of the dispersion, is a t
  of d0 + d degrees of freedom. Where counts are small that is too sure, so the exact conditional test of two rates
  (Przyborowski and Wilenski 1940), its counts divided by the dispersion, must agree: the larger p counts. A week with
  more events than those of the reference is not believed to be more exact than they were.
- *Many tests.* Holm's step-down (1979) over all cells of a week: with `level` = 0.02, two quiet weeks in a hundred
  raise an alarm, however many figures there are.

Nothing here knows what a figure means; words are `fraud.attribution`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from fraud.events import BoolArray, FloatArray
from fraud.tails import beta_below, digamma, t_beyond, trigamma, trigamma_inverse, two_sided_t
from fraud.weekly import Cell, Means, Shares, Weekly

Kind = Literal["share", "mean", "volume"]
_FEWEST_CELLS = 8  # of a statistic that has a common variance of its own; others share that of all
_FEWEST_COUNTED = 5.0  # of a cell whose variance is believed
_MOST_PRIOR_DF = 60.0  # however alike the cells are, a dozen weeks are no proof of it
_FEW = 30.0  # expected counts below which the exact test must agree


class Series(NamedTuple):
    """One cell: what it was in each week of the reference [V] and is in each week that is judged [W].

    NaN: nothing was counted. expected: of a week. low_W, high_W: between which it raises no alarm by itself. t_W: how
    many of its own spreads it lies off. p_W: of this test alone. is_off_W: it alarms, all tests of the week considered.
    dispersion, df: the variation of the reference weeks, and how well it is known.
    """

    statistic: str
    cell: Cell
    kind: Kind
    reference_V: FloatArray
    observed_W: FloatArray
    expected: float
    low_W: FloatArray
    high_W: FloatArray
    t_W: FloatArray
    p_W: FloatArray
    is_off_W: BoolArray
    dispersion: float
    df: float


class Judged(NamedTuple):
    """How M cells and W weeks were judged: one series a cell, and the smallest adjusted p of each week."""

    series: tuple[Series, ...]
    p_W: FloatArray


class _Block(NamedTuple):
    """The cells of one statistic against their reference; s2_C and d_C as they are, not moderated yet. scale_C: the
    variance of one value."""

    statistic: str
    kind: Kind
    cells: tuple[Cell, ...]
    reference_VC: FloatArray
    observed_WC: FloatArray
    expected_C: FloatArray
    deviance_WC: FloatArray  # signed root, dispersion not divided out
    exact_WC: Counts | None
    precision_WC: FloatArray  # 1 / n of the week + 1 / n of the reference, as far as it is believed
    scale_C: FloatArray
    s2_C: FloatArray
    d_C: FloatArray
    is_usable_C: BoolArray


class Counts(NamedTuple):
    """Two counts of the rarer outcome, of the week and of the reference, and the share of the week in both."""

    k_WC: FloatArray
    of_reference_WC: FloatArray
    share_WC: FloatArray


def judge_weeks(
    pairs: Sequence[tuple[Weekly, Weekly]], *, level: float, others: Callable[[float], Sequence[Series]]
) -> Judged:
    """Return how each week of some figures stands to their reference; pairs: (reference, judged), weeks of one grid.

    level: the chance that a quiet week has a cell that is off. others: series that are judged elsewhere but count as
    tests all the same, given the level of one test.
    """
    blocks: list[_Block] = []
    for reference, judged in pairs:
        blocks += [_share_block(n, one, judged.shares[n]) for n, one in reference.shares.items()]
        blocks += [_mean_block(n, one, judged.means[n]) for n, one in reference.means.items()]
        if reference.volumes:
            blocks.append(_volume_block(reference.volumes, judged.volumes))
    blocks = [block for block in blocks if block.cells]
    level_of_one = level / sum(len(block.cells) for block in blocks)
    spreads = _moderated(blocks)
    reach_M = t_beyond(level_of_one, np.maximum(np.concatenate([df_C for _, df_C in spreads]), 1.0))
    first_B = np.cumsum([0, *(len(block.cells) for block in blocks)])
    series = [
        one
        for block, (dispersion_C, df_C), first in zip(blocks, spreads, first_B[:-1].tolist(), strict=True)
        for one in _series(block, dispersion_C, df_C, reach_M[first : first + len(df_C)])
    ]
    series += others(level_of_one)
    adjusted_MW = _holm(np.stack([one.p_W for one in series]))
    judged_series = (
        one._replace(is_off_W=adjusted_W <= level) for one, adjusted_W in zip(series, adjusted_MW, strict=True)
    )
    return Judged(tuple(judged_series), adjusted_MW.min(axis=0))


def _share_block(statistic: str, reference: Shares, judged: Shares) -> _Block:
    k_VC, n_VC = reference.k_WC.astype(np.float64), reference.n_WC.astype(np.float64)
    K_C, N_C = k_VC.sum(axis=0), n_VC.sum(axis=0)
    p_C = _over(K_C, N_C)
    deviance_C = (_against(k_VC, n_VC * p_C) + _against(n_VC - k_VC, n_VC * (1 - p_C))).sum(axis=0)
    d_C = np.maximum((n_VC > 0).sum(axis=0) - 1, 0).astype(np.float64)
    believed_C = _over(N_C, d_C + 1)
    k_WC, n_WC = judged.k_WC.astype(np.float64), judged.n_WC.astype(np.float64)
    kept_WC = np.minimum(1.0, _over(believed_C, n_WC, empty=1.0))
    k_WC, n_WC = k_WC * kept_WC, n_WC * kept_WC
    pooled_WC = _over(k_WC + K_C, n_WC + N_C)
    root_WC = _root(
        _against(k_WC, n_WC * pooled_WC)
        + _against(n_WC - k_WC, n_WC * (1 - pooled_WC))
        + _against(np.broadcast_to(K_C, k_WC.shape), N_C * pooled_WC)
        + _against(np.broadcast_to(N_C - K_C, k_WC.shape), N_C * (1 - pooled_WC))
    )
    observed_WC = np.where(n_WC > 0, _over(k_WC, n_WC), np.nan)
    is_rare_WC = pooled_WC <= 0.5
    exact = Counts(
        np.where(is_rare_WC, k_WC, n_WC - k_WC),
        np.where(is_rare_WC, K_C, N_C - K_C),
        _over(n_WC, n_WC + N_C),
    )
    return _Block(
        statistic=statistic,
        kind="share",
        cells=reference.cells,
        reference_VC=np.where(n_VC > 0, _over(k_VC, n_VC), np.nan),
        observed_WC=observed_WC,
        expected_C=p_C,
        deviance_WC=np.where(n_WC > 0, np.sign(np.nan_to_num(observed_WC) - p_C) * root_WC, 0.0),
        exact_WC=exact,
        precision_WC=_over(1.0, n_WC, empty=1.0) + _over(1.0, N_C, empty=1.0),
        # Of what never was, half an event: a band of no width would say that the first one is too many.
        scale_C=_over(K_C + 0.5, N_C + 1) * _over(N_C - K_C + 0.5, N_C + 1),
        s2_C=_over(deviance_C, d_C),
        d_C=d_C,
        is_usable_C=(np.minimum(K_C, N_C - K_C) >= _FEWEST_COUNTED) & (d_C > 0),
    )


def _mean_block(statistic: str, reference: Means, judged: Means) -> _Block:
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
    return _Block(
        statistic=statistic,
        kind="mean",
        cells=reference.cells,
        reference_VC=mean_VC,
        observed_WC=observed_WC,
        expected_C=mean_C,
        deviance_WC=np.where(is_known, (np.nan_to_num(observed_WC) - mean_C) / np.sqrt(scale_C * precision_WC), 0.0),
        exact_WC=None,
        precision_WC=precision_WC,
        scale_C=scale_C,
        s2_C=_over(between_C, d_C * scale_C),
        d_C=d_C,
        is_usable_C=(_FEWEST_COUNTED * (d_C + 1) <= N_C) & (d_C > 0),
    )


def _volume_block(
    reference: Mapping[str, npt.NDArray[np.int64]], judged: Mapping[str, npt.NDArray[np.int64]]
) -> _Block:
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
    return _Block(
        statistic="volume",
        kind="volume",
        cells=tuple((name,) for name in reference),
        reference_VC=k_VC,
        observed_WC=k_WC,
        expected_C=mean_C,
        deviance_WC=np.sign(k_WC - mean_C) * root_WC,
        exact_WC=None,
        precision_WC=np.full(k_WC.shape, 1 + 1 / n_weeks),
        scale_C=mean_C,
        s2_C=_over(_against(k_VC, np.broadcast_to(mean_C, k_VC.shape)).sum(axis=0), d_C),
        d_C=d_C,
        is_usable_C=d_C > 0,
    )


def _moderated(blocks: list[_Block]) -> list[tuple[FloatArray, FloatArray]]:
    """Return the dispersion and the degrees of freedom of each cell of each block."""
    common: dict[str, tuple[float, float]] = {}
    for kind in ("share", "mean"):
        alike = [block for block in blocks if block.kind == kind]
        common[kind] = _prior(
            np.concatenate([b.s2_C[b.is_usable_C] for b in alike] or [np.zeros(0)]),
            np.concatenate([b.d_C[b.is_usable_C] for b in alike] or [np.zeros(0)]),
        )
    spreads: list[tuple[FloatArray, FloatArray]] = []
    for block in blocks:
        if block.kind == "volume":  # few, and each of another nature: there is nothing to share
            spreads.append((np.maximum(block.s2_C, 1.0), block.d_C))
            continue
        s0, d0 = common[block.kind]
        if block.is_usable_C.sum() >= _FEWEST_CELLS:
            s0, d0 = _prior(block.s2_C[block.is_usable_C], block.d_C[block.is_usable_C])
        d_C = np.where(block.is_usable_C, block.d_C, 0.0)
        moderated_C = (d0 * s0 + d_C * block.s2_C) / (d0 + d_C)
        spreads.append((np.maximum(moderated_C, 1.0), d0 + d_C))
    return spreads


def _prior(s2_G: FloatArray, d_G: FloatArray) -> tuple[float, float]:
    """Return the common variance s0 and its degrees of freedom d0, by the moments of log s2 (Smyth 2004, 6.2).

    Of hardly any cell nothing is known: then variances are taken to be 1, with the doubt of four degrees of freedom.
    """
    if len(s2_G) < 3:
        return 1.0, 4.0
    e_G = np.log(np.maximum(s2_G, 1e-6))
    e_G = e_G - np.array([digamma(d / 2) - math.log(d / 2) for d in d_G.tolist()])
    excess = float(e_G.var(ddof=1) - np.mean([trigamma(d / 2) for d in d_G.tolist()]))
    d0 = min(_MOST_PRIOR_DF, 2 * trigamma_inverse(excess)) if excess > 1e-6 else _MOST_PRIOR_DF
    return math.exp(float(e_G.mean()) + digamma(d0 / 2) - math.log(d0 / 2)), d0


def _series(block: _Block, dispersion_C: FloatArray, df_C: FloatArray, reach_C: FloatArray) -> Iterator[Series]:
    """Yield the cells of a block; reach_C: the t that the bounds stand at."""
    t_WC = block.deviance_WC / np.sqrt(dispersion_C)
    is_known_C = df_C >= 1
    df_C = np.maximum(df_C, 1.0)
    p_WC = two_sided_t(t_WC, np.broadcast_to(df_C, t_WC.shape))
    if block.exact_WC is not None:
        p_WC = np.maximum(p_WC, _exact(block.exact_WC, dispersion_C))
    p_WC = np.where(is_known_C, p_WC, 1.0)
    reach_WC = reach_C * np.sqrt(dispersion_C * block.scale_C * block.precision_WC)
    low_WC, high_WC = block.expected_C - reach_WC, block.expected_C + reach_WC
    if block.kind != "mean":
        low_WC = np.maximum(low_WC, 0.0)
    if block.kind == "share":
        high_WC = np.minimum(high_WC, 1.0)
    for c, cell in enumerate(block.cells):
        yield Series(
            statistic=block.statistic,
            cell=cell,
            kind=block.kind,
            reference_V=block.reference_VC[:, c],
            observed_W=block.observed_WC[:, c],
            expected=float(block.expected_C[c]),
            low_W=low_WC[:, c],
            high_W=high_WC[:, c],
            t_W=t_WC[:, c],
            p_W=p_WC[:, c],
            is_off_W=np.zeros(len(p_WC), dtype=np.bool_),
            dispersion=float(dispersion_C[c]),
            df=float(df_C[c]),
        )


def _exact(counts: Counts, dispersion_C: FloatArray) -> FloatArray:
    """Return p of the conditional test of two rates, 0 where counts are many enough to leave it to the t."""
    k_WC, reference_WC = counts.k_WC / dispersion_C, counts.of_reference_WC / dispersion_C
    is_few_WC = (k_WC + reference_WC) * counts.share_WC < _FEW
    is_more_WC = k_WC * (1 - counts.share_WC) > reference_WC * counts.share_WC
    few = np.nonzero(is_few_WC & (k_WC + reference_WC > 0))
    k_F, reference_F, share_F = k_WC[few], reference_WC[few], counts.share_WC[few]
    above_F = np.where(k_F > 0, beta_below(np.maximum(k_F, 1e-9), reference_F + 1, share_F), 1.0)
    below_F = np.where(reference_F > 0, beta_below(np.maximum(reference_F, 1e-9), k_F + 1, 1 - share_F), 1.0)
    p_WC = np.where(is_few_WC, 1.0, 0.0)
    p_WC[few] = np.minimum(2 * np.where(is_more_WC[few], above_F, below_F), 1.0)
    return p_WC


def _holm(p_MW: FloatArray) -> FloatArray:
    """Return the adjusted p of each cell in each week."""
    n_cells = len(p_MW)
    order_MW = np.argsort(p_MW, axis=0, kind="stable")
    ranked_MW = np.take_along_axis(p_MW, order_MW, axis=0) * (n_cells - np.arange(n_cells))[:, None]
    ranked_MW = np.minimum(np.maximum.accumulate(ranked_MW, axis=0), 1.0)
    adjusted_MW = np.empty_like(p_MW)
    np.put_along_axis(adjusted_MW, order_MW, ranked_MW, axis=0)
    return adjusted_MW


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
