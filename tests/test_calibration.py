"""Calibration keeps order, recovers what is known, and never invents a probability from nothing."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from fraud.calibration import MIN_PER_CLASS_FOR_SLOPE, Calibration, fit_calibration
from fraud.errors import BundleError, DataError
from fraud.events import FloatArray


def _drawn(n: int, slope: float, shift: float, seed: int = 0) -> tuple[FloatArray, np.ndarray]:
    generator = np.random.default_rng(seed)
    logit_N = generator.normal(-3.0, 2.0, size=n)
    p_N = 1 / (1 + np.exp(-(slope * logit_N + shift)))
    return logit_N, (generator.random(n) < p_N).astype(np.int8)


@pytest.mark.parametrize(("slope", "shift"), [(1.0, 0.0), (0.5, 1.0), (2.0, -1.5)])
def test_a_known_slope_and_shift_are_recovered(slope: float, shift: float) -> None:
    found = fit_calibration(*_drawn(200_000, slope, shift))
    assert found.kind == "platt"
    assert (found.slope, found.shift) == pytest.approx((slope, shift), abs=0.08)


def test_the_fit_equals_logistic_regression_on_smoothed_targets() -> None:
    logit_N, label_N = _drawn(3000, 1.3, 0.4)
    n_positive, n_negative = int(label_N.sum()), int((1 - label_N).sum())
    target_N = np.where(label_N == 1, (n_positive + 1) / (n_positive + 2), 1 / (n_negative + 2))
    twice = np.concatenate([logit_N, logit_N])[:, None]
    classes = np.repeat([1, 0], len(logit_N))
    weights = np.concatenate([target_N, 1 - target_N])
    reference = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(twice, classes, sample_weight=weights)
    found = fit_calibration(logit_N, label_N)
    assert found.slope == pytest.approx(float(reference.coef_[0, 0]), rel=1e-4)
    assert found.shift == pytest.approx(float(reference.intercept_[0]), rel=1e-4)


@given(st.lists(st.tuples(st.floats(-1e6, 1e6), st.integers(0, 1)), min_size=2, max_size=60))
def test_any_fit_is_finite_rising_and_inside_zero_and_one(rows: list[tuple[float, int]]) -> None:
    logit_N = np.array([logit for logit, _ in rows])
    label_N = np.array([label for _, label in rows], dtype=np.int8)
    if label_N.min() == label_N.max():
        with pytest.raises(DataError):
            fit_calibration(logit_N, label_N)
        return
    found = fit_calibration(logit_N, label_N)
    assert np.isfinite([found.slope, found.shift]).all()
    scores = found.scores(np.sort(np.concatenate([logit_N, [-1e30, 0.0, 1e30]])))
    assert (scores > 0).all()
    assert (scores < 1).all()
    assert (np.diff(scores) >= 0).all()


@given(st.integers(0, 50))
def test_different_logits_keep_different_scores(seed: int) -> None:
    found = fit_calibration(*_drawn(400, 1.0, 0.5, seed))
    logit_N = np.unique(np.random.default_rng(seed).normal(-3, 5, size=500).astype(np.float32))
    logit_N = logit_N[found.slope * logit_N + found.shift < 15]
    assert (np.diff(found.scores(logit_N)) > 0).all()


def test_float32_and_float64_logits_get_the_same_score() -> None:
    found = fit_calibration(*_drawn(400, 1.0, 0.5))
    logit_N = np.linspace(-9, 9, 50, dtype=np.float32)
    assert np.array_equal(found.scores(logit_N), found.scores(logit_N.astype(np.float64)))


def test_scores_average_to_the_share_of_fraud() -> None:
    logit_N, label_N = _drawn(20_000, 0.4, -1.0)
    scores = fit_calibration(logit_N, label_N).scores(logit_N)
    assert scores.mean() == pytest.approx(label_N.mean(), rel=0.01)


def test_too_few_frauds_fit_the_shift_alone() -> None:
    logit_N, label_N = _drawn(4000, 0.2, -1.0)
    few = np.flatnonzero(label_N)[: MIN_PER_CLASS_FOR_SLOPE - 1]
    rest = np.flatnonzero(label_N == 0)
    chosen = np.concatenate([few, rest])
    found = fit_calibration(logit_N[chosen], label_N[chosen])
    assert (found.kind, found.slope) == ("shift", 1.0)
    assert found.scores(logit_N[chosen]).mean() == pytest.approx(label_N[chosen].mean(), rel=0.1)
    one_more = np.flatnonzero(label_N)[:MIN_PER_CLASS_FOR_SLOPE]
    chosen = np.concatenate([one_more, rest])
    assert fit_calibration(logit_N[chosen], label_N[chosen]).kind == "platt"


def test_a_model_that_ranks_backwards_is_not_turned_round() -> None:
    logit_N, label_N = _drawn(2000, 1.0, 0.0)
    found = fit_calibration(-logit_N, label_N)
    assert (found.kind, found.slope) == ("shift", 1.0)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_classes_that_a_model_separates_keep_the_smoothed_shares(scale: float) -> None:
    """Without Platt's targets the slope would run off to infinity and the scores to 0 and 1."""
    label_N = (np.arange(1000) < 100).astype(np.int8)
    logit_N = scale * np.where(label_N == 1, 2.0, -3.0)
    found = fit_calibration(logit_N, label_N)
    assert found.kind == "platt"
    assert found.scores(logit_N[[0, -1]]) == pytest.approx([101 / 102, 1 / 902], rel=1e-6)


def test_one_logit_for_all_gets_the_base_rate() -> None:
    label_N = (np.arange(1000) % 10 == 0).astype(np.int8)
    assert fit_calibration(np.full(1000, 5.0), label_N).scores(np.array([5.0]))[0] == pytest.approx(0.1, rel=0.02)


def test_a_validation_period_without_fraud_is_refused_in_words() -> None:
    with pytest.raises(DataError, match="none of the 3 validation events is known to be fraud"):
        fit_calibration(np.zeros(3), np.zeros(3, dtype=np.int8))
    with pytest.raises(DataError, match="logit nan of validation event 1"):
        fit_calibration(np.array([0.0, np.nan]), np.array([0, 1], dtype=np.int8))


def test_calibration_survives_json_bit_by_bit() -> None:
    found = fit_calibration(*_drawn(500, 1.1, 0.3))
    assert Calibration.from_json(json.loads(json.dumps(found.to_json()))) == found


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"slope": float("nan")}, "slope = nan"),
        ({"shift": float("inf")}, "shift = inf"),
        ({"slope": -1.0}, "slope = -1.0"),
        ({"slope": True}, "slope = True"),
        ({"shift": "0"}, "shift = '0'"),
        ({"kind": "isotonic"}, "kind = 'isotonic'"),
        ({"kind": ["platt"]}, "kind"),
        ({"n_positive": -1}, "n_positive = -1"),
        ({"extra": 1}, "extra"),
    ],
)
def test_a_damaged_calibration_is_a_bundle_error(change: dict[str, object], text: str) -> None:
    good = fit_calibration(*_drawn(500, 1.1, 0.3)).to_json()
    with pytest.raises(BundleError, match=r"calibration\.json") as caught:
        Calibration.from_json({**good, **change})
    assert text in str(caught.value)


def test_a_missing_key_is_a_bundle_error() -> None:
    good = fit_calibration(*_drawn(500, 1.1, 0.3)).to_json()
    for name in good:
        with pytest.raises(BundleError, match=name):
            Calibration.from_json({key: value for key, value in good.items() if key != name})
    with pytest.raises(BundleError, match="expected an object"):
        Calibration.from_json([1])
