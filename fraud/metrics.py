"""How good scores are: ranking, alerts, money and calibration, with intervals from resampling users.

This file knows no model, no period and no policy; it is given scores, labels and the threshold to judge.

A figure that does not exist is None, never 0: AP, AUC and recall without a fraud, precision of no alert.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Literal, NamedTuple

import numpy as np

from fraud.errors import DataError
from fraud.events import BoolArray, FloatArray, IntArray
from fraud.ranking import (
    Interval,
    LabelArray,
    percentile_interval,
    ranking_figures,
    resampled_ranking_figures,
)

Costs = Mapping[Literal["review"], float]

N_RESAMPLES = 1000
N_CALIBRATION_BINS = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class Examples:
    """N judged events. user_N: any integer code of the user, the unit that is resampled. amount_N: NaN = none.

    Raises DataError for lengths that differ, a score that is not finite, a label that is neither 0 nor 1.
    """

    score_N: FloatArray
    label_N: LabelArray
    user_N: IntArray
    amount_N: FloatArray | None

    def __post_init__(self) -> None:
        lengths = {
            column.name: len(getattr(self, column.name))
            for column in fields(self)
            if getattr(self, column.name) is not None
        }
        if len(set(lengths.values())) > 1:
            raise DataError(f"examples: expected columns of one length, got {lengths}")
        _check_scores(self.score_N, self.label_N)

    def __len__(self) -> int:
        return len(self.score_N)


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """The figures of one scorer on one set of examples; `to_json` gives them by these names."""

    ap: float | None
    ap_ci: Interval | None
    auc: float | None
    auc_ci: Interval | None
    recall_at_budget: float | None
    recall_at_budget_ci: Interval | None
    precision_at_budget: float | None
    alert_rate: float | None
    recall_at_threshold: float | None
    money_saved: float | None
    ece: float | None
    mean_score_over_base_rate: float | None
    n_test: int
    n_positive: int

    def to_json(self) -> dict[str, float | int | list[float] | None]:
        """Return the figures as JSON takes them: an interval is [low, high], an undefined figure null."""
        figures: dict[str, float | int | Interval | None] = asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in figures.items()}


class PairedDifference(NamedTuple):
    """AP of a minus AP of b, and its 95 % interval."""

    diff: float
    lo: float
    hi: float


class DetectionDelay(NamedTuple):
    """Median seconds from first fraud to first alert among detected sessions; share of fraud sessions detected."""

    median_s: float | None
    detected_share: float | None
    n_sessions: int


def evaluate(
    examples: Examples,
    *,
    alert_budget: float,
    threshold: float,
    costs: Costs | None,
    price: Costs | None = None,
    seed: int = 0,
    n_resamples: int = N_RESAMPLES,
) -> Metrics:
    """Return every figure of the examples; intervals are percentile 95 % over resampled users.

    alert_budget judges the ranking alone (the best floor(alert_budget x N) scores; ties at the cut in expectation over
    their random order). threshold and costs judge the policy as `alerts` applies it. money_saved: the amounts of caught
    frauds, taken as saved whole, minus what the reviews cost where that is configured; None without amounts.
    price: what they are charged at where several policies are compared, each with costs of its own.
    """
    score_N, label_N = examples.score_N, examples.label_N
    n_positive = int(label_N.sum())
    point = ranking_figures(score_N, label_N, budget=alert_budget)
    resampled = resampled_ranking_figures(
        score_N, label_N, examples.user_N, budget=alert_budget, seed=seed, n_resamples=n_resamples
    )
    alerted_N = alerts(score_N, examples.amount_N, threshold=threshold, costs=costs)
    caught_N = alerted_N & (label_N == 1)
    return Metrics(
        ap=_defined(point.ap_R[0]),
        ap_ci=percentile_interval(resampled.ap_R),
        auc=_defined(point.auc_R[0]),
        auc_ci=percentile_interval(resampled.auc_R),
        recall_at_budget=_defined(point.recall_R[0]),
        recall_at_budget_ci=percentile_interval(resampled.recall_R),
        precision_at_budget=_defined(point.precision_R[0]),
        alert_rate=float(alerted_N.mean()) if len(examples) else None,
        recall_at_threshold=float(caught_N.sum() / n_positive) if n_positive else None,
        money_saved=_money_saved(alerted_N, caught_N, examples.amount_N, price or costs),
        ece=expected_calibration_error(score_N, label_N),
        mean_score_over_base_rate=float(score_N.sum() / n_positive) if n_positive else None,
        n_test=len(examples),
        n_positive=n_positive,
    )


def paired_ap_difference(
    examples_a: Examples, examples_b: Examples, *, seed: int = 0, n_resamples: int = N_RESAMPLES
) -> PairedDifference | None:
    """Return AP of a minus AP of b with the interval over resamples that both share; None without a fraud.

    Raises DataError where the two are not the same examples in the same order.
    """
    if not np.array_equal(examples_a.user_N, examples_b.user_N):
        raise DataError("paired_ap_difference: expected the same examples, but user_N differs between a and b")
    if not np.array_equal(examples_a.label_N, examples_b.label_N):
        raise DataError("paired_ap_difference: expected the same examples, but label_N differs between a and b")
    ap_a = average_precision(examples_a.score_N, examples_a.label_N)
    ap_b = average_precision(examples_b.score_N, examples_b.label_N)
    if ap_a is None or ap_b is None:
        return None
    first, second = (
        resampled_ranking_figures(
            examples.score_N, examples.label_N, examples.user_N, budget=0.0, seed=seed, n_resamples=n_resamples
        ).ap_R
        for examples in (examples_a, examples_b)
    )
    interval = percentile_interval(first - second)
    return None if interval is None else PairedDifference(ap_a - ap_b, *interval)


def average_precision(score_N: FloatArray, label_N: LabelArray) -> float | None:
    """Return the area under the precision-recall steps, tied scores entering together; None without a fraud."""
    _check_scores(score_N, label_N)
    return _defined(ranking_figures(score_N, label_N, budget=0.0).ap_R[0])


def roc_auc(score_N: FloatArray, label_N: LabelArray) -> float | None:
    """Return the chance that a fraud outscores another event, ties counting half; None where either is missing."""
    _check_scores(score_N, label_N)
    return _defined(ranking_figures(score_N, label_N, budget=0.0).auc_R[0])


def expected_calibration_error(score_N: FloatArray, label_N: LabelArray) -> float | None:
    """Return the mean |mean score - fraud rate| over 15 bins of equal size by score; None of no example.

    A tied score counts with the fraud rate of its ties, so that the order of rows does not matter.
    """
    if len(score_N) == 0:
        return None
    values_G, group_N, n_G = np.unique(score_N, return_inverse=True, return_counts=True)
    rate_G = np.bincount(group_N, weights=label_N) / n_G
    excess_N = np.repeat(values_G - rate_G, n_G)
    edges = np.arange(N_CALIBRATION_BINS + 1) * len(score_N) // N_CALIBRATION_BINS
    excess_by_bin = np.diff(np.concatenate([[0.0], np.cumsum(excess_N)])[edges])
    return float(np.abs(excess_by_bin).sum() / len(score_N))


def alerts(score_N: FloatArray, amount_N: FloatArray | None, *, threshold: float, costs: Costs | None) -> BoolArray:
    """Return bool [N]: True where an event is worth a person's look.

    Without costs: its score reaches the threshold. With costs: the loss to expect, score x amount, exceeds the price of
    the review (Elkan 2001, The Foundations of Cost-Sensitive Learning, eq. 2); an event without an amount is judged by
    the threshold.
    """
    reached_N = score_N >= threshold
    if costs is None or amount_N is None:
        return reached_N
    return np.where(np.isnan(amount_N), reached_N, score_N * amount_N > costs["review"])


def detection_delay(
    session_N: IntArray, time_us_N: IntArray, label_N: LabelArray, alerted_N: BoolArray
) -> DetectionDelay:
    """Return how long frauds ran: from the first fraud event of a session to the session's first alert.

    session_N: any integer code. A session alerted before its first fraud event has a delay of 0. Sessions never alerted
    count in the share alone. Both figures are None without a fraud session, the median also where none was detected.
    """
    codes_S, session_N = np.unique(session_N, return_inverse=True)
    never = np.iinfo(np.int64).max
    fraud_us_S, alert_us_S = (np.full(len(codes_S), never, dtype=np.int64) for _ in range(2))
    np.minimum.at(fraud_us_S, session_N[label_N == 1], time_us_N[label_N == 1])
    np.minimum.at(alert_us_S, session_N[alerted_N], time_us_N[alerted_N])
    is_fraud_S = fraud_us_S < never
    is_detected_S = is_fraud_S & (alert_us_S < never)
    n_fraud, n_detected = int(is_fraud_S.sum()), int(is_detected_S.sum())
    delay_us = np.maximum(alert_us_S[is_detected_S] - fraud_us_S[is_detected_S], 0)
    return DetectionDelay(
        median_s=float(np.median(delay_us)) / 1e6 if n_detected else None,
        detected_share=n_detected / n_fraud if n_fraud else None,
        n_sessions=n_fraud,
    )


def _defined(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _money_saved(
    alerted_N: BoolArray, caught_N: BoolArray, amount_N: FloatArray | None, costs: Costs | None
) -> float | None:
    if amount_N is None or bool(np.isnan(amount_N).all()):
        return None
    review_cost = costs["review"] if costs else 0.0
    return float(np.nansum(amount_N[caught_N]) - review_cost * alerted_N.sum())


def _check_scores(score_N: FloatArray, label_N: LabelArray) -> None:
    bad_N = ~np.isfinite(score_N)
    if bad_N.any():
        row = int(np.argmax(bad_N))
        raise DataError(f"score_N[{row}] = {score_N[row]}: expected a finite score")
    bad_N = (label_N != 0) & (label_N != 1)
    if bad_N.any():
        row = int(np.argmax(bad_N))
        raise DataError(f"label_N[{row}] = {label_N[row]}: expected 0 or 1")
