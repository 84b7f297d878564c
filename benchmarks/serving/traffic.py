"""Realistic requests from the simulated bank's log, and the process that sends them.

What is sent are a log's own events: twenty in a row of some user for `/v1/score`, the next one of a user whose past is
in the store for `/v1/events`. All times are moved back by whole weeks, so that a user's future may be made up here and
still be past for the service.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from serving.load import Job
from serving.servers import Server

EVENTS_PER_SCORE = 20
_BACK = timedelta(weeks=4 * 52)
_DAY = timedelta(days=1)
_COLUMNS = ("type", "amount", "channel", "payee", "device")

Json = dict[str, Any]  # Any: JSON


class LoggedEvent(NamedTuple):
    """One event of the log: when, and its declared columns."""

    ts: datetime
    cells: Json


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a job: one entry a request in due_s, latency_s and status; cpu_s is the server's."""

    n: int
    seconds: float
    cpu_s: float
    own_cpu_s: float
    due_s: list[float]
    latency_s: list[float]
    status: list[int]

    @property
    def n_answered(self) -> int:
        """Return how many requests were answered with 200."""
        return self.status.count(200)

    @property
    def cpu_us(self) -> float:
        """Return the server's CPU for each request, in microseconds."""
        return self.cpu_s / self.n * 1e6

    @property
    def rate(self) -> float:
        """Return how many requests were answered each second."""
        return self.n_answered / self.seconds

    def quantiles_ms(self, *shares: float) -> list[float]:
        """Return some quantiles of the latency of what was answered, in milliseconds."""
        answered = [latency for latency, status in zip(self.latency_s, self.status, strict=True) if status == 200]
        return (np.quantile(answered, shares) * 1000).tolist() if answered else [float("nan")] * len(shares)


def read_users(path: Path) -> dict[str, list[LoggedEvent]]:
    """Return the events of each user of a log, in order of time, moved back."""
    table = pq.read_table(path, columns=["user_id", "ts", *_COLUMNS])
    users: dict[str, list[LoggedEvent]] = {}
    for row in table.to_pylist():
        cells = {name: row[name] for name in _COLUMNS}
        users.setdefault(row["user_id"], []).append(LoggedEvent(row["ts"].astimezone(UTC) - _BACK, cells))
    for events in users.values():
        events.sort(key=lambda event: event.ts)
    return users


def score_bodies(users: Mapping[str, Sequence[LoggedEvent]], n: int) -> tuple[list[bytes], list[bytes]]:
    """Return n bodies of twenty events in a row each, for `/v1/score` and, the same events, for MLflow's server."""
    chance = np.random.default_rng(0)
    able = [user for user, events in users.items() if len(events) >= EVENTS_PER_SCORE]
    bodies: list[bytes] = []
    frames: list[bytes] = []
    for i in range(n):
        user = able[int(chance.integers(len(able)))]
        first = int(chance.integers(len(users[user]) - EVENTS_PER_SCORE + 1))
        events = [
            {"event_id": f"s{i}-{k}", "ts": event.ts.isoformat().replace("+00:00", "Z"), **_present(event.cells)}
            for k, event in enumerate(users[user][first : first + EVENTS_PER_SCORE])
        ]
        bodies.append(_json({"user_id": user, "events": events}))
        columns = ["user_id", "event_id", "ts", *_COLUMNS]
        rows = [[user, *(event.get(name) for name in columns[1:])] for event in events]
        frames.append(_json({"dataframe_split": {"columns": columns, "data": rows}}))
    return bodies, frames


class KnownUsers:
    """Users with a past in the store, who go on: each asked for the next event gives one later than all before."""

    def __init__(self, name: str, users: Sequence[Sequence[LoggedEvent]], n_past: int | None) -> None:
        """Take the logged events of each user, again and again what follows, and how many lie in the past (None: all).

        A past that is longer than the log is the log several times over, a day between: the same user, for years.
        """
        self._name = name
        self._users = users
        self._pasts = [list(events) if n_past is None else _last(events, n_past) for events in users]
        self._next = [past[-1].ts for past in self._pasts]
        self._count = [0] * len(users)

    def table(self) -> pa.Table:
        """Return the past as a log."""
        rows = [
            {"user_id": f"{self._name}-{u}", "event_id": f"{self._name}-{u}-p{k}", "ts": event.ts, **event.cells}
            for u, past in enumerate(self._pasts)
            for k, event in enumerate(past)
        ]
        return pa.Table.from_pylist(rows, schema=_SCHEMA)

    def bodies(self, n: int) -> list[bytes]:
        """Return n bodies of one event each, the users in turn."""
        made: list[bytes] = []
        for i in range(n):
            u = i % len(self._users)
            events, count = self._users[u], self._count[u]
            k = count % len(events)
            self._next[u] += events[k].ts - events[k - 1].ts if k else _DAY
            self._count[u] += 1
            ts = self._next[u].isoformat().replace("+00:00", "Z")
            event = {"event_id": f"{self._name}-{u}-n{count}", "ts": ts, **_present(events[k].cells)}
            made.append(_json({"user_id": f"{self._name}-{u}", "events": [event]}))
        return made


def busiest(users: Mapping[str, Sequence[LoggedEvent]], n: int) -> list[Sequence[LoggedEvent]]:
    """Return the events of the n users with the most events; fewer users stand there several times."""
    ranked = sorted(users.values(), key=len, reverse=True)
    return [ranked[u % len(ranked)] for u in range(n)]


def _last(events: Sequence[LoggedEvent], n: int) -> list[LoggedEvent]:
    """Return the last n events of a user who did all this again and again until the log ends."""
    span = events[-1].ts - events[0].ts + _DAY
    n_rounds = -(-n // len(events))
    whole = [
        LoggedEvent(event.ts - span * before, event.cells) for before in range(n_rounds - 1, -1, -1) for event in events
    ]
    return whole[-n:]


def send(
    server: Server,
    bodies: Sequence[bytes],
    work: Path,
    *,
    connections: int,
    path: str | None = None,
    n_warm: int = 0,
    stages: Sequence[tuple[float, float]] = (),
) -> Result:
    """Return what came of sending the bodies, from a process of its own."""
    lines = work / "bodies.jsonl"
    lines.write_bytes(b"\n".join(bodies))
    job = Job(
        port=server.port,
        path=path or server.path,
        bodies=str(lines),
        connections=connections,
        n_warm=n_warm,
        stages=list(stages),
        pids=server.pids(),
    )
    file = work / "job.json"
    file.write_text(json.dumps(job), encoding="utf-8")
    command = [sys.executable, str(Path(__file__).with_name("load.py")), str(file)]
    sent = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    return Result(**json.loads(sent.stdout))


def _present(cells: Json) -> Json:
    return {name: cell for name, cell in cells.items() if cell is not None}


def _json(tree: Json) -> bytes:
    return json.dumps(tree, separators=(",", ":"), ensure_ascii=False).encode()


_SCHEMA = pa.schema(
    [
        ("user_id", pa.string()),
        ("event_id", pa.string()),
        ("ts", pa.timestamp("us", tz="UTC")),
        ("type", pa.string()),
        ("amount", pa.float64()),
        ("channel", pa.string()),
        ("payee", pa.string()),
        ("device", pa.string()),
    ]
)
