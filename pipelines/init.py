"""`fraud init`: a look at a log and a commented configuration to edit.

The log is never read whole: in `proposal/`, `sample` takes some of its rows, `columns` says what each column holds,
`roles`, `fields`, `labels` and `types` what it is for, `text` writes it down. What was not sure is said at its line. At
the end the configuration is tried on the sampled rows, by the rules that read the log.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from fraud.columns import declared_columns
from fraud.config import parse_config
from fraud.errors import DataError
from fraud.quarantine import Quarantine
from fraud.readers import log_files
from fraud.validation import canonical_rows
from pipelines.console import Screen
from pipelines.files import check_new, written_whole
from pipelines.proposal.columns import Column, columns_of, word_set, words_of
from pipelines.proposal.fields import FieldRoles, fields_of, is_suspect, without
from pipelines.proposal.labels import LabelRole, labels_of
from pipelines.proposal.roles import MAX_TYPES, Doubt, Roles, listed, roles_of
from pipelines.proposal.sample import Sample, column_names, sample_log, sample_rows
from pipelines.proposal.text import Setting, config_text, plain
from pipelines.proposal.types import decision_types, key_types, session_gap, types_of

Json = dict[str, Any]  # Any: JSON
_LOG_WORDS = word_set("event events transaction transactions log logs payment payments")
_FEW_ROWS = 100  # in fewer, one bad row says little of a column
_MAX_BAD = 0.01  # of the sampled rows that a field may cost: more, and it is left out


def init_config(events: str, out: Path, *, overwrite: bool, screen: Screen) -> Json:
    """Return what was chosen and what was doubted, the configuration written to `out`.

    events: a file, a folder or a glob. Raises ConfigError where `out` exists, DataError where the log cannot be read or
    no column could be the user or the time.
    """
    check_new(out, overwrite=overwrite)
    files, pattern = _one_log(log_files(events, Path()), events)
    sample = sample_log(files)
    columns = columns_of(sample)
    suspects = frozenset(column.name for column in columns if is_suspect(column))
    roles = roles_of(columns, suspects, str(files[0]))
    labels = labels_of([column for column in columns if column not in roles.columns], roles, files)
    of_label = {labels.column, labels.known_at} if labels is not None and labels.path is None else set[str | None]()
    fields = fields_of([column for column in columns if column.name not in of_label], roles)
    seen = _Seen(sample, columns, roles, fields, labels, pattern, out)
    settings, doubts, costly = _tried(seen)
    left_out = [*seen.fields.left_out, *((name, "too many of its values are refused") for name in costly)]
    text = config_text(
        _opening(out, sample),
        settings,
        {path: [doubt.text for doubt in doubts if doubt.setting == path] for path in {d.setting for d in doubts}},
        [] if not left_out else ["Columns that no model reads:", *(f"  {_name(n)}: {why}" for n, why in left_out)],
    )
    parse_config(text, source=str(out), root=out.parent)
    with written_whole(out) as aside:
        aside.write_text(text, encoding="utf-8")
    chosen = {setting.path: setting.value for setting in settings if setting.value is not None}
    _show(chosen, doubts, left_out, out, screen)
    return {
        "config": str(out),
        "rows_looked_at": sample.n_rows,
        "roles": {path: list(value) if isinstance(value, tuple) else value for path, value in chosen.items()},
        "doubts": [{"setting": doubt.setting, "text": doubt.text} for doubt in doubts],
        "left_out": [{"column": plain(name), "why": why} for name, why in left_out],
    }


class _Seen(NamedTuple):
    """What a look at a log has found."""

    sample: Sample
    columns: Sequence[Column]
    roles: Roles
    fields: FieldRoles
    labels: LabelRole | None
    pattern: str
    out: Path


def _one_log(files: list[Path], events: str) -> tuple[list[Path], str]:
    """Return the files that have the columns of one log, and what to call them: a folder may hold labels as well."""
    kinds: dict[tuple[str, ...], list[Path]] = {}
    if len(files) > 1:
        for file in files:
            kinds.setdefault(tuple(sorted(column_names(file)[0])), []).append(file)
    if len(kinds) <= 1:
        return files, events
    named = [group for group in kinds.values() if set(words_of(group[0].stem)) & _LOG_WORDS]
    if len(named) == 1 and len(named[0]) == 1:
        return named[0], str(named[0][0])
    names = "; ".join(", ".join(file.name for file in group[:3]) for group in kinds.values())
    raise DataError(
        f"{events}: files of {len(kinds)} kinds, with other columns ({names}); name one, or a glob of one kind"
    )


def _tried(seen: _Seen) -> tuple[list[Setting], list[Doubt], list[str]]:
    """Return (settings, doubts, fields left out): tried on the sample, without the fields that would cost its rows."""
    costly: list[str] = []
    n_rows = seen.sample.n_rows
    while True:
        settings, doubts = _settings(seen)
        bad = _refused(seen.sample, settings, seen.out)
        worst = [name for name, n_bad in bad.items() if name in seen.fields.names and n_bad > _MAX_BAD * n_rows]
        if not worst or n_rows < _FEW_ROWS:
            break
        costly += worst
        seen = seen._replace(fields=without(seen.fields, worst))
    declared = [setting for setting in settings if setting.section in ("fields", "log", "labels")]
    paths = {name: s.path for s in declared for name in (s.value if isinstance(s.value, tuple) else (s.value,))}
    for name, n_bad in bad.items():
        text = f"{n_bad:,} of the {n_rows:,} rows looked at would be quarantined for {name!r}"
        doubts.append(Doubt(paths.get(name, "log.events"), text))
    return settings, doubts, costly


def _refused(sample: Sample, settings: Sequence[Setting], out: Path) -> Counter[str]:
    """Return how many of the sampled rows the configuration would quarantine, by column."""
    config = parse_config(config_text([], settings, {}, []), source=str(out), root=out.parent)
    config = replace(config, labels=None) if config.labels is not None and config.labels.path is not None else config
    quarantine = Quarantine()
    quarantine.open_source(str(sample.files[0]), 0)
    canonical_rows(sample_rows(sample), declared_columns(config), config, quarantine, first_row=0)
    return Counter(quarantine.table()["column"].to_pylist())


def _settings(seen: _Seen) -> tuple[list[Setting], list[Doubt]]:
    roles, fields, labels, out = seen.roles, seen.fields, seen.labels, seen.out
    types = types_of(roles)
    on, on_doubt = decision_types(types, None if labels is None else labels.positive_N, fields.amount)
    gap, why_gap = session_gap(roles)
    doubts = [*roles.doubts, *fields.doubts, *(() if labels is None else labels.doubts)]
    doubts += [] if on_doubt is None else [on_doubt]
    doubts += [] if roles.types else [_no_type(fields, seen.columns)]
    clock = roles.clock
    kinds = tuple(column.name for column in roles.types)
    settings = [
        Setting("log", "events", _relative(seen.pattern, out)),
        Setting("log", "user", roles.user.name, f"{roles.user.n_values:,} of them in the rows looked at"),
        Setting("log", "time", "position" if roles.time is None else roles.time.name),
        Setting("log", "position", None if roles.position is None else roles.position.name),
        Setting("log", "time_unit", clock.unit if clock is not None and clock.kind == "number" else None),
        Setting("log", "zone", "UTC" if clock is not None and clock.kind == "naive" else None),
        Setting(
            "log", "type", kinds if len(kinds) > 1 else "".join(kinds), f"{len(types.names):,} kinds" if kinds else ""
        ),
        Setting(
            "log", "event_id", _name_of(roles.event_id), "unique: a repeated row is found, labels can be joined by it"
        ),
        Setting("log", "session", _name_of(roles.session)),
        Setting("log", "order", _name_of(roles.order), "breaks ties of time"),
        Setting("log", "delimiter", None if seen.sample.delimiter == "," else seen.sample.delimiter),
        Setting("fields", "amount", _name_of(fields.amount)),
        Setting("fields", "negative", "allow" if fields.has_negative else None),
        Setting("fields", "numeric", fields.numeric or None),
        Setting("fields", "categorical", fields.categorical or None),
        Setting("fields", "entity", fields.entity or None, "first seen, and the fraud known of each"),
        Setting("fields", "key_types", key_types(types) or None, "a model is told the time since the last of each"),
        Setting("sessions", "gap", gap, why_gap),
        Setting("sessions", "scope", "user", '"user": a fraud may begin in an earlier session'),
        Setting("sessions", "max_events", 64, "how far back a model looks; even"),
        *_label_settings(labels, out),
        Setting("decisions", "on", on or None, "a decision is made on each event of these types"),
        Setting("split", "by", "time", "train on the past, test on what came after")
        if clock is not None
        else Setting("split", "by", "user", "train on some users, test on others: there is no clock to split by"),
        Setting("model", "name", "boosting", 'or "lstm"'),
    ]
    return settings, doubts


def _no_type(fields: FieldRoles, columns: Sequence[Column]) -> Doubt:
    """Return the doubt of a log without a type, with the columns that could be one."""
    n_values = {column.name: column.n_values for column in columns}
    text = "no column says what kind of event a row is: every event is of one kind"
    for kind, names in (("entity", fields.entity), ("categorical", fields.categorical)):
        could = [name for name in names if 2 <= n_values[name] <= MAX_TYPES][:3]
        text += f"; {listed(could)} could be the type (now fields.{kind})" if could else ""
    return Doubt("log.type", text)


def _label_settings(labels: LabelRole | None, out: Path) -> list[Setting]:
    if labels is None:
        return []
    path = None if labels.path is None else _relative(str(labels.path), out)
    delay = None if labels.delay_days is None else f"{labels.delay_days}d"
    return [
        Setting("labels", "path", path),
        Setting("labels", "key", labels.key or None),
        Setting("labels", "column", labels.column),
        Setting("labels", "level", labels.level),
        Setting("labels", "known_at", labels.known_at),
        Setting("labels", "delay", delay, "90 % of the labels looked at were known by then; no label: honest", '"7d"'),
    ]


def _opening(out: Path, sample: Sample) -> list[str]:
    rows = f"all {sample.n_rows:,} rows" if sample.is_whole else f"{sample.n_rows:,} rows"
    return [
        f"fraud prepare {plain(out.name)} -o prepared        (does the log read as meant?)",
        f"fraud compare {plain(out.name)} -o comparison      (scorers side by side; needs [labels])",
        f"fraud train {plain(out.name)} -o bundle            (one scorer; needs [labels])",
        "",
        f"Written by `fraud init` from a look at {rows} of the log. Read the lines that begin with # ?: not sure.",
    ]


def _show(
    chosen: dict[str, Any], doubts: Sequence[Doubt], left_out: Sequence[tuple[str, str]], out: Path, screen: Screen
) -> None:
    shown = ("log.", "fields.", "labels.", "decisions.")
    rows = [
        [path, plain(", ".join(value) if isinstance(value, tuple) else str(value) or '"" (every event is one kind)')]
        for path, value in chosen.items()
        if path.startswith(shown) and path != "log.events"
    ]
    screen.table(f"What the columns are taken for ({out})", ["setting", "column"], rows)
    for doubt in doubts:
        screen.say(f"? {doubt.setting}: {plain(doubt.text)}")
    if left_out:
        screen.say("no model reads: " + "; ".join(f"{_name(name)} ({why})" for name, why in left_out[:20]))
    if not any(path.startswith("labels.") for path in chosen):
        screen.say("no label found: `fraud train` needs [labels]; `fraud prepare` and `fraud score` do not")


def _relative(pattern: str, out: Path) -> str:
    """Return the path as the configuration's folder sees it; an absolute one outside of it stays as it is."""
    folder = os.path.abspath(out.parent)
    absolute = os.path.abspath(pattern)
    is_inside = os.path.commonpath([folder, absolute]) == folder
    return absolute if os.path.isabs(pattern) and not is_inside else os.path.relpath(absolute, folder)


def _name_of(column: Column | None) -> str | None:
    return None if column is None else column.name


def _name(name: str) -> str:
    return plain(repr(name))
