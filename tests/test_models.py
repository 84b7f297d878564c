"""The contract of every model: a new line in MODELS is tested here without a new test."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import FIELD_SIZES, FIELDS, every_event_set, last_event_set, order_pairs
from sklearn.ensemble import HistGradientBoostingClassifier

from fraud.config import ModelConfig, TrainingConfig
from fraud.errors import BundleError, DataError
from fraud.export import step_onnx, window_onnx
from fraud.metrics import roc_auc
from fraud.models import MODELS, FeatureModel, TokenModel
from fraud.models.boosting import FeatureRows, Trees, boosting_onnx, trees_of
from fraud.models.embedding import EventEmbedding
from fraud.models.recurrent import Recurrent, weights_of, with_weights
from fraud.runtime import StepModel, TreeModel, WindowModel
from fraud.sampling import TrainingSet
from fraud.tokens import FieldShape
from fraud.training import best_network, fit

NETWORKS = [name for name, model in MODELS.items() if isinstance(model, TokenModel)]
TREES = [name for name, model in MODELS.items() if isinstance(model, FeatureModel)]

_SIZE = ModelConfig(layers=2, width=24, trees=40, leaves=8)


def untrained(name: str, seed: int = 0) -> Recurrent:
    model = MODELS[name]
    assert isinstance(model, TokenModel)
    return model.build(FIELDS, _SIZE, dropout=0.1, base_rate=0.5, seed=seed)


def fitted(name: str, training_set: TrainingSet, *, epochs: int, batch_events: int) -> Recurrent:
    config = TrainingConfig(epochs=epochs, batch_events=batch_events, learning_rate=0.02)
    network = untrained(name)
    *_, last = fit(network, training_set, config, resume=None)
    return best_network(network, last.state)


def order_auc(network: Recurrent) -> float:
    """Return the AUC on fresh pairs of equal events in another order."""
    tokens_STF, label_S = order_pairs(2000, seed=77)
    assert np.array_equal(np.sort(tokens_STF[:1000], axis=1), np.sort(tokens_STF[1000:], axis=1))
    auc = roc_auc(logits(network, tokens_STF)[:, -1].astype(np.float64), label_S)
    assert auc is not None
    return auc


@pytest.fixture(scope="module", params=NETWORKS)
def network(request: pytest.FixtureRequest) -> Recurrent:
    """A network that had to learn to remember: laws of parity hold by accident where the weights are untrained."""
    torch.set_num_threads(1)
    training_set = every_event_set(600, 0.3, seed=0, max_events=64)
    return fitted(request.param, training_set, epochs=8, batch_events=1024)


def logits(network: Recurrent, tokens_BTF: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return network(torch.as_tensor(tokens_BTF)).numpy()


def any_tokens(n_windows: int, n_events: int, seed: int = 5) -> np.ndarray:
    """Return tokens of every id but padding, the unknown one included."""
    rng = np.random.default_rng(seed)
    return np.stack([rng.integers(1, size, (n_windows, n_events)) for size in FIELD_SIZES], axis=-1)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_tells_sequences_apart_by_their_order_alone(name: str) -> None:
    training_set = last_event_set(*order_pairs(4400, seed=0), every_held_out=11)
    assert order_auc(fitted(name, training_set, epochs=6, batch_events=2048)) >= 0.99


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_finds_nothing_in_shuffled_labels(name: str) -> None:
    tokens_STF, label_S = order_pairs(4400, seed=0)
    training_set = last_event_set(tokens_STF, np.random.default_rng(1).permutation(label_S), every_held_out=11)
    assert abs(order_auc(fitted(name, training_set, epochs=6, batch_events=2048)) - 0.5) < 0.06


@pytest.mark.parametrize("name", NETWORKS)
def test_the_same_seed_builds_the_same_bits_and_another_seed_others(name: str) -> None:
    torch.manual_seed(1)
    first = weights_of(untrained(name, seed=4))
    torch.manual_seed(2)
    again, other = weights_of(untrained(name, seed=4)), weights_of(untrained(name, seed=5))
    assert all(np.array_equal(first[key], again[key]) for key in first)
    assert not np.array_equal(first["embedding.table"], other["embedding.table"])


def test_later_events_never_change_a_logit(network: Recurrent) -> None:
    tokens_BTF = any_tokens(8, 64)
    changed_BTF = tokens_BTF.copy()
    changed_BTF[:, 40:] = any_tokens(8, 24, seed=6)
    before, after = logits(network, tokens_BTF), logits(network, changed_BTF)
    np.testing.assert_allclose(before[:, :40], after[:, :40], atol=1e-6, rtol=0)
    assert np.abs(before[:, 40:] - after[:, 40:]).max() > 0.1


def test_padding_never_changes_a_logit(network: Recurrent) -> None:
    tokens_BTF = any_tokens(8, 40)
    padded_BTF = np.pad(tokens_BTF, ((0, 3), (0, 24), (0, 0)))
    np.testing.assert_allclose(
        logits(network, tokens_BTF), logits(network, padded_BTF)[:8, :40], atol=1e-6, rtol=0
    )  # fmt: skip


def test_steps_give_the_logits_of_the_window(network: Recurrent) -> None:
    tokens_BTF = torch.as_tensor(any_tokens(5, 130))
    window_BT = logits(network, tokens_BTF.numpy())
    state_BS = network.initial_state(5)
    for t in range(130):
        with torch.inference_mode():
            state_BS, logit_B = network.step(tokens_BTF[:, t], state_BS)
        np.testing.assert_allclose(logit_B.numpy(), window_BT[:, t], atol=1e-5, rtol=0)
    forgetful_BT = logits(network, tokens_BTF.numpy()[:, 100:])
    assert np.abs(forgetful_BT[:, 0] - window_BT[:, 100]).max() > 1.0  # so a lost state would show


def test_an_event_of_unknown_ids_is_scored(network: Recurrent) -> None:
    unknown_BTF = np.ones((1, 3, len(FIELD_SIZES)), dtype=np.int64)
    assert np.isfinite(logits(network, unknown_BTF)).all()


def test_rows_of_padding_stay_zero_in_training(network: Recurrent) -> None:
    table_VD = weights_of(network)["embedding.table"]
    offsets = [0, FIELD_SIZES[0]]
    assert (table_VD[offsets] == 0.0).all()
    assert (np.delete(table_VD, offsets, axis=0) != 0.0).any(axis=1).all()


@pytest.mark.parametrize("n_windows", [1, 3, 23, 24, 128])
def test_the_exported_window_gives_the_logits_of_torch(network: Recurrent, n_windows: int) -> None:
    exported = WindowModel(window_onnx(weights_of(network), FIELD_SIZES))
    for n_events in (1, 5, 64):
        tokens_BTF = any_tokens(n_windows, n_events)
        np.testing.assert_allclose(exported.logits(tokens_BTF), logits(network, tokens_BTF), atol=1e-5, rtol=0)


@pytest.mark.parametrize("n_users", [1, 3, 128])
def test_the_exported_step_gives_the_logits_of_torch(network: Recurrent, n_users: int) -> None:
    exported = StepModel(step_onnx(weights_of(network), FIELD_SIZES))
    tokens_BTF = any_tokens(n_users, 130)
    window_BT = logits(network, tokens_BTF)
    state_BS = exported.initial_state(n_users)
    for t in range(130):
        state_BS, logit_B = exported.step(tokens_BTF[:, t], state_BS)
        np.testing.assert_allclose(logit_B, window_BT[:, t], atol=1e-5, rtol=0)


def test_an_exported_model_is_the_same_bytes_each_time(network: Recurrent) -> None:
    weights = weights_of(network)
    assert window_onnx(weights, FIELD_SIZES) == window_onnx(weights, FIELD_SIZES)


def test_weights_make_the_round_trip_and_others_are_refused(network: Recurrent) -> None:
    weights = weights_of(network)
    other = with_weights(untrained(NETWORKS[0], seed=9), weights).eval()
    tokens_BTF = any_tokens(4, 20)
    assert np.array_equal(logits(other, tokens_BTF), logits(network, tokens_BTF))
    with pytest.raises(BundleError, match=r"head\.bias"):
        with_weights(network, weights | {"head.bias": np.zeros(2, dtype=np.float32)})


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
    table_VD = EventEmbedding((FieldShape(43, is_ordered=True), FieldShape(43, is_ordered=False)), 512).table.detach()
    likeness = table_VD @ table_VD.T / 512
    rows = torch.arange(3, 30)
    assert likeness[rows, rows + 1].min() > 0.9
    assert likeness[rows, rows + 12].abs().max() < 0.3
    assert likeness[43 + rows, 44 + rows].abs().max() < 0.3
