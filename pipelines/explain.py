"""`fraud explain`: what each event of a user's context adds to the score of a decision: table, JSON or page."""

from __future__ import annotations

import time
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from rich.table import Table
from rich.text import Text

from fraud.bundle import Bundle, load_bundle
from fraud.config import Config
from fraud.decisions import ALLOW, DECISIONS
from fraud.enrich import Carry, empty_carry
from fraud.errors import DataError
from fraud.events import Events, IntArray
from fraud.explain import Explained, explain
from fraud.logs import Log, check_usable, event_ids, read_log
from fraud.reasons import event_words, reasons, rule_reason
from fraud.scoring import NO_DECISION, Scored, enrich_spec, score_events
from fraud.tables import tables_of
from fraud.verdicts import NO_RULE
from pipelines.console import Screen
from pipelines.explain_page import page
from pipelines.files import check_new, written_whole
from pipelines.score import log_config, warn_without_labels

Json = dict[str, Any]  # Any: JSON
MAX_DECISIONS = 100  # of one user, the newest; --event reaches any other
_SHOWN_EVENTS = 20
_BAR_WIDTH = 12
_RAISES, _LOWERS = "dark_orange", "dodger_blue1"  # told apart by the colour-blind too; the sign says the same


class _User(NamedTuple):
    """One user's events, their ids, and how they scored."""

    events: Events
    ids: pa.Array
    before: Carry
    scored: Scored


def explain_user(
    directory: Path,
    events: str,
    user: str,
    *,
    event: str | None,
    config: Config | None,
    html: Path | None,
    overwrite: bool,
    screen: Screen,
) -> Json:
    """Return the contributions behind the decisions of one user, and show the one asked for.

    event: the id of the event to explain; default: every decision event (the newest 100), of which the last alert is
    shown, or the one with the highest score. Raises DataError for a user or an event that the log does not hold.
    """
    started = time.monotonic()
    if html is not None:
        check_new(html, overwrite=overwrite)
    bundle = load_bundle(directory)
    read_with = log_config(bundle, config)
    with closing(read_log(read_with, events=events)) as log:
        check_usable(log)
        warn_without_labels(read_with, screen)
        tables = tables_of(log, read_with)
        user_events, ids = _events_of(log, user)
    before = empty_carry(1, enrich_spec(bundle.scorer.config))
    scored, _ = score_events(bundle.scorer, user_events, before, tables)
    found = _User(user_events, ids, before, scored)
    rows_D, shown = _chosen(found, user, event, bundle)
    explained = explain(bundle.scorer, scored.enriched, before, tables, rows_D)
    document = _document(found, explained, user, bundle) | {"shown": ids[shown].as_py()}
    document["seconds"] = round(time.monotonic() - started, 3)
    if html is not None:
        with written_whole(html) as aside:
            aside.write_text(page(document), encoding="utf-8")
        document["html"] = str(html)
    _show(document, screen)
    return document


def _events_of(log: Log, user: str) -> tuple[Events, pa.Array]:
    for load in log.partitions:
        ordered = load()
        places = np.flatnonzero(ordered.events.users == user)
        if len(places):
            place = int(places[0])
            first, last = (int(row) for row in ordered.events.user_starts[place : place + 2])
            return ordered.events.take_users(place, place + 1), event_ids(ordered).slice(first, last - first)
    raise DataError(f"--user {user!r}: not in the log, which holds {log.n_users:,} users with {log.n_events:,} events")


def _chosen(found: _User, user: str, event: str | None, bundle: Bundle) -> tuple[IntArray, int]:
    """Return the events to explain, and the one to show."""
    decision_N = found.scored.decision_N
    decided = np.flatnonzero(decision_N != NO_DECISION)
    if event is not None:
        place = pa.compute.index(found.ids, pa.scalar(event, pa.string())).as_py()
        if place < 0:
            raise DataError(
                f"--event {event!r}: not one of the {len(found.events):,} events of user {user!r}, "
                f"of which {len(decided):,} are decision events"
            )
        return np.array([place], dtype=np.int64), place
    if not len(decided):
        types = ", ".join(bundle.scorer.config.decisions.on) or "every event"
        raise DataError(
            f"--user {user!r}: none of {len(found.events):,} events is a decision event ({types}, with at least "
            f"{bundle.scorer.config.decisions.min_events} events of context); --event ID explains any event"
        )
    alerts = np.flatnonzero(decision_N > ALLOW)
    shown = int(alerts[-1]) if len(alerts) else int(decided[np.argmax(found.scored.score_N[decided])])
    return np.union1d(decided[-MAX_DECISIONS:], [shown]), shown


