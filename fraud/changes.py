"""What changes where one scorer takes the place of another: their decisions on the same events, set side by side.

a is the scorer that decides now, b the one that would. This file knows no model, no log and no period; it is given what
both made of the same events.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fraud.decisions import ALLOW, BLOCK, DECISIONS, DecisionArray
from fraud.events import BoolArray, FloatArray, IntArray
from fraud.metrics import N_RESAMPLES, Costs, Examples, PairedDifference, average_precision, paired_ap_difference
from fraud.ranking import Interval, LabelArray, percentile_interval, ranking_figures
from fraud.resamples import resampled_totals


class Side(NamedTuple):
    """What one scorer makes of D events: score_D float64, decision_D int8, an index into DECISIONS."""

    score_D: FloatArray
    decision_D: DecisionArray

    @property
    def alerted_D(self) -> BoolArray:
        """Return bool [D]: True where somebody has to look, or nothing passes."""
        return self.decision_D > ALLOW

    def take(self, rows: IntArray) -> Side:
        """Return it at `rows`."""
        return Side(self.score_D[rows], self.decision_D[rows])


@dataclass(frozen=True, slots=True, kw_only=True)
class Sides:
    """D events that both scorers decide on. user_D: codes that never fall. amount_D: NaN = none, or None."""

    a: Side
    b: Side
    user_D: IntArray
    amount_D: FloatArray | None

    @property
    def change_D(self) -> npt.NDArray[np.int8]:
        """Return int8 [D]: above 0 where b decides more strictly than a, below where more mildly."""
        return self.b.decision_D - self.a.decision_D


class Known(NamedTuple):
    """What is known of D events: label_D int8, 1 fraud; judged_D bool, the one example of each label."""

    label_D: LabelArray
    judged_D: BoolArray


class Moved(NamedTuple):
    """How many events go from one side to the other, and the sum of their amounts; None where no amount is declared."""

    n: int
    amount: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Movements:
    """What b alerts (reviews or blocks) that a does not, and blocks that a does not; and the reverse."""

    newly_alerted: Moved
    no_longer_alerted: Moved
    newly_blocked: Moved
    no_longer_blocked: Moved


class PairedTotal(NamedTuple):
    """A total under a and under b, and the 95 % interval of b minus a over resampled users."""

    a: float
    b: float
    ci: Interval

    @property
    def diff(self) -> float:
        """Return b minus a."""
        return self.b - self.a


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What the change is worth on N judged examples, of which n_frauds are fraud.

    caught: frauds alerted. gained, lost: frauds that only b alerts, that only a does. false_gained, false_lost: honest
    examples likewise. saved: amounts of the caught frauds minus what the alerts cost to look at; None without amounts.
    ap: of b minus a; None without a fraud. caught_at_equal: the frauds that b would catch with as many alerts as a has,
    its highest scores (ties in expectation); None without a fraud.
    """

    n_judged: int
    n_frauds: int
    gained: Moved
    lost: Moved
    false_gained: int
    false_lost: int
    caught: PairedTotal
    saved: PairedTotal | None
    ap_a: float | None
    ap: PairedDifference | None
    caught_at_equal: float | None


def decision_matrix(sides: Sides) -> IntArray:
    """Return int64 [3, 3]: how many events a decides as the row and b as the column, in the order of DECISIONS."""
    n_kinds = len(DECISIONS)
    cell_D = sides.a.decision_D.astype(np.int64) * n_kinds + sides.b.decision_D
    return np.bincount(cell_D, minlength=n_kinds**2).reshape(n_kinds, n_kinds)


def movements(sides: Sides) -> Movements:
    """Return how much goes from one side to the other."""
    alerted_a, alerted_b = sides.a.alerted_D, sides.b.alerted_D
    blocked_a, blocked_b = (side.decision_D == BLOCK for side in (sides.a, sides.b))
    return Movements(
        newly_alerted=_moved(sides, alerted_b & ~alerted_a),
        no_longer_alerted=_moved(sides, alerted_a & ~alerted_b),
        newly_blocked=_moved(sides, blocked_b & ~blocked_a),
        no_longer_blocked=_moved(sides, blocked_a & ~blocked_b),
    )


