"""More requests than a service can answer: an open loop that sends at a rate, whatever comes back and when.

One thread, many connections, one request at a time on each. It stands for independent callers: they do not wait for one
another, so a slow service gets no fewer requests.
"""

from __future__ import annotations

import json
import selectors
import socket
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from tests.serving import HasPort

_PAUSE_S = 0.001


@dataclass(slots=True)
class Tally:
    """What came of a flood. unsent: what found no free connection; answers: (request, answer) with status 200.

    sorry: answers that say "come again" and not when. seconds: how long it took.
    """

    statuses: Counter[int] = field(default_factory=Counter)
    answers: list[tuple[dict[str, Any], Any]] = field(default_factory=list)
    sorry: int = 0
    broken: int = 0
    unsent: int = 0
    seconds: float = 0.0

    @property
    def per_s(self) -> float:
        """Return the answers with status 200 a second."""
        return self.statuses[200] / self.seconds


class Flood:
    """Connections to a server, kept open from one flood to the next."""

    def __init__(self, server: HasPort, *, n_connections: int) -> None:
        """Connect."""
        self._selector = selectors.DefaultSelector()
        self._waiting: dict[socket.socket, tuple[dict[str, Any], bytes]] = {}
        self._free: list[socket.socket] = []
        self._n_sent = 0
        self._server = server
        for _ in range(n_connections):
            self._connect()

    def close(self) -> None:
        """Close all connections."""
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]  # each is a socket
        self._selector.close()

    def run(self, *, for_s: float, per_s: float = float("inf")) -> Tally:
        """Return what came of sending so many a second (as many as there are connections: a closed loop) for a time."""
        tally = Tally()
        began = time.monotonic()
        n_due = 0
        while (now := time.monotonic()) < began + for_s:
            if per_s == float("inf"):
                n_due += len(self._free)
            else:
                n_due = int((now - began) * per_s) - tally.unsent
            while self._n_sent < n_due and self._free:
                self._send(self._free.pop())
            if per_s != float("inf") and self._n_sent < n_due:
                tally.unsent += n_due - self._n_sent
            self._receive(tally, wait_s=_PAUSE_S)
        tally.seconds = time.monotonic() - began
        until = time.monotonic() + 30
        while self._waiting and time.monotonic() < until:
            self._receive(tally, wait_s=0.1)
        self._n_sent = 0
        return tally

    def _connect(self) -> None:
        opened = socket.create_connection(("127.0.0.1", self._server.port), timeout=10)
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._selector.register(opened, selectors.EVENT_READ)
        self._free.append(opened)

    def _send(self, used: socket.socket) -> None:
        self._n_sent += 1
        name = f"f{time.monotonic_ns()}"
        event = {"event_id": name, "type": "login", "ts": "2026-01-01T10:00:00Z", "channel": "web"}
        request = {"user_id": name, "events": [event]}
        body = json.dumps(request).encode()
        head = f"POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        used.sendall(f"{head}\r\n\r\n".encode() + body)
        self._waiting[used] = (request, b"")

    def _receive(self, tally: Tally, *, wait_s: float) -> None:
        for key, _ in self._selector.select(wait_s):
            used = key.fileobj
            assert isinstance(used, socket.socket)
            try:
                received = used.recv(65536)
            except OSError:
                received = b""
            if not received:
                tally.broken += used in self._waiting
                self._waiting.pop(used, None)
                self._selector.unregister(used)
                used.close()
                if used in self._free:
                    self._free.remove(used)
                self._connect()
                continue
            request, before = self._waiting[used]
            head, blank, body = (before + received).partition(b"\r\n\r\n")
            length = next(
                (int(line[15:]) for line in head.split(b"\r\n") if line[:15].lower() == b"content-length:"), 0
            )
            if not blank or len(body) < length:
                self._waiting[used] = (request, before + received)
                continue
            del self._waiting[used]
            self._free.append(used)
            status = int(head[9:12])
            tally.statuses[status] += 1
            if status == 200:
                tally.answers.append((request, json.loads(body)))
            elif b"retry-after: " not in head.lower():
                tally.sorry += 1
