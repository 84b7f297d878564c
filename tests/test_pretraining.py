"""Learning from events alone: what is learnt, what is not read, and that a fit goes on from it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from planted import FIELDS, every_event_set

from fraud.batches import windows
from fraud.config import Config, ModelConfig, TrainingConfig, load_config
from fraud.errors import ConfigError, DataError
from fraud.learning import FittedModel, fit_model
from fraud.logs import read_log
from fraud.models import MODELS, TokenModel
from fraud.models.network import Network, build_network, weights_of
from fraud.preparation import Prepared, prepare
from fraud.pretraining import masked_events, next_event, pretrain, pretrained
from fraud.sampling import TrainingSet
from fraud.tokens import FIRST_ID, UNKNOWN_ID, FieldShape
from fraud.training import EpochReport, TrainingState, fit, state_from_arrays, state_to_arrays
from pipelines.simulate import simulate

KINDS = ("next", "masked")
NETWORKS = sorted(name for name, model in MODELS.items() if isinstance(model, TokenModel))

# The first field goes round three states, 9 steps in 10; the second is noise over four values, of 40 that could be.
CHAIN_33 = np.full((3, 3), 0.05) + 0.85 * np.roll(np.eye(3), 1, axis=1)
N_NOISE = 4
CHAIN_FIELDS = (FieldShape("state", FIRST_ID + 3, is_ordered=False), FieldShape("noise", 43, is_ordered=False))
N_EVENTS = 20

_CONFIG = TrainingConfig(
    pretrain_epochs=3, epochs=2, batch_events=512, learning_rate=0.01, negative_rate=0.5, seed=7, token_dropout=0.0
)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def chains(n_sequences: int, seed: int) -> TrainingSet:
    """Return sequences of 20 events of the chain, a fifth of them held out; every label is wrong on purpose."""
    rng = np.random.default_rng(seed)
    state_ST = np.empty((n_sequences, N_EVENTS), dtype=np.int64)
    state_ST[:, 0] = rng.integers(0, 3, n_sequences)
    for t in range(1, N_EVENTS):
        drawn_S = rng.random((n_sequences, 1))
        state_ST[:, t] = (drawn_S > np.cumsum(CHAIN_33, axis=1)[state_ST[:, t - 1]]).sum(axis=1)
    noise_ST = rng.integers(0, N_NOISE, state_ST.shape)
    is_held_out_N = np.repeat(np.arange(n_sequences) % 5 == 0, N_EVENTS)
    return TrainingSet(
        tokens_NF=(np.stack([state_ST, noise_ST], axis=-1).reshape(-1, 2) + FIRST_ID).astype(np.int16),
        windows=windows(np.arange(n_sequences + 1) * N_EVENTS, np.zeros(n_sequences, dtype=np.int64), 64),
        label_N=np.full(state_ST.size, -1, dtype=np.int8),
        trained_N=~is_held_out_N,
        held_out_N=is_held_out_N,
    )


def network_of(
    fields: tuple[FieldShape, ...] = FIELDS, *, name: str = "lstm", width: int = 8, dropout: float = 0.1, seed: int = 0
) -> Network:
    model = ModelConfig(name=name, layers=1, width=width, heads=2)
    return build_network(fields, model, dropout=dropout, base_rate=0.1, seed=seed)


def same_weights(one: TrainingState, other: TrainingState) -> bool:
    return all(torch.equal(one.weights[name], other.weights[name]) for name in one.weights)


# What is learnt


def entropy_after(n_steps: int) -> float:
    """Return the entropy of the chain's state that many steps after a known one, as a share of that of three."""
    share_3 = np.linalg.matrix_power(CHAIN_33, n_steps)[0]
    return float(-(share_3 * np.log(share_3)).sum() / np.log(3))


def masked_entropy() -> float:
    """Return the mean over the places of an event of what is left to learn of its state, masked as an event or alone.

    The last state that is known is as many steps back as the masks go on; there may be none since the first event.
    """
    hidden = 1 - 0.85 * 0.85
    by_place = [
        hidden**t + sum((1 - hidden) * hidden ** (k - 1) * entropy_after(k) for k in range(1, t + 1))
        for t in range(N_EVENTS)
    ]
    return float(np.mean(by_place))


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_falls_from_what_counting_gives_to_what_the_chain_allows(kind: str) -> None:
    config = replace(_CONFIG, pretrain=kind, pretrain_epochs=8, learning_rate=0.03, patience=8)
    first, *_, last = pretrain(
        network_of(CHAIN_FIELDS, width=16, dropout=0.0), chains(400, seed=0), config, resume=None
    )
    # The mean of two fields: noise stays at the 1 that counting gives.
    possible = ((entropy_after(1) if kind == "next" else masked_entropy()) + 1) / 2
    assert 0.6 < possible < 0.8
    assert last.held_out_loss == pytest.approx(possible, abs=0.015)
    assert last.train_loss == pytest.approx(possible, abs=0.015)
    assert first.train_loss > last.train_loss + 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_before_any_step_the_loss_is_what_counting_gives_whatever_the_sizes_of_the_fields(kind: str) -> None:
    config = replace(_CONFIG, pretrain=kind, pretrain_epochs=1, learning_rate=1e-9)
    wide = (*CHAIN_FIELDS, FieldShape("wide", 4000, is_ordered=False))
    plain = chains(400, seed=0)
    many_N1 = np.random.default_rng(1).integers(FIRST_ID, 1000, (len(plain.tokens_NF), 1))
    unlabelled = replace(plain, tokens_NF=np.concatenate([plain.tokens_NF, many_N1], axis=1).astype(np.int16))
    (only,) = pretrain(network_of(wide), unlabelled, config, resume=None)
    assert only.held_out_loss == pytest.approx(1.0, abs=0.05)


