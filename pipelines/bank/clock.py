"""The bank's own clock: seconds since the origin, stretched so that sessions open at a constant rate on it.

It runs fast on a busy working day and slowly at night, so that a constant rate there is a day with its hours here, and
the density of an idle time stays a formula. Time is in seconds since the origin, a Monday at 00:00 UTC.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

HOUR_S, WEEK_S = 3_600.0, 604_800.0
# How busy each hour of a working day is; a weekend day has .7 of it.
_BUSY_BY_HOUR = (
    0.25, 0.15, 0.1, 0.08, 0.1, 0.2, 0.5, 1.0, 1.5, 1.6, 1.6, 1.6,
    1.8, 1.6, 1.4, 1.4, 1.5, 1.7, 1.8, 1.7, 1.5, 1.2, 0.8, 0.45,
)  # fmt: skip
_BUSY = np.outer([1.0, 1.0, 1.0, 1.0, 1.0, 0.7, 0.7], _BUSY_BY_HOUR).ravel()  # by hour of the week
_SPEED = _BUSY / _BUSY.mean()
_TIME_S = np.arange(_SPEED.size + 1) * HOUR_S
_READING_S = np.concatenate([[0.0], np.cumsum(_SPEED) * HOUR_S])


def clock_reading(time_s: Floats) -> Floats:
    """Return the clock's reading in seconds at each time."""
    week_s = np.floor(time_s / WEEK_S) * WEEK_S
    return week_s + np.interp(time_s - week_s, _TIME_S, _READING_S)


def time_of_reading(reading_s: Floats) -> Floats:
    """Return the time at which the clock shows each reading."""
    week_s = np.floor(reading_s / WEEK_S) * WEEK_S
    return week_s + np.interp(reading_s - week_s, _READING_S, _TIME_S)


def clock_speed(time_s: Floats) -> Floats:
    """Return how many seconds the clock advances in a second, at each time."""
    return _SPEED[(np.mod(time_s, WEEK_S) // HOUR_S).astype(np.int64)]
