"""Outputs that are written whole or not at all: aside first, synced, then renamed over."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fraud.errors import ConfigError


def check_new(path: Path, *, overwrite: bool) -> None:
    """Raise ConfigError where an output exists and may not be replaced."""
    if path.exists() and not overwrite:
        raise ConfigError(f"{path}: exists; --overwrite replaces it")


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield the path of a file to write; it becomes `path` when the block ends well, and is removed when it does not."""
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
