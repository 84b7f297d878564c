"""The contract of every network: laws that take a model's name and size, and know no model.

Laws of parity hold by accident where the weights are untrained, so most look at a network that had to learn to
remember.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache

import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from fraud.config import ModelConfig, TrainingConfig
from fraud.metrics import roc_auc
from fraud.models.network import Network, build_network, export_network, weights_of, with_weights
from fraud.runtime import StepModel, WindowModel
from fraud.sampling import TrainingSet
from fraud.training import best_network, fit
from tests.planted import FIELD_SIZES, FIELDS, bag_sequences, every_event_set, last_event_set, order_pairs

Law = Callable[[ModelConfig], None]
Tokens = npt.NDArray[np.int64]
Logits = npt.NDArray[np.float32]

ORDER_BLIND = ("average",)  # by design: they read a bag of what came before


def untrained(model: ModelConfig, seed: int = 0) -> Network:
    """Return a network that has seen nothing."""
    return build_network(FIELDS, model, dropout=0.1, base_rate=0.5, seed=seed)


def fitted(model: ModelConfig, training_set: TrainingSet, *, epochs: int = 4) -> Network:
    """Return a network with the weights of its best epoch."""
    # At .01 one tanh network in three went astray.
    config = TrainingConfig(epochs=epochs, batch_events=512, learning_rate=0.005)
    network = untrained(model)
    *_, last = fit(network, training_set, config, resume=None)
    return best_network(network, last.state)


@cache
def ordering(model: ModelConfig) -> Network:
    """Return a network that had to learn to tell sequences apart by their order."""
    return fitted(model, last_event_set(*order_pairs(2200, seed=0), every_held_out=11), epochs=6)


@cache
def remembering(model: ModelConfig) -> Network:
    """Return a network that had to learn to remember: causal ones in every event, others in the last."""
    if not model.causal:
        return ordering(model)
    return fitted(model, every_event_set(400, 0.3, seed=0, max_events=64), epochs=6)


@cache
def files_of(model: ModelConfig) -> Mapping[str, bytes]:
    """Return that network's files of a bundle."""
    return export_network(weights_of(remembering(model)), FIELDS, model)


def logits(network: Network, tokens_BTF: Tokens) -> Logits:
    """Return what torch gives."""
    with torch.inference_mode():
        return network(torch.as_tensor(tokens_BTF)).numpy()


def any_tokens(n_windows: int, n_events: int, seed: int = 5) -> Tokens:
    """Return tokens of every id but padding, the unknown one included."""
    rng = np.random.default_rng(seed)
    return np.stack([rng.integers(1, size, (n_windows, n_events)) for size in FIELD_SIZES], axis=-1)


def auc_of(network: Network, tokens_STF: Tokens, label_S: npt.NDArray[np.int8]) -> float:
    """Return the AUC of the logits of last events."""
    auc = roc_auc(logits(network, tokens_STF)[:, -1].astype(np.float64), label_S)
    assert auc is not None
    return auc


def shuffled_auc(model: ModelConfig, *, leaks: bool) -> tuple[float, float]:
    """Return (AUC on held-out sequences, its standard error at chance) after a fit on labels at random.

    With `leaks` the held-out events are in the loss too. Else their labels are independent of all that the network has
    seen, so whatever it has become, its AUC is that of a random ranking (Mann & Whitney 1947). Fresh sequences with
    true labels would not do: a network fitted to noise leans to one side on any regularity, and its AUC is anything.
    """
    tokens_STF, label_S = order_pairs(600, seed=0)
    label_S = np.random.default_rng(1).permutation(label_S)
    training_set = last_event_set(tokens_STF, label_S, every_held_out=2)
    if leaks:
        training_set = replace(training_set, trained_N=training_set.trained_N | training_set.held_out_N)
    is_held_out_S = np.arange(len(label_S)) % 2 == 0
    n_positive, n_negative = np.bincount(label_S[is_held_out_S])[::-1].tolist()
    error = math.sqrt((n_positive + n_negative + 1) / (12 * n_positive * n_negative))
    network = fitted(model, training_set, epochs=30)
    return auc_of(network, tokens_STF[is_held_out_S], label_S[is_held_out_S]), error


# The laws


def later_events_never_change_a_logit(model: ModelConfig) -> None:
    """Of causal networks; one that is told to read whole windows has to."""
    tokens_BTF = any_tokens(8, 64)
    changed_BTF = tokens_BTF.copy()
    changed_BTF[:, 40:] = any_tokens(8, 24, seed=6)
    change_BT = np.abs(logits(remembering(model), changed_BTF) - logits(remembering(model), tokens_BTF))
    assert change_BT[:, 40:].max() > 0.1
    assert (change_BT[:, :40].max() < 1e-6) == model.causal


def padding_never_changes_a_logit(model: ModelConfig) -> None:
    tokens_BTF = any_tokens(8, 40)
    padded_BTF = np.pad(tokens_BTF, ((0, 3), (0, 24), (0, 0)))
    padded = logits(remembering(model), padded_BTF)[:8, :40]
    np.testing.assert_allclose(logits(remembering(model), tokens_BTF), padded, atol=2e-6, rtol=0)


def other_users_and_the_order_of_the_batch_never_change_a_logit(model: ModelConfig) -> None:
    tokens_BTF = any_tokens(8, 40)
    together = logits(remembering(model), tokens_BTF)
    order = np.random.default_rng(3).permutation(8)
    np.testing.assert_allclose(logits(remembering(model), tokens_BTF[order]), together[order], atol=2e-6, rtol=0)
    for user in range(8):
        alone = logits(remembering(model), tokens_BTF[user : user + 1])
        np.testing.assert_allclose(alone[0], together[user], atol=2e-6, rtol=0)


