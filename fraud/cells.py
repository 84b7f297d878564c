"""Raw cells of one column, in the three forms logs come in, as typed Arrow arrays.

CSV cells are text where only the empty cell is null. JSON cells are Python objects. Arrow cells (Parquet, a table in
memory) have the type of their column; a column of a wrong type is refused as a whole. Which values a log may hold is
validation's matter: here only the type is decided, and cells that cannot have it get a fault.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fraud.errors import DataError
from fraud.events import FloatArray, IntArray
from fraud.json_cells import LARGEST_INTEGER, Typed, json_floats, json_integers, json_text
from fraud.quarantine import Fault, FaultArray, printable
from fraud.timestamps import Times, times_of_integers, times_of_numbers, times_of_text, times_of_timestamps

_NUMBER = r"^-?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?$"
_INTEGER = r"^-?[0-9]{1,19}$"


@dataclass(frozen=True, slots=True)
class CsvCells:
    """text: string array without nulls; an empty cell is null."""

    text: pa.Array


@dataclass(frozen=True, slots=True)
class JsonCells:
    """objects: what `json` made of each cell; None where the key is absent or null."""

    objects: list[object]


@dataclass(frozen=True, slots=True)
class ArrowCells:
    """values: an array of any type; `where` names the file and column in errors."""

    values: pa.Array
    where: str


Cells = CsvCells | JsonCells | ArrowCells


def shown(cells: Cells, rows: IntArray) -> list[str | None]:
    """Return the cells at `rows` as printable text; None where null."""
    if isinstance(cells, JsonCells):
        found = [cells.objects[row] for row in rows]
    else:
        values = cells.text if isinstance(cells, CsvCells) else _decoded(cells.values)
        found = _readable(values.take(pa.array(rows))).to_pylist()
    return [None if value is None else printable(value) for value in found]


def as_text(cells: Cells) -> Typed:
    """Return string cells as written; integers of JSON and Arrow as their decimal text."""
    if isinstance(cells, CsvCells):
        return Typed(_null_where_empty(cells.text), None)
    if isinstance(cells, JsonCells):
        return json_text(cells.objects)
    values = _decoded(cells.values)
    kind = values.type
    if pa.types.is_string(kind):
        return Typed(values, None)
    is_text = pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    if is_text or pa.types.is_integer(kind) or pa.types.is_null(kind):
        return Typed(values.cast(pa.string()), None)
    raise DataError(f"{cells.where} has type {cells.values.type}; expected text or integers")


def as_floats(cells: Cells) -> Typed:
    """Return float64 cells; NaN and infinities stay for the caller to refuse."""
    if isinstance(cells, CsvCells):
        return _csv_numbers(_null_where_empty(cells.text), _NUMBER, pa.float64(), Fault.BAD_NUMBER)
    if isinstance(cells, JsonCells):
        return json_floats(cells.objects)
    values = _decoded(cells.values)
    kind = values.type
    if pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_decimal(kind) or pa.types.is_null(kind):
        return Typed(values.cast(pa.float64(), safe=False), None)
    raise DataError(f"{cells.where} has type {kind}; expected numbers")


def as_integers(cells: Cells) -> Typed:
    """Return int64 cells."""
    if isinstance(cells, CsvCells):
        return _csv_integers(_null_where_empty(cells.text))
    if isinstance(cells, JsonCells):
        return json_integers(cells.objects)
    values = _decoded(cells.values)
    kind = values.type
    if pa.types.is_uint64(kind):
        is_large = pc.greater(values, pa.scalar(LARGEST_INTEGER, pa.uint64()))
        kept = pc.if_else(is_large, pa.scalar(None, pa.uint64()), values)
        return Typed(kept.cast(pa.int64()), _faults(is_large, Fault.BAD_INTEGER))
    if pa.types.is_integer(kind) or pa.types.is_null(kind):
        return Typed(values.cast(pa.int64()), None)
    raise DataError(f"{cells.where} has type {kind}; expected integers")


def as_labels(cells: Cells) -> Typed:
    """Return int8 cells of 0 or 1; null is no label."""
    if isinstance(cells, CsvCells):
        text = pc.utf8_lower(_null_where_empty(cells.text))
        is_one, is_zero = (pc.is_in(text, pa.array(words)) for words in (["1", "true"], ["0", "false"]))
        is_null = pc.is_null(text)
    elif isinstance(cells, JsonCells):
        # bool and float compare equal to 0 and 1; the kind is asked first, so that no other object is compared.
        kept = [c if isinstance(c, bool | int | float) else None for c in cells.objects]
        is_one, is_zero = (pa.array([c is not None and c == digit for c in kept], pa.bool_()) for digit in (1, 0))
        is_null = pa.array([c is None for c in cells.objects], pa.bool_())
    else:
        if pa.types.is_boolean(cells.values.type):
            return Typed(cells.values.cast(pa.int8()), None)
        numbers = as_floats(cells).values
        is_one, is_zero = (pc.fill_null(pc.equal(numbers, digit), False) for digit in (1.0, 0.0))
        is_null = pc.is_null(numbers)
    values = pc.if_else(is_one, pa.scalar(1, pa.int8()), pc.if_else(is_zero, pa.scalar(0, pa.int8()), None))
    return Typed(values, _faults(pc.invert(pc.or_(pc.or_(is_one, is_zero), is_null)), Fault.BAD_LABEL))


def as_times(cells: Cells, *, unit: str | None, zone: str | None) -> Typed:
    """Return int64 microseconds since 1970 UTC; null where the cell is null."""
    if isinstance(cells, CsvCells):
        return _csv_times(_null_where_empty(cells.text), unit=unit, zone=zone)
    if isinstance(cells, JsonCells):
        return _json_times(cells.objects, unit=unit, zone=zone)
    values = _decoded(cells.values)
    kind = values.type
    if pa.types.is_timestamp(kind):
        if kind.tz is None and zone is None:
            raise DataError(f"{cells.where} has times without a zone ({kind}); expected a zone, or log.zone set to one")
        return _typed_times(times_of_timestamps(values, zone), values)
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        if unit is None:
            raise DataError(f'{cells.where} holds numbers ({kind}); set log.time_unit to "s", "ms" or "us"')
        if not pa.types.is_integer(kind):
            floats = pc.fill_null(values.cast(pa.float64()), 0.0).to_numpy(zero_copy_only=False)
            return _typed_times(times_of_numbers(floats, unit), values)
        integers = as_integers(ArrowCells(values, cells.where))
        times = _typed_times(_integer_times(integers.values, unit), values)
        return _with_faults(times, integers.faults_N)
    if pa.types.is_null(kind):
        return Typed(values.cast(pa.int64()), None)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        text = values.cast(pa.string())
        return _typed_times(times_of_text(text, zone), text)
    raise DataError(f"{cells.where} has type {kind}; expected timestamps, RFC 3339 text or numbers")


def _decoded(values: pa.Array) -> pa.Array:
    """Return the array without its dictionary encoding."""
    return values.dictionary_decode() if pa.types.is_dictionary(values.type) else values


def _readable(values: pa.Array) -> pa.Array:
    """Return bytes of text that may not be UTF-8, the text of anything else."""
    kind = values.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return values.cast(pa.large_binary())
    return values.cast(pa.float64() if pa.types.is_float16(kind) else kind).cast(pa.string())


def _null_where_empty(text: pa.Array) -> pa.Array:
    is_empty = pc.equal(pc.binary_length(text), 0)
    return pc.if_else(is_empty, pa.scalar(None, pa.string()), text) if pc.any(is_empty).as_py() else text


def _faults(is_bad: pa.Array, fault: Fault) -> FaultArray | None:
    is_bad_N = pc.fill_null(is_bad, False).to_numpy(zero_copy_only=False)
    return np.where(is_bad_N, np.int8(fault), np.int8(0)) if is_bad_N.any() else None


def _with_faults(typed: Typed, earlier_N: FaultArray | None) -> Typed:
    """Return `typed` with the faults of an earlier step taking precedence."""
    if earlier_N is None:
        return typed
    later_N = np.zeros_like(earlier_N) if typed.faults_N is None else typed.faults_N
    return Typed(typed.values, np.where(earlier_N != 0, earlier_N, later_N))


def _typed_times(times: Times, cells: pa.Array) -> Typed:
    is_null = pc.is_null(cells).to_numpy(zero_copy_only=False) if cells.null_count else None
    faults_N = times.faults_N if is_null is None else np.where(is_null, np.int8(0), times.faults_N)
    return Typed(pa.array(times.time_us_N, mask=is_null), faults_N if faults_N.any() else None)


def _integer_times(values: pa.Array, unit: str) -> Times:
    return times_of_integers(pc.fill_null(values, 0).to_numpy(zero_copy_only=False), unit)


def _csv_numbers(text: pa.Array, grammar: str, kind: pa.DataType, fault: Fault) -> Typed:
    """Return the numbers of text that matches the grammar; what Arrow reads beyond it ("inf", "+1") is a fault."""
    matches = pc.match_substring_regex(text, grammar)
    is_bad = pc.invert(matches)
    faults_N = _faults(is_bad, fault)
    kept = text if faults_N is None else pc.if_else(matches, text, pa.scalar(None, pa.string()))
    return Typed(kept.cast(kind), faults_N)


def _csv_integers(text: pa.Array) -> Typed:
    matches = pc.match_substring_regex(text, _INTEGER)
    long = np.flatnonzero(pc.fill_null(pc.greater(pc.binary_length(text), 18), False).to_numpy(zero_copy_only=False))
    fits = [
        abs(int(cell)) <= LARGEST_INTEGER if re.match(_INTEGER, cell) else False
        for cell in text.take(pa.array(long)).to_pylist()
    ]
    is_good_N = pc.fill_null(matches, True).to_numpy(zero_copy_only=False).copy()
    is_good_N[long] = fits
    faults_N = _faults(pa.array(~is_good_N), Fault.BAD_INTEGER)
    kept = text if faults_N is None else pc.if_else(pa.array(is_good_N), text, pa.scalar(None, pa.string()))
    return Typed(kept.cast(pa.int64()), faults_N)


def _csv_times(text: pa.Array, *, unit: str | None, zone: str | None) -> Typed:
    times = times_of_text(text, zone)
    rows = np.flatnonzero(times.faults_N == Fault.BAD_TIME)
    if len(rows):
        numbers = _csv_numbers(text.take(pa.array(rows)), _NUMBER, pa.float64(), Fault.BAD_TIME)
        floats = pc.fill_null(numbers.values, 0.0).to_numpy(zero_copy_only=False)
        from_numbers = times_of_numbers(floats, unit)
        times.time_us_N[rows] = from_numbers.time_us_N
        times.faults_N[rows] = (
            from_numbers.faults_N
            if numbers.faults_N is None
            else np.where(numbers.faults_N != 0, numbers.faults_N, from_numbers.faults_N)
        )
    return _typed_times(times, text)


def _json_times(objects: list[object], *, unit: str | None, zone: str | None) -> Typed:
    """Return the times of texts and numbers, which may stand in one column."""
    is_all_text = set(map(type, objects)) <= {str, type(None)}
    text = json_text(objects if is_all_text else [cell if isinstance(cell, str) else None for cell in objects])
    times = _with_faults(_typed_times(times_of_text(text.values, zone), text.values), text.faults_N)
    if is_all_text:
        return times
    numbers = json_floats([None if isinstance(cell, str) else cell for cell in objects])
    floats: FloatArray = pc.fill_null(numbers.values, 0.0).to_numpy(zero_copy_only=False)
    from_numbers = _with_faults(_typed_times(times_of_numbers(floats, unit), numbers.values), numbers.faults_N)
    none_N = np.zeros(len(objects), dtype=np.int8)
    text_faults_N = none_N if times.faults_N is None else times.faults_N
    number_faults_N = none_N if from_numbers.faults_N is None else from_numbers.faults_N
    return Typed(
        pc.coalesce(times.values, from_numbers.values), np.where(text_faults_N != 0, text_faults_N, number_faults_N)
    )
