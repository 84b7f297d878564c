"""A user's decisions and what each event added, as one HTML page: no script, no other file, every text escaped."""

from __future__ import annotations

from html import escape
from typing import Any

Json = dict[str, Any]  # Any: JSON

# Blue and orange of Okabe & Ito (2008), which the colour-blind tell apart; bars also differ by side and sign.
_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #5b6570; --paper: #ffffff; --line: #d8dee4;
        --raises: #d55e00; --lowers: #0072b2; --mark: #fff4e5; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --soft: #9aa7b4; --paper: #0f141a; --line: #2c3640;
          --raises: #ff9d4d; --lowers: #56b4e9; --mark: #2b2114; } }
body { font: 15px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--paper);
       max-width: 64rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; margin: 0 0 .25rem; } p { margin: .25rem 0; } .soft { color: var(--soft); }
details { border: 1px solid var(--line); border-radius: 8px; margin: .75rem 0; padding: .5rem .9rem; }
summary { cursor: pointer; font-weight: 600; } summary .soft { font-weight: 400; }
table { border-collapse: collapse; width: 100%; margin: .5rem 0; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .2rem .5rem; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 600; color: var(--soft); } td.number, th.number { text-align: right; white-space: nowrap; }
th.axis-name { text-align: center; } td.time { white-space: nowrap; }
tr.decision td { background: var(--mark); font-weight: 600; }
td.bar { width: 26%; min-width: 8rem; } .axis { display: flex; height: 1.2em; align-items: center; }
.half { width: 50%; height: .8em; display: flex; } .half.left { justify-content: flex-end; }
.half.right { border-left: 1px solid var(--soft); } .half span { height: 100%; display: block; }
.left span { background: var(--lowers); } .right span { background: var(--raises); }
.badge { border: 1px solid currentColor; border-radius: 1em; padding: 0 .6em; font-size: .85em; }
.block, .review { color: var(--raises); } .allow { color: var(--lowers); }
ul { margin: .4rem 0; padding-left: 1.2rem; } .scroll { overflow-x: auto; }
"""


def page(document: Json) -> str:
    """Return the page of what `fraud explain` found; the decision that was asked for is open, the newest come first."""
    counts = ", ".join(f"{n:,} {name}" for name, n in document["decisions"].items())
    sections = "".join(
        _section(decision, is_open=decision["event_id"] == document["shown"])
        for decision in reversed(document["explained"])
    )
    user = _said(document["user_id"])
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Decisions of {escape(document['user_id'])}</title>\n<style>{_STYLE}</style></head>\n<body>\n"
        f"<h1>Decisions of {user}</h1>\n"
        f'<p class="soft">{document["events"]:,} events; decisions: {escape(counts)}. Model '
        f"{_said(document['model'])}, version {_said(document['model_version'])}.</p>\n"
        "<p>What an event adds is how far the log-odds of fraud would fall if nobody knew what happened then: orange "
        "raises the score, blue lowers it. The newest comes first; times are UTC.</p>\n"
        f"{sections}</body></html>\n"
    )


def _section(decision: Json, *, is_open: bool) -> str:
    verdict = decision["decision"] or "no decision event"
    badge = f'<span class="badge {escape(decision["decision"] or "")}">{escape(verdict)}</span>'
    said = "".join(
        f"<li>{_said(reason['text'])} <span class='soft'>({reason['contribution']:+.2f})</span></li>"
        for reason in decision["reasons"]
    )
    largest = max(abs(event["contribution"]) for event in decision["context"]) or 1.0
    newest_first: list[Json] = decision["context"][::-1]
    rows = "".join(_row(event, largest, is_decision=place == 0) for place, event in enumerate(newest_first))
    return (
        f"<details{' open' if is_open else ''}><summary>{_said(decision['type'])} "
        f'<span class="soft">{_moment(decision)}</span> score {decision["score"]:.4f} {badge}</summary>\n'
        f"<ul>{said or '<li>no event of the context raises the score by itself</li>'}</ul>\n"
        '<div class="scroll"><table><thead><tr><th>time</th><th>event</th><th class="axis-name">lowers | raises</th>'
        f'<th class="number">adds</th><th class="number">score so far</th></tr></thead><tbody>{rows}</tbody></table>'
        "</div></details>\n"
    )


def _row(event: Json, largest: float, *, is_decision: bool) -> str:
    adds = event["contribution"]
    bar = f'<span style="width:{abs(adds) / largest * 100:.1f}%"></span>'
    left, right = ("", bar) if adds > 0 else (bar, "")
    return (
        f"<tr{' class=decision' if is_decision else ''}><td class='time'>{_moment(event)}</td>"
        f"<td>{_said(event['words'])}</td>"
        f"<td class='bar'><div class='axis'><div class='half left'>{left}</div>"
        f"<div class='half right'>{right}</div></div></td>"
        f"<td class='number'>{adds:+z.2f}</td><td class='number'>{event['score']:.4f}</td></tr>\n"
    )


def _moment(event: Json) -> str:
    """Return the time to the second, or the place where the log has no clock."""
    return escape(event["ts"][:19].replace("T", " ")) if event["ts"] else f"event {event['event_index']}"


def _said(text: str) -> str:
    """Return a text of the log, escaped, its direction of writing kept to itself."""
    return f"<bdi>{escape(text)}</bdi>"
