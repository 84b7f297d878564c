"""`fraud serve` and `fraud warm`: declared here, done by the service.

A command BECOMES the service (exec): a signal sent to it reaches the server, and nothing of the command line stays in
its memory. The service stands on its own and is never imported from here.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, NoReturn

import typer

DEFAULT_STATE = "sqlite:///fraud-state.db"
State = Annotated[
    str, typer.Option("--state", metavar="URL", help="Where the state is: sqlite:///PATH or postgresql://…")
]


# One arena: the threads of a service would else keep memory apart that no one of them needs. Large arrays by mmap,
# always: glibc raises its own threshold after the first swap, and zeroed arrays become resident (11 MB).
_ENVIRONMENT = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "262144",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}


class ClockKind(StrEnum):
    """Which clock tells what is in the future: the wall's, or the newest event's (for replays)."""

    wall = "wall"
    log = "log"


class Failing(StrEnum):
    """What is answered while the store is away: a degraded score, or 503."""

    open = "open"
    closed = "closed"


def become(command: str, arguments: Sequence[str]) -> NoReturn:
    """Run `python -m service COMMAND` in place of this process; does not return."""
    sys.stdout.flush()
    sys.stderr.flush()
    environment = {**_ENVIRONMENT, **os.environ}
    os.execve(sys.executable, [sys.executable, "-m", "service", command, *arguments], environment)


def serve(
    path: Annotated[
        Path, typer.Argument(metavar="[BUNDLE | DIR]", help="A bundle, or a folder of versions with a link `current`.")
    ] = Path("bundle"),
    follow: Annotated[bool, typer.Option("--follow", help="Swap to whatever DIR/current comes to name.")] = False,
    shadow: Annotated[
        Path | None, typer.Option("--shadow", metavar="BUNDLE", help="A challenger, scored after the answer.")
    ] = None,
    shadow_rate: Annotated[float, typer.Option("--shadow-rate", help="The share of ticks it scores.")] = 1.0,
    host: Annotated[
        str, typer.Option("--host", help="Other than this machine's own only with API keys.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="0: any that is free; stdout says which.")] = 8000,
    workers: Annotated[int, typer.Option("--workers", help="Processes on one port and one state.")] = 1,
    state: State = DEFAULT_STATE,
    state_timeout: Annotated[
        float, typer.Option("--state-timeout", help="Seconds after which the state counts as away.")
    ] = 2.0,
    clock: Annotated[
        ClockKind, typer.Option("--clock", help="log: the newest event is now, for replays.")
    ] = ClockKind.wall,
    fail: Annotated[
        Failing, typer.Option("--fail", help="While the state is away: degraded scores (open) or 503 (closed).")
    ] = Failing.closed,
    wait: Annotated[
        float, typer.Option("--wait", help="Seconds to wait for the state and the bundle at start.")
    ] = 60.0,
    users: Annotated[int, typer.Option("--users", help="Users kept in memory; others are read from the state.")] = 2000,
    limit: Annotated[
        list[str] | None, typer.Option("--limit", metavar="NAME=NUMBER", help="Change one limit of the HTTP edge.")
    ] = None,
) -> None:
    """Answer requests over HTTP until a signal comes; docs at /docs."""
    arguments = [str(path), "--host", host, "--port", str(port), "--workers", str(workers), "--state", state]
    arguments += ["--state-timeout", str(state_timeout), "--clock", clock.value, "--fail", fail.value]
    arguments += ["--wait", str(wait), "--users", str(users), "--shadow-rate", str(shadow_rate)]
    arguments += ["--follow"] if follow else []
    arguments += ["--shadow", str(shadow)] if shadow is not None else []
    for setting in limit or ():
        arguments += ["--limit", setting]
    become("serve", arguments)


def warm(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The directory of a bundle.")],
    events: Annotated[str, typer.Argument(metavar="EVENTS", help="A log: a file, a folder or a glob.")],
    state: State = DEFAULT_STATE,
    config: Annotated[
        Path | None, typer.Option("--config", metavar="CONFIG", help="Whose [labels] say which frauds are known.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")] = False,
) -> None:
    """Fill the online state from a log: a live event then scores as it would at the log's end."""
    arguments = [str(bundle), events, "--state", state]
    arguments += ["--config", str(config)] if config is not None else []
    become("warm", [*arguments, *(["--json"] if as_json else [])])


# What a deceived victim does: a look at the credit score, then money to somebody new.
_VICTIM = (
    ("login", "2026-11-20T18:02:11Z", '"channel": "web", "device": "d-new"'),
    ("credit_score_check", "2026-11-20T18:02:48Z", '"channel": "web"'),
    ("add_payee", "2026-11-20T18:03:30Z", '"channel": "web", "payee": "p-new"'),
    ("transfer_out", "2026-11-20T18:03:55Z", '"channel": "web", "payee": "p-new", "amount": 2400.0'),
)


def serve_demo(out: Path, port: int) -> NoReturn:
    """Serve the demo's bundle, and say how to ask it; does not return."""
    url = f"http://127.0.0.1:{port}" if port else "http://127.0.0.1:PORT"
    events = ", ".join(f'{{"type": "{kind}", "ts": "{ts}", {rest}}}' for kind, ts, rest in _VICTIM)
    body = f'{{"user_id": "u-new", "explain": true, "events": [{events}]}}'
    sys.stderr.write(
        f"\nserving {out / 'bundle'} until Ctrl-C (the same: fraud serve {out / 'bundle'}); docs: {url}/docs\n"
        f"ask it in another terminal:\n\n  curl -s {url}/v1/score -H 'Content-Type: application/json' -d '{body}'\n\n"
    )
    become("serve", [str(out / "bundle"), "--port", str(port), "--state", f"sqlite:///{out}/state.db"])
