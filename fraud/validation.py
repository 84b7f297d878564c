"""Raw cells of the declared columns -> canonical table; every row that breaks a rule goes to the quarantine.

The rules are those of the design ("Values"): they are the same for a CSV, JSON Lines, a Parquet file and a table in
memory. Of a bad row the first failing column, in the order of `declared_columns`, is reported.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fraud.cells import ArrowCells, Cells, as_floats, as_integers, as_labels, as_text, as_times, shown
from fraud.columns import Declared, canonical_schema, check_header, declared_columns, is_log
from fraud.config import Config
from fraud.events import BoolArray, FloatArray, IntArray
from fraud.json_cells import Typed
from fraud.quarantine import Fault, FaultArray, Quarantine

_MAX_CHARACTERS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class RawRows:
    """Rows of one source. cells: column of the log -> its cells; rows_N: int64 [N], their 0-based data rows there."""

    source: str
    rows_N: IntArray
    cells: Mapping[str, Cells]


def canonical_table(
    table: pa.Table, config: Config, quarantine: Quarantine, *, source: str, first_row: int
) -> pa.Table:
    """Return the canonical rows of a table in memory, by the same rules as a file; `row` counts from first_row.

    `source` stands for the file name in the quarantine. Raises DataError for a missing or repeated column and for a
    column of a wrong type.
    """
    declared = declared_columns(config)
    check_header(table.column_names, declared, source)
    quarantine.open_source(source, first_row)
    quarantine.count_read(len(table))
    cells = arrow_cells(table, declared, source)
    rows = RawRows(source=source, rows_N=np.arange(len(table), dtype=np.int64), cells=cells)
    return canonical_rows(rows, declared, config, quarantine, first_row=first_row)


def arrow_cells(table: pa.Table | pa.RecordBatch, declared: Sequence[Declared], source: str) -> dict[str, Cells]:
    """Return the cells of the declared columns of a table or a record batch."""
    names = set(table.schema.names)
    cells: dict[str, Cells] = {}
    for name in {column.column for column in declared} & names:
        values = table.column(name)
        whole = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
        cells[name] = ArrowCells(whole, f"{source}: column {name!r}")
    return cells


def canonical_rows(
    raw: RawRows, declared: Sequence[Declared], config: Config, quarantine: Quarantine, *, first_row: int
) -> pa.Table:
    """Return the rows of `raw` that obey every rule, with `row` = first_row + the row in the source."""
    n_rows = len(raw.rows_N)
    failed_N: BoolArray | None = None
    columns: dict[str, pa.Array] = {}
    for column in declared:
        cells = raw.cells.get(column.column)
        if cells is None:
            columns[column.name] = pa.nulls(n_rows, column.arrow_type)
            continue
        values, faults_N = _checked(column, cells, config)
        columns[column.name] = values
        if faults_N is None:
            continue
        is_new_N = faults_N != 0 if failed_N is None else (faults_N != 0) & ~failed_N
        new = np.flatnonzero(is_new_N)
        quarantine.add(
            raw.source, raw.rows_N[new], column=column.column, values=shown(cells, new), faults_N=faults_N[new]
        )
        failed_N = is_new_N if failed_N is None else failed_N | is_new_N
    table = _assembled(columns, raw.rows_N + first_row, declared)
    return table if failed_N is None else table.filter(pa.array(~failed_N))


def _assembled(columns: Mapping[str, pa.Array], row_N: IntArray, declared: Sequence[Declared]) -> pa.Table:
    schema = canonical_schema(declared)
    whole = {**columns, "row": pa.array(row_N)}
    if is_log(declared):
        parts = [columns[column.name] for column in declared if column.name.startswith("type:")]
        whole["type"] = _joined_types(parts, len(row_N))
    return pa.Table.from_arrays([whole[name] for name in schema.names], schema=schema)


def _joined_types(parts: list[pa.Array], n_rows: int) -> pa.Array:
    if not parts:
        return pa.repeat(pa.scalar("event"), n_rows)
    return parts[0] if len(parts) == 1 else pc.binary_join_element_wise(*parts, "|")


def _checked(column: Declared, cells: Cells, config: Config) -> Typed:
    """Return the values of one column and the faults of its cells."""
    if column.kind == "text":
        typed = as_text(cells)
        own_N = _text_faults(typed.values)
    elif column.kind == "time":
        typed = as_times(cells, unit=config.log.time_unit, zone=config.log.zone)
        own_N = None
    elif column.kind in ("integer", "position"):
        typed = as_integers(cells)
        own_N = _negative_faults(typed.values) if column.kind == "position" else None
    elif column.kind == "label":
        typed, own_N = as_labels(cells), None
    else:
        typed = as_floats(cells)
        is_amount = column.kind == "amount"
        largest = config.fields.max_amount if is_amount else sys.float_info.max
        lowest = 0.0 if is_amount and config.fields.negative == "refuse" else -largest
        own_N = _number_faults(typed.values, lowest=lowest, largest=largest)
    faults_N = own_N if typed.faults_N is None else typed.faults_N
    if typed.faults_N is not None and own_N is not None:
        faults_N = np.where(typed.faults_N != 0, typed.faults_N, own_N)
    if column.is_required and typed.values.null_count:
        is_null_N = pc.is_null(typed.values).to_numpy(zero_copy_only=False)
        before_N = np.zeros(len(is_null_N), dtype=np.int8) if faults_N is None else faults_N
        faults_N = np.where((before_N == 0) & is_null_N, np.int8(Fault.EMPTY), before_N)
    return Typed(typed.values, faults_N if faults_N is not None and faults_N.any() else None)


def _text_faults(text: pa.Array) -> FaultArray | None:
    """Return the faults of ids and types: 1 to 256 characters, valid UTF-8, not blank, no control character.

    Printable ASCII is judged on the bytes of the whole column, about a nanosecond a byte; the rest goes the long way.
    """
    n_cells = len(text)
    if n_cells == text.null_count:
        return None
    _, offsets, content = text.buffers()
    bounds = np.frombuffer(offsets, dtype=np.int32)[text.offset : text.offset + n_cells + 1]
    content_bytes = np.frombuffer(content or b"", dtype=np.uint8)[bounds[0] : bounds[-1]]
    if len(content_bytes) == 0 or content_bytes.min() < 0x20 or content_bytes.max() >= 0x7F:
        return _text_faults_of_any_script(text)
    lengths_N = np.diff(bounds)
    is_suspect_N = (lengths_N == 0) | (lengths_N > _MAX_CHARACTERS)
    is_suspect_N |= content_bytes[np.minimum(bounds[:-1] - bounds[0], len(content_bytes) - 1)] == ord(" ")
    suspects = np.flatnonzero(is_suspect_N)
    if len(suspects) == 0:
        return None
    faults_N = np.zeros(n_cells, dtype=np.int8)
    faults_N[suspects] = _text_faults_of_any_script(text.take(pa.array(suspects)))
    return faults_N


def _text_faults_of_any_script(text: pa.Array) -> FaultArray:
    faults_N = np.zeros(len(text), dtype=np.int8)
    try:
        text.validate(full=True)
    except pa.ArrowInvalid:
        is_valid_N = np.array([_is_utf8(cell) for cell in text.cast(pa.binary()).to_pylist()], dtype=np.bool_)
        faults_N[~is_valid_N] = Fault.INVALID_UTF8
        text = pc.if_else(pa.array(is_valid_N), text, pa.scalar(None, pa.string()))
    tests = (
        (Fault.CONTROL_CHARACTER, pc.match_substring_regex(text, r"\p{Cc}")),
        (Fault.TOO_LONG, pc.greater(pc.utf8_length(text), _MAX_CHARACTERS)),
        (Fault.BLANK, pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(text)), 0)),
        (Fault.EMPTY, pc.equal(pc.binary_length(text), 0)),
    )
    for fault, is_bad in tests:
        faults_N[pc.fill_null(is_bad, False).to_numpy(zero_copy_only=False)] = fault
    return faults_N


def _is_utf8(cell: bytes | None) -> bool:
    try:
        (cell or b"").decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _number_faults(values: pa.Array, *, lowest: float, largest: float) -> FaultArray | None:
    filled = pc.fill_null(values, 0.0) if values.null_count else values
    numbers_N: FloatArray = filled.to_numpy(zero_copy_only=False)
    if len(numbers_N) == 0 or (numbers_N.min() >= lowest and numbers_N.max() <= largest):
        return None
    faults_N = np.zeros(len(numbers_N), dtype=np.int8)
    with np.errstate(invalid="ignore"):
        faults_N[np.abs(numbers_N) > largest] = Fault.TOO_LARGE
        if lowest == 0.0:
            faults_N[numbers_N < 0.0] = Fault.NEGATIVE
    faults_N[~np.isfinite(numbers_N)] = Fault.NOT_FINITE
    return faults_N


def _negative_faults(values: pa.Array) -> FaultArray | None:
    is_negative_N = pc.fill_null(pc.less(values, 0), False).to_numpy(zero_copy_only=False)
    return np.where(is_negative_N, np.int8(Fault.BAD_INTEGER), np.int8(0)) if is_negative_N.any() else None
