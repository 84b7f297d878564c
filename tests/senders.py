"""Callers that send events of their users and repeat a third of what they send, as networks make callers do."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from tests.ledger import Ledger
from tests.serving import BUSY, Answer, Caller, HasPort, Unanswered

_TYPES = ("login", "view_account", "add_payee", "transfer_out", "receive_transfer", "change_device")
_REPEATED = 0.3
_OF_SHARED = 0.25  # of the requests, where a sender has users of its own too
_FASTER = 2000  # a day passes in 43 s for the users that senders share: so their sessions end
_PAUSE_S = 0.02


class Sender:
    """One caller: its own users in order, and users it shares with others. One thread at a time runs it.

    counts: answers by status, "silence" where there was none.
    """

    def __init__(
        self, server: HasPort, ledger: Ledger, *, name: str, shared: Sequence[str] = (), n_users: int = 4
    ) -> None:
        """Take who is asked and where it is noted. shared: users whose events other senders send too."""
        self.counts: Counter[int | str] = Counter()
        self._server, self._ledger, self._name = server, ledger, name
        self._random = random.Random(name)
        self._callers = [Caller(server), Caller(server)]
        self._users = [f"{name}-{n}" for n in range(n_users)]
        self._shared = list(shared)
        self._now = dict.fromkeys(self._users, ledger.earliest)
        self._n_sent = 0
        self._owed: list[dict[str, Any]] = []  # sent, and not answered yet
        self._before: list[dict[str, Any]] = []  # answered, some of which are sent again

    def run(self, ends: threading.Event) -> None:
        """Send until `ends` is set or nobody answers; what was not answered is sent first of all the next time."""
        while not ends.is_set():
            try:
                self._turn()
            except Unanswered:
                self.counts["silence"] += 1
                return

    def run_on(self, ends: threading.Event) -> None:
        """Send until `ends` is set, whether anybody answers or not."""
        while not ends.is_set():
            self.run(ends)
            time.sleep(_PAUSE_S)

    def settle(self, *, for_s: float = 20.0) -> None:
        """Send what is owed until it is answered."""
        until = time.monotonic() + for_s
        while self._owed and time.monotonic() < until:
            try:
                self._pay()
            except Unanswered:
                time.sleep(_PAUSE_S)
        assert not self._owed, f"{len(self._owed)} requests were never answered"

    def close(self) -> None:
        """Close the connections."""
        for caller in self._callers:
            caller.close()

    def _turn(self) -> None:
        if self._owed:
            self._pay()
            return
        request = self._request()
        self._ledger.note_sent(request)
        self._owed.append(request)
        chance = self._random.random()
        if chance < _REPEATED / 3:
            self._pay_twice_at_once()
            return
        self._pay()
        if chance < _REPEATED and self._before:
            self._noted(self._again(), None)

    def _request(self) -> dict[str, Any]:
        if not self._users or (self._shared and self._random.random() < _OF_SHARED):
            # Several senders tell of it in any order: late ones are put in their place.
            passed = timedelta(seconds=time.monotonic() - self._ledger.began) * _FASTER
            n_events = self._random.choice((1, 1, 2))
            return self._with_events(self._random.choice(self._shared), self._ledger.earliest + passed, n_events)
        user = self._random.choice(self._users)
        self._now[user] += timedelta(seconds=self._random.choice((1, 20, 300, 2500)))
        return self._with_events(user, self._now[user], self._random.choice((1, 1, 1, 3)))

    def _with_events(self, user: str, at: datetime, n_events: int) -> dict[str, Any]:
        events: list[dict[str, Any]] = []
        for n in range(n_events):
            self._n_sent += 1
            events.append(
                {
                    "event_id": f"{self._name}-e{self._n_sent}",
                    "type": self._random.choice(_TYPES),
                    "ts": (at + timedelta(milliseconds=n)).isoformat(),
                    "amount": self._random.choice((None, 10.0, 990.5)),
                    "channel": "web",
                    "payee": f"p{self._random.randrange(30)}",
                }
            )
        return {"user_id": user, "events": events}

    def _pay(self) -> None:
        request = self._owed[0]
        self._noted(request, self._callers[0].ask("POST", "/v1/events", request))

    def _pay_twice_at_once(self) -> None:
        request = self._owed[0]
        try:
            for caller in self._callers:
                caller.send("POST", "/v1/events", request)
            for caller in self._callers:
                self._noted(request, caller.receive())
        except OSError as error:
            self.close()
            raise Unanswered(repr(error)) from None

    def _again(self) -> dict[str, Any]:
        """Return events of one user that were answered before, from two requests where there are two."""
        first = self._random.choice(self._before)
        second = self._random.choice(self._before)
        events = list(first["events"])
        if second is not first and second["user_id"] == first["user_id"]:
            events += second["events"]
        return {"user_id": first["user_id"], "events": events}

    def _noted(self, request: dict[str, Any], answer: Answer | None) -> None:
        if answer is None:
            answer = self._callers[0].ask("POST", "/v1/events", request)
        self.counts[answer.status] += 1
        if answer.status == 200:
            told = answer.json
            self._ledger.note_answer(request, told)
            self.counts["degraded"] += told["degraded"]
            is_done = not told["degraded"]
        else:
            # A late event of a user that others went on with may have become too late.
            is_done = answer.status == 409 and answer.json["code"] == "too_late"
            assert is_done or answer.status in BUSY, answer
            if not is_done:
                time.sleep(_PAUSE_S)
        if is_done and request in self._owed:
            self._owed.remove(request)
            if answer.status == 200:
                self._before.append(request)
            else:
                self._ledger.note_refused(request)
