"""What a caller is told when a request is not answered: one exception, one JSON shape (RFC 9457), never the input.

Every error of the service leaves through `problem_bytes`, those of the transport too. It knows no routes and no rules.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import NamedTuple

import msgspec

PROBLEM_JSON = "application/problem+json"
MAX_ERRORS = 10  # faults that are listed; a request of 1,000 bad events is not answered with 1,000 lines


class FieldError(NamedTuple):
    """One fault. path: "events.1.amount", "" for the whole body; text: what was expected, never what came."""

    path: str
    code: str
    text: str


class Problem(Exception):
    """A request that gets no answer, raised anywhere below the routes.

    status: the HTTP status; code: snake_case, for programs; detail: for people; retry_after_s: when to come again.
    """

    def __init__(
        self,
        status: int,
        code: str,
        *,
        detail: str,
        errors: tuple[FieldError, ...] = (),
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(code)
        self.status = status
        self.code = code
        self.detail = detail
        self.errors = errors
        self.retry_after_s = retry_after_s


def problem_object(problem: Problem) -> dict[str, object]:
    """Return the problem as what JSON it is: {"type", "title", "status", "detail", "code", "errors"}."""
    return {
        "type": "about:blank",
        "title": HTTPStatus(problem.status).phrase,
        "status": problem.status,
        "detail": problem.detail,
        "code": problem.code,
        "errors": [{"path": e.path, "code": e.code, "text": e.text} for e in problem.errors[:MAX_ERRORS]],
    }


def problem_bytes(problem: Problem) -> bytes:
    """Return the problem as the JSON of an application/problem+json answer."""
    return msgspec.json.encode(problem_object(problem))


def problem_headers(problem: Problem) -> list[tuple[bytes, bytes]]:
    """Return the ASGI headers of the answer, but for its length."""
    headers = [(b"content-type", PROBLEM_JSON.encode())]
    if problem.retry_after_s is not None:
        headers.append((b"retry-after", str(problem.retry_after_s).encode()))
    return headers
