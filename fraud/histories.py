"""Labelled examples as histories of their own: the events of an example's context, the last of them the example.

What `fraud.ablation` changes and fits on. A history holds what a scorer may read of its user, and beside it, as
numbers, what no change of the history may touch: the risk of a payee, a device, a terminal, as known at the event's own
time, and how the example itself relates to all that its user did before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fraud.chunks import Labelled, labelled_chunks
from fraud.config import Config
from fraud.contexts import context_rows
from fraud.entities import RISK_NAMES
from fraud.errors import DataError
from fraud.events import Events, FloatArray, IntArray, Text
from fraud.logs import Log
from fraud.scoring import Tables, risk_of
from fraud.splits import PARTS, Cuts, supervise, time_cuts, user_share
from fraud.tables import tables_of
from fraud.tokens import Risk, token_columns

GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # the step of SplitMix64: 2**64 over the golden ratio, odd
Keys = npt.NDArray[np.uint64]


class Sample(NamedTuple):
    """How many examples of training, validation and test become histories at most; the rest is left out, and said."""

    n_train: int
    n_valid: int
    n_test: int


# 50,000 histories of 64 events are three sets of 3 million events: minutes, where all of a large log would be days.
DEFAULT_SAMPLE = Sample(20_000, 10_000, 20_000)


class HistoryChunk(NamedTuple):
    """Histories of some users, intact. key_U: a number of its own for each; part_U: index into PARTS."""

    events: Events
    label_U: npt.NDArray[np.int8]
    part_U: npt.NDArray[np.int8]
    key_U: Keys


@dataclass(frozen=True, slots=True, kw_only=True)
class Histories:
    """U histories, one an example. of_users: float64 [4, U]: code of the real user, its shares below which it is held
    out and in the first half of validation, and how many examples of its part and class this one stands for."""

    chunks: tuple[HistoryChunk, ...]
    of_users: FloatArray
    has_clock: bool
    limits: tuple[str, ...]


def histories(log: Log, config: Config, sample: Sample) -> Histories:
    """Return the examples of a labelled log as histories; raise DataError where there is none."""
    cuts = time_cuts(config.split, log.time_us)
    rates, limits = _rates(log, config, cuts, sample)
    tables = tables_of(log, config)
    chunks: list[HistoryChunk] = []
    columns: list[FloatArray] = []
    n_real = n_histories = 0
    for chunk in labelled_chunks(log, config, as_of_us=cuts.as_of_us):
        found = _examples(chunk, cuts, config)
        chosen = np.flatnonzero(found.coin_R < rates[found.part_R, found.label_R])
        found = found.take(chosen)
        users = chunk.enriched.events.users
        user_R = chunk.enriched.events.user_codes()[found.row_R].astype(np.int64)
        columns.append(
            np.stack(
                [
                    (n_real + user_R).astype(np.float64),
                    user_share(users, "held out", 0)[user_R],
                    user_share(users, "half", 0)[user_R],
                    1.0 / rates[found.part_R, found.label_R],
                ]
            )
        )
        chunks.append(_histories_of(chunk, found, tables, config, first=n_histories))
        n_real += len(users)
        n_histories += len(chosen)
    if n_histories == 0:
        raise DataError("ablation: no labelled decision event; there is nothing to take order or time from")
    if not chunks[0].events.has_clock:
        limits.append("ablation: the log has no clock, so there is no time to take away")
    limits.append(
        f"ablation: trained and judged on histories of at most {config.sessions.max_events} events with one label at "
        "their end; its intact AP is that of this simpler training, not the leaderboard's"
    )
    return Histories(
        chunks=tuple(chunks),
        of_users=np.concatenate(columns, axis=1),
        has_clock=chunks[0].events.has_clock,
        limits=tuple(limits),
    )


def mixed(key_N: Keys) -> Keys:
    """Return well-mixed numbers (Steele et al. 2014, Fast Splittable Pseudorandom Number Generators, mix64)."""
    key_N = (key_N ^ (key_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    key_N = (key_N ^ (key_N >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return key_N ^ (key_N >> np.uint64(31))


class _Found(NamedTuple):
    """R examples: row, 0 or 1, index into PARTS, a number in [0, 1) by which examples are left out, and its source."""

    row_R: IntArray
    label_R: npt.NDArray[np.int8]
    part_R: npt.NDArray[np.int8]
    coin_R: FloatArray
    key_R: Keys

    def take(self, chosen: IntArray) -> _Found:
        """Return the chosen examples."""
        return _Found(
            self.row_R[chosen], self.label_R[chosen], self.part_R[chosen], self.coin_R[chosen], self.key_R[chosen]
        )


def _examples(chunk: Labelled, cuts: Cuts, config: Config) -> _Found:
    """Return what trains, validates or tests in a chunk. The coin depends on the user's name and the event's place."""
    assert chunk.labels is not None  # the configuration has labels
    assert chunk.known is not None
    events = chunk.enriched.events
    one = supervise(chunk.enriched, chunk.labels, chunk.known, cuts, config, chunk.part_N)
    row_R = np.flatnonzero(one.trains_N | one.validates_N | one.tests_N)
    part_R = np.where(one.trains_N[row_R], 0, np.where(one.validates_N[row_R], 1, 2)).astype(np.int8)
    name_U = (user_share(events.users, "ablation", 0) * 2.0**53).astype(np.uint64)
    index_R = chunk.enriched.index_N[row_R].astype(np.uint64)
    key_R = mixed(name_U[events.user_codes()[row_R]] + index_R * GOLDEN)
    return _Found(row_R, one.label_N[row_R], part_R, (key_R >> np.uint64(11)).astype(np.float64) / 2.0**53, key_R)


def _rates(log: Log, config: Config, cuts: Cuts, sample: Sample) -> tuple[FloatArray, list[str]]:
    """Return the share of the examples that become histories [part, class], and what was left out, in words.

    All frauds, unless they alone are more than half of what may be kept.
    """
    n = np.zeros((len(PARTS), 2))
    for chunk in labelled_chunks(log, config, as_of_us=cuts.as_of_us):
        found = _examples(chunk, cuts, config)
        np.add.at(n, (found.part_R, found.label_R), 1)
    rates, limits = np.ones_like(n), list[str]()
    for part, most in enumerate(sample):
        n_other, n_fraud = n[part]
        if n_other + n_fraud <= most:
            continue
        n_kept = min(n_fraud, max(most / 2, most - n_other))
        rates[part] = min(1.0, (most - n_kept) / max(n_other, 1)), n_kept / max(n_fraud, 1)
        limits.append(
            f"ablation: of the {PARTS[part]} examples {rates[part, 1]:.1%} of {n_fraud:,.0f} frauds and "
            f"{rates[part, 0]:.1%} of {n_other:,.0f} others were drawn"
            + ("; AP counts each for as many as it stands for" if PARTS[part] == "test" else "")
        )
    return np.maximum(rates, 1e-12), limits


def _histories_of(chunk: Labelled, found: _Found, tables: Tables, config: Config, *, first: int) -> HistoryChunk:
    """Return the examples of a chunk as histories, named by their number from `first` on."""
    enriched, events = chunk.enriched, chunk.enriched.events
    risk = risk_of(events, tables)
    start_R = context_rows(enriched, config.sessions.scope, config.sessions.max_events)[found.row_R]
    length_R = found.row_R - start_R + 1
    starts_R1 = np.concatenate([[0], np.cumsum(length_R)]).astype(np.int64)
    from_K: IntArray = np.repeat(start_R - starts_R1[:-1], length_R) + np.arange(int(starts_R1[-1]))
    is_last_K = np.zeros(len(from_K), dtype=np.bool_)
    is_last_K[starts_R1[1:] - 1] = True
    known, own = _carried(token_columns(enriched, risk), risk)
    numeric = {name: column[from_K] for name, column in {**events.numeric, **known}.items()}
    numeric |= {name: np.where(is_last_K, column[from_K], np.nan) for name, column in own.items()}
    of_histories = Events(
        users=np.array([f"{first + n:09d}" for n in range(len(length_R))], dtype=object),
        user_starts=starts_R1,
        time_us=events.time_us[from_K],
        has_clock=events.has_clock,
        zone=events.zone,
        type=events.type.take(from_K),
        amount=None if events.amount is None else events.amount[from_K],
        numeric=numeric,
        categorical={name: column.take(from_K) for name, column in events.categorical.items()},
        entity={name: column.take(from_K) for name, column in events.entity.items()},
        session=None if events.session is None else events.session.take(from_K),
        row=np.arange(len(from_K)),
    )
    return HistoryChunk(of_histories, found.label_R, found.part_R, found.key_R)


def _carried(columns: Mapping[str, tuple[str, Any]], risk: Risk) -> tuple[dict[str, FloatArray], dict[str, FloatArray]]:
    """Return what is known of each event's entities, and how each event relates to the user's whole past: as numbers.

    The second is for the example alone: of an earlier event it would tell what came before it.
    """
    of_risk = {f"{what}:{field}" for what in RISK_NAMES for field in risk}
    known: dict[str, FloatArray] = {}
    own: dict[str, FloatArray] = {}
    for name, (_, column) in columns.items():
        if isinstance(column, Text):
            continue
        number_N = np.asarray(column, dtype=np.float64)
        if name in of_risk:
            known[f"risk:{name}"] = np.where(number_N < 0, np.nan, number_N)
        elif name.startswith("first_seen:"):
            own[f"own:{name}"] = np.where(number_N < 0, np.nan, number_N)
        elif name in ("amount_over_mean", "amount_over_max"):
            own[f"own:{name}"] = number_N
    return known, own
