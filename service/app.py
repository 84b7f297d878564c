"""The routes: who may ask, what was asked, which answer. Bytes in, bytes out; every error is a problem.

FastAPI holds the table of routes and what is not found in it. Each route is an ASGI callable of ours, without the
request object, the injected dependencies and the response model that cost a framework's route more than our scoring.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple
from urllib.parse import unquote

from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from service.auth import Keys, is_loopback
from service.limits import Limits, Load
from service.logs import pairs
from service.metrics import Metrics
from service.openapi import openapi_document
from service.problems import FieldError, Problem, problem_bytes, problem_headers
from service.routes import JSON, Answered, Asked, Engine, Way, ways_of

_COMMON = ((b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff"))
_LONGEST_DEADLINE_MS = 600_000
_log = logging.getLogger(__name__)


class Edge(NamedTuple):
    """What all routes share."""

    limits: Limits
    load: Load
    keys: Keys
    metrics: Metrics
    in_flight_of_key: dict[bytes, int]


class Endpoint:
    """One route as an ASGI callable."""

    def __init__(self, edge: Edge, way: Way) -> None:
        self._edge = edge
        self._name = way.path
        self._right = way.right
        self._answer = way.answer
        self._has_body = way.method == "POST"
        self._places = {step[1:-1]: place for place, step in enumerate(way.path.split("/")) if step.startswith("{")}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        began_s = scope.get("fraud.arrived_s") or time.monotonic()
        headers: Mapping[bytes, bytes] = scope.get("fraud.headers") or dict(scope["headers"])
        try:
            answered = await self._answered(scope, headers, receive, began_s)
            status, body = answered.status, answered.body
            lines = [(b"content-type", answered.content_type), *_COMMON] if status != 204 else [*_COMMON]
        except Problem as problem:
            status, body, lines = self._refused(problem)
        except Exception as error:  # noqa: BLE001
            # Its text may hold what was sent: only its type and place are logged.
            _log.error(pairs("unhandled_error", route=self._name), exc_info=error)
            status, body, lines = self._refused(Problem(500, "internal_error", detail="The request was not answered."))
        if status != 204:
            lines.append((b"content-length", b"%d" % len(body)))
        await send({"type": "http.response.start", "status": status, "headers": lines})
        await send({"type": "http.response.body", "body": body})
        self._edge.metrics.answered(self._name, status, time.monotonic() - began_s)

    def _refused(self, problem: Problem) -> tuple[int, bytes, list[tuple[bytes, bytes]]]:
        self._edge.metrics.problem(problem.code)
        lines = [*problem_headers(problem), *_COMMON]
        if problem.status == 401:
            lines.append((b"www-authenticate", b'ApiKey header="X-API-Key"'))
        return problem.status, problem_bytes(problem), lines

    async def _answered(
        self, scope: Scope, headers: Mapping[bytes, bytes], receive: Receive, began_s: float
    ) -> Answered:
        key = self._admitted(scope, headers)
        deadline = None
        if b"x-deadline-ms" in headers:
            deadline = _deadline(headers[b"x-deadline-ms"], began_s)
        body = b""
        if self._has_body:
            _check_media(headers)
            body = await _body(receive, self._edge.limits)
        asked = Asked(body, self._parameters(scope), deadline)
        if key is None:
            return await self._answer(asked)
        of_key = self._edge.in_flight_of_key
        n_in_flight = of_key.get(key, 0)
        if n_in_flight >= self._edge.limits.in_flight_per_key:
            raise Problem(429, "too_many_requests", detail="Too many requests of this key at once.", retry_after_s=1)
        of_key[key] = n_in_flight + 1
        try:
            return await self._answer(asked)
        finally:
            of_key[key] -= 1
            if not of_key[key]:
                del of_key[key]

    def _parameters(self, scope: Scope) -> Mapping[str, str]:
        """Return the parameters of the path, decoded by themselves: an id may hold an encoded slash."""
        if not self._places:
            return {}
        steps = scope["raw_path"].decode("ascii").split("/")
        return {name: unquote(steps[place]) for name, place in self._places.items()}

    def _admitted(self, scope: Scope, headers: Mapping[bytes, bytes]) -> bytes | None:
        """Return the caller's key, None where none is needed; raise Problem 401 or 403."""
        if self._right is None or not self._edge.keys:
            return None
        key = headers.get(b"x-api-key")
        if key is None and self._right == "metrics" and _is_here(scope, headers):
            return None
        rights = None if key is None else self._edge.keys.rights_of(key)
        if key is None or rights is None:
            raise Problem(401, "unauthorized", detail="Expected a known key in the header X-API-Key.")
        if self._right != "any" and self._right not in rights:
            raise Problem(403, "forbidden", detail="The role of this key does not allow this.")
        return key


