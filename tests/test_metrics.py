"""Figures against scikit-learn and against slow, obvious loops; intervals against resampling the rows themselves."""

from __future__ import annotations

import json
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from fraud.errors import DataError
from fraud.metrics import (
    Examples,
    alerts,
    average_precision,
    detection_delay,
    evaluate,
    expected_calibration_error,
    paired_ap_difference,
    roc_auc,
)
from fraud.ranking import n_within_budget, ranking_figures, resampled_ranking_figures, user_weights

SCORES = st.sampled_from([0.1, 0.2, 0.2, 0.3, 0.5, 0.9])  # few values: most examples are ties
ROWS = st.lists(st.tuples(SCORES, st.integers(0, 1), st.integers(0, 4)), min_size=1, max_size=30)


def _examples(rows: list[tuple[float, int, int]], amount: list[float] | None = None) -> Examples:
    score, label, user = zip(*rows, strict=True) if rows else ((), (), ())
    return Examples(
        score_N=np.array(score, dtype=np.float64),
        label_N=np.array(label, dtype=np.int8),
        user_N=np.array(user, dtype=np.int64),
        amount_N=None if amount is None else np.array(amount, dtype=np.float64),
    )


@given(ROWS)
def test_average_precision_and_auc_equal_scikit_learn_with_ties(rows: list[tuple[float, int, int]]) -> None:
    examples = _examples(rows)
    score_N, label_N = examples.score_N, examples.label_N
    if label_N.any():
        assert average_precision(score_N, label_N) == pytest.approx(
            average_precision_score(label_N, score_N), abs=1e-12
        )
    else:
        assert average_precision(score_N, label_N) is None
    if 0 < label_N.sum() < len(label_N):
        assert roc_auc(score_N, label_N) == pytest.approx(roc_auc_score(label_N, score_N), abs=1e-12)
    else:
        assert roc_auc(score_N, label_N) is None


@given(st.lists(st.tuples(SCORES, st.integers(0, 1)), min_size=1, max_size=6), st.sampled_from([0.2, 0.34, 0.5, 0.9]))
def test_recall_at_budget_is_its_mean_over_every_order_of_ties(rows: list[tuple[float, int]], budget: float) -> None:
    score_N = np.array([score for score, _ in rows])
    label_N = np.array([label for _, label in rows], dtype=np.int8)
    figures = ranking_figures(score_N, label_N, budget=budget)
    n_cut = n_within_budget(budget, len(rows))
    orders = [o for o in permutations(range(len(rows))) if (np.diff(score_N[list(o)]) <= 0).all()]
    n_caught = np.mean([label_N[list(order[:n_cut])].sum() for order in orders])
    if label_N.any():
        assert figures.recall_R[0] == pytest.approx(n_caught / label_N.sum())
    else:
        assert np.isnan(figures.recall_R[0])
    assert (
        (np.isnan(figures.precision_R[0])) if n_cut == 0 else figures.precision_R[0] == pytest.approx(n_caught / n_cut)
    )


@given(ROWS, st.integers(0, 5), st.sampled_from([0.1, 0.29, 0.5]))
def test_a_resample_is_the_figure_of_the_repeated_rows(
    rows: list[tuple[float, int, int]], seed: int, budget: float
) -> None:
    examples = _examples(rows)
    fast = resampled_ranking_figures(
        examples.score_N, examples.label_N, examples.user_N, budget=budget, seed=seed, n_resamples=5
    )
    users_U = np.unique(examples.user_N)
    (weight_UR,) = user_weights(len(users_U), n_resamples=5, seed=seed, block=5)
    for r in range(5):
        drawn = np.repeat(users_U, weight_UR[:, r].astype(int))
        chosen = np.concatenate([np.flatnonzero(examples.user_N == user) for user in drawn])
        slow = ranking_figures(examples.score_N[chosen], examples.label_N[chosen], budget=budget)
        np.testing.assert_allclose([figures[r] for figures in fast], [figures[0] for figures in slow], atol=1e-12)


