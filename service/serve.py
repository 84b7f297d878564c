"""`fraud serve`: one process that answers, from the first look at the store to the last answer after a signal.

It waits for what it depends on (the store, the first bundle) instead of trusting the order in which things start.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Literal, TypeVar

from fraud.config import stored_state_hash
from fraud.errors import ConfigError, FraudError
from service.app import create_app
from service.auth import Keys, check_host, is_loopback
from service.clock import Clock
from service.engine import Engine
from service.follow import Follower
from service.gauges import Gauges
from service.limits import Limits, Load
from service.logs import configure_logs, pairs
from service.memory import give_back_large_blocks, give_back_memory
from service.metrics import Metrics
from service.models import ModelHolder, RefusedBundle, bundle_directory
from service.schemas import schema_of
from service.server import listen, server_of
from service.shadow import Shadow
from service.state.opening import open_store
from service.state.store import Store, StoreDown
from service.ticks import Ticker

_log = logging.getLogger(__name__)
_RETRY_S = 0.5
_KEYS_S = 5.0  # how soon a key that was added or revoked is known
_NOBODY: dict[bytes, str] = {
    bytes(32): "scorer"
}  # where others can ask: after the last key was revoked none may, rather than all
Waited = TypeVar("Waited")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """The options of `fraud serve`. path: a bundle, or a folder of versions with a link `current`."""

    path: Path
    follow: bool = False
    shadow: Path | None = None
    shadow_rate: float = 1.0
    host: str = "127.0.0.1"
    port: int = 8000
    workers: int = 1
    state: str = "sqlite:///fraud-state.db"
    state_timeout_s: float = 2.0
    clock: Literal["wall", "log"] = "wall"
    fail: Literal["open", "closed"] = "closed"
    wait_s: float = 60.0
    users: int = 2000
    limits: Limits = field(default_factory=Limits)


def serve(options: ServeOptions) -> int:
    """Answer requests until a signal comes; return the exit code. Raises ConfigError, BundleError before it listens."""
    configure_logs()
    if options.workers > 1:
        return _supervise(options)
    return _serve_one(options)


def _serve_one(options: ServeOptions) -> int:
    give_back_large_blocks()
    clock = Clock(options.clock)
    # A store that is refused with words (its URL, its version) would be refused a minute later too.
    store = _waited(
        lambda: open_store(options.state, now_us=clock.wall_us, timeout_s=options.state_timeout_s),
        options,
        (StoreDown,),
    )
    keys = Keys(store.keys())
    check_host(options.host, keys)
    holder = _waited(
        lambda: ModelHolder(
            bundle_directory(options.path),
            state_hash=store.state_hash(),  # `fraud warm` may be at it
            schema_of=lambda config: schema_of(config, max_events=options.limits.events),
        ),
        options,
        (ConfigError, RefusedBundle, StoreDown),
    )
    store.set_state_hash(stored_state_hash(holder.current.bundle.scorer.config))
    challenger = None if options.shadow is None else holder.load(bundle_directory(options.shadow))
    shadow: Shadow | None = None
    ticker = Ticker(store, n_users=options.users, now_us=clock.wall_us)
    metrics, load = Metrics(), Load()
    if challenger is not None:
        shadow = Shadow(challenger, rate=options.shadow_rate, is_busy=lambda: load.in_flight > 1, now_us=clock.wall_us)
        shadow.start()
    engine = Engine(holder, ticker, clock, fails_open=options.fail == "open", shadow=shadow)
    metrics.registry.register(Gauges(engine, shadow))
    app = create_app(engine, limits=options.limits, load=load, keys=keys, metrics=metrics)
    server = server_of(app, limits=options.limits, load=load, metrics=metrics)
    listening = listen(options.host, options.port, is_shared="FRAUD_WORKER" in os.environ)
    follower = Follower(holder, options.path) if options.follow else None
    ends = threading.Event()
    engine.start()
    threading.Thread(target=_watch_keys, args=(options, keys, ends), name="keys", daemon=True).start()
    if follower is not None:
        follower.start()
    # What was made so far lives as long as the process: the collector need not look at it again.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)  # a tick makes thousands of short-lived tuples, and no cycle
    give_back_memory()
    sys.setswitchinterval(0.001)  # the loop and the ticks take turns; 5 ms is a long time to wait for the other
    host, port = listening.getsockname()[:2]
    _announce(f"http://{f'[{host}]' if ':' in host else host}:{port}", holder, options)
    server.run(sockets=[listening])
    ends.set()
    if follower is not None:
        follower.stop()
    engine.stop()
    _log.info(pairs("stopped"))
    return 0


def _announce(url: str, holder: ModelHolder, options: ServeOptions) -> None:
    """Say on stdout where the service is, as one line of JSON, and in the log."""
    told = {"url": url, "pid": os.getpid(), "model": holder.current.name, "version": holder.current.version}
    sys.stdout.write(json.dumps(told) + "\n")
    sys.stdout.flush()
    state = options.state.partition("://")[0]  # the rest may hold a password
    _log.info(pairs("serving", url=url, model=holder.current.name, version=holder.current.version, state=state))


def _waited(work: Callable[[], Waited], options: ServeOptions, retried: tuple[type[Exception], ...]) -> Waited:
    """Return what `work` returns, tried again until it does or the time is up: others start beside this one."""
    until, told = time.monotonic() + options.wait_s, ""
    while True:
        try:
            return work()
        except retried as error:
            is_final = isinstance(error, RefusedBundle) and error.code != "bad_bundle"
            if is_final or time.monotonic() >= until:
                if isinstance(error, FraudError):
                    raise
                raise ConfigError(f"--state: {error}") from None
            if str(error) != told:
                told = str(error)
                _log.info(pairs("waiting", reason=told))
            time.sleep(_RETRY_S)


def _watch_keys(options: ServeOptions, keys: Keys, ends: threading.Event) -> None:
    """Take note of keys that are added and revoked while the service runs, through a connection of its own."""
    store: Store | None = None
    while not ends.wait(_KEYS_S):
        try:
            if store is None:
                store = open_store(options.state, now_us=Clock("wall").wall_us, timeout_s=options.state_timeout_s)
            roles = store.keys()
            keys.replace(roles if roles or is_loopback(options.host) else _NOBODY)
        except (StoreDown, ConfigError) as error:
            _log.warning(pairs("keys_not_read", reason=error))


def _supervise(options: ServeOptions) -> int:
    """Run several processes on one port; one that ends unasked is started again, a signal ends them all."""
    if options.port == 0:
        raise ConfigError("--port 0 --workers: several processes need one port; expected a number from 1 to 65535")
    command = [sys.executable, "-m", "service", *sys.argv[1:], "--workers", "1"]
    environment = {**os.environ, "FRAUD_WORKER": "1"}
    children = [subprocess.Popen(command, env=environment) for _ in range(options.workers)]
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    began = [time.monotonic()] * len(children)
    exit_code = 0
    while not stopping.wait(0.2):
        for place, child in enumerate(children):
            if child.poll() is None:
                continue
            if time.monotonic() - began[place] < options.wait_s and child.returncode == 2:
                exit_code = 2  # it said what is wrong with its options: the next would say the same
                stopping.set()
                break
            _log.error(pairs("worker_ended", code=child.returncode))
            began[place] = time.monotonic()
            children[place] = subprocess.Popen(command, env=environment)
    for child in children:
        child.terminate()
    for child in children:
        exit_code = max(exit_code, child.wait())
    return exit_code


def limits_of(settings: Sequence[str]) -> Limits:
    """Return the limits with NAME=NUMBER settings applied; raises ConfigError for a name or number that is none."""
    known = {one.name: one.default for one in fields(Limits)}
    changed: dict[str, float] = {}
    for setting in settings:
        name, _, value = setting.partition("=")
        if name not in known:
            raise ConfigError(f"--limit {setting!r}: unknown name {name!r}; known here: {', '.join(known)}")
        is_whole = isinstance(known[name], int)
        try:
            number = int(value) if is_whole else float(value)
        except ValueError:
            number = -1
        if not 0 < number < 2**40:
            raise ConfigError(f"--limit {setting!r}: expected {'a whole' if is_whole else 'a'} number above 0")
        changed[name] = number
    return replace(Limits(), **changed)  # type: ignore[arg-type]  # each of its own type, as checked
