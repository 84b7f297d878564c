"""How long an answer takes at some load, and what is left of a service when three times too much is asked of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from serving.costs import check
from serving.servers import Server
from serving.traffic import Result, send

QUANTILES = (0.5, 0.99, 0.999)
Bodies = Callable[[int], Sequence[bytes]]  # the next n
_CONNECTIONS = 256  # of an open loop: more than ever wait
_MANY_CONNECTIONS = 1024  # of an overload: what waits for a free one is late for a reason of the client's
_GOOD_S = 1.0  # an answer that comes later is none
_WINDOW_S = 0.25
_TIMES = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """The latencies of an open loop at a share of capacity."""

    share: float
    rate: float
    result: Result


@dataclass(frozen=True, slots=True, kw_only=True)
class Overload:
    """An overload: half of capacity, three times capacity, half of it again.

    goodput: good answers a second while it lasted, the first second left out. back_s: until all was as before, None if
    it never was. windows: (seconds since the start, good answers a second, median latency in ms), by quarter second.
    """

    rate: float
    goodput: float
    back_s: float | None
    windows: list[tuple[float, float, float]]
    began_s: float
    ended_s: float
    statuses: dict[str, int]


def capacity(server: Server, bodies: Bodies, work: Path, *, path: str, n: int) -> float:
    """Return the most requests a second that are answered when every connection always asks: the best of two sizes."""
    rates: list[float] = []
    for connections in (64, 256):
        n_warm = 2 * connections
        result = send(server, bodies(n + n_warm), work, connections=connections, path=path, n_warm=n_warm)
        check("capacity", result)
        rates.append(result.rate)
    return max(rates)


def loaded(
    server: Server, bodies: Bodies, work: Path, *, path: str, share: float, rate: float, seconds: float
) -> Loaded:
    """Return the latencies at a share of a rate."""
    n = int(1.2 * share * rate * seconds) + 100  # chance may ask for some more than the mean
    result = send(server, bodies(n), work, connections=_CONNECTIONS, path=path, stages=[(share * rate, seconds)])
    return Loaded(share=share, rate=share * rate, result=result)


def overload(server: Server, bodies: Sequence[bytes], work: Path, *, rate: float, seconds: float) -> Overload:
    """Return what came of asking three times a rate."""
    stages = [(rate / 2, seconds), (_TIMES * rate, seconds), (rate / 2, 1.5 * seconds)]
    result = send(server, bodies, work, connections=_MANY_CONNECTIONS, stages=stages)
    due_s, latency_s, status = np.array(result.due_s), np.array(result.latency_s), np.array(result.status)
    good = (status == 200) & (latency_s <= _GOOD_S)
    began_s, ended_s, end_s = seconds, 2 * seconds, 3.5 * seconds
    came_s = due_s + latency_s
    counted = good & (came_s >= began_s + 1.0) & (came_s < ended_s)
    windows = [
        _window(due_s, latency_s, good, came_s, float(start)) for start in np.arange(0.0, end_s - 1e-9, _WINDOW_S)
    ]
    before_ms = float(np.median(latency_s[good & (due_s < began_s)])) * 1000
    return Overload(
        rate=_TIMES * rate,
        goodput=float(counted.sum()) / (seconds - 1.0),
        back_s=_back_s(due_s, latency_s, good, ended_s, end_s, before_ms),
        windows=windows,
        began_s=began_s,
        ended_s=ended_s,
        statuses={str(code): int((status == code).sum()) for code in sorted(set(result.status))},
    )


def _window(
    due_s: np.ndarray, latency_s: np.ndarray, good: np.ndarray, came_s: np.ndarray, start: float
) -> tuple[float, float, float]:
    came = good & (came_s >= start) & (came_s < start + _WINDOW_S)
    asked = good & (due_s >= start) & (due_s < start + _WINDOW_S)
    median_ms = float(np.median(latency_s[asked])) * 1000 if asked.any() else float("nan")
    return start, float(came.sum()) / _WINDOW_S, median_ms


def _back_s(
    due_s: np.ndarray, latency_s: np.ndarray, good: np.ndarray, ended_s: float, end_s: float, before_ms: float
) -> float | None:
    """Return the seconds from the end of the overload to a whole second as good as before it, its end included.

    In such a second nothing is refused, and the median is at most twice what it was before, and 5 ms.
    """
    for start in np.arange(ended_s, end_s - 1.0, _WINDOW_S):
        asked = (due_s >= start) & (due_s < start + 1.0)
        if good[asked].all() and np.median(latency_s[asked]) * 1000 <= 2 * before_ms + 5:
            return float(start + 1.0 - ended_s)
    return None
