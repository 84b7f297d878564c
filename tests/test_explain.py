"""Laws of explanations: what is explained is what was scored, and an event's share is its own."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fraud.explain
from fraud.calibration import Calibration
from fraud.carries import Carries
from fraud.config import Config
from fraud.contexts import context_rows
from fraud.decisions import Policy
from fraud.enrich import Carry, Enriched, empty_carry, enrich
from fraud.entities import EntityTable
from fraud.events import Events, FloatArray, Text
from fraud.explain import Explained, explain
from fraud.logs import read_log
from fraud.scoring import LogitModel, Scorer, score_events
from fraud.tables import tables_of
from fraud.tokens import Risk, Vocabulary, encode
from tests.made_events import made_config, made_events, spec_of, state_after
from tests.trained import MODELS, Trained, trained_bundles

SEEDS = st.integers(0, 2**32 - 1)
CONFIG = made_config("fields.entity=[]", "fields.numeric=[]")
VOCABULARY = Vocabulary((), ())


class Sum:
    """A model whose logit adds up what it sees of the context: each type's weight, and 10 for a new channel."""

    kind = "boosting"
    vocabulary = VOCABULARY

    def __init__(self, config: Config, weights: dict[str, float]) -> None:
        self.config, self.weights = config, weights

    def logits(self, enriched: Enriched, risk: Risk) -> FloatArray:
        """Return the sum over each event's context."""
        column = enriched.events.type
        weight_V = np.array([self.weights.get(str(value), 0.0) for value in column.values])
        each_N = weight_V[column.codes_N] + 10.0 * (enriched.first_seen["channel"] == 1)
        total_N1 = np.concatenate([[0.0], np.cumsum(each_N)])
        sessions = self.config.sessions
        first_N = context_rows(enriched, sessions.scope, sessions.max_events)
        return total_N1[1:] - total_N1[first_N]


def _scorer(model: LogitModel, config: Config) -> Scorer:
    calibration = Calibration(kind="shift", slope=1.0, shift=0.0, n_positive=1, n_negative=1)
    policy = Policy(review_at=0.5, block_at=1.0, alert_budget=0.1, block_budget=0.0, costs=None)
    return Scorer(config=config, model=model, calibration=calibration, policy=policy, version="made")


def _made(seed: int, *, own_sessions: bool = False) -> Events:
    return replace(made_events(seed, own_sessions=own_sessions), entity={})


def _explained(scorer: Scorer, events: Events, rows: np.ndarray) -> Explained:
    spec = spec_of(scorer.config)
    before = empty_carry(events.n_users, spec)
    return explain(scorer, enrich(events, before, spec)[0], before, {}, rows)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return trained_bundles(tmp_path_factory)


@pytest.fixture(scope="module")
def log(trained: Trained) -> tuple[Events, dict[str, EntityTable]]:
    """Return the trained log's busiest users and what is known of their entities."""
    read = read_log(trained.config)
    events = read.partitions[0]().events
    busiest = np.argsort(-np.diff(events.user_starts), kind="stable")[:12]
    kept = events.keep(np.isin(events.user_codes(), busiest))
    has_events_U = np.diff(kept.user_starts) > 0
    starts_U1 = np.append(kept.user_starts[:-1][has_events_U], len(kept))
    return replace(kept, users=kept.users[has_events_U], user_starts=starts_U1), dict(tables_of(read, trained.config))


def _with_scope(scorer: Scorer, scope: str) -> Scorer:
    config = replace(scorer.config, sessions=replace(scorer.config.sessions, scope=scope, gap=12 * 3600 * 10**6))  # type: ignore[arg-type]
    model = scorer.model
    if hasattr(model, "members"):
        model = replace(model, members=tuple(replace(member, config=config) for member in model.members))  # type: ignore[attr-defined]
    else:
        model = replace(model, config=config)  # type: ignore[type-var]
    return replace(scorer, config=config, model=model)


