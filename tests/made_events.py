"""Made-up events for tests: random users, types, gaps, amounts and entities from one seed."""

from __future__ import annotations

import itertools

import numpy as np

from fraud.config import Config, parse_config
from fraud.contexts import context_start
from fraud.enrich import Carry, Enriched, EnrichSpec, empty_carry, enrich
from fraud.events import Events, Text, concat_texts

TYPES = np.array(["check", "login", "transfer", "view", "withdraw"], dtype=object)
CONFIG = """
[log]
zone = "Europe/Berlin"
[fields]
amount = "amount"
categorical = ["channel"]
entity = ["payee"]
key_types = ["login", "check"]
[sessions]
gap = "30m"
max_events = 8
"""


def made_config(*overrides: str) -> Config:
    """Return the configuration that fits the made-up events."""
    from pathlib import Path

    return parse_config(CONFIG, source="test", root=Path(), overrides=overrides)


def spec_of(config: Config) -> EnrichSpec:
    """Return the enrichment of a configuration."""
    return EnrichSpec(config.sessions.gap, config.fields.key_types)


def made_events(seed: int, *, n_users: int = 5, max_count: int = 40, own_sessions: bool = False) -> Events:
    """Return events of n_users users, 0 to max_count each."""
    rng = np.random.default_rng(seed)
    counts_U = rng.integers(0, max_count + 1, n_users)
    starts_U1 = np.concatenate([[0], np.cumsum(counts_U)]).astype(np.int64)
    n_events = int(starts_U1[-1])
    gaps_us = (10 ** rng.uniform(4.0, 12.0, n_events)).astype(np.int64) * rng.integers(0, 2, n_events)
    time_us = np.zeros(n_events, dtype=np.int64)
    for a, b in itertools.pairwise(starts_U1):
        time_us[a:b] = 1_600_000_000_000_000 + np.cumsum(gaps_us[a:b])
    return Events(
        users=np.array([f"u{u}" for u in range(n_users)], dtype=object),
        user_starts=starts_U1,
        time_us=time_us,
        has_clock=True,
        zone="Europe/Berlin",
        type=Text(rng.integers(0, len(TYPES), n_events).astype(np.int32), TYPES),
        amount=np.where(rng.random(n_events) < 0.4, np.nan, np.round(rng.lognormal(3, 2, n_events), 2)),
        numeric={},
        categorical={"channel": _column(rng, n_events, ["app", "web"])},
        entity={"payee": _column(rng, n_events, [f"p{e}" for e in range(12)])},
        session=_column(rng, n_events, ["s1", "s2", "s3"], nulls=False) if own_sessions else None,
        row=np.arange(n_events),
    )


def joined(first: Events, second: Events) -> Events:
    """Return, user by user, the events of `first` and then those of `second`."""
    counts_first, counts_second = np.diff(first.user_starts), np.diff(second.user_starts)
    users = np.arange(first.n_users)
    user_R = np.concatenate([np.repeat(users, counts_first), np.repeat(users, counts_second)])
    order = np.argsort(user_R, kind="stable")

    def number(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.concatenate([a, b])[order]

    def text(a: Text, b: Text) -> Text:
        return concat_texts([a, b]).take(order)

    return Events(
        users=first.users,
        user_starts=np.concatenate([[0], np.cumsum(counts_first + counts_second)]).astype(np.int64),
        time_us=number(first.time_us, second.time_us),
        has_clock=first.has_clock,
        zone=first.zone,
        type=text(first.type, second.type),
        amount=None if first.amount is None or second.amount is None else number(first.amount, second.amount),
        numeric={name: number(first.numeric[name], second.numeric[name]) for name in first.numeric},
        categorical={name: text(first.categorical[name], second.categorical[name]) for name in first.categorical},
        entity={name: text(first.entity[name], second.entity[name]) for name in first.entity},
        session=None if first.session is None or second.session is None else text(first.session, second.session),
        row=number(first.row, second.row),
    )


def cut_at(events: Events, seed: int) -> tuple[Events, Events]:
    """Return the events before and after a random point of each user."""
    rng = np.random.default_rng(seed)
    cut_U = (rng.random(events.n_users) * (np.diff(events.user_starts) + 1)).astype(np.int64)
    index_N = np.arange(len(events)) - np.repeat(events.user_starts[:-1], np.diff(events.user_starts))
    is_before_N = index_N < np.repeat(cut_U, np.diff(events.user_starts))
    return events.keep(is_before_N), events.keep(~is_before_N)


def state_after(events: Events, spec: EnrichSpec, scope: str, max_events: int) -> tuple[Carry, Events]:
    """Return what is stored of users (DESIGN 2): the carry before their window, and the window: the raw events since
    the start of the block before the one that the NEXT event of the sequence (the user, or the session) falls in."""
    counts_U = np.diff(events.user_starts)
    enriched, _ = enrich(events, empty_carry(events.n_users, spec), spec)
    position_N = enriched.session_position_N if scope == "session" else enriched.index_N
    last_U = np.maximum(events.user_starts[1:] - 1, 0)
    next_position_U = position_N[last_U] + 1 if len(events) else counts_U
    dropped_U = counts_U - (next_position_U - context_start(next_position_U, max_events))
    index_N = np.arange(len(events)) - np.repeat(events.user_starts[:-1], counts_U)
    in_window_N = index_N >= np.repeat(dropped_U, counts_U)
    _, carry = enrich(events.keep(~in_window_N), empty_carry(events.n_users, spec), spec)
    return carry, events.keep(in_window_N)


def enriched_whole(events: Events, config: Config) -> Enriched:
    """Return one pass over users without a past."""
    spec = spec_of(config)
    return enrich(events, empty_carry(events.n_users, spec), spec)[0]


def _column(rng: np.random.Generator, n_events: int, values: list[str], *, nulls: bool = True) -> Text:
    codes = rng.integers(-1 if nulls else 0, len(values), n_events).astype(np.int32)
    return Text(codes, np.array(values, dtype=object))
