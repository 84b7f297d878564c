"""A log, read: its users' events in partitions that fit in memory, its labels, and what was put aside.

A small log is one partition in memory. A large one is spread by a hash of the user over files in a working folder, so
memory is bounded by the largest partition; everything after this works partition by partition, and the result does not
depend on how many there are.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fraud import readers
from fraud.columns import declared_columns
from fraud.config import Config
from fraud.errors import DataError
from fraud.events import IntArray
from fraud.instants import as_of
from fraud.ordering import Ordered, to_events
from fraud.quarantine import Quarantine
from fraud.validation import canonical_table

if TYPE_CHECKING:
    import pandas as pd  # pyright: ignore[reportMissingTypeStubs] (it ships none)

PARTITION_BYTES = 512 * 2**20  # of text as read; about 5 million events of a narrow log
_GZIP_RATIO = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """What was read.

    partitions: each loads its users' events; users of different partitions differ. time_us: int64 [N] of all used
    events, in no order. rows_in = used + duplicates + quarantined. label_table: the label table, or None.
    """

    partitions: tuple[Callable[[], Ordered], ...]
    time_us: IntArray
    rows_in: int
    n_duplicates: int
    n_users: int
    quarantine: Quarantine
    label_table: pa.Table | None
    label_quarantine: Quarantine
    files: tuple[Path, ...]
    spill: TemporaryDirectory[str] | None

    @property
    def n_events(self) -> int:
        """Return how many events can be used."""
        return len(self.time_us)

    def close(self) -> None:
        """Remove the partitions of a large log from the working folder."""
        if self.spill is not None:
            self.spill.cleanup()


def read_log(config: Config, *, events: str | None = None, work: Path | None = None) -> Log:
    """Return the log that the configuration names, or the one at `events` (a file, a folder or a glob).

    With split.as_of it ends there: what came then or later is as if it had not been written yet, and counts nowhere.
    work: the folder for partitions of a large log (default: the system's own for temporary files); they are removed
    with the log. Raises DataError for a file nobody can read.
    """
    files = readers.log_files(events or config.log.events, config.root if events is None else Path())
    quarantine = Quarantine()
    chunks = _until(readers.read_log(files, config, quarantine), as_of(config.split))
    n_partitions = max(1, -(-sum(_size_as_read(file) for file in files) // PARTITION_BYTES))
    return _log_of(chunks, config, quarantine, tuple(files), n_partitions, work)


def from_table(table: pa.Table, config: Config) -> Log:
    """Return the log of an Arrow table in the log's columns. Raises DataError when a declared column is missing."""
    quarantine = Quarantine()
    chunk = canonical_table(table, config, quarantine, source="table", first_row=0)
    return _log_of([chunk], config, quarantine, (), 1, None)


def from_pandas(frame: pd.DataFrame, config: Config) -> Log:
    """Return the log of a DataFrame in the log's columns; it is read through Arrow, its index is ignored.

    Only the columns that the configuration names are read. Raises DataError for one that Arrow has no type for.
    """
    wanted = {column.column for column in declared_columns(config)}
    # pandas ships no types of its own here, so what it returns is named.
    chosen: pd.DataFrame = frame.loc[:, [name in wanted for name in frame.columns]]  # pyright: ignore[reportUnknownMemberType,reportUnknownVariableType]
    try:
        table = pa.Table.from_pandas(chosen, preserve_index=False)
    except (pa.ArrowException, ValueError) as error:  # ValueError: a column name that stands twice
        raise DataError(f"the frame cannot be read as a table ({error}); expected one type for each column") from None
    return from_table(table, config)


def event_ids(ordered: Ordered) -> pa.Array:
    """Return string [N], the declared event_id of each event, else the text of its 0-based row, in event order."""
    rows = pa.array(ordered.events.row)
    if "event_id" in ordered.table.column_names:
        return _one(ordered.table["event_id"]).take(rows)
    return _one(ordered.table["row"]).take(rows).cast(pa.string())


def _log_of(
    chunks: Iterable[pa.Table],
    config: Config,
    quarantine: Quarantine,
    files: tuple[Path, ...],
    n_partitions: int,
    work: Path | None,
) -> Log:
    if n_partitions == 1:
        return _partitioned(chunks, config, quarantine, files, 1, None)
    spill = TemporaryDirectory(prefix="fraud-", dir=work)
    try:
        return _partitioned(chunks, config, quarantine, files, n_partitions, spill)
    except BaseException:
        spill.cleanup()
        raise


def _partitioned(
    chunks: Iterable[pa.Table],
    config: Config,
    quarantine: Quarantine,
    files: tuple[Path, ...],
    n_partitions: int,
    spill: TemporaryDirectory[str] | None,
) -> Log:
    rows_used = 0
    if spill is None:
        kept = list(chunks)
        tables: Iterator[pa.Table] = iter([pa.concat_tables(kept)] if kept else [])
    else:
        _spread(chunks, Path(spill.name), n_partitions)
        tables = (_load(Path(spill.name) / f"{p}.arrow") for p in range(n_partitions))
    partitions: list[Callable[[], Ordered]] = []
    times: list[IntArray] = []
    n_duplicates = n_users = 0
    for p, table in enumerate(tables):
        ordered = to_events(table, config, quarantine)
        times.append(ordered.events.time_us)
        n_duplicates += ordered.n_duplicates
        n_users += ordered.events.n_users
        rows_used += len(ordered.events)
        if spill is None:
            partitions.append(lambda ordered=ordered: ordered)
        else:
            path = Path(spill.name) / f"{p}.sorted.arrow"
            _save(ordered.table.take(pa.array(ordered.events.row)), path)
            (Path(spill.name) / f"{p}.arrow").unlink()
            partitions.append(lambda path=path: to_events(_load(path), config, Quarantine()))
    label_quarantine = Quarantine()
    has_table = config.labels is not None and config.labels.path is not None
    return Log(
        partitions=tuple(partitions),
        time_us=np.concatenate([*times, np.zeros(0, dtype=np.int64)]),
        rows_in=rows_used + n_duplicates + len(quarantine),
        n_duplicates=n_duplicates,
        n_users=n_users,
        quarantine=quarantine,
        label_table=_known_until(readers.read_labels(config, label_quarantine), config) if has_table else None,
        label_quarantine=label_quarantine,
        files=files,
        spill=spill,
    )


def _until(chunks: Iterable[pa.Table], as_of_us: int | None) -> Iterator[pa.Table]:
    for chunk in chunks:
        yield chunk if as_of_us is None else chunk.filter(pc.less(chunk["time_us"], as_of_us))


def _known_until(label_table: pa.Table, config: Config) -> pa.Table:
    as_of_us = as_of(config.split)
    return label_table if as_of_us is None else rows_known_by(label_table, as_of_us)


def _spread(chunks: Iterable[pa.Table], folder: Path, n_partitions: int) -> None:
    """Write each row to the file of its user's partition."""
    writers: list[pa.ipc.RecordBatchFileWriter] = []
    try:
        for chunk in chunks:
            if not writers:
                writers = [pa.ipc.new_file(folder / f"{p}.arrow", chunk.schema) for p in range(n_partitions)]
            users = _one(chunk["user"]).dictionary_encode()
            of_user = [zlib.crc32(user.encode()) % n_partitions for user in users.dictionary.to_pylist()]
            partition_N = np.array([*of_user, 0])[users.indices.to_numpy()]
            for p in np.unique(partition_N):
                writers[p].write_table(chunk.filter(pa.array(partition_N == p)))
    finally:
        for writer in writers:
            writer.close()


def _load(path: Path) -> pa.Table:
    with pa.memory_map(str(path)) as file:
        return pa.ipc.open_file(file).read_all()


def _save(table: pa.Table, path: Path) -> None:
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table)


