"""The service in a process of its own on loopback, and a raw HTTP client that may come again: for tests of a server.

with serving(bundle, f"sqlite:///{tmp_path}/state.db", folder=tmp_path) as server:
    answer = Caller(server).ask("POST", "/v1/events", {"user_id": "u", "events": [...]})
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from tests.commands import ROOT

_START_S = 60.0
_STOP_S = 40.0
BUSY = (429, 503)


class Unanswered(Exception):
    """Nobody is there, or the connection broke or fell silent before the answer was whole: it may have been done."""


class Answer(NamedTuple):
    """One HTTP answer; header names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:  # Any: JSON
        """Return the body, parsed."""
        return json.loads(self.body)


class HasPort(Protocol):
    """Something that listens on a port of 127.0.0.1, not always the same one."""

    @property
    def port(self) -> int: ...


class ServerProcess:
    """`python -m service serve`: started, killed, stopped, started again. The port is a free one, another each time."""

    def __init__(
        self,
        bundle: Path,
        state: str,
        *options: str,
        folder: Path,
        program: Sequence[str] = ("-m", "service"),
    ) -> None:
        """Take the bundle, the state's URL, options; folder: for the log of stderr. program: what Python runs."""
        self.port = 0
        self.pid = 0
        self._command = [sys.executable, *program, "serve", str(bundle), "--state", state, "--port", "0", *options]
        self._log = folder / f"server-{id(self):x}.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start a process, and return when it listens; fails with what it said where it does not."""
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, stderr=log, env=environment)
        assert self._process.stdout is not None
        readable, _, _ = select.select([self._process.stdout], [], [], _START_S)
        line = self._process.stdout.readline() if readable else b""
        self._process.stdout.close()
        if not line:
            self.kill()
            raise RuntimeError(f"the server did not start: {self.said}")
        told = json.loads(line)
        self.port, self.pid = int(told["url"].rpartition(":")[2]), told["pid"]

    def kill(self) -> None:
        """Kill -9, if it runs."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def terminate(self) -> None:
        """Tell it to stop, and return at once."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)

    def ended(self) -> int:
        """Return the exit code of a process that was told to stop, once it has."""
        assert self._process is not None
        return self._process.wait(_STOP_S)

    @property
    def url(self) -> str:
        """Return where it listens now."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def is_running(self) -> bool:
        """Return whether the process is there."""
        return self._process is not None and self._process.poll() is None

    @property
    def said(self) -> str:
        """Return all that it and those before it wrote to stderr."""
        return self._log.read_text(encoding="utf-8", errors="replace")


@contextlib.contextmanager
def serving(
    bundle: Path, state: str, *options: str, folder: Path, program: Sequence[str] = ("-m", "service")
) -> Iterator[ServerProcess]:
    """Yield a server that listens; killed at the end if it still runs."""
    server = ServerProcess(bundle, state, *options, folder=folder, program=program)
    try:
        server.start()
        yield server
    finally:
        server.kill()


class Caller:
    """One keep-alive connection to whatever listens on the port of `server` when it is opened. One thread at a time."""

    def __init__(self, server: HasPort, *, timeout_s: float = 10.0) -> None:
        """Take the server, and how long an answer may take."""
        self._server = server
        self._timeout_s = timeout_s
        self._socket: socket.socket | None = None

    def ask(self, method: str, path: str, document: object = None, headers: Mapping[str, str] | None = None) -> Answer:
        """Return the answer to one request; document: sent as JSON, bytes as they are. Raises Unanswered."""
        try:
            self.send(method, path, document, headers)
            return self.receive()
        except (OSError, ValueError) as error:
            self.close()
            raise Unanswered(repr(error)) from None

    def ask_again(
        self,
        method: str,
        path: str,
        document: object = None,
        headers: Mapping[str, str] | None = None,
        *,
        for_s: float = 20.0,
        again_on: Sequence[int] = BUSY,
    ) -> Answer:
        """Return the first answer that is not "come again"; after for_s, what came last (or raise Unanswered)."""
        until = time.monotonic() + for_s
        pause_s = 0.01
        while True:
            try:
                answer = self.ask(method, path, document, headers)
                if answer.status not in again_on or time.monotonic() > until:
                    return answer
            except Unanswered:
                if time.monotonic() > until:
                    raise
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 0.2)

    def send(self, method: str, path: str, document: object = None, headers: Mapping[str, str] | None = None) -> None:
        """Send a request and do not wait for its answer; raises OSError."""
        if self._socket is None:
            self._socket = socket.create_connection(("127.0.0.1", self._server.port), timeout=self._timeout_s)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        lines = [f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{self._server.port}"]
        body = b""
        if document is not None:
            body = document if isinstance(document, bytes) else json.dumps(document).encode()
            lines.append("Content-Type: application/json")
        if body or method == "POST":
            lines.append(f"Content-Length: {len(body)}")
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        self._socket.sendall("\r\n".join((*lines, "", "")).encode() + body)

    def receive(self) -> Answer:
        """Return the next answer; raises OSError where the connection ends before it is whole."""
        assert self._socket is not None
        received = b""
        while b"\r\n\r\n" not in received:
            received += self._more()
        head, _, body = received.partition(b"\r\n\r\n")
        status_line, *header_lines = head.decode("latin-1").split("\r\n")
        pairs = (line.partition(":") for line in header_lines)
        headers = {name.lower(): value.strip() for name, _, value in pairs}
        n_bytes = int(headers.get("content-length", 0))
        while len(body) < n_bytes:
            body += self._more()
        if headers.get("connection", "").lower() == "close":
            self.close()
        return Answer(int(status_line.split(" ")[1]), headers, body)

    def close(self) -> None:
        """Close the connection; the next request opens another one."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _more(self) -> bytes:
        assert self._socket is not None
        received = self._socket.recv(65536)
        if not received:
            raise ConnectionResetError("the server closed the connection")
        return received
