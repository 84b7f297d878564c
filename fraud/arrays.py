"""Arrays as flat files: appended to chunk by chunk, read back through memory maps."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from fraud.errors import DataError


class ArrayFiles:
    """Flat binary files that arrays are appended to, chunk by chunk; used in a `with` block, which closes them."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._open = ExitStack()
        self._files: dict[str, BinaryIO] = {}
        self._shapes: dict[str, tuple[str, list[int]]] = {}

    def append(self, name: str, column: npt.NDArray[Any]) -> None:
        """Append the rows of an array."""
        if name not in self._files:
            self._files[name] = self._open.enter_context((self._directory / f"{name}.bin").open("wb"))
            self._shapes[name] = (column.dtype.str, [0, *column.shape[1:]])
        # Not `tofile`, whose error says neither that the disk is full nor where.
        self._files[name].write(np.ascontiguousarray(column).data)
        self._shapes[name][1][0] += len(column)

    @property
    def shapes(self) -> dict[str, tuple[str, list[int]]]:
        """Return the dtype and shape of each array so far."""
        return self._shapes

    def __enter__(self) -> ArrayFiles:
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()


def map_array(path: Path, kind: str, shape: list[int]) -> npt.NDArray[Any]:
    """Return the array of a flat file, mapped for reading; raise DataError where its size is another."""
    size = int(np.prod(shape)) * np.dtype(kind).itemsize
    if path.stat().st_size != size:
        raise DataError(f"{path}: {path.stat().st_size} bytes; expected {size}")
    if size == 0:
        return np.zeros(shape, dtype=kind)
    return np.memmap(path, dtype=kind, mode="r", shape=tuple(shape))
