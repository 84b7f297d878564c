"""The published figures of the Fraud Detection Handbook from scores by event: AUC, AP and card precision@100.

    python benchmarks/datasets/fdh_judge.py DIR NAME

DIR is what fdh_cards.py wrote; the scores of the folds are DIR/NAME-2018-07-25.parquet and so on (`fraud score
--per-event`), those that are there. A few seconds. Each test day is judged without the customers known as defrauded by
then: those with a fraud in the training week, or on the days of the delay that ended so far. Intervals: 1,000 resamples
of customers, the same customers in every fold, since the folds share them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fraud.errors import DataError
from fraud.metrics import average_precision, roc_auc

N_CARDS = 100
N_RESAMPLES = 1000
TRAIN_DAYS, DELAY_DAYS, TEST_DAYS = 7, 7, 7
_DAY_MS = 86_400_000

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


class Judged(NamedTuple):
    """The test payments of a fold that count. day_N: 0..6; customer_N: any integer; label_N: int8."""

    day_N: IntArray
    customer_N: IntArray
    label_N: npt.NDArray[np.int8]
    score_N: FloatArray


def main() -> None:
    """Print the figures of each fold, their mean and its interval as one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", type=Path)
    parser.add_argument("name")
    arguments = parser.parse_args()
    sys.stdout.write(json.dumps(judge_folds(arguments.dir, arguments.name), indent=1) + "\n")


def judge_folds(folder: Path, name: str) -> dict[str, Any]:  # Any: JSON
    """Return {fold: figures, "mean": figures, "ci": {figure: [low, high]}} of the folds whose scores are there."""
    events = pq.read_table(folder / "events.parquet")
    folds = {
        column.removeprefix("part_"): scores
        for column in events.column_names
        if column.startswith("part_") and (scores := folder / f"{name}-{column[5:]}.parquet").exists()
    }
    if not folds:
        raise DataError(f"{folder}: no scores named {name}-FOLD.parquet")
    judged = {fold: judged_payments(events, fold, pq.read_table(scores)) for fold, scores in folds.items()}
    return summary(judged)


def summary(judged: Mapping[str, Judged]) -> dict[str, Any]:  # Any: JSON
    """Return {fold: figures, "mean": figures, "ci": {figure: [low, high]}}."""
    figures: dict[str, Any] = {fold: _figures(payments) for fold, payments in judged.items()}
    mean = {figure: float(np.mean([one[figure] for one in figures.values()])) for figure in ("auc", "ap", "cp100")}
    return figures | {"mean": mean, "ci": _intervals(list(judged.values()))}


def judged_payments(events: pa.Table, fold: str, scores: pa.Table) -> Judged:
    """Return the payments of the fold's test week by customers not yet known as defrauded, with their scores."""
    day_N = events["ts"].cast(pa.int64()).to_numpy() // _DAY_MS
    start = int(day_N[pc.equal(events[f"part_{fold}"], "train").to_numpy()].min())
    customer_N = events["customer"].to_numpy().astype(np.int64)
    label_N = events["fraud"].to_numpy().astype(np.int8)
    test_day_N, rows = test_days(day_N - start, customer_N, label_N)
    place = pc.index_in(events["event_id"].take(pa.array(rows)).cast(pa.string()), value_set=scores["event_id"])
    if place.null_count:
        raise DataError(f"fold {fold}: {place.null_count} of {len(rows)} test payments have no score")
    score_N = scores["score"].take(place).to_numpy()
    return Judged(test_day_N[rows], customer_N[rows], label_N[rows], score_N)


def test_days(
    day_N: IntArray, customer_N: IntArray, label_N: npt.NDArray[np.int8]
) -> tuple[IntArray, npt.NDArray[np.intp]]:
    """Return the test day of each payment (0..6 in the test week), and the rows of those that count.

    day_N: since the training week began. customer_N: any small integers.
    """
    known_from = _known_from(day_N, customer_N, label_N)
    test_day_N = day_N - TRAIN_DAYS - DELAY_DAYS
    counts_N = (test_day_N >= 0) & (test_day_N < TEST_DAYS) & (test_day_N < known_from[customer_N])
    return test_day_N, np.flatnonzero(counts_N)


