"""A monitor as one page: what changed, in words and pictures, then how every figure stands; needs nothing else.

Read in half a minute: the verdict on top, an alarm a card with its pictures, the four figures that everybody asks for,
and a table of all others with the clearest of each kind.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from html import escape
from itertools import count

import numpy as np

from fraud.monitoring.drift import Series
from fraud.monitoring.figures import figure_name
from fraud.monitoring.weekly import WEEK_US
from pipelines.drawing import Picture
from pipelines.monitor.pictures import series_picture
from pipelines.monitor.watched import Alarm, Watched

_PICTURES_AN_ALARM = 3
_STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --paper: #ffffff; --line: #d5d8dc; --soft: #f4f5f7; --off: #b34700;
  --fine: #00684a; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e7e9; --paper: #16181b; --line: #3a3e44; --soft: #1f2226; --off: #ff9d4d; --fine: #3ecf9f; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 2rem 1.25rem 4rem; color: var(--ink); background: var(--paper);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; } h1.off { color: var(--off); } h1.fine { color: var(--fine); }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .5rem; } .lead { opacity: .8; margin-top: 0; max-width: 50rem; }
.alarm { border: 1px solid var(--line); border-left: .35rem solid var(--off); border-radius: .4rem; margin: 1rem 0;
  padding: .8rem 1.1rem; } .alarm.over { border-left-color: var(--line); }
.alarm h3 { margin: 0; font-size: 1.05rem; } .alarm p { margin: .15rem 0 .4rem; font-size: .92rem; opacity: .8; }
ul { margin: .3rem 0 .6rem; padding-left: 1.2rem; } code { font-size: .95em; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { padding: .35rem .7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child, td.text { text-align: left; } thead th { background: var(--soft); }
td.off { color: var(--off); font-weight: 600; }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); gap: 1rem 1.5rem; }
figure { margin: 0; } figure svg { width: 100%; height: auto; }
dt { font-weight: 600; margin-top: .6rem; } dd { margin: 0; max-width: 46rem; }
"""
_KINDS = {
    "unknown": "unseen types and categories",
    "null": "missing values",
    "type": "types of events",
    "bigram": "what follows what",
    "gap": "pauses",
    "hour": "hours of the day",
    "session_length": "events of a session",
    "amount": "amounts by type",
    "volume": "how much there is",
    "score": "scores",
    "alert": "alerts",
    "fraud": "known frauds",
    "performance": "performance",
}
_TERMS = (
    (
        "the pictures",
        "grey dots: the weeks of the reference. Grey band: where a week raises no alarm by itself. Blue: the weeks "
        "since. Orange: off.",
    ),
    (
        "off",
        "further from the reference than its own weeks differ from each other, all figures of the week considered "
        "(Holm).",
    ),
    ("spreads", "how far a figure lies off, in its own variation from week to week: 2 is nothing, 5 is much."),
    (
        "since",
        "the first week of an unbroken run in which the figure lies off the same way, and it still does; a small "
        "change can take some weeks to be sure of. What frauds tell is known late: up to a day that is named.",
    ),
    (
        "over",
        "what began and has ended: the newest week shows nothing of it.",
    ),
)


def monitor_page(watched: Watched, version: str, *, false_alarms: float) -> str:
    """Return the page; version: of the bundle that was watched."""
    names = (f"p{number}" for number in count())
    weeks = watched.starts_us_W
    standing = watched.standing_alarms
    over = tuple(alarm for alarm in watched.alarms if not alarm.is_standing)
    title = _verdict(standing, over)
    lead = (
        f"{len(weeks)} {'week' if len(weeks) == 1 else 'weeks'} from {_day(int(weeks[0]))} to "
        f"{_day(int(weeks[-1]) + WEEK_US)}, {len(watched.judged.series)} figures each, against "
        f"{len(watched.reference.inputs.starts_us_W)} weeks up to {_day(watched.reference.until_us)} that bundle "
        f"{version} was trained on. {false_alarms:.0%} of quiet weeks would raise an alarm."
    )
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">",
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>Monitor: {escape(title)}</title><style>{_STYLE}</style></head><body>",
        f'<h1 class="{"off" if standing else "fine"}">{escape(title)}</h1><p class="lead">{escape(lead)}</p>',
        *(_card(alarm, watched, names) for alarm in (*standing, *over)),
        "<h2>As always</h2>",
        _figures([series_picture(watched, one, next(names)) for one in _usual(watched)]),
        "<h2>All figures of the newest week</h2>",
        _table(watched),
        "<h2>How to read it</h2><dl>",
        *(f"<dt>{escape(term)}</dt><dd>{escape(text)}</dd>" for term, text in _TERMS),
        "</dl></body></html>\n",
    ]
    return "\n".join(parts)


