"""A log made ready for training: tokens, features, labels and splits as flat arrays on disk, read through memory maps.

Two passes over the log's partitions: the first counts (vocabulary, entity risk), the second encodes. Both enrich by the
one function that scoring uses. Nothing of a model is known here; every scorer trains from the same prepared set.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fraud.arrays import ArrayFiles, map_array
from fraud.chunks import Chunk, Labelled, chunks, entity_tables, known_table, labelled, merged_tables
from fraud.config import Config, config_to_toml
from fraud.contexts import sequences
from fraud.enrich import Enriched
from fraud.entities import EntityTable
from fraud.errors import DataError
from fraud.events import BoolArray, FloatArray, IntArray
from fraud.features import FeatureArray, features
from fraud.labels import NO_LABEL, Labels, no_labels
from fraud.logs import Log
from fraud.parallel import in_order
from fraud.scoring import Tables, feature_spec, risk_of
from fraud.sessions import n_reopened
from fraud.splits import Cuts, Supervision, supervise, time_cuts, user_share
from fraud.tokens import (
    FieldCounts,
    TokenArray,
    Vocabulary,
    count_fields,
    encode,
    fit_vocabulary,
    merge_counts,
    vocabulary_from_json,
)

_META = "prepared.json"
_FINGERPRINTED = ("tokens_NF", "time_us_N", "label_N")
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A prepared set; every array may be a memory map.

    tokens_NF: int16 [N, F]. features_RC: float32 [R, C] of the rows feature_row_R. user_N: int32 codes. held_out_U:
    float64 [U] in [0, 1), the share below which a user is held out of training for early stopping; half_U likewise for
    the halves of the validation period. session_N: int32. label_N: int8. sequence_starts_S1: int64.
    """

    tokens_NF: TokenArray
    sequence_starts_S1: IntArray
    user_N: npt.NDArray[np.int32]
    session_N: npt.NDArray[np.int32]
    time_us_N: IntArray
    amount_N: FloatArray
    label_N: npt.NDArray[np.int8]
    in_training_N: BoolArray
    trains_N: BoolArray
    validates_N: BoolArray
    tests_N: BoolArray
    features_RC: FeatureArray
    feature_row_R: IntArray
    held_out_U: FloatArray
    half_U: FloatArray
    vocabulary: Vocabulary
    fingerprint: str
    newest_event_us: int
    newest_label_us: int | None
    report: dict[str, Any]  # Any: JSON, what was in the log
    directory: Path


def prepare(log: Log, config: Config, directory: Path, *, progress: Progress) -> Prepared:
    """Return the prepared set of a log, written to `directory` (which must be empty or absent).

    progress(stage, done, all) is called after each chunk. Without [labels] no event trains or judges. Raises DataError
    without events.
    """
    if log.n_events == 0:
        raise DataError(f"the log has no event that can be used ({log.rows_in} rows came in)")
    directory.mkdir(parents=True, exist_ok=True)
    cuts = time_cuts(config.split, log.time_us)
    counts, tables, first, matched = _count_pass(log, config, cuts, progress)
    vocabulary = fit_vocabulary(first, risk_of(first.events, tables), counts)
    with ArrayFiles(directory) as writer:
        report = _encode_pass(log, config, cuts, tables, vocabulary, writer, progress)
    if matched is not None:
        report["labels"] = len(matched)
        report["labels_unmatched"] = int((~matched).sum())
    report |= {"labels_quarantined": len(log.label_quarantine)}
    meta = {
        "config": config_to_toml(config),
        "fingerprint": report.pop("fingerprint"),
        "newest_event_us": int(log.time_us.max()),
        "newest_label_us": report.pop("newest_label_us"),
        "arrays": writer.shapes,
        "report": report,
    }
    (directory / "vocabulary.json").write_text(vocabulary.to_json(), encoding="utf-8")
    (directory / _META).write_text(json.dumps(meta, indent=1), encoding="utf-8")
    return open_prepared(directory)


def open_prepared(directory: Path) -> Prepared:
    """Return a prepared set written earlier. Raises DataError when the directory holds none, or not all of one."""
    try:
        meta = json.loads((directory / _META).read_text(encoding="utf-8"))
        vocabulary = vocabulary_from_json((directory / "vocabulary.json").read_text(encoding="utf-8"))
        arrays = {
            name: map_array(directory / f"{name}.bin", kind, shape) for name, (kind, shape) in meta["arrays"].items()
        }
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{directory}: not a prepared set ({error}); `fraud prepare` writes one") from None
    return Prepared(
        **arrays,
        vocabulary=vocabulary,
        fingerprint=meta["fingerprint"],
        newest_event_us=meta["newest_event_us"],
        newest_label_us=meta["newest_label_us"],
        report=meta["report"],
        directory=directory,
    )


