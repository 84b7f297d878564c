"""Work on several items at a time in threads, results in order: NumPy, Arrow and ONNX Runtime release Python's lock."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

# Two, as on the machines this was measured on; each more holds the arrays of one more chunk in memory.
N_THREADS = 2

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def in_order(work: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[_Result]:
    """Yield work(item) for each item, in order; at most N_THREADS are under way and as many wait to be taken.

    An error of `work` is raised where its result would have been yielded.
    """
    with ThreadPoolExecutor(N_THREADS) as pool:
        begun: deque[Future[_Result]] = deque()
        for item in items:
            begun.append(pool.submit(work, item))
            if len(begun) > N_THREADS:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
