"""Several fits as one scorer, paired differences, and examples that stand for others."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fraud.curves import precision_recall, reliability
from fraud.errors import DataError
from fraud.metrics import Examples, average_precision, evaluate, expected_calibration_error, paired_ap_difference
from fraud.pairing import difference, differences, mean_score_over_base_rate_ci, ranked
from fraud.ranking import ranking_figures, resampled_ranking_figures, user_weights

N_RESAMPLES = 50


def _examples(seed: int, *, n: int = 400, n_users: int = 40, skill: float = 1.0) -> Examples:
    """Return examples whose labels and users depend on n alone, and whose scores on the seed too."""
    fixed, rng = np.random.default_rng(n), np.random.default_rng(seed)
    label_N = (fixed.random(n) < 0.1).astype(np.int8)
    user_N = fixed.integers(0, n_users, n)
    return Examples(
        score_N=1 / (1 + np.exp(2 - rng.normal(skill * label_N, 1.0))), label_N=label_N, user_N=user_N, amount_N=None
    )


def test_one_fit_is_what_train_and_evaluate_say_of_it() -> None:
    examples = _examples(1)
    one = ranked([examples], budget=0.05, seed=3)
    metrics = evaluate(examples, alert_budget=0.05, threshold=0.5, costs=None, seed=3)
    assert one.ap_by_fit == (metrics.ap,)
    assert one.points[0].recall_R[0] == metrics.recall_at_budget
    assert tuple(np.percentile(one.resampled.ap_R, [2.5, 97.5])) == metrics.ap_ci


def test_a_difference_of_single_fits_is_the_paired_difference_of_the_metrics() -> None:
    a, b = _examples(1), _examples(2, skill=2.0)
    expected = paired_ap_difference(a, b, seed=5)
    found = difference(ranked([a], budget=0.01, seed=5), ranked([b], budget=0.01, seed=5))
    assert expected is not None
    assert found is not None
    assert (found.diff, found.ci) == (pytest.approx(expected.diff), (expected.lo, expected.hi))
    assert found.is_clear
    assert found.ci[1] < 0


def test_several_fits_are_their_mean_on_shared_resamples() -> None:
    a, b = [_examples(seed) for seed in (1, 2, 3)], [_examples(seed, skill=1.5) for seed in (4, 5, 6)]
    both = [ranked(fits, budget=0.01, seed=0, n_resamples=N_RESAMPLES) for fits in (a, b)]
    found = difference(*both)
    assert found is not None
    singles = [[ranked([one], budget=0.01, seed=0, n_resamples=N_RESAMPLES) for one in fits] for fits in (a, b)]
    by_fit = [difference(x, y) for x, y in zip(*singles, strict=True)]
    assert found.by_fit == tuple(one.diff for one in by_fit if one is not None)
    assert found.diff == pytest.approx(np.mean(found.by_fit))
    mean_R = np.mean([x.resampled.ap_R - y.resampled.ap_R for x, y in zip(*singles, strict=True)], axis=0)
    np.testing.assert_allclose(found.ci, np.percentile(mean_R, [2.5, 97.5]), atol=1e-12)


def test_pairs_are_antisymmetric_and_a_scorer_does_not_differ_from_itself() -> None:
    a, b = (ranked([_examples(seed)], budget=0.01, seed=0, n_resamples=N_RESAMPLES) for seed in (1, 2))
    there, back = difference(a, b), difference(b, a)
    assert there is not None
    assert back is not None
    assert there.diff == -back.diff
    assert there.ci == pytest.approx((-back.ci[1], -back.ci[0]))
    same = difference(a, a)
    assert same is not None
    assert (same.diff, same.ci, same.is_clear) == (0.0, (0.0, 0.0), False)
    assert list(differences({"x": a, "y": b, "z": a})) == [("x", "y"), ("x", "z"), ("y", "z")]


def test_without_a_fraud_there_is_no_difference() -> None:
    nothing = replace(_examples(1), label_N=np.zeros(400, dtype=np.int8))
    table = ranked([nothing], budget=0.01, seed=0, n_resamples=N_RESAMPLES)
    assert table.ap_by_fit is None
    assert difference(table, table) is None
    assert mean_score_over_base_rate_ci([nothing], seed=0, n_resamples=N_RESAMPLES) is None


def test_fits_judged_on_other_examples_are_refused() -> None:
    with pytest.raises(DataError, match="label_N differs"):
        ranked([_examples(1), replace(_examples(1), label_N=np.ones(400, dtype=np.int8))], budget=0.1, seed=0)


def test_the_interval_of_the_mean_score_is_that_of_the_resampled_rows() -> None:
    fits = [_examples(1), _examples(2)]
    (weight_UR,) = user_weights(len(np.unique(fits[0].user_N)), n_resamples=N_RESAMPLES, seed=4, block=N_RESAMPLES)
    weight_NR = weight_UR[np.unique(fits[0].user_N, return_inverse=True)[1]]
    mean_N = np.mean([one.score_N for one in fits], axis=0)
    ratio_R = (mean_N @ weight_NR) / (fits[0].label_N @ weight_NR)
    found = mean_score_over_base_rate_ci(fits, seed=4, n_resamples=N_RESAMPLES)
    np.testing.assert_allclose(found, np.percentile(ratio_R, [2.5, 97.5]))


@given(
    st.lists(
        st.tuples(st.sampled_from([0.1, 0.2, 0.2, 0.5]), st.integers(0, 1), st.integers(0, 3), st.integers(1, 3)),
        min_size=1,
        max_size=20,
    )
)
def test_a_weight_is_so_many_equal_rows(rows: list[tuple[float, int, int, int]]) -> None:
    score, label, user, weight = (np.array(column) for column in zip(*rows, strict=True))
    labels, weight_N = label.astype(np.int8), weight.astype(np.float64)
    weighted = ranking_figures(score, labels, budget=0.3, weight_N=weight_N)
    repeated = ranking_figures(np.repeat(score, weight), np.repeat(labels, weight), budget=0.3)
    np.testing.assert_allclose(np.array(weighted), np.array(repeated), atol=1e-12)
    options = {"budget": 0.3, "seed": 1, "n_resamples": 5}
    weighted = resampled_ranking_figures(score, labels, user, weight_N=weight_N, **options)
    rows_of = [np.repeat(column, weight) for column in (score, labels, user)]
    np.testing.assert_allclose(np.array(weighted), np.array(resampled_ranking_figures(*rows_of, **options)), atol=1e-12)


@given(st.lists(st.tuples(st.sampled_from([0.1, 0.2, 0.5, 0.9]), st.integers(0, 1)), min_size=1, max_size=40))
def test_the_steps_of_the_precision_recall_curve_are_average_precision(rows: list[tuple[float, int]]) -> None:
    score_N = np.array([score for score, _ in rows])
    label_N = np.array([label for _, label in rows], dtype=np.int8)
    curve = precision_recall(Examples(score_N=score_N, label_N=label_N, user_N=label_N.astype(int), amount_N=None))
    if not label_N.any():
        assert curve is None
        return
    assert curve is not None
    area = (np.diff(curve.x_P, prepend=0.0) * curve.y_P).sum()
    assert area == pytest.approx(average_precision(score_N, label_N), abs=1e-12)


def test_the_bins_of_the_calibration_picture_are_those_of_the_ece() -> None:
    examples = _examples(1, n=450)
    curve = reliability(examples)
    assert curve is not None
    assert len(curve.x_P) == 15
    ece = np.abs(curve.x_P - curve.y_P).mean()
    assert ece == pytest.approx(expected_calibration_error(examples.score_N, examples.label_N), abs=1e-12)
