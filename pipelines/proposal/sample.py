"""A look at a log whose columns nobody has named yet: its first rows and some from its middle, as the readers see them.

Bounded: at most about 100,000 rows and 32 MB of a file that may be of any size. The cells are those of the readers, so
what can be read here as a time or a number is exactly what the log's readers will read.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fraud.cells import ArrowCells, Cells, CsvCells, JsonCells
from fraud.columns import Declared, check_header
from fraud.csv_rows import csv_rows
from fraud.errors import DataError
from fraud.json_rows import json_rows
from fraud.quarantine import Quarantine
from fraud.readers import text_blocks
from fraud.validation import RawRows

_MAX_ROWS, _MAX_MIDDLE_ROWS = 100_000, 50_000
_MAX_BYTES = 32 << 20
_BLOCK_BYTES = 4 << 20
_DELIMITERS = (",", ";", "\t", "|")
_MAX_JSON_LINES = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Rows of a log. cells: by column, n_rows cells each; is_whole: True where these are all the rows there are."""

    files: tuple[Path, ...]
    cells: dict[str, Cells]
    n_rows: int
    delimiter: str
    is_whole: bool


class _Part(NamedTuple):
    """n_read: how many bytes (text) or rows (Parquet) of the file were passed to get these rows."""

    cells: dict[str, Cells]
    n_rows: int
    is_whole: bool
    n_read: int


