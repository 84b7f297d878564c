"""A simulated year of a bank to which things happen: the files of `fraud simulate`, with an era and two changes.

The changes depend on what is visible alone, so the oracle's probabilities stay exact: an event that follows some logins
tells nothing that the login did not, and an amount in cents is the same amount.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.bank.chain import bank_chain_with_later_story
from pipelines.bank.labels import observed_reports
from pipelines.bank.log import ORIGIN_US, simulate_bank
from pipelines.bank.tables import bank_tables

DAY_US = 86_400_000_000
WEEK_US = 7 * DAY_US
NEW_TYPE = "app_tour"
_P_TOUR = 0.9  # of the logins with the new app; the others have switched it off
_TOUR_S = (4.0, 0.6)  # median and log-deviation of the pause before it

_CONFIG = """\
# One of the two banks of benchmarks/year.py: {users} users, seed {seed}.

[log]
events = "events.parquet"
user = "user_id"
time = "ts"
type = "type"
event_id = "event_id"

[fields]
amount = "amount"
categorical = ["channel"]
entity = ["payee", "device"]
key_types = [
  "login", "credit_score_check", "loan_check", "receive_transfer",
  "change_device", "add_payee", "change_password", "change_avatar",
]

[labels]
path = "labels.parquet"
key = ["event_id"]
column = "fraud"
level = "event"
known_at = "known_at"
delay = "{delay_days}d"

[decisions]
on = ["transfer_out", "withdraw"]

[model]
name = "boosting"

[training]
negative_rate = 0.5

[policy]
alert_budget = 0.05                   # a little more than there is fraud

[retrain]
window = "{window_days}d"
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Year:
    """What happens when. Weeks count from 0, and week w begins 7 w days after a Monday's midnight."""

    weeks: int = 52
    fraud_rate: float = 0.03
    later_fraud_rate: float = 0.015
    later_story_week: int = 20
    new_app_week: int = 30
    cents_week: int = 40
    cents_weeks: int = 2
    delay_days: int = 14
    window_weeks: int = 12
    first_week: int = 14  # of the first model
    catch_weeks: int = 4  # beside the delay: a week to train on, a judged period, the delay of both

    @property
    def caught_by_week(self) -> int:
        """Return the week by which the later story must be found."""
        return self.later_story_week + self.delay_days // 7 + self.catch_weeks


def week_start_us(week: int) -> int:
    """Return when a week begins, in microseconds since 1970."""
    return ORIGIN_US + week * WEEK_US


def week_name(week: int) -> str:
    """Return the day on which a week begins, as "26 May"."""
    day = datetime.fromtimestamp(ORIGIN_US / 1e6, UTC) + timedelta(weeks=week)
    return f"{day.day} {day:%b}"


def simulate_year(out: Path, year: Year, *, users: int, seed: int) -> Path:
    """Return the config of a year's log written to `out`: events, labels as reported, oracle; seeded."""
    later_from_s = year.later_story_week * WEEK_US / 1e6
    chain = bank_chain_with_later_story(year.fraud_rate, later_fraud_rate=year.later_fraud_rate, from_s=later_from_s)
    log = simulate_bank(chain, users=users, days=7 * year.weeks, seed=seed)
    tables = bank_tables(chain, log, observed_reports(log, seed=seed))
    rng = np.random.default_rng(np.random.SeedSequence([seed, year.new_app_week]))
    events = with_new_app(tables["events"], from_us=week_start_us(year.new_app_week), rng=rng)
    tables["events"] = with_cents(
        events,
        from_us=week_start_us(year.cents_week),
        until_us=week_start_us(year.cents_week + year.cents_weeks),
    )
    out.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        pq.write_table(table, out / f"{name}.parquet", compression="zstd")
    text = _CONFIG.format(users=users, seed=seed, delay_days=year.delay_days, window_days=7 * year.window_weeks)
    (out / "config.toml").write_text(text, encoding="utf-8")
    return out / "config.toml"


def with_new_app(events: pa.Table, *, from_us: int, rng: np.random.Generator) -> pa.Table:
    """Return the events, in the order of time, with an event of NEW_TYPE after most mobile logins from a time on.

    It comes seconds after the login, and before the user's next event.
    """
    time_us_N = events["ts"].cast(pa.int64()).to_numpy()
    user_N = events["user_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    by_user_N = np.lexsort((time_us_N, user_N))
    room_us_N = np.full(len(events), WEEK_US)
    has_next_N = np.diff(user_N[by_user_N]) == 0
    room_us_N[by_user_N[:-1][has_next_N]] = np.diff(time_us_N[by_user_N])[has_next_N]
    is_login = pc.and_(pc.equal(events["type"], "login"), pc.equal(events["channel"], "mobile"))
    draw_N = rng.random(len(events))
    login_T = np.flatnonzero(is_login.to_numpy() & (time_us_N >= from_us) & (draw_N < _P_TOUR))
    pause_us_T = 1e6 * _TOUR_S[0] * np.exp(_TOUR_S[1] * rng.standard_normal(len(login_T)))
    tour_us_T = time_us_N[login_T] + np.minimum(pause_us_T.astype(np.int64), room_us_N[login_T] // 2)
    tours = events.take(pa.array(login_T))
    new = {
        "event_id": pc.utf8_replace_slice(tours["event_id"], 0, 1, "t"),
        "ts": pa.array(tour_us_T).cast(events.schema.field("ts").type),
        "type": pa.array([NEW_TYPE] * len(tours)),
    }
    for name, column in new.items():
        tours = tours.set_column(tours.column_names.index(name), name, column)
    return pa.concat_tables([events, tours]).combine_chunks().sort_by([("ts", "ascending"), ("event_id", "ascending")])


def with_cents(events: pa.Table, *, from_us: int, until_us: int) -> pa.Table:
    """Return the events with every amount of a stretch of time a hundred times as high."""
    time_us = events["ts"].cast(pa.int64())
    is_faulty = pc.and_(pc.greater_equal(time_us, from_us), pc.less(time_us, until_us))
    amount = pc.if_else(is_faulty, pc.round(pc.multiply(events["amount"], 100.0)), events["amount"])
    return events.set_column(events.column_names.index("amount"), "amount", amount)
