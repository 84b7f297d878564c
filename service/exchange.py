"""One request and its answer, between a connection and the ASGI application.

The application is started when the whole request is there, and the answer leaves in one write: a slow sender or reader
holds memory that is counted, never a running task.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from service.problems import Problem, problem_bytes, problem_headers

Message = dict[str, Any]  # Any: an ASGI message holds text, numbers, bytes and lists
_STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}
_NO_BODY = (204, 304)


class Exchange:
    """scope: of the ASGI call; None where a problem is the answer, whatever was asked.

    keep_alive: False closes the connection after the answer. n_held_bytes: what its body counts for among all bodies.
    is_in_flight: it counts among the requests that are being answered.
    """

    __slots__ = ("_finish", "_is_body_given", "_left", "_parts", "_status", "body", "headers", "is_complete",
                 "is_in_flight", "keep_alive", "n_held_bytes", "problem", "scope")  # fmt: skip

    def __init__(
        self, scope: Message | None, finish: Callable[[Exchange, list[bytes]], None], problem: Problem | None
    ) -> None:
        self.scope = scope
        self.problem = problem
        self.body: bytes | bytearray = b""
        self.n_held_bytes = 0
        self.keep_alive = True
        self.is_complete = False
        self.is_in_flight = False
        self.headers: list[tuple[bytes, bytes]] = []
        self._finish = finish
        self._is_body_given = False
        self._left: asyncio.Event | None = None
        self._status = 0
        self._parts: list[bytes] = []

    async def receive(self) -> Message:
        """Return the whole body, once; after it, wait until the client has left or the answer is complete."""
        if not self._is_body_given:
            self._is_body_given = True
            return {"type": "http.request", "body": bytes(self.body), "more_body": False}
        if not self.is_complete:
            self._left = self._left or asyncio.Event()
            await self._left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """Take the answer; it is written when its last part has come."""
        if self.is_complete:
            return
        if message["type"] == "http.response.start":
            self._status, self.headers = message["status"], list(message.get("headers", ()))
            return
        body = message.get("body", b"")
        if message.get("more_body", False):
            self._parts.append(body)
            return
        self.answer(b"".join([*self._parts, body]) if self._parts else body)

    def answer(self, body: bytes) -> None:
        """Hand the answer over: status line, headers and body; the connection adds what it knows and writes."""
        lines = [_STATUS_LINES[self._status]]
        has_length = False
        for name, value in self.headers:
            has_length = has_length or name == b"content-length"
            lines += (name, b": ", value, b"\r\n")
        if not has_length and self._status not in _NO_BODY:
            lines.append(b"content-length: %d\r\n" % len(body))
        is_head = self.scope is not None and self.scope["method"] == "HEAD"
        lines += (b"\r\n", b"" if is_head or self._status in _NO_BODY else body)
        self.leave()
        self._finish(self, lines)

    def answer_problem(self, problem: Problem) -> None:
        """Write a problem as the answer."""
        self._status, self.headers = problem.status, problem_headers(problem)
        self.answer(problem_bytes(problem))

    def leave(self) -> None:
        """Let nothing more be written: the answer is complete, or the client has left."""
        self.is_complete = True
        if self._left is not None:
            self._left.set()
