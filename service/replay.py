"""`fraud audit replay`: a decision scored again from its record, which must give the same score to the bit.

It must on the same type of machine: another processor may round otherwise. The path is the one the decision took.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec
import numpy as np

from fraud.bundle import Bundle, load_bundle
from fraud.carry_pool import CarryPool, carry_from_bytes
from fraud.decisions import DECISIONS
from fraud.errors import ConfigError
from fraud.live import LiveScorer, Part, score_known
from fraud.manifest import MANIFEST
from fraud.rows import EventRow
from fraud.scoring import NO_DECISION, enrich_spec
from service.answers import Answer
from service.journal import parsed_id
from service.payloads import EventRecord, RiskCells, ScoreRecord, StoredRow, record_of, risk_array, rows_from_bytes
from service.state.erasures import is_erasure
from service.state.store import Store

_ANSWER = msgspec.json.Decoder(Answer)


class Replayed(NamedTuple):
    """What came of a replay. scores, again: as answered and as scored now; decisions likewise (null: none was made)."""

    decision_id: str
    verdict: Literal["equal", "differs", "erased", "unknown"]
    model: str
    scores: tuple[float, ...]
    again: tuple[float, ...]
    decisions: tuple[str | None, ...]
    decided_again: tuple[str | None, ...]


class Bundles:
    """The bundles below a folder by the sha256 of their manifest; each is verified when it is first needed."""

    def __init__(self, folder: Path) -> None:
        """Take a folder of bundles, or one bundle."""
        self._folder = folder
        manifests = [path for path in (folder / MANIFEST, *folder.glob(f"*/{MANIFEST}")) if path.is_file()]
        self._path_of = {hashlib.sha256(path.read_bytes()).hexdigest(): path.parent for path in manifests}
        self._loaded: dict[str, Bundle] = {}

    def of(self, sha256: str) -> Bundle:
        """Return the bundle of a manifest; raises ConfigError where the folder has none, BundleError as load_bundle."""
        if sha256 not in self._path_of:
            raise ConfigError(f"--bundles {self._folder}: no bundle {sha256[:12]} there; the decision was made by it")
        if sha256 not in self._loaded:
            self._loaded[sha256] = load_bundle(self._path_of[sha256])
        return self._loaded[sha256]


def replay(decision_id: str, store: Store, bundles: Bundles) -> Replayed:
    """Return how a decision compares with the same scored again."""
    named = parsed_id(decision_id)
    if named is None:
        raise ConfigError(f"{decision_id!r}: expected a decision_id as answered, such as 1-2a")
    stored = store.record(named.shard, named.number)
    if stored is None or stored.payload is None or is_erasure(stored.payload):
        verdict = "unknown" if stored is None or stored.payload is not None else "erased"
        return Replayed(decision_id, verdict, "", (), (), (), ())
    record = record_of(stored.payload)
    bundle = bundles.of(record.model.sha256)
    if isinstance(record, ScoreRecord):
        answer = _ANSWER.decode(record.answer)
        scores = tuple(line.score or 0.0 for line in answer.events)
        decisions = tuple(line.decision for line in answer.events)
        again, decided = _stateless(bundle, record)
    else:
        scores, decisions = (record.answer.score or 0.0,), (record.answer.decision,)
        again, decided = _stateful(bundle, record, store)
    is_equal = scores == again and decisions == decided
    return Replayed(
        decision_id, "equal" if is_equal else "differs", record.model.version, scores, again, decisions, decided
    )


def _stateless(bundle: Bundle, record: ScoreRecord) -> tuple[tuple[float, ...], tuple[str | None, ...]]:
    rows = [StoredRow(row, cells) for row, cells in zip(record.rows, record.risk, strict=True)]
    risk_OER = risk_array(rows)
    risk = {name: risk_OER[:, e] for e, name in enumerate(bundle.scorer.config.fields.entity)}
    scores = score_known(bundle.scorer, record.user_id, record.rows, risk)
    return tuple(scores.score_R.tolist()), _named(scores.decision_R)


def _stateful(bundle: Bundle, record: EventRecord, store: Store) -> tuple[tuple[float, ...], tuple[str | None, ...]]:
    snapshot = store.snapshot(record.user_id, record.snapshot)
    assert snapshot is not None  # it is written with the event, and erased with its user only
    before = rows_from_bytes(snapshot.rows)
    if record.place < 0:
        before = before[: -1 - record.place]
    else:
        for one in store.user_records(record.user_id, record.snapshot):
            if one.ordinal is not None and 0 <= one.ordinal < record.place and one.payload is not None:
                earlier = record_of(one.payload)
                assert isinstance(earlier, EventRecord)  # only events have a place
                before.append(StoredRow(earlier.row, earlier.risk))
    scorer = bundle.scorer
    spec = enrich_spec(scorer.config)
    pool = CarryPool(1, scorer.config.fields, spec)
    pool.put(np.array([0]), carry_from_bytes(snapshot.carry, spec))
    rows: Sequence[EventRow] = [*(one.row for one in before), record.row]
    part = Part(record.user_id, 0, rows, (len(before),), risk_array(before), 0)
    own: RiskCells = record.risk
    scores = LiveScorer(scorer, pool, 1).replay(part, risk_array([StoredRow(record.row, own)]))
    return tuple(scores.score_R.tolist()), _named(scores.decision_R)


def _named(decision_R: np.ndarray) -> tuple[str | None, ...]:
    return tuple(None if code == NO_DECISION else DECISIONS[code] for code in decision_R.tolist())
