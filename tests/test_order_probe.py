"""Equal bags of events at equal times, only the order differs: what sees it, through the whole path from a table.

Two streams carry the pair of events whose order is the class: one of random events, and that of a real bank's loans.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fraud.config import Config, parse_config
from fraud.judging import judge
from fraud.learning import fit_model
from fraud.logs import from_table
from fraud.preparation import prepare

_DEFAULTS = """
[log]
events = "unused"
[labels]
column = "fraud"
level = "user"
[decisions]
min_events = 16
[split]
by = "column"
column = "part"
"""
_SMALL = """
[model]
name = "boosting"
trees = 150
[training]
epochs = 6
"""
_N_EVENTS = 16
_N_WINDOWS = 2500


def _pairs(n_users: int) -> pa.Table:
    """Return users of 16 events; in fraud "check" comes before "transfer", else after; all else is the same."""
    rng = np.random.default_rng(5)
    label_U = np.arange(n_users) % 2
    types = np.array(["check", "login", "transfer", "view"])
    codes_UT = np.empty((n_users, 16), dtype=np.int64)
    for u in range(0, n_users, 2):
        filler = rng.choice([1, 3], size=13)
        first, second = np.sort(rng.choice(15, size=2, replace=False))
        for v, (a, b) in ((u, (2, 0)), (u + 1, (0, 2))):  # honest: transfer, then check; fraud: check, then transfer
            codes_UT[v, :15] = np.insert(np.insert(filler, first, a), second, b)
            codes_UT[v, 15] = 3  # both end with the same event
    return _table(types[codes_UT], label_U)


def _real_pairs(shared_data: Path, n_windows: int) -> pa.Table:
    """Return two users of each of some windows of 16 events in a row of a case, none in two windows.

    At two random places before the last, the events are exchanged for a transfer and then a check, in fraud for a check
    and then a transfer; all else is as it was.
    """
    columns = ["case_id", "pos", "activity", "lifecycle"]
    events = pq.read_table(shared_data / "bpi12_loan" / "events.parquet", columns=columns)
    events = events.sort_by([("case_id", "ascending"), ("pos", "ascending")])
    case_N = events["case_id"].to_numpy()
    is_first_N = np.append(True, case_N[1:] != case_N[:-1])
    first_N = np.maximum.accumulate(np.where(is_first_N, np.arange(len(case_N)), 0))
    start_W = np.flatnonzero((np.arange(len(case_N)) - first_N) % _N_EVENTS == 0)
    start_W = start_W[start_W + _N_EVENTS <= len(case_N)]
    start_W = start_W[case_N[start_W] == case_N[start_W + _N_EVENTS - 1]]
    rng = np.random.default_rng(5)
    start_W = rng.permutation(start_W)[:n_windows]
    activity_N, lifecycle_N = (np.array(events[name].to_pylist(), dtype=object) for name in columns[2:])
    window_WT = (activity_N + "|" + lifecycle_N)[start_W[:, None] + np.arange(_N_EVENTS)]
    place_W2 = np.sort(np.argsort(rng.random((n_windows, _N_EVENTS - 1)), axis=1)[:, :2], axis=1)
    type_UT = np.repeat(window_WT, 2, axis=0)
    users = np.arange(2 * n_windows)
    label_U = users % 2
    early_U, late_U = place_W2[users // 2].T
    type_UT[users, early_U] = np.where(label_U == 1, "check", "transfer")
    type_UT[users, late_U] = np.where(label_U == 1, "transfer", "check")
    return _table(type_UT, label_U)


def _table(type_UT: np.ndarray, label_U: np.ndarray) -> pa.Table:
    """Return the log of users of 16 events; users 2p and 2p + 1 are a pair and have the same times."""
    users = np.arange(len(label_U))
    start_us = np.repeat(1_700_000_000_000_000 + (users // 2) * 10**9, _N_EVENTS)
    time_us = start_us + np.tile(np.arange(_N_EVENTS) * 10**7, len(users))
    # The two of a pair share their bag, so they stay together: else a bag learnt by heart is below chance.
    part_U = np.array(["train", "train", "train", "valid", "test"])[users // 2 % 5]
    return pa.table(
        {
            "user_id": [f"u{u:05d}" for u in users for _ in range(_N_EVENTS)],
            "ts": pa.array(time_us).cast(pa.timestamp("us", tz="UTC")),
            "type": type_UT.ravel(),
            "fraud": np.repeat(label_U, _N_EVENTS),
            "part": np.repeat(part_U, _N_EVENTS),
        }
    )


def _auc(config: Config, table: pa.Table, folder: Path) -> float:
    prepared = prepare(from_table(table, config), config, folder, progress=lambda *_: None)
    fitted = fit_model(prepared, config, resume=None, report=lambda _: None)
    auc = judge(fitted, prepared, config).test.auc
    assert auc is not None
    return auc


def test_order_features_see_the_order_and_a_bag_is_at_chance(tmp_path: Path) -> None:
    table = _pairs(6000)
    config = parse_config(_DEFAULTS + _SMALL, source="test", root=tmp_path)
    assert _auc(config, table, tmp_path / "order") > 0.8
    bag = replace(config, model=replace(config.model, order_features=False))
    # 1,200 test users in equal classes: the standard error of an AUC at chance is .017.
    assert 0.44 < _auc(bag, table, tmp_path / "bag") < 0.56


def test_lstm_sees_the_order(tmp_path: Path) -> None:
    config = parse_config(_DEFAULTS + _SMALL, source="test", root=tmp_path)
    lstm = replace(config, model=replace(config.model, name="lstm", layers=1, width=32))
    assert _auc(lstm, _pairs(8000), tmp_path / "lstm") >= 0.99


@pytest.mark.parametrize("model", ["lstm", "gru", "transformer", "boosting"])
def test_with_default_settings_the_order_of_a_real_stream_is_seen(
    model: str, shared_data: Path, tmp_path: Path
) -> None:
    config = parse_config(_DEFAULTS, source="test", root=tmp_path, overrides=[f"model.name={model}"])
    assert _auc(config, _real_pairs(shared_data, _N_WINDOWS), tmp_path / model) >= 0.99


@pytest.mark.parametrize("overrides", [("model.name=boosting", "model.order_features=false"), ("model.name=average",)])
def test_a_bag_of_a_real_stream_is_at_chance(overrides: tuple[str, ...], shared_data: Path, tmp_path: Path) -> None:
    config = parse_config(_DEFAULTS, source="test", root=tmp_path, overrides=overrides)
    table = _real_pairs(shared_data, _N_WINDOWS)
    both = [np.sort(table["type"].to_numpy().reshape(-1, 2, _N_EVENTS)[:, user], axis=1) for user in (0, 1)]
    assert np.array_equal(*both)
    # 1,000 test users in equal classes: the standard error of an AUC at chance is .018.
    assert 0.44 < _auc(config, table, tmp_path / "bag") < 0.56
