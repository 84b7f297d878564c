"""Golden events: made-up sequences whose scores a bundle must reproduce when it is loaded.

They are made from the vocabulary alone, so no user's history is in a bundle, and they walk through the known types,
categories and amounts, so a swapped vocabulary or a changed weight moves their scores. What so few events cannot reach
(the 4,000th category, a weight that nothing here touches) is held by the sha256 of the files the logits came from.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from fraud.config import Config
from fraud.contexts import sequences
from fraud.enrich import empty_carry
from fraud.entities import NEVER_KNOWN_US, EntityTable, entity_table
from fraud.errors import BundleError
from fraud.events import Events, FloatArray, ObjectArray, Text, text_from_objects
from fraud.runtime import StepModel
from fraud.scoring import FusedModel, NetworkModel, Scored, Scorer, enrich_spec, risk_of, score_events
from fraud.tokens import Field, Risk, Vocabulary, encode

TOLERANCE = 1e-4  # of a logit: another processor's rounding stays under 1e-5, a swapped id does not
_START_US = 1_700_000_000_000_000
_N_VALUES = 64
_SOURCES = ("vocabulary.json", "fusion.json", "weights.safetensors", "window.onnx", "step.onnx", "boosting.onnx")
# An exported network may take one way through few windows and another through many (`fraud.models.recurrent_graph`):
# both are checked.
_MANY_USERS = 56
_FEW_USERS = 4


class Golden(NamedTuple):
    """Golden events, their logits float64 [N], and the sha256 of each file that these came from."""

    events: Events
    logit_N: FloatArray
    sources: Mapping[str, str]


def golden_json(scorer: Scorer, files: Mapping[str, bytes]) -> str:
    """Return the text of golden.json for a scorer made of these files of a bundle, by name."""
    events = golden_events(scorer.config, scorer.model.vocabulary)
    return golden_to_json(Golden(events, _scored(scorer, events, events).logit_N, _sources(files)))


def check_golden(scorer: Scorer, files: Mapping[str, bytes]) -> None:
    """Raise BundleError where a scorer made of these files does not give the golden logits, by each way to score."""
    golden = golden_from_json(files["golden.json"].decode("utf-8", "replace"), scorer.config)
    sources = _sources(files)
    for name in sorted(sources.keys() | golden.sources.keys()):
        if sources.get(name) != golden.sources.get(name):
            raise BundleError(f"{name}: not the file that the golden scores came from (sha256 in golden.json)")
    scored = _scored(scorer, golden.events, golden.events)
    risk = risk_of(golden.events, golden_tables(golden.events))
    _compare(scored.logit_N, golden.logit_N, "the golden events")
    few = golden.events.take_users(0, min(_FEW_USERS, golden.events.n_users))
    _compare(_scored(scorer, few, golden.events).logit_N, golden.logit_N[: len(few)], "a few golden users")
    for member in scorer.model.members if isinstance(scorer.model, FusedModel) else (scorer.model,):
        if isinstance(member, NetworkModel) and member.step is not None:
            expected_N = golden.logit_N if member is scorer.model else member.logits(scored.enriched, risk)
            _compare_steps(member.step, replace(scorer, model=member), scored, expected_N, risk)


def golden_events(config: Config, vocabulary: Vocabulary) -> Events:
    """Return the golden events of a vocabulary: users with 1 to a few more than max_events events each."""
    rng = np.random.default_rng(20)
    longest = config.sessions.max_events * 3 // 2 + 3
    counts_U = np.array([1, 2, 3, 5, 8, 13, 21, 34, longest, *np.resize([2, 3, 4, 5], _MANY_USERS)])
    starts_U1 = np.concatenate([[0], np.cumsum(counts_U)]).astype(np.int64)
    n_events = int(starts_U1[-1])
    field_of = {field.name: field for field in vocabulary.fields}
    gap_us_N = np.exp(rng.uniform(np.log(1e6), np.log(3e11), n_events)).astype(np.int64)
    elapsed_us_N = np.cumsum(gap_us_N)
    first_N = np.repeat(starts_U1[:-1], counts_U)
    clock_us_N = _START_US + elapsed_us_N - elapsed_us_N[first_N]
    return Events(
        users=np.array([f"golden-{u}" for u in range(len(counts_U))], dtype=object),
        user_starts=starts_U1,
        time_us=clock_us_N if config.log.has_clock else np.arange(n_events) - first_N,
        has_clock=config.log.has_clock,
        zone=config.log.zone,
        type=_texts(field_of["type"], rng, n_events),
        amount=None if config.fields.amount is None else _numbers(field_of["amount"], rng, n_events, is_log=True),
        numeric={name: _numbers(field_of[name], rng, n_events, is_log=False) for name in config.fields.numeric},
        categorical={name: _texts(field_of[name], rng, n_events) for name in config.fields.categorical},
        entity={name: _entities(rng, n_events) for name in config.fields.entity},
        session=None if config.log.session is None else _sessions(n_events),
        row=np.arange(n_events),
    )


def golden_tables(events: Events) -> dict[str, EntityTable]:
    """Return the entity tables of the golden events: every ninth event is a fraud, and all is known a day later."""
    is_fraud_N, known_us_N = np.arange(len(events)) % 9 == 0, events.time_us + 86_400 * 10**6
    fraud_us_N, honest_us_N = (np.where(of_N, known_us_N, NEVER_KNOWN_US) for of_N in (is_fraud_N, ~is_fraud_N))
    return {n: entity_table(c, events.time_us, fraud_us_N, honest_us_N) for n, c in events.entity.items()}


def golden_to_json(golden: Golden) -> str:
    """Return JSON text with the events, by field, their logits and where these came from."""
    events = golden.events
    tree = {
        "sources": golden.sources,
        "users": events.users.tolist(),
        "user_starts": events.user_starts.tolist(),
        "time_us": events.time_us.tolist(),
        "type": events.type.to_objects().tolist(),
        "amount": None if events.amount is None else _nullable(events.amount),
        "numeric": {name: _nullable(column) for name, column in events.numeric.items()},
        "categorical": {name: column.to_objects().tolist() for name, column in events.categorical.items()},
        "entity": {name: column.to_objects().tolist() for name, column in events.entity.items()},
        "session": None if events.session is None else events.session.to_objects().tolist(),
        "logits": golden.logit_N.tolist(),
    }
    return json.dumps(tree, ensure_ascii=False)


def golden_from_json(text: str, config: Config) -> Golden:
    """Return what `golden_to_json` wrote; raise BundleError for anything else."""
    try:
        tree: dict[str, Any] = json.loads(text)  # Any: JSON; each cell is converted below
        events = Events(
            users=np.array(tree["users"], dtype=object),
            user_starts=np.array(tree["user_starts"], dtype=np.int64),
            time_us=np.array(tree["time_us"], dtype=np.int64),
            has_clock=config.log.has_clock,
            zone=config.log.zone,
            type=_text(tree["type"]),
            amount=None if tree["amount"] is None else np.array(tree["amount"], dtype=np.float64),
            numeric={name: np.array(column, dtype=np.float64) for name, column in tree["numeric"].items()},
            categorical={name: _text(column) for name, column in tree["categorical"].items()},
            entity={name: _text(column) for name, column in tree["entity"].items()},
            session=None if tree["session"] is None else _text(tree["session"]),
            row=np.arange(len(tree["time_us"])),
        )
        logit_N = np.array(tree["logits"], dtype=np.float64)
        sources = {str(name): str(sha256) for name, sha256 in tree["sources"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise BundleError(f"golden.json: cannot be read ({error!r}); expected golden events and logits") from None
    columns = [events.type, events.amount, events.session, *events.numeric.values()]
    columns += [*events.categorical.values(), *events.entity.values()]
    lengths = {len(column.codes_N if isinstance(column, Text) else column) for column in columns if column is not None}
    if logit_N.ndim != 1 or len(logit_N) == 0 or lengths != {len(events)} or len(logit_N) != len(events):
        raise BundleError(f"golden.json: {len(logit_N)} logits for {len(events)} events; expected one for each")
    starts_U1 = events.user_starts
    if starts_U1.shape != (events.n_users + 1,) or starts_U1[0] != 0 or starts_U1[-1] != len(events):
        raise BundleError("golden.json: user_starts does not part the events among the users")
    if (np.diff(starts_U1) < 1).any():
        raise BundleError("golden.json: user_starts does not rise; expected at least one event of each user")
    return Golden(events, logit_N, sources)


def _sources(files: Mapping[str, bytes]) -> dict[str, str]:
    return {
        name: hashlib.sha256(content).hexdigest()
        for name, content in sorted(files.items())
        if name.rpartition("/")[2] in _SOURCES
    }


def _scored(scorer: Scorer, events: Events, known: Events) -> Scored:
    """Return the scores of some golden users; `known` are the events that fill the entity tables."""
    carry = empty_carry(events.n_users, enrich_spec(scorer.config))
    return score_events(scorer, events, carry, golden_tables(known))[0]


def _compare_steps(step: StepModel, scorer: Scorer, scored: Scored, logit_N: FloatArray, risk: Risk) -> None:
    """Compare the logits of one event at a time with those of windows, in the first window of each sequence."""
    tokens_NF = encode(scored.enriched, risk, scorer.model.vocabulary)
    starts_S = sequences(scored.enriched, scorer.config.sessions.scope).starts_S1
    lengths_S = np.minimum(np.diff(starts_S), scorer.config.sessions.max_events)
    # Longest first, so that those still going are always the first ones.
    order_S = np.argsort(-lengths_S, kind="stable")
    starts_S, lengths_S = starts_S[:-1][order_S], lengths_S[order_S]
    state_SN = step.initial_state(len(starts_S))
    expected_N, logit_N = logit_N, logit_N.copy()
    for position in range(int(lengths_S[0])):
        rows = starts_S[: int((lengths_S > position).sum())] + position
        state_SN, logit_S = step.step(tokens_NF[rows].astype(np.int64), state_SN[: len(rows)])
        logit_N[rows] = logit_S
    _compare(logit_N, expected_N, "the golden events, one at a time (step.onnx)")


def _compare(logit_N: FloatArray, expected_N: FloatArray, what: str) -> None:
    wrong_N = ~(np.abs(logit_N - expected_N) <= TOLERANCE)
    if wrong_N.any():
        row = int(np.argmax(wrong_N))
        raise BundleError(
            f"golden.json: of {what}, number {row} has the logit {logit_N[row]:.6g} instead of {expected_N[row]:.6g} "
            f"({int(wrong_N.sum())} of {len(wrong_N)} differ): weights, vocabulary and scores do not fit together"
        )


def _text(cells: list[str | None]) -> Text:
    column: ObjectArray = np.empty(len(cells), dtype=object)
    column[:] = cells
    return text_from_objects(column)


def _nullable(column: FloatArray) -> list[float | None]:
    return [None if np.isnan(cell) else float(cell) for cell in column]


def _texts(field: Field, rng: np.random.Generator, n_events: int) -> Text:
    known = [str(value) for value in field.values[:_N_VALUES]]
    cells = np.array([*known, "a value never seen"], dtype=object)
    codes = np.concatenate([rng.permutation(len(cells)) for _ in range(-(-n_events // len(cells)))])[:n_events]
    return text_from_objects(cells[codes])


def _numbers(field: Field, rng: np.random.Generator, n_events: int, *, is_log: bool) -> FloatArray:
    edges = np.array([0.0, *field.values], dtype=np.float64)
    numbers = edges[rng.integers(0, len(edges), n_events)] + rng.normal(0.0, 0.1, n_events)
    numbers = np.abs(np.expm1(np.abs(numbers))) if is_log else numbers
    return np.where(rng.random(n_events) < 0.3, np.nan, numbers)


def _entities(rng: np.random.Generator, n_events: int) -> Text:
    cells = np.array([None, *(f"golden-entity-{e}" for e in range(20))], dtype=object)
    return text_from_objects(cells[rng.integers(0, len(cells), n_events)])


def _sessions(n_events: int) -> Text:
    return text_from_objects(np.array([f"golden-session-{n // 7}" for n in range(n_events)], dtype=object))
