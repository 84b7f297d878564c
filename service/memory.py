"""Memory that is free inside the process, given back to the system: the allocator alone would keep it.

glibc returns only what lies at the end of a heap, and a model is freed in pieces between those of the next one: without
this a service that swapped models 200 times held 115 MiB instead of 95 of an LSTM, 178 instead of 108 of a fusion of
four, and one that has just started holds what checking its bundle needed. Elsewhere than on glibc nothing is done.
"""

from __future__ import annotations

import ctypes
from typing import cast


def give_back_memory() -> bool:
    """Return True where the system got some memory back, False where there was none, or no way.

    Takes a millisecond for 20 to 50 MB of heap; other threads of Python run meanwhile.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return cast(int, trim(0)) == 1 if trim is not None else False