def _verdict(standing: tuple[Alarm, ...], over: tuple[Alarm, ...]) -> str:
    gone = f"; {len(over)} {'change is' if len(over) == 1 else 'changes are'} over" if over else ""
    if not standing:
        return f"Nothing stands out now{gone}"
    return f"{len(standing)} {'change stands' if len(standing) == 1 else 'changes stand'}{gone}"


def _card(alarm: Alarm, watched: Watched, names: Iterator[str]) -> str:
    lines = "".join(f"<li>{_marked(sentence)}</li>" for sentence in alarm.said[1:])
    return (
        f'<section class="alarm{"" if alarm.is_standing else " over"}">'
        f"<h3>{_marked(_capital(alarm.said[0]))}</h3>"
        f"<p>{_capital(alarm.when)}; seen first in the week that ended on {_day(alarm.found_us)}.</p>"
        + (f"<ul>{lines}</ul>" if len(alarm.said) > 1 else "")
        + _figures([series_picture(watched, one, next(names)) for one in alarm.pictured[:_PICTURES_AN_ALARM]])
        + "</section>"
    )


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _usual(watched: Watched) -> list[Series]:
    wanted = (("volume", ("events",)), ("volume", ("users",)), ("alert", ("alerts",)), ("performance", ("ap",)))
    return [
        one
        for statistic, cell in wanted
        for one in watched.judged.series
        if (one.statistic, one.cell) == (statistic, cell) and not np.isnan(one.observed_W).all()
    ]


def _table(watched: Watched) -> str:
    by_kind: dict[str, list[Series]] = {}
    for one in watched.judged.series:
        by_kind.setdefault(_kind(one.statistic), []).append(one)
    rows: list[str] = []
    for kind, those in by_kind.items():
        clearest = max(those, key=lambda one: -one.p_W[-1])
        n_off = sum(bool(one.is_off_W[-1]) for one in those)
        off = f'<td class="off">{n_off}</td>' if n_off else "<td>0</td>"
        rows.append(
            f"<tr><td>{escape(kind)}</td><td>{len(those)}</td>{off}<td class='text'>"
            f"{_marked(figure_name(clearest))}</td><td>{clearest.t_W[-1]:+.1f}</td></tr>"
        )
    header = "".join(f"<th>{name}</th>" for name in ("", "figures", "off", "the clearest", "spreads off"))
    return f'<div class="scroll"><table><thead><tr>{header}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _kind(statistic: str) -> str:
    plain, _, field = statistic.partition(":")
    return {"value": f"values of {field}", "bucket": f"{field}, how large"}.get(plain, _KINDS.get(plain, plain))


def _figures(drawn: list[Picture]) -> str:
    if not drawn:
        return ""
    return f'<div class="pictures">{"".join(f"<figure>{one.svg}</figure>" for one in drawn)}</div>'


def _marked(text: str) -> str:
    """Return a text of ours, escaped, what it quotes in `backticks` as code."""
    parts = escape(text).split("`")
    return "".join(f"<code><bdi>{part}</bdi></code>" if place % 2 else part for place, part in enumerate(parts))


def _day(time_us: int) -> str:
    day = datetime.fromtimestamp(time_us / 1e6, UTC)
    return f"{day.day} {day:%B %Y}"
