"""Training, validation and test: by time (with label delay), by user or by column; and what is known when.

The end of the validation period is the as-of of training: what became known later is not used, fraud or not. Test
labels are the table's. This file knows no model.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from fraud.config import Config, SplitConfig
from fraud.contexts import sequences
from fraud.enrich import Enriched
from fraud.errors import ConfigError
from fraud.events import BoolArray, Events, IntArray, ObjectArray
from fraud.instants import as_of, instant_text, instant_us
from fraud.labels import NO_LABEL, Labels

TRAIN, VALID, TEST, HISTORY = 0, 1, 2, 3
PARTS = ("train", "valid", "test")
END_OF_TIME_US = int(np.iinfo(np.int64).max)


@dataclass(frozen=True, slots=True)
class Cuts:
    """Where training begins, where it and validation end (exclusive), and the as-of of training; microseconds.

    is_lived: the as-of is one for the test, too: what was not settled by then is not judged.
    """

    train_until_us: int
    valid_until_us: int
    as_of_us: int
    train_from_us: int = 0
    is_lived: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Supervision:
    """What each of N events is for.

    label_N: int8, 1 fraud, 0 not: as known at the as-of, but for test events. in_training_N: rows the vocabulary may
    see. trains_N: in the loss. validates_N, tests_N: the examples of those parts (one each label). decides_N: a
    decision is made on it.
    """

    label_N: npt.NDArray[np.int8]
    in_training_N: BoolArray
    trains_N: BoolArray
    validates_N: BoolArray
    tests_N: BoolArray
    decides_N: BoolArray


def time_cuts(split: SplitConfig, time_us: IntArray) -> Cuts:
    """Return the cuts for the times of all events of the log.

    Raises ConfigError for a time that is not RFC 3339 with a zone, or cuts in the wrong order.
    """
    newest_us = int(time_us.max()) if len(time_us) else 0
    as_of_us = as_of(split)
    if as_of_us is not None:
        return _ended(time_cuts(replace(split, as_of=None), time_us), as_of_us)
    if split.by != "time":
        return Cuts(END_OF_TIME_US, END_OF_TIME_US, newest_us)
    if split.train_until is not None and split.valid_until is not None:
        train_us, valid_us = (
            instant_us("split.train_until", split.train_until),
            instant_us("split.valid_until", split.valid_until),
        )
        if train_us >= valid_us:
            raise ConfigError(f"split.valid_until = {split.valid_until!r}: expected a time after split.train_until")
        from_us = 0 if split.train_from is None else instant_us("split.train_from", split.train_from)
        if from_us >= train_us:
            raise ConfigError(f"split.train_from = {split.train_from!r}: expected a time before split.train_until")
        return Cuts(train_us, valid_us, valid_us, from_us)
    ranks = [int(len(time_us) * share) for share in (split.fractions[0], split.fractions[0] + split.fractions[1])]
    if len(time_us) == 0:
        return Cuts(0, 0, 0)
    ranks = [min(rank, len(time_us) - 1) for rank in ranks]
    ordered = np.partition(time_us, ranks)
    return Cuts(int(ordered[ranks[0]]), int(ordered[ranks[1]]), int(ordered[ranks[1]]))


def _ended(cuts: Cuts, as_of_us: int) -> Cuts:
    """Return the cuts of a log that is read as of a time."""
    if as_of_us < cuts.valid_until_us != END_OF_TIME_US:
        raise ConfigError(
            f"split.as_of = {instant_text(as_of_us)}: expected a time not before the end of the validation period, "
            f"{instant_text(cuts.valid_until_us)}"
        )
    return replace(cuts, as_of_us=as_of_us, is_lived=True)


def supervise(
    enriched: Enriched, labels: Labels, known: Labels, cuts: Cuts, config: Config, part_N: ObjectArray | None
) -> Supervision:
    """Return what each event is for, under the configuration's [labels], [decisions] and [split].

    labels: as the table has them now, for the test; known: as they were at the as-of, for training and validation.
    part_N: object [N], the text of split.column (of the log) where the split is by column, else None.
    """
    events = enriched.events
    delay_us = None if config.labels is None else config.labels.delay
    parts_N = _parts(events, config.split, cuts, labels.part_N if labels.part_N is not None else part_N)
    decides_N = decides(enriched, config)
    is_labelled_N = decides_N & (labels.label_N != NO_LABEL)
    settled_us_N = known.known_us_N if delay_us is None else known.time_us_N + delay_us
    is_settled_N = is_labelled_N & (settled_us_N <= cuts.as_of_us)
    is_test_N = parts_N == TEST
    was_fraud_N = (known.label_N == 1) & (known.known_us_N <= cuts.as_of_us)
    in_hindsight_N = is_test_N & (not cuts.is_lived)
    is_fraud_N: BoolArray = (in_hindsight_N & (labels.label_N == 1)) | (~in_hindsight_N & was_fraud_N)
    is_example_N = is_labelled_N & _last_of_label(enriched, is_labelled_N, config)
    # What a label speaks of may end later than the event: a user who is judged later must not be learned from before.
    is_over_N = known.time_us_N < np.where(parts_N == TRAIN, cuts.train_until_us, cuts.valid_until_us)
    is_settled_N &= is_over_N | is_test_N | (not cuts.is_lived)
    return Supervision(
        label_N=is_fraud_N.astype(np.int8),
        in_training_N=parts_N == TRAIN,
        trains_N=is_settled_N & (parts_N == TRAIN),
        validates_N=is_settled_N & is_example_N & (parts_N == VALID),
        tests_N=is_example_N & is_test_N & (is_settled_N | (not cuts.is_lived)),
        decides_N=decides_N,
    )


def decides(enriched: Enriched, config: Config) -> BoolArray:
    """Return bool [N]: True where a decision is made: a decision type with enough events of context."""
    decisions, sessions = config.decisions, config.sessions
    position_N = enriched.session_position_N if sessions.scope == "session" else enriched.index_N
    enough_N = position_N + 1 >= decisions.min_events
    if not decisions.on:
        return enough_N
    is_on_V = np.isin(enriched.events.type.values.astype(str), np.array(decisions.on))
    return enough_N & is_on_V[enriched.events.type.codes_N]


def user_share(users: ObjectArray, purpose: str, seed: int) -> npt.NDArray[np.float64]:
    """Return float64 [U] in [0, 1): a fixed pseudo-random number of each user, for halves and held-out users.

    The same user, purpose and seed give the same number on every machine, whatever else is in the log.
    """
    key = f"{purpose}:{seed}:".encode()
    digests = (hashlib.blake2b(key + str(user).encode(), digest_size=8).digest() for user in users.tolist())
    return np.array([int.from_bytes(digest, "little") / 2**64 for digest in digests], dtype=np.float64)


def _parts(events: Events, split: SplitConfig, cuts: Cuts, part_N: ObjectArray | None) -> npt.NDArray[np.int8]:
    if split.by == "time":
        after_N = (events.time_us >= cuts.train_until_us).astype(np.int8) + (events.time_us >= cuts.valid_until_us)
        return np.where(events.time_us < cuts.train_from_us, HISTORY, after_N).astype(np.int8)
    if split.by == "user":
        share_U = user_share(events.users, "split", 0)
        ends = np.cumsum(split.fractions)[:2]
        return np.searchsorted(ends, share_U, side="right").astype(np.int8)[events.user_codes()]
    if part_N is None:
        raise ConfigError(f"split.column = {split.column!r}: no such column in the log or in the label table")
    parts_N = np.full(len(events), HISTORY, dtype=np.int8)
    for place, name in enumerate(PARTS):
        parts_N[part_N == name] = place
    return parts_N


def _last_of_label(enriched: Enriched, is_labelled_N: BoolArray, config: Config) -> BoolArray:
    """Return bool [N]: True at the one example of each label: each event, or the last of its session or user."""
    if config.labels is None or config.labels.level == "event":
        return np.ones(len(is_labelled_N), dtype=np.bool_)
    starts_S1 = sequences(enriched, config.labels.level).starts_S1
    unit_N = np.repeat(np.arange(len(starts_S1) - 1), np.diff(starts_S1))
    rows = np.flatnonzero(is_labelled_N)
    is_last = np.ones(len(rows), dtype=np.bool_)
    is_last[:-1] = unit_N[rows[1:]] != unit_N[rows[:-1]]
    last_N = np.zeros(len(is_labelled_N), dtype=np.bool_)
    last_N[rows[is_last]] = True
    return last_N
