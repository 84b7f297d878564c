"""Between the routes and the ticks: requests wait in a queue, one thread runs tick after tick, answers go back.

A tick takes all that waits (`service.waiting`); what arrives while it runs forms the next one. A lone request is scored
at once, and under load the ticks grow by themselves. This file knows no SQL and no model.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from service.breaker import BREAK_S, Breaker, store_down
from service.clock import Clock
from service.inquiries import Inquiries
from service.logs import pairs
from service.memory import give_back_memory
from service.models import ModelHolder
from service.offers import offer
from service.problems import Problem, problem_bytes
from service.schemas import EventsRequest, LabelRequest, Schema, ScoreRequest
from service.shadow import Shadow
from service.state.store import StoreDown
from service.ticks import Outcome, Ticker
from service.waiting import Item, Waiting

_log = logging.getLogger(__name__)
KEEP_S = 5.0  # between two looks at what is old in the store, and two writings of what a challenger counted


class Engine:
    """Answers requests. fails_open: what is scored while the store is away is answered as degraded, else refused."""

    def __init__(
        self, holder: ModelHolder, ticker: Ticker, clock: Clock, *, fails_open: bool, shadow: Shadow | None
    ) -> None:
        """Take the bundle, the ticks and the clock. shadow: a challenger that scores what was answered."""
        self.holder = holder
        self.ticker = ticker
        self.clock = clock
        self.inquiries = Inquiries(holder, ticker, clock)
        self._fails_open = fails_open
        self._shadow = shadow
        self._breaker = Breaker()
        self._waiting = Waiting(ticker.n_users)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._answered: list[tuple[asyncio.Future[bytes], bytes | Exception]] = []
        self._kept_at = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="ticks", daemon=True)

    def start(self) -> None:
        """Begin to run ticks."""
        self._thread.start()

    def stop(self) -> None:
        """Run what waits and end; nothing may be asked afterwards."""
        self._waiting.stop()
        self._thread.join()
        if self._shadow is not None:
            self._shadow.stop()
            self._flush_shadow(self._shadow)
        self.ticker.store.close()

    @property
    def schema(self) -> Schema:
        """Return the decoders of the bundle that answers now."""
        return self.holder.current.schema

    def now_us(self) -> int:
        """Return the time after which an event is in the future."""
        return self.clock.limit_us()

    def readiness(self) -> tuple[bool, dict[str, Any]]:  # Any: JSON
        """Return whether requests are answered as they should be, and what speaks for it."""
        state = {"store": "up" if self._breaker.is_up else "down", "model": self.holder.current.version}
        return self._thread.is_alive() and (
            self._breaker.is_up or self._fails_open
        ) and not self._waiting.is_stopping, state

    async def score(self, request: ScoreRequest, deadline: float | None) -> bytes:
        """Return the answer to a stateless request; raises Problem."""
        return await self._asked(request, deadline)

    async def score_batch(self, items: Sequence[ScoreRequest | Problem], deadline: float | None) -> bytes:
        """Return {"results": [answer or problem]} in the order of the items."""
        good = [item for item in items if not isinstance(item, Problem)]
        asked = (self._asked(item, deadline) for item in good)
        answers = await asyncio.gather(*asked, return_exceptions=True)
        results: list[bytes] = []
        left = iter(answers)
        for item in items:
            answer = item if isinstance(item, Problem) else next(left)
            if isinstance(answer, Problem):
                results.append(problem_bytes(answer))
            elif isinstance(answer, BaseException):
                raise answer
            else:
                results.append(answer)
        return b'{"results":[' + b",".join(results) + b"]}"

    async def events(self, request: EventsRequest, deadline: float | None) -> bytes:
        """Return the answer to events, which are then committed; raises Problem."""
        return await self._asked(request, deadline)

    async def label(self, request: LabelRequest) -> bytes:
        """Return {"label_id"} of a label that is then committed."""
        return await self._asked(lambda: self.inquiries.label(request), None)

    async def decision(self, decision_id: str) -> bytes:
        """Return what was decided under an id, and from what; raises Problem 404, 410."""
        return await self._asked(lambda: self.inquiries.decision(decision_id), None)

    async def timeline(self, user_id: str) -> bytes:
        """Return the stored events of a user with the scores they have now; raises Problem 404."""
        return await self._asked(lambda: self.inquiries.timeline(user_id), None)

    async def erase(self, user_id: str) -> bytes:
        """Delete all that is kept of a user."""
        return await self._asked(lambda: self.inquiries.erase(user_id), None)

    async def model(self) -> bytes:
        """Return what is said of the bundle that answers."""
        return self.inquiries.model()

    async def _asked(
        self, request: ScoreRequest | EventsRequest | Callable[[], bytes], deadline: float | None
    ) -> bytes:
        self._loop = asyncio.get_running_loop()
        future: asyncio.Future[bytes] = self._loop.create_future()
        self._waiting.put(Item(request, future, deadline))
        return await future

    def _run(self) -> None:
        n_answered, took_s = 0, 0.0
        while True:
            idle_s = KEEP_S if self._breaker.is_up else BREAK_S
            items = self._waiting.take(idle_s=idle_s, n_answered=n_answered, took_s=took_s)
            if not items and self._waiting.is_stopping:
                return
            began_s = time.monotonic()
            self._tick(items)
            n_answered, took_s = len(items), time.monotonic() - began_s
            # A replica that is not ready is sent no requests: it has to find out by itself that the store is back.
            is_tried = not self._breaker.is_up and not items and self._breaker.lets_pass
            if is_tried or (self._breaker.is_up and time.monotonic() - self._kept_at > KEEP_S):
                self._aside(self._keep_house)

    def _tick(self, items: Sequence[Item]) -> None:
        now = time.monotonic()
        begun: list[Item] = []
        for item in items:
            if item.deadline is not None and now > item.deadline:
                late = Problem(503, "deadline", detail="the deadline passed before the work began", retry_after_s=1)
                self._answered.append((item.future, late))
            elif not item.future.cancelled():
                begun.append(item)
        scored = [item for item in begun if not callable(item.request)]
        if scored:
            self._score(scored)
        self._send()
        if scored and self._shadow is not None and not self._waiting and self._breaker.is_up:
            self._aside(partial(offer, self._shadow, self.holder.current, self.ticker.offered, self.ticker.store))
        for item in begun:
            if callable(item.request):
                self._answered.append((item.future, self._inquired(item.request)))
                self._send()

    def _send(self) -> None:
        """Hand what is answered to the loop, all of it at once."""
        if self._answered and self._loop is not None:
            self._loop.call_soon_threadsafe(_deliver, self._answered)
            self._answered = []

    def _score(self, items: Sequence[Item]) -> None:
        scores = [item for item in items if isinstance(item.request, ScoreRequest)]
        events = [item for item in items if isinstance(item.request, EventsRequest)]
        try:
            outcomes = self._outcomes(
                [item.request for item in scores if isinstance(item.request, ScoreRequest)],
                [item.request for item in events if isinstance(item.request, EventsRequest)],
            )
        except Exception as error:  # noqa: BLE001 - a fault of one request must not fail those that share its tick
            if len(items) > 1:
                for item in items:
                    self._score([item])
                return
            _log.exception(pairs("tick_failed"))
            self._answered.append((items[0].future, error))
            return
        self._answered += zip((item.future for item in (*scores, *events)), outcomes, strict=True)

    def _outcomes(self, scores: Sequence[ScoreRequest], events: Sequence[EventsRequest]) -> list[Outcome]:
        served = self.holder.current
        self.clock.saw(max(row.time_us for request in (*scores, *events) for row in request.events))
        if self._breaker.lets_pass:
            try:
                score_outcomes, event_outcomes = self.ticker.run(served, scores, events)
                self._breaker.worked()
                return [*score_outcomes, *event_outcomes]
            except StoreDown as error:
                if self._breaker.is_up:
                    _log.warning(pairs("store_down", reason=error))
                self._breaker.failed()
        if not self._fails_open:
            return [store_down() for _ in (*scores, *events)]
        stateless = [*scores, *(ScoreRequest(request.user_id, request.events, request.explain) for request in events)]
        return self.ticker.score_without_store(served, stateless)

    def _inquired(self, work: Callable[[], bytes]) -> bytes | Exception:
        try:
            if not self._breaker.lets_pass:
                return store_down()
            answer = work()
            self._breaker.worked()
            return answer
        except StoreDown:
            self._breaker.failed()
            return store_down()
        except Exception as error:  # noqa: BLE001 - a fault of one request must not end the thread that serves all
            if not isinstance(error, Problem):
                _log.exception(pairs("inquiry_failed"))
            return error

    def _aside(self, work: Callable[[], None]) -> None:
        """Do what nobody waits for."""
        try:
            work()
        except StoreDown:
            self._breaker.failed()
        except Exception:  # noqa: BLE001 - as above: without this thread no request is ever answered again
            _log.exception(pairs("aside_failed"))

    def _keep_house(self) -> None:
        self._kept_at = time.monotonic()
        self.ticker.store.prune(self.clock.wall_us())
        self._breaker.worked()
        if self._shadow is not None:
            self._flush_shadow(self._shadow)
        give_back_memory()  # an explanation leaves 3 to 5 MB between what lives on; all of them together 20

    def _flush_shadow(self, shadow: Shadow) -> None:
        rows = shadow.take_rows()
        try:
            if rows:
                self.ticker.store.shadow_add(rows)
        except StoreDown:
            shadow.give_back_rows(rows)
            raise


def _deliver(answered: Sequence[tuple[asyncio.Future[bytes], bytes | Exception]]) -> None:
    """Let those who asked go on; whoever left meanwhile is passed over."""
    for future, outcome in answered:
        if future.done():
            continue
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
