"""Log files -> canonical tables, a chunk at a time: CSV, JSON Lines (both also .gz) and Parquet.

Which format a file has is told by its extension alone. Memory is bounded: no file is ever one object. A file nobody can
read is a DataError that names it; a row nobody can read goes to the quarantine.
"""

from __future__ import annotations

import glob
import gzip
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fraud.columns import Declared, canonical_schema, check_header, declared_columns, declared_label_columns
from fraud.config import Config
from fraud.csv_rows import csv_rows
from fraud.errors import DataError
from fraud.json_rows import json_rows
from fraud.quarantine import Quarantine
from fraud.validation import RawRows, arrow_cells, canonical_rows

_CSV = (".csv", ".csv.gz")
_JSON = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")
_PARQUET = (".parquet",)
_KNOWN = (*_CSV, *_JSON, *_PARQUET)

_CSV_BLOCK_BYTES = 8 << 20
# Small, so that the objects of a block stay in the processor's cache between decoding and taking their cells.
_JSON_BLOCK_BYTES = 1 << 19
_PARQUET_CHUNK_BYTES = 32 << 20
_MAX_CHUNK_ROWS = 1 << 18

_SIGNATURES = {
    b"\x1f\x8b": "gzip bytes (name it .gz to have it unpacked)",
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
    b"PAR1": "a Parquet file",
    b"PK\x03\x04": "a zip archive",
    b"\x89PNG": "a PNG image",
}


def log_files(pattern: str, root: Path) -> list[Path]:
    """Return the files that a path, a folder or a glob means, sorted by name; relative paths start from `root`.

    Of a folder or a glob, hidden files, those that begin with "_" or "quarantine", and quarantine files of a score are
    left out. Raises DataError where nothing is found.
    """
    known = ", ".join(_KNOWN)
    path = root / pattern
    if path.is_file():
        return [path]
    if path.is_dir():
        found = [child for child in path.iterdir() if child.is_file()]
    else:
        found = [Path(name) for name in glob.glob(_absolute_pattern(pattern, root), recursive=True)]
    files = sorted(file for file in found if file.is_file() and is_log_name(file.name))
    if not files:
        kind = "folder without a log file in it" if path.is_dir() else "no such file, folder or glob with a log file"
        raise DataError(f"{path}: {kind}; expected {known} (sub-folders are read by a glob such as logs/**/*.parquet)")
    return files


def read_log(files: Sequence[Path], config: Config, quarantine: Quarantine) -> Iterator[pa.Table]:
    """Yield the canonical rows of the files, in order, in chunks; at least one table, maybe empty.

    `row` counts the data rows of all files from 0, bad ones too. Raises DataError for a file nobody can read.
    """
    declared = declared_columns(config)
    n_chunks = 0
    for table in _canonical_chunks(files, declared, config, quarantine):
        n_chunks += 1
        yield table
    if n_chunks == 0:
        yield canonical_schema(declared).empty_table()


def read_labels(config: Config, quarantine: Quarantine) -> pa.Table:
    """Return the label table: the key columns as text, label int8, known_us, part and source where declared.

    `quarantine` is best its own, not the log's: its rows are of the label files. Raises DataError where the
    configuration has no label table.
    """
    if config.labels is None or config.labels.path is None:
        raise DataError("labels.path is not set: there is no label table to read")
    declared = declared_label_columns(config)
    tables = list(_canonical_chunks(log_files(config.labels.path, config.root), declared, config, quarantine))
    table = pa.concat_tables([canonical_schema(declared).empty_table(), *tables]).drop_columns(["row"])
    return table.rename_columns([name.removeprefix("key:") for name in table.column_names])


def _canonical_chunks(
    files: Sequence[Path], declared: Sequence[Declared], config: Config, quarantine: Quarantine
) -> Iterator[pa.Table]:
    n_read_before = quarantine.n_rows_read
    for file in files:
        first_row = quarantine.n_rows_read - n_read_before
        quarantine.open_source(str(file), first_row)
        for raw in _raw_rows(file, declared, quarantine, delimiter=config.log.delimiter):
            yield canonical_rows(raw, declared, config, quarantine, first_row=first_row)


