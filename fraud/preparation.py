"""A log made ready for training: tokens, features, labels and splits as flat arrays on disk, read through memory maps.

Two passes over the log's partitions: the first counts (vocabulary, entity risk), the second encodes. Both enrich by the
one function that scoring uses. Nothing of a model is known here; every scorer trains from the same prepared set.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from fraud.arrays import ArrayFiles, map_array
from fraud.config import Config, config_to_toml
from fraud.contexts import sequences
from fraud.enrich import Enriched, empty_carry, enrich
from fraud.entities import EntityTable, entity_table, merge_entity_tables
from fraud.errors import DataError
from fraud.events import BoolArray, FloatArray, IntArray, ObjectArray
from fraud.features import FeatureArray, features
from fraud.labels import NO_LABEL, Labels, join_labels, labels_in_log, no_labels
from fraud.logs import Log, event_ids
from fraud.scoring import Tables, enrich_spec, feature_spec, risk_of, user_chunks
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


class _Pass(NamedTuple):
    """One chunk of whole users, ready for either pass."""

    enriched: Enriched
    labels: Labels
    supervision: Supervision


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
    writer = ArrayFiles(directory)
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
        "arrays": writer.close(),
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


def labelled_chunks(log: Log, config: Config) -> Iterator[tuple[Enriched, Labels | None, ObjectArray | None]]:
    """Yield some whole users at a time: enriched events, labels, and the text of split.column of the log."""
    for load in log.partitions:
        ordered = load()
        ids = event_ids(ordered)
        first = 0
        for events in user_chunks(ordered.events):
            enriched, _ = enrich(events, empty_carry(events.n_users, enrich_spec(config)), enrich_spec(config))
            labels: Labels | None = None
            part_N: ObjectArray | None = None
            if config.labels is not None and log.label_table is not None:
                chunk_ids = ids.slice(first, len(events))
                labels = join_labels(enriched, chunk_ids, log.label_table, config.labels, config.log)
            elif config.labels is not None and "label" in ordered.table.column_names:
                labels = labels_in_log(ordered.table, pa.array(events.row), events.time_us, config.labels)
            if "part" in ordered.table.column_names:
                part_N = ordered.table["part"].take(pa.array(events.row)).to_numpy()
            first += len(events)
            yield enriched, labels, part_N


def entity_tables(enriched: Enriched, labels: Labels | None) -> dict[str, EntityTable]:
    """Return the counters of each entity field over these events; without labels no fraud is known."""
    time_us_N = enriched.events.time_us
    is_fraud_N = np.zeros(len(time_us_N), dtype=np.int64) if labels is None else (labels.label_N == 1).astype(np.int64)
    known_us_N = time_us_N if labels is None else labels.known_us_N
    if not enriched.events.has_clock:
        return {}
    return {n: entity_table(c, time_us_N, is_fraud_N, known_us_N) for n, c in enriched.events.entity.items()}


def merged_tables(parts: list[dict[str, EntityTable]]) -> dict[str, EntityTable]:
    """Return the sums of the counters of all parts, by field."""
    return {name: merge_entity_tables([part[name] for part in parts]) for name in (parts[0] if parts else {})}


def _passes(log: Log, config: Config, cuts: Cuts) -> Iterator[_Pass]:
    for enriched, labels, part_N in labelled_chunks(log, config):
        labels = no_labels(enriched) if labels is None else labels
        yield _Pass(enriched, labels, supervise(enriched, labels, cuts, config, part_N))


def _count_pass(
    log: Log, config: Config, cuts: Cuts, progress: Progress
) -> tuple[FieldCounts, Tables, Enriched, BoolArray | None]:
    """Return the counts of the training rows, the entity tables, one chunk and which label rows found an event."""
    counts: list[FieldCounts] = []
    tables: list[dict[str, EntityTable]] = []
    matched: BoolArray | None = None
    first: Enriched | None = None
    done = 0
    for chunk in _passes(log, config, cuts):
        first = chunk.enriched if first is None else first
        tables.append(entity_tables(chunk.enriched, chunk.labels))
        risk = risk_of(chunk.enriched.events, tables[-1])
        counts.append(count_fields(chunk.enriched, risk, chunk.supervision.in_training_N))
        if log.label_table is not None:
            matched = chunk.labels.matched_L if matched is None else matched | chunk.labels.matched_L
        done += len(chunk.enriched.events)
        progress("count", done, log.n_events)
    assert first is not None  # there is at least one event
    return merge_counts(counts), merged_tables(tables), first, matched


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
    n_events = n_users = n_sessions = 0
    digest = hashlib.sha256()
    newest_label_us: int | None = None
    writer.append("sequence_starts_S1", np.zeros(1, dtype=np.int64))
    for enriched, labels, supervision in _passes(log, config, cuts):
        events = enriched.events
        risk = risk_of(events, tables)
        tokens_NF = encode(enriched, risk, vocabulary)
        rows_R = np.flatnonzero(supervision.trains_N | supervision.validates_N | supervision.tests_N)
        amount_N = events.amount if events.amount is not None else np.full(len(events), np.nan)
        columns = {
            "tokens_NF": tokens_NF,
            "sequence_starts_S1": sequences(enriched, config.sessions.scope).starts_S1[1:] + n_events,
            "user_N": (events.user_codes() + n_users).astype(np.int32),
            "session_N": (np.cumsum(enriched.session_opens_N) - 1 + n_sessions).astype(np.int32),
            "time_us_N": events.time_us,
            "amount_N": amount_N,
            "label_N": supervision.label_N,
            "in_training_N": supervision.in_training_N,
            "trains_N": supervision.trains_N,
            "validates_N": supervision.validates_N,
            "tests_N": supervision.tests_N,
            "features_RC": features(enriched, risk, vocabulary, feature_spec(config), rows_R),
            "feature_row_R": rows_R + n_events,
            "held_out_U": user_share(events.users, "held out", 0),
            "half_U": user_share(events.users, "half", 0),
        }
        for name, column in columns.items():
            writer.append(name, column)
        for part in (tokens_NF, events.time_us, supervision.label_N):
            digest.update(np.ascontiguousarray(part).tobytes())
        used_N = (labels.label_N != NO_LABEL) & (supervision.trains_N | supervision.validates_N)
        known_us = labels.known_us_N[used_N & (labels.known_us_N <= cuts.as_of_us)]
        if len(known_us):
            newest_label_us = max(int(known_us.max()), newest_label_us or 0)
        n_events += len(events)
        n_users += events.n_users
        n_sessions += int(enriched.session_opens_N.sum())
        progress("encode", n_events, log.n_events)
    return {
        "fingerprint": digest.hexdigest(),
        "newest_label_us": newest_label_us,
        "events": n_events,
        "users": n_users,
        "sessions": n_sessions,
    }
