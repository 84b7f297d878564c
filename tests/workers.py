"""A process of the service without its edge and its thread: a store, ticks and inquiries, driven call by call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from fraud.scoring import Scorer
from service.clock import Clock
from service.inquiries import Inquiries
from service.models import ModelHolder
from service.schemas import EventsRequest, ScoreRequest
from service.state.sql import SqlStore
from service.state.sqlite import SqliteDatabase
from service.state.store import Tick
from service.ticks import Outcome, Ticker


class InterruptedStore(SqlStore):
    """A store before whose next write something else happens, as in another process."""

    before_write: Callable[[], None] | None = None

    def write(self, tick: Tick) -> frozenset[str]:
        work, self.before_write = self.before_write, None
        if work is not None:
            work()
        return super().write(tick)


class Worker:
    """One of several on a SQLite file, all with one clock."""

    def __init__(self, path: Path, holder: ModelHolder, clock: Clock, *, n_users: int) -> None:
        """Open the file. n_users: how many the worker remembers at most."""
        database = SqliteDatabase(str(path), timeout_s=10)
        database.prepare(created_us=1, may_create=True)
        self.store = InterruptedStore(database, now_us=clock.wall_us)
        self.holder = holder
        self.ticker = Ticker(self.store, n_users=n_users, now_us=clock.wall_us)
        self.inquiries = Inquiries(holder, self.ticker, clock)
        self._clock = clock

    @property
    def scorer(self) -> Scorer:
        """Return what scores now."""
        return self.holder.current.bundle.scorer

    def events(self, requests: Sequence[EventsRequest]) -> list[Outcome]:
        """Return what one tick answers."""
        self._clock.saw(max(row.time_us for request in requests for row in request.events))
        return self.ticker.run(self.holder.current, [], requests)[1]

    def score(self, request: ScoreRequest) -> Outcome:
        """Return what one tick answers to a request without a past."""
        self._clock.saw(max(row.time_us for row in request.events))
        return self.ticker.run(self.holder.current, [request], [])[0][0]