def _absolute_pattern(pattern: str, root: Path) -> str:
    return pattern if Path(pattern).is_absolute() else str(Path(glob.escape(str(root))) / pattern)


def is_log_name(name: str) -> bool:
    """Return True for the name of a file that a folder or a glob of log files means."""
    is_ours = name.startswith((".", "_", "quarantine")) or ".quarantine." in name
    return name.lower().endswith(_KNOWN) and not is_ours


def _raw_rows(file: Path, declared: Sequence[Declared], quarantine: Quarantine, *, delimiter: str) -> Iterator[RawRows]:
    name, source = file.name.lower(), str(file)
    if name.endswith(_PARQUET):
        return _parquet_rows(file, declared, quarantine)
    if name.endswith(_CSV):
        blocks = text_blocks(file, _CSV_BLOCK_BYTES, "a CSV file with a header")
        return csv_rows(blocks, declared, quarantine, source=source, delimiter=delimiter)
    if name.endswith(_JSON):
        blocks = text_blocks(file, _JSON_BLOCK_BYTES, "JSON Lines")
        return json_rows(blocks, declared, quarantine, source=source)
    raise DataError(f"{source}: unknown extension; expected one of {', '.join(_KNOWN)}")


def text_blocks(file: Path, n_bytes: int, expected: str) -> Iterator[bytes]:
    """Yield the bytes of a text file, unpacked and without a byte order mark; raise DataError for another format."""
    opener = gzip.open if file.name.lower().endswith(".gz") else open
    try:
        with opener(file, "rb") as stream:
            block = stream.read(n_bytes)
            _refuse_other_formats(block, f"{file}", expected)
            block = block.removeprefix(b"\xef\xbb\xbf")
            while block:
                yield block
                block = stream.read(n_bytes)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file}: cannot be read to its end ({error}); expected {expected}") from None


def _refuse_other_formats(block: bytes, source: str, expected: str) -> None:
    if not block:
        raise DataError(f"{source}: empty (0 bytes); expected {expected}")
    kind = next((kind for signature, kind in _SIGNATURES.items() if block.startswith(signature)), None)
    if kind is None and b"\0" in block[:4]:
        kind = "UTF-16 or binary data"
    if kind is not None:
        raise DataError(f"{source}: holds {kind}; expected {expected} in UTF-8")


def _parquet_rows(file: Path, declared: Sequence[Declared], quarantine: Quarantine) -> Iterator[RawRows]:
    """Yield the declared columns of a Parquet file; page checksums, where written, are verified."""
    source = str(file)
    try:
        with pq.ParquetFile(file, page_checksum_verification=True) as opened:
            names = opened.schema_arrow.names
            check_header(names, declared, source)
            wanted = [name for name in dict.fromkeys(column.column for column in declared) if name in names]
            n_before = 0
            for batch in opened.iter_batches(
                batch_size=_chunk_rows(opened.metadata), columns=wanted, use_threads=False
            ):
                quarantine.count_read(len(batch))
                rows_N = np.arange(n_before, n_before + len(batch))
                n_before += len(batch)
                yield RawRows(source=source, rows_N=rows_N, cells=arrow_cells(batch, declared, source))
            if n_before != opened.metadata.num_rows:
                # A damaged page header can pass for the end of the data.
                raise DataError(f"{source}: {n_before} rows found where the file declares {opened.metadata.num_rows}")
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{source}: not a readable Parquet file ({error})") from None


def _chunk_rows(metadata: pq.FileMetaData) -> int:
    """Return how many rows make a chunk of bounded size, judged by the size of the unpacked row groups."""
    n_bytes = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
    fitting = _PARQUET_CHUNK_BYTES * metadata.num_rows // n_bytes if n_bytes else _MAX_CHUNK_ROWS
    return max(1024, min(_MAX_CHUNK_ROWS, fitting))
