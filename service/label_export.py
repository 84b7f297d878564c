"""`fraud labels pull`: the labels that /v1/labels brought go from the state to a label file that training reads.

The whole state is compared with the whole file, by label_id: no clock has to be trusted, of which every process has its
own, and a pull that was killed is simply run again. Memory does not grow with either: the ids lie in a database on disk
that is gone afterwards. The file only ever grows, so a new state does not take the labels of an old one away.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import shutil
import sqlite3
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

import msgspec

from fraud.config import load_config
from fraud.errors import ConfigError
from fraud.instants import instant_text
from service.audit_command import wall_us
from service.state.labels import KeptLabels, StoredLabel
from service.state.opening import STATE_URL, open_existing_store

COLUMNS = ("user_id", "event_id", "session_id", "label", "known_at", "source", "label_id")
_TIMEOUT_S = 60.0  # nobody waits for an answer
_AT_ONCE = 5000  # labels read from the state: some 2 MB
_LONGEST_LINE = 1 << 20


class Pulled(NamedTuple):
    """How many labels were appended to a file, and how many it holds now."""

    pulled: int
    labels: int


class _Line(msgspec.Struct):
    """What is read again of a line: the other keys are its reader's."""

    label_id: str


_line = msgspec.json.Decoder(_Line)
_object = msgspec.json.Decoder(dict[str, object])


def pull(store: KeptLabels, path: Path, columns: Sequence[str]) -> Pulled:
    """Append the labels of a store that a JSON Lines file does not hold yet, all or none; make the file if need be.

    columns: what the file calls each of COLUMNS. Raises ConfigError for a file that this command did not write, or
    that another run is writing.
    """
    with closing(_scratch()) as known, _writing_alone(path) as aside:
        n_before = _remember(path, columns, known)
        n_new = 0
        for rows in _new_labels(store, known):
            if n_new == 0 and n_before:
                _copy(path, aside)
            aside.writelines(_line_of(row, columns) for row in rows)
            n_new += len(rows)
        if n_new:
            _publish(aside, path)
    return Pulled(n_new, n_before + n_new)


def columns_of(config_path: Path) -> tuple[str, ...]:
    """Return what [log] and [labels] of a configuration call each of COLUMNS. Raises ConfigError."""
    config = load_config(config_path)
    log, labels = config.log, config.labels
    if labels is None:
        raise ConfigError(f"{config_path}: section [labels] is missing; it says what the columns of labels are called")
    known_at, source = labels.known_at or "known_at", labels.source or "source"
    names = (
        log.user, log.event_id or "event_id", log.session or "session_id", labels.column, known_at, source, "label_id",
    )  # fmt: skip
    if len(set(names)) < len(names):
        raise ConfigError(
            f"{config_path}: the columns of a label file would be {', '.join(names)}; expected no two alike"
        )
    return names


