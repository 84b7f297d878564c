"""A log read as of a time is the log as it was then; the periods of a retraining hold what they must."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from fraud.config import Config, load_config
from fraud.errors import ConfigError
from fraud.instants import DAY_US, as_of, instant_text, instant_us
from fraud.logs import read_log
from fraud.periods import TooFewPositives, first_periods, known_frauds, lived, retrain_periods, with_periods
from fraud.preparation import Prepared, prepare
from pipelines.simulate import simulate


@pytest.fixture(scope="module")
def log_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lived")
    simulate(folder, users=400, days=60, seed=5, fraud_rate=0.05)
    return folder


@pytest.fixture(scope="module")
def config(log_folder: Path) -> Config:
    return load_config(log_folder / "config.toml", ["retrain.positives=40"])


def _prepared(config: Config, directory: Path) -> Prepared:
    with closing(read_log(config)) as log:
        return prepare(log, config, directory, progress=lambda *_: None)


def _middle(config: Config, share: float) -> int:
    with closing(read_log(config)) as log:
        return int(np.quantile(log.time_us, share))


def test_a_log_as_of_a_time_is_the_log_that_was_written_by_then(
    config: Config, log_folder: Path, tmp_path: Path
) -> None:
    as_of_us = _middle(config, 0.7)
    events = pq.read_table(log_folder / "events.parquet")
    labels = pq.read_table(log_folder / "labels.parquet")
    at = pa.scalar(as_of_us, pa.int64()).cast(pa.timestamp("us")).cast(pa.timestamp("us", tz="UTC"))
    pq.write_table(events.filter(pc.less(events["ts"], at)), tmp_path / "events.parquet")
    pq.write_table(labels.filter(pc.less_equal(labels["known_at"], at)), tmp_path / "labels.parquet")
    until = [f"split.as_of={instant_text(as_of_us)}"]
    cut_short = load_config(log_folder / "config.toml", until)
    then = replace(cut_short, root=tmp_path)
    here, there = _prepared(cut_short, tmp_path / "here"), _prepared(then, tmp_path / "there")
    assert 0 < len(here.time_us_N) < len(events)
    assert here.fingerprint == there.fingerprint
    for name in ("tokens_NF", "label_N", "trains_N", "validates_N", "tests_N", "features_RC"):
        np.testing.assert_array_equal(getattr(here, name), getattr(there, name), err_msg=name)


def test_the_periods_hold_what_they_must_and_what_is_judged_is_settled(config: Config, tmp_path: Path) -> None:
    with closing(read_log(config)) as whole:
        log, lived_config = lived(whole, config)
        periods = retrain_periods(log, lived_config, positives=40)
        frauds_us, as_of_us = known_frauds(log, lived_config)
        prepared = prepare(log, with_periods(lived_config, periods), tmp_path / "set", progress=lambda *_: None)
    assert config.labels is not None
    assert config.labels.delay is not None
    judged_us = prepared.time_us_N[prepared.tests_N]
    assert judged_us.min() >= periods.valid_until_us
    assert judged_us.max() + config.labels.delay <= as_of_us == periods.as_of_us
    n_frauds = int(prepared.label_N[prepared.tests_N].sum())
    assert n_frauds == periods.n_judged == int((frauds_us >= periods.valid_until_us).sum())
    # The newest that do: one hour later there would be fewer.
    assert n_frauds >= 40
    assert int((frauds_us >= periods.valid_until_us + 3_600_000_000).sum()) < 40
    assert int(prepared.label_N[prepared.validates_N].sum()) == periods.n_validated >= 20
    assert int(prepared.label_N[prepared.trains_N].sum()) == periods.n_trained
    trained_us = prepared.time_us_N[prepared.trains_N]
    assert trained_us.max() < periods.train_until_us <= prepared.time_us_N[prepared.validates_N].min()


def test_a_window_leaves_out_what_is_older_but_keeps_it_as_history(config: Config, tmp_path: Path) -> None:
    windowed = replace(config, retrain=replace(config.retrain, window=10 * DAY_US))
    with closing(read_log(config)) as whole:
        log, lived_config = lived(whole, windowed)
        periods = retrain_periods(log, lived_config, positives=40)
        prepared = prepare(log, with_periods(lived_config, periods), tmp_path / "set", progress=lambda *_: None)
    assert periods.train_from_us == periods.train_until_us - 10 * DAY_US
    assert prepared.time_us_N[prepared.trains_N].min() >= periods.train_from_us
    assert prepared.time_us_N.min() < periods.train_from_us
    assert int(prepared.label_N[prepared.trains_N].sum()) == periods.n_trained


def test_too_few_frauds_are_refused_in_words_and_a_first_model_takes_a_quarter(config: Config) -> None:
    with closing(read_log(config)) as whole:
        log, lived_config = lived(whole, config)
        n_known = len(known_frauds(log, lived_config)[0])
        with pytest.raises(TooFewPositives, match=rf"{n_known} frauds are known as of .* expected 5000 to judge on"):
            retrain_periods(log, lived_config, positives=5000)
        few = replace(lived_config, retrain=replace(config.retrain, positives=5000))
        assert first_periods(log, few).n_judged >= n_known // 4


def test_without_an_as_of_the_newest_event_is_it(config: Config) -> None:
    with closing(read_log(config)) as log:
        _, lived_config = lived(log, config)
        assert as_of(lived_config.split) == int(log.time_us.max()) + 1


@pytest.mark.parametrize("time_us", [0, 1, 999_999, 1_735_689_599_999_999])
def test_a_time_is_read_back_to_the_microsecond(time_us: int) -> None:
    assert instant_us("at", instant_text(time_us)) == time_us


def test_a_time_of_toml_is_a_time_too(log_folder: Path) -> None:
    config = load_config(log_folder / "config.toml", ["split.as_of=2025-02-01T00:00:00Z"])
    assert as_of(config.split) == instant_us("at", "2025-02-01T00:00:00Z")
    with pytest.raises(ConfigError, match=r"split\.as_of"):
        as_of(load_config(log_folder / "config.toml", ['split.as_of="yesterday"']).split)


def test_nothing_is_learned_from_a_user_who_is_judged_later(log_folder: Path, tmp_path: Path) -> None:
    """The bug that happened: labels of users were learned from at their earlier events, and noise passed the gate."""
    users = pc.unique(pq.read_table(log_folder / "events.parquet")["user_id"])
    fraud = np.random.default_rng(0).random(len(users)) < 0.4
    pq.write_table(pa.table({"user_id": users, "fraud": pa.array(fraud.astype(np.int64))}), tmp_path / "users.parquet")
    text = (log_folder / "config.toml").read_text(encoding="utf-8")
    head, _, rest = text.partition("[labels]")
    labels = f'[labels]\npath = "{tmp_path}/users.parquet"\nkey = ["user_id"]\ncolumn = "fraud"\nlevel = "user"\n\n'
    (tmp_path / "users.toml").write_text(head + labels + rest[rest.index("[decisions]") :], encoding="utf-8")
    config = load_config(
        tmp_path / "users.toml", ["retrain.positives=40", f"log.events={log_folder / 'events.parquet'}"]
    )
    with closing(read_log(config)) as whole:
        log, lived_config = lived(whole, config)
        periods = retrain_periods(log, lived_config, positives=40)
        prepared = prepare(log, with_periods(lived_config, periods), tmp_path / "set", progress=lambda *_: None)
    judged, validated = (set(prepared.user_N[rows_N].tolist()) for rows_N in (prepared.tests_N, prepared.validates_N))
    trained = set(prepared.user_N[prepared.trains_N].tolist())
    assert judged
    assert validated
    assert trained
    assert not judged & (trained | validated)
    assert not validated & trained
