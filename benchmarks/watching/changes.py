"""Changes of a stated size, planted into a log of the simulated bank: what a monitor should find.

Each takes the events as a table and gives them back changed, by `size` times what its first line says.
The statistics of a change are those in one of which a monitor must tell it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fraud.events import BoolArray, FloatArray, IntArray

_SESSION_GAP_US = 1_800_000_000
_HOUR_US = 3_600_000_000


class Change(NamedTuple):
    """What is done to events, and the statistics in one of which it must be told. lasts: 1 where nothing is as it was
    after it."""

    name: str
    statistics: tuple[str, ...]
    plant: Callable[[pa.Table, np.random.Generator, float], pa.Table]
    lasts: int = 0


def _time_us(events: pa.Table) -> IntArray:
    return events["ts"].cast(pa.int64()).to_numpy()


def _with(events: pa.Table, name: str, column: pa.Array | pa.ChunkedArray) -> pa.Table:
    return events.set_column(events.column_names.index(name), events.schema.field(name), column)


def _at(time_us_N: IntArray) -> pa.Array:
    return pa.array(time_us_N).cast(pa.timestamp("us", tz="UTC"))


def _of_type(events: pa.Table, name: str) -> BoolArray:
    return pc.equal(events["type"], name).to_numpy()


def _retyped(events: pa.Table, chosen_N: BoolArray, name: str) -> pa.Table:
    return _with(events, "type", pc.if_else(pa.array(chosen_N), name, events["type"]))


def more_of_a_type(events: pa.Table, rng: np.random.Generator, size: float) -> pa.Table:
    """Return events in which `search_help` is 1.5x as frequent, in place of `view_account`."""
    p = size * 0.5 * _of_type(events, "search_help").sum() / _of_type(events, "view_account").sum()
    return _retyped(events, _of_type(events, "view_account") & (rng.random(len(events)) < p), "search_help")


def another_order(events: pa.Table, rng: np.random.Generator, size: float) -> pa.Table:
    """Return events in which 10 % of what follows `receive_transfer` is a `withdraw` of 50 in its place."""
    user_N = events["user_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    order_N = np.lexsort((_time_us(events), user_N))
    follows_N = np.zeros(len(events), dtype=np.bool_)
    is_receipt_N = _of_type(events, "receive_transfer")[order_N]
    follows_N[order_N[1:]] = is_receipt_N[:-1] & (user_N[order_N][1:] == user_N[order_N][:-1])
    chosen_N = follows_N & (rng.random(len(events)) < 0.1 * size)
    amount_N = np.where(chosen_N, 50.0, events["amount"].to_numpy())
    return _retyped(_with(events, "amount", pa.array(amount_N, mask=np.isnan(amount_N))), chosen_N, "withdraw")


def cents(events: pa.Table, rng: np.random.Generator, size: float) -> pa.Table:
    """Return events whose amounts are in cents."""
    return _scaled(events, np.ones(len(events), dtype=np.bool_), 100.0**size)


def some_cents(events: pa.Table, rng: np.random.Generator, size: float) -> pa.Table:
    """Return events of which 3 % of the transfers out are in cents."""
    chosen_N = _of_type(events, "transfer_out") & (rng.random(len(events)) < 0.03 * size)
    return _scaled(events, chosen_N, 100.0)


def dearer(events: pa.Table, rng: np.random.Generator, size: float) -> pa.Table:
    """Return events whose withdrawals are 20 % higher."""
    return _scaled(events, _of_type(events, "withdraw"), 1 + 0.2 * size)


def _scaled(events: pa.Table, chosen_N: BoolArray, factor: float) -> pa.Table:
    amount_N = events["amount"].to_numpy()
    scaled_N = np.where(chosen_N, amount_N * factor, amount_N)
    return _with(events, "amount", pa.array(scaled_N, mask=np.isnan(scaled_N)))


def slower(events: pa.Table, rng: np.random.Generator, size: float) -> pa.Table:
    """Return events whose pauses inside a session are 1.15x as long."""
    time_us_N = _time_us(events)
    user_N = events["user_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    order_N = np.lexsort((time_us_N, user_N))
    sorted_us_N = time_us_N[order_N]
    gap_us_N = np.diff(sorted_us_N, prepend=sorted_us_N[:1])
    opens_N = (np.diff(user_N[order_N], prepend=-1) != 0) | (gap_us_N > _SESSION_GAP_US)
    stretch_N = np.where(opens_N, 0, 0.15 * size * gap_us_N)
    total_N = np.cumsum(stretch_N)
    first_N = np.maximum.accumulate(np.where(opens_N, np.arange(len(total_N)), 0))
    moved_N = time_us_N.copy()
    moved_N[order_N] = sorted_us_N + (total_N - total_N[first_N]).astype(np.int64)
    return _with(events, "ts", _at(moved_N))


def no_channel(events: pa.Table, rng: np.random.Generator, size: float) -> pa.Table:
    """Return events of which 1 % have lost their channel."""
    chosen_N = rng.random(len(events)) < 0.01 * size
    return _with(events, "channel", pc.if_else(pa.array(chosen_N), None, events["channel"]))


def no_amount(events: pa.Table, rng: np.random.Generator, size: float) -> pa.Table:
    """Return events of which 2 % of the transfers out have lost their amount."""
    chosen_N = _of_type(events, "transfer_out") & (rng.random(len(events)) < 0.02 * size)
    return _with(events, "amount", pc.if_else(pa.array(chosen_N), None, events["amount"]))


def new_channel(events: pa.Table, rng: np.random.Generator, size: float) -> pa.Table:
    """Return events of which 0.5 % come from a channel nobody has seen."""
    chosen_N = rng.random(len(events)) < 0.005 * size
    return _with(events, "channel", pc.if_else(pa.array(chosen_N), "watch", events["channel"]))


def new_type(events: pa.Table, rng: np.random.Generator, size: float) -> pa.Table:
    """Return events with a new type after 2 % of the logins."""
    chosen_N = _of_type(events, "login") & (rng.random(len(events)) < 0.02 * size)
    return _inserted(events, chosen_N, delay_us=700_000, name="app_tour")


def sent_twice(events: pa.Table, rng: np.random.Generator, size: float) -> pa.Table:
    """Return events of which 1 % are there again 200 ms later under an id of their own."""
    chosen_N = rng.random(len(events)) < 0.01 * size
    return _inserted(events, chosen_N, delay_us=200_000, name=None)


def _inserted(events: pa.Table, chosen_N: BoolArray, *, delay_us: int, name: str | None) -> pa.Table:
    more = events.filter(pa.array(chosen_N))
    more = _with(more, "event_id", pc.binary_join_element_wise(more["event_id"], "again", "-"))
    more = _with(more, "ts", _at(_time_us(more) + delay_us))
    if name is not None:
        more = _with(more, "type", pa.array([name] * len(more)))
        more = _with(more, "amount", pa.nulls(len(more), pa.float64()))
        more = _with(more, "payee", pa.nulls(len(more), pa.string()))
    return pa.concat_tables([events, more])


def another_zone(events: pa.Table, rng: np.random.Generator, size: float) -> pa.Table:
    """Return events whose times are two hours late."""
    return _with(events, "ts", _at(_time_us(events) + int(2 * size * _HOUR_US)))


def lost(events: pa.Table, rng: np.random.Generator, size: float) -> pa.Table:
    """Return events without those of 15 % of the users."""
    codes_N = events["user_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    is_lost_U: FloatArray = rng.random(int(codes_N.max()) + 1)
    return events.filter(pa.array(is_lost_U[codes_N] >= 0.15 * size))


def another_channel(events: pa.Table, rng: np.random.Generator, size: float) -> pa.Table:
    """Return events of which 10 % of those on mobile are on the web in its place."""
    chosen_N = pc.equal(events["channel"], "mobile").fill_null(False).to_numpy()
    chosen_N &= rng.random(len(events)) < 0.1 * size
    return _with(events, "channel", pc.if_else(pa.array(chosen_N), "web", events["channel"]))


def unchanged(events: pa.Table, rng: np.random.Generator, size: float) -> pa.Table:
    """Return the events as they are: the change is in the scores."""
    return events


SCORE_CHANGE = Change("scores: the odds of fraud 1.5x as high", ("score", "alert"), unchanged)
CHANGES = (
    Change("`search_help` 1.5x as frequent", ("type", "bigram"), more_of_a_type),
    Change("`withdraw` in 10 % of what follows `receive_transfer`", ("bigram", "type"), another_order),
    Change("amounts in cents", ("amount",), cents, lasts=1),
    Change("3 % of the transfers out in cents", ("amount", "bucket:amount"), some_cents),
    Change("withdrawals 20 % higher", ("amount", "bucket:amount"), dearer),
    Change("pauses 1.15x as long", ("gap",), slower),
    Change("1 % of the channels missing", ("null",), no_channel),
    Change("2 % of the amounts of transfers out missing", ("null",), no_amount),
    Change("0.5 % of events in an unseen channel", ("unknown",), new_channel),
    Change("an unseen type after 2 % of the logins", ("unknown",), new_type),
    Change("1 % of events sent twice", ("gap", "bigram"), sent_twice),
    Change("times two hours late", ("hour",), another_zone),
    Change("15 % of the users lost", ("volume",), lost),
    Change("10 % of mobile events on the web", ("value:channel",), another_channel),
)