def test_resampled_weights_do_not_depend_on_the_block() -> None:
    whole = np.concatenate(list(user_weights(37, n_resamples=23, seed=3, block=23)), axis=1)
    parts = np.concatenate(list(user_weights(37, n_resamples=23, seed=3, block=4)), axis=1)
    assert np.array_equal(whole, parts)
    assert (whole.sum(axis=0) == 37).all()


def test_an_interval_follows_the_users_and_not_the_events() -> None:
    """A hundred copies of each event of a user tell no more than one: the interval must stay as wide."""
    generator = np.random.default_rng(0)
    label_N = (generator.random(300) < 0.3).astype(np.int8)
    score_N = generator.random(300) + 0.5 * label_N
    rows = list(zip(score_N.tolist(), label_N.tolist(), range(300), strict=True))
    once, often = _examples(rows), _examples(rows * 100)
    ap_ci = evaluate(once, alert_budget=0.1, threshold=0.5, costs=None).ap_ci
    assert ap_ci == pytest.approx(evaluate(often, alert_budget=0.1, threshold=0.5, costs=None).ap_ci)


def test_the_interval_covers_the_true_auc_about_as_often_as_it_says() -> None:
    truth, hits = 0.7602499, 0  # Phi(1 / sqrt 2): normal scores, one standard deviation apart
    for seed in range(60):
        generator = np.random.default_rng(seed)
        label_N = (np.arange(200) % 4 == 0).astype(np.int8)
        rows = list(zip((generator.normal(size=200) + label_N).tolist(), label_N.tolist(), range(200), strict=True))
        auc_ci = evaluate(_examples(rows), alert_budget=0.1, threshold=0.5, costs=None, n_resamples=200).auc_ci
        assert auc_ci is not None
        hits += auc_ci[0] <= truth <= auc_ci[1]
    assert 51 <= hits <= 60


