"""What is fraud, what is known when, and which part an event belongs to; each rule on a log small enough to see."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fraud.chunks import labelled_chunks
from fraud.config import Config, parse_config
from fraud.errors import ConfigError
from fraud.logs import Log, from_table
from fraud.splits import END_OF_TIME_US, Cuts, Supervision, supervise, time_cuts, user_share

DAY_US = 86_400 * 10**6
START_US = 1_700_000_000_000_000
BASE = '[log]\nevent_id = "event_id"\n'


def _table(days: list[float], users: list[str] | None = None, **columns: list[Any]) -> pa.Table:
    n_events = len(days)
    time_us = np.array([START_US + int(day * DAY_US) for day in days])
    return pa.table(
        {
            "event_id": [f"e{n}" for n in range(n_events)],
            "user_id": users or ["u"] * n_events,
            "ts": pa.array(time_us).cast(pa.timestamp("us", tz="UTC")),
            "type": ["transfer"] * n_events,
            **columns,
        }
    )


def _labels(folder: Path, **columns: list[Any]) -> None:
    pq.write_table(pa.table(columns), folder / "labels.parquet")


def _times(*days: float) -> pa.Array:
    return pa.array([START_US + int(day * DAY_US) for day in days]).cast(pa.timestamp("us", tz="UTC"))


def _config(folder: Path, text: str) -> Config:
    return parse_config(BASE + text, source="test", root=folder)


def _supervised(log: Log, config: Config, cuts: Cuts | None = None) -> Supervision:
    cuts = cuts or time_cuts(config.split, log.time_us)
    (chunk,) = labelled_chunks(log, config, as_of_us=cuts.as_of_us)
    assert chunk.labels is not None
    assert chunk.known is not None
    return supervise(chunk.enriched, chunk.labels, chunk.known, cuts, config, chunk.part_N)


def test_an_event_without_a_label_row_is_not_fraud_and_an_unknown_key_is_counted(tmp_path: Path) -> None:
    _labels(tmp_path, event_id=["e1", "nobody"], fraud=[1, 1])
    config = _config(tmp_path, '[labels]\npath = "labels.parquet"\nkey = ["event_id"]\ncolumn = "fraud"\n')
    log = from_table(_table([0, 1, 2]), config)
    ((_, labels, _, _),) = labelled_chunks(log, config, as_of_us=END_OF_TIME_US)
    assert labels is not None
    assert labels.label_N.tolist() == [0, 1, 0]
    assert labels.matched_L.tolist() == [True, False]


def test_of_several_rows_for_one_event_the_one_known_last_wins(tmp_path: Path) -> None:
    _labels(tmp_path, event_id=["e0", "e0", "e1", "e1"], fraud=[1, 0, 0, 1], known=_times(3, 5, 9, 4))
    text = '[labels]\npath = "labels.parquet"\nkey = ["event_id"]\ncolumn = "fraud"\nknown_at = "known"\n'
    config = _config(tmp_path, text)
    ((_, labels, _, _),) = labelled_chunks(from_table(_table([0, 1]), config), config, as_of_us=END_OF_TIME_US)
    assert labels is not None
    assert labels.label_N.tolist() == [0, 0]


def test_training_uses_only_what_was_known_and_settled_at_the_as_of(tmp_path: Path) -> None:
    # As-of: day 10. Delay 4 days: an event of day 7 is not settled then, fraud or not.
    _labels(tmp_path, event_id=["e0", "e1", "e5"], fraud=[1, 1, 1], known=_times(2, 30, 12))
    text = (
        '[labels]\npath = "labels.parquet"\nkey = ["event_id"]\ncolumn = "fraud"\nknown_at = "known"\ndelay = "4d"\n'
        '[split]\ntrain_until = "2023-11-20T00:00:00Z"\nvalid_until = "2023-11-30T00:00:00Z"\n'
    )
    config = _config(tmp_path, text)
    log = from_table(_table([0, 1, 5, 6, 7, 11]), config)
    cuts = Cuts(START_US + 3 * DAY_US, START_US + 10 * DAY_US, START_US + 10 * DAY_US)
    found = _supervised(log, config, cuts)
    assert found.trains_N.tolist() == [True, True, False, False, False, False]
    assert found.validates_N.tolist() == [False, False, True, True, False, False]
    assert found.tests_N.tolist() == [False, False, False, False, False, True]
    # e1's fraud became known on day 30, after the as-of: training sees it as honest; the test keeps the table's label.
    assert found.label_N.tolist() == [1, 0, 0, 0, 0, 1]


def test_fractions_cut_the_events_in_order_of_time(tmp_path: Path) -> None:
    config = _config(tmp_path, "[split]\nfractions = [0.5, 0.25, 0.25]\n")
    cuts = time_cuts(config.split, np.arange(100, dtype=np.int64)[::-1])
    assert (cuts.train_until_us, cuts.valid_until_us, cuts.as_of_us) == (50, 75, 75)


@pytest.mark.parametrize(
    ("level", "expected"), [("event", [1, 1, 1, 1]), ("session", [0, 1, 0, 1]), ("user", [0, 0, 0, 1])]
)
def test_one_example_per_label_the_last_event_of_its_session_or_user(
    tmp_path: Path, level: str, expected: list[int]
) -> None:
    config = _config(
        tmp_path, f'[labels]\ncolumn = "fraud"\nlevel = "{level}"\n[split]\nby = "column"\ncolumn = "part"\n'
    )
    minute = 1 / 1440
    table = _table([0, minute, 1, 1 + minute], fraud=[0, 0, 1, 1], part=["test"] * 4)
    assert _supervised(from_table(table, config), config).tests_N.astype(int).tolist() == expected


def test_session_labels_join_by_the_computed_session_id(tmp_path: Path) -> None:
    _labels(tmp_path, session_id=[f"u@{START_US + DAY_US}"], fraud=[1])
    text = '[labels]\npath = "labels.parquet"\nkey = ["session_id"]\ncolumn = "fraud"\nlevel = "session"\n'
    config = _config(tmp_path, text)
    ((_, labels, _, _),) = labelled_chunks(
        from_table(_table([0, 1, 1 + 1 / 1440]), config), config, as_of_us=END_OF_TIME_US
    )
    assert labels is not None
    assert labels.label_N.tolist() == [0, 1, 1]


def test_a_null_label_in_the_log_is_neither_fraud_nor_honest(tmp_path: Path) -> None:
    config = _config(tmp_path, '[labels]\ncolumn = "fraud"\n[split]\nby = "column"\ncolumn = "part"\n')
    table = _table([0, 1, 2, 3], fraud=[1, None, 0, 0], part=["train", "train", "train", "elsewhere"])
    found = _supervised(from_table(table, config), config)
    assert found.trains_N.tolist() == [True, False, True, False]
    assert not (found.validates_N | found.tests_N).any()


def test_decisions_are_made_on_their_types_with_enough_context(tmp_path: Path) -> None:
    config = _config(tmp_path, '[decisions]\non = ["transfer"]\nmin_events = 2\n[labels]\ncolumn = "fraud"\n')
    table = _table([0, 1, 2], fraud=[0, 0, 0]).set_column(3, "type", pa.array(["transfer", "login", "transfer"]))
    assert _supervised(from_table(table, config), config).decides_N.tolist() == [False, False, True]


def test_users_keep_their_share_whatever_else_is_in_the_log() -> None:
    many = np.array([f"u{n}" for n in range(2000)], dtype=object)
    shares = user_share(many, "half", 0)
    assert shares[7] == user_share(many[7:8], "half", 0)[0]
    assert abs(shares.mean() - 0.5) < 0.03
    assert abs(np.corrcoef(shares, user_share(many, "held out", 0))[0, 1]) < 0.08


def test_a_key_the_log_does_not_have_is_refused_by_name(tmp_path: Path) -> None:
    _labels(tmp_path, card=["c"], fraud=[1])
    config = _config(tmp_path, '[labels]\npath = "labels.parquet"\nkey = ["card"]\ncolumn = "fraud"\n')
    log = from_table(_table([0]), config)
    with pytest.raises(ConfigError, match="'card' is no key of the log"):
        list(labelled_chunks(log, config, as_of_us=END_OF_TIME_US))


def test_a_correction_after_the_as_of_changes_nothing_before_it(tmp_path: Path) -> None:
    # e0 is reported on day 2 and withdrawn on day 30; the as-of is day 10.
    _labels(tmp_path, event_id=["e0", "e0", "e5"], fraud=[1, 0, 1], known=_times(2, 30, 6))
    text = (
        '[labels]\npath = "labels.parquet"\nkey = ["event_id"]\ncolumn = "fraud"\nknown_at = "known"\n'
        '[split]\ntrain_until = "2023-11-20T00:00:00Z"\nvalid_until = "2023-11-30T00:00:00Z"\n'
    )
    config = _config(tmp_path, text)
    cuts = Cuts(START_US + 3 * DAY_US, START_US + 10 * DAY_US, START_US + 10 * DAY_US)
    log = from_table(_table([0, 1, 4, 5, 6]), config)
    assert _supervised(log, config, cuts).label_N.tolist() == [1, 0, 0, 0, 0]


@pytest.mark.parametrize("level", ["session", "user"])
def test_the_label_of_a_session_or_user_is_not_known_before_its_last_event(tmp_path: Path, level: str) -> None:
    config = _config(tmp_path, f'[labels]\ncolumn = "fraud"\nlevel = "{level}"\nknown_at = "known"\n')
    minute = 1 / 1440
    table = _table([0, minute, 2 * minute], fraud=[1, 1, 1], known=_times(0, 0, 0))
    ((_, labels, _, _),) = labelled_chunks(from_table(table, config), config, as_of_us=END_OF_TIME_US)
    assert labels is not None
    assert (labels.known_us_N == START_US + int(2 * minute * DAY_US)).all()
    assert labels.n_early == 3


def test_an_entity_does_not_know_the_label_of_the_user_it_belongs_to(tmp_path: Path) -> None:
    from fraud.chunks import entity_tables
    from fraud.entities import RISK_NAMES
    from fraud.scoring import risk_of

    text = '[fields]\nentity = ["device"]\n[labels]\ncolumn = "fraud"\nlevel = "user"\ndelay = "1d"\n'
    config = _config(tmp_path, text)
    table = _table([0, 5, 10], fraud=[1, 1, 1], device=["d", "d", "d"])
    (chunk,) = labelled_chunks(from_table(table, config), config, as_of_us=END_OF_TIME_US)
    risk = risk_of(chunk.enriched.events, entity_tables(chunk.enriched, chunk.labels, delay_us=86_400 * 10**6))[
        "device"
    ]
    assert (risk[:, RISK_NAMES.index("known_frauds_28d")] == 0).all()


def test_a_fraud_reported_after_the_delay_counts_as_honest_until_then(tmp_path: Path) -> None:
    from fraud.chunks import entity_tables

    text = '[fields]\nentity = ["device"]\n[labels]\ncolumn = "fraud"\nknown_at = "known"\ndelay = "2d"\n'
    config = _config(tmp_path, text)
    days = [0, 1, 3, 4, 6, 7]
    table = _table(days, fraud=[1, 0, 0, 0, 0, 0], known=_times(5, *[d + 2 for d in days[1:]]), device=["d"] * 6)
    (chunk,) = labelled_chunks(from_table(table, config), config, as_of_us=END_OF_TIME_US)
    tables = entity_tables(chunk.enriched, chunk.labels, delay_us=2 * DAY_US)
    # By event: taken for honest on day 2, known as fraud on day 5; the others are honest two days after they were.
    hours = (tables["device"].key & (2**22 - 1)) - START_US // (3600 * 10**6)
    assert (hours[tables["device"].honest > 0] / 24).tolist() == [2, 3, 5, 6, 8, 9]
    assert (hours[tables["device"].frauds > 0] / 24).tolist() == [5]
