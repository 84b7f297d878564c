"""What `fraud models diff` found as one page: the verdict, the figures that matter, pictures, users, all segments."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from pipelines.diff.report import Diff, signed
from pipelines.diff.tables import (
    Table,
    matrix_table,
    named,
    order_table,
    period_words,
    segment_table,
    user_table,
    users_by_direction,
)
from pipelines.drawing import Picture
from pipelines.pages import figures, listed, page, table, terms

_SHOWN_USERS = 20
_STYLE = """
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: .75rem; margin: 1.25rem 0; }
.tile { border: 1px solid var(--line); border-radius: 8px; padding: .6rem .9rem; }
.tile b { display: block; font-size: 1.5rem; font-variant-numeric: tabular-nums; line-height: 1.3; }
.tile span { font-size: .88rem; opacity: .8; }
.beside { display: flex; flex-wrap: wrap; gap: 0 3rem; } .beside > div { flex: 1 1 20rem; min-width: 0; }
.beside > div:first-child { flex: 3 1 26rem; }
.pictures figure:first-child { grid-row: span 2; }
details { margin: 1rem 0; } summary { cursor: pointer; font-weight: 600; }
"""
_TERMS = (
    ("A, B", "A is the bundle that decides now, B the one that would take its place. Both decide on the same events."),
    ("alert", "a decision that is review or block. Stricter: from allow to review, or to block; milder: the reverse."),
    ("gained, lost", "known frauds that B alerts and A does not, and the reverse."),
    (
        "money saved",
        "the amounts of the known frauds that are alerted, taken as saved whole, minus what the alerts cost to look at "
        "(policy.costs), where that is configured.",
    ),
    ("intervals", "95 %, from drawing whole users again and again: what other users of this bank could have shown."),
    (
        "where more changes than elsewhere",
        "the share that changes is clearly above that of the other decisions, given how much users differ and how many "
        "segments were looked at. Segments overlap; most changes lie where most alerts are.",
    ),
    ("why", "what each event adds to a score of a user: fraud explain BUNDLE EVENTS --user ID --event ID."),
    (
        "order",
        "of the decisions that have both events among the ten before: how many change if the one came last, and if the "
        "other did. What the events are is the same; only their order differs.",
    ),
)


def diff_page(diff: Diff, drawn: Sequence[Picture]) -> str:
    """Return the page."""
    lead = f"A: {named(diff, 'a')}. B: {named(diff, 'b')}. {period_words(diff)}, of {diff.n_users:,} users."
    fields = dict.fromkeys(segment.field for segment in diff.segments)
    all_segments = [
        segment_table(field, [segment for segment in diff.segments if segment.field == field]) for field in fields
    ]
    parts = [
        _tiles(diff),
        f'<div class="beside"><div>{listed("In words", diff.words())}{listed("Limits", diff.limits)}</div>',
        f"<div>{_titled(matrix_table(diff))}</div></div>",
        "<h2>In pictures</h2>" + figures(drawn),
        *(_titled(user_table(title, users[:_SHOWN_USERS])) for title, users in users_by_direction(diff) if users),
        _titled(order_table("Orders of earlier events that go with change", diff.orders)) if diff.orders else "",
        _folded("All segments", all_segments),
        "<h2>How to read it</h2>" + terms(_TERMS),
    ]
    return page("What changes if B takes the place of A", lead, parts, style=_STYLE)


def _tiles(diff: Diff) -> str:
    rate_a, rate_b = diff.alert_rates
    tiles = [
        (f"{diff.n_changed / diff.n:.2%}", f"of the decisions change: {diff.n_changed:,}"),
        (f"{rate_a:.2%} → {rate_b:.2%}", f"of the decisions are alerted; the budget is {diff.alert_budget:.2%}"),
    ]
    found = diff.outcome
    if found is not None and found.n_frauds:
        low, high = (signed(end) for end in found.caught.ci)
        tiles.append((signed(found.caught.diff), f"known frauds caught, of {found.n_frauds:,} [{low}, {high}]"))
        if found.saved is not None:
            low, high = (signed(end) for end in found.saved.ci)
            tiles.append((signed(found.saved.diff), f"money saved [{low}, {high}]"))
    shown = "".join(
        f'<div class="tile"><b>{escape(figure)}</b><span>{escape(text)}</span></div>' for figure, text in tiles
    )
    return f'<div class="tiles">{shown}</div>'


def _titled(one: Table) -> str:
    return f"<h2>{escape(one.title)}</h2>{table(one.header, one.rows)}"


def _folded(title: str, tables: Sequence[Table]) -> str:
    inside = "".join(f"<h3>{escape(one.title)}</h3>{table(one.header, one.rows)}" for one in tables)
    return f"<details><summary>{escape(title)}</summary>{inside}</details>" if inside else ""
