"""Sampling, the loop of epochs, early stop and resume."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from planted import FIELDS, every_event_set

from fraud import training
from fraud.batches import buckets
from fraud.config import ModelConfig, TrainingConfig
from fraud.errors import ConfigError, DataError
from fraud.models.dropout import Dropout
from fraud.models.embedding import EventEmbedding
from fraud.models.network import Network, build_network, weights_of
from fraud.sampling import TrainingSet, held_out_sample, training_sample
from fraud.tokens import FieldShape
from fraud.training import EpochReport, best_network, can_train_in_bf16, fit, state_from_arrays, state_to_arrays

_CONFIG = TrainingConfig(epochs=4, patience=4, batch_events=512, learning_rate=0.01, negative_rate=0.5, seed=7)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def small_network(seed: int = 0, base_rate: float = 0.1) -> Network:
    model = ModelConfig(layers=2, width=8)
    return build_network(FIELDS, model, dropout=0.1, base_rate=base_rate, seed=seed)


def same_weights(one: EpochReport, other: EpochReport) -> bool:
    first, second = one.state.weights, other.state.weights
    return all(torch.equal(first[name], second[name]) for name in first)


# What is in the loss


@given(seed=st.integers(0, 2**31), rate=st.sampled_from([0.0001, 0.3, 1.0]), max_events=st.sampled_from([4, 16, 64]))
def test_the_sampled_batches_hold_exactly_the_events_that_a_slow_loop_finds(
    seed: int, rate: float, max_events: int
) -> None:
    plain = every_event_set(8, 0.1, seed, max_events=max_events)
    known_N = np.random.default_rng(seed).random(len(plain.label_N)) < 0.5
    training_set = dataclasses.replace(plain, trained_N=plain.trained_N & known_N)
    whole = training_set.windows
    # The same generator falls the same coins.
    only_positives_W = np.random.default_rng(seed).random(len(whole)) >= rate
    expected: list[tuple[int, int, tuple[int, ...]]] = []
    for w in range(len(whole)):
        start, length, first = int(whole.starts_W[w]), int(whole.lengths_W[w]), int(whole.scored_from_W[w])
        for row in range(start + first, start + length):
            if training_set.trained_N[row] and (training_set.label_N[row] or not only_positives_W[w]):
                context = tuple(training_set.tokens_NF[start : row + 1].ravel().tolist())
                expected.append((row, int(training_set.label_N[row]), context))

    sample = training_sample(training_set, rate, np.random.default_rng(seed))
    found: list[tuple[int, tuple[int, ...]]] = []
    for chosen in buckets(sample.windows.lengths_W, 128, np.random.default_rng(1)):
        batch = sample.batch(chosen)
        assert batch.in_loss_BT[np.arange(len(chosen)), sample.windows.lengths_W[chosen] - 1].all()
        for b, t in zip(*np.nonzero(batch.in_loss_BT), strict=True):
            found.append((int(batch.label_BT[b, t]), tuple(batch.tokens_BTF[b, : t + 1].ravel().tolist())))
    assert sorted(found) == sorted((label, context) for _, label, context in expected)
    assert sample.n_events == len(expected)


def test_every_positive_is_kept_and_each_negative_with_the_given_probability() -> None:
    training_set = every_event_set(40, 0.1, seed=3)
    n_draws, rate = 400, 0.25
    n_kept_N = np.zeros(len(training_set.label_N), dtype=np.int64)
    rng = np.random.default_rng(0)
    for _ in range(n_draws):
        sample = training_sample(training_set, rate, rng)
        for chosen in buckets(sample.windows.lengths_W, 4096, None):
            batch = sample.batch(chosen)
            window_R, step_R = np.nonzero(batch.in_loss_BT)
            n_kept_N[sample.windows.starts_W[chosen][window_R] + step_R] += 1
    trained_N, positive_N = training_set.trained_N, training_set.label_N == 1
    assert (n_kept_N[trained_N & positive_N] == n_draws).all()
    assert (n_kept_N[~trained_N] == 0).all()
    share_N = n_kept_N[trained_N & ~positive_N] / n_draws
    assert abs(share_N.mean() - rate) < 0.02
    assert np.abs(share_N - rate).max() < 5 * math.sqrt(rate * (1 - rate) / n_draws)


def test_held_out_events_never_reach_the_weights() -> None:
    training_set = every_event_set(60, 0.2, seed=1)
    flipped = dataclasses.replace(
        training_set, label_N=np.where(training_set.held_out_N, 1 - training_set.label_N, training_set.label_N)
    )
    one = list(fit(small_network(), training_set, _CONFIG, resume=None))
    other = list(fit(small_network(), flipped, _CONFIG, resume=None))
    assert same_weights(one[0], other[0])
    assert one[0].held_out_loss != other[0].held_out_loss
    assert len(held_out_sample(training_set).windows) > 0


@pytest.mark.parametrize("negative_rate", [0.1, 1.0])
def test_the_mean_score_is_the_base_rate_whatever_share_of_negatives_is_kept(negative_rate: float) -> None:
    config = TrainingConfig(
        epochs=8, patience=8, batch_events=2048, learning_rate=0.03, negative_rate=negative_rate, dropout=0.0
    )
    network = build_network(FIELDS, ModelConfig(layers=1, width=16), dropout=0.0, base_rate=0.5, seed=0)
    *_, last = fit(network, every_event_set(1500, 0.1, seed=0, max_events=64), config, resume=None)
    best = best_network(network, last.state)
    fresh = every_event_set(1200, 0.1, seed=1, max_events=64)
    everything = held_out_sample(dataclasses.replace(fresh, held_out_N=np.ones_like(fresh.held_out_N)))
    scores: list[float] = []
    labels: list[int] = []
    for chosen in buckets(everything.windows.lengths_W, 4096, None):
        batch = everything.batch(chosen)
        with torch.inference_mode():
            score_BT = torch.sigmoid(best(torch.as_tensor(batch.tokens_BTF))).numpy()
        scores += score_BT[batch.in_loss_BT].tolist()
        labels += batch.label_BT[batch.in_loss_BT].tolist()
    assert np.mean(scores) == pytest.approx(np.mean(labels), rel=0.12)
    assert last.held_out_ap is not None
    assert last.held_out_ap > 0.12  # it learnt who is at risk, not only how many


# Repeating and resuming


def test_the_same_seed_gives_the_same_bits_and_another_seed_others() -> None:
    training_set = every_event_set(60, 0.2, seed=1)
    reports = list(fit(small_network(), training_set, _CONFIG, resume=None))
    torch.manual_seed(99)
    again = list(fit(small_network(), training_set, _CONFIG, resume=None))
    assert [(r.train_loss, r.held_out_loss, r.held_out_ap, r.n_events) for r in reports] == [
        (r.train_loss, r.held_out_loss, r.held_out_ap, r.n_events) for r in again
    ]
    assert same_weights(reports[-1], again[-1])
    assert len({report.n_events for report in reports}) > 1  # each epoch draws its negatives anew
    other = list(fit(small_network(), training_set, dataclasses.replace(_CONFIG, seed=8), resume=None))
    assert not same_weights(reports[0], other[0])


@pytest.mark.parametrize("n_done", [1, 2, 3])
def test_a_fit_resumed_from_saved_arrays_ends_in_the_same_bits(n_done: int) -> None:
    training_set = every_event_set(60, 0.2, seed=1)
    reports = list(fit(small_network(), training_set, _CONFIG, resume=None))
    arrays, numbers = state_to_arrays(reports[n_done - 1].state)
    saved = state_from_arrays({name: array.copy() for name, array in arrays.items()}, json.loads(json.dumps(numbers)))
    rest = list(fit(small_network(seed=5), training_set, _CONFIG, resume=saved))
    assert [report.epoch for report in rest] == list(range(n_done + 1, len(reports) + 1))
    assert same_weights(reports[-1], rest[-1])
    expected, found = state_to_arrays(reports[-1].state), state_to_arrays(rest[-1].state)
    assert expected[1] == found[1]
    assert all(np.array_equal(expected[0][name], found[0][name]) for name in expected[0])


def test_a_finished_fit_has_nothing_to_resume() -> None:
    training_set = every_event_set(60, 0.2, seed=1)
    *_, last = fit(small_network(), training_set, _CONFIG, resume=None)
    assert list(fit(small_network(), training_set, _CONFIG, resume=last.state)) == []


def test_fitting_changes_neither_its_network_nor_the_state_of_torch() -> None:
    network = small_network()
    before = weights_of(network)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    list(fit(network, every_event_set(30, 0.2, seed=1), dataclasses.replace(_CONFIG, threads=2), resume=None))
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == 1
    assert all(np.array_equal(before[name], array) for name, array in weights_of(network).items())


# Precision and the pieces made for speed


def test_bf16_learns_what_fp32_learns_and_keeps_weights_of_32_bits() -> None:
    if not can_train_in_bf16(torch.device("cpu")):
        pytest.skip("this processor does not multiply in bfloat16")
    training_set = every_event_set(600, 0.3, seed=0, max_events=64)
    config = TrainingConfig(epochs=6, batch_events=1024, learning_rate=0.02)
    last: dict[str, EpochReport] = {}
    for name in ("fp32", "bf16"):
        precise = dataclasses.replace(config, precision="bf16" if name == "bf16" else "fp32")
        *_, last[name] = fit(small_network(), training_set, precise, resume=None)
    assert not same_weights(last["fp32"], last["bf16"])
    assert {tensor.dtype for tensor in last["bf16"].state.weights.values()} == {torch.float32}
    assert last["bf16"].held_out_loss == pytest.approx(last["fp32"].held_out_loss, abs=0.01)


def test_bf16_is_refused_where_the_device_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "can_train_in_bf16", lambda device: False)
    config = dataclasses.replace(_CONFIG, precision="bf16")
    with pytest.raises(ConfigError, match=r'training\.precision = "bf16": this cpu cannot; expected "fp32"'):
        list(fit(small_network(), every_event_set(30, 0.2, seed=1), config, resume=None))


@given(
    n_events=st.integers(1, 50),
    sizes=st.lists(st.integers(4, 30), min_size=1, max_size=5),
    seed=st.integers(0, 2**31),
)
def test_the_gradient_of_the_embedding_is_that_of_pytorch(n_events: int, sizes: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    embedding = EventEmbedding(tuple(FieldShape(f"field{f}", size, False) for f, size in enumerate(sizes)), 8)
    tokens_NF = torch.stack([torch.randint(0, size, (n_events,)) for size in sizes], dim=1)
    weight_ND = torch.randn(n_events, 8)
    gradients: list[torch.Tensor] = []
    for is_training in (True, False):
        embedding.train(is_training).zero_grad()
        (embedding(tokens_NF) * weight_ND).sum().backward()
        assert embedding.table.grad is not None
        gradients.append(embedding.table.grad.clone())
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-5, rtol=1e-5)


def test_dropout_drops_its_share_keeps_the_mean_and_rests_while_scoring() -> None:
    torch.manual_seed(0)
    values = torch.ones(301, 999, requires_grad=True)
    dropout = Dropout(0.1)
    dropped = dropout(values)
    assert float((dropped == 0).float().mean()) == pytest.approx(0.1, abs=0.005)
    assert float(dropped.detach().mean()) == pytest.approx(1.0, abs=0.003)
    dropped.sum().backward()
    assert torch.equal(values.grad, dropped.detach())
    share_D = (dropped == 0).float().mean(0)  # no column is favoured
    assert 0.02 < float(share_D.min()) < float(share_D.max()) < 0.22
    assert dropout.eval()(values) is values


# Stopping


def test_a_fit_stops_after_patience_epochs_and_the_best_weights_are_those_of_the_lowest_loss() -> None:
    # Labels without a signal: a network of this size soon learns its training users by heart.
    training_set = every_event_set(40, 0.3, seed=1)
    random_N = (np.random.default_rng(0).random(len(training_set.label_N)) < 0.3).astype(np.int8)
    training_set = dataclasses.replace(training_set, label_N=random_N)
    config = dataclasses.replace(_CONFIG, epochs=40, patience=2, learning_rate=0.05, negative_rate=1.0)
    reports = list(fit(small_network(), training_set, config, resume=None))
    losses = [report.held_out_loss for report in reports if report.held_out_loss is not None]
    best = int(np.argmin(losses))
    assert len(losses) == len(reports) == best + 1 + config.patience < config.epochs
    assert [report.is_best for report in reports] == [loss == min(losses[: n + 1]) for n, loss in enumerate(losses)]
    kept = weights_of(best_network(small_network(), reports[-1].state))
    assert all(np.array_equal(kept[name], reports[best].state.weights[name].numpy()) for name in kept)


def test_without_held_out_events_the_last_epoch_is_the_best() -> None:
    plain = every_event_set(30, 0.2, seed=1)
    training_set = dataclasses.replace(plain, held_out_N=np.zeros_like(plain.held_out_N))
    reports = list(fit(small_network(), training_set, dataclasses.replace(_CONFIG, patience=1), resume=None))
    assert [(r.is_best, r.held_out_loss, r.held_out_ap) for r in reports] == [(True, None, None)] * _CONFIG.epochs
    assert reports[-1].state.best_epoch == _CONFIG.epochs


def test_the_learning_rate_rises_and_then_falls_almost_to_nothing() -> None:
    config = dataclasses.replace(_CONFIG, epochs=20, patience=20)
    rates = [r.learning_rate for r in fit(small_network(), every_event_set(30, 0.2, seed=1), config, resume=None)]
    peak = int(np.argmax(rates))
    assert rates[peak] == pytest.approx(config.learning_rate, rel=0.1)
    assert rates[0] < rates[1]
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[-1] < 0.05 * config.learning_rate


def test_the_loss_falls_to_what_the_generator_allows() -> None:
    training_set = every_event_set(600, 0.3, seed=0, max_events=64)
    config = TrainingConfig(epochs=8, batch_events=1024, learning_rate=0.02)
    *_, last = fit(small_network(), training_set, config, resume=None)
    # The best possible: each event judged by the rate it was drawn with. Types 2 and 3 are equally frequent, so about
    # half of the events are at risk; of odds 9 to 1 around a mean of 0.3 these are 0.54 and 0.06.
    rates = np.array([0.54, 0.06])
    entropy = float(-(rates * np.log(rates) + (1 - rates) * np.log(1 - rates)).mean())
    assert last.held_out_loss == pytest.approx(entropy, abs=0.03)


# What cannot be learnt from


def test_training_events_without_a_fraud_are_refused() -> None:
    plain: TrainingSet = every_event_set(30, 0.2, seed=1)
    with pytest.raises(DataError, match="no fraud among the training events"):
        list(fit(small_network(), dataclasses.replace(plain, trained_N=plain.trained_N & (plain.label_N == 0)),
                 _CONFIG, resume=None))  # fmt: skip


def test_a_loss_that_is_not_finite_is_an_error_that_names_the_rate() -> None:
    network = small_network()
    with torch.no_grad():
        network.head.bias.fill_(math.inf)
    with pytest.raises(ConfigError, match=r"training\.learning_rate = 0\.01"):
        list(fit(network, every_event_set(30, 0.2, seed=1), _CONFIG, resume=None))
