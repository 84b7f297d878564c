"""Scorers whose figures are known: the truth's own log odds of fraud, with errors of a chosen size.

The errors are normal, half of their variance shared by a user's decisions of a fortnight. What a size of errors leaves
is read off a whole simulated bank; a sample of it is what a judged period holds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fraud.config import PolicyConfig
from fraud.events import FloatArray, IntArray
from fraud.gate import Contender
from fraud.metrics import Examples
from fraud.ranking import LabelArray, ranking_figures
from pipelines.bank.chain import IS_DECISION_V, bank_chain
from pipelines.bank.log import ORIGIN_US, simulate_bank
from pipelines.bank.oracle import fraud_probability

FIGURES = ("ap", "auc", "recall_at_budget", "precision_at_budget")  # in the order of `RankingFigures`
BUDGET = PolicyConfig().alert_budget
# What an lstm reaches of the oracle's average precision: .745 of .864 (8,000 users, test period, against the truth).
SHARE_OF_ORACLE = 0.86
_UNIT_SHARE = 0.5
_FORTNIGHT_US = 14 * 86_400 * 10**6
_LEAST_LOG_ODDS = -8.0  # where no story fits, the truth's are -inf, and no model is as sure as that
_SIZES = np.linspace(0.0, 5.0, 26)
_N_DRAWS = 3  # of the errors on the whole bank


@dataclass(frozen=True, slots=True, kw_only=True)
class Decisions:
    """N decisions in order of their unit, a user's fortnight; unit_N: 0, 1, … without a gap."""

    log_odds_N: FloatArray
    label_N: LabelArray
    unit_N: IntArray

    def errors(self, rng: np.random.Generator) -> FloatArray:
        """Return standard normal errors [N], of which the decisions of a unit share a part."""
        of_unit_U = rng.normal(size=int(self.unit_N[-1]) + 1)
        own_N = rng.normal(size=len(self.unit_N))
        return math.sqrt(_UNIT_SHARE) * of_unit_U[self.unit_N] + math.sqrt(1 - _UNIT_SHARE) * own_N

    def contender(self, error_N: FloatArray) -> Contender:
        """Return the scorer that errs so, as the gate takes it."""
        score_N = 1 / (1 + np.exp(-(self.log_odds_N + error_N)))
        examples = Examples(score_N=score_N, label_N=self.label_N, user_N=self.unit_N, amount_N=None)
        return Contender(examples, threshold=1.0, costs=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bank:
    """The decisions of a whole bank, and what each size of errors leaves there: figures_FS, one row a figure."""

    decisions: Decisions
    figures_FS: FloatArray

    def size_of(self, ap: float) -> float:
        """Return the size of the errors that leaves so much average precision."""
        return float(np.interp(-ap, -self.figures_FS[0], _SIZES))

    def figure(self, name: str, size: float) -> float:
        """Return the figure that errors of this size leave."""
        return float(np.interp(size, _SIZES, self.figures_FS[FIGURES.index(name)]))

    @property
    def champion_size(self) -> float:
        """Return the size of a champion's errors."""
        return self.size_of(SHARE_OF_ORACLE * self.figure("ap", 0.0))

    def sample(self, positives: int, rng: np.random.Generator) -> Decisions:
        """Return a judged period: units drawn with replacement until they hold so many frauds.

        A unit drawn twice is two users who did the same, and a scorer errs on each in its own way: so what the whole
        bank says is the exact truth of every sample.
        """
        whole = self.decisions
        n_rows_U = np.bincount(whole.unit_N)
        n_fraud_U = np.bincount(whole.unit_N, weights=whole.label_N)
        drawn = rng.integers(0, len(n_rows_U), size=int(3 * positives / n_fraud_U.mean()))
        drawn = drawn[: int(np.searchsorted(np.cumsum(n_fraud_U[drawn]), positives)) + 1]
        n_rows = n_rows_U[drawn]
        unit_N = np.repeat(np.arange(len(drawn)), n_rows)
        place_N = np.arange(len(unit_N)) - (np.cumsum(n_rows) - n_rows)[unit_N]
        rows_N = (np.cumsum(n_rows_U) - n_rows_U)[drawn][unit_N] + place_N
        return Decisions(log_odds_N=whole.log_odds_N[rows_N], label_N=whole.label_N[rows_N], unit_N=unit_N)


def simulated(users: int, seed: int) -> Bank:
    """Return a fresh bank of 90 days; its figures are means over a few draws of the errors."""
    chain = bank_chain(0.01)
    log = simulate_bank(chain, users=users, days=90, seed=seed + 1000)
    rows = np.flatnonzero(IS_DECISION_V[log.type_N])
    p_N = np.maximum(fraud_probability(chain, log)[rows], 1 / (1 + math.exp(-_LEAST_LOG_ODDS)))
    fortnight_N = (log.time_us_N[rows] - ORIGIN_US) // _FORTNIGHT_US
    _, unit_N = np.unique(log.user_N[rows] * 100 + fortnight_N, return_inverse=True)  # a log is sorted by user and time
    decisions = Decisions(
        log_odds_N=np.log(p_N / (1 - p_N)), label_N=log.is_fraud_N[rows].astype(np.int8), unit_N=unit_N
    )
    rng = np.random.default_rng([seed, 1])
    draws = [decisions.errors(rng) for _ in range(_N_DRAWS)]
    figures_FS = np.array([np.mean([_figures(decisions, size * z_N) for z_N in draws], axis=0) for size in _SIZES]).T
    return Bank(decisions=decisions, figures_FS=figures_FS)


def _figures(decisions: Decisions, error_N: FloatArray) -> list[float]:
    found = ranking_figures(decisions.log_odds_N + error_N, decisions.label_N, budget=BUDGET)
    return [float(figure_R[0]) for figure_R in found]
