"""From a model's logit to a score: the probability of fraud, fitted on events that no model was fitted on.

Two kinds. "platt": sigmoid(slope x logit + shift). "shift": the same with slope 1, where frauds are too few to tell the
slope. Both keep the order of the logits, so no ranking figure moves. This file knows neither the model nor the period.
"""

from __future__ import annotations

import math
import sys
from dataclasses import asdict, dataclass
from typing import Literal, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from fraud.errors import BundleError, DataError
from fraud.events import FloatArray

_KINDS = ("platt", "shift")
# Ten events of the rarer class per fitted parameter (Peduzzi et al. 1996, J. Clin. Epidemiol. 49:1373), two parameters.
MIN_PER_CLASS_FOR_SLOPE = 20
_MAX_STEPS = 100
_SMALLEST, _LARGEST = float(np.finfo(np.float64).tiny), float(np.nextafter(1.0, 0.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """score = sigmoid(slope x logit + shift), slope > 0. n_positive, n_negative: what it was fitted on."""

    kind: Literal["platt", "shift"]
    slope: float
    shift: float
    n_positive: int
    n_negative: int

    def scores(self, logit_N: npt.NDArray[np.floating]) -> FloatArray:
        """Return float64 [N] in (0, 1), increasing with the logit.

        Float64 ends near slope x logit + shift = 36 above and -708 below: logits beyond share a score, never 0 or 1.
        """
        log_odds_N = self.slope * logit_N.astype(np.float64) + self.shift
        return np.minimum(np.maximum(_sigmoid(log_odds_N), _SMALLEST), _LARGEST)

    def to_json(self) -> dict[str, str | float | int]:
        """Return what `from_json` reads back as an equal calibration."""
        return asdict(self)

    @classmethod
    def from_json(cls, tree: object) -> Calibration:
        """Return the calibration that `to_json` wrote; raise BundleError that names the field and what was expected."""
        if not isinstance(tree, dict):
            raise BundleError(f"calibration.json: expected an object, got {type(tree).__name__}")
        cells = cast(dict[str, object], tree)
        if cells.keys() != cls.__dataclass_fields__.keys():
            raise BundleError(
                f"calibration.json: expected the keys {list(cls.__dataclass_fields__)}, got {list(cells)}"
            )
        kind = cells["kind"]
        if kind not in _KINDS:
            raise BundleError(f"calibration.json: kind = {kind!r}: expected platt or shift")
        slope, shift = _finite(cells, "slope"), _finite(cells, "shift")
        if slope <= 0:
            raise BundleError(f"calibration.json: slope = {slope}: expected a number above 0")
        return cls(
            kind=kind,
            slope=slope,
            shift=shift,
            n_positive=_count(cells, "n_positive"),
            n_negative=_count(cells, "n_negative"),
        )


class _Line(NamedTuple):
    """log-odds = slope x logit + shift."""

    slope: float
    shift: float


def fit_calibration(logit_N: npt.NDArray[np.floating], label_N: npt.NDArray[np.int8]) -> Calibration:
    """Return the calibration that fits the labels best (Platt 1999, Probabilistic Outputs for SVMs, section 2.2).

    The slope is fitted where both classes hold at least 20 events, and kept where it is positive: a model that ranks
    backwards is not turned round behind the analyst's back. Otherwise the slope stays 1 and only the shift is fitted.
    Raises DataError for a logit that is not finite, and where no fraud, or nothing but fraud, is known.
    """
    n_positive = int(label_N.sum())
    n_negative = len(label_N) - n_positive
    if n_positive == 0:
        raise DataError(
            f"calibration: none of the {n_negative} validation events is known to be fraud; expected at least one: "
            "choose a longer validation period in [split], or check [labels] delay and known_at"
        )
    if n_negative == 0:
        raise DataError(f"calibration: each of the {n_positive} validation events is fraud; expected other events too")
    logit_N = logit_N.astype(np.float64)
    if not np.isfinite(logit_N).all():
        row = int(np.argmin(np.isfinite(logit_N)))
        raise DataError(f"calibration: logit {logit_N[row]} of validation event {row}: expected a finite number")
    target_N = np.where(label_N == 1, (n_positive + 1) / (n_positive + 2), 1 / (n_negative + 2))
    kind: Literal["platt", "shift"] = "shift"
    line = _fit_shift(logit_N, target_N)
    if min(n_positive, n_negative) >= MIN_PER_CLASS_FOR_SLOPE and np.ptp(logit_N) > 0:
        fitted = _fit_line(logit_N, target_N)
        if fitted.slope > 0:
            kind, line = "platt", fitted
    return Calibration(kind=kind, slope=line.slope, shift=line.shift, n_positive=n_positive, n_negative=n_negative)


def _fit_line(logit_N: FloatArray, target_N: FloatArray) -> _Line:
    """Return the least cross-entropy by Newton steps, halved until they help (Lin, Lin & Weng 2007, algorithm 1)."""
    centre, spread = float(logit_N.mean()), float(logit_N.std())
    x_N = (logit_N - centre) / spread  # with logits of one size the Hessian is well conditioned whatever the model
    slope, shift = 0.0, _log_odds(float(target_N.mean()))
    loss = _cross_entropy(shift + slope * x_N, target_N)
    for _ in range(_MAX_STEPS):
        p_N = _sigmoid(slope * x_N + shift)
        error_N, curvature_N = p_N - target_N, p_N * (1 - p_N)
        gradient = np.array([(error_N * x_N).sum(), error_N.sum()])
        off = (curvature_N * x_N).sum()
        hessian = np.array([[(curvature_N * x_N * x_N).sum(), off], [off, curvature_N.sum()]])
        d_slope, d_shift = (float(d) for d in np.linalg.solve(hessian + 1e-12 * np.eye(2), -gradient))
        step = 1.0
        while step > 1e-10:
            tried = _cross_entropy((slope + step * d_slope) * x_N + shift + step * d_shift, target_N)
            if tried < loss:
                break
            step /= 2
        else:
            break
        gain, loss = loss - tried, tried
        slope, shift = slope + step * d_slope, shift + step * d_shift
        if gain <= 1e-15 * loss:
            break
    return _Line(slope / spread, shift - slope * centre / spread)


def _fit_shift(logit_N: FloatArray, target_N: FloatArray) -> _Line:
    """Return slope 1 and the shift whose mean score is the mean target: the zero of an increasing function."""
    wanted = float(target_N.mean())
    low, high = _log_odds(wanted) - float(logit_N.max()), _log_odds(wanted) - float(logit_N.min())
    for _ in range(_MAX_STEPS):
        shift = (low + high) / 2
        low, high = (shift, high) if float(_sigmoid(logit_N + shift).mean()) < wanted else (low, shift)
    return _Line(1.0, (low + high) / 2)


def _cross_entropy(log_odds_N: FloatArray, target_N: FloatArray) -> float:
    return float((np.logaddexp(0.0, log_odds_N) - target_N * log_odds_N).sum())


def _sigmoid(log_odds_N: FloatArray) -> FloatArray:
    decay_N = np.exp(-np.abs(log_odds_N))
    return np.where(log_odds_N >= 0, 1.0, decay_N) / (1.0 + decay_N)


def _log_odds(p: float) -> float:
    return math.log(p) - math.log1p(-p)


def _finite(cells: dict[str, object], name: str) -> float:
    value = cells[name]
    # Compared, not converted: JSON may hold an integer that no float can.
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) <= sys.float_info.max:
        raise BundleError(f"calibration.json: {name} = {value!r}: expected a finite number")
    return float(value)


def _count(cells: dict[str, object], name: str) -> int:
    value = cells[name]
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise BundleError(f"calibration.json: {name} = {value!r}: expected a whole number, 0 or more")
    return value
