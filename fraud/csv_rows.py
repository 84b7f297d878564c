"""The rows of a CSV as raw text cells: RFC 4180 with LF or CRLF, any one-character delimiter.

A block of rows without quotes, NUL bytes, lone CRs or broken UTF-8 goes to Arrow's parser as it is. Any other block is
held against the grammar first (regular expressions, possessive throughout, so linear in time); rows outside the grammar
are cut out whole, and Arrow parses the rest. What Arrow would have to guess never reaches it.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv as arrow_csv

from fraud.cells import CsvCells
from fraud.columns import Declared, check_header
from fraud.errors import ConfigError, DataError
from fraud.quarantine import Fault, Quarantine, printable
from fraud.validation import RawRows

MAX_ROW_BYTES = 1_000_000

# One character of valid UTF-8 beyond ASCII (The Unicode Standard, table 3-7).
_WIDE = (
    rb"[\xc2-\xdf][\x80-\xbf]|\xe0[\xa0-\xbf][\x80-\xbf]|[\xe1-\xec\xee\xef][\x80-\xbf]{2}|\xed[\x80-\x9f][\x80-\xbf]"
    rb"|\xf0[\x90-\xbf][\x80-\xbf]{2}|[\xf1-\xf3][\x80-\xbf]{3}|\xf4[\x80-\x8f][\x80-\xbf]{2}"
)
_QUOTED = rb'"(?:[^"]++|"")*+"'


class _Grammar(NamedTuple):
    """row: a good row or a blank line. quoting: a row with its quotes right. open_quote: a line that ends in quotes."""

    row: re.Pattern[bytes]
    quoting: re.Pattern[bytes]
    open_quote: re.Pattern[bytes]


class _BadRow(NamedTuple):
    place: int
    text: bytes
    fault: Fault


class _Split(NamedTuple):
    """good: the bytes of the good rows; n_rows counts bad ones too; n_bytes: how much of the block is used up."""

    good: bytes
    n_rows: int
    bad: list[_BadRow]
    n_bytes: int


def csv_rows(
    blocks: Iterator[bytes], declared: Sequence[Declared], quarantine: Quarantine, *, source: str, delimiter: str
) -> Iterator[RawRows]:
    """Yield the cells of the declared columns, a block at a time; malformed rows go to the quarantine.

    `blocks`: the bytes of the file, without a byte order mark, in pieces of any size. Blank lines are no rows. Raises
    DataError for a header that is not one, and for a quote that never closes.
    """
    if len(delimiter) != 1 or not delimiter.isascii() or delimiter in '"\r\n\0':
        raise ConfigError(f"log.delimiter = {delimiter!r}: expected one ASCII character that is no quote or line end")
    names, pending = _read_header(blocks, source, delimiter)
    check_header(names, declared, source)
    columns = {name: names.index(name) for name in {column.column for column in declared} if name in names}
    places = list(columns.values())
    grammar = _grammar(delimiter, len(names))
    n_before = 0
    is_last = False
    while not is_last:
        block = next(blocks, None)
        is_last = block is None
        content = pending + (block or b"")
        if is_last and content and not content.endswith(b"\n"):
            content += b"\n"
        end = content.rfind(b"\n") + 1
        table = _plain_table(content, end, len(names), places, delimiter)
        if table is not None:
            bad, n_rows = [], len(table)
        else:
            split = _split(content, grammar)
            table = _parse(pa.py_buffer(split.good), len(names), places, delimiter, quoted=True)
            bad, n_rows, end = split.bad, split.n_rows, split.n_bytes
        pending = content[end:]
        if is_last and pending:
            raise DataError(f"{source}: data row {n_before + n_rows} opens a quote that never closes")
        if len(pending) > MAX_ROW_BYTES:
            bad.append(_BadRow(n_rows, pending[:MAX_ROW_BYTES], Fault.ROW_TOO_LONG))
            pending = _skip_row(blocks, pending, f"{source}: data row {n_before + n_rows}")
            n_rows += 1
        quarantine.count_read(n_rows)
        _refuse(bad, n_before, quarantine, source)
        rows_N = np.delete(np.arange(n_before, n_before + n_rows), [row.place for row in bad])
        n_before += n_rows
        assert len(rows_N) == len(table), f"{source}: {len(table)} rows parsed where {len(rows_N)} were counted"
        if len(rows_N):
            cells = {name: CsvCells(table.column(f"{place}").combine_chunks()) for name, place in columns.items()}
            yield RawRows(source=source, rows_N=rows_N, cells=cells)


def _grammar(delimiter: str, n_columns: int) -> _Grammar:
    mark = re.escape(delimiter.encode())
    plain = rb'(?:[^"' + mark + rb"\r\n\x00\x80-\xff]++|" + _WIDE + rb")*+"
    quoted = rb'"(?:[^"\x00\x80-\xff]++|""|' + _WIDE + rb')*+"'
    cell = rb"(?:" + quoted + rb"|" + plain + rb")"
    any_cell = rb"(?:" + _QUOTED + rb'|[^"' + mark + rb"\n]*+)"
    return _Grammar(
        row=re.compile(rb"(?:%b(?:%b%b){%d}\r?\n|\r?\n)" % (cell, mark, cell, n_columns - 1)),
        quoting=re.compile(rb"%b(?:%b%b)*+\r?\n" % (any_cell, mark, any_cell)),
        open_quote=re.compile(rb'(?:%b%b)*+"(?:[^"]++|"")*+' % (any_cell, mark)),
    )


def _read_header(blocks: Iterator[bytes], source: str, delimiter: str) -> tuple[list[str], bytes]:
    """Return the names of the columns and the bytes after the header."""
    content = b""
    end = -1
    while end < 0 or content.count(b'"', 0, end) % 2:
        end = content.find(b"\n", end + 1)
        if end >= 0:
            continue
        block = next(blocks, None) if len(content) <= MAX_ROW_BYTES else None
        if block is None:
            break
        content += block
    header, rest = (content, b"") if end < 0 else (content[:end], content[end + 1 :])
    if len(header) > MAX_ROW_BYTES:
        raise DataError(
            f"{source}: the first line is longer than 1 MB; expected a header with the names of the columns"
        )
    try:
        text = header.removesuffix(b"\r").decode("utf-8")
    except UnicodeDecodeError:
        raise DataError(f"{source}: the header is not UTF-8; expected a CSV file in UTF-8") from None
    if "\0" in text:
        raise DataError(f"{source}: the header holds NUL bytes; expected a CSV file in UTF-8")
    if not text.strip():
        raise DataError(f"{source}: the first line is blank; expected a header with the names of the columns")
    if "\r" in re.sub(r'"[^"]*"', "", text):
        raise DataError(f"{source}: lines end with CR alone; expected LF or CRLF")
    try:
        return next(csv.reader([text], delimiter=delimiter, strict=True)), rest
    except csv.Error as error:
        raise DataError(f"{source}: the header is not RFC 4180 ({error}): {printable(text)}") from None


def _plain_table(content: bytes, end: int, n_columns: int, places: Sequence[int], delimiter: str) -> pa.Table | None:
    """Return the cells of content[:end] where every row is plain and whole, else None."""
    if content.find(b'"', 0, end) >= 0 or content.find(b"\0", 0, end) >= 0:
        return None
    n_returns = content.count(b"\r", 0, end)
    if n_returns and n_returns != content.count(b"\r\n", 0, end):
        return None
    rows = pa.py_buffer(content).slice(0, end)
    try:
        if not content.isascii():
            str(memoryview(content)[:end], "utf-8")
        return _parse(rows, n_columns, places, delimiter, quoted=False) if rows_fit(content, end) else None
    except (UnicodeDecodeError, pa.ArrowInvalid):
        return None


def rows_fit(content: bytes, end: int) -> bool:
    """Return True where a line end stands in every stretch of the longest row, so that no line is longer."""
    at = 0
    while at < end:
        found = content.rfind(b"\n", at, at + MAX_ROW_BYTES + 1)
        if found < 0:
            return False
        at = found + 1
    return True


def _parse(rows: pa.Buffer, n_columns: int, places: Sequence[int], delimiter: str, *, quoted: bool) -> pa.Table:
    """Return string columns named by their place; raises ArrowInvalid for a row with another number of cells."""
    names = [str(place) for place in range(n_columns)]
    wanted = [str(place) for place in places]
    if rows.size == 0:
        return pa.table({name: pa.array([], pa.string()) for name in wanted})
    # Arrow drops a byte order mark at the start of what it reads, but here it is part of a cell: a blank line, which
    # is no row, keeps it away from the start.
    has_mark = rows.size >= 3 and rows.slice(0, 3).to_pybytes() == b"\xef\xbb\xbf"
    stream = pa.py_buffer(b"\n" + rows.to_pybytes()) if has_mark else rows
    return arrow_csv.read_csv(
        pa.BufferReader(stream),
        arrow_csv.ReadOptions(column_names=names, use_threads=False, block_size=stream.size + 1),
        arrow_csv.ParseOptions(
            delimiter=delimiter,
            quote_char='"' if quoted else False,
            double_quote=quoted,
            newlines_in_values=quoted,
            ignore_empty_lines=True,
        ),
        arrow_csv.ConvertOptions(
            column_types={name: pa.string() for name in wanted},
            include_columns=wanted,
            strings_can_be_null=False,
            check_utf8=False,
        ),
    )


def _split(content: bytes, grammar: _Grammar) -> _Split:
    """Return the rows that end in `content`, those outside the grammar apart."""
    good: list[bytes] = []
    bad: list[_BadRow] = []
    n_rows = at = first = 0
    while at < len(content):
        found = grammar.row.match(content, at)
        if found is not None and found.end() - at <= MAX_ROW_BYTES:
            n_rows += content[at] not in b"\r\n"
            at = found.end()
            continue
        end = _end_of_bad_row(content, at, grammar)
        if end < 0:
            break
        good.append(content[first:at])
        bad.append(_BadRow(n_rows, content[at:end], _fault_of(content[at:end], grammar)))
        n_rows += 1
        first = at = end
    good.append(content[first:at])
    return _Split(b"".join(good), n_rows, bad, at)


def _end_of_bad_row(content: bytes, start: int, grammar: _Grammar) -> int:
    """Return where the row ends, or -1 where it does not end in `content`.

    A quoted cell may go on over lines. Where what follows cannot be its rest, the quote was a stray one: then the row
    is its first line alone, and the next lines are not lost with it.
    """
    end = content.find(b"\n", start) + 1
    if end == 0 or not grammar.open_quote.fullmatch(content, start, end):
        return end or -1
    at = end
    while (quote := content.find(b'"', at)) >= 0 and (stop := content.find(b"\n", quote)) >= 0:
        at = stop + 1
        if content.count(b'"', quote, stop) % 2:
            return at if grammar.quoting.fullmatch(content, start, at) else end
    return -1


def _fault_of(row: bytes, grammar: _Grammar) -> Fault:
    if len(row) > MAX_ROW_BYTES:
        return Fault.ROW_TOO_LONG
    if b"\0" in row:
        return Fault.NUL_BYTE
    try:
        row.decode("utf-8")
    except UnicodeDecodeError:
        return Fault.INVALID_UTF8
    if not grammar.quoting.fullmatch(row):
        return Fault.MALFORMED_QUOTE
    has_lone_cr = b"\r" in re.sub(_QUOTED, b"", row).removesuffix(b"\n").removesuffix(b"\r")
    return Fault.LONE_CR if has_lone_cr else Fault.WRONG_CELL_COUNT


def _skip_row(blocks: Iterator[bytes], pending: bytes, where: str) -> bytes:
    """Return what follows the row that begins in `pending` and is too long to be kept."""
    is_quoted = pending.count(b'"') % 2 == 1
    for block in blocks:
        at = 0
        while True:
            quote = block.find(b'"', at)
            stop = -1 if is_quoted else block.find(b"\n", at, quote if quote >= 0 else len(block))
            if stop >= 0:
                return block[stop + 1 :]
            if quote < 0:
                break
            is_quoted = not is_quoted
            at = quote + 1
    if is_quoted:
        raise DataError(f"{where} opens a quote that never closes")
    return b""


def _refuse(bad: list[_BadRow], n_before: int, quarantine: Quarantine, source: str) -> None:
    rows_N = np.array([row.place for row in bad], dtype=np.int64) + n_before
    values = [printable(row.text.rstrip(b"\r\n")) for row in bad]
    quarantine.add(source, rows_N, column="", values=values, faults_N=np.array([r.fault for r in bad], dtype=np.int8))
