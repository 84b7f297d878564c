"""Cells of a text column looked up in a table of known values, whichever is fewer: the cells or their dictionary.

A log's dictionary is far smaller than its rows. The dictionary of a service that runs for weeks is far larger than the
rows of one call, and nothing may cost as much as all that it ever saw.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from fraud.events import NULL_CODE, CodeArray, IntArray, ObjectArray, Text

PlaceArray = npt.NDArray[np.int16]


def places(column: Text, place_of: Mapping[str, int], *, unknown: int, null: int) -> PlaceArray:
    """Return int16 [N]: the place of each cell, `unknown` where the table does not hold it, `null` where it is null."""
    codes_N, values = column.codes_N, column.values
    if len(values) > len(codes_N):
        place_N = np.array([place_of.get(value, unknown) for value in values[codes_N].tolist()], dtype=np.int16)
        place_N[codes_N == NULL_CODE] = null
        return place_N
    place_V1 = [*(place_of.get(value, unknown) for value in values.tolist()), null]
    return np.array(place_V1, dtype=np.int16)[codes_N]


def sorted_places(codes_R: CodeArray, values: ObjectArray, known: ObjectArray) -> IntArray:
    """Return int64 [R]: the place of each value in the sorted `known`, their number where they do not hold it.

    codes_R: into `values`, none of them null.
    """
    if len(values) > len(codes_R):
        return _searched(values[codes_R], known)
    # What no row has is not looked at: a dictionary with room to grow holds None there.
    is_used_V = np.zeros(len(values), dtype=np.bool_)
    is_used_V[codes_R] = True
    place_V = np.empty(len(values), dtype=np.int64)
    place_V[is_used_V] = _searched(values[is_used_V], known)
    return place_V[codes_R]


def _searched(wanted_R: ObjectArray, known: ObjectArray) -> IntArray:
    if not len(known):
        return np.zeros(len(wanted_R), dtype=np.int64)
    place_R = np.minimum(known.searchsorted(wanted_R), len(known) - 1)
    return np.where(known[place_R] == wanted_R, place_R, len(known))
