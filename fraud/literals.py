"""How a value stands in TOML text: durations, texts, arrays and tables, written so that `tomllib` reads them back."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import cast

_UNITS_US = {"s": 10**6, "m": 60 * 10**6, "h": 3600 * 10**6, "d": 86400 * 10**6}
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def duration_us(text: object) -> int:
    """Return the microseconds of a duration such as "90s", "30m", "12h" or "7d"; raise ValueError for anything else."""
    found = re.fullmatch(r"([0-9]{1,6})(s|m|h|d)", text) if isinstance(text, str) else None
    if found is None:
        raise ValueError('expected a duration such as "90s", "30m", "12h" or "7d"')
    return int(found[1]) * _UNITS_US[found[2]]


def duration_text(time_us: int) -> str:
    """Return the duration as `duration_us` reads it, in the largest unit that gives a whole number."""
    unit, size = next((u, s) for u, s in reversed(_UNITS_US.items()) if time_us % s == 0)
    return f"{time_us // size}{unit}"


def toml_value(value: object) -> str:
    """Return the TOML text of a string, number, truth value, tuple, list or mapping, on one line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, tuple | list):
        return "[" + ", ".join(toml_value(one) for one in cast("tuple[object, ...]", value)) + "]"
    if isinstance(value, Mapping):
        pairs = cast("Mapping[str, object]", value).items()
        return "{ " + ", ".join(f"{toml_key(key)} = {toml_value(one)}" for key, one in pairs) + " }"
    return repr(value)


def toml_key(key: str) -> str:
    """Return the key, in quotes where it could not stand bare."""
    return key if _BARE_KEY.fullmatch(key) else toml_value(key)
