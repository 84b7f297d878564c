"""Memory that is free inside the process, given back to the system: the allocator alone would keep it.

glibc returns only what lies at the end of a heap, and a model is freed in pieces between those of the next one: without
this a service that swapped models 200 times held 115 MiB instead of 95 of an LSTM, 178 instead of 108 of a fusion of
four, and one that has just started holds what checking its bundle needed. Elsewhere than on glibc nothing is done.
"""

from __future__ import annotations

import ctypes
from typing import cast

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_LARGE_BYTES, _KEPT_BYTES = 1 << 19, 1 << 22


def give_back_large_blocks() -> bool:
    """Return True where a block of half a MB or more goes back to the system as soon as it is free.

    Left alone glibc learns from the first large blocks to keep all later ones in its heap, where an explanation leaves
    3 to 5 MB between what lives on: an LSTM's service held 160 MB after some thousand requests, and holds 128. A limit
    of 128 kB saves 3 MB more, but then each batch of the network is mapped anew: a fifth more CPU for a score.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)) and bool(mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES))


def give_back_memory() -> bool:
    """Return True where the system got some memory back, False where there was none, or no way.

    Takes a millisecond for 20 to 50 MB of heap; other threads of Python run meanwhile.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return cast(int, trim(0)) == 1 if trim is not None else False
