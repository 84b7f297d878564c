"""An engine without a model or a store: answers of the right shape, at once, for tests of the HTTP edge.

`python -m tests.fake_engine PORT [JSON of limits and keys]` serves it; the port that was taken is printed.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from fraud.config import Config, parse_config
from fraud.rows import EventRow
from service.app import create_app
from service.auth import Keys
from service.limits import Limits, Load
from service.logs import configure_logs
from service.metrics import Metrics
from service.problems import Problem, problem_bytes
from service.schemas import EventsRequest, LabelRequest, Schema, ScoreRequest, schema_of
from service.server import listen, server_of

SIMULATED = """
[log]
event_id = "event_id"
[fields]
amount = "amount"
categorical = ["channel"]
entity = ["payee", "device"]
"""
_MODEL = {"name": "fake", "version": "1", "sha256": "0" * 64}


def simulated_config(text: str = SIMULATED) -> Config:
    """Return the configuration of the simulated bank, as far as requests go."""
    return parse_config(text, source="test", root=Path())


class FakeEngine:
    """delay_s: how long a score takes; error: what is raised in its place; is_ready: what /readyz tells."""

    def __init__(self, config: Config, *, delay_s: float = 0.0) -> None:
        self.schema: Schema = schema_of(config)
        self.delay_s = delay_s
        self.error: Exception | None = None
        self.is_ready = True
        self.seen: list[ScoreRequest | EventsRequest | LabelRequest | str] = []
        self.deadlines: list[float | None] = []
        self._encoder = msgspec.json.Encoder()

    def now_us(self) -> int:
        return time.time_ns() // 1000

    def readiness(self) -> tuple[bool, dict[str, Any]]:
        return self.is_ready, {"store": "up", "model": "1"}

    async def score(self, request: ScoreRequest, deadline: float | None) -> bytes:
        return await self._scored(request, deadline)

    async def events(self, request: EventsRequest, deadline: float | None) -> bytes:
        return await self._scored(request, deadline)

    async def score_batch(self, items: Sequence[ScoreRequest | Problem], deadline: float | None) -> bytes:
        answers = [
            problem_bytes(item) if isinstance(item, Problem) else await self._scored(item, deadline) for item in items
        ]
        return b'{"results":[' + b",".join(answers) + b"]}"

    async def label(self, request: LabelRequest) -> bytes:
        self.seen = [request]
        return b'{"label_id":"5f"}'

    async def decision(self, decision_id: str) -> bytes:
        self.seen = [decision_id]
        if decision_id != "1-1":
            raise Problem(404, "not_found", detail="there is no decision of this id")
        return b'{"decision_id":"1-1","at":"2026-11-20T10:00:00Z"}'

    async def timeline(self, user_id: str) -> bytes:
        self.seen = [user_id]
        return self._encoder.encode({"user_id": user_id, "n_events": 0, "events": [], "model": _MODEL})

    async def erase(self, user_id: str) -> bytes:
        self.seen = [user_id]
        return b'{"erased":0}'

    async def model(self) -> bytes:
        return self._encoder.encode({**_MODEL, "policy_version": "p1"})

    async def _scored(self, request: ScoreRequest | EventsRequest, deadline: float | None) -> bytes:
        self.seen, self.deadlines = [request], [deadline]
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        if self.error is not None:
            raise self.error
        return self._encoder.encode(
            {
                "decision_id": "1-1", "score": 0.5, "risk": 50.0, "decision": "allow", "reasons": [],
                "events": [_line(row) for row in request.events],
                "model": _MODEL, "policy_version": "p1", "warnings": [], "degraded": False,
            }
        )  # fmt: skip


def _line(row: EventRow) -> dict[str, Any]:
    return {
        "event_id": row.event_id, "type": row.type, "ts": "2026-11-20T10:00:00Z", "score": 0.5, "decision": "allow",
        "decision_id": "1-1",
    }  # fmt: skip


def main() -> None:
    """Serve until a signal comes."""
    options = json.loads(sys.argv[2]) if len(sys.argv) > 2 else {}
    configure_logs()
    limits, load, metrics = Limits(**options.get("limits", {})), Load(), Metrics()
    engine = FakeEngine(simulated_config(), delay_s=options.get("delay_s", 0.0))
    app = create_app(engine, limits=limits, load=load, keys=Keys(options.get("keys", {})), metrics=metrics)
    bound = listen("127.0.0.1", int(sys.argv[1]), is_shared=False)
    sys.stdout.write(f"{bound.getsockname()[1]}\n")
    sys.stdout.flush()
    server_of(app, limits=limits, load=load, metrics=metrics).run(sockets=[bound])


if __name__ == "__main__":
    main()
