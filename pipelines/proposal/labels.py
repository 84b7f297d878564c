"""Where the labels are: a column of the log, else a table beside it that shares a key with it.

A table named like labels is taken before any other; the simulator's oracle and files of scores never are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from fraud.errors import FraudError
from fraud.readers import is_log_name
from pipelines.proposal.columns import Column, IntArray, columns_of, word_set, words_of
from pipelines.proposal.roles import Doubt, Roles, listed
from pipelines.proposal.sample import column_names, sample_log

_RANKS = (
    ("fraud fraudulent isfraud", 5),
    ("label labels", 4),
    ("target class", 3),
    ("banned ban chargeback dispute disputed default defaulted malicious attack outcome confirmed declined", 2),
    ("is anomaly suspicious blocked rejected", 1),
)
_NEVER_LABELS = word_set("scenario score scores risk status flagged type at alert alerted")
_NOT_LABEL_FILES = word_set("oracle score scores prediction predictions quarantine feature features")
_KNOWN_WORDS = word_set("known reported confirmed label labelled fraud chargeback review")
_MAX_FILES = 20
_DAY_US = 86_400 * 10**6
_MIN_POSITIVE_USERS = 10
_MIN_DATED = 10  # labels that say when they were known
_LATE = 0.9  # of the labels are known after the delay that is proposed


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelRole:
    """What to declare in [labels]. path: None for a column of the log. positive_N: bool [N], the sampled frauds."""

    column: str
    path: Path | None
    key: tuple[str, ...]
    level: str
    known_at: str | None
    delay_days: int | None
    positive_N: npt.NDArray[np.bool_]
    doubts: tuple[Doubt, ...]


def labels_of(columns: Sequence[Column], roles: Roles, files: Sequence[Path]) -> LabelRole | None:
    """Return where the labels are, None where no column of the log and no table beside it looks like any."""
    found = _ranked(columns)
    if found:
        return _in_log(found, columns, roles)
    for file in _tables_beside(files):
        role = _in_table(file, roles)
        if role is not None:
            return role
    return None


def _ranked(columns: Sequence[Column]) -> list[Column]:
    """Return the columns that could be the label, the likeliest first: 0 and 1 under a name that says so."""
    named = [c for c in columns if c.label_N is not None and _rank(c) > 0 and not set(c.words) & _NEVER_LABELS]
    return sorted(named, key=lambda c: (-_rank(c), len(c.words)))


def _rank(column: Column) -> float:
    said = {*column.words, "".join(column.words)}
    rank = next((weight for words, weight in _RANKS if said & set(words.split())), 0)
    has_both = column.label_N is not None and len(np.unique(column.label_N[column.label_N >= 0])) == 2
    return rank - 0.5 * (not has_both)


def _in_log(found: Sequence[Column], columns: Sequence[Column], roles: Roles) -> LabelRole:
    label = found[0]
    assert label.label_N is not None  # it is ranked
    positive_N = label.label_N == 1
    doubts = _doubts(label, found, positive_N)
    level = "event"
    if _is_of_user(label.label_N, roles.user):
        level = "user"
        text = "all events of a user have one label: each user is one example, judged at the last event"
        doubts.append(Doubt("labels.level", text))
    known = next((c for c in columns if _says_known(c)), None)
    delay_days: int | None = None
    if known is not None and known.time is not None:
        rows = np.flatnonzero(positive_N & (known.time.time_us_N >= 0))
        delay_days = _delay_days(known.time.time_us_N[rows], rows, roles) if level == "event" else None
    elif roles.clock is not None:
        doubts.append(
            Doubt("labels.delay", "how long until a fraud is known? without it labels count as known at once")
        )
    return LabelRole(
        column=label.name,
        path=None,
        key=(),
        level=level,
        known_at=None if known is None else known.name,
        delay_days=delay_days,
        positive_N=positive_N,
        doubts=tuple(doubts),
    )


def _in_table(file: Path, roles: Roles) -> LabelRole | None:
    own_names = {column.name for column in roles.columns}
    try:
        names = set(column_names(file)[0])
        if own_names <= names or not own_names & names:
            return None  # another log, or a table that shares no key with this one
        columns = columns_of(sample_log([file]))
    except FraudError:
        return None  # a file beside the log that is no table is nobody's business here
    by_name = {column.name: column for column in columns}
    keys = [(roles.event_id, "event"), (roles.session, "session"), (roles.user, "user")]
    shared = [(by_name[own.name], own, level) for own, level in keys if own is not None and own.name in by_name]
    shared = [found for found in shared if found[0].is_id and found[0].per_value <= 1.01]
    found = _ranked(columns)
    if not shared or not found:
        return None
    theirs, own, level = shared[0]
    label = found[0]
    assert label.label_N is not None  # it is ranked
    frauds = theirs.texts.filter(pa.array(label.label_N == 1))
    positive_N = pc.is_in(own.texts, value_set=frauds).to_numpy(zero_copy_only=False)
    rivals = [c for c in columns if c is not label and c.label_N is not None and c.n_values == 2]
    doubts = _doubts(label, [label, *rivals], positive_N)
    if not pc.any(pc.is_in(own.texts, value_set=theirs.values)).as_py():
        doubts.append(Doubt("labels.path", "no label matches a row that was looked at"))
    known = next((c for c in columns if _says_known(c)), None)
    delay_days = None
    if level == "event" and known is not None and known.time is not None:
        row_N = pc.index_in(own.texts, value_set=theirs.texts)
        rows = np.flatnonzero(pc.is_valid(row_N).to_numpy(zero_copy_only=False))
        delay_days = _delay_days(known.time.time_us_N[row_N.take(pa.array(rows)).to_numpy()], rows, roles)
    if level == "user":
        text = "one label a user, judged at the last event: the log must end before the outcome shows"
        doubts.append(Doubt("labels.level", text))
    return LabelRole(
        column=label.name,
        path=file,
        key=(own.name,),
        level=level,
        known_at=None if known is None else known.name,
        delay_days=delay_days,
        positive_N=positive_N,
        doubts=tuple(doubts),
    )


def _doubts(label: Column, found: Sequence[Column], positive_N: npt.NDArray[np.bool_]) -> list[Doubt]:
    doubts: list[Doubt] = []
    if len(found) > 1:
        doubts.append(Doubt("labels.column", f"could also be {listed([column.name for column in found[1:]])}"))
    if not positive_N.any():
        doubts.append(Doubt("labels.column", f"no fraud among the rows looked at: {label.name!r} is never 1 there"))
    return doubts


def _is_of_user(label_N: npt.NDArray[np.int8], user: Column) -> bool:
    """Return True where all events of each user have the same label, and enough users are labelled as frauds."""
    there_N = (label_N >= 0) & (user.code_N >= 0)
    user_N = user.code_N[there_N]
    n_all = np.bincount(user_N)
    n_fraud = np.bincount(user_N, weights=label_N[there_N])
    is_fraud = (n_all >= 2) & (n_fraud > 0)
    return int(is_fraud.sum()) >= _MIN_POSITIVE_USERS and bool((n_fraud[is_fraud] == n_all[is_fraud]).all())


def _tables_beside(files: Sequence[Path]) -> list[Path]:
    """Return the files in the log's folder that could hold labels, those named so first."""
    own = {file.resolve() for file in files}
    found = [
        file
        for file in sorted(files[0].parent.iterdir())
        if file.is_file() and is_log_name(file.name) and file.resolve() not in own
    ]
    found = [file for file in found if not set(words_of(file.stem)) & _NOT_LABEL_FILES]
    return sorted(found, key=lambda file: "label" not in file.name.lower())[:_MAX_FILES]


def _says_known(column: Column) -> bool:
    reading = column.time
    return reading is not None and reading.is_epoch and reading.share >= 0.8 and bool(set(column.words) & _KNOWN_WORDS)


def _delay_days(known_us_R: IntArray, rows: IntArray, roles: Roles) -> int | None:
    """Return after how many days nearly all of the labels of these rows were known, None for too few of them."""
    if roles.clock is None:
        return None
    late_us = known_us_R - roles.clock.time_us_N[rows]
    late_us = late_us[late_us >= 0]
    return None if len(late_us) < _MIN_DATED else max(1, int(np.ceil(np.quantile(late_us, _LATE) / _DAY_US)))