def outcome(
    sides: Sides, known: Known, *, costs: Costs | None, seed: int, n_resamples: int = N_RESAMPLES
) -> Outcome | None:
    """Return what the change is worth where labels say it; None where nothing is judged.

    costs: what a look costs, the same for both.
    """
    judged_D = known.judged_D
    if not judged_D.any():
        return None
    user_N, label_N = sides.user_D[judged_D], known.label_D[judged_D]
    alerted_a, alerted_b = sides.a.alerted_D[judged_D], sides.b.alerted_D[judged_D]
    is_fraud_N = label_N == 1
    columns = [alerted_a & is_fraud_N, alerted_b & is_fraud_N]
    if sides.amount_D is not None:
        amount_N, review = np.nan_to_num(sides.amount_D[judged_D]), costs["review"] if costs else 0.0
        columns += [amount_N * columns[0] - review * alerted_a, amount_N * columns[1] - review * alerted_b]
    totals = _paired_totals(columns, user_N, seed=seed, n_resamples=n_resamples)
    examples_a, examples_b = (
        Examples(score_N=side.score_D[judged_D], label_N=label_N, user_N=user_N, amount_N=None)
        for side in (sides.a, sides.b)
    )
    gained_D, lost_D = sides.b.alerted_D & ~sides.a.alerted_D, sides.a.alerted_D & ~sides.b.alerted_D
    is_fraud_D = judged_D & (known.label_D == 1)
    return Outcome(
        n_judged=len(label_N),
        n_frauds=int(is_fraud_N.sum()),
        gained=_moved(sides, is_fraud_D & gained_D),
        lost=_moved(sides, is_fraud_D & lost_D),
        false_gained=int((judged_D & ~is_fraud_D & gained_D).sum()),
        false_lost=int((judged_D & ~is_fraud_D & lost_D).sum()),
        caught=totals[0],
        saved=totals[1] if len(totals) > 1 else None,
        ap_a=average_precision(examples_a.score_N, label_N),
        ap=paired_ap_difference(examples_b, examples_a, seed=seed, n_resamples=n_resamples),
        caught_at_equal=_caught_by_best(examples_b, int(alerted_a.sum())),
    )


def _paired_totals(
    columns: Sequence[FloatArray | BoolArray], user_N: IntArray, *, seed: int, n_resamples: int
) -> list[PairedTotal]:
    """Return what each two columns, one of a and one of b, add up to."""
    values = [column.astype(np.float64) for column in columns]
    total_VR = resampled_totals(values, user_N, seed=seed, n_resamples=n_resamples)
    found: list[PairedTotal] = []
    for v in range(0, len(values), 2):
        interval = percentile_interval(total_VR[v + 1] - total_VR[v])
        assert interval is not None  # a total exists in every resample
        found.append(PairedTotal(float(values[v].sum()), float(values[v + 1].sum()), interval))
    return found


def _caught_by_best(examples: Examples, n_alerts: int) -> float | None:
    """Return how many frauds the n_alerts highest scores hold; None without a fraud."""
    n_frauds = int(examples.label_N.sum())
    # Half an event more than n_alerts: the floor of a share times N is then n_alerts, however it is rounded.
    budget = (n_alerts + 0.5) / len(examples)
    found = ranking_figures(examples.score_N, examples.label_N, budget=budget)
    return float(found.recall_R[0]) * n_frauds if n_frauds else None


def _moved(sides: Sides, chosen_D: BoolArray) -> Moved:
    amount = None if sides.amount_D is None else float(np.nansum(sides.amount_D[chosen_D]))
    return Moved(int(chosen_D.sum()), amount)
