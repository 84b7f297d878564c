"""The tables of `fraud models diff`, the same rows on a terminal and on a page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rich.markup import escape

from fraud.decisions import DECISIONS
from fraud.segments import Order, Segment
from pipelines.console import Screen
from pipelines.diff.report import N_SHOWN, Affected, Diff, times

_SHOWN_USERS = 5


class Table(NamedTuple):
    """A title, the names of the columns, and rows of cells."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


def show(diff: Diff, screen: Screen) -> None:
    """Print what changes: in words, then the tables that have something to tell."""
    screen.results.print(f"A: {named(diff, 'a')}; B: {named(diff, 'b')}; {period_words(diff)}", markup=False)
    for line in diff.words():
        screen.results.print(f"- {line}", markup=False)
    for line in diff.limits:
        screen.warn(line)
    if not diff.n_changed:
        return
    tables = [matrix_table(diff)]
    if telling := diff.telling_segments[:N_SHOWN]:
        tables.append(segment_table("Where more changes than elsewhere", telling))
    if diff.orders:
        tables.append(order_table("Which order of earlier events goes with change", diff.orders[:N_SHOWN]))
    for title, users in users_by_direction(diff):
        if users:
            tables.append(user_table(title, users[:_SHOWN_USERS]))
    for table in tables:
        rows = [[escape(cell) for cell in row] for row in table.rows]
        screen.table(table.title, table.header, rows)


def named(diff: Diff, side: str) -> str:
    """Return the name of a bundle: "lstm af694d25cb18"."""
    one = diff.a if side == "a" else diff.b
    return f"{one.model} {one.version}"


def period_words(diff: Diff) -> str:
    """Return which decisions were compared."""
    since = "the start of the log" if diff.since is None else _to_the_second(diff.since)
    until = "its end" if diff.until is None else _to_the_second(diff.until)
    return f"{diff.n:,} decisions from {since} to {until}"


def _to_the_second(instant: str) -> str:
    return instant[:19].replace("T", " ") + " UTC"


def users_by_direction(diff: Diff) -> list[tuple[str, Sequence[Affected]]]:
    """Return the users whom B treats more strictly, and more mildly, under a title each."""
    return [
        ("Users with whom B is stricter: known frauds first, then the largest amounts", diff.stricter),
        ("Users with whom B is milder: known frauds first, then the largest amounts", diff.milder),
    ]


def matrix_table(diff: Diff) -> Table:
    """Return how many decisions go from which to which."""
    rows = [[f"A: {name}", *(f"{n:,}" for n in diff.matrix[place].tolist())] for place, name in enumerate(DECISIONS)]
    return Table("Decisions under A (rows) and under B (columns)", ["", *(f"B: {name}" for name in DECISIONS)], rows)


def segment_table(title: str, segments: Sequence[Segment]) -> Table:
    """Return one row a segment."""
    rows = [
        [
            f"{one.field}: {one.name}",
            f"{one.n:,}",
            f"{one.share:.2%}",
            times(one.ratio),
            f"{one.stricter:,}",
            f"{one.milder:,}",
            f"{one.alerted_a / one.n:.2%}",
            f"{one.alerted_b / one.n:.2%}",
        ]
        for one in segments
    ]
    header = ["segment", "decisions", "change", "x average", "stricter", "milder", "alerted by A", "by B"]
    return Table(title, header, rows)


def order_table(title: str, orders: Sequence[Order]) -> Table:
    """Return one row a pair of earlier events."""
    rows = [
        [
            f"{one.first}, then {one.then}",
            f"{one.n:,}",
            f"{one.share:.2%}",
            f"{one.n_other:,}",
            f"{one.share_other:.2%}",
        ]
        for one in orders
    ]
    return Table(title, ["before the decision", "decisions", "change", "in the other order", "change"], rows)


def user_table(title: str, users: Sequence[Affected]) -> Table:
    """Return one row a user: how much changes, and the event that matters most."""
    rows = [
        [
            user.user_id,
            f"{user.changed:,}",
            "–" if user.amount is None else f"{user.amount:,.0f}",
            "–" if user.event.is_fraud is None else f"{user.frauds:,}",
            user.event.event_id,
            "–" if user.event.ts is None else user.event.ts[:16].replace("T", " "),
            user.event.type,
            f"{user.event.decision_a} → {user.event.decision_b}",
            f"{user.event.score_a:.3f} → {user.event.score_b:.3f}",
        ]
        for user in users
    ]
    header = ["user", "changed", "amount", "frauds", "event", "time", "type", "A → B", "score A → B"]
    return Table(title, header, rows)
