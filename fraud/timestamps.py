"""Times of a log as microseconds since 1970 UTC: from RFC 3339 text, from numbers with a unit, from Arrow timestamps.

Every function takes N cells and gives int64 microseconds and a fault for each cell, vectorised and without exceptions
for single cells. What is finer than a microsecond is floored (text, nanoseconds) or rounded (numbers of seconds, which
are binary fractions and would otherwise lose the microsecond they were written with).
"""

from __future__ import annotations

from typing import NamedTuple
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from fraud.errors import ConfigError
from fraud.events import FloatArray, IntArray
from fraud.localtime import zone_offset_us
from fraud.quarantine import Fault, FaultArray

_Bytes = npt.NDArray[np.uint8]

MAX_TIME_US = int(np.datetime64("2200-01-01", "us").astype(np.int64)) - 1
_DAY_US = 86400 * 10**6
_MANY_OFFSETS = np.iinfo(np.int64).min
_NO_TIME = np.iinfo(np.int64).max
UNIT_US = {"s": 10**6, "ms": 10**3, "us": 1}

# Days from 1970-01-01 to the first of each month of 1969 .. 2200: one year more at both ends than a log may hold, since
# a zone can move a time across the year. Months of other years use the last entry and are out of range anyway.
_FIRST_YEAR, _LAST_YEAR = 1969, 2200
_MONTH_STARTS = (
    np.arange(f"{_FIRST_YEAR}-01", f"{_LAST_YEAR + 1}-02", dtype="datetime64[M]")
    .astype("datetime64[D]")
    .astype(np.int64)
)
_MONTH_DAYS = np.diff(_MONTH_STARTS)


class Times(NamedTuple):
    """time_us_N: int64 [N], meaningless where faults_N (int8 [N]) is not 0."""

    time_us_N: IntArray
    faults_N: FaultArray


def times_of_text(text: pa.Array, zone: str | None) -> Times:
    """Return the times of RFC 3339 text; null cells get no fault and time 0.

    Accepted: YYYY-MM-DD, then T, t or a space, hh:mm:ss, a fraction of 1 to 9 digits, then Z, z or +hh:mm. Text without
    a zone is read in `zone` (the earlier of two meanings), or is NO_ZONE where that is None.
    """
    n_cells = len(text)
    time_us_N = np.zeros(n_cells, dtype=np.int64)
    faults_N = np.full(n_cells, Fault.BAD_TIME, dtype=np.int8)
    is_local_N = np.zeros(n_cells, dtype=np.bool_)
    starts_N, lengths_N, content = _text_buffers(text)
    for length in np.flatnonzero(np.bincount(np.minimum(lengths_N, 36), minlength=37)[:36]).tolist():
        if length < 19:
            continue
        rows = np.flatnonzero(lengths_N == length)
        starts = starts_N[rows]
        zone_length = _zone_lengths(content, starts, length)
        for n_zone in (0, 1, 6):
            chosen = zone_length == n_zone
            n_fraction = length - 19 - n_zone
            if n_fraction not in (0, 2, 3, 4, 5, 6, 7, 8, 9, 10) or not chosen.any():
                continue
            here = rows if chosen.all() else rows[chosen]
            times = _times_of_one_form(content, starts_N[here], n_fraction=n_fraction, n_zone=n_zone)
            time_us_N[here], faults_N[here] = times
            is_local_N[here] = n_zone == 0
    if text.null_count:
        is_null = pc.is_null(text).to_numpy(zero_copy_only=False)
        faults_N[is_null], time_us_N[is_null], is_local_N[is_null] = Fault.NONE, 0, False
    local = np.flatnonzero(is_local_N & (faults_N == Fault.NONE))
    if len(local):
        time_us_N[local], faults_N[local] = _times_of_local(time_us_N[local], zone)
    return _within_range(time_us_N, faults_N)


def times_of_numbers(numbers_N: FloatArray, unit: str | None) -> Times:
    """Return the times of numbers of `unit` since 1970; NaN and infinities are not finite, no unit is NO_TIME_UNIT."""
    faults_N = np.zeros(len(numbers_N), dtype=np.int8)
    if unit is None:
        faults_N[:] = Fault.NO_TIME_UNIT
        return Times(np.zeros(len(numbers_N), dtype=np.int64), faults_N)
    with np.errstate(invalid="ignore", over="ignore"):
        scaled_N = numbers_N * UNIT_US[unit]
        if unit != "s":
            faults_N[numbers_N != np.floor(numbers_N)] = Fault.FRACTION_OF_UNIT
        # The sign is read before rounding: -0.0000001 s is before 1970.
        faults_N[~((numbers_N >= 0) & (scaled_N <= MAX_TIME_US))] = Fault.TIME_OUT_OF_RANGE
    faults_N[~np.isfinite(numbers_N)] = Fault.NOT_FINITE
    return Times(np.rint(np.where(faults_N == 0, scaled_N, 0.0)).astype(np.int64), faults_N)


