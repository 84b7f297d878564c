"""Small logs for tests, written as CSV, JSON Lines and Parquet by the plainest means, and what reading them gives."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from fraud.config import Config, parse_config
from fraud.events import Events
from fraud.ordering import to_events
from fraud.quarantine import Quarantine
from fraud.readers import read_log

COLUMNS = ("event_id", "user_id", "ts", "type", "amount", "channel")
CONFIG = """
[log]
event_id = "event_id"
[fields]
amount = "amount"
categorical = ["channel"]
"""

Row = dict[str, object]


class Read(NamedTuple):
    """What reading some files gave."""

    table: pa.Table
    events: Events
    n_duplicates: int
    quarantine: Quarantine

    @property
    def refused(self) -> list[tuple[int, str, str]]:
        """Return (row, column, reason) of each refused row."""
        rows = self.quarantine.table().to_pylist()
        return [(row["row"], row["column"], row["reason"]) for row in rows]


def config_of(text: str = CONFIG, root: Path | None = None) -> Config:
    """Return the configuration of TOML text."""
    return parse_config(text, source="test", root=root or Path())


def read(files: Path | Sequence[Path], config: Config | None = None) -> Read:
    """Return the events of the files."""
    config = config or config_of()
    quarantine = Quarantine()
    table = pa.concat_tables(list(read_log([files] if isinstance(files, Path) else files, config, quarantine)))
    ordered = to_events(table, config, quarantine)
    return Read(table, ordered.events, ordered.n_duplicates, quarantine)


def event(number: int, **changes: object) -> Row:
    """Return one good row."""
    row: Row = {
        "event_id": f"e{number}",
        "user_id": f"u{number % 3}",
        "ts": f"2026-11-20T10:{number % 60:02}:00Z",
        "type": "login",
        "amount": None,
        "channel": "app",
    }
    return {**row, **changes}


def csv_text(rows: Sequence[Row], columns: Sequence[str] = COLUMNS) -> str:
    """Return the CSV of rows; None is an empty cell."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([["" if row[name] is None else row[name] for name in columns] for row in rows])
    return out.getvalue()


def write(path: Path, rows: Sequence[Row], columns: Sequence[str] = COLUMNS) -> Path:
    """Write rows in the format of the path's extension and return the path."""
    name = path.name.removesuffix(".gz")
    if name.endswith(".parquet"):
        pq.write_table(pa.table({c: [row[c] for row in rows] for c in columns}), path, write_page_checksum=True)
        return path
    text = csv_text(rows, columns) if name.endswith(".csv") else "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.name.endswith(".gz") else text.encode())
    return path


def rows_of(events: Events) -> list[tuple[object, ...]]:
    """Return each event as a plain tuple, in order: what two readings of the same log must agree on."""
    users = events.users[events.user_codes()]
    amounts = [None] * len(events) if events.amount is None else [None if a != a else a for a in events.amount.tolist()]
    fields = [column.to_objects().tolist() for column in (*events.categorical.values(), *events.entity.values())]
    return list(
        zip(users.tolist(), events.time_us.tolist(), events.type.to_objects().tolist(), amounts, *fields, strict=True)
    )
