"""The rules of single values in a request: the verdicts that a log's cells get (`fraud.validation`), one value a time.

A log is checked column by column with Arrow; a request has a few cells, and starting Arrow for them would cost more
than scoring them. A test feeds both the same nasty values.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from datetime import date
from typing import NamedTuple

MAX_CHARACTERS = 256
MAX_SESSION_CHARACTERS = 2 * MAX_CHARACTERS  # {user_id}@{first event, epoch us}
LARGEST_INTEGER = 2**63 - 1
EARLIEST_US = 631_152_000_000_000  # 1990-01-01: before it, a wrong unit or a default is likelier than a true event
_LATEST_US = 7_258_118_400_000_000 - 1  # 2199-12-31
AHEAD_US = 5 * 60 * 10**6  # a sender's clock may be that far ahead of ours

_EPOCH_DAY = date(1970, 1, 1).toordinal()
_DAY_US = 86400 * 10**6
_MINUTES_US = {f"{minute // 60:02}:{minute % 60:02}:": minute * 60 * 10**6 for minute in range(24 * 60)}
_SECONDS_US = {f"{second:02}": second * 10**6 for second in range(60)}
_RFC_3339 = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})[Tt ]([0-9]{2}):([0-9]{2}):([0-9]{2})(?:\.([0-9]{1,9}))?"
    r"(?:([Zz])|([+-])([0-9]{2}):([0-9]{2}))?"
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_MANY_DAYS = 4096


class Fault(NamedTuple):
    """code: why a value is refused, as in a quarantine file; text: what was expected."""

    code: str
    text: str


def text_fault(text: str, max_characters: int = MAX_CHARACTERS) -> Fault | None:
    """Return why an id, type or category may not be `text`: 1 to 256 characters, not blank, no control character."""
    if text.isascii() and text.isprintable() and len(text) <= max_characters and text.strip():
        return None
    if _SURROGATE.search(text):
        return Fault("lone_surrogate", "expected whole characters: half of a surrogate pair is none")
    if not text:
        return Fault("empty", f"expected 1 to {max_characters} characters")
    if not text.strip():
        return Fault("blank", "expected more than white space")
    if len(text) > max_characters:
        return Fault("too_long", f"expected 1 to {max_characters} characters")
    if _CONTROL.search(text):
        return Fault("control_character", "expected no control character")
    return None


def number_fault(value: float, *, lowest: float, largest: float) -> Fault | None:
    """Return why a number is refused; lowest = 0 for an amount that may not be negative."""
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        return Fault("not_finite", "expected a finite number")
    if lowest == 0.0 and number < 0.0:
        return Fault("negative", "expected a number that is not negative")
    if abs(number) > largest:
        return Fault("too_large", f"expected a number of at most {largest:g}")
    return None


def integer_fault(value: int) -> Fault | None:
    """Return why an integer is refused."""
    return None if abs(value) <= LARGEST_INTEGER else Fault("bad_integer", "expected an integer of 64 bits")


class TimeReader:
    """Reads RFC 3339 times; days that were read are remembered, since requests are about the last few."""

    def __init__(self) -> None:
        self._days_us: dict[str, int] = {}

    def times_us(self, texts: Iterable[str]) -> list[int] | None:
        """Return the times of texts, None if one of them is no time."""
        days_us, times_us = self._days_us, list[int]()
        for text in texts:
            day_us, minute_us = days_us.get(text[:11]), _MINUTES_US.get(text[11:17])
            second_us, fraction = _SECONDS_US.get(text[17:19]), text[19:]
            if fraction != "Z" and second_us is not None:
                digits = fraction[1:-1]
                if fraction[:1] == "." and fraction[-1:] == "Z" and digits.isdecimal() and digits.isascii():
                    second_us = second_us + int(digits.ljust(6, "0")[:6]) if len(digits) <= 9 else None
                else:
                    second_us = None
            if day_us is None or minute_us is None or second_us is None:
                time_us = self.time_us(text)
                if not isinstance(time_us, int):
                    return None
                times_us.append(time_us)
            else:
                times_us.append(day_us + minute_us + second_us)
        return times_us

    def time_us(self, text: str) -> int | Fault:
        """Return microseconds since 1970 UTC, finer ones floored, or why the text is no time with a zone."""
        time_us = _time_us(text)
        if isinstance(time_us, int) and text.endswith("Z"):
            if len(self._days_us) >= _MANY_DAYS:  # a replay passes through years of them
                self._days_us.clear()
            self._days_us[text[:11]] = time_us - time_us % _DAY_US
        return time_us


def _time_us(text: str) -> int | Fault:
    found = _RFC_3339.fullmatch(text)
    if found is None:
        return Fault("bad_time", "expected an RFC 3339 time with a zone, such as 2026-11-20T10:00:00Z")
    year, month, day, hour, minute, second = (int(part) for part in found.group(1, 2, 3, 4, 5, 6))
    zone_hour, zone_minute = int(found[10] or 0), int(found[11] or 0)
    try:
        # Years that a date cannot have (0000) are out of range anyway; the month and the day are judged in a leap year.
        days = date(year if year else 2000, month, day).toordinal() - _EPOCH_DAY
    except ValueError:
        return Fault("bad_time", "expected a day that exists")
    if hour > 23 or minute > 59 or second > 59 or zone_hour > 23 or zone_minute > 59:
        return Fault("bad_time", "expected a time of day, up to 23:59:59, and a zone of less than a day")
    if found[8] is None and found[9] is None:
        return Fault("no_zone", "expected a time with a zone: Z or +hh:mm")
    time_us = (days * 86400 + hour * 3600 + minute * 60 + second) * 10**6
    time_us += int((found[7] or "0").ljust(6, "0")[:6])
    zone_us = (zone_hour * 60 + zone_minute) * 60 * 10**6
    time_us += zone_us if found[9] == "-" else -zone_us
    if year == 0 or not 0 <= time_us <= _LATEST_US:
        return Fault("time_out_of_range", "expected a time from 1990 on")
    return time_us


def time_fault(time_us: int, now_us: int) -> Fault | None:
    """Return why an event of that time is not taken now: before 1990, or over 5 minutes ahead of the clock."""
    if time_us < EARLIEST_US:
        return Fault("time_out_of_range", "expected a time from 1990 on")
    if time_us > now_us + AHEAD_US:
        return Fault("time_in_the_future", "expected a time at most 5 minutes ahead of the clock")
    return None