def test_a_paired_difference_is_surer_than_the_intervals_of_its_parts() -> None:
    generator = np.random.default_rng(1)
    label = (generator.random(2000) < 0.1).astype(int)
    good = generator.normal(size=2000) + 2 * label
    worse = good + generator.normal(scale=0.4, size=2000)
    user = (np.arange(2000) // 4).tolist()
    a, b = (_examples(list(zip(s.tolist(), label.tolist(), user, strict=True))) for s in (good, worse))
    found = paired_ap_difference(a, b)
    assert found is not None
    assert 0 < found.lo < found.diff < found.hi
    wide = evaluate(a, alert_budget=0.01, threshold=0.5, costs=None).ap_ci
    assert wide is not None
    assert found.hi - found.lo < wide[1] - wide[0]
    backwards = paired_ap_difference(b, a)
    assert backwards is not None
    assert backwards == pytest.approx((-found.diff, -found.hi, -found.lo))
    assert paired_ap_difference(a, a) == (0.0, 0.0, 0.0)


def test_examples_that_differ_cannot_be_paired() -> None:
    a = _examples([(0.1, 0, 0), (0.2, 1, 1)])
    with pytest.raises(DataError, match="user_N"):
        paired_ap_difference(a, _examples([(0.1, 0, 0), (0.2, 1, 2)]))
    with pytest.raises(DataError, match="label_N"):
        paired_ap_difference(a, _examples([(0.1, 1, 0), (0.2, 0, 1)]))


@given(ROWS)
def test_calibration_error_equals_the_loop_and_ignores_row_order(rows: list[tuple[float, int, int]]) -> None:
    examples = _examples(rows)
    score_N, label_N = examples.score_N, examples.label_N
    order = np.argsort(score_N, kind="stable")
    rate = {score: label_N[score_N == score].mean() for score in set(score_N.tolist())}
    n = len(rows)
    total = 0.0
    for low, high in ((b * n // 15, (b + 1) * n // 15) for b in range(15)):
        total += abs(sum(score_N[i] - rate[score_N[i]] for i in order[low:high]))
    assert expected_calibration_error(score_N, label_N) == pytest.approx(total / n)
    assert expected_calibration_error(score_N[::-1], label_N[::-1]) == pytest.approx(total / n)


def test_no_fraud_gives_null_and_never_zero() -> None:
    tree = evaluate(_examples([(0.1, 0, 0), (0.9, 0, 1)]), alert_budget=0.5, threshold=0.5, costs=None).to_json()
    undefined = {"ap", "ap_ci", "auc", "auc_ci", "recall_at_budget", "recall_at_budget_ci", "recall_at_threshold"}
    undefined |= {"money_saved", "mean_score_over_base_rate"}
    assert {name for name, value in tree.items() if value is None} == undefined
    assert (tree["precision_at_budget"], tree["alert_rate"], tree["n_test"], tree["n_positive"]) == (0.0, 0.5, 2, 0)
    empty = evaluate(_examples([]), alert_budget=0.5, threshold=0.5, costs=None).to_json()
    assert {name for name, value in empty.items() if value is not None} == {"n_test", "n_positive"}
    assert json.loads(json.dumps(tree, allow_nan=False)) == tree


def test_money_counts_caught_frauds_less_reviews() -> None:
    examples = _examples([(0.9, 1, 0), (0.8, 0, 1), (0.1, 1, 2), (0.7, 1, 3)], [100.0, 50.0, 70.0, np.nan])
    free = evaluate(examples, alert_budget=0.5, threshold=0.5, costs=None)
    assert (free.money_saved, free.alert_rate, free.recall_at_threshold) == (100.0, 0.75, pytest.approx(2 / 3))
    # 90 and 40 exceed the cost of 8, 7 does not; the event without an amount is judged by the threshold.
    priced = evaluate(examples, alert_budget=0.5, threshold=0.5, costs={"review": 8.0})
    assert priced.money_saved == 100.0 - 3 * 8.0
    assert alerts(examples.score_N, examples.amount_N, threshold=0.75, costs={"review": 6.0}).tolist() == [
        True, True, True, False,
    ]  # fmt: skip


def test_detection_delay_runs_from_the_first_fraud_to_the_first_alert() -> None:
    session_N = np.array([7, 7, 7, 3, 3, 5, 5, 9, 9])
    time_us_N = np.array([10, 20, 50, 1, 2, 4, 9, 1, 2]) * 1_000_000
    label_N = np.array([0, 1, 1, 1, 0, 1, 1, 0, 0], dtype=np.int8)
    alerted_N = np.array([0, 0, 1, 0, 0, 1, 0, 1, 0], dtype=np.bool_)
    found = detection_delay(session_N, time_us_N, label_N, alerted_N)
    assert found == (15.0, 2 / 3, 3)  # session 7 after 30 s, session 5 at once, session 3 never, 9 had no fraud
    early = detection_delay(session_N[:3], time_us_N[:3], label_N[:3], np.array([True, False, True]))
    assert early == (0.0, 1.0, 1)
    assert detection_delay(session_N, time_us_N, label_N * 0, alerted_N) == (None, None, 0)
    assert detection_delay(session_N, time_us_N, label_N, alerted_N & False) == (None, 0.0, 3)


def test_examples_refuse_what_cannot_be_judged() -> None:
    with pytest.raises(DataError, match=r"score_N\[1\] = nan"):
        _examples([(0.1, 0, 0), (float("nan"), 1, 1)])
    with pytest.raises(DataError, match=r"label_N\[0\] = 2"):
        _examples([(0.1, 2, 0)])
    with pytest.raises(DataError, match="'amount_N': 2"):
        _examples([(0.1, 0, 0)], [1.0, 2.0])


def test_a_budget_does_not_lose_an_event_to_rounding() -> None:
    assert int(0.29 * 100) == 28
    assert n_within_budget(0.29, 100) == 29
    assert [n_within_budget(0.01, n) for n in (99, 100, 101, 200)] == [0, 1, 1, 2]


def test_a_budget_without_room_for_one_example_has_no_precision() -> None:
    # 49 x (1 / 49) is not 1 in floating point: what is left over must not be divided by a budget of 0.
    examples = _examples([(0.5, int(n == 0), n) for n in range(49)])
    tree = evaluate(examples, alert_budget=0.01, threshold=0.5, costs=None).to_json()
    assert (tree["precision_at_budget"], tree["recall_at_budget"], tree["recall_at_budget_ci"]) == (
        None,
        0.0,
        [0.0, 0.0],
    )
