"""A simulated log as the three tables that a bank would have, or would like to: events, labels, and the best scores.

It knows arrays and column names, and writes no file.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.bank.chain import IS_DECISION_V, Chain, Floats, Ints
from pipelines.bank.labels import Reports
from pipelines.bank.log import CHANNELS, BankLog
from pipelines.bank.oracle import fraud_probability
from pipelines.bank.routines import ALL_STORIES, EVENT_TYPES, KINDS

_TIME = pa.timestamp("us", tz="UTC")


def bank_tables(chain: Chain, log: BankLog, reports: Reports) -> dict[str, pa.Table]:
    """Return "events" and "oracle" in the order of time, and "labels" in that of their events' ids."""
    by_time_N = np.lexsort((log.user_N, log.time_us_N))
    event_ids = _event_ids(by_time_N)
    return {
        "events": _events_table(log, by_time_N, event_ids),
        "labels": _labels_table(reports, event_ids),
        "oracle": _oracle_table(chain, log, by_time_N, event_ids, fraud_probability(chain, log)),
    }


def _numbered(prefix: str, number_N: Ints, *, width: int) -> pa.Array:
    """Return texts such as "e00000042"; null where the number is negative."""
    text = pc.utf8_lpad(pa.array(number_N, mask=number_N < 0).cast(pa.string()), width, "0")
    return pc.binary_join_element_wise(prefix, text, "")


def _named(names: tuple[str, ...], code_N: Ints) -> pa.Array:
    """Return the name of each code; null where the code is negative."""
    return pa.array(names, pa.string()).take(pa.array(code_N, mask=code_N < 0))


def _times(time_us_N: Ints) -> pa.Array:
    return pa.array(time_us_N).cast(_TIME)


def _event_ids(by_time_N: Ints) -> pa.Array:
    """Return the id of each event of the log, numbered in the order of time: so ids break ties as the file does."""
    rank_N = np.empty_like(by_time_N)
    rank_N[by_time_N] = np.arange(by_time_N.size)
    return _numbered("e", rank_N, width=8)


def _user_ids(user_N: Ints) -> pa.Array:
    return _numbered("u", user_N, width=6)


def _events_table(log: BankLog, by_time_N: Ints, event_ids: pa.Array) -> pa.Table:
    amount_N = log.amount_N[by_time_N]
    return pa.table(
        {
            "event_id": event_ids.take(pa.array(by_time_N)),
            "user_id": _user_ids(log.user_N[by_time_N]),
            "ts": _times(log.time_us_N[by_time_N]),
            "type": _named(EVENT_TYPES, log.type_N[by_time_N]),
            "amount": pa.array(amount_N, mask=np.isnan(amount_N)),
            "channel": _named(CHANNELS, log.channel_N[by_time_N]),
            "payee": _numbered("p", log.payee_N[by_time_N], width=7),
            "device": _numbered("d", log.device_N[by_time_N], width=7),
        }
    )


def _labels_table(reports: Reports, event_ids: pa.Array) -> pa.Table:
    event_ids = event_ids.take(pa.array(reports.event_L))
    labels = pa.table(
        {
            "event_id": event_ids,
            "fraud": pa.array(np.ones(reports.event_L.size, dtype=np.int64)),
            "known_at": _times(reports.known_us_L),
        }
    )
    return labels.sort_by("event_id")


def _oracle_table(chain: Chain, log: BankLog, by_time_N: Ints, event_ids: pa.Array, p_fraud_N: Floats) -> pa.Table:
    """Return one row per decision event, in the order of time."""
    decision_D = by_time_N[IS_DECISION_V[log.type_N[by_time_N]]]
    state_D = log.state_N[decision_D]
    # Beats of the event's session up to and including it: a stretch of the list of all beats.
    beats = np.flatnonzero(chain.is_beat_K[log.state_N])
    session_N = np.cumsum(log.opens_session_N) - 1
    opened_D = np.flatnonzero(log.opens_session_N)[session_N[decision_D]]
    from_D, until_D = np.searchsorted(beats, opened_D), np.searchsorted(beats, decision_D, side="right")
    offsets = np.concatenate([[0], np.cumsum(until_D - from_D)])
    members = beats[np.arange(offsets[-1]) + np.repeat(from_D - offsets[:-1], until_D - from_D)]
    return pa.table(
        {
            "event_id": event_ids.take(pa.array(decision_D)),
            "user_id": _user_ids(log.user_N[decision_D]),
            # Nine decimals: the order of a matrix product's additions, which machines differ in, stays below them.
            "p_fraud": pa.array(np.round(p_fraud_N[decision_D], 9)),
            "is_fraud": pa.array(log.is_fraud_N[decision_D]),
            "story": _named(ALL_STORIES, log.story_N[decision_D]),
            "kind": _named(KINDS, chain.kind_K[state_D]),
            "story_event_ids": pa.ListArray.from_arrays(
                pa.array(offsets.astype(np.int32)), event_ids.take(pa.array(members))
            ),
        }
    )
