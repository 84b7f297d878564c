"""The contract of every model: a new line in MODELS is tested here without a new test."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.ensemble import HistGradientBoostingClassifier

from fraud.config import ModelConfig, TrainingConfig
from fraud.errors import BundleError, DataError
from fraud.metrics import roc_auc
from fraud.models import MODELS, FeatureModel, TokenModel
from fraud.models.boosting import FeatureRows, Trees, boosting_onnx, trees_of
from fraud.models.embedding import EventEmbedding
from fraud.models.network import weights_of, with_weights
from fraud.runtime import TreeModel
from fraud.tokens import FieldShape
from tests import contract
from tests.contract import LAWS, Law

_SIZE = ModelConfig(layers=2, width=24, trees=40, leaves=8)
NETWORKS = [replace(_SIZE, name=name) for name, model in MODELS.items() if isinstance(model, TokenModel)]
NETWORKS.append(replace(_SIZE, name="transformer", causal=False))  # for batches: reads whole windows
TREES = [name for name, model in MODELS.items() if isinstance(model, FeatureModel)]
# A toy is broken in one way, and the law that is about it has to refuse it.
BROKEN = {
    "toy_looks_ahead": contract.later_events_never_change_a_logit,
    "toy_reads_padding": contract.rows_of_padding_stay_zero_in_training,
    "toy_counts_the_window": contract.padding_never_changes_a_logit,
    "toy_compares_users": contract.other_users_and_the_order_of_the_batch_never_change_a_logit,
    "toy_fails_on_unknown": contract.an_event_of_unknown_ids_is_scored,
    "toy_forgets": contract.steps_give_the_logits_of_the_window,
    "toy_exports_another": contract.the_exported_window_gives_the_logits_of_torch,
    "toy_hides_a_weight": contract.saved_weights_make_an_equal_network_and_equal_files,
    "toy_differs_each_time": contract.the_same_seed_gives_the_same_bits_and_another_seed_others,
    "toy_hears_nothing": contract.what_happened_is_learnt,
    "toy_hears_a_bag": contract.the_order_alone_is_learnt,
}


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("model", NETWORKS, ids=lambda model: model.name if model.causal else f"{model.name}-whole")
def test_every_network_keeps_every_law(model: ModelConfig, law: Law) -> None:
    law(model)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_a_model_added_as_one_file_and_one_line_is_tested_by_no_new_test(law: Law, toys: None) -> None:
    law(replace(_SIZE, name="toy"))


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_model_is_refused(name: str, toys: None) -> None:
    with pytest.raises(AssertionError):
        BROKEN[name](replace(_SIZE, name=name))


def test_no_law_is_idle() -> None:
    assert {*BROKEN.values(), contract.nothing_is_found_in_shuffled_labels} == {*LAWS}


def test_the_law_of_shuffled_labels_would_find_a_leak(toys: None) -> None:
    auc, error = contract.shuffled_auc(replace(_SIZE, name="toy"), leaks=True)
    assert auc - 0.5 > 4 * error


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Add the lines of the toys to MODELS."""
    for name in ("toy", *BROKEN):
        monkeypatch.setitem(MODELS, name, TokenModel("tests.toy_models"))  # type: ignore[arg-type]


def test_weights_of_another_shape_are_refused() -> None:
    network = contract.untrained(_SIZE)
    with pytest.raises(BundleError, match=r"head\.bias"):
        with_weights(network, weights_of(network) | {"head.bias": np.zeros(2, dtype=np.float32)})


