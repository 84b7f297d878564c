"""`fraud prepare`: a log validated, put in order, cut into sessions and encoded, with a report of what was in it."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fraud.config import Config
from fraud.errors import ConfigError
from fraud.logs import Log, check_usable, read_log, rows_by_reason
from fraud.preparation import prepare
from fraud.quarantine import Quarantine
from pipelines.console import Screen
from pipelines.files import check_new, directory_written_whole, written_whole

Json = dict[str, Any]  # Any: JSON
_REPORT = "report.json"


def prepare_log(config: Config, out: Path, *, overwrite: bool, screen: Screen) -> Json:
    """Return the report; DIR holds the prepared set, report.json, and quarantine.parquet where a row was put aside.

    Raises DataError where rows came in but none can be used; then DIR.quarantine.parquet says why.
    """
    check_new(out, overwrite=overwrite, mark=_REPORT)
    started = time.monotonic()
    with directory_written_whole(out) as aside, closing(read_log(config, work=aside)) as log:
        write_quarantine(log.quarantine, aside / "quarantine.parquet", log.files)
        beside = out.with_name(f"{out.name}.quarantine.parquet")
        if log.n_events == 0:
            if log.rows_in:
                write_quarantine(log.quarantine, beside, log.files)
            check_usable(log)
            screen.warn("the log holds no row; there is nothing to prepare")
            report: Json = {"sessions": 0, "users": 0}
        else:
            write_quarantine(Quarantine(), beside, log.files)
            with screen.progress() as advance:
                report = prepare(log, config, aside, progress=advance).report
        report = counts(log) | report | {"seconds": round(time.monotonic() - started, 3)}
        (aside / _REPORT).write_text(json.dumps(report, indent=1), encoding="utf-8")
    show_counts(report, screen)
    return report


def counts(log: Log) -> Json:
    """Return where every row went."""
    return {
        "rows_in": log.rows_in,
        "rows_used": log.n_events,
        "duplicates": log.n_duplicates,
        "quarantined": len(log.quarantine),
        "quarantined_by_reason": rows_by_reason(log.quarantine),
        "users": log.n_users,
    }


def show_counts(report: Json, screen: Screen) -> None:
    """Print where every row went, and warn about what a person should look at."""
    screen.say(
        f"{report['rows_in']:,} rows: {report['rows_used']:,} used, {report['duplicates']:,} duplicates, "
        f"{report['quarantined']:,} quarantined; {report['users']:,} users, {report['sessions']:,} sessions"
    )
    for reason, n_rows in report["quarantined_by_reason"].items():
        screen.say(f"  quarantined: {n_rows:,} {reason}")
    if report.get("labels_unmatched"):
        screen.warn(f"{report['labels_unmatched']:,} of {report['labels']:,} labels match no event of the log")
    if report.get("sessions_reopened"):
        screen.warn(
            f"{report['sessions_reopened']:,} times a session of the log goes on after another session of its user; "
            "each piece counts as a session of its own under the same id"
        )
    if report.get("labels_known_too_early"):
        screen.warn(
            f"{report['labels_known_too_early']:,} labels claim to be known before what they speak of; "
            "each is taken as known from that moment on"
        )
    if report.get("labels_quarantined"):
        screen.warn(f"{report['labels_quarantined']:,} rows of the label table cannot be used")


def write_quarantine(quarantine: Quarantine, path: Path, log_files: Sequence[Path]) -> None:
    """Write the rows that were put aside; without any, remove what an earlier run wrote under that name.

    Raises ConfigError where a file of that name is part of the log, or no quarantine: it is never touched.
    """
    if path.exists() and (path.resolve() in [file.resolve() for file in log_files] or not _is_quarantine(path)):
        if not len(quarantine):
            return
        raise ConfigError(
            f"{path}: is where the rows that cannot be used would go; expected another name for the output"
        )
    if not len(quarantine):
        path.unlink(missing_ok=True)
        return
    with written_whole(path) as aside:
        pq.write_table(quarantine.table(), aside)


def _is_quarantine(path: Path) -> bool:
    try:
        return pq.read_schema(path).names == Quarantine().table().column_names
    except (pa.ArrowException, OSError):
        return False
