"""The fields of a token row as plain columns: what an event says, what its past adds, what is known of its entities.

Numbers are taken at some rows at a time, so that a long log is read in parts that fit the cache. Nothing here is
fitted; `fraud.tokens` makes ids of the columns, `fraud.features` reads some as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import numpy.typing as npt

from fraud.enrich import Enriched
from fraud.entities import RISK_NAMES
from fraud.events import Events, FloatArray, IntArray, Text

N_SHARES = 17  # buckets of a share: 0, up to 1/16, ... up to 1
TENTH_SECOND_US = 10**5
ALL_ROWS = slice(None)
_SMALLEST_SPREAD = 0.05  # of log amounts: to a user who always pays the same, 5 % more is one step
# Of all risks those that a network gets as a field each; boosting reads all.
RISK_FIELDS = (
    "known_frauds_7d",
    "known_frauds_28d",
    "volume_28d",
    "fraud_share_7d",
    "fraud_share_28d",
    "fraud_run",
    "fraud_run_days",
    "days_since_last_fraud",
)
_SHARES = tuple(name for name in RISK_FIELDS if "share" in name)
_OCTAVES = tuple(name for name in RISK_FIELDS if "share" not in name)
_SHARE_COLUMNS = np.array([RISK_NAMES.index(name) for name in _SHARES])
_OCTAVE_COLUMNS = np.array([RISK_NAMES.index(name) for name in _OCTAVES])
_OCTAVE_UNITS = np.array([[24.0] if "days" in name else [1.0] for name in _OCTAVES])

Kind = Literal["text", "quantile", "octave", "share", "small"]
Risk = Mapping[str, FloatArray]
NumberColumn = npt.NDArray[np.number | np.bool_]
Column = Text | NumberColumn


def token_columns(enriched: Enriched, risk: Risk) -> dict[str, tuple[Kind, Column]]:
    """Return the fields of a token row as plain columns [N], by name and in order; -1 or NaN means none."""
    return event_columns(enriched, ALL_ROWS) | risk_columns(risk, ALL_ROWS)


def event_columns(enriched: Enriched, rows: slice | IntArray) -> dict[str, tuple[Kind, Column]]:
    """Return those of `token_columns` that say nothing of the risk of an entity, at some rows.

    A column of the log that is called like one that is made here gives way to it.
    """
    events = enriched.events
    columns: dict[str, tuple[Kind, Column]] = {
        name: ("text", column.take(rows)) for name, column in text_columns(events).items()
    }
    if enriched.amount_log_N is not None and enriched.past_mean_N is not None and enriched.past_max_N is not None:
        amount_N = enriched.amount_log_N[rows]
        columns["amount"] = ("quantile", amount_N)
        columns["amount_over_mean"] = ("quantile", amount_N - enriched.past_mean_N[rows])
        columns["amount_over_max"] = ("quantile", amount_N - enriched.past_max_N[rows])
        columns["amount_deviation"] = ("quantile", _deviation(enriched, rows))
    for name, column in events.numeric.items():
        columns[name] = ("quantile", column[rows])
    columns["session_start"] = ("small", enriched.session_opens_N[rows].view(np.int8))
    for name, column in enriched.first_seen.items():
        columns[f"first_seen:{name}"] = ("small", column[rows])
    if events.has_clock:
        columns["gap"] = ("octave", enriched.gap_us_N[rows])
        columns["since_session"] = ("octave", enriched.since_session_us_N[rows])
        columns["hour"] = ("small", enriched.hour_N[rows])
        for name, since_us_N, pause_us_N in zip(
            enriched.spec.key_types, enriched.since_key_us_NK[rows].T, enriched.pause_us_NK[rows].T, strict=True
        ):
            columns[f"since:{name}"] = ("octave", since_us_N)
            columns[f"pause:{name}"] = ("octave", pause_us_N)
    return columns


def text_columns(events: Events) -> dict[str, Text]:
    """Return the columns that are text, by the name of their field."""
    return {"type": events.type, **events.categorical}


def amount_deviation(enriched: Enriched) -> FloatArray:
    """Return float64 [N]: how many of the user's own spreads an amount lies above their mean, NaN = none yet."""
    return _deviation(enriched, ALL_ROWS)


def _deviation(enriched: Enriched, rows: slice | IntArray) -> FloatArray:
    amount_N, mean_N, spread_N = enriched.amount_log_N, enriched.past_mean_N, enriched.past_spread_N
    if amount_N is None or mean_N is None or spread_N is None:
        return np.full(len(enriched.events), np.nan)[rows]
    return (amount_N[rows] - mean_N[rows]) / np.maximum(spread_N[rows], _SMALLEST_SPREAD)


def risk_columns(risk: Risk, rows: slice) -> dict[str, tuple[Kind, NumberColumn]]:
    """Return those of `token_columns` that are risks, at some rows.

    Shares are in sixteenths, the others in octaves of the count, or of the hours where they are in days.
    """
    columns: dict[str, tuple[Kind, NumberColumn]] = {}
    if not risk:
        return columns
    risk_ERN = np.array([risk_NR[rows].T for risk_NR in risk.values()])
    share_ERN = np.ceil(risk_ERN[:, _SHARE_COLUMNS] * (N_SHARES - 1))
    octave_ERN = np.rint(risk_ERN[:, _OCTAVE_COLUMNS] * _OCTAVE_UNITS) * TENTH_SECOND_US
    share_ERN[np.isnan(share_ERN)] = octave_ERN[np.isnan(octave_ERN)] = -1.0
    for name, share_RN, octave_RN in zip(risk, share_ERN.astype(np.int16), octave_ERN.astype(np.int64), strict=True):
        shares, octaves = iter(share_RN), iter(octave_RN)
        for field in RISK_FIELDS:
            columns[f"{field}:{name}"] = ("share", next(shares)) if field in _SHARES else ("octave", next(octaves))
    return columns
