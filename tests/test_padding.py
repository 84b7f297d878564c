"""Padded copies of histories: the story is still in them, and nothing but harmless events of the user's own is new."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fraud.config import load_config
from fraud.enrich import EnrichSpec, empty_carry, enrich
from fraud.events import Events
from fraud.logs import read_log
from fraud.padding import padded
from fraud.preparation import prepare
from tests.made_events import made_events
from tests.trained import Trained, trained_bundles

SEEDS = st.integers(0, 2**31)


def opens(events: Events) -> np.ndarray:
    """Return where sessions open."""
    spec = EnrichSpec(30 * 60 * 10**6, ())
    return enrich(events, empty_carry(events.n_users, spec), spec)[0].session_opens_N


def keys(seed: int) -> np.ndarray:
    """Return a seed for each of the five users."""
    return np.random.default_rng(seed).integers(0, 2**64, 5, dtype=np.uint64)


@given(seed=SEEDS)
def test_a_copy_is_the_history_with_harmless_events_of_the_same_user_put_in(seed: int) -> None:
    events = made_events(seed)
    opens_N = opens(events)
    is_harmless_V = np.arange(len(events.type.values)) % 2 == 0
    copy = padded(events, opens_N, is_harmless_V, keys(seed))
    own_M = ~copy.inserted_M
    assert np.array_equal(copy.source_M[own_M], np.arange(len(events)))
    assert is_harmless_V[copy.events.type.codes_N[copy.inserted_M]].all()
    assert np.array_equal(copy.events.type.codes_N, events.type.codes_N[copy.source_M])
    user_M = copy.events.user_codes()
    assert np.array_equal(user_M, events.user_codes()[copy.source_M])


@given(seed=SEEDS)
def test_time_never_runs_backwards_and_the_last_event_keeps_its_own(seed: int) -> None:
    events = made_events(seed)
    opens_N = opens(events)
    everything_V = np.ones(len(events.type.values), dtype=np.bool_)
    copy = padded(events, opens_N, everything_V, keys(seed))
    step_us = np.diff(copy.events.time_us)
    assert (step_us[~copy.events.first_of_user()[1:]] >= 0).all()
    has_rows_U = np.diff(events.user_starts) > 0
    last = copy.events.time_us[copy.events.user_starts[1:][has_rows_U] - 1]
    assert np.array_equal(last, events.time_us[events.user_starts[1:][has_rows_U] - 1])


def test_without_a_harmless_type_nothing_is_put_in() -> None:
    events = made_events(3)
    nothing_V = np.zeros(len(events.type.values), dtype=np.bool_)
    copy = padded(events, opens(events), nothing_V, keys(0))
    assert not copy.inserted_M.any()
    assert np.array_equal(copy.events.time_us, events.time_us)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return trained_bundles(tmp_path_factory)


def test_copies_train_and_nothing_else(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> None:
    plain = trained.config
    config = load_config(trained.config_file, ["training.padded=0.5"])
    folder = tmp_path_factory.mktemp("padded")
    with closing(read_log(plain)) as log:
        before = prepare(log, plain, folder / "plain", progress=lambda *_: None)
        after = prepare(log, config, folder / "padded", progress=lambda *_: None)
    n = len(before.tokens_NF)
    assert after.report["padded"] == len(after.tokens_NF) - n > 1000
    for name in ("tokens_NF", "label_N", "user_N", "trains_N", "validates_N", "tests_N", "time_us_N"):
        assert np.array_equal(getattr(after, name)[:n], getattr(before, name)), name
    assert after.vocabulary == before.vocabulary
    assert after.fingerprint == before.fingerprint
    assert not (after.validates_N[n:] | after.tests_N[n:] | after.in_training_N[n:]).any()
    copied = after.trains_N[n:]
    assert copied.sum() > 50
    assert after.label_N[n:][copied].sum() > 5
    # Whoever is held out for early stopping is so in the copies too: they stand under the same code.
    assert set(after.user_N[n:].tolist()) <= set(before.user_N[before.in_training_N].tolist())
    assert len(after.feature_row_R) == len(before.feature_row_R) + copied.sum()


def test_the_copies_do_not_depend_on_the_size_of_chunks(
    trained: Trained, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(trained.config, training=replace(trained.config.training, padded=0.5))
    folder = tmp_path_factory.mktemp("chunks")
    sets = []
    for place, size in (("large", 250_000), ("small", 500)):
        monkeypatch.setattr("fraud.scoring.CHUNK_EVENTS", size)
        with closing(read_log(config)) as log:
            sets.append(prepare(log, config, folder / place, progress=lambda *_: None))
    large, small = sets
    assert large.report["padded"] > 0
    for name in ("tokens_NF", "label_N", "user_N", "trains_N", "features_RC", "sequence_starts_S1"):
        assert np.array_equal(getattr(large, name), getattr(small, name), equal_nan=name == "features_RC"), name