def test_a_field_of_one_value_known_or_not_is_left_out() -> None:
    config = replace(_CONFIG, pretrain="next")
    plain = chains(60, seed=0)
    still = replace(plain, tokens_NF=plain.tokens_NF.copy())
    still.tokens_NF[:, 1] = FIRST_ID
    unknown = replace(plain, tokens_NF=plain.tokens_NF.copy())
    unknown.tokens_NF[:, 1] = FIRST_ID
    unknown.tokens_NF[::2, 1] = UNKNOWN_ID
    for unlabelled in (still, unknown):
        *_, last = pretrain(network_of(CHAIN_FIELDS), unlabelled, config, resume=None)
        start = CHAIN_FIELDS[0].size
        moment = last.state.optimiser["second/predictor.weight"]
        assert (moment[start:] == 0).all()
        assert (moment[FIRST_ID:start] > 0).all()


def test_pretraining_speeds_up_what_the_same_signal_needs() -> None:
    """The label is the chain's state: a network that already tells the states apart needs fewer steps."""
    events = chains(400, seed=0)
    label_N = (np.roll(events.tokens_NF[:, 0], 2) == FIRST_ID).astype(np.int8)
    labelled = replace(events, label_N=label_N)
    config = replace(_CONFIG, pretrain="next", pretrain_epochs=5, epochs=1, learning_rate=0.005, negative_rate=1.0)
    network = network_of(CHAIN_FIELDS, width=16)
    started, _ = pretrained(network, events, config, resume=None, report=lambda _: None)
    (plain,) = fit(network, labelled, config, resume=None)
    (taught,) = fit(started, labelled, config, resume=None)
    assert plain.held_out_loss is not None
    assert taught.held_out_loss is not None
    assert taught.held_out_loss < plain.held_out_loss - 0.02


# What is asked


@given(seed=st.integers(0, 2**31))
def test_only_what_is_in_the_loss_is_asked_and_masks_hide_exactly_that(seed: int) -> None:
    rng = np.random.default_rng(seed)
    tokens_BTF = rng.integers(1, 9, (3, 7, 2))
    in_loss_BT = rng.random((3, 7)) < 0.5
    masked = masked_events(tokens_BTF, in_loss_BT, rng)
    assert not masked.asked_BTF[~in_loss_BT].any()
    assert (masked.read_BTF == np.where(masked.asked_BTF, UNKNOWN_ID, tokens_BTF)).all()
    assert (masked.target_BTF == tokens_BTF).all()
    following = next_event(tokens_BTF, in_loss_BT, rng)
    for t in range(6):
        assert (following.read_BTF[:, t] == tokens_BTF[:, t]).all()
        assert (following.target_BTF[:, t] == tokens_BTF[:, t + 1]).all()
        assert (following.asked_BTF[:, t] == in_loss_BT[:, t + 1, None]).all()


def test_masks_take_whole_events_and_single_fields() -> None:
    rng = np.random.default_rng(0)
    tokens_BTF = np.full((200, 50, 10), 5)
    asked_BTF = masked_events(tokens_BTF, np.ones((200, 50), dtype=np.bool_), rng).asked_BTF
    assert asked_BTF.all(axis=2).mean() == pytest.approx(0.15, abs=0.02)
    assert asked_BTF.mean() == pytest.approx(1 - 0.85 * 0.85, abs=0.02)


# What is not read


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> tuple[Prepared, Config]:
    folder = tmp_path_factory.mktemp("bank")
    simulate(folder / "log", users=60, days=60, seed=3, fraud_rate=0.05)
    small = ("model.layers=1", "model.width=8", "training.epochs=2", "training.pretrain_epochs=2",
             "sessions.max_events=16", "training.learning_rate=0.01", "training.pretrain=next")  # fmt: skip
    config = load_config(folder / "log" / "config.toml", small)
    return prepare(read_log(config), config, folder / "set", progress=lambda *_: None), config


def reports_of(prepared: Prepared, config: Config) -> tuple[FittedModel, list[EpochReport]]:
    reports: list[EpochReport] = []
    return fit_model(prepared, config, resume=None, report=reports.append), reports


def other_labels(prepared: Prepared) -> Prepared:
    return replace(prepared, label_N=1 - prepared.label_N)


def other_later_events(prepared: Prepared) -> Prepared:
    tokens_NF = np.array(prepared.tokens_NF)
    tokens_NF[~prepared.in_training_N] = UNKNOWN_ID
    return replace(prepared, tokens_NF=tokens_NF)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("changed", [other_labels, other_later_events])
