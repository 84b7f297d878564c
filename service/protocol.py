"""HTTP/1.1 on one connection, with limits: a drop-in for uvicorn's httptools protocol.

uvicorn's own holds a slow client for ever, starts a task at the headers, and takes a body of any size. Here a request
is read whole, within its time and size, before anything is started for it; what is refused gets a problem and a closed
connection; requests that were sent ahead wait as bytes and are answered in order.
Over 300 lines because the phases of a connection share its state: cut in two, each half would set the other's timers.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from functools import partial
from typing import Any, NoReturn

import httptools
import uvicorn
from uvicorn.server import ServerState

from service.exchange import Exchange, Message
from service.framing import (
    bad_request,
    body_too_large,
    headers_too_large,
    not_answered,
    overloaded,
    problem_of_headers,
    stopping,
    target_of,
)
from service.limits import Limits, Load
from service.logs import pairs
from service.metrics import Metrics
from service.problems import Problem
from service.shedding import is_whole_post, refusal

_SLICE = 8192  # what is parsed at once; a connection may have sent a hundred requests ahead
_LINGER_S = 1.0  # a client that is still sending would lose the answer if the socket closed under it
_MAX_LINGER_BYTES = 4 << 20
_NEVER_SHED = frozenset(("/healthz", "/readyz", "/metrics"))

_log = logging.getLogger(__name__)


class _Refused(Exception):
    """Raised inside the parser's callbacks: the problem is noted already, nothing more is to be parsed."""


def protocol_of(limits: Limits, load: Load, metrics: Metrics) -> partial[Connection]:
    """Return what uvicorn's `Config(http=...)` makes connections with."""
    return partial(Connection, limits, load, metrics)