def _known_from(day_N: IntArray, customer_N: IntArray, label_N: npt.NDArray[np.int8]) -> IntArray:
    """Return for each customer number the first test day on which a fraud of theirs is known (7 = none is)."""
    known_from = np.full(int(customer_N.max()) + 1, TEST_DAYS)
    is_seen_N = (label_N == 1) & (day_N >= 0) & (day_N < TRAIN_DAYS + TEST_DAYS - 1)
    np.minimum.at(known_from, customer_N[is_seen_N], np.maximum(day_N[is_seen_N] - TRAIN_DAYS + 1, 0))
    return known_from


def _figures(judged: Judged) -> dict[str, float | int | None]:
    return {
        "auc": roc_auc(judged.score_N, judged.label_N),
        "ap": average_precision(judged.score_N, judged.label_N),
        "cp100": card_precision(judged),
        "n_test": len(judged.label_N),
        "n_positive": int(judged.label_N.sum()),
    }


def card_precision(judged: Judged) -> float:
    """Return the mean over days of: the share of the 100 cards with the highest scores that were defrauded that day.

    A card caught on one day is out on the next ones.
    """
    shares: list[float] = []
    caught = np.zeros(int(judged.customer_N.max()) + 1, dtype=np.bool_)
    for day in range(TEST_DAYS):
        rows = np.flatnonzero((judged.day_N == day) & ~caught[judged.customer_N])
        customers, card_R = np.unique(judged.customer_N[rows], return_inverse=True)
        score_C, is_fraud_C = np.full(len(customers), -np.inf), np.zeros(len(customers), dtype=np.int64)
        np.maximum.at(score_C, card_R, judged.score_N[rows])
        np.maximum.at(is_fraud_C, card_R, judged.label_N[rows])
        highest = np.argsort(-score_C, kind="stable")[:N_CARDS]
        shares.append(is_fraud_C[highest].sum() / N_CARDS)
        caught[customers[highest[is_fraud_C[highest] == 1]]] = True
    return float(np.mean(shares))


def _intervals(folds: list[Judged]) -> dict[str, list[float]]:
    """Return the 95 % intervals of the means over the folds."""
    n_customers = max(int(fold.customer_N.max()) for fold in folds) + 1
    sorted_folds = [(fold.customer_N[order], fold.label_N[order]) for fold in folds for order in [_falling(fold)]]
    rng = np.random.default_rng(0)
    means = np.empty((N_RESAMPLES, 2))
    for resample in range(N_RESAMPLES):
        weight_C = np.bincount(rng.integers(0, n_customers, n_customers), minlength=n_customers)
        means[resample] = np.mean([_weighted(label, weight_C[customer]) for customer, label in sorted_folds], axis=0)
    low, high = np.percentile(means, [2.5, 97.5], axis=0)
    return {"auc": [float(low[0]), float(high[0])], "ap": [float(low[1]), float(high[1])]}


def _falling(fold: Judged) -> IntArray:
    return np.argsort(-fold.score_N, kind="stable")


def _weighted(label_N: npt.NDArray[np.int8], weight_N: IntArray) -> tuple[float, float]:
    """Return (AUC, AP) of weighted payments in falling order of score; ties, rare in these scores, keep their order."""
    is_fraud_N = label_N == 1
    fraud_N = np.cumsum(np.where(is_fraud_N, weight_N, 0))
    all_N = np.cumsum(weight_N)
    n_fraud, n_all = fraud_N[-1], all_N[-1]
    ap = (weight_N[is_fraud_N] * fraud_N[is_fraud_N] / np.maximum(all_N[is_fraud_N], 1)).sum() / n_fraud
    below = (weight_N[~is_fraud_N] * fraud_N[~is_fraud_N]).sum()
    return below / (n_fraud * (n_all - n_fraud)), ap


if __name__ == "__main__":
    main()
