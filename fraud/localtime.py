"""Wall-clock hours: what o'clock it was where the log was written."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
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
    place = ZoneInfo(zone)
    offsets = [(_EPOCH + timedelta(minutes=15 * int(q))).astimezone(place).utcoffset() for q in quarters]
    offsets_us = [0 if offset is None else offset // timedelta(microseconds=1) for offset in offsets]
    return np.array(offsets_us, dtype=np.int64)[inverse]