def times_of_integers(integers_N: IntArray, unit: str) -> Times:
    """Return the times of int64 numbers of `unit` ("s", "ms", "us" or "ns") since 1970."""
    return _within_range(*_us_of_integers(integers_N, unit))


def times_of_timestamps(values: pa.Array, zone: str | None) -> Times:
    """Return the times of an Arrow timestamp array of any unit; without a zone of its own it is read in `zone`.

    Null cells get no fault.
    """
    integers_N = pc.fill_null(values.cast(pa.int64()), 0).to_numpy(zero_copy_only=False)
    times = _us_of_integers(integers_N, values.type.unit)
    if values.type.tz is None:
        local = _times_of_local(times.time_us_N, zone)
        times = Times(local.time_us_N, np.where(times.faults_N != 0, times.faults_N, local.faults_N))
    times = _within_range(*times)
    if values.null_count:
        times.faults_N[pc.is_null(values).to_numpy(zero_copy_only=False)] = Fault.NONE
    return times


def _us_of_integers(integers_N: IntArray, unit: str) -> Times:
    """Return microseconds; out of range is only what a zone cannot bring back into it."""
    lowest_us, highest_us = -_DAY_US, MAX_TIME_US + _DAY_US
    per_unit_us = UNIT_US.get(unit, 0)
    bounds = (
        (lowest_us // per_unit_us, highest_us // per_unit_us) if per_unit_us else (lowest_us * 1000, highest_us * 1000)
    )
    is_outside_N = (integers_N < bounds[0]) | (integers_N > bounds[1])
    if per_unit_us == 1 and not is_outside_N.any():
        return Times(integers_N, np.zeros(len(integers_N), dtype=np.int8))
    kept_N = np.where(is_outside_N, 0, integers_N)
    time_us_N = kept_N * per_unit_us if per_unit_us else kept_N // 1000
    return Times(time_us_N, np.where(is_outside_N, np.int8(Fault.TIME_OUT_OF_RANGE), np.int8(0)))


def _within_range(time_us_N: IntArray, faults_N: FaultArray) -> Times:
    is_outside_N = ((time_us_N < 0) | (time_us_N > MAX_TIME_US)) & (faults_N == Fault.NONE)
    return Times(time_us_N, np.where(is_outside_N, np.int8(Fault.TIME_OUT_OF_RANGE), faults_N))


def _text_buffers(text: pa.Array) -> tuple[IntArray, IntArray, _Bytes]:
    """Return where each cell starts, how long it is (0 where null) and the bytes of a string array."""
    _, offsets, content = text.buffers()
    bounds = np.frombuffer(offsets, dtype=np.int32)[text.offset : text.offset + len(text) + 1].astype(np.int64)
    lengths_N = np.diff(bounds)
    if text.null_count:
        lengths_N = np.where(pc.is_valid(text).to_numpy(zero_copy_only=False), lengths_N, 0)
    return bounds[:-1], lengths_N, np.frombuffer(content or b"", dtype=np.uint8)


def _zone_lengths(content: _Bytes, starts: IntArray, length: int) -> IntArray:
    """Return 1 for text that ends with Z, 6 for +hh:mm, 0 for no zone."""
    is_utc = (content[starts + (length - 1)] | 0x20) == ord("z")
    if length < 25:
        return is_utc.astype(np.int64)
    sign = content[starts + (length - 6)]
    return np.where(is_utc, 1, np.where((sign == ord("+")) | (sign == ord("-")), 6, 0))


def _times_of_one_form(content: _Bytes, starts: IntArray, *, n_fraction: int, n_zone: int) -> Times:
    """Return the times of texts that share the places of all their parts; local time where n_zone is 0."""
    is_good = np.ones(len(starts), dtype=np.bool_)

    def character(place: int) -> _Bytes:
        return content[starts + place]

    def number(first: int, n_digits: int) -> IntArray:
        nonlocal is_good
        total = np.zeros(len(starts), dtype=np.int32)
        for place in range(first, first + n_digits):
            digit = character(place) - np.uint8(48)
            is_good &= digit < 10
            total = total * np.int32(10) + digit
        return total.astype(np.int64)

    for place, expected in ((4, "-"), (7, "-"), (13, ":"), (16, ":")):
        is_good &= character(place) == ord(expected)
    separator = character(10)
    is_good &= ((separator | 0x20) == ord("t")) | (separator == ord(" "))
    year, month, day = number(0, 4), number(5, 2), number(8, 2)
    hour, minute, second = number(11, 2), number(14, 2), number(17, 2)
    is_good &= (month >= 1) & (month <= 12) & (day >= 1) & (hour <= 23) & (minute <= 59) & (second <= 59)
    is_known_year = (year >= _FIRST_YEAR) & (year <= _LAST_YEAR)
    place = np.where(is_good & is_known_year, (year - _FIRST_YEAR) * 12 + month - 1, 0)
    is_good &= day <= np.where(is_known_year, _MONTH_DAYS[place], 31)
    time_s = (_MONTH_STARTS[place] + day - 1) * 86400 + hour * 3600 + minute * 60 + second
    time_us = time_s * 10**6
    if n_fraction:
        is_good &= character(19) == ord(".")
        fraction = number(20, n_fraction - 1)
        time_us += fraction * 10 ** (7 - n_fraction) if n_fraction <= 7 else fraction // 10 ** (n_fraction - 7)
    if n_zone == 6:
        at = 19 + n_fraction
        is_good &= character(at + 3) == ord(":")
        zone_hour, zone_minute = number(at + 1, 2), number(at + 4, 2)
        is_good &= (zone_hour <= 23) & (zone_minute <= 59)
        zone_us = (zone_hour * 60 + zone_minute) * (60 * 10**6)
        time_us -= np.where(character(at) == ord("-"), -zone_us, zone_us)
    faults = np.where(is_known_year, np.int8(Fault.NONE), np.int8(Fault.TIME_OUT_OF_RANGE))
    return Times(time_us, np.where(is_good, faults, np.int8(Fault.BAD_TIME)))


def _times_of_local(local_us_N: IntArray, zone: str | None) -> Times:
    """Return UTC times of local ones: the earlier where the clocks were set back, NONEXISTENT_TIME where forward."""
    if zone is None:
        return Times(local_us_N, np.full(len(local_us_N), Fault.NO_ZONE, dtype=np.int8))
    try:
        ZoneInfo(zone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ConfigError(f"log.zone = {zone!r}: expected an IANA zone such as 'UTC' or 'Europe/Berlin'") from None
    faults_N = np.zeros(len(local_us_N), dtype=np.int8)
    if len(local_us_N) == 0:
        return Times(local_us_N, faults_N)
    # Most days have one offset, also the day before and after; only the rows of the others need a look of their own.
    day_N = local_us_N // _DAY_US
    first = int(day_N.min())
    days = np.flatnonzero(np.bincount(day_N - first))
    around = zone_offset_us((days[:, None] + first + np.arange(-1, 3)).ravel() * _DAY_US, zone).reshape(-1, 4)
    offsets = np.zeros(int(days[-1]) + 1, dtype=np.int64)
    offsets[days] = np.where((around == around[:, :1]).all(axis=1), around[:, 0], _MANY_OFFSETS)
    offset_N = offsets[day_N - first]
    time_us_N = local_us_N - offset_N
    rows = np.flatnonzero(offset_N == _MANY_OFFSETS)
    if len(rows):
        time_us_N[rows], faults_N[rows] = _times_near_a_change(local_us_N[rows], zone)
    return Times(time_us_N, faults_N)


def _times_near_a_change(local_us_N: IntArray, zone: str) -> Times:
    """Return UTC times where the zone's offset changes about then: each offset is tried, the earlier time is taken."""
    candidates: list[IntArray] = []
    for there_us in (-_DAY_US, _DAY_US):
        offset_N = zone_offset_us(local_us_N + there_us, zone)
        time_us_N = local_us_N - offset_N
        candidates.append(np.where(zone_offset_us(time_us_N, zone) == offset_N, time_us_N, _NO_TIME))
    earlier_N = np.minimum(*candidates)
    is_skipped_N = earlier_N == _NO_TIME
    faults_N = np.where(is_skipped_N, np.int8(Fault.NONEXISTENT_TIME), np.int8(0))
    return Times(np.where(is_skipped_N, 0, earlier_N), faults_N)