def _document(found: _User, explained: Explained, user: str, bundle: Bundle) -> Json:
    enriched = found.scored.enriched
    told = reasons(enriched, explained)
    n_by_decision = {name: int((found.scored.decision_N == code).sum()) for code, name in enumerate(DECISIONS)}
    decisions: list[Json] = []
    for d, row in enumerate(explained.rows_D.tolist()):
        places = range(int(explained.starts_D1[d]), int(explained.starts_D1[d + 1]))
        context = [
            _event(found, int(explained.row_C[place]))
            | {
                "words": event_words(enriched, int(explained.row_C[place]), explained.risk_C, place),
                "contribution": float(explained.contribution_C[place]),
            }
            for place in places
        ]
        rule, index = int(found.scored.rule_N[row]), int(enriched.index_N[row])
        by_rule = () if rule == NO_RULE else (rule_reason(bundle.scorer.policy.in_order[rule], index),)
        said = [dict(reason._asdict()) for reason in (*by_rule, *told[d])]
        decisions.append(
            _event(found, row) | {"logit": float(explained.logit_D[d]), "reasons": said, "context": context}
        )
    return {
        "user_id": user,
        "events": len(found.events),
        "decisions": n_by_decision,
        "model": bundle.manifest.name,
        "model_version": bundle.version,
        "explained": decisions,
    }


def _event(found: _User, row: int) -> Json:
    events, code = found.events, int(found.scored.decision_N[row])
    moment = datetime.fromtimestamp(int(events.time_us[row]) / 1e6, UTC)
    return {
        "event_id": found.ids[row].as_py(),
        "event_index": int(found.scored.enriched.index_N[row]),
        "ts": moment.isoformat(timespec="milliseconds") if events.has_clock else None,
        "type": str(events.type.values[events.type.codes_N[row]]),
        "score": float(found.scored.score_N[row]),
        "decision": None if code == NO_DECISION else DECISIONS[code],
    }


def _show(document: Json, screen: Screen) -> None:
    """Print the decision asked for; the texts of the log are shown as they are, never as markup."""
    shown = next(decision for decision in document["explained"] if decision["event_id"] == document["shown"])
    n_alerts = document["decisions"]["review"] + document["decisions"]["block"]
    screen.results.print(
        f"user {document['user_id']}: {document['events']:,} events, "
        f"{sum(document['decisions'].values()):,} decisions, {n_alerts:,} alerts",
        markup=False,
    )
    screen.results.print(
        f"{shown['type']} {shown['event_id']}, {shown['ts'] or 'no clock'}: score {shown['score']:.4f}, "
        f"{shown['decision'] or 'no decision event'}",
        markup=False,
    )
    for reason in shown["reasons"]:
        screen.results.print(f"  {reason['contribution']:+.2f}  {reason['text']}", markup=False)
    if not shown["reasons"]:
        screen.results.print("  no event of the context raises the score by itself", markup=False)
    screen.results.print(_table(shown))
    if "html" in document:
        screen.say(f"page with {len(document['explained']):,} decisions -> {document['html']}")


def _table(shown: Json) -> Table:
    """Return the events that matter most, in order of time; the decision is the last row."""
    context: list[Json] = shown["context"]
    by_size = sorted(range(len(context) - 1), key=lambda place: -abs(context[place]["contribution"]))
    kept = [*sorted(by_size[: _SHOWN_EVENTS - 1]), len(context) - 1]
    largest = max(abs(event["contribution"]) for event in context) or 1.0
    table = Table(title="What each event adds to the log-odds of fraud", title_justify="left", title_style="bold")
    for name, justify in (
        ("time", "left"),
        ("event", "left"),
        ("adds", "right"),
        ("", "left"),
        ("score so far", "right"),
    ):
        table.add_column(name, justify="right" if justify == "right" else "left", no_wrap=name != "event")
    rest = sum(context[place]["contribution"] for place in by_size[_SHOWN_EVENTS - 1 :])
    if n_rest := len(by_size[_SHOWN_EVENTS - 1 :]):
        table.add_row("", Text(f"{n_rest} more events together"), Text(f"{rest:+z.2f}"), "", "")
    for place in kept:
        event = context[place]
        adds = event["contribution"]
        size = round(abs(adds) / largest * _BAR_WIDTH)
        bar = Text("█" * size if adds > 0 else "▒" * size, style=_RAISES if adds > 0 else _LOWERS)
        moment = Text((event["ts"] or f"event {event['event_index']}").replace("T", " ").removesuffix("+00:00"))
        style = "bold" if place == len(context) - 1 else ""
        table.add_row(moment, Text(event["words"]), Text(f"{adds:+z.2f}"), bar, f"{event['score']:.4f}", style=style)
    return table