def labels_command(arguments: Sequence[str]) -> int:
    """Run `labels pull` and return its exit code. Raises ConfigError, StoreDown and OSError."""
    parser = argparse.ArgumentParser(prog="fraud labels", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    puller = commands.add_parser("pull", allow_abbrev=False)
    puller.add_argument("--state", default=STATE_URL, metavar="URL")
    puller.add_argument("--config", type=Path, metavar="CONFIG")
    puller.add_argument("-o", "--out", type=Path, required=True, metavar="FILE")
    puller.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    if options.out.suffix not in {".jsonl", ".ndjson"}:
        raise ConfigError(f"{options.out}: expected a name that ends in .jsonl or .ndjson")
    columns = COLUMNS if options.config is None else columns_of(options.config)
    with closing(open_existing_store(options.state, now_us=wall_us, timeout_s=_TIMEOUT_S)) as store:
        pulled = pull(store, options.out, columns)
    text = f"{pulled.pulled:,} new labels; {options.out} holds {pulled.labels:,}"
    if not pulled.labels:
        text = f"the state holds no labels; {options.out} was not written"
    # No label, no file: a script must not go on with a path that leads nowhere.
    path = str(options.out) if pulled.labels else None
    document: Mapping[str, object] = {**pulled._asdict(), "path": path}
    sys.stdout.write(f"{json.dumps(document, indent=1) if options.json else text}\n")
    return 0


def _scratch() -> sqlite3.Connection:
    """Return a database on disk that nobody else sees and that is gone when it is closed."""
    scratch = sqlite3.connect("", isolation_level=None)
    scratch.execute("PRAGMA journal_mode = OFF")
    scratch.execute("CREATE TABLE known (label_id TEXT PRIMARY KEY) WITHOUT ROWID")
    return scratch


def _remember(path: Path, columns: Sequence[str], known: sqlite3.Connection) -> int:
    """Put the label_ids of a file into `known`; return how many lines there are, 0 where there is no file."""
    n_lines = 0
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return 0
    with file:
        batch: list[str] = []
        while line := file.readline(_LONGEST_LINE):
            try:
                if n_lines == 0 and tuple(found := _object.decode(line)) != tuple(columns):
                    raise ConfigError(
                        f"{path}: its columns are {', '.join(found)}; expected {', '.join(columns)}, or a new file"
                    )
                batch.append(_line.decode(line).label_id)
            except msgspec.DecodeError as error:
                raise ConfigError(
                    f"{path}, line {n_lines + 1}: {error}; expected a file that this command wrote"
                ) from None
            n_lines += 1
            if len(batch) == _AT_ONCE:
                _new_ids(batch, known)
                batch = []
        _new_ids(batch, known)
    return n_lines


def _new_ids(label_ids: Sequence[str], known: sqlite3.Connection) -> set[str]:
    """Return those of some label_ids that were not known; now they are."""
    sql = "INSERT OR IGNORE INTO known SELECT value FROM json_each(?) RETURNING label_id"
    return {row[0] for row in known.execute(sql, (json.dumps(label_ids),))}


def _new_labels(store: KeptLabels, known: sqlite3.Connection) -> Iterator[list[StoredLabel]]:
    """Yield the labels of a store whose ids are not known, some at a time and never none."""
    after = ""
    while page := store.labels(after, _AT_ONCE):
        after = page[-1].label_id
        ids = _new_ids([row.label_id for row in page], known)
        if ids:
            yield [row for row in page if row.label_id in ids]


def _line_of(row: StoredLabel, columns: Sequence[str]) -> bytes:
    values = (
        row.user_id, row.event_id, row.session_id, row.label, instant_text(row.known_us), row.source, row.label_id,
    )  # fmt: skip
    return msgspec.json.encode(dict(zip(columns, values, strict=True))) + b"\n"


@contextmanager
def _writing_alone(path: Path) -> Iterator[BinaryIO]:
    """Yield an empty file beside `path`, locked: nobody else writes there. It is removed unless it was published.

    The lock is the kernel's and ends with the process; what a killed one left is taken over.
    """
    beside = path.with_name(f".{path.name}.partial")
    while True:
        aside = beside.open("ab")
        try:
            fcntl.flock(aside, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The holder before may have published the very file that was opened here, or removed it.
            if _is_named(aside, beside):
                break
        except BlockingIOError:
            aside.close()
            raise ConfigError(f"{path}: another run is writing it; wait until it ends") from None
        aside.close()
    try:
        aside.truncate(0)
        yield aside
    finally:
        if _is_named(aside, beside):  # still locked: else it might be somebody else's by now
            beside.unlink()
        aside.close()


def _is_named(file: BinaryIO, path: Path) -> bool:
    """Return True where the path still leads to the open file."""
    return path.exists() and os.fstat(file.fileno()).st_ino == path.stat().st_ino


def _copy(path: Path, aside: BinaryIO) -> None:
    """Copy a file whose lines are all whole, but for the end of the last, which some editors leave out."""
    shutil.copymode(path, aside.name)
    with path.open("rb") as file:
        shutil.copyfileobj(file, aside, 1 << 20)
        file.seek(-1, os.SEEK_END)
        if file.read() != b"\n":
            aside.write(b"\n")


def _publish(aside: BinaryIO, path: Path) -> None:
    """Make what was written aside the file, on the disk when this returns."""
    aside.flush()
    os.fsync(aside.fileno())
    Path(aside.name).replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
