"""`fraud score`: a log scored by a bundle into one file; bounded memory, and a killed run goes on with --resume.

The scores of each partition of the log are written whole into a working folder, then joined into the output, which
appears under its name only when it is complete.
"""

from __future__ import annotations

import json
import shutil
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from fraud.bundle import Bundle, load_bundle
from fraud.config import Config, config_to_toml, state_hash
from fraud.decisions import DECISIONS
from fraud.errors import ConfigError, FraudError
from fraud.logs import Log, check_usable, read_log
from fraud.readers import log_files
from fraud.sessions import n_reopened
from fraud.tables import (
    EVENT_SCHEMA,
    SESSION_SCHEMA,
    event_table,
    scored_chunks,
    scoring_config,
    session_table,
    tables_of,
)
from pipelines.console import Screen
from pipelines.files import check_new, written_whole
from pipelines.prepare import counts, show_counts, write_quarantine

Json = dict[str, Any]  # Any: JSON
_COUNTED = ("events", "sessions", "sessions_reopened", "unknown_types", *DECISIONS)
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def score_file(
    directory: Path,
    events: str,
    out: Path,
    *,
    config: Config | None,
    per_event: bool,
    overwrite: bool,
    resume: bool,
    screen: Screen,
) -> Json:
    """Return the totals of a log scored into `out` (.parquet or .csv), one row a session, or an event.

    config: where the labels are that say which frauds are known of entities; default: none are. Raises ConfigError,
    DataError and BundleError; an output under its own name is always complete.
    """
    started = time.monotonic()
    check_new(out, overwrite=overwrite or resume)
    if out.suffix not in (".parquet", ".csv"):
        raise ConfigError(f"{out}: expected a name that ends in .parquet or .csv")
    bundle = load_bundle(directory)
    log_config = _log_config(bundle, config)
    work = out.with_name(f".{out.name}.work")
    if not resume:
        shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    try:
        with closing(read_log(log_config, events=events, work=work)) as log:
            _check_log(log, log_config, out, screen)
            _start_over_if_changed(work, bundle, log, log_config, per_event=per_event)
            totals = _score_partitions(bundle, log, log_config, work, per_event=per_event, screen=screen)
            _join(work, len(log.partitions), out, per_event=per_event)
    except FraudError:
        # Nothing to take up: the log or the bundle is wrong. Parts that were there before stay, for a mended call.
        if not resume:
            shutil.rmtree(work, ignore_errors=True)
        raise
    shutil.rmtree(work, ignore_errors=True)
    document: Json = counts(log) | totals | {"model_version": bundle.version, "out": str(out)}
    document["seconds"] = round(time.monotonic() - started, 3)
    show_counts(document, screen)
    if document["unknown_types"]:
        screen.warn(f"{document['unknown_types']:,} events have a type the bundle has never seen; scored as unknown")
    screen.say(f"decisions: {', '.join(f'{n:,} {name}' for name, n in document['decisions'].items())} -> {out}")
    return document


def quarantine_path(out: Path) -> Path:
    """Return where the rows that were put aside go: OUT.quarantine.parquet."""
    return out.with_name(f"{out.stem}.quarantine.parquet")


def _check_log(log: Log, config: Config, out: Path, screen: Screen) -> None:
    """Write the rows that were put aside, warn of what lowers the worth of the scores, refuse what cannot be scored."""
    if out.resolve() in [file.resolve() for file in log.files]:
        raise ConfigError(f"{out}: is the log itself; expected another name for the scores")
    write_quarantine(log.quarantine, quarantine_path(out), log.files)
    check_usable(log)
    if config.fields.entity and config.labels is None:
        screen.warn("no labels: the frauds known of each entity count as 0 (--config CONFIG names a label table)")
    if log.rows_in == 0:
        screen.warn("the log holds no row; the output is empty")


def _log_config(bundle: Bundle, config: Config | None) -> Config:
    """Return the configuration the log is read with: the bundle's, with labels only where a config brings them."""
    if config is None:
        return scoring_config(bundle.scorer.config, labels=None)
    if state_hash(config) != state_hash(bundle.scorer.config):
        raise ConfigError(
            "the bundle was made for another [log], [fields] or [sessions] than this configuration declares; "
            f"see {bundle.path / 'config.toml'}"
        )
    return scoring_config(config, labels=config.labels)


