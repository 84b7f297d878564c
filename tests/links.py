"""A TCP link that can be made slow: what is sent through it arrives so much later, in both directions."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator


class Link:
    """Listens on `port` and forwards to another port of this machine. delay_s: of what passes from now on."""

    def __init__(self, to_port: int) -> None:
        """Take the port that is behind."""
        self.delay_s = 0.0
        self._to_port = to_port
        self._ends = threading.Event()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept)]
        self._open: list[socket.socket] = []
        self._threads[0].start()

    def close(self) -> None:
        """End the link and all connections through it."""
        self._ends.set()
        for each in (self._listening, *self._open):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for each in (self._listening, *self._open):
            each.close()

    def _accept(self) -> None:
        while not self._ends.is_set():
            try:
                near, _ = self._listening.accept()
            except OSError:
                return
            self._open.append(near)
            try:
                far = socket.create_connection(("127.0.0.1", self._to_port))
            except OSError:
                near.shutdown(socket.SHUT_RDWR)
                continue
            self._open.append(far)
            for one, other in ((near, far), (far, near)):
                self._threads.append(threading.Thread(target=self._forward, args=(one, other)))
                self._threads[-1].start()

    def _forward(self, one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while received := one.recv(65536):
                self._ends.wait(self.delay_s)
                other.sendall(received)
        for each in (one, other):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def link_to(port: int) -> Iterator[Link]:
    """Yield a link to a port of this machine."""
    link = Link(port)
    try:
        yield link
    finally:
        link.close()
