"""A policy stays inside its budgets on the events it was fitted on, whatever the ties, and says what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fraud.config import PolicyConfig
from fraud.decisions import (
    ALLOW,
    BLOCK,
    DECISIONS,
    REVIEW,
    Policy,
    decide,
    fit_policy,
    policy_from_toml,
    policy_to_toml,
)
from fraud.errors import BundleError, ConfigError, DataError

NEXT = float(np.nextafter(0.2, 1.0))  # neighbouring floats: no cut lies between them
TIED = st.sampled_from([0.0, 0.1, 0.2, NEXT, float(np.nextafter(NEXT, 1.0)), 0.5, float(np.nextafter(1.0, 0.0))])
SCORES = st.lists(TIED | st.floats(0.0, 1.0, exclude_max=True), min_size=1, max_size=60)
BUDGETS = st.tuples(st.floats(0.001, 0.999), st.floats(0.0, 0.999)).map(lambda pair: (max(pair), min(pair)))


@given(SCORES, BUDGETS)
def test_no_budget_is_ever_exceeded(scores: list[float], budgets: tuple[float, float]) -> None:
    score_N = np.array(scores)
    config = PolicyConfig(alert_budget=budgets[0], block_budget=budgets[1])
    policy = fit_policy(score_N, None, config=config)
    codes = decide(policy, score_N, amount_N=None)
    assert (codes >= REVIEW).sum() <= budgets[0] * len(scores) + 1e-6
    assert (codes == BLOCK).sum() <= budgets[1] * len(scores) + 1e-6
    assert policy_from_toml(policy_to_toml(policy)) == policy


@given(st.sets(st.floats(0.0, 0.99), min_size=1, max_size=60), st.floats(0.01, 0.99))
def test_without_ties_the_whole_budget_is_used(scores: set[float], budget: float) -> None:
    score_N = np.array(sorted(scores))
    policy = fit_policy(score_N, None, config=PolicyConfig(alert_budget=budget, block_budget=0.0))
    assert (decide(policy, score_N, amount_N=None) >= REVIEW).sum() == np.floor(budget * len(scores) + 1e-9)


def test_thresholds_lie_between_scores_and_ties_are_all_or_none() -> None:
    score_N = np.array([0.1, 0.2, 0.3, 0.6, 0.6, 0.6, 0.6, 0.8, 0.9, 0.95])
    policy = fit_policy(score_N, None, config=PolicyConfig(alert_budget=0.5, block_budget=0.2))
    assert policy.review_at == pytest.approx(
        0.7
    )  # five would be allowed; the four ties do not fit beside the first three
    assert policy.block_at == pytest.approx(0.85)
    assert [DECISIONS[code] for code in decide(policy, score_N, amount_N=None)] == [
        *["allow"] * 7,
        "review",
        *["block"] * 2,
    ]


def test_too_few_events_for_the_budget_still_leave_room_above() -> None:
    policy = fit_policy(np.array([0.1, 0.4]), None, config=PolicyConfig(alert_budget=0.01, block_budget=0.001))
    assert policy.review_at == pytest.approx(0.7)
    assert decide(policy, np.array([0.4, 0.9]), amount_N=None).tolist() == [ALLOW, BLOCK]


def test_a_block_budget_of_zero_never_blocks() -> None:
    policy = fit_policy(np.array([0.1, 0.4]), None, config=PolicyConfig(alert_budget=0.5, block_budget=0.0))
    assert decide(policy, np.array([float(np.nextafter(1.0, 0.0))]), amount_N=None).tolist() == [REVIEW]


def test_with_costs_the_expected_loss_decides() -> None:
    score_N = np.array([0.5, 0.5, 0.01, 0.5, 0.9, 0.001])
    amount_N = np.array([100.0, 5.0, 1000.0, np.nan, np.nan, 1.0])
    policy = Policy(review_at=0.8, block_at=0.85, alert_budget=0.1, block_budget=0.05, costs={"review": 3.0})
    assert decide(policy, score_N, amount_N=amount_N).tolist() == [REVIEW, ALLOW, REVIEW, ALLOW, BLOCK, ALLOW]
    # What is not worth a review is not blocked either.
    assert decide(policy, np.array([0.9]), amount_N=np.array([2.0])).tolist() == [ALLOW]
    assert policy_from_toml(policy_to_toml(policy)) == policy


@given(SCORES)
def test_a_higher_score_never_gets_a_milder_decision(scores: list[float]) -> None:
    policy = Policy(review_at=0.2, block_at=0.5, alert_budget=0.1, block_budget=0.05, costs={"review": 3.0})
    score_N = np.sort(np.array(scores))
    for amount_N in (None, np.full(len(scores), 9.0), np.full(len(scores), np.nan)):
        assert (np.diff(decide(policy, score_N, amount_N=amount_N).astype(int)) >= 0).all()


def test_what_no_policy_can_be_fitted_on_is_refused() -> None:
    with pytest.raises(DataError, match="no decision event"):
        fit_policy(np.empty(0), None, config=PolicyConfig())
    with pytest.raises(DataError, match="score nan of validation event 1"):
        fit_policy(np.array([0.1, np.nan]), None, config=PolicyConfig())
    with pytest.raises(ConfigError, match=r"block_budget = 0.5 is more than policy.alert_budget = 0.01"):
        fit_policy(np.array([0.1]), None, config=PolicyConfig(block_budget=0.5))
    with pytest.raises(ConfigError, match="fields"):
        fit_policy(np.array([0.1]), None, config=PolicyConfig(costs={"review": 3.0}))


GOOD = {"review_at": "0.5", "block_at": "0.75", "alert_budget": "0.01", "block_budget": "0.001"}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"review_at": "nan"}, "review_at = nan"),
        ({"review_at": "-0.1"}, "review_at = -0.1"),
        ({"block_at": "1.5"}, "block_at = 1.5"),
        ({"block_at": "0.4"}, "block_at = 0.4 is below review_at = 0.5"),
        ({"block_at": "true"}, "block_at = True"),
        ({"alert_budget": "'1'"}, "alert_budget = '1'"),
        ({"alert_budgt": "0.1"}, "unknown name 'alert_budgt'"),
        ({"costs": "3"}, "costs = 3"),
        ({"costs": "{ review = -1.0 }"}, "review = -1.0"),
        ({"costs": "{ review = inf }"}, "review = inf"),
        ({"costs": "{ review = 0.0 }"}, "review = 0.0"),
        ({"costs": "{ block = 1.0 }"}, "block"),
        ({"review_at": ""}, "not valid TOML"),
    ],
)
def test_a_damaged_policy_is_a_bundle_error(change: dict[str, str], text: str) -> None:
    toml = "\n".join(f"{name} = {value}" for name, value in {**GOOD, **change}.items())
    with pytest.raises(BundleError, match=r"policy\.toml") as caught:
        policy_from_toml(toml)
    assert text in str(caught.value)


def test_a_missing_threshold_is_a_bundle_error() -> None:
    for name in GOOD:
        with pytest.raises(BundleError, match=f"{name} is missing"):
            policy_from_toml("\n".join(f"{key} = {value}" for key, value in GOOD.items() if key != name))