@pytest.mark.parametrize("own_sessions", [False, True])
@given(seed=SEEDS, cut=SEEDS)
def test_the_carry_read_off_a_pass_is_the_carry_of_the_events_before(own_sessions: bool, seed: int, cut: int) -> None:
    whole = made_events(seed, own_sessions=own_sessions)
    spec = spec_of(CONFIG)
    carry, events = state_after(whole, spec, "user", 8)  # a pass may itself begin with a carry
    if len(events) == 0:
        return
    enriched, _ = enrich(events, carry, spec)
    row = cut % len(events)
    read = Carries(enriched, carry).at(np.array([row]))
    is_before_N = (events.user_codes() == events.user_codes()[row]) & (np.arange(len(events)) < row)
    user = slice(int(events.user_codes()[row]), int(events.user_codes()[row]) + 1)
    _, expected = enrich(events.keep(is_before_N), carry, spec)
    for field in fields(Carry):
        if field.name != "recent":
            np.testing.assert_array_equal(getattr(read, field.name), getattr(expected, field.name)[user], field.name)
    for name, recent in expected.recent.items():
        first, last = recent.starts_U1[user.start], recent.starts_U1[user.stop]
        assert read.recent[name].values.to_objects().tolist() == recent.values.to_objects()[first:last].tolist()


@pytest.mark.parametrize("scope", ["user", "session"])
@pytest.mark.parametrize("model", MODELS)
def test_the_copy_left_as_it_is_has_the_logit_that_was_scored(
    trained: Trained, log: tuple[Events, dict[str, EntityTable]], model: str, scope: str
) -> None:
    events, tables = log
    scorer = _with_scope(trained.bundle(model).scorer, scope)
    before = empty_carry(events.n_users, spec_of(scorer.config))
    scored, _ = score_events(scorer, events, before, tables)
    rows = np.arange(0, len(events), 7)
    explained = explain(scorer, scored.enriched, before, tables, rows)
    np.testing.assert_allclose(explained.logit_D, scored.logit_N[rows], rtol=0, atol=1e-5)


@pytest.mark.parametrize("model", MODELS)
def test_from_a_stored_window_and_its_carry_the_explanation_is_the_same(
    trained: Trained, log: tuple[Events, dict[str, EntityTable]], model: str
) -> None:
    events, tables = log
    scorer = trained.bundle(model).scorer
    spec = spec_of(scorer.config)
    carry, window = state_after(events, spec, "user", scorer.config.sessions.max_events)
    enriched, _ = enrich(window, carry, spec)
    last = window.user_starts[1:][np.diff(window.user_starts) > 0] - 1
    online = explain(scorer, enriched, carry, tables, last)
    before = empty_carry(events.n_users, spec)
    rows = np.flatnonzero(np.isin(events.row, window.row[last]))
    whole = explain(scorer, enrich(events, before, spec)[0], before, tables, rows)
    np.testing.assert_array_equal(online.starts_D1, whole.starts_D1)
    np.testing.assert_allclose(online.contribution_C, whole.contribution_C, rtol=0, atol=1e-5)


