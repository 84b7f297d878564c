"""Equal bags of events at equal times, only the order differs: what sees it, through the whole path from a table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from fraud.config import Config, parse_config
from fraud.learning import fit_model, judge
from fraud.logs import from_table
from fraud.preparation import prepare

_CONFIG = """
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
[model]
name = "boosting"
trees = 150
[training]
epochs = 6
"""


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
    start_us = np.repeat(1_700_000_000_000_000 + (np.arange(n_users) // 2) * 10**9, 16)
    return pa.table(
        {
            "user_id": [f"u{u:05d}" for u in range(n_users) for _ in range(16)],
            "ts": pa.array(start_us + np.tile(np.arange(16) * 10**7, n_users)).cast(pa.timestamp("us", tz="UTC")),
            "type": types[codes_UT.ravel()],
            "fraud": np.repeat(label_U, 16),
            # The two of a pair share their bag, so they stay together: else a bag learnt by heart is below chance.
            "part": np.repeat(np.array(["train", "train", "train", "valid", "test"])[np.arange(n_users) // 2 % 5], 16),
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
    config = parse_config(_CONFIG, source="test", root=tmp_path)
    assert _auc(config, table, tmp_path / "order") > 0.8
    bag = replace(config, model=replace(config.model, order_features=False))
    # 1,200 test users in equal classes: the standard error of an AUC at chance is .017.
    assert 0.44 < _auc(bag, table, tmp_path / "bag") < 0.56


def test_lstm_sees_the_order(tmp_path: Path) -> None:
    config = parse_config(_CONFIG, source="test", root=tmp_path)
    lstm = replace(config, model=replace(config.model, name="lstm", layers=1, width=32))
    assert _auc(lstm, _pairs(8000), tmp_path / "lstm") >= 0.99
