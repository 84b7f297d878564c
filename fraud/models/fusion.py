"""Stacking (Wolpert 1992): one logit from the logits of several scorers, logit = bias + sum of weight x member's logit.

Weights are not negative, so that a member can only be left out, never turned round; they are drawn to equal shares
where frauds are too few to tell. This file knows neither the members nor the period.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fraud.errors import BundleError, DataError
from fraud.events import FloatArray

# The pull to equal weights counts as much as this many events of the rarer class: with 20 frauds the data decide half.
_PRIOR_EVENTS = 20.0
N_FOLDS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Fusion:
    """logit = bias + weights . logits of the members, in their order. weights >= 0, not all 0."""

    members: tuple[str, ...]
    weights: tuple[float, ...]
    bias: float

    def logits(self, logit_NM: FloatArray) -> FloatArray:
        """Return float64 [N] of the members' logits float64 [N, M].

        Added one by one: a matrix product would round a row otherwise among few rows than among many.
        """
        logit_N = np.full(len(logit_NM), self.bias, dtype=np.float64)
        for m, weight in enumerate(self.weights):
            logit_N += weight * logit_NM[:, m]
        return logit_N

    def to_json(self) -> str:
        """Return JSON text that `fusion_from_json` reads back as an equal fusion."""
        return json.dumps(asdict(self), indent=1)


def fusion_from_json(text: str) -> Fusion:
    """Return what `to_json` wrote; raise BundleError for anything else."""
    try:
        tree: dict[str, Any] = json.loads(text)  # Any: JSON; each cell is converted below
        members = tuple(str(name) for name in tree["members"])
        weights = tuple(float(weight) for weight in tree["weights"])
        bias = float(tree["bias"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise BundleError(f"fusion.json: cannot be read ({error!r}); expected members, weights and bias") from None
    if len(members) < 2 or len(members) != len(weights) or len(set(members)) != len(members):
        raise BundleError(
            f"fusion.json: members {list(members)} with {len(weights)} weights; expected one each, of two"
        )
    if not np.isfinite([*weights, bias]).all() or min(weights) < 0 or max(weights) == 0:
        raise BundleError(
            f"fusion.json: weights {list(weights)}, bias {bias}: expected numbers of 0 or more, one above"
        )
    return Fusion(members=members, weights=weights, bias=bias)


def fit_fusion(members: tuple[str, ...], logit_NM: FloatArray, label_N: npt.NDArray[np.int8]) -> Fusion:
    """Return the fusion of least cross-entropy on events that no member was fitted on.

    Each member is measured in units of its own spread. The penalty is a Gaussian on each weight's distance from the
    best equal weights. Raises DataError where the labels are of one class.
    """
    n_positive = int(label_N.sum())
    if n_positive in (0, len(label_N)):
        raise DataError(
            f"{n_positive} of the {len(label_N)} events of the first half of the validation users are known frauds: "
            "the weights of a fused scorer need both frauds and others there (choose a longer validation period)"
        )
    n_members = len(members)
    centre_M, spread_M = logit_NM.mean(axis=0), np.maximum(logit_NM.std(axis=0), 1e-9)
    x_NM = (logit_NM - centre_M) / spread_M
    mean_N1 = x_NM.mean(axis=1, keepdims=True)
    equal = _minimum(mean_N1, label_N, towards_M=np.zeros(1), pull=0.0)[0] / n_members
    if equal <= 0.0:  # together they rank backwards here: nothing can be told but the level
        equal = 1.0 / n_members
    pull = _PRIOR_EVENTS / 4.0  # an event of a logistic loss weighs at most a quarter
    *weights, bias = _minimum(x_NM, label_N, towards_M=np.full(n_members, equal), pull=pull)
    weight_M = (np.array(weights) if max(weights) > 0.0 else np.full(n_members, equal)) / spread_M
    return Fusion(
        members=members,
        weights=tuple(float(weight) for weight in weight_M),
        bias=float(bias - (weight_M * centre_M).sum()),
    )


def _minimum(x_NM: FloatArray, label_N: npt.NDArray[np.int8], *, towards_M: FloatArray, pull: float) -> FloatArray:
    """Return (weights, none below 0, and bias) float64 [M + 1] of least penalised cross-entropy."""
    from scipy.optimize import minimize

    def loss(point: FloatArray) -> tuple[float, FloatArray]:
        log_odds_N = x_NM @ point[:-1] + point[-1]
        error_N = 0.5 * (1.0 + np.tanh(0.5 * log_odds_N)) - label_N
        away_M = point[:-1] - towards_M
        value = np.logaddexp(0.0, log_odds_N).sum() - log_odds_N[label_N == 1].sum() + 0.5 * pull * (away_M**2).sum()
        return float(value), np.append(x_NM.T @ error_N + pull * away_M, error_N.sum())

    rate = label_N.mean()
    start = np.append(towards_M, np.log(rate / (1.0 - rate)))
    bounds = [(0.0, None)] * len(towards_M) + [(None, None)]
    options = {"maxiter": 500, "ftol": 1e-12}
    return minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options).x


def cross_fitted(
    members: tuple[str, ...], logit_NM: FloatArray, label_N: npt.NDArray[np.int8], fold_N: npt.NDArray[np.int64]
) -> FloatArray:
    """Return float64 [N]: the fused logit of each event from a fusion fitted on the other folds.

    fold_N: 0 .. N_FOLDS - 1, whole users in one fold. A choice between scorers that looked at the events the weights
    were fitted on would favour the stack. Where the other folds lack a class, all events are fitted on.
    """
    logit_N = np.empty(len(label_N), dtype=np.float64)
    for fold in range(N_FOLDS):
        others_N = fold_N != fold
        rows_N = others_N if len(np.unique(label_N[others_N])) == 2 else np.ones_like(others_N)
        fusion = fit_fusion(members, logit_NM[rows_N], label_N[rows_N])
        logit_N[~others_N] = fusion.logits(logit_NM[~others_N])
    return logit_N
