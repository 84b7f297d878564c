"""Golden events: made-up sequences whose scores a bundle must reproduce when it is loaded.

They are made from the vocabulary alone, so no user's history is in a bundle, and they walk through the known types,
categories and amounts, so a swapped vocabulary or a changed weight moves their scores.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from fraud.config import Config
from fraud.entities import EntityTable, entity_table
from fraud.errors import BundleError
from fraud.events import Events, FloatArray, ObjectArray, Text, text_from_objects
from fraud.tokens import Field, Vocabulary

TOLERANCE = 1e-4  # of a logit: another processor's rounding stays under 1e-5, a swapped id does not
_START_US = 1_700_000_000_000_000
_N_VALUES = 64


def golden_events(config: Config, vocabulary: Vocabulary) -> Events:
    """Return the golden events of a vocabulary: users with 1 to a few more than max_events events each."""
    rng = np.random.default_rng(20)
    counts_U = np.array([1, 2, 3, 5, 8, 13, 21, 34, config.sessions.max_events * 3 // 2 + 3])
    starts_U1 = np.concatenate([[0], np.cumsum(counts_U)]).astype(np.int64)
    n_events = int(starts_U1[-1])
    field_of = {field.name: field for field in vocabulary.fields}
    gap_us_N = np.exp(rng.uniform(np.log(1e6), np.log(3e11), n_events)).astype(np.int64)
    time_us = np.concatenate([
        _START_US + np.cumsum(gap_us_N[a:b]) if config.log.has_clock else np.arange(b - a)
        for a, b in zip(starts_U1[:-1], starts_U1[1:], strict=True)
    ])  # fmt: skip
    return Events(
        users=np.array([f"golden-{u}" for u in range(len(counts_U))], dtype=object),
        user_starts=starts_U1,
        time_us=time_us,
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
    """Return the entity tables of the golden events: every ninth event is a fraud that became known a day later."""
    is_fraud_N = (np.arange(len(events)) % 9 == 0).astype(np.int64)
    known_us_N = events.time_us + 86_400 * 10**6
    return {n: entity_table(c, events.time_us, is_fraud_N, known_us_N) for n, c in events.entity.items()}


def golden_to_json(events: Events, logit_N: FloatArray) -> str:
    """Return JSON text with the events, by field, and their logits."""
    tree = {
        "users": events.users.tolist(),
        "user_starts": events.user_starts.tolist(),
        "time_us": events.time_us.tolist(),
        "type": events.type.to_objects().tolist(),
        "amount": None if events.amount is None else _nullable(events.amount),
        "numeric": {name: _nullable(column) for name, column in events.numeric.items()},
        "categorical": {name: column.to_objects().tolist() for name, column in events.categorical.items()},
        "entity": {name: column.to_objects().tolist() for name, column in events.entity.items()},
        "session": None if events.session is None else events.session.to_objects().tolist(),
        "logits": logit_N.tolist(),
    }
    return json.dumps(tree, ensure_ascii=False)


def golden_from_json(text: str, config: Config) -> tuple[Events, FloatArray]:
    """Return the golden events and their logits; raise BundleError for text that `golden_to_json` did not write."""
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
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BundleError(f"golden.json: cannot be read ({error!r}); expected golden events and logits") from None
    if len(logit_N) == 0 or not len(logit_N) == len(events) == events.user_starts[-1]:
        raise BundleError(f"golden.json: {len(logit_N)} logits for {len(events)} events; expected one for each")
    return events, logit_N


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
