"""Stacking: the weights are where they should be, and nothing is chosen on what they were fitted on."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fraud.errors import BundleError, ConfigError, DataError
from fraud.learning import check_members
from fraud.metrics import average_precision
from fraud.models.fusion import N_FOLDS, Fusion, cross_fitted, fit_fusion, fusion_from_json

MEMBERS = ("lstm", "boosting")


def two_views(n_events: int, seed: int, *, noise: tuple[float, float] = (1.0, 1.0)) -> tuple[np.ndarray, np.ndarray]:
    """Return (logit_NM, label_N): two members that see the truth through independent noise."""
    rng = np.random.default_rng(seed)
    label_N = (rng.random(n_events) < 0.1).astype(np.int8)
    signal_N1 = np.where(label_N == 1, 2.0, -2.0)[:, None]
    return signal_N1 + rng.normal(0.0, 1.0, (n_events, 2)) * 2.5 * np.array(noise), label_N


def test_a_stack_of_two_independent_views_ranks_better_than_either() -> None:
    logit_NM, label_N = two_views(6000, seed=0)
    fusion = fit_fusion(MEMBERS, logit_NM, label_N)
    fresh_NM, fresh_N = two_views(6000, seed=1)
    fused = average_precision(fusion.logits(fresh_NM), fresh_N)
    alone = [average_precision(fresh_NM[:, m], fresh_N) for m in range(2)]
    assert fused is not None
    assert all(ap is not None and fused > ap + 0.05 for ap in alone)


def test_with_much_data_the_stack_is_the_logistic_regression() -> None:
    from sklearn.linear_model import LogisticRegression

    logit_NM, label_N = two_views(50_000, seed=3, noise=(1.0, 0.6))
    fusion = fit_fusion(MEMBERS, logit_NM, label_N)
    plain = LogisticRegression(C=np.inf).fit(logit_NM, label_N)
    np.testing.assert_allclose(fusion.weights, plain.coef_[0], rtol=0.02)
    np.testing.assert_allclose(fusion.bias, plain.intercept_[0], rtol=0.02)


def test_with_a_handful_of_frauds_the_weights_stay_near_equal_shares() -> None:
    logit_NM, label_N = two_views(20, seed=5)
    label_N[:] = 0
    label_N[int(np.argmax(logit_NM[:, 0]))] = 1
    fusion = fit_fusion(MEMBERS, logit_NM, label_N)
    one, other = np.array(fusion.weights) * logit_NM.std(axis=0)
    assert 0.5 < one / other < 2.0


@given(seed=st.integers(0, 2**31))
def test_a_member_that_ranks_backwards_is_left_out_and_never_turned_round(seed: int) -> None:
    logit_NM, label_N = two_views(2000, seed)
    logit_NM[:, 1] = -logit_NM[:, 1]
    fusion = fit_fusion(MEMBERS, logit_NM, label_N)
    assert fusion.weights[0] > 0.2
    assert fusion.weights[1] < 0.1


def test_where_every_member_ranks_backwards_the_shares_are_equal() -> None:
    logit_NM, label_N = two_views(5000, seed=0)
    one, other = np.array(fit_fusion(MEMBERS, -logit_NM, label_N).weights) * logit_NM.std(axis=0)
    assert one == pytest.approx(other)
    assert one > 0


@given(seed=st.integers(0, 2**31), scale=st.sampled_from([0.01, 1.0, 100.0]))
def test_the_size_of_a_members_logits_does_not_matter(seed: int, scale: float) -> None:
    logit_NM, label_N = two_views(1500, seed)
    plain, scaled = (fit_fusion(MEMBERS, x, label_N) for x in (logit_NM, logit_NM * np.array([scale, 1.0])))
    one, other = plain.logits(logit_NM), scaled.logits(logit_NM * np.array([scale, 1.0]))
    np.testing.assert_allclose(one, other, atol=1e-3)


def test_labels_of_one_class_are_refused() -> None:
    logit_NM, label_N = two_views(100, seed=0)
    with pytest.raises(DataError, match="first half of the validation users"):
        fit_fusion(MEMBERS, logit_NM, np.zeros_like(label_N))


def test_a_choice_between_scorers_sees_no_logit_from_weights_its_user_had_part_in() -> None:
    logit_NM, label_N = two_views(1000, seed=2)
    fold_N = np.arange(1000) % N_FOLDS
    before_N = cross_fitted(MEMBERS, logit_NM, label_N, fold_N)
    flipped_N = np.where(fold_N == 3, 1 - label_N, label_N)
    after_N = cross_fitted(MEMBERS, logit_NM, flipped_N, fold_N)
    assert np.array_equal(before_N[fold_N == 3], after_N[fold_N == 3])
    assert not np.array_equal(before_N[fold_N == 0], after_N[fold_N == 0])


def test_a_fusion_makes_the_round_trip() -> None:
    fusion = Fusion(members=MEMBERS, weights=(0.25, 0.1), bias=-1.5)
    assert fusion_from_json(fusion.to_json()) == fusion


@pytest.mark.parametrize(
    "change",
    [
        {"weights": [0.5]},
        {"weights": [0.5, -0.1]},
        {"weights": [0.0, 0.0]},
        {"weights": [0.5, float("nan")]},
        {"members": ["lstm", "lstm"]},
        {"members": ["lstm"], "weights": [1.0]},
        {"bias": "much"},
        {"bias": None},
    ],
)
def test_a_fusion_that_makes_no_sense_is_refused(change: dict[str, object]) -> None:
    tree = {"members": list(MEMBERS), "weights": [0.5, 0.5], "bias": 0.0} | change
    with pytest.raises(BundleError, match=r"fusion\.json"):
        fusion_from_json(json.dumps(tree))


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["lstm"], "two or more"),
        ([], "two or more"),
        (["lstm", "lstm"], "once each"),
        (["lstm", "fused"], "other scorers"),
        (["lstm", "lstn"], "known here: average, boosting"),
    ],
)
def test_members_that_cannot_be_stacked_are_refused(names: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check_members(names)
