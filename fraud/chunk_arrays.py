"""The arrays of a prepared set, a chunk at a time: of the log's own events, and of padded copies of their histories.

Everything is enriched, encoded and counted by the functions that scoring uses. Nothing here knows a file.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fraud.chunks import Labelled
from fraud.config import Config
from fraud.contexts import sequences
from fraud.enrich import empty_carry, enrich
from fraud.features import features
from fraud.labels import NO_LABEL, Labels, no_labels
from fraud.padding import padded
from fraud.scoring import Tables, enrich_spec, feature_spec, risk_of
from fraud.sessions import n_reopened
from fraud.splits import Cuts, Supervision, supervise, user_share
from fraud.tokens import Vocabulary, encode


def supervised(chunk: Labelled, cuts: Cuts, config: Config) -> tuple[Labels, Supervision]:
    """Return the labels of a chunk (none where nobody says) and what its events are for."""
    labels = no_labels(chunk.enriched) if chunk.labels is None else chunk.labels
    known = labels if chunk.known is None else chunk.known
    return labels, supervise(chunk.enriched, labels, known, cuts, config, chunk.part_N)


class Encoded(NamedTuple):
    """The arrays of one chunk, rows and codes counted from its own start."""

    arrays: dict[str, npt.NDArray[Any]]
    n_events: int
    n_users: int
    n_sessions: int
    newest_label_us: int | None
    n_early: int
    n_reopened: int


def encoded(chunk: Labelled, config: Config, cuts: Cuts, tables: Tables, vocabulary: Vocabulary) -> Encoded:
    """Return the arrays of a chunk, each row an event."""
    labels, supervision = supervised(chunk, cuts, config)
    enriched, events = chunk.enriched, chunk.enriched.events
    risk = risk_of(events, tables)
    rows_R = np.flatnonzero(supervision.trains_N | supervision.validates_N | supervision.tests_N)
    used_N = (labels.label_N != NO_LABEL) & (supervision.trains_N | supervision.validates_N)
    known_us = labels.known_us_N[used_N & (labels.known_us_N <= cuts.as_of_us)]
    arrays: dict[str, npt.NDArray[Any]] = {
        "tokens_NF": encode(enriched, risk, vocabulary),
        "sequence_starts_S1": sequences(enriched, config.sessions.scope).starts_S1[1:],
        "user_N": events.user_codes(),
        "session_N": (np.cumsum(enriched.session_opens_N) - 1).astype(np.int32),
        "time_us_N": events.time_us,
        "amount_N": events.amount if events.amount is not None else np.full(len(events), np.nan),
        "label_N": supervision.label_N,
        "in_training_N": supervision.in_training_N,
        "trains_N": supervision.trains_N,
        "validates_N": supervision.validates_N,
        "tests_N": supervision.tests_N,
        "features_RC": features(enriched, risk, vocabulary, feature_spec(config), rows_R),
        "feature_row_R": rows_R,
        "held_out_U": user_share(events.users, "held out", 0),
        "half_U": user_share(events.users, "half", 0),
    }
    return Encoded(
        arrays,
        len(events),
        events.n_users,
        int(enriched.session_opens_N.sum()),
        int(known_us.max()) if len(known_us) else None,
        labels.n_early,
        n_reopened(events, enriched.session_opens_N),
    )


def padded_copies(
    chunk: Labelled, config: Config, cuts: Cuts, tables: Tables, vocabulary: Vocabulary
) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of the padded copies; a copy keeps its user's code, so that whoever is held out stays so."""
    _, supervision = supervised(chunk, cuts, config)
    whole = chunk.enriched.events
    is_chosen_U = user_share(whole.users, "padded", config.training.seed) < config.training.padded
    kept_N = supervision.in_training_N & is_chosen_U[whole.user_codes()]
    events = whole.keep(kept_N)
    is_harmless_V = ~np.isin(whole.type.values.astype(str), [*config.decisions.on, *config.fields.key_types])
    key_U = (user_share(whole.users, "padding", config.training.seed) * 2.0**53).astype(np.uint64)
    copies = padded(events, chunk.enriched.session_opens_N[kept_N], is_harmless_V, key_U)
    row_M = np.flatnonzero(kept_N)[copies.source_M]
    enriched, _ = enrich(copies.events, empty_carry(events.n_users, enrich_spec(config)), enrich_spec(config))
    risk = {name: risk_NR[row_M] for name, risk_NR in risk_of(whole, tables).items()}
    trains_M = supervision.trains_N[row_M] & ~copies.inserted_M
    rows_R = np.flatnonzero(trains_M)
    no_M = np.zeros(len(row_M), dtype=np.bool_)
    return {
        "tokens_NF": encode(enriched, risk, vocabulary),
        "sequence_starts_S1": sequences(enriched, config.sessions.scope).starts_S1[1:],
        "user_N": copies.events.user_codes(),
        "session_N": (np.cumsum(enriched.session_opens_N) - 1).astype(np.int32),
        "time_us_N": copies.events.time_us,
        "amount_N": whole.amount[row_M] if whole.amount is not None else np.full(len(row_M), np.nan),
        "label_N": np.where(copies.inserted_M, 0, supervision.label_N[row_M]).astype(np.int8),
        "in_training_N": no_M,
        "trains_N": trains_M,
        "validates_N": no_M,
        "tests_N": no_M,
        "features_RC": features(enriched, risk, vocabulary, feature_spec(config), rows_R),
        "feature_row_R": rows_R,
    }