def test_the_list_of_models_and_the_runtime_import_no_training_library() -> None:
    code = (
        "import sys, fraud.models, fraud.runtime\n"
        "print(sorted({'torch', 'sklearn', 'onnx', 'mlflow', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# Trees


def feature_rows(n_rows: int, seed: int, *, shuffled: bool = False) -> FeatureRows:
    """Return rows in which column 0 above 1, or column 1 missing, means fraud."""
    rng = np.random.default_rng(seed)
    features_RC = rng.normal(size=(n_rows, 4)).astype(np.float32)
    features_RC[rng.random(n_rows) < 0.1, 1] = np.nan
    label_R = ((features_RC[:, 0] > 1) | np.isnan(features_RC[:, 1])).astype(np.int8)
    return FeatureRows(features_RC=features_RC, label_R=rng.permutation(label_R) if shuffled else label_R)


def grown(name: str, rows: FeatureRows, held_out: FeatureRows, *, seed: int = 0, shift: float = 0.0) -> Trees:
    model = MODELS[name]
    assert isinstance(model, FeatureModel)
    return model.fit(rows, held_out, model=_SIZE, training=TrainingConfig(seed=seed), log_odds_shift=shift)


@pytest.mark.parametrize("name", TREES)
def test_trees_separate_a_planted_signal_and_find_nothing_in_shuffled_labels(name: str) -> None:
    fresh = feature_rows(2000, seed=9)
    found: list[float] = []
    for shuffled in (False, True):
        trees = grown(name, feature_rows(3000, 1, shuffled=shuffled), feature_rows(1000, 2, shuffled=shuffled))
        auc = roc_auc(TreeModel(boosting_onnx(trees)).logits(fresh.features_RC).astype(np.float64), fresh.label_R)
        assert auc is not None
        found.append(auc)
    assert found[0] > 0.99
    assert abs(found[1] - 0.5) < 0.06


@pytest.mark.parametrize("name", TREES)
def test_the_same_seed_grows_the_same_trees(name: str) -> None:
    rows, held_out = feature_rows(2000, 1), feature_rows(500, 2)
    assert boosting_onnx(grown(name, rows, held_out)) == boosting_onnx(grown(name, rows, held_out))


@pytest.mark.parametrize("name", TREES)
def test_the_log_odds_shift_is_added_to_every_logit(name: str) -> None:
    rows, held_out = feature_rows(2000, 1), feature_rows(500, 2)
    plain = TreeModel(boosting_onnx(grown(name, rows, held_out))).logits(held_out.features_RC)
    shifted = TreeModel(boosting_onnx(grown(name, rows, held_out, shift=-2.0))).logits(held_out.features_RC)
    np.testing.assert_allclose(shifted, plain - 2.0, atol=3e-6, rtol=0)


@pytest.mark.parametrize("name", TREES)
def test_held_out_rows_stop_the_growth_and_without_them_every_tree_is_grown(name: str) -> None:
    rows = feature_rows(2000, 1, shuffled=True)
    none = FeatureRows(features_RC=rows.features_RC[:0], label_R=rows.label_R[:0])
    assert len(grown(name, rows, none).starts_K) == _SIZE.trees
    assert len(grown(name, rows, feature_rows(1000, 2, shuffled=True)).starts_K) < _SIZE.trees


@pytest.mark.parametrize("name", TREES)
def test_rows_of_one_class_cannot_be_learnt_from(name: str) -> None:
    rows = feature_rows(100, 1)
    one_class = FeatureRows(features_RC=rows.features_RC, label_R=np.zeros(100, dtype=np.int8))
    with pytest.raises(DataError, match="one class"):
        grown(name, one_class, rows)


@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**31),
    n_features=st.integers(1, 6),
    n_leaves=st.integers(2, 20),
    scale=st.sampled_from([1e-30, 1.0, 1e30]),
    missing=st.sampled_from([0.0, 0.3]),
)
def test_exported_trees_decide_as_scikit_learn_does(
    seed: int, n_features: int, n_leaves: int, scale: float, missing: float
) -> None:
    rng = np.random.default_rng(seed)
    # Half of the numbers from a few values: then thresholds fall between float32 neighbours, and on equal numbers.
    features_RC = (rng.normal(size=(300, n_features)) * scale).astype(np.float32)
    # Half of the numbers are neighbours in float32: then thresholds, their middles, are no float32 numbers.
    close_RC = np.nextafter(features_RC[:1], rng.choice([-np.inf, np.inf], features_RC.shape).astype(np.float32))
    features_RC = np.where(rng.random(features_RC.shape) < 0.5, close_RC, features_RC)
    features_RC[rng.random(features_RC.shape) < missing] = np.nan
    label_R = rng.integers(0, 2, 300)
    classifier = HistGradientBoostingClassifier(
        max_iter=15, max_leaf_nodes=n_leaves, min_samples_leaf=2, early_stopping=False, random_state=0
    ).fit(features_RC, label_R)
    trees = trees_of(classifier, log_odds_shift=0.0)

    with np.errstate(over="ignore"):
        thresholds = trees.threshold_M[np.isfinite(trees.threshold_M)].astype(np.float32)
    edges = np.concatenate([
        thresholds,
        np.nextafter(thresholds, np.float32(np.inf)),
        np.nextafter(thresholds, np.float32(-np.inf)),
        np.array([np.nan, np.inf, -np.inf, 0.0, -0.0], dtype=np.float32),
    ])  # fmt: skip
    asked_RC = np.concatenate([features_RC, rng.choice(edges, (1000, n_features))])
    exported = TreeModel(boosting_onnx(trees)).logits(asked_RC)
    # scikit-learn refuses infinite numbers at its door, not in its trees: the largest doubles stand for them.
    expected = classifier.decision_function(np.nan_to_num(asked_RC.astype(np.float64), nan=np.nan))
    assert expected.std() > 0.1
    np.testing.assert_allclose(exported, expected, atol=3e-6, rtol=0)


def test_neighbouring_buckets_of_an_ordered_field_start_alike_and_distant_ones_do_not() -> None:
    torch.manual_seed(0)
    table_VD = EventEmbedding(
        (FieldShape("amount", 43, is_ordered=True), FieldShape("type", 43, is_ordered=False)), 512
    ).table.detach()
    likeness = table_VD @ table_VD.T / 512
    rows = torch.arange(3, 30)
    assert likeness[rows, rows + 1].min() > 0.9
    assert likeness[rows, rows + 12].abs().max() < 0.3
    assert likeness[43 + rows, 44 + rows].abs().max() < 0.3
