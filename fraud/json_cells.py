"""Cells that `json` made, as typed Arrow arrays; a cell of another type gets a fault.

A block of one clean type is converted by Arrow at once, any other cell by cell. bool is no integer here.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa

from fraud.quarantine import Fault, FaultArray

LARGEST_INTEGER = 2**63 - 1


class Typed(NamedTuple):
    """values: an Arrow array of N cells, null where there is no value or a fault; faults_N: int8 [N] or None."""

    values: pa.Array
    faults_N: FaultArray | None


def json_text(objects: list[object]) -> Typed:
    """Return string cells; integers as their decimal text."""
    kinds = set(map(type, objects))
    try:
        if kinds <= {str, type(None)}:
            return Typed(pa.array(objects, pa.string()), None)
        if kinds <= {int, type(None)}:
            return Typed(pa.array(objects, pa.int64()).cast(pa.string()), None)
    except (UnicodeEncodeError, OverflowError, pa.ArrowInvalid):
        pass
    faults_N = np.zeros(len(objects), dtype=np.int8)
    kept: list[str | None] = []
    for row, cell in enumerate(objects):
        text = str(cell) if type(cell) is int else cell
        if text is not None and not isinstance(text, str):
            faults_N[row], text = Fault.WRONG_TYPE, None
        elif text is not None and not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
            faults_N[row], text = Fault.LONE_SURROGATE, None
        kept.append(text)
    return Typed(pa.array(kept, pa.string()), faults_N if faults_N.any() else None)


def json_floats(objects: list[object]) -> Typed:
    """Return float64 cells; NaN and infinities stay."""
    if set(map(type, objects)) <= {int, float, type(None)}:
        try:
            return Typed(pa.array(objects, pa.float64()), None)
        except (pa.ArrowInvalid, OverflowError):
            pass  # an integer that no float64 holds exactly: the nearest is taken below
    faults_N = np.zeros(len(objects), dtype=np.int8)
    kept: list[float | None] = []
    for row, cell in enumerate(objects):
        number: float | None = None
        if type(cell) is float or type(cell) is int:
            try:
                number = float(cell)
            except OverflowError:
                faults_N[row] = Fault.NOT_FINITE
        elif cell is not None:
            faults_N[row] = Fault.WRONG_TYPE
        kept.append(number)
    return Typed(pa.array(kept, pa.float64()), faults_N if faults_N.any() else None)


def json_integers(objects: list[object]) -> Typed:
    """Return int64 cells."""
    if set(map(type, objects)) <= {int, type(None)}:
        try:
            return Typed(pa.array(objects, pa.int64()), None)
        except (pa.ArrowInvalid, OverflowError):
            pass
    faults_N = np.zeros(len(objects), dtype=np.int8)
    kept: list[int | None] = []
    for row, cell in enumerate(objects):
        number: int | None = None
        if type(cell) is int and -LARGEST_INTEGER <= cell <= LARGEST_INTEGER:
            number = cell
        elif cell is not None:
            faults_N[row] = Fault.BAD_INTEGER if type(cell) is int else Fault.WRONG_TYPE
        kept.append(number)
    return Typed(pa.array(kept, pa.int64()), faults_N if faults_N.any() else None)
