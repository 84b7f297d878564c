"""The table of routes: what is asked, by whom, and which answer of the engine it is. Bytes in, bytes out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import msgspec

from service.auth import Right
from service.docs_page import documentation
from service.limits import Limits, Load
from service.metrics import CONTENT_TYPE, Metrics
from service.openapi import openapi_document
from service.problems import FieldError, Problem
from service.schemas import EventsRequest, LabelRequest, Schema, ScoreRequest
from service.values import text_fault

JSON = b"application/json"


class Engine(Protocol):
    """What the routes ask; every answer is JSON, every refusal a Problem."""

    @property
    def schema(self) -> Schema: ...
    def now_us(self) -> int: ...
    def readiness(self) -> tuple[bool, dict[str, Any]]: ...  # Any: JSON
    async def score(self, request: ScoreRequest, deadline: float | None) -> bytes: ...
    async def score_batch(self, items: Sequence[ScoreRequest | Problem], deadline: float | None) -> bytes: ...
    async def events(self, request: EventsRequest, deadline: float | None) -> bytes: ...
    async def label(self, request: LabelRequest) -> bytes: ...
    async def decision(self, decision_id: str) -> bytes: ...
    async def timeline(self, user_id: str) -> bytes: ...
    async def erase(self, user_id: str) -> bytes: ...
    async def model(self) -> bytes: ...


class Asked(NamedTuple):
    """What a route is given. deadline: monotonic seconds, after which nothing is begun."""

    body: bytes
    path: Mapping[str, str]
    deadline: float | None


class Answered(NamedTuple):
    """What a route gives back."""

    body: bytes
    status: int = 200
    content_type: bytes = JSON


class Way(NamedTuple):
    """One route. right: what a caller's role must allow; "any": any known key will do; None: open to all."""

    method: str
    path: str
    right: Right | Literal["any"] | None
    answer: Callable[[Asked], Awaitable[Answered]]


def ways_of(engine: Engine, *, limits: Limits, load: Load, metrics: Metrics) -> list[Way]:
    """Return the routes, the busy ones first, since they are tried in this order."""

    async def score(asked: Asked) -> Answered:
        return Answered(await engine.score(engine.schema.decode_score(asked.body, engine.now_us()), asked.deadline))

    async def events(asked: Asked) -> Answered:
        return Answered(await engine.events(engine.schema.decode_events(asked.body, engine.now_us()), asked.deadline))

    async def score_batch(asked: Asked) -> Answered:
        items = engine.schema.decode_batch(asked.body, engine.now_us())
        return Answered(await engine.score_batch(items, asked.deadline))

    async def label(asked: Asked) -> Answered:
        return Answered(await engine.label(engine.schema.decode_label(asked.body, engine.now_us())), 202)

    async def decision(asked: Asked) -> Answered:
        return Answered(await engine.decision(asked.path["decision_id"]))

    async def timeline(asked: Asked) -> Answered:
        return Answered(await engine.timeline(_user_id(asked)))

    async def erase(asked: Asked) -> Answered:
        await engine.erase(_user_id(asked))
        return Answered(b"", 204)

    async def model(_: Asked) -> Answered:
        return Answered(await engine.model())

    async def health(_: Asked) -> Answered:
        return Answered(b'{"status":"ok"}')

    async def readiness(_: Asked) -> Answered:
        is_ready, state = engine.readiness()
        if load.is_draining or not is_ready:
            detail = "This replica is stopping." if load.is_draining else "This replica cannot answer now."
            raise Problem(503, "not_ready", detail=detail, retry_after_s=1)
        return Answered(msgspec.json.encode({"status": "ready", **state}))

    async def exposition(_: Asked) -> Answered:
        return Answered(metrics.text(), 200, CONTENT_TYPE.encode())

    async def openapi(_: Asked) -> Answered:
        return Answered(msgspec.json.encode(openapi_document(engine.schema.fields, limits)))

    async def docs(_: Asked) -> Answered:
        document = openapi_document(engine.schema.fields, limits)
        return Answered(documentation(document).encode(), 200, b"text/html; charset=utf-8")

    return [
        Way("POST", "/v1/score", "score", score),
        Way("POST", "/v1/events", "events", events),
        Way("POST", "/v1/score/batch", "score", score_batch),
        Way("POST", "/v1/labels", "labels", label),
        Way("GET", "/v1/decisions/{decision_id}", "decisions", decision),
        Way("GET", "/v1/users/{user_id}/timeline", "timeline", timeline),
        Way("DELETE", "/v1/users/{user_id}", "erase", erase),
        Way("GET", "/v1/model", "model", model),
        Way("GET", "/healthz", None, health),
        Way("GET", "/readyz", None, readiness),
        Way("GET", "/metrics", "metrics", exposition),
        Way("GET", "/openapi.json", "any", openapi),
        Way("GET", "/docs", "any", docs),
    ]


def _user_id(asked: Asked) -> str:
    user_id = asked.path["user_id"]
    fault = text_fault(user_id)
    if fault is not None:
        errors = (FieldError("user_id", fault.code, fault.text),)
        raise Problem(422, "invalid_request", detail="The user id in the path is not valid.", errors=errors)
    return user_id
