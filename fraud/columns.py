"""Which columns of a log the configuration names, what each must hold, and what a header must be.

One list, in the order in which columns are checked: the readers take the columns from it, validation its rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from fraud.config import Config
from fraud.errors import DataError

MAX_COLUMNS = 10_000

Kind = Literal["text", "time", "position", "integer", "amount", "numeric", "label"]
_ARROW_TYPES = {"text": pa.string(), "label": pa.int8(), "amount": pa.float64(), "numeric": pa.float64()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """One column that the configuration names.

    column: its name in the log. name: its name in the canonical table. setting: what declared it, for errors.
    is_required: a null cell is a fault. may_be_absent: a file without the column has nulls there.
    """

    column: str
    name: str
    setting: str
    kind: Kind
    is_required: bool
    may_be_absent: bool = False

    @property
    def arrow_type(self) -> pa.DataType:
        """Return the type of the canonical column."""
        return _ARROW_TYPES.get(self.kind, pa.int64())


def declared_columns(config: Config) -> tuple[Declared, ...]:
    """Return the columns of the log that the configuration names, in the order in which they are checked."""
    log, chosen = config.log, config.fields
    time = (
        Declared(column=log.time, name="time_us", setting="log.time", kind="time", is_required=True)
        if log.has_clock
        else Declared(
            column=str(log.position), name="time_us", setting="log.position", kind="position", is_required=True
        )
    )
    columns = [Declared(column=log.user, name="user", setting="log.user", kind="text", is_required=True), time]
    for place, column in enumerate(log.type_columns):
        columns.append(Declared(column=column, name=f"type:{place}", setting="log.type", kind="text", is_required=True))
    keys: tuple[tuple[str | None, str, Kind], ...] = (
        (log.event_id, "event_id", "text"),
        (log.session, "session", "text"),
        (log.order, "order", "integer"),
    )
    columns += [
        Declared(column=column, name=name, setting=f"log.{name}", kind=kind, is_required=True)
        for column, name, kind in keys
        if column is not None
    ]
    if chosen.amount is not None:
        columns.append(_field(chosen.amount, "amount", "amount", "amount"))
    columns += [_field(column, f"numeric:{column}", "numeric", "numeric") for column in chosen.numeric]
    columns += [_field(column, f"categorical:{column}", "categorical", "text") for column in chosen.categorical]
    columns += [_field(column, f"entity:{column}", "entity", "text") for column in chosen.entity]
    return (*columns, *_label_columns(config, in_log=True))


def declared_label_columns(config: Config) -> tuple[Declared, ...]:
    """Return the columns of the label table: "key:X" for each key, then label, known_us, part and source."""
    labels = config.labels
    keys = labels.key if labels is not None else ()
    columns = [Declared(column=k, name=f"key:{k}", setting="labels.key", kind="text", is_required=True) for k in keys]
    columns += _label_columns(config, in_log=False)
    if labels is not None and labels.source is not None:
        columns.append(
            Declared(column=labels.source, name="source", setting="labels.source", kind="text", is_required=False)
        )
    return tuple(columns)


def canonical_schema(declared: Sequence[Declared]) -> pa.Schema:
    """Return the schema of the canonical table of these columns; the parts of a type are one column there."""
    plain = [(column.name, column.arrow_type) for column in declared if not column.name.startswith("type:")]
    if not is_log(declared):
        return pa.schema([("row", pa.int64()), *plain])
    return pa.schema([("row", pa.int64()), *plain[:2], ("type", pa.string()), *plain[2:]])


def is_log(declared: Sequence[Declared]) -> bool:
    """Return True for the columns of a log, False for those of a label table."""
    return declared[0].name == "user"


def check_header(names: Sequence[str], declared: Sequence[Declared], source: str) -> None:
    """Raise DataError where a declared column is missing, a name is repeated, or there are over 10,000 columns."""
    if len(names) > MAX_COLUMNS:
        raise DataError(f"{source}: {len(names)} columns; expected at most {MAX_COLUMNS}")
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise DataError(f"{source}: column {name!r} stands twice in the header; expected each name once")
        seen.add(name)
    for column in declared:
        if column.column not in seen and not column.may_be_absent:
            there = ", ".join(repr(name) for name in names[:20]) or "none"
            raise DataError(
                f"{source}: no column {column.column!r} ({column.setting}); the columns are: {there}"
                f"{' ...' if len(names) > 20 else ''}{_delimiter_hint(names)}"
            )


def _field(column: str, name: str, setting: str, kind: Kind) -> Declared:
    return Declared(column=column, name=name, setting=f"fields.{setting}", kind=kind, is_required=False)


def _label_columns(config: Config, *, in_log: bool) -> list[Declared]:
    """Return label, known_us and part where the configuration says that they stand here."""
    labels, split = config.labels, config.split
    columns: list[Declared] = []
    if labels is not None and (labels.path is None) == in_log:
        columns.append(
            Declared(column=labels.column, name="label", setting="labels.column", kind="label", is_required=False)
        )
        if labels.known_at is not None:
            columns.append(
                Declared(
                    column=labels.known_at, name="known_us", setting="labels.known_at", kind="time", is_required=False
                )
            )
    if split.by == "column" and split.column is not None:
        has_table = labels is not None and labels.path is not None
        columns.append(
            Declared(
                column=split.column, name="part", setting="split.column", kind="text", is_required=False,
                may_be_absent=has_table,
            )
        )  # fmt: skip
    return columns


def _delimiter_hint(names: Sequence[str]) -> str:
    found = next((mark for mark in (";", "\t", "|", ",") if len(names) == 1 and mark in names[0]), None)
    return "" if found is None else f"; the header holds {found!r}: is log.delimiter right?"
