"""The bank of benchmarks/year.py: what happens to its log happens when it should, and tells no more than it did."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from benchmarks.yearly.bank import NEW_TYPE, Year, simulate_year, week_start_us, with_cents, with_new_app
from fraud.config import load_config
from fraud.instants import DAY_US
from pipelines.simulate import simulate

APP_DAY = 10


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    out_dir = tmp_path_factory.mktemp("simulated") / "bank"
    simulate(out_dir, users=300, days=30, seed=3)
    return pq.read_table(out_dir / "events.parquet")


@pytest.fixture(scope="module")
def with_tours(events: pa.Table) -> pa.Table:
    return with_new_app(events, from_us=week_start_us(0) + APP_DAY * DAY_US, rng=np.random.default_rng(0))


def _times_us(events: pa.Table) -> np.ndarray:
    return events["ts"].cast(pa.int64()).to_numpy()


def test_the_new_app_adds_events_and_changes_none(events: pa.Table, with_tours: pa.Table) -> None:
    is_new = pc.equal(with_tours["type"], NEW_TYPE)
    assert with_tours.filter(pc.invert(is_new)).equals(events)
    assert pc.count_distinct(with_tours["event_id"]).as_py() == len(with_tours)
    assert np.all(np.diff(_times_us(with_tours)) >= 0)


def test_the_new_event_follows_a_mobile_login_and_comes_before_what_the_user_does_next(with_tours: pa.Table) -> None:
    user_N = with_tours["user_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    by_user_N = np.lexsort((np.arange(len(with_tours)), user_N))
    type_N = np.array(with_tours["type"].to_pylist())[by_user_N]
    channel_N = np.array(with_tours["channel"].to_pylist())[by_user_N]
    time_us_N = _times_us(with_tours)[by_user_N]
    tour_N = np.flatnonzero(type_N == NEW_TYPE)
    is_later_N = time_us_N >= week_start_us(0) + APP_DAY * DAY_US
    eligible = (type_N == "login") & (channel_N == "mobile") & is_later_N
    assert 0.85 < len(tour_N) / eligible.sum() < 0.95
    assert np.all(eligible[tour_N - 1])
    assert np.all(np.diff(time_us_N)[tour_N - 1] > 0)
    same_user = np.flatnonzero(np.diff(user_N[by_user_N]) == 0)
    assert np.all(np.diff(time_us_N)[same_user] > 0)


def test_amounts_are_in_cents_for_as_long_as_the_fault_lasts(events: pa.Table) -> None:
    from_us, until_us = week_start_us(1), week_start_us(2)
    faulty = with_cents(events, from_us=from_us, until_us=until_us)
    time_us = _times_us(events)
    factor = np.where((time_us >= from_us) & (time_us < until_us), 100.0, 1.0)
    expected = events["amount"].to_numpy() * factor
    assert np.allclose(faulty["amount"].to_numpy(), expected, rtol=1e-12, equal_nan=True)
    assert faulty.drop_columns("amount").equals(events.drop_columns("amount"))


def test_a_year_is_a_log_that_the_commands_read_and_the_same_seed_writes_again(tmp_path: Path) -> None:
    year = Year(weeks=6, later_story_week=2, new_app_week=3, cents_week=4, cents_weeks=1)
    first, again = (simulate_year(tmp_path / name, year, users=200, seed=1) for name in "ab")
    config = load_config(first)
    assert config.labels is not None
    assert config.labels.delay == 14 * DAY_US
    for name in ("events", "labels", "oracle"):
        table = pq.read_table(first.with_name(f"{name}.parquet"))
        assert table.equals(pq.read_table(again.with_name(f"{name}.parquet")))
    oracle = pq.read_table(first.with_name("oracle.parquet"))
    oracle = oracle.filter(pc.field("is_fraud")).select(["event_id", "story"])
    events = pq.read_table(first.with_name("events.parquet"), columns=["event_id", "ts"])
    story = oracle.join(events, "event_id").filter(pc.field("story") == "support")
    assert len(story) > 0
    assert pc.min(story["ts"].cast(pa.int64())).as_py() >= week_start_us(2)
