"""uvicorn, told how to listen and how to stop: a signal ends the process in order, with exit code 0."""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
from collections.abc import Generator
from types import FrameType
from typing import Any, cast

import uvicorn
from fastapi import FastAPI
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from fraud.errors import ConfigError
from service.limits import Limits, Load
from service.logs import pairs
from service.metrics import Metrics
from service.protocol import protocol_of

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_BACKLOG = 2048
_log = logging.getLogger(__name__)


class Server(uvicorn.Server):
    """uvicorn's server, but for its signals: it would raise them again at the end, and so never exit with 0."""

    def __init__(self, config: uvicorn.Config, load: Load) -> None:
        super().__init__(config)
        self._load = load

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Handle signals while the server runs; the second one ends it at once."""
        before = {number: signal.signal(number, self.handle_exit) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop accepting, finish what is in flight, end."""
        _log.info(pairs("stopping", signal=signal.Signals(sig).name, in_flight=self._load.in_flight))
        self._load.is_draining = True
        self.force_exit = self.should_exit
        self.should_exit = True


def server_of(app: FastAPI, *, limits: Limits, load: Load, metrics: Metrics) -> Server:
    """Return the server of an application; `Server.run(sockets=[listen(...)])` serves until a signal comes."""
    config = uvicorn.Config(
        _short_cut(app),
        loop="uvloop",
        http=cast(Any, protocol_of(limits, load, metrics)),  # Any: uvicorn expects a class, and calls it alone
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=int(limits.grace_s),
    )
    return Server(config, load)


def _short_cut(app: FastAPI) -> ASGIApp:
    """Return the application with the POST routes asked first.

    The framework's middlewares and its search for the route cost a quarter of an echo (28 us), and these routes need
    none of it: each answers every error itself.
    """
    posts: dict[str, ASGIApp] = {
        route.path: route.app
        for route in app.router.routes
        if isinstance(route, Route) and route.methods == {"POST"} and not route.param_convertors
    }

    async def asked(scope: Scope, receive: Receive, send: Send) -> None:
        route = posts.get(scope["path"]) if scope["method"] == "POST" else None
        await (app if route is None else route)(scope, receive, send)

    return asked


def listen(host: str, port: int, *, is_shared: bool) -> socket.socket:
    """Return a listening socket. is_shared: by other workers, on the same port. Raises ConfigError if it is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if is_shared:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise ConfigError(f"--host {host} --port {port}: cannot listen there ({error.strerror})") from None
    bound.listen(_BACKLOG)
    bound.setblocking(False)
    return bound
