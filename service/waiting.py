"""Requests that wait for a tick, and how many of them the next one takes.

A lone request is taken at once. Where some wait already when a tick ends, the next one gives those just answered a
moment to come again (at most a quarter of that tick, and a millisecond), or two halves of the callers would take turns
for ever: at 8 connections ticks of 7 instead of 4, a quarter less CPU a request.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from service.problems import Problem
from service.schemas import EventsRequest, ScoreRequest

MAX_TICK_EVENTS = 1000  # events of one tick: what bounds how long it lasts; larger ones cost no less a request
_LINGER, _LINGER_S = 0.25, 0.001  # how long a tick waits for those just answered: a share of the last one, at most
_NEVER = 1 << 60


class Item(NamedTuple):
    """A request that waits: to be scored, or a call that asks the store. deadline: monotonic seconds."""

    request: ScoreRequest | EventsRequest | Callable[[], bytes]
    future: asyncio.Future[bytes]
    deadline: float | None


class Waiting:
    """What the loop puts in and the thread of the ticks takes out. most_users: of one tick."""

    def __init__(self, most_users: int) -> None:
        """Take how many different users one tick may have."""
        self.is_stopping = False
        self._most_users = most_users
        self._items: deque[Item] = deque()
        self._changed = threading.Condition()
        self._wanted = _NEVER  # how many must wait for the thread to be woken; _NEVER while a tick runs

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: Item) -> None:
        """Let a request wait; raises Problem 503 once the service stops."""
        with self._changed:
            if self.is_stopping:
                raise Problem(503, "stopping", detail="this replica is stopping; ask another", retry_after_s=1)
            self._items.append(item)
            if len(self._items) >= self._wanted:
                self._changed.notify()

    def stop(self) -> None:
        """Take no more; what waits is still taken out."""
        with self._changed:
            self.is_stopping = True
            self._changed.notify()

    def take(self, *, idle_s: float, n_answered: int, took_s: float) -> list[Item]:
        """Return what the next tick takes; empty where nothing came within idle_s, or all is taken and it stops.

        n_answered, took_s: how many the last tick answered, and how long it took.
        """
        with self._changed:
            if not self._items:
                self._wait_for(1, idle_s)
            elif n_answered:
                # Who was just answered is likely to ask again, and two ticks cost far more than one of both.
                self._wait_for(len(self._items) + n_answered, min(took_s * _LINGER, _LINGER_S))
            return self._taken()

    def _wait_for(self, n: int, timeout_s: float) -> None:
        self._wanted = n
        self._changed.wait_for(lambda: len(self._items) >= n or self.is_stopping, timeout_s)
        self._wanted = _NEVER

    def _taken(self) -> list[Item]:
        """Return some items: of each user the first request only, so that they are answered in order."""
        items: list[Item] = []
        later: list[Item] = []
        users: set[str] = set()
        n_events = 0
        while self._items and n_events < MAX_TICK_EVENTS and len(users) < self._most_users:
            item = self._items.popleft()
            if isinstance(item.request, EventsRequest):
                if item.request.user_id in users:
                    later.append(item)
                    continue
                users.add(item.request.user_id)
            n_events += len(item.request.events) if not callable(item.request) else 1
            items.append(item)
        self._items.extendleft(reversed(later))
        return items
