"""Wall-clock hours: what o'clock it was where the log was written."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt

from fraud.events import IntArray

_QUARTER_HOUR_US = 15 * 60 * 10**6
_HOUR_US = 3600 * 10**6
_DAY_US = 24 * _HOUR_US
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def hour_and_weekday(time_us: IntArray, zone: str | None) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.int8]]:
    """Return the hour of day (0..23) and the day of the week (0 = Monday) of each time [N] in `zone`, None = UTC."""
    local_us_N = time_us + zone_offset_us(time_us, zone) if zone is not None else time_us
    day_N = local_us_N // _DAY_US
    hour_N = ((local_us_N - day_N * _DAY_US) // _HOUR_US).astype(np.int8)
    return hour_N, ((day_N + 3) % 7).astype(np.int8)  # 1970-01-01 was a Thursday


def zone_offset_us(time_us: IntArray, zone: str) -> IntArray:
    """Return int64 [N]: what to add to each UTC time for the wall clock of the IANA zone.

    Offsets change at quarter hours only, so each distinct quarter hour is looked up once.
    """
    quarters, inverse = np.unique(time_us // _QUARTER_HOUR_US, return_inverse=True)
    offsets_us = [_offset_us(zone, quarter) for quarter in quarters.tolist()]
    return np.array(offsets_us, dtype=np.int64)[inverse]


@lru_cache(maxsize=2**16)  # of 1.9 years: the events of one day share 96 quarter hours, and a service sees them again
def _offset_us(zone: str, quarter: int) -> int:
    """Return the offset at a quarter hour since 1970."""
    offset = (_EPOCH + timedelta(minutes=15 * quarter)).astimezone(ZoneInfo(zone)).utcoffset()
    return 0 if offset is None else offset // timedelta(microseconds=1)
