"""The points of the pictures of a comparison: precision against recall, and fraud rate against mean score.

This file knows scores and labels, and nothing of how they are drawn.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fraud.events import FloatArray
from fraud.metrics import N_CALIBRATION_BINS, Examples


class Curve(NamedTuple):
    """Points x_P, y_P, float64 [P] each."""

    x_P: FloatArray
    y_P: FloatArray


def precision_recall(examples: Examples) -> Curve | None:
    """Return recall (x) and precision (y) at each score that occurs, best first; None without a fraud.

    The steps are those that average precision sums: ties enter together, nothing is interpolated between them.
    """
    if not examples.label_N.any():
        return None
    order_N = np.argsort(-examples.score_N, kind="stable")
    ranked_N = examples.score_N[order_N]
    last_P = np.flatnonzero(np.append(ranked_N[1:] != ranked_N[:-1], True))
    n_found_P = np.cumsum(examples.label_N[order_N], dtype=np.int64)[last_P]
    return Curve(n_found_P / n_found_P[-1], n_found_P / (last_P + 1))


def reliability(examples: Examples) -> Curve | None:
    """Return mean score (x) and fraud rate (y) of the 15 bins of equal size that ECE is of; None of no example."""
    n = len(examples)
    if n == 0:
        return None
    order_N = np.argsort(examples.score_N, kind="stable")
    edges = np.unique(np.arange(N_CALIBRATION_BINS + 1) * n // N_CALIBRATION_BINS)
    size_P = np.diff(edges)
    score_P = np.add.reduceat(examples.score_N[order_N], edges[:-1]) / size_P
    return Curve(score_P, np.add.reduceat(examples.label_N[order_N].astype(np.float64), edges[:-1]) / size_P)
