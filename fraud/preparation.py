"""A log made ready for training: tokens, features, labels and splits as flat arrays on disk, read through memory maps.

Two passes over the log's partitions: the first counts (vocabulary, entity risk), the second encodes. Both enrich by the
one function that scoring uses. Nothing of a model is known here; every scorer trains from the same prepared set.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fraud.arrays import ArrayFiles, map_array
from fraud.chunk_arrays import Encoded, encoded, padded_copies, supervised
from fraud.chunks import (
    Chunk,
    chunks,
    entity_tables,
    known_table,
    label_delay_us,
    labelled,
    merged_tables,
)
from fraud.config import Config, config_to_toml
from fraud.enrich import Enriched
from fraud.entities import EntityTable
from fraud.errors import DataError
from fraud.events import BoolArray, FloatArray, IntArray
from fraud.features import FeatureArray
from fraud.labels import NO_LABEL
from fraud.logs import Log
from fraud.parallel import in_order
from fraud.scoring import Tables, risk_of
from fraud.splits import Cuts, time_cuts
from fraud.tokens import (
    FieldCounts,
    TokenArray,
    Vocabulary,
    count_fields,
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
    cuts: Cuts
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
        report["padded"] = _padded_pass(log, config, cuts, tables, vocabulary, writer, report, progress)
    if matched is not None:
        report["labels"] = len(matched)
        report["labels_unmatched"] = int((~matched).sum())
    report |= {"labels_quarantined": len(log.label_quarantine)}
    meta = {
        "config": config_to_toml(config),
        "fingerprint": report.pop("fingerprint"),
        "newest_event_us": int(log.time_us.max()),
        "newest_label_us": report.pop("newest_label_us"),
        "cuts": asdict(cuts),
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
        cuts = Cuts(**meta["cuts"])
        arrays = {
            name: map_array(directory / f"{name}.bin", kind, shape) for name, (kind, shape) in meta["arrays"].items()
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{directory}: not a prepared set ({error}); `fraud prepare` writes one") from None
    return Prepared(
        **arrays,
        vocabulary=vocabulary,
        fingerprint=meta["fingerprint"],
        newest_event_us=meta["newest_event_us"],
        newest_label_us=meta["newest_label_us"],
        cuts=cuts,
        report=meta["report"],
        directory=directory,
    )


def without_test(prepared: Prepared) -> Prepared:
    """Return the prepared set as a choice may see it: no test example, and labels of the other periods alone."""
    is_seen_N = prepared.trains_N | prepared.validates_N
    return replace(
        prepared,
        label_N=np.where(is_seen_N, prepared.label_N, np.int8(NO_LABEL)),
        tests_N=np.zeros(len(is_seen_N), dtype=np.bool_),
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
        labels, supervision = supervised(known, cuts, config)
        tables = entity_tables(known.enriched, known.labels, delay_us=label_delay_us(config))
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

    def encode_chunk(chunk: Chunk) -> Encoded:
        return encoded(labelled(chunk, log, config, known_rows), config, cuts, tables, vocabulary)

    for one in in_order(encode_chunk, chunks(log)):
        offsets = {
            "sequence_starts_S1": n_events,
            "feature_row_R": n_events,
            "user_N": n_users,
            "session_N": n_sessions,
        }
        for name, array in one.arrays.items():
            writer.append(name, array + offsets[name] if name in offsets else array)
        for name, digest in digests.items():
            digest.update(np.ascontiguousarray(one.arrays[name]).tobytes())
        newest += [] if one.newest_label_us is None else [one.newest_label_us]
        n_events += one.n_events
        n_users += one.n_users
        n_sessions += one.n_sessions
        n_early += one.n_early
        reopened += one.n_reopened
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


def _padded_pass(
    log: Log,
    config: Config,
    cuts: Cuts,
    tables: Tables,
    vocabulary: Vocabulary,
    writer: ArrayFiles,
    report: Mapping[str, Any],  # Any: JSON
    progress: Progress,
) -> int:
    """Write the padded copies of some training users after everything else, and return how many events these have.

    They train and nothing else: they are in no vocabulary, no validation, no test and no count of the report.
    """
    if config.training.padded == 0.0:
        return 0
    n_rows, n_users, n_sessions, n_read = int(report["events"]), 0, int(report["sessions"]), 0
    known_rows = known_table(log, cuts.as_of_us)

    def pad_chunk(chunk: Chunk) -> tuple[dict[str, npt.NDArray[Any]], Chunk]:
        return padded_copies(labelled(chunk, log, config, known_rows), config, cuts, tables, vocabulary), chunk

    for arrays, chunk in in_order(pad_chunk, chunks(log)):
        offsets = {"sequence_starts_S1": n_rows, "feature_row_R": n_rows, "user_N": n_users, "session_N": n_sessions}
        for name, array in arrays.items():
            writer.append(name, array + offsets[name] if name in offsets else array)
        n_rows += len(arrays["tokens_NF"])
        n_users += chunk.events.n_users
        n_sessions += int(arrays["session_N"].max(initial=-1)) + 1
        n_read += len(chunk.events)
        progress("pad", n_read, log.n_events)
    return n_rows - int(report["events"])