def sample_log(files: Sequence[Path]) -> Sample:
    """Return rows from the beginning of the first file and from the middle of the log.

    Raises DataError for a file nobody can read, and where there is no row to look at.
    """
    first, middle_file = files[0], files[len(files) // 2]
    names, delimiter = column_names(first)
    head = _read(first, names, delimiter, max_rows=_MAX_ROWS)
    if head.n_rows == 0:
        raise DataError(f"{first}: holds no row that can be read; expected some, to see what its columns mean")
    other: _Part | None = None
    if middle_file != first:
        other = _read(middle_file, names, delimiter, max_rows=_MAX_MIDDLE_ROWS)
    elif not head.is_whole:
        other = _middle(first, names, delimiter, n_read=head.n_read)
    parts = [head] if other is None else [head, other]
    try:
        cells = {name: _joined([part.cells[name] for part in parts]) for name in names}
    except (pa.ArrowInvalid, KeyError):  # a column is of another type in the other part: the reader will say so
        parts, cells = [head], head.cells
    return Sample(
        files=tuple(files),
        cells=cells,
        n_rows=sum(part.n_rows for part in parts),
        delimiter=delimiter,
        is_whole=head.is_whole and len(files) == 1,
    )


def column_names(file: Path) -> tuple[list[str], str]:
    """Return the names of a log's columns and its delimiter ("," where it has none).

    Raises DataError for a file nobody can read, a name that stands twice and over 10,000 columns.
    """
    delimiter = ","
    if _is_parquet(file):
        try:
            with pq.ParquetFile(file) as opened:
                names = list(opened.schema_arrow.names)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{file}: not a readable Parquet file ({error})") from None
    elif _is_csv(file):
        names, delimiter = _csv_header(file)
    else:
        names = _json_keys(file)
    check_header(names, (), str(file))
    if not names:
        raise DataError(f"{file}: has no column; expected at least a user and a time")
    return names, delimiter


def _read(file: Path, names: Sequence[str], delimiter: str, *, max_rows: int) -> _Part:
    if _is_parquet(file):
        return _parquet_part(file, names, row_group=0, max_rows=max_rows)
    blocks = text_blocks(file, _BLOCK_BYTES, "CSV with a header" if _is_csv(file) else "JSON Lines")
    return _text_part(file, blocks, names, delimiter, max_rows=max_rows)


def _middle(file: Path, names: Sequence[str], delimiter: str, *, n_read: int) -> _Part | None:
    """Return rows from the middle of a file; None where they were read already, or are behind all that comes before."""
    if _is_parquet(file):
        metadata = pq.read_metadata(file)
        middle = metadata.num_row_groups // 2
        n_before = sum(metadata.row_group(group).num_rows for group in range(middle))
        return _parquet_part(file, names, row_group=middle, max_rows=_MAX_MIDDLE_ROWS) if n_before >= n_read else None
    start = file.stat().st_size // 2
    if file.name.lower().endswith(".gz") or start < n_read:
        return None
    with file.open("rb") as stream:
        stream.seek(start)
        stream.readline()
        content = stream.read(_BLOCK_BYTES)
    header = (delimiter.join(f'"{name}"' for name in names) + "\n").encode() if _is_csv(file) else b""
    blocks = iter([header + content[: content.rfind(b"\n") + 1]])
    try:
        return _text_part(file, blocks, names, delimiter, max_rows=_MAX_MIDDLE_ROWS)
    except DataError:  # the middle lies inside a quoted cell
        return None


def _text_part(file: Path, blocks: Iterator[bytes], names: Sequence[str], delimiter: str, *, max_rows: int) -> _Part:
    """Return up to about max_rows rows; rows nobody can read are left out, as the readers leave them out."""
    declared = [Declared(column=name, name=name, setting="", kind="text", is_required=False) for name in names]
    consumed = _Counted(blocks)
    quarantine = Quarantine()
    quarantine.open_source(str(file), 0)
    rows = (
        csv_rows(consumed, declared, quarantine, source=str(file), delimiter=delimiter)
        if _is_csv(file)
        else json_rows(consumed, declared, quarantine, source=str(file))
    )
    n_bytes = file.stat().st_size
    chunks: list[RawRows] = []
    n_rows, is_whole = 0, True
    for chunk in rows:
        chunks.append(chunk)
        n_rows += len(chunk.rows_N)
        is_enough = n_rows >= max_rows or consumed.n_bytes >= _MAX_BYTES
        if is_enough and (consumed.n_bytes < n_bytes or consumed.n_bytes > _MAX_BYTES):
            is_whole = False
            break
    cells = {name: _joined([chunk.cells[name] for chunk in chunks]) for name in names} if chunks else {}
    return _Part(cells, n_rows, is_whole, consumed.n_bytes)


def _parquet_part(file: Path, names: Sequence[str], *, row_group: int, max_rows: int) -> _Part:
    try:
        with pq.ParquetFile(file, page_checksum_verification=True) as opened:
            groups = list(range(row_group, opened.metadata.num_row_groups))
            n_bytes = sum(opened.metadata.row_group(g).total_byte_size for g in groups)
            n_there = sum(opened.metadata.row_group(g).num_rows for g in groups)
            wanted = min(max_rows, max(1000, _MAX_BYTES * n_there // max(n_bytes, 1)))
            batches = opened.iter_batches(batch_size=wanted, row_groups=groups, use_threads=False)
            kept, n_rows = list[pa.RecordBatch](), 0
            while n_rows < wanted and (batch := next(batches, None)) is not None:
                kept.append(batch)
                n_rows += len(batch)
            table = pa.Table.from_batches(kept, schema=opened.schema_arrow)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file}: not a readable Parquet file ({error})") from None
    cells: dict[str, Cells] = {
        name: ArrowCells(_plain(table.column(name).combine_chunks()), f"{file}: column {name!r}")
        for name in names
        if name in table.column_names
    }
    return _Part(cells, n_rows, n_rows == n_there and row_group == 0, n_rows)


def _csv_header(file: Path) -> tuple[list[str], str]:
    block = next(text_blocks(file, 1 << 20, "a CSV file with a header"))
    try:
        lines = block.decode("utf-8", errors="replace").splitlines()
        delimiter = max(_DELIMITERS, key=lines[0].count)
        names = next(csv.reader(io.StringIO(block.decode("utf-8", errors="ignore")), delimiter=delimiter, strict=True))
    except (IndexError, StopIteration, csv.Error):
        names, delimiter = [], ","
    for _ in csv_rows(iter([block]), (), Quarantine(), source=str(file), delimiter=delimiter):
        break  # the reader's own checks of the header, with its own words
    return names, delimiter


def _json_keys(file: Path) -> list[str]:
    """Return the keys of the first objects, in the order in which they appear."""
    keys: dict[str, None] = {}
    block = next(text_blocks(file, _BLOCK_BYTES, "JSON Lines"))
    for line in block.split(b"\n")[:_MAX_JSON_LINES]:
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict):
            keys.update(dict.fromkeys(found))
    if not keys:
        for _ in json_rows(iter([block]), (), Quarantine(), source=str(file)):
            break  # the reader says what an array or a pretty-printed file is
        raise DataError(f"{file}: no line is a JSON object; expected JSON Lines: one object a line")
    return list(keys)


class _Counted:
    """An iterator of blocks that knows how many bytes it has given."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        self.n_bytes = 0

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        block = next(self._blocks)
        self.n_bytes += len(block)
        return block


def _joined(parts: list[Cells]) -> Cells:
    first = parts[0]
    if len(parts) == 1:
        return first
    if isinstance(first, CsvCells):
        return CsvCells(pa.concat_arrays([part.text for part in parts if isinstance(part, CsvCells)]))
    if isinstance(first, JsonCells):
        return JsonCells([cell for part in parts if isinstance(part, JsonCells) for cell in part.objects])
    return ArrowCells(pa.concat_arrays([p.values for p in parts if isinstance(p, ArrowCells)]), first.where)


def _plain(values: pa.Array) -> pa.Array:
    return values.dictionary_decode() if pa.types.is_dictionary(values.type) else values


def sample_rows(sample: Sample) -> RawRows:
    """Return the sample as rows that validation can check."""
    return RawRows(
        source=str(sample.files[0]), rows_N=np.arange(sample.n_rows, dtype=np.int64), cells=dict(sample.cells)
    )


def _is_parquet(file: Path) -> bool:
    return file.name.lower().endswith(".parquet")


def _is_csv(file: Path) -> bool:
    return file.name.lower().endswith((".csv", ".csv.gz"))
