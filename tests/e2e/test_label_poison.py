"""Wrong labels from one source: a flood is held back before anything learns from it, and only a person lets it in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fraud.config import config_to_toml, load_config
from fraud.instants import DAY_US, instant_text
from pipelines.simulate import simulate
from tests.commands import Ended, call_fraud

WEEK_US = 7 * DAY_US
_OVERRIDES = (
    "model.name=boosting", "model.trees=40", "sessions.max_events=16", "retrain.positives=60",
    'labels.path="reported.parquet"', 'labels.source="source"', 'tracking.uri="sqlite:///mlflow.db"',
)  # fmt: skip


def _reported(folder: Path) -> pa.Table:
    """Return the bank's labels, each said by one of two sources, half by half."""
    labels = pq.read_table(folder / "labels.parquet")
    is_app_L = np.random.default_rng(1).random(len(labels)) < 0.5
    return labels.append_column("source", pa.array(np.where(is_app_L, "app_form", "branch")))


def _poison(folder: Path, labels: pa.Table, *, share: float, until_us: int) -> pa.Table:
    """Return reports of honest decisions as fraud by one source, in one week: a share of all it ever reported.

    Of decisions that are settled by then, so that a model would be trained on them and judged by them.
    """
    oracle = pq.read_table(folder / "oracle.parquet", columns=["event_id", "is_fraud"])
    honest = oracle.filter(pc.invert(oracle["is_fraud"]))
    events = pq.read_table(folder / "events.parquet", columns=["event_id", "ts"])
    honest = honest.join(events, "event_id")
    time_us = honest["ts"].cast(pa.int64())
    is_recent = pc.and_(pc.greater(time_us, until_us - 35 * DAY_US), pc.less(time_us, until_us - 14 * DAY_US))
    ids = honest.filter(is_recent)["event_id"].to_numpy()
    rng = np.random.default_rng(2)
    n_wrong = round(share * pc.sum(pc.equal(labels["source"], "app_form")).as_py())
    known_us = until_us - 1 - rng.integers(0, WEEK_US, n_wrong)
    return pa.table(
        {
            "event_id": rng.choice(np.sort(ids), n_wrong, replace=False),
            "fraud": np.ones(n_wrong, dtype=np.int64),
            "known_at": pa.array(known_us).cast(labels["known_at"].type),
            "source": np.repeat("app_form", n_wrong),
        }
    )


def _retrain(config: Path, *more: str) -> Ended:
    return call_fraud("retrain", config, "--json", *more)


def test_five_per_cent_wrong_labels_of_one_source_in_a_week_are_refused_until_somebody_accepts_them(
    tmp_path: Path,
) -> None:
    simulate(tmp_path, users=1200, days=90, seed=3, fraud_rate=0.08)
    config = tmp_path / "poisoned.toml"
    config.write_text(config_to_toml(load_config(tmp_path / "config.toml", _OVERRIDES)), encoding="utf-8")
    labels = _reported(tmp_path)
    pq.write_table(labels, tmp_path / "reported.parquet")
    newest_us = pc.max(pq.read_table(tmp_path / "events.parquet")["ts"].cast(pa.int64())).as_py()
    first = _retrain(config, "--set", f'split.as_of="{instant_text(newest_us - 2 * WEEK_US)}"')
    assert first.exit_code == 0, first.stderr
    assert first.document["reason"] == "first_model"

    wrong = _poison(tmp_path, labels, share=0.05, until_us=newest_us)
    pq.write_table(pa.concat_tables([labels, wrong]), tmp_path / "reported.parquet")
    refused = _retrain(config)
    assert refused.exit_code == 3, refused.stderr
    assert (refused.document["verdict"], refused.document["reason"]) == ("refused", "labels_held_back")
    assert "source app_form sent" in refused.document["text"]
    assert "branch" not in refused.document["text"]
    assert "--accept-source" in refused.document["text"]
    assert refused.document["champion"]["version"] == first.document["version"]
    assert refused.document["version"] is None  # nothing was trained
    again = _retrain(config)
    assert (again.exit_code, again.document["reason"]) == (3, "labels_held_back")  # it stands until somebody looks

    # Once somebody looked and took them, it is judged.
    accepted = _retrain(config, "--accept-source", "app_form")
    assert accepted.document["reason"] != "labels_held_back", accepted.stderr
    assert accepted.document["challenger"]["n_positive"] > 0
