"""`fraud score`: a log scored by a bundle into one file; bounded memory, and a killed run goes on with --resume.

The scores of each partition of the log are written whole into a working folder, then joined into the output, which
appears under its name only when it is complete.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from fraud.bundle import Bundle, load_bundle
from fraud.config import Config, config_to_toml, state_hash
from fraud.decisions import ALLOW, DECISIONS
from fraud.enrich import empty_carry
from fraud.errors import ConfigError, FraudError
from fraud.events import IntArray
from fraud.explain import explain
from fraud.logs import Log, check_usable, read_log
from fraud.readers import log_files
from fraud.reasons import reasons, rule_reason
from fraud.scoring import Scored, Scorer, Tables, enrich_spec
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
from fraud.verdicts import NO_RULE
from pipelines.console import Screen
from pipelines.files import check_output, written_whole
from pipelines.prepare import counts, show_counts, write_quarantine

Json = dict[str, Any]  # Any: JSON
_COUNTED = ("events", "sessions", "sessions_reopened", "unknown_types", *DECISIONS)
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_EXPLAINED_AT_ONCE = 2_000  # alerts whose contexts are held at once


class _Output(NamedTuple):
    """What a row of the output is: an event or a session; with a column of reasons or without."""

    per_event: bool
    with_reasons: bool

    @property
    def schema(self) -> pa.Schema:
        """Return the columns."""
        schema = EVENT_SCHEMA if self.per_event else SESSION_SCHEMA
        return schema.append(pa.field("reasons", pa.string())) if self.with_reasons else schema


def score_file(
    directory: Path,
    events: str,
    out: Path,
    *,
    config: Config | None,
    per_event: bool,
    with_reasons: bool = False,
    overwrite: bool,
    resume: bool,
    screen: Screen,
) -> Json:
    """Return the totals of a log scored into `out` (.parquet or .csv), one row a session, or an event.

    with_reasons adds the column `reasons`: of an alert, the list or rule that decided, if one did, and the three events
    that raise its score most; of a session, those of its most severe decision, the highest score among equals; null
    where nothing is alerted.

    config: where the labels are that say which frauds are known of entities; default: none are. Raises ConfigError,
    DataError and BundleError; an output under its own name is always complete.
    """
    started = time.monotonic()
    work = out.with_name(f".{out.name}.work")
    check_output(out, work, overwrite=overwrite, resume=resume)
    if out.suffix not in (".parquet", ".csv"):
        raise ConfigError(f"{out}: expected a name that ends in .parquet or .csv")
    bundle = load_bundle(directory)
    output = _Output(per_event, with_reasons)
    read_with = log_config(bundle, config)
    if not resume:
        shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    try:
        with closing(read_log(read_with, events=events, work=work)) as log:
            _check_log(log, read_with, out, screen)
            _start_over_if_changed(work, bundle, log, read_with, output)
            totals = _score_partitions(bundle, log, read_with, work, output, screen)
            _join(work, len(log.partitions), out, output)
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
    warn_without_labels(config, screen)
    if log.rows_in == 0:
        screen.warn("the log holds no row; the output is empty")


def warn_without_labels(config: Config, screen: Screen) -> None:
    """Say where a scorer that reads entities is told of no fraud."""
    if config.fields.entity and config.labels is None:
        screen.warn("no labels: the frauds known of each entity count as 0 (--config CONFIG names a label table)")


def log_config(bundle: Bundle, config: Config | None) -> Config:
    """Return the configuration the log is read with: the bundle's, with labels only where a config brings them."""
    if config is None:
        return scoring_config(bundle.scorer.config, labels=None)
    if state_hash(config) != state_hash(bundle.scorer.config):
        raise ConfigError(
            "the bundle was made for another [log], [fields] or [sessions] than this configuration declares; "
            f"see {bundle.path / 'config.toml'}"
        )
    return scoring_config(config, labels=config.labels)


def _start_over_if_changed(work: Path, bundle: Bundle, log: Log, config: Config, output: _Output) -> None:
    """Remove what a run of another bundle, log, label table or kind of output left behind."""
    paths = list(log.files)
    if config.labels is not None and config.labels.path is not None:
        paths += log_files(config.labels.path, config.root)
    files = [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in paths]
    identity = json.dumps([bundle.version, files, config_to_toml(config), *output, len(log.partitions)])
    path = work / "run.json"
    if path.exists() and path.read_text(encoding="utf-8") == identity:
        return
    for part in work.glob("part-*.parquet"):
        part.unlink()
    with written_whole(path) as aside:
        aside.write_text(identity, encoding="utf-8")


def _score_partitions(bundle: Bundle, log: Log, config: Config, work: Path, output: _Output, screen: Screen) -> Json:
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
            totals: dict[str, int] = dict.fromkeys(_COUNTED, 0)
            with written_whole(path) as aside, pq.ParquetWriter(aside, output.schema) as writer:
                for scored, ids in scored_chunks(bundle.scorer, log, tables, partition):
                    table = event_table(scored, ids) if output.per_event else session_table(scored, bundle.version)
                    if output.with_reasons:
                        told = _reasons_column(bundle.scorer, scored, tables, per_event=output.per_event)
                        table = table.append_column("reasons", told)
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


def _reasons_column(scorer: Scorer, scored: Scored, tables: Tables, *, per_event: bool) -> pa.Array:
    """Return the reasons of each event, or session, as one text; null where nothing is alerted."""
    alerts = np.flatnonzero(scored.decision_N > ALLOW)
    place, n_rows = alerts, len(scored.decision_N)
    if not per_event:
        session_N = np.cumsum(scored.enriched.session_opens_N) - 1
        worst = np.lexsort((alerts, -scored.score_N[alerts], -scored.decision_N[alerts], session_N[alerts]))
        place, first = np.unique(session_N[alerts][worst], return_index=True)
        alerts, n_rows = alerts[worst][first], int(scored.enriched.session_opens_N.sum())
    texts = np.full(n_rows, None, dtype=object)
    texts[place] = list(_told(scorer, scored, tables, alerts))
    return pa.array(texts, pa.string())


def _told(scorer: Scorer, scored: Scored, tables: Tables, rows_D: IntArray) -> Iterator[str]:
    before = empty_carry(scored.enriched.events.n_users, enrich_spec(scorer.config))
    in_order = scorer.policy.in_order
    for first in range(0, len(rows_D), _EXPLAINED_AT_ONCE):
        explained = explain(scorer, scored.enriched, before, tables, rows_D[first : first + _EXPLAINED_AT_ONCE])
        for row, told in zip(explained.rows_D.tolist(), reasons(scored.enriched, explained), strict=True):
            rule = int(scored.rule_N[row])
            decided = () if rule == NO_RULE else (rule_reason(in_order[rule], int(scored.enriched.index_N[row])),)
            yield "; ".join(reason.text for reason in (*decided, *told))


def _totals(path: Path) -> dict[str, int]:
    return json.loads(pq.read_metadata(path).metadata[b"totals"])


def _join(work: Path, n_parts: int, out: Path, output: _Output) -> None:
    """Write the parts one after another to the output."""
    schema = output.schema
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
