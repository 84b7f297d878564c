"""The rows of a JSON Lines file as Python objects: one object a line, blank lines are no rows.

A block whose lines are all good is decoded by one call, as an array with a mark between its lines that stands nowhere
in the text: only if every mark is found again between two objects was each line an object by itself. Any other block is
decoded line by line, so that a bad line costs only itself. Arrow's reader was not taken: it coerces types and loses the
text of numbers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from operator import itemgetter
from typing import NamedTuple

import numpy as np

from fraud.cells import JsonCells
from fraud.columns import Declared
from fraud.csv_rows import MAX_ROW_BYTES, rows_fit
from fraud.errors import DataError
from fraud.events import IntArray
from fraud.quarantine import Fault, Quarantine, printable
from fraud.validation import RawRows

_CHUNK_ROWS = 1 << 16
_MARK = "\x7f"  # a whole string of its own, legal in JSON
_BACKSLASH_IN_KEY = re.compile(rb'\\.[^"\\]*+(?:\\.[^"\\]*+)*+"\s*:', re.DOTALL)
_PAIRS = json.JSONDecoder(object_pairs_hook=list)

JsonObject = dict[str, object]


class _BadLine(NamedTuple):
    place: int
    text: bytes
    fault: Fault


def json_rows(
    blocks: Iterator[bytes], declared: Sequence[Declared], quarantine: Quarantine, *, source: str
) -> Iterator[RawRows]:
    """Yield the cells of the declared columns, a block at a time; lines that are no object go to the quarantine.

    `blocks`: the bytes of the file in pieces of any size. Raises DataError for a JSON array or a pretty-printed file.
    """
    names = tuple(dict.fromkeys(column.column for column in declared))
    columns = _empty_columns(names)
    rows: list[IntArray] = []
    n_before = n_kept = 0
    is_first = True
    for content in _whole_lines(blocks):
        if is_first:
            _refuse_other_json(content, source)
        is_first = False
        found, bad = _decoded_lines(content, names)
        n_good = len(found[0])
        n_rows = n_good + len(bad)
        quarantine.count_read(n_rows)
        bad_N = np.array([line.place for line in bad], dtype=np.int64)
        faults_N = np.array([line.fault for line in bad], dtype=np.int8)
        quarantine.add(
            source, bad_N + n_before, column="", values=[printable(line.text) for line in bad], faults_N=faults_N
        )
        for column, cells in zip(columns, found, strict=True):
            column.extend(cells)
        rows.append(np.delete(np.arange(n_before, n_before + n_rows), bad_N))
        n_before += n_rows
        n_kept += n_good
        if n_kept >= _CHUNK_ROWS:
            yield _raw_rows(source, rows, names, columns)
            columns, rows, n_kept = _empty_columns(names), [], 0
    if n_kept:
        yield _raw_rows(source, rows, names, columns)


def _empty_columns(names: Sequence[str]) -> list[list[object]]:
    return [[] for _ in names]


def _raw_rows(source: str, rows: list[IntArray], names: Sequence[str], columns: list[list[object]]) -> RawRows:
    cells = {name: JsonCells(column) for name, column in zip(names, columns, strict=True)}
    return RawRows(source=source, rows_N=np.concatenate(rows), cells=cells)


def _whole_lines(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Yield pieces that end with a line; of a line over 1 MB only the beginning is kept, still over 1 MB."""
    pending = b""
    for block in blocks:
        content = pending + block
        end = content.rfind(b"\n") + 1
        if end:
            yield content[:end]
        pending = content[end : end + MAX_ROW_BYTES + 1]
    if pending:
        yield pending


def _refuse_other_json(content: bytes, source: str) -> None:
    """Raise DataError where the first line begins an array or a pretty-printed object, not an object of its own."""
    lines = content.lstrip().split(b"\n", 2)
    first = lines[0].strip()
    if first == b"[" or re.match(rb"\[\s*\{", first):
        raise DataError(
            f"{source}: holds a JSON array; expected JSON Lines: one object a line, no brackets around them"
        )
    second = lines[1].strip() if len(lines) > 1 else b""
    if first == b"{" and not second.startswith(b"{"):
        raise DataError(f"{source}: holds JSON over several lines; expected JSON Lines: each object on one line")


def _decoded_lines(content: bytes, names: Sequence[str]) -> tuple[list[list[object]], list[_BadLine]]:
    """Return the cells of each name in the good lines, and the other lines."""
    objects = _objects_at_once(content)
    bad: list[_BadLine] = []
    if objects is None or _may_repeat_a_key(content, objects, names):
        objects, bad = _objects_by_line(content, names)
    return [_cells(objects, name) for name in names], bad


def _cells(objects: list[JsonObject], name: str) -> list[object]:
    try:
        return list(map(itemgetter(name), objects))
    except KeyError:
        return [found.get(name) for found in objects]


def _objects_at_once(content: bytes) -> list[JsonObject] | None:
    """Return the objects of lines that are all good, else None."""
    if not rows_fit(content, len(content)):
        return None
    try:
        text = content.decode("utf-8").replace("\r\n", "\n").strip("\n")
        while "\n\n" in text:
            text = text.replace("\n\n", "\n")
        if _MARK in text:
            return None
        found = json.loads("[" + text.replace("\n", f',"{_MARK}",') + "]")
    except (ValueError, RecursionError):
        return None
    objects, marks = found[::2], found[1::2]
    is_by_line = len(marks) == marks.count(_MARK) == text.count("\n") and set(map(type, objects)) <= {dict}
    return objects if is_by_line else None


def _may_repeat_a_key(content: bytes, objects: list[JsonObject], names: Sequence[str]) -> bool:
    """Return False where no object can have held one of the names twice.

    A key twice in one object shows as more mentions than objects that have it; a backslash could hide a mention.
    """
    if b"\\" in content and _BACKSLASH_IN_KEY.search(content):
        return True
    return any(content.count(_mention(name)) > sum(name in found for found in objects) for name in names)


def _mention(name: str) -> bytes:
    return json.dumps(name, ensure_ascii=False).encode()


def _objects_by_line(content: bytes, names: Sequence[str]) -> tuple[list[JsonObject], list[_BadLine]]:
    """Return the objects of the good lines, and the others; places count both."""
    objects: list[JsonObject] = []
    bad: list[_BadLine] = []
    for line in content.split(b"\n"):
        if not line.strip():
            continue
        found = _object_of(line, names)
        if isinstance(found, Fault):
            bad.append(_BadLine(len(objects) + len(bad), line, found))
        else:
            objects.append(found)
    return objects, bad


def _object_of(line: bytes, names: Sequence[str]) -> JsonObject | Fault:
    if len(line) > MAX_ROW_BYTES:
        return Fault.ROW_TOO_LONG
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError:
        return Fault.INVALID_UTF8
    try:
        found: JsonObject = json.loads(text)
    except (ValueError, RecursionError):
        return Fault.NUL_BYTE if "\0" in text else Fault.NOT_JSON
    if type(found) is not dict:
        return Fault.NOT_AN_OBJECT
    if _may_repeat_a_key(line, [found], names):
        keys = [key for key, _ in _PAIRS.decode(text)]
        if any(keys.count(name) > 1 for name in names):
            return Fault.DUPLICATE_KEY
    return found