class Connection(asyncio.Protocol):
    """One client. Over its life: idle, headers, body, answering, and again."""

    def __init__(
        self, limits: Limits, load: Load, metrics: Metrics, *, config: uvicorn.Config, server_state: ServerState,
        app_state: dict[str, Any], _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:  # fmt: skip  # Any: uvicorn's own signature; the name _loop too
        self._limits, self._load, self._metrics = limits, load, metrics
        self._app, self._server_state = config.loaded_app, server_state
        self._loop = _loop or asyncio.get_running_loop()
        self._parser: httptools.HttpRequestParser | None = None
        self._transport: asyncio.Transport | None = None
        self._client: tuple[str, int] | None = None
        self._server: tuple[str, int] | None = None
        self._longest_s = min(limits.header_s, limits.body_s, limits.idle_s, limits.write_s)
        self._timer: asyncio.TimerHandle | None = None
        self._due = math.inf  # when this phase has lasted too long
        self._write_due = math.inf
        self._is_stopping = self._has_client_ended = False
        self._is_counted = True
        # What is being read.
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._n_header_bytes = self._n_partial_bytes = 0  # of whole headers; of the bytes in which one has not ended
        self._n_body_bytes = 0
        self._is_in_headers = False
        self._owes_continue = False
        self._is_body_ahead = self._is_resuming = False  # of a request that offers an upgrade
        self._reading: Exchange | None = None
        self._unparsed = b""
        self._n_ignored_bytes = 0
        self._is_deaf = False  # nothing more is read from this client
        # What is being answered.
        self._current: Exchange | None = None
        self._waiting: deque[Exchange] = deque()
        self._is_starting = False

    # What the transport tells.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")
        self._transport = transport  # type: ignore[assignment]  # uvloop's transport does not inherit
        self._server_state.connections.add(self)  # type: ignore[arg-type]  # the set is typed for uvicorn's own
        transport.set_write_buffer_limits(high=self._limits.write_buffer_bytes)  # type: ignore[union-attr]
        self._client, self._server = transport.get_extra_info("peername"), transport.get_extra_info("sockname")
        self._parser = httptools.HttpRequestParser(self)
        self._due = self._loop.time() + self._limits.idle_s
        self._timer = self._loop.call_later(self._longest_s, self._check_time)
        self._load.connections += 1
        if self._load.connections > self._limits.connections:
            self._refuse(overloaded("connections"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._server_state.connections.discard(self)  # type: ignore[arg-type]
        self._uncount()
        if self._timer is not None:
            self._timer.cancel()
        for exchange in (self._current, self._reading, *self._waiting):
            if exchange is not None:
                exchange.leave()
                self._release(exchange)
        self._waiting.clear()
        self._reading = self._parser = None
        self._unparsed, self._is_deaf = b"", True

    def data_received(self, data: bytes) -> None:
        if self._is_deaf:
            self._n_ignored_bytes += len(data)
            if self._n_ignored_bytes > _MAX_LINGER_BYTES and self._transport is not None:
                self._transport.abort()
        elif self._unparsed:
            self._unparsed += data
        elif self._load.in_flight >= self._limits.in_flight and self._is_between_requests and is_whole_post(data):
            self._turn_away()
        else:
            self._feed(data)

    def eof_received(self) -> bool:
        """Return True, which keeps the connection, while answers are owed to a client that has sent all it will."""
        self._is_stopping = self._has_client_ended = True
        if self._reading is not None or self._is_in_headers:
            self._refuse(bad_request("the request is not complete"))
        return self._current is not None or bool(self._waiting)

    def pause_writing(self) -> None:
        self._write_due = self._loop.time() + self._limits.write_s

    def resume_writing(self) -> None:
        self._write_due = math.inf
        self._start_next()

    def shutdown(self) -> None:
        """Finish what was asked and close; uvicorn calls it when the process is told to stop."""
        self._is_stopping = True
        if self._current is None and not self._waiting and self._reading is None and self._transport is not None:
            self._transport.close()

    def _check_time(self) -> None:
        assert self._transport is not None
        now = self._loop.time()
        if now >= self._write_due:
            self._transport.abort()
            return
        if now >= self._due:
            self._due = math.inf
            if self._is_deaf or (self._reading is None and not self._is_in_headers):
                self._transport.close()
                return
            self._refuse(Problem(408, "request_timeout", detail="The request was not complete in time."))
        until = min(self._due, self._write_due, now + self._longest_s)
        self._timer = self._loop.call_later(until - now, self._check_time)

    # Bytes to requests.

    @property
    def _is_between_requests(self) -> bool:
        """Return True where nothing is being read or answered, and the reader has taken what was."""
        is_free = self._current is None and self._reading is None and not self._waiting and not self._is_in_headers
        return is_free and self._write_due == math.inf and not self._is_stopping

    def _turn_away(self) -> None:
        """Refuse a request unread; the connection goes on."""
        assert self._transport is not None
        self._metrics.refused("overloaded")
        self._transport.write(refusal(self._server_state.default_headers))
        self._server_state.total_requests += 1
        self._due = self._loop.time() + self._limits.idle_s

    def _feed(self, data: bytes) -> None:
        for start in range(0, len(data), _SLICE):
            if self._is_deaf or self._parser is None:
                return
            if self._waiting and self._transport is not None:
                self._unparsed, self._due = data[start:], math.inf
                self._transport.pause_reading()
                return
            self._parse(self._parser, data if len(data) <= _SLICE else data[start : start + _SLICE])

    def _parse(self, parser: httptools.HttpRequestParser, data: bytes) -> None:
        try:
            parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._ignore_upgrade(data[upgrade.args[0] :])
            return
        except httptools.HttpParserError as error:
            if isinstance(error, httptools.HttpParserCallbackError) and not isinstance(error.__context__, _Refused):
                _log.error(pairs("protocol_error"), exc_info=error.__context__)
                self._refuse(not_answered())
            elif not self._is_deaf:
                self._refuse(bad_request("the bytes are no HTTP/1.1 request"))
            return
        if self._is_in_headers:
            self._n_partial_bytes += len(data)
            if self._n_partial_bytes > self._limits.header_bytes + _SLICE:
                self._refuse(headers_too_large())
        elif self._reading is not None:
            # What is on the wire counts: a body in chunks of one byte is six times as large there.
            self._n_body_bytes += len(data)
            if self._n_body_bytes > self._limits.body_bytes + self._limits.header_bytes + _SLICE:
                self._refuse(body_too_large(self._limits))

    def _ignore_upgrade(self, rest: bytes) -> None:
        """Go on as if no upgrade had been offered, which HTTP/1.1 allows; Java's client offers one in each request.

        The parser stops at the headers then, body or not: another one is told the length and reads the body.
        """
        if self._is_deaf:
            return
        if self._is_body_ahead and self._reading is not None and self._reading.scope is not None:
            self._is_body_ahead = False
            self._parser = httptools.HttpRequestParser(self)
            found = self._reading.scope["fraud.headers"]
            name = b"content-length" if b"content-length" in found else b"transfer-encoding"
            self._is_resuming = True
            self._parser.feed_data(b"POST / HTTP/1.1\r\nhost: x\r\n%b: %b\r\n\r\n" % (name, found[name]))
            self._is_resuming = False
        if rest and self._parser is not None:
            self._parse(self._parser, rest)

    def on_message_begin(self) -> None:
        if self._is_resuming:
            return
        if self._is_deaf:  # after "Connection: close"
            raise _Refused
        self._url = b""
        self._headers = []
        self._n_header_bytes = self._n_partial_bytes = self._n_body_bytes = 0
        self._is_in_headers = True
        self._due = self._loop.time() + self._limits.header_s

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._is_resuming:
            return
        self._n_header_bytes += len(name) + len(value) + 4
        if self._n_header_bytes > self._limits.header_bytes:
            self._refuse(headers_too_large())
            raise _Refused
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        if self._is_resuming:
            return
        if len(self._url) > self._limits.header_bytes // 2:
            self._stop(Problem(414, "uri_too_long", detail="The request line is too long."))
        assert self._parser is not None
        version, method = self._parser.get_http_version(), self._parser.get_method().decode("ascii")
        headers = dict(self._headers)
        problem = problem_of_headers(self._headers, headers, version, method, self._limits)
        if problem is not None:
            self._stop(problem)
        target = target_of(self._url)
        if target is None:
            self._stop(bad_request("the path is not valid"))
        scope: Message = {
            "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": version,
            "server": self._server, "client": self._client, "scheme": "http", "root_path": "", "method": method,
            "path": target.path, "raw_path": target.raw, "query_string": target.query, "headers": self._headers,
            "fraud.headers": headers, "fraud.arrived_s": time.monotonic(),
        }  # fmt: skip
        exchange = Exchange(scope, self._finish, None)
        exchange.keep_alive = version == "1.1" and self._parser.should_keep_alive()
        self._reading = exchange
        self._is_in_headers = False
        self._headers = []  # trailers are read into it, and dropped
        self._due = self._loop.time() + self._limits.body_s
        self._is_body_ahead = self._parser.should_upgrade() and (
            b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0"
        )
        self._owes_continue = b"expect" in headers
        self._continue()

    def _continue(self) -> None:
        """Ask for the body of a request that waits for it, when its turn has come."""
        if self._owes_continue and self._current is None and not self._waiting and self._transport is not None:
            self._owes_continue = False
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        exchange = self._reading
        if exchange is None:
            return
        exchange.n_held_bytes += len(body)
        self._load.buffered_bytes += len(body)
        if exchange.n_held_bytes > self._limits.body_bytes:
            self._stop(body_too_large(self._limits))
        if self._load.buffered_bytes > self._limits.buffered_bytes:
            self._stop(overloaded("buffered_bytes"))
        if not exchange.body:
            exchange.body = body
        elif isinstance(exchange.body, bytearray):
            exchange.body += body
        else:
            exchange.body = bytearray(exchange.body + body)

    def on_message_complete(self) -> None:
        if self._is_body_ahead:
            return
        exchange, self._reading = self._reading, None
        if exchange is None:
            return
        self._due = math.inf
        if not exchange.keep_alive:
            self._is_deaf = True
        self._waiting.append(exchange)
        self._start_next()

    def _stop(self, problem: Problem) -> NoReturn:
        """Refuse and leave the parser's callback."""
        self._refuse(problem)
        raise _Refused

    def _refuse(self, problem: Problem) -> None:
        """Answer with the problem when its turn comes, and close."""
        self._metrics.refused(problem.code)
        if self._reading is not None:
            self._release(self._reading)
        self._reading, self._is_in_headers, self._is_deaf = None, False, True
        self._due, self._unparsed = math.inf, b""
        exchange = Exchange(None, self._finish, problem)
        exchange.keep_alive = False
        self._waiting.append(exchange)
        self._start_next()

    # Requests to answers.

    def _start_next(self) -> None:
        """Start the next request, one at a time and not before its reader has taken the last answer.

        What is refused is answered here and now, one after another: hundreds may wait, each would be three calls deep.
        """
        if self._is_starting:
            return
        self._is_starting = True
        while self._current is None and self._waiting and self._write_due == math.inf:
            exchange = self._current = self._waiting.popleft()
            if exchange.problem is not None or exchange.scope is None:
                exchange.answer_problem(exchange.problem or bad_request("no request"))
            elif self._load.in_flight >= self._limits.in_flight and exchange.scope["path"] not in _NEVER_SHED:
                self._metrics.refused("overloaded")
                exchange.answer_problem(overloaded("in_flight"))
            else:
                self._start(exchange, exchange.scope)
        self._is_starting = False

    def _start(self, exchange: Exchange, scope: Message) -> None:
        self._load.in_flight += 1
        exchange.is_in_flight = True
        # Any ASGI application; uvicorn's type of it has typed messages.
        task = self._loop.create_task(self._app(scope, exchange.receive, exchange.send))  # type: ignore[arg-type]
        self._server_state.tasks.add(task)  # uvicorn waits for these before it ends
        task.add_done_callback(partial(self._task_done, exchange))

    def _task_done(self, exchange: Exchange, task: asyncio.Task[None]) -> None:
        self._land(exchange)
        self._server_state.tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            _log.error(pairs("unhandled_error"), exc_info=error)
        if not exchange.is_complete:
            exchange.keep_alive = False
            exchange.answer_problem(stopping() if task.cancelled() else not_answered())

    def _finish(self, exchange: Exchange, lines: list[bytes]) -> None:
        """Write a complete answer and go on with what waits."""
        self._release(exchange)
        self._land(exchange)  # not when its task ends: the client may have sent the next request by then
        self._current = None
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        is_nothing_left = not self._waiting and not self._unparsed and self._reading is None
        is_last = not exchange.keep_alive or (self._is_stopping and is_nothing_left)
        extra = [b"%b: %b\r\n" % header for header in self._server_state.default_headers]
        lines[1:1] = [*extra, b"connection: close\r\n"] if is_last else extra
        transport.write(b"".join(lines))
        self._server_state.total_requests += 1
        if is_last:
            self._close(transport, is_client_sending=exchange.scope is None and not self._has_client_ended)
        elif self._waiting:
            self._start_next()
        elif self._unparsed:
            # Later, so that a thousand requests sent ahead are no thousand calls deep.
            self._loop.call_soon(self._feed_unparsed)
        elif self._reading is not None:
            self._continue()
        elif not self._is_in_headers:
            self._due = self._loop.time() + self._limits.idle_s

    def _feed_unparsed(self) -> None:
        data, self._unparsed = self._unparsed, b""
        self._due = self._loop.time() + self._limits.header_s
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()
            self._feed(data)

    def _close(self, transport: asyncio.Transport, *, is_client_sending: bool) -> None:
        self._is_deaf = True
        self._uncount()
        if is_client_sending and transport.can_write_eof():
            transport.write_eof()
            self._due = self._loop.time() + _LINGER_S
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_later(_LINGER_S, self._check_time)
            transport.resume_reading()
        else:
            transport.close()

    def _uncount(self) -> None:
        if self._is_counted:
            self._is_counted = False
            self._load.connections -= 1

    def _land(self, exchange: Exchange) -> None:
        self._load.in_flight -= exchange.is_in_flight
        exchange.is_in_flight = False

    def _release(self, exchange: Exchange) -> None:
        self._load.buffered_bytes -= exchange.n_held_bytes
        exchange.n_held_bytes = 0
        exchange.body = b""
