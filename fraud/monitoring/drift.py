"""Which weeks of a log are off: each figure against its own variation from week to week in the reference.

A share (k of n), a mean or a volume of a week is held against the weeks of the reference by a quasi-likelihood test,
as edgeR does for counts (Lund et al. 2012, Detecting differential expression in RNA-sequence data using
quasi-likelihood with shrunken dispersion estimates):

- *Variation.* Of the reference weeks of each cell: s2 = deviance / (weeks - 1), how many times the variance of the
  binomial (mean: of independent values, volume: of the Poisson) the weeks differ by. Users come in clusters and weeks
  have their moods, so it is 1 in no real log.
- *Moderation.* A dozen weeks say little about one variance but much about those of all cells of a statistic: s2 is
  shrunk towards their common value s0 (`dispersion`): (d0 s0 + d s2) / (d0 + d), with d0 + d degrees of freedom.
  It never counts as below 1.
- *Test.* The signed root of the deviance between the week and the reference, over the root of the dispersion, is a t
  of d0 + d degrees of freedom. Where counts are small that is too sure, so the exact conditional test of two rates
  (Przyborowski and Wilenski 1940), its counts divided by the dispersion, must agree: the larger p counts. A week with
  more events than those of the reference is not believed to be more exact than they were.
- *Wander.* Scores have few weeks that no model was fitted on, too near each other to show how scores wander as users'
  pasts grow: they must lie beyond a margin, and by as much as above.
- *Many tests.* Holm's step-down (1979) over all cells of a week: with `level` = 0.02, two quiet weeks in a hundred
  raise an alarm, however many figures there are.

Nothing here knows what a figure means; words are `attribution`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from fraud.events import BoolArray, FloatArray
from fraud.monitoring.deviances import Block, Counts, Kind, mean_block, share_block, volume_block
from fraud.monitoring.dispersion import Prior, moderated, prior_of
from fraud.monitoring.tails import beta_below, t_beyond, two_sided_t
from fraud.monitoring.weekly import Cell, Weekly

# How far figures wander that a reference of a few weeks cannot show: scores follow the length of users' pasts. Without
# any change the typical odds of five simulated banks moved by up to 1.08x in 16 weeks, the share of a band by 1.2x.
_WANDERS = {"score": 1.2}
_FEWEST_CELLS = 4  # of a statistic that has a common variance of its own; others share that of all
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


def judge_weeks(
    pairs: Sequence[tuple[Weekly, Weekly]], *, level: float, others: Callable[[float], Sequence[Series]]
) -> Judged:
    """Return how each week of some figures stands to their reference; pairs: (reference, judged), weeks of one grid.

    level: the chance that a quiet week has a cell that is off. others: series that are judged elsewhere but count as
    tests all the same, given the level of one test.
    """
    blocks: list[Block] = []
    for reference, judged in pairs:
        for name, shares in reference.shares.items():
            blocks.append(share_block(name, shares, judged.shares[name], margin=_WANDERS.get(name, 1.0)))
        for name, means in reference.means.items():
            blocks.append(mean_block(name, means, judged.means[name], margin=_WANDERS.get(name, 1.0)))
        if reference.volumes:
            blocks.append(volume_block(reference.volumes, judged.volumes))
    blocks = [block for block in blocks if block.cells]
    level_of_one = level / sum(len(block.cells) for block in blocks)
    spreads = _spreads(blocks)
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


def _spreads(blocks: list[Block]) -> list[tuple[FloatArray, FloatArray]]:
    """Return the dispersion, never below 1, and its degrees of freedom, of each cell of each block."""
    common = {kind: _common([block for block in blocks if block.kind == kind]) for kind in ("share", "mean")}
    spreads: list[tuple[FloatArray, FloatArray]] = []
    for block in blocks:
        if block.kind == "volume":  # few, and each of another nature: there is nothing to share
            dispersion_C, df_C = block.s2_C, block.d_C
        else:
            prior = _common([block]) if block.is_usable_C.sum() >= _FEWEST_CELLS else common[block.kind]
            dispersion_C, df_C = moderated(block.s2_C, block.d_C, block.is_usable_C, prior)
        spreads.append((np.maximum(dispersion_C, 1.0), df_C))
    return spreads


def _common(blocks: list[Block]) -> Prior:
    return prior_of(
        np.concatenate([np.zeros(0), *(block.s2_C[block.is_usable_C] for block in blocks)]),
        np.concatenate([np.zeros(0), *(block.d_C[block.is_usable_C] for block in blocks)]),
    )


def _series(block: Block, dispersion_C: FloatArray, df_C: FloatArray, reach_C: FloatArray) -> Iterator[Series]:
    """Yield the cells of a block; reach_C: the t that the bounds stand at."""
    t_WC = block.root_WC / np.sqrt(dispersion_C)
    is_known_C = df_C >= 1
    df_C = np.maximum(df_C, 1.0)
    p_WC = two_sided_t(t_WC, np.broadcast_to(df_C, t_WC.shape))
    if block.counts_WC is not None:
        p_WC = np.maximum(p_WC, _exact(block.counts_WC, dispersion_C))
    p_WC = np.where(is_known_C, p_WC, 1.0)
    reach_WC = reach_C * np.sqrt(dispersion_C * block.scale_C * block.precision_WC)
    low_WC, high_WC = block.free_C2[:, 0] - reach_WC, block.free_C2[:, 1] + reach_WC
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
