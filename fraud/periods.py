"""Where the periods of a retraining lie: the newest frauds that are known judge, those before them validate.

How old a fraud must be before it is known differs from log to log, so the periods are not shares of the log: they grow
backwards from the as-of until they hold enough. This file knows no model and no champion.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from fraud.chunks import labelled_chunks
from fraud.config import Config, RetrainConfig, SplitConfig
from fraud.errors import ConfigError, DataError
from fraud.events import IntArray
from fraud.instants import as_of, instant_text
from fraud.literals import duration_text
from fraud.logs import Log, rows_known_by
from fraud.splits import Cuts, supervise

_STEP_US = 3_600_000_000  # a period begins at a whole hour: a time that a person can read and type
# Fewer known frauds than these and the weights of a scorer are chance; nobody can be told apart on them either.
MIN_TRAINED, MIN_JUDGED = 20, 10


class TooFewPositives(DataError):
    """Not enough frauds are known yet to judge on; more labels mend it, no other setting of the log does."""


class Periods(NamedTuple):
    """Training from train_from_us (0: from the start), validation from train_until_us, the judged period from
    valid_until_us up to the as-of; microseconds. n_*: known frauds in each."""

    train_from_us: int
    train_until_us: int
    valid_until_us: int
    as_of_us: int
    n_trained: int
    n_validated: int
    n_judged: int

    def to_json(self) -> dict[str, str | int]:
        """Return the periods as JSON, times as RFC 3339."""
        times = {name: instant_text(value) for name, value in self._asdict().items() if name.endswith("_us")}
        counts = {name: value for name, value in self._asdict().items() if name.startswith("n_")}
        return {name.removesuffix("_us"): value for name, value in times.items()} | counts


def lived(log: Log, config: Config) -> tuple[Log, Config]:
    """Return the log and the configuration as of split.as_of; without it, as of the log's newest event.

    Raises ConfigError without a clock or labels, DataError without an event.
    """
    if config.labels is None:
        raise ConfigError("[labels] is missing: retraining needs to know what is fraud")
    if not config.log.has_clock:
        raise ConfigError('log.time = "position": retraining needs a clock, to tell the newest frauds from the others')
    if log.n_events == 0:
        raise DataError("the log holds no event by then; there is nothing to train on")
    if as_of(config.split) is not None:
        return log, config
    as_of_us = int(log.time_us.max()) + 1
    table = None if log.label_table is None else rows_known_by(log.label_table, as_of_us)
    split = replace(config.split, as_of=instant_text(as_of_us))
    return replace(log, label_table=table), replace(config, split=split)


def retrain_periods(log: Log, config: Config, *, positives: int) -> Periods:
    """Return the periods of a log that is read as of a time: `positives` known frauds judge, half as many validate.

    Raises TooFewPositives where the log holds fewer than that and MIN_TRAINED.
    """
    fraud_us, as_of_us = known_frauds(log, config)
    n_valid = max(MIN_JUDGED, positives // 2)
    if len(fraud_us) < positives + n_valid + MIN_TRAINED:
        raise TooFewPositives(
            f"{len(fraud_us)} frauds are known as of {instant_text(as_of_us)}; expected {positives} to judge on, "
            f"{n_valid} to validate on and {MIN_TRAINED} to train on"
        )
    valid_until_us = _whole_hour(int(fraud_us[-positives]))
    earlier_us = fraud_us[fraud_us < valid_until_us]
    if len(earlier_us) < n_valid + MIN_TRAINED:
        raise TooFewPositives(f"{len(earlier_us)} frauds are known before {instant_text(valid_until_us)}")
    train_until_us = _whole_hour(int(earlier_us[-n_valid]))
    train_from_us = 0 if config.retrain.window is None else max(0, train_until_us - config.retrain.window)
    n_trained = int(((fraud_us >= train_from_us) & (fraud_us < train_until_us)).sum())
    if n_trained < MIN_TRAINED:
        raise TooFewPositives(
            f"{n_trained} frauds are known between {instant_text(train_from_us)} and {instant_text(train_until_us)}; "
            f"expected {MIN_TRAINED} to train on (retrain.window = {duration_text(config.retrain.window or 0)})"
        )
    return Periods(
        train_from_us=train_from_us,
        train_until_us=train_until_us,
        valid_until_us=valid_until_us,
        as_of_us=as_of_us,
        n_trained=n_trained,
        n_validated=int((earlier_us >= train_until_us).sum()),
        n_judged=int((fraud_us >= valid_until_us).sum()),
    )


def first_periods(log: Log, config: Config) -> Periods:
    """Return the periods of a first model: a quarter of the known frauds judges, where that is less than is asked for.

    There is no champion to tell it from, so fewer will do. Raises TooFewPositives below MIN_JUDGED.
    """
    n_known = len(known_frauds(log, config)[0])
    return retrain_periods(log, config, positives=max(MIN_JUDGED, min(config.retrain.positives, n_known // 4)))


def known_frauds(log: Log, config: Config) -> tuple[IntArray, int]:
    """Return the times of the known frauds whose labels are settled, int64 sorted, and the as-of, in microseconds."""
    as_of_us = as_of(config.split)
    assert as_of_us is not None  # `lived` sees to it
    everything = replace(config, split=SplitConfig(), retrain=RetrainConfig())
    cuts = Cuts(train_until_us=0, valid_until_us=0, as_of_us=as_of_us, is_lived=True)
    times: list[IntArray] = []
    for enriched, labels, known, part_N in labelled_chunks(log, everything, as_of_us=as_of_us):
        assert labels is not None  # the configuration has labels
        assert known is not None
        supervision = supervise(enriched, labels, known, cuts, everything, part_N)
        times.append(enriched.events.time_us[supervision.tests_N & (supervision.label_N == 1)])
    return np.sort(np.concatenate([*times, np.zeros(0, dtype=np.int64)])), as_of_us


def with_periods(config: Config, periods: Periods) -> Config:
    """Return the configuration that trains, validates and judges on these periods."""
    split = SplitConfig(
        by="time",
        train_from=instant_text(periods.train_from_us) if periods.train_from_us else None,
        train_until=instant_text(periods.train_until_us),
        valid_until=instant_text(periods.valid_until_us),
        as_of=instant_text(periods.as_of_us),
    )
    return replace(config, split=split)


def _whole_hour(time_us: int) -> int:
    return time_us // _STEP_US * _STEP_US
