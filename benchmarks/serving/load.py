"""A load generator: `python benchmarks/serving/load.py JOB.json` sends prepared requests and prints what came back.

A process of its own, on uvloop and raw protocols, that makes no request while the clock runs: the bytes are made
before. Closed loop: each connection sends its next request when it has its answer. Open loop: requests are due at
random times of a given rate, whatever the server does, and a latency counts from the time at which a request was due;
a thread sleeps between them, since the timers of an event loop are a millisecond coarse.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypedDict

import uvloop

_GIVEN_UP_S = 15.0  # after the last request was due


class Job(TypedDict):
    """What is asked of one process. bodies: a file, one JSON body a line. stages: [requests a second, seconds] each.

    Without stages it is a closed loop of `n_warm` requests that do not count and then all the others. pids: processes
    whose CPU is read when the count begins and when it ends.
    """

    port: int
    path: str
    bodies: str
    connections: int
    n_warm: int
    stages: list[tuple[float, float]]
    pids: list[int]


class Connection(asyncio.Protocol):
    """One connection, one request at a time; `done` is told the status of each answer, 0 for one that never came."""

    def __init__(self, done: Callable[[Connection, int], None]) -> None:
        self._done = done
        self._transport: asyncio.Transport | None = None
        self._answer = b""
        self._missing = -1  # bytes of the answer that are still to come; -1: its headers are not complete
        self._status = 0
        self.is_waiting = False
        self.due_s = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # uvloop's transport does not inherit

    @property
    def is_open(self) -> bool:
        return self._transport is not None

    def send(self, request: bytes) -> None:
        """Send a request; the connection must be open and not waiting for an answer."""
        assert self._transport is not None
        self.is_waiting = True
        self._answer, self._missing = b"", -1
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        if self._missing < 0:
            self._answer += data
            end = self._answer.find(b"\r\n\r\n")
            if end < 0:
                return
            headers = self._answer[:end].lower()
            start = headers.index(b"content-length:") + 15
            length = int(headers[start:].split(b"\r\n", 1)[0])
            self._status = int(headers[9:12])
            self._missing = end + 4 + length - len(self._answer)
        else:
            self._missing -= len(data)
        if self._missing <= 0:
            self.is_waiting = False
            self._done(self, self._status)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self.is_waiting:
            self.is_waiting = False
            self._done(self, 0)


async def closed_loop(job: Job, requests: Sequence[bytes]) -> dict[str, Any]:  # Any: JSON
    """Return what came of sending all requests, each connection its own share in order."""
    n_warm = job["n_warm"]
    await _closed(job, requests[:n_warm])
    began, cpu = time.monotonic(), cpu_s(job["pids"])
    own = time.process_time()
    statuses, latencies_s = await _closed(job, requests[n_warm:])
    cpu_used = cpu_s(job["pids"]) - cpu
    return {
        "n": len(requests) - n_warm,
        "seconds": time.monotonic() - began,
        "cpu_s": cpu_used,
        "own_cpu_s": time.process_time() - own,
        "due_s": [],
        "latency_s": latencies_s,
        "status": statuses,
    }


async def _closed(job: Job, requests: Sequence[bytes]) -> tuple[list[int], list[float]]:
    if not requests:
        return [], []
    loop = asyncio.get_running_loop()
    finished = loop.create_future()
    n_connections = min(job["connections"], len(requests))
    shares: dict[Connection, Iterator[bytes]] = {}
    statuses: list[int] = []
    latencies_s: list[float] = []
    n_open = n_connections

    def send_next(connection: Connection) -> None:
        nonlocal n_open
        request = next(shares[connection], None)
        if request is None:
            n_open -= 1
            if n_open == 0:
                finished.set_result(None)
            return
        connection.due_s = time.monotonic()
        connection.send(request)

    def done(connection: Connection, status: int) -> None:
        latencies_s.append(time.monotonic() - connection.due_s)
        statuses.append(status)
        if not connection.is_open:
            if not finished.done():
                finished.set_exception(ConnectionError("the server closed a connection"))
            return
        send_next(connection)

    connections = []
    for c in range(n_connections):
        _, connection = await loop.create_connection(lambda: Connection(done), "127.0.0.1", job["port"])
        shares[connection] = iter(requests[c::n_connections])
        connections.append(connection)
    for connection in connections:
        send_next(connection)
    await finished
    for connection in connections:
        if connection._transport is not None:
            connection._transport.close()
    return statuses, latencies_s


async def open_loop(job: Job, requests: Sequence[bytes]) -> dict[str, Any]:  # Any: JSON
    """Return what came of requests at random times, stage after stage."""
    loop = asyncio.get_running_loop()
    offsets_s = due_times(job["stages"])
    idle: deque[Connection] = deque()
    waiting: deque[int] = deque()
    due_s, latencies_s, statuses = [0.0] * len(offsets_s), [-1.0] * len(offsets_s), [0] * len(offsets_s)
    place_of: dict[Connection, int] = {}
    finished = loop.create_future()
    n_left = len(offsets_s)
    origin = 0.0
    opening: set[asyncio.Task[None]] = set()

    def done(connection: Connection, status: int) -> None:
        nonlocal n_left
        place = place_of.pop(connection)
        statuses[place] = status
        latencies_s[place] = time.monotonic() - origin - due_s[place]
        n_left -= 1
        if n_left == 0 and not finished.done():
            finished.set_result(None)
        if connection.is_open:
            idle.append(connection)
            send_waiting()
        else:
            task = loop.create_task(open_one())
            opening.add(task)
            task.add_done_callback(opening.discard)

    async def open_one() -> None:
        _, connection = await loop.create_connection(lambda: Connection(done), "127.0.0.1", job["port"])
        idle.append(connection)
        send_waiting()

    def send_waiting() -> None:
        while waiting and idle:
            connection = idle.pop()
            if not connection.is_open:  # the server closed it while it was idle
                task = loop.create_task(open_one())
                opening.add(task)
                task.add_done_callback(opening.discard)
                continue
            place = waiting.popleft()
            place_of[connection] = place
            connection.send(requests[place % len(requests)])

    def is_due(first: int, last: int) -> None:
        waiting.extend(range(first, last))
        send_waiting()

    def pace() -> None:
        place = 0
        while place < len(offsets_s):
            delay = origin + offsets_s[place] - time.monotonic()
            if delay > 0:
                time.sleep(delay)
            now = time.monotonic() - origin
            first = place
            while place < len(offsets_s) and offsets_s[place] <= now:
                place += 1
            loop.call_soon_threadsafe(is_due, first, place)

    for _ in range(job["connections"]):
        await open_one()
    due_s[:] = offsets_s
    began, cpu, own = time.monotonic(), cpu_s(job["pids"]), time.process_time()
    origin = began
    threading.Thread(target=pace, daemon=True).start()
    total_s = sum(seconds for _, seconds in job["stages"])
    with contextlib.suppress(TimeoutError):  # what has no answer by then counts as not answered
        await asyncio.wait_for(finished, total_s + _GIVEN_UP_S)
    return {
        "n": len(offsets_s),
        "seconds": time.monotonic() - began,
        "cpu_s": cpu_s(job["pids"]) - cpu,
        "own_cpu_s": time.process_time() - own,
        "due_s": [round(due, 5) for due in due_s],
        "latency_s": latencies_s,
        "status": statuses,
    }


def due_times(stages: Sequence[tuple[float, float]]) -> list[float]:
    """Return the seconds at which requests are due: a Poisson process of each stage's rate, the same at every call."""
    chance = random.Random(0)
    times: list[float] = []
    start = 0.0
    for rate, seconds in stages:
        at = start + chance.expovariate(rate)
        while at < start + seconds:
            times.append(at)
            at += chance.expovariate(rate)
        start += seconds
    return times


def cpu_s(pids: Sequence[int]) -> float:
    """Return the CPU seconds that these processes have used, all their threads together (Linux)."""
    # The clock of another process, as clock_getcpuclockid(3) numbers it.
    return sum(time.clock_gettime((~pid << 3) | 2) for pid in pids)


def request_bytes(path: str, body: bytes) -> bytes:
    """Return the bytes of a POST."""
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


def main() -> None:
    """Run the job in a file and print the result as JSON."""
    job: Job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    requests = [request_bytes(job["path"], line) for line in Path(job["bodies"]).read_bytes().splitlines()]
    work = open_loop(job, requests) if job["stages"] else closed_loop(job, requests)
    result = uvloop.run(work)
    json.dump(result, sys.stdout)


if __name__ == "__main__":
    main()