def _is_here(scope: Scope, headers: Mapping[bytes, bytes]) -> bool:
    """Return True for a caller on this machine; a proxy here speaks for others, and says so."""
    client = scope.get("client")
    is_forwarded = b"x-forwarded-for" in headers or b"forwarded" in headers
    return client is not None and not is_forwarded and is_loopback(client[0])


def _deadline(value: bytes, began_s: float) -> float:
    if not value.isdigit() or len(value) > 6 or not 1 <= int(value) <= _LONGEST_DEADLINE_MS:
        text = f"expected 1 to {_LONGEST_DEADLINE_MS} milliseconds"
        error = FieldError("X-Deadline-Ms", "bad_deadline", text)
        raise Problem(400, "bad_deadline", detail="The deadline is not valid.", errors=(error,))
    deadline = began_s + int(value) / 1000
    if time.monotonic() >= deadline:
        raise Problem(503, "deadline", detail="The deadline had passed before the work began.")
    return deadline


def _check_media(headers: Mapping[bytes, bytes]) -> None:
    media = headers.get(b"content-type", b"")
    if media != JSON:
        kind, _, parameters = media.lower().partition(b";")
        is_utf8 = parameters.strip().replace(b'"', b"") in (b"", b"charset=utf-8")
        if kind.strip() != JSON or not is_utf8:
            raise Problem(415, "unsupported_media_type", detail="Expected Content-Type: application/json, in UTF-8.")
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        raise Problem(415, "unsupported_encoding", detail="Expected a body without Content-Encoding.")


async def _body(receive: Receive, limits: Limits) -> bytes:
    """Return the whole body. Our own protocol gives it at once, and has refused a large one before."""
    message = await receive()
    body: bytes = message.get("body", b"")
    while message.get("more_body", False):
        message = await receive()
        body += message.get("body", b"")
        if len(body) > limits.body_bytes:
            break
    if len(body) > limits.body_bytes:
        raise Problem(413, "body_too_large", detail=f"Expected a body of at most {limits.body_bytes} bytes.")
    return body


def create_app(engine: Engine, *, limits: Limits, load: Load, keys: Keys, metrics: Metrics) -> FastAPI:
    """Return the application; `limits`, `load` and `metrics` are those that its protocol was made with."""
    edge = Edge(limits, load, keys, metrics, {})
    metrics.in_flight.set_function(lambda: load.in_flight)
    # Its own telemetry would look for exporters and time each request once more.
    app = FastAPI(
        title="fraud", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False,
        telemetry={"auto_configure": False, "tracing": False, "metrics": False, "logs": False},
    )  # fmt: skip
    app.router.routes[:] = [
        Route(way.path, Endpoint(edge, way), methods=[way.method], name=f"{way.method} {way.path}")
        for way in ways_of(engine, limits=limits, load=load, metrics=metrics)
    ]
    app.add_exception_handler(HTTPException, _not_routed(metrics))
    app.openapi = lambda: openapi_document(engine.schema.fields, limits)  # type: ignore[method-assign]  # its own hook
    return app


def _not_routed(metrics: Metrics) -> Callable[[Request, Exception], Awaitable[Response]]:
    async def answer(_: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
        code = {404: "not_found", 405: "method_not_allowed"}.get(status, "bad_request")
        detail = {404: "There is no such path.", 405: "This path does not take this method."}
        problem = Problem(status, code, detail=detail.get(status, "The request was not answered."))
        metrics.problem(code)
        metrics.answered("other", status, 0.0)
        lines = {name.decode(): value.decode() for name, value in (*problem_headers(problem), *_COMMON)}
        return Response(problem_bytes(problem), status, headers=headers | lines)

    return answer
