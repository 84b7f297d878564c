"""Whether the store is asked: one that was away is left alone for a moment, so that nobody waits for it in vain."""

from __future__ import annotations

import time

from service.problems import Problem

BREAK_S = 0.5


class Breaker:
    """Opens when the store was away, lets one try pass after a moment, closes when that worked."""

    def __init__(self) -> None:
        self.is_up = True
        self._tried_from = 0.0

    def failed(self) -> None:
        """Take note that the store was away."""
        self._tried_from = time.monotonic() + BREAK_S
        self.is_up = False

    def worked(self) -> None:
        """Take note that the store answered."""
        self.is_up = True

    @property
    def lets_pass(self) -> bool:
        """Return whether the store is asked now."""
        return self.is_up or time.monotonic() >= self._tried_from


def store_down() -> Problem:
    """Return what is answered while the store is away."""
    return Problem(503, "store_down", detail="the state store is away; nothing was written", retry_after_s=1)
