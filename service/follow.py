"""A folder of versions, followed: whoever moves its link `current` to another bundle changes the model that answers.

A thread looks at the link and at the manifest behind it, loads aside what is new, and swaps. Requests pay nothing for
the look, and for a load only what two threads of one interpreter take from each other.
"""

from __future__ import annotations

import hashlib
import os
import stat
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fraud.manifest import MANIFEST
from service.memory import give_back_memory
from service.models import BAD_BUNDLE, LINK, ModelHolder, SwapOutcome

_EVERY_S = 0.5
# A tick waits this long, not Python's 5 ms, each time that it takes the interpreter back from a load.
_SWITCH_S = 0.0005
_MAX_ENTRIES = 256  # of a refused folder that are looked at again; no bundle has as many files
_MAX_MANIFEST_BYTES = 2**20

_Seen = tuple[str | int, ...]


class Follower:
    """A thread that keeps `holder` on the bundle that DIR/current names."""

    def __init__(self, holder: ModelHolder, directory: Path, *, every_s: float = _EVERY_S) -> None:
        """Take the holder, which has its first bundle, and the folder of versions."""
        self._holder, self._directory, self._every_s = holder, directory, every_s
        self._seen: _Seen = ()
        self._was_refused = False
        self._has_swapped = False
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._run, name="follow", daemon=True)

    def start(self) -> None:
        """Begin to follow."""
        self._thread.start()

    def stop(self) -> None:
        """Follow no longer; return when no swap is under way."""
        self._ends.set()
        if self._thread.is_alive():
            self._thread.join()

    def poll(self) -> SwapOutcome | None:
        """Return what came of the bundle that is new behind the link; None where nothing is.

        A refused one is tried again when any file of it has changed: it may have been half-written.
        """
        if self._has_swapped:
            # Not right after the swap: the tick under way then still held the bundle before.
            self._has_swapped = False
            give_back_memory()
        try:
            folder = self._directory / os.readlink(self._directory / LINK)
            manifest = _manifest_seen(folder)
            if self._seen == (_files_seen(folder) if self._was_refused else manifest):
                return None
            # Looked at before the load, so that what is written during it counts as new.
            files = _files_seen(folder)
            is_current = self._is_current(folder)
        except OSError as error:
            return self._unreadable(str(error))
        if is_current:
            self._seen, self._was_refused = manifest, False
            return None
        with _quick_switches():
            outcome = self._holder.try_swap(folder)
        self._has_swapped, self._was_refused = outcome.accepted, not outcome.accepted
        self._seen = manifest if outcome.accepted else files
        return outcome

    def _is_current(self, folder: Path) -> bool:
        """Return True where what answers was read from this very folder, and no other version stands there now."""
        served = self._holder.current
        return folder.resolve() == served.bundle.path.resolve() and _manifest_sha256(folder) == served.sha256

    def _unreadable(self, reason: str) -> SwapOutcome | None:
        if self._seen == (reason,):
            return None
        self._seen, self._was_refused = (reason,), False
        return self._holder.refuse(BAD_BUNDLE, reason)

    def _run(self) -> None:
        while not self._ends.wait(self._every_s):
            self.poll()


def _manifest_seen(folder: Path) -> _Seen:
    """Return what is another as soon as the link, or the manifest behind it, is another."""
    return (str(folder), *_identity(os.lstat(folder / MANIFEST)))


def _files_seen(folder: Path) -> _Seen:
    """Return what is another as soon as any file of a bundle's folder is."""
    seen: list[str | int] = []
    for root, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(root, name)
            seen += (path, *_identity(os.lstat(path)))
            if len(seen) > _MAX_ENTRIES * 5:
                return tuple(seen)
    return tuple(seen)


def _identity(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _manifest_sha256(folder: Path) -> str:
    """Return the sha256 of a bundle's manifest; "" for what no manifest is, such as a pipe, which has no end."""
    status = os.lstat(folder / MANIFEST)
    if not stat.S_ISREG(status.st_mode) or status.st_size > _MAX_MANIFEST_BYTES:
        return ""
    return hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()


@contextmanager
def _quick_switches() -> Iterator[None]:
    before_s = sys.getswitchinterval()
    sys.setswitchinterval(min(_SWITCH_S, before_s))
    try:
        yield
    finally:
        sys.setswitchinterval(before_s)
