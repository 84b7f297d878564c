"""The service's clocks: the wall's, or for a replay the newest event of the log."""

from __future__ import annotations

import time
from typing import Literal

_END_US = 7_258_118_400 * 10**6  # the end of 2199: no event is later


class Clock:
    """kind "wall": now is now. kind "log": now is the time of the newest event seen, the arriving one included."""

    def __init__(self, kind: Literal["wall", "log"]) -> None:
        """Take which clock tells what is late, known and in the future."""
        self._kind = kind
        self._newest_us = 0

    def wall_us(self) -> int:
        """Return the time by the wall's clock, in microseconds since 1970: what stored rows are dated with."""
        return time.time_ns() // 1000

    def saw(self, time_us: int) -> None:
        """Take note of the time of an event that came."""
        self._newest_us = max(self._newest_us, time_us)

    def arrival_us(self) -> int:
        """Return when something that comes now is taken to have come."""
        return self.wall_us() if self._kind == "wall" else self._newest_us

    def limit_us(self) -> int:
        """Return the time that an event may be little ahead of."""
        return self.wall_us() if self._kind == "wall" else _END_US