@pytest.mark.parametrize("model", MODELS)
def test_neither_other_explanations_nor_other_users_nor_the_size_of_a_batch_matter(
    trained: Trained, log: tuple[Events, dict[str, EntityTable]], model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    events, tables = log
    scorer = trained.bundle(model).scorer
    spec = spec_of(scorer.config)
    before = empty_carry(events.n_users, spec)
    rows = np.arange(5, len(events), 23)
    together = explain(scorer, enrich(events, before, spec)[0], before, tables, rows)
    user = int(events.user_codes()[rows[-1]])
    alone = events.take_users(user, user + 1)
    own_row = np.array([rows[-1] - int(events.user_starts[user])])
    monkeypatch.setattr(fraud.explain, "COPIED_EVENTS", 1)
    single = explain(scorer, enrich(alone, empty_carry(1, spec), spec)[0], empty_carry(1, spec), tables, own_row)
    first = int(together.starts_D1[-2])
    np.testing.assert_array_equal(single.row_C, together.row_C[first:] - int(events.user_starts[user]))
    np.testing.assert_allclose(single.contribution_C, together.contribution_C[first:], rtol=0, atol=1e-5)


@pytest.mark.parametrize("scope", ["user", "session"])
@pytest.mark.parametrize("own_sessions", [False, True])
@given(seed=SEEDS)
def test_each_event_of_the_context_has_a_contribution_and_no_other_event(
    own_sessions: bool, scope: str, seed: int
) -> None:
    config = made_config("fields.entity=[]", f'sessions.scope="{scope}"')
    events = _made(seed, own_sessions=own_sessions)
    rows = np.arange(len(events))
    explained = _explained(_scorer(Sum(config, {}), config), events, rows)
    enriched = enrich(events, empty_carry(events.n_users, spec_of(config)), spec_of(config))[0]
    first_N = context_rows(enriched, config.sessions.scope, config.sessions.max_events)
    contexts = [np.arange(first, row + 1) for first, row in zip(first_N, rows, strict=True)]
    np.testing.assert_array_equal(explained.row_C, np.concatenate([*contexts, np.zeros(0, dtype=np.int64)]))
    np.testing.assert_array_equal(np.diff(explained.starts_D1), [len(context) for context in contexts])


@given(seed=SEEDS)
def test_an_event_adds_what_the_model_takes_from_it(seed: int) -> None:
    weights = {"login": 1.0, "check": -2.0, "withdraw": 0.25}
    config = CONFIG
    events = _made(seed)
    events = replace(events, categorical={"channel": Text(np.full(len(events), -1, np.int32), np.array([], object))})
    explained = _explained(_scorer(Sum(config, weights), config), events, np.arange(len(events)))
    column = events.type
    expected = [weights.get(str(column.values[code]), 0.0) for code in column.codes_N[explained.row_C]]
    np.testing.assert_allclose(explained.contribution_C, expected, rtol=0, atol=1e-9)


def test_what_later_events_say_of_an_unknown_event_follows() -> None:
    # The channel is new at the first event that has it; with that event unknown it is new at the second one.
    events = _made(3)
    codes = np.full(len(events), -1, dtype=np.int32)
    first = int(events.user_starts[0])
    codes[first + 1] = codes[first + 3] = 0
    events = replace(events, categorical={"channel": Text(codes, np.array(["app"], dtype=object))})
    explained = _explained(_scorer(Sum(CONFIG, {}), CONFIG), events, np.array([first + 3, first + 4]))
    assert explained.contribution_C[:4].tolist() == [0.0, 0.0, 0.0, 0.0]  # the novelty moves from 1 to 3
    lone = events.categorical["channel"].codes_N.copy()
    lone[first + 3] = -1
    events = replace(events, categorical={"channel": Text(lone, np.array(["app"], dtype=object))})
    explained = _explained(_scorer(Sum(CONFIG, {}), CONFIG), events, np.array([first + 3]))
    assert explained.contribution_C.tolist() == [0.0, 10.0, 0.0, 0.0]


class Watched:
    """A model that keeps the tokens it is given."""

    kind = "network"

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary, self.tokens = vocabulary, []

    def logits(self, enriched: Enriched, risk: Risk) -> FloatArray:
        """Return zeros."""
        self.tokens.append((enriched.events.user_starts, encode(enriched, risk, self.vocabulary)))
        return np.zeros(len(enriched.events))


def test_an_unknown_event_keeps_its_time_and_nothing_else(
    trained: Trained, log: tuple[Events, dict[str, EntityTable]]
) -> None:
    events, tables = log
    scorer = trained.bundle("lstm").scorer
    watched = Watched(scorer.model.vocabulary)
    spec = spec_of(scorer.config)
    before = empty_carry(events.n_users, spec)
    row = int(events.user_starts[1]) - 1
    explain(replace(scorer, model=watched), enrich(events, before, spec)[0], before, tables, np.array([row]))
    starts, tokens = watched.tokens[0]
    whole = tokens[starts[0] : starts[1]]
    names = [field.name for field in scorer.model.vocabulary.fields]
    of_before = tuple(name for name in names if name.startswith(("since:", "pause:")))
    kept = ("session_start", "gap", "since_session", "hour", *of_before)
    for place in range(len(starts) - 2):
        copy = tokens[starts[place + 1] : starts[place + 2]]
        hidden = dict(zip(names, copy[place].tolist(), strict=True))
        assert [hidden[name] for name in kept] == [whole[place][names.index(name)] for name in kept]
        assert {hidden[name] for name in set(names) - set(kept)} == {1}
        np.testing.assert_array_equal(copy[:place], whole[:place])


@settings(max_examples=5)
@given(seed=SEEDS)
def test_an_explanation_of_nothing_is_empty(seed: int) -> None:
    explained = _explained(_scorer(Sum(CONFIG, {}), CONFIG), _made(seed), np.zeros(0, dtype=np.int64))
    assert (len(explained.logit_D), len(explained.row_C), explained.starts_D1.tolist()) == (0, 0, [0])
