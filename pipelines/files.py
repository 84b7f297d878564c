"""Outputs that are written whole or not at all: aside first, synced, then renamed over."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fraud.errors import ConfigError


@contextmanager
def only_one(path: Path) -> Iterator[None]:
    """Hold the right to write an output while the block runs; raise ConfigError where another process holds it.

    The lock is the kernel's: it ends with the process, however that ends.
    """
    if not path.name:
        raise ConfigError(f"{path}: expected the name of an output, not the current folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.name}.lock")
    while True:
        descriptor = os.open(lock, os.O_CREAT | os.O_RDWR, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The holder before removes the file when it ends: a lock on a file that is gone holds nobody off.
            if lock.exists() and os.fstat(descriptor).st_ino == lock.stat().st_ino:
                break
        except BlockingIOError:
            os.close(descriptor)
            raise ConfigError(f"{path}: another run is writing it; wait until it ends") from None
        os.close(descriptor)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(descriptor)


def check_new(path: Path, *, overwrite: bool, mark: str | None = None) -> None:
    """Raise ConfigError where an output exists and may not be replaced.

    mark: the file that every folder this command writes holds. A folder without it is somebody else's: no option
    replaces it.
    """
    if path.exists() and not overwrite:
        raise ConfigError(f"{path}: exists; --overwrite replaces it")
    if mark is None and path.is_dir():
        raise ConfigError(f"{path}: is a folder; expected the name of a file")
    if mark is not None and path.exists() and not (path / mark).is_file() and not is_empty_folder(path):
        raise ConfigError(
            f"{path}: holds no {mark}, so it is no output of this command; expected a new or empty folder"
        )


def check_output(out: Path, work: Path, *, overwrite: bool, resume: bool, mark: str | None = None) -> None:
    """Raise ConfigError where an output exists and may not be replaced by a run that works in the folder `work`.

    resume goes on with a run that left its working folder; without one there is nothing to go on with, and a finished
    output stays as it is.
    """
    if resume and not overwrite and out.exists() and not work.is_dir():
        raise ConfigError(f"{out}: exists, and no unfinished run is there to resume; --overwrite replaces it")
    check_new(out, overwrite=overwrite or resume, mark=mark)


def is_empty_folder(path: Path) -> bool:
    """Return True for a folder with nothing in it."""
    return path.is_dir() and not any(path.iterdir())


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield the path of a file to write; it becomes `path` when the block ends well, else it is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.partial")
    try:
        yield aside
        with aside.open("rb+") as file:
            os.fsync(file.fileno())
        aside.replace(path)
        _sync(path.parent)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def directory_written_whole(path: Path) -> Iterator[Path]:
    """Yield a new directory to fill; it becomes `path` (replacing one there) when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        yield aside
        for file in aside.rglob("*"):
            if file.is_file():
                with file.open("rb+") as handle:
                    os.fsync(handle.fileno())
        replace_directory(aside, path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def replace_directory(new: Path, path: Path) -> None:
    """Rename the directory `new` to `path`; one that stands there is moved aside first and removed last."""
    old = path.with_name(f".{path.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        path.rename(old)
    try:
        new.rename(path)
    except OSError:
        if old.exists():
            old.rename(path)
        raise
    _sync(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