def test_neither_a_label_nor_an_event_after_the_training_period_reaches_the_pretrained_weights(
    bank: tuple[Prepared, Config], changed: Callable[[Prepared], Prepared], kind: str
) -> None:
    prepared, config = bank
    config = replace(config, training=replace(config.training, pretrain=kind))
    plain, reports = reports_of(prepared, config)
    other, other_reports = reports_of(changed(prepared), config)
    assert [report.stage for report in reports] == ["pretrain"] * 2 + ["train"] * 2
    for report, again in zip(reports[:2], other_reports[:2], strict=True):
        assert same_weights(report.state, again.state)
        assert (report.train_loss, report.held_out_loss) == (again.train_loss, again.held_out_loss)
    assert not np.array_equal(plain.test_logit_T, other.test_logit_T)  # the fit, or the scores, do read it


def test_held_out_users_are_measured_and_not_learnt_from() -> None:
    config = replace(_CONFIG, pretrain="next")
    plain = every_event_set(60, 0.2, seed=1)
    other = replace(plain, tokens_NF=plain.tokens_NF.copy())
    other.tokens_NF[plain.held_out_N] = 2
    first, second = (next(pretrain(network_of(), one, config, resume=None)) for one in (plain, other))
    assert same_weights(first.state, second.state)
    assert first.held_out_loss != second.held_out_loss


# Repeating, resuming, handing over


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_learns_and_the_same_seed_gives_the_same_bits(name: str, kind: str) -> None:
    config = replace(_CONFIG, pretrain=kind, pretrain_epochs=3)
    events = chains(60, seed=1)
    network = network_of(CHAIN_FIELDS, name=name)
    before = weights_of(network)
    reports = list(pretrain(network, events, config, resume=None))
    torch.manual_seed(99)
    again = list(pretrain(network, events, config, resume=None))
    assert same_weights(reports[-1].state, again[-1].state)
    assert not same_weights(
        reports[0].state, next(pretrain(network, events, replace(config, seed=8), resume=None)).state
    )
    assert reports[2].train_loss < reports[0].train_loss
    assert all(np.array_equal(before[name], array) for name, array in weights_of(network).items())


def test_the_fit_starts_from_the_best_pretrained_weights_and_a_head_of_its_own() -> None:
    reports: list[EpochReport] = []
    network = network_of()
    # Events that are all noise: the first epoch is hardly beaten, and later ones learn the training users by heart.
    config = replace(_CONFIG, pretrain="masked", pretrain_epochs=4, learning_rate=0.05)
    started, state = pretrained(network, every_event_set(60, 0.2, seed=1), config, resume=None, report=reports.append)
    assert state is None
    last = reports[-1].state
    assert last.best_epoch < last.epoch
    for name, array in weights_of(started).items():
        if name.startswith("head."):
            assert np.array_equal(array, weights_of(network)[name])
        else:
            assert np.array_equal(array, last.best_weights[f"network.{name}"].numpy())
            assert not np.array_equal(array, last.weights[f"network.{name}"].numpy())


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_resumed_after_any_epoch_of_either_stage_ends_in_the_same_bytes(
    bank: tuple[Prepared, Config], kind: str
) -> None:
    prepared, config = bank
    config = replace(config, training=replace(config.training, pretrain=kind))
    whole, reports = reports_of(prepared, config)
    for nth, report in enumerate(reports):
        arrays, numbers = state_to_arrays(report.state)
        copies = {name: array.copy() for name, array in arrays.items()}
        saved = state_from_arrays(copies, json.loads(json.dumps(numbers)))
        rest: list[Any] = []
        resumed = fit_model(prepared, config, resume=saved, report=rest.append)
        assert len(rest) == len(reports) - nth - 1
        assert dict(resumed.model_files) == dict(whole.model_files)


# What cannot be learnt from


def test_a_log_without_a_next_event_or_without_two_values_is_refused() -> None:
    events = every_event_set(30, 0.2, seed=1)
    n_events = len(events.label_N)
    single = replace(events, windows=windows(np.arange(n_events + 1), np.zeros(n_events, dtype=np.int64), 16))
    with pytest.raises(DataError, match="no event of the log has one after it"):
        list(pretrain(network_of(), single, replace(_CONFIG, pretrain="next"), resume=None))
    assert list(pretrain(network_of(), single, replace(_CONFIG, pretrain="masked"), resume=None))
    still = replace(events, tokens_NF=np.full_like(events.tokens_NF, 3))
    with pytest.raises(DataError, match="no field of the training period has two values"):
        list(pretrain(network_of(), still, replace(_CONFIG, pretrain="next"), resume=None))


def test_a_network_that_looks_both_ways_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("[log]\n", encoding="utf-8")
    settings = ("model.name=transformer", "model.causal=false", "training.pretrain=masked")
    with pytest.raises(ConfigError, match=r"training\.pretrain = 'masked' needs model\.causal = true"):
        load_config(tmp_path / "config.toml", settings)
    assert load_config(tmp_path / "config.toml", settings[:2]).training.pretrain == "none"
