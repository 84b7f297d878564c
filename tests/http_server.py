"""A server of the fake engine in a process of its own, and raw requests to it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
TS = "2026-11-20T10:00:00Z"
GOOD = json.dumps({"user_id": "u1", "events": [{"event_id": "e1", "type": "login", "ts": TS}]}).encode()


class Reply(NamedTuple):
    """One answer as it came. headers: names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def code(self) -> str:
        return json.loads(self.body)["code"]


class Running(NamedTuple):
    """A server. log: what it wrote to stderr so far."""

    process: subprocess.Popen[str]
    port: int
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def serving(log: Path, **options: Any) -> Iterator[Running]:  # Any: JSON
    """Run the fake engine's server until the block ends; options: limits, keys, delay_s."""
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.fake_engine", "0", json.dumps(options)],
            stdout=subprocess.PIPE, stderr=errors, text=True, cwd=ROOT, env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
        assert process.stdout is not None
        try:
            yield Running(process, int(process.stdout.readline()), log)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
            process.stdout.close()


class Client:
    """One raw connection."""

    def __init__(self, port: int, timeout_s: float = 10.0) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=timeout_s)
        self._left = b""

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def reply(self, *, is_head: bool = False) -> Reply:
        """Return the next answer; raises EOFError where the server has closed."""
        while b"\r\n\r\n" not in self._left:
            self._more()
        head, _, self._left = self._left.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        found = re.fullmatch(r"HTTP/1\.1 (\d{3}) .+", first)
        assert found is not None, first
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        length = 0 if is_head else int(headers.get("content-length", "0"))
        while len(self._left) < length:
            self._more()
        body, self._left = self._left[:length], self._left[length:]
        return Reply(int(found[1]), headers, body)

    def is_closed(self) -> bool:
        """Return True where the server has closed and sent nothing more; waits for it."""
        try:
            return not self._left and self.socket.recv(1) == b""
        except ConnectionResetError:
            return True

    def _more(self) -> None:
        data = self.socket.recv(65536)
        if not data:
            raise EOFError
        self._left += data


def request(
    method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None, *, host: str = "x"
) -> bytes:
    """Return the bytes of a request; a body is JSON unless the headers say otherwise."""
    lines = {"Host": host}
    if body is not None:
        lines |= {"Content-Type": "application/json", "Content-Length": str(len(body))}
    lines |= headers or {}
    head = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return head.encode("latin-1") + b"\r\n" + (body or b"")


def ask(port: int, data: bytes) -> Reply:
    """Return the first answer to these bytes on a connection of their own."""
    with Client(port) as client:
        client.send(data)
        return client.reply()