def an_event_of_unknown_ids_is_scored(model: ModelConfig) -> None:
    unknown_BTF = np.ones((1, 3, len(FIELD_SIZES)), dtype=np.int64)
    assert np.isfinite(logits(untrained(model).eval(), unknown_BTF)).all()


def rows_of_padding_stay_zero_in_training(model: ModelConfig) -> None:
    table_VD = weights_of(remembering(model))["embedding.table"]
    offsets = [0, FIELD_SIZES[0]]
    assert (table_VD[offsets] == 0.0).all()
    assert (np.delete(table_VD, offsets, axis=0) != 0.0).any(axis=1).all()


def steps_give_the_logits_of_the_window(model: ModelConfig) -> None:
    """Of recurrent networks; in torch and exported."""
    network, files = remembering(model), files_of(model)
    assert hasattr(network.encoder, "step") == ("step.onnx" in files)
    if "step.onnx" not in files:
        return
    exported = StepModel(files["step.onnx"])
    for n_users in (1, 5, 128):
        tokens_BTF = any_tokens(n_users, 130)
        window_BT = logits(network, tokens_BTF)
        state_BS, exported_BS = network.initial_state(n_users), exported.initial_state(n_users)
        for t in range(130):
            with torch.inference_mode():
                state_BS, logit_B = network.step(torch.as_tensor(tokens_BTF[:, t]), state_BS)
            exported_BS, exported_B = exported.step(tokens_BTF[:, t], exported_BS)
            np.testing.assert_allclose(logit_B.numpy(), window_BT[:, t], atol=1e-5, rtol=0)
            np.testing.assert_allclose(exported_B, window_BT[:, t], atol=1e-5, rtol=0)
        assert np.array_equal(exported_BS.shape, state_BS.shape)
    forgetful_BT = logits(network, tokens_BTF[:, 100:])
    assert np.abs(forgetful_BT[:, 0] - window_BT[:, 100]).max() > 1.0  # so a lost state would show


def the_exported_window_gives_the_logits_of_torch(model: ModelConfig) -> None:
    """One session takes windows of all shapes one after another; some graphs hold a way for few and one for many."""
    exported = WindowModel(files_of(model)["window.onnx"])
    for n_windows in (1, 3, 4, 5, 17, 18, 23, 24, 128):
        for n_events in (1, 5, 64):
            tokens_BTF = any_tokens(n_windows, n_events)
            expected_BT = logits(remembering(model), tokens_BTF)
            np.testing.assert_allclose(exported.logits(tokens_BTF), expected_BT, atol=1e-5, rtol=0)


def saved_weights_make_an_equal_network_and_equal_files(model: ModelConfig) -> None:
    weights = load_tensors(save_tensors(weights_of(remembering(model))))
    again = with_weights(untrained(model, seed=9), weights).eval()
    tokens_BTF = any_tokens(4, 20)
    assert np.array_equal(logits(again, tokens_BTF), logits(remembering(model), tokens_BTF))
    assert export_network(weights, FIELDS, model) == files_of(model)


def the_same_seed_gives_the_same_bits_and_another_seed_others(model: ModelConfig) -> None:
    training_set = every_event_set(40, 0.3, seed=0)
    torch.manual_seed(1)
    first, first_fitted = weights_of(untrained(model, seed=4)), weights_of(fitted(model, training_set, epochs=1))
    torch.manual_seed(2)
    again, again_fitted = weights_of(untrained(model, seed=4)), weights_of(fitted(model, training_set, epochs=1))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert all(np.array_equal(first_fitted[name], again_fitted[name]) for name in first)
    other = weights_of(untrained(model, seed=5))
    assert not np.array_equal(first["embedding.table"], other["embedding.table"])


def what_happened_is_learnt(model: ModelConfig) -> None:
    network = fitted(model, last_event_set(*bag_sequences(2200, seed=0), every_held_out=11))
    assert auc_of(network, *bag_sequences(2000, seed=77)) >= 0.99


def the_order_alone_is_learnt(model: ModelConfig) -> None:
    """Pairs of equal events in another order are told apart; those blind to order give both the same logit."""
    tokens_STF, label_S = order_pairs(2000, seed=77)
    assert np.array_equal(np.sort(tokens_STF[:1000], axis=1), np.sort(tokens_STF[1000:], axis=1))
    if model.name in ORDER_BLIND:
        last_S = logits(remembering(model), tokens_STF)[:, -1]
        np.testing.assert_allclose(last_S[:1000], last_S[1000:], atol=1e-5, rtol=0)
        assert np.std(last_S) > 0.1
    else:
        assert auc_of(ordering(model), tokens_STF, label_S) >= 0.99


def nothing_is_found_in_shuffled_labels(model: ModelConfig) -> None:
    auc, error = shuffled_auc(model, leaks=False)
    assert abs(auc - 0.5) < 4 * error  # by chance in 6 of 100,000 fits


LAWS: tuple[Law, ...] = (
    later_events_never_change_a_logit,
    padding_never_changes_a_logit,
    other_users_and_the_order_of_the_batch_never_change_a_logit,
    an_event_of_unknown_ids_is_scored,
    rows_of_padding_stay_zero_in_training,
    steps_give_the_logits_of_the_window,
    the_exported_window_gives_the_logits_of_torch,
    saved_weights_make_an_equal_network_and_equal_files,
    the_same_seed_gives_the_same_bits_and_another_seed_others,
    what_happened_is_learnt,
    the_order_alone_is_learnt,
    nothing_is_found_in_shuffled_labels,
)