def _one(column: pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks()


def _size_as_read(file: Path) -> int:
    if file.suffix == ".parquet":
        try:
            metadata = pq.read_metadata(file)
        except (pa.ArrowException, OSError):
            return file.stat().st_size  # the reader will refuse it with words
        return sum(metadata.row_group(g).total_byte_size for g in range(metadata.num_row_groups))
    return file.stat().st_size * (_GZIP_RATIO if file.suffix == ".gz" else 1)


def rows_known_by(label_table: pa.Table, as_of_us: int) -> pa.Table:
    """Return the rows of a label table that were known at the as-of; a row without a date is settled by its event."""
    if "known_us" not in label_table.column_names:
        return label_table
    known = label_table["known_us"]
    return label_table.filter(pc.or_(pc.is_null(known), pc.less_equal(pc.fill_null(known, 0), as_of_us)))


def rows_by_reason(quarantine: Quarantine) -> dict[str, int]:
    """Return how many rows were put aside for each reason, most first."""
    reasons: list[str] = quarantine.table()["reason"].to_pylist()
    return dict(Counter(reasons).most_common())


def check_usable(log: Log) -> None:
    """Raise DataError where rows came in but none can be used."""
    if log.rows_in and not log.n_events:
        first = log.quarantine.table().slice(0, 1).to_pylist()[0]
        raise DataError(
            f"none of {log.rows_in} rows can be used; the first: {first['file']}, row {first['row']}, "
            f"column {first['column']!r}: {first['text']}"
        )