def prepared_config(directory: Path) -> str | None:
    """Return the configuration (TOML text) that a prepared set was made under, None where there is no whole one."""
    try:
        return str(json.loads((directory / _META).read_text(encoding="utf-8"))["config"])
    except (OSError, ValueError, KeyError):
        return None


def remove_prepared(directory: Path) -> None:
    """Remove a prepared set."""
    shutil.rmtree(directory, ignore_errors=True)


def _supervised(chunk: Labelled, cuts: Cuts, config: Config) -> tuple[Labels, Supervision]:
    """Return the labels of a chunk (none where nobody says) and what its events are for."""
    labels = no_labels(chunk.enriched) if chunk.labels is None else chunk.labels
    known = labels if chunk.known is None else chunk.known
    return labels, supervise(chunk.enriched, labels, known, cuts, config, chunk.part_N)


class _Counted(NamedTuple):
    counts: FieldCounts
    tables: dict[str, EntityTable]
    matched_L: BoolArray
    enriched: Enriched


def _count_pass(
    log: Log, config: Config, cuts: Cuts, progress: Progress
) -> tuple[FieldCounts, Tables, Enriched, BoolArray | None]:
    """Return the counts of the training rows, the entity tables, one chunk and which label rows found an event."""

    known_rows = known_table(log, cuts.as_of_us)

    def count(chunk: Chunk) -> _Counted:
        known = labelled(chunk, log, config, known_rows)
        labels, supervision = _supervised(known, cuts, config)
        tables = entity_tables(known.enriched, known.labels)
        risk = risk_of(chunk.events, tables)
        counts = count_fields(known.enriched, risk, supervision.in_training_N)
        return _Counted(counts, tables, labels.matched_L, known.enriched)

    counts: list[FieldCounts] = []
    tables: list[dict[str, EntityTable]] = []
    matched: BoolArray | None = None
    first: Enriched | None = None
    done = 0
    for counted in in_order(count, chunks(log)):
        first = counted.enriched if first is None else first
        counts.append(counted.counts)
        tables.append(counted.tables)
        if log.label_table is not None:
            matched = counted.matched_L if matched is None else matched | counted.matched_L
        done += len(counted.enriched.events)
        progress("count", done, log.n_events)
    assert first is not None  # there is at least one event
    return merge_counts(counts), merged_tables(tables), first, matched


class _Encoded(NamedTuple):
    """The arrays of one chunk, rows and codes counted from its own start."""

    arrays: dict[str, npt.NDArray[Any]]
    n_events: int
    n_users: int
    n_sessions: int
    newest_label_us: int | None
    n_early: int
    n_reopened: int


def _encode_pass(
    log: Log,
    config: Config,
    cuts: Cuts,
    tables: Tables,
    vocabulary: Vocabulary,
    writer: ArrayFiles,
    progress: Progress,
) -> dict[str, Any]:  # Any: JSON
    """Write every array and return what was in the log."""
    n_events = n_users = n_sessions = n_early = reopened = 0
    digests = {name: hashlib.sha256() for name in _FINGERPRINTED}
    newest: list[int] = []
    writer.append("sequence_starts_S1", np.zeros(1, dtype=np.int64))
    known_rows = known_table(log, cuts.as_of_us)

    def encode_chunk(chunk: Chunk) -> _Encoded:
        return _encoded(labelled(chunk, log, config, known_rows), config, cuts, tables, vocabulary)

    for encoded in in_order(encode_chunk, chunks(log)):
        offsets = {
            "sequence_starts_S1": n_events,
            "feature_row_R": n_events,
            "user_N": n_users,
            "session_N": n_sessions,
        }
        for name, array in encoded.arrays.items():
            writer.append(name, array + offsets[name] if name in offsets else array)
        for name, digest in digests.items():
            digest.update(np.ascontiguousarray(encoded.arrays[name]).tobytes())
        newest += [] if encoded.newest_label_us is None else [encoded.newest_label_us]
        n_events += encoded.n_events
        n_users += encoded.n_users
        n_sessions += encoded.n_sessions
        n_early += encoded.n_early
        reopened += encoded.n_reopened
        progress("encode", n_events, log.n_events)
    return {
        "fingerprint": hashlib.sha256("".join(d.hexdigest() for d in digests.values()).encode()).hexdigest(),
        "newest_label_us": max(newest, default=None),
        "events": n_events,
        "users": n_users,
        "sessions": n_sessions,
        "sessions_reopened": reopened,
        "labels_known_too_early": n_early,
    }


def _encoded(chunk: Labelled, config: Config, cuts: Cuts, tables: Tables, vocabulary: Vocabulary) -> _Encoded:
    labels, supervision = _supervised(chunk, cuts, config)
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
    return _Encoded(
        arrays,
        len(events),
        events.n_users,
        int(enriched.session_opens_N.sum()),
        int(known_us.max()) if len(known_us) else None,
        labels.n_early,
        n_reopened(events, enriched.session_opens_N),
    )
