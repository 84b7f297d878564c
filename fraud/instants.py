"""Times as a configuration writes them: RFC 3339 with a zone outside, microseconds since 1970 inside."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from fraud.config import SplitConfig
from fraud.errors import ConfigError

DAY_US = 86_400_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def instant_us(name: str, text: str) -> int:
    """Return an RFC 3339 time in microseconds since 1970; raise ConfigError, naming the setting, for another text."""
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        instant = None
    if instant is None or instant.tzinfo is None:
        raise ConfigError(f'{name} = {text!r}: expected a time with a zone, such as "2026-03-01T00:00:00Z"')
    return (instant - _EPOCH) // timedelta(microseconds=1)


def instant_text(time_us: int) -> str:
    """Return a time as RFC 3339 text in UTC that `instant_us` reads back exactly."""
    return (_EPOCH + timedelta(microseconds=time_us)).isoformat().replace("+00:00", "Z")


def as_of(split: SplitConfig) -> int | None:
    """Return the time, in microseconds, from which on nothing is read; None where all is.

    Raises ConfigError for a time that is not RFC 3339 with a zone.
    """
    return None if split.as_of is None else instant_us("split.as_of", split.as_of)