def _start_over_if_changed(work: Path, bundle: Bundle, log: Log, config: Config, *, per_event: bool) -> None:
    """Remove what a run of another bundle, log, label table or kind of output left behind."""
    paths = list(log.files)
    if config.labels is not None and config.labels.path is not None:
        paths += log_files(config.labels.path, config.root)
    files = [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in paths]
    identity = json.dumps([bundle.version, files, config_to_toml(config), per_event, len(log.partitions)])
    path = work / "run.json"
    if path.exists() and path.read_text(encoding="utf-8") == identity:
        return
    for part in work.glob("part-*.parquet"):
        part.unlink()
    with written_whole(path) as aside:
        aside.write_text(identity, encoding="utf-8")


def _score_partitions(bundle: Bundle, log: Log, config: Config, work: Path, *, per_event: bool, screen: Screen) -> Json:
    """Write the scores of each partition that is not written yet, and return the totals."""
    done = 0
    tables = None
    with screen.progress() as advance:
        for partition in range(len(log.partitions)):
            path = work / f"part-{partition}.parquet"
            if path.exists():
                done += _totals(path)["events"]
                continue
            tables = tables_of(log, config) if tables is None else tables
            schema = EVENT_SCHEMA if per_event else SESSION_SCHEMA
            totals: dict[str, int] = dict.fromkeys(_COUNTED, 0)
            with written_whole(path) as aside, pq.ParquetWriter(aside, schema) as writer:
                for scored, ids in scored_chunks(bundle.scorer, log, tables, partition):
                    table = event_table(scored, ids) if per_event else session_table(scored, bundle.version)
                    writer.write_table(table)
                    _count(totals, scored, bundle)
                    done += len(scored.score_N)
                    advance("score", done, log.n_events)
                writer.add_key_value_metadata({"totals": json.dumps(totals)})
    parts = [_totals(work / f"part-{partition}.parquet") for partition in range(len(log.partitions))]
    summed = {name: sum(part[name] for part in parts) for name in _COUNTED[1:]}
    decisions = {name: summed.pop(name) for name in DECISIONS}
    return {**summed, "decisions": decisions}


def _count(totals: dict[str, int], scored: Any, bundle: Bundle) -> None:
    types = scored.enriched.events.type
    known = set(bundle.scorer.model.vocabulary.types)
    is_unknown_V = np.array([str(value) not in known for value in types.values], dtype=np.bool_)
    totals["events"] += len(scored.score_N)
    totals["sessions"] += int(scored.enriched.session_opens_N.sum())
    totals["sessions_reopened"] += n_reopened(scored.enriched.events, scored.enriched.session_opens_N)
    totals["unknown_types"] += int(is_unknown_V[types.codes_N].sum())
    for code, name in enumerate(DECISIONS):
        totals[name] += int((scored.decision_N == code).sum())


def _totals(path: Path) -> dict[str, int]:
    return json.loads(pq.read_metadata(path).metadata[b"totals"])


def _join(work: Path, n_parts: int, out: Path, *, per_event: bool) -> None:
    """Write the parts one after another to the output."""
    schema = EVENT_SCHEMA if per_event else SESSION_SCHEMA
    parts = (work / f"part-{partition}.parquet" for partition in range(n_parts))
    with written_whole(out) as aside:
        if out.suffix == ".csv":
            with pacsv.CSVWriter(aside, schema) as csv_writer:
                for part in parts:
                    csv_writer.write_table(_escaped(pq.read_table(part, schema=schema)))
            return
        with pq.ParquetWriter(aside, schema) as writer:
            for part in parts:
                for batch in pq.ParquetFile(part).iter_batches():
                    writer.write_batch(batch)


def _escaped(table: pa.Table) -> pa.Table:
    """Return the table with a quote before every text that a spreadsheet would run as a formula."""
    for place, field in enumerate(table.schema):
        if pa.types.is_string(field.type):
            column = table.column(place)
            runs = pc.fill_null(pc.is_in(pc.utf8_slice_codeunits(column, 0, 1), pa.array(_FORMULA)), False)
            escaped = pc.if_else(runs, pc.binary_join_element_wise("'", column, ""), column)
            table = table.set_column(place, field, escaped)
    return table
