"""What a request costs: CPU of the server's processes for each request, the ways in turn, medians of rounds."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from serving.servers import Server
from serving.traffic import KnownUsers, Result, send


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way to be measured: where requests go, and the next n of them. share: of the requests of a round."""

    name: str
    server: Server
    bodies: Callable[[int], Sequence[bytes]]
    path: str | None = None
    share: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a way cost in each round, in microseconds of CPU a request."""

    name: str
    rounds: list[float]

    @property
    def us(self) -> float:
        """Return the median."""
        return statistics.median(self.rounds)


class Unanswered(Exception):
    """Raised where a server answers with anything but 200."""


def costs(ways: Sequence[Way], work: Path, *, connections: int, n: int, rounds: int) -> dict[str, Cost]:
    """Return the cost of each way; the ways take turns, so that what disturbs the machine disturbs them all."""
    found: dict[str, list[float]] = {way.name: [] for way in ways}
    for _ in range(rounds):
        for way in ways:
            n_warm, n_counted = 2 * connections, max(int(n * way.share), connections)
            result = send(
                way.server,
                way.bodies(n_warm + n_counted),
                work,
                connections=connections,
                path=way.path,
                n_warm=n_warm,
            )
            check(way.name, result)
            found[way.name].append(result.cpu_us)
    return {name: Cost(name=name, rounds=values) for name, values in found.items()}


def check(name: str, result: Result) -> None:
    """Raise Unanswered where a request was not answered with 200."""
    others = sorted(set(result.status) - {200})
    if others:
        raise Unanswered(f"{name}: {result.n - result.n_answered} of {result.n} requests were answered with {others}")


def in_turn(bodies: Sequence[bytes]) -> Callable[[int], list[bytes]]:
    """Return what gives the next n of some bodies, again from the first after the last."""
    at = 0

    def next_bodies(n: int) -> list[bytes]:
        nonlocal at
        taken = [bodies[(at + i) % len(bodies)] for i in range(n)]
        at += n
        return taken

    return next_bodies


def remind(server: Server, users: KnownUsers, n_users: int, work: Path) -> None:
    """Send one event of each user, so that all are remembered."""
    check("first events", send(server, users.bodies(n_users), work, connections=8, path="/v1/events"))
