"""The rows of a log that are not used, and why: file, row, column, value, reason code, words.

One bad row never costs its neighbours and is never scored silently. This file knows no format and no rule; readers and
validation tell it what they refused, and it can tell for a row of the whole log which file that row stood in.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from fraud.events import IntArray

FaultArray = npt.NDArray[np.int8]

_MAX_VALUE_CHARACTERS = 200


class Fault(IntEnum):
    """Why a row or a cell was refused; the reason code in the quarantine file is the name in lower case."""

    NONE = 0
    EMPTY = 1
    BLANK = 2
    TOO_LONG = 3
    CONTROL_CHARACTER = 4
    INVALID_UTF8 = 5
    LONE_SURROGATE = 6
    WRONG_TYPE = 7
    BAD_TIME = 8
    NO_ZONE = 9
    NO_TIME_UNIT = 10
    FRACTION_OF_UNIT = 11
    NONEXISTENT_TIME = 12
    TIME_OUT_OF_RANGE = 13
    BAD_NUMBER = 14
    NOT_FINITE = 15
    NEGATIVE = 16
    TOO_LARGE = 17
    BAD_INTEGER = 18
    BAD_LABEL = 19
    WRONG_CELL_COUNT = 20
    MALFORMED_QUOTE = 21
    LONE_CR = 22
    NUL_BYTE = 23
    ROW_TOO_LONG = 24
    NOT_JSON = 25
    NOT_AN_OBJECT = 26
    DUPLICATE_KEY = 27
    CONFLICTING_DUPLICATE = 28

    @property
    def code(self) -> str:
        """Return the reason code."""
        return self.name.lower()


WORDS: dict[Fault, str] = {
    Fault.EMPTY: "no value, but this column must have one",
    Fault.BLANK: "only white space; expected 1 to 256 characters that are not all blank",
    Fault.TOO_LONG: "longer than 256 characters",
    Fault.CONTROL_CHARACTER: "holds a control character",
    Fault.INVALID_UTF8: "not valid UTF-8",
    Fault.LONE_SURROGATE: "holds half of a surrogate pair, which is no text",
    Fault.WRONG_TYPE: "a value of the wrong type for this column",
    Fault.BAD_TIME: "not a time; expected RFC 3339 such as 2026-11-20T10:00:00Z (or a number with log.time_unit)",
    Fault.NO_ZONE: "a time without a zone; expected Z or +hh:mm, or set log.zone",
    Fault.NO_TIME_UNIT: 'a number as time, but log.time_unit is not set; expected "s", "ms" or "us" there',
    Fault.FRACTION_OF_UNIT: 'a fraction of the time unit; only log.time_unit = "s" may have decimals',
    Fault.NONEXISTENT_TIME: "a local time that the clocks of log.zone skipped",
    Fault.TIME_OUT_OF_RANGE: "outside 1970-01-01 .. 2199-12-31",
    Fault.BAD_NUMBER: "not a number; expected plain decimals such as 12, -3.5, .5 or 1e3",
    Fault.NOT_FINITE: "not a finite number",
    Fault.NEGATIVE: 'a negative amount; fields.negative = "allow" would keep it',
    Fault.TOO_LARGE: "larger in size than fields.max_amount",
    Fault.BAD_INTEGER: "not a whole number of at most 64 bits (and a position is never negative)",
    Fault.BAD_LABEL: "not a label; expected 0, 1, true, false or nothing",
    Fault.WRONG_CELL_COUNT: "the row has another number of cells than the header",
    Fault.MALFORMED_QUOTE: "a quote inside a cell that RFC 4180 does not allow",
    Fault.LONE_CR: "a carriage return alone; rows end with LF or CRLF",
    Fault.NUL_BYTE: "holds a NUL byte",
    Fault.ROW_TOO_LONG: "the row is longer than 1 MB",
    Fault.NOT_JSON: "the line is not valid JSON",
    Fault.NOT_AN_OBJECT: "the line is not a JSON object",
    Fault.DUPLICATE_KEY: "a declared key stands twice in the object",
    Fault.CONFLICTING_DUPLICATE: "the same event_id of this user stands in the log with different values",
}

SCHEMA = pa.schema(
    [
        ("file", pa.string()),
        ("row", pa.int64()),
        ("column", pa.string()),
        ("value", pa.string()),
        ("reason", pa.string()),
        ("text", pa.string()),
    ]
)


def printable(value: object) -> str:
    """Return at most 200 characters of a cell as text that any terminal and file can hold; bytes are read as UTF-8."""
    if isinstance(value, bytes):
        value = value[: 4 * _MAX_VALUE_CHARACTERS].decode("utf-8", "backslashreplace")
    text = (value if isinstance(value, str) else repr(value))[:_MAX_VALUE_CHARACTERS]
    if text.isprintable():
        return text
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
    return shown[:_MAX_VALUE_CHARACTERS]


class _Part(NamedTuple):
    source: str
    rows_N: IntArray
    column: str
    values: pa.Array
    faults_N: FaultArray


class Quarantine:
    """Collects refused rows. `len()` counts them; `n_rows_read` counts the data rows that were read, good or bad."""

    def __init__(self) -> None:
        self.n_rows_read = 0
        self._n_refused = 0
        self._parts: list[_Part] = []
        self._sources: list[str] = []
        self._first_rows: list[int] = []

    def __len__(self) -> int:
        return self._n_refused

    def open_source(self, source: str, first_row: int) -> None:
        """Note that the data rows of `source` begin at row `first_row` of the whole log; sources come in order."""
        if not self._sources or self._sources[-1] != source:
            self._sources.append(source)
            self._first_rows.append(first_row)

    def count_read(self, n_rows: int) -> None:
        """Add to the number of data rows read."""
        self.n_rows_read += n_rows

    def add(
        self, source: str, rows_N: IntArray, *, column: str, values: Sequence[str | None], faults_N: FaultArray
    ) -> None:
        """Refuse data rows (0-based in `source`); `values` are printable, `column` is empty for the row as a whole."""
        if len(rows_N):
            self._parts.append(_Part(source, rows_N, column, pa.array(values, pa.string()), faults_N))
            self._n_refused += len(rows_N)

    def add_global(self, rows_N: IntArray, *, column: str, values: Sequence[str | None], fault: Fault) -> None:
        """Refuse rows given by their place in the whole log, of whatever source."""
        # Rows of a table whose source was never opened here have no file, and count from 0.
        sources, first_rows = ["", *self._sources], np.array([0, *self._first_rows])
        source_N = np.searchsorted(first_rows[1:], rows_N, side="right")
        for place in np.unique(source_N):
            chosen = np.flatnonzero(source_N == place)
            faults_N = np.full(len(chosen), fault, dtype=np.int8)
            shown: list[str | None] = [values[int(i)] for i in chosen]
            rows = rows_N[chosen] - first_rows[place]
            self.add(sources[int(place)], rows, column=column, values=shown, faults_N=faults_N)

    def table(self) -> pa.Table:
        """Return the refused rows (file, row, column, value, reason, text) in the order of files and rows."""
        if not self._parts:
            return SCHEMA.empty_table()
        sizes = [len(part.rows_N) for part in self._parts]
        sources = list(dict.fromkeys([*self._sources, *(part.source for part in self._parts)]))
        columns = list(dict.fromkeys(part.column for part in self._parts))
        source_N = np.repeat([sources.index(part.source) for part in self._parts], sizes)
        column_N = np.repeat([columns.index(part.column) for part in self._parts], sizes)
        rows_N = np.concatenate([part.rows_N for part in self._parts])
        faults_N = np.concatenate([part.faults_N for part in self._parts])
        order = np.lexsort((rows_N, source_N))
        cells = [
            _named(source_N[order], sources),
            pa.array(rows_N[order], pa.int64()),
            _named(column_N[order], columns),
            pa.concat_arrays([part.values for part in self._parts]).take(pa.array(order)),
            _named(faults_N[order], [fault.code for fault in Fault]),
            _named(faults_N[order], [WORDS.get(fault, "") for fault in Fault]),
        ]
        return pa.Table.from_arrays(cells, schema=SCHEMA)


def _named(codes_N: IntArray | FaultArray, names: list[str]) -> pa.Array:
    return pa.array(names, pa.string()).take(pa.array(codes_N))
