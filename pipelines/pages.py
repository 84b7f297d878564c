"""Pages that need nothing else and run nothing: their frame, and the pieces that they are made of.

A page is one file, light or dark as its reader has it; every text that is handed in is escaped here, once.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from pipelines.drawing import Picture

_STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --paper: #ffffff; --line: #d5d8dc; --soft: #f4f5f7; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e7e9; --paper: #16181b; --line: #3a3e44; --soft: #1f2226; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 2rem 1.25rem 4rem; color: var(--ink); background: var(--paper);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; } h2 { font-size: 1.15rem; margin: 2.5rem 0 .5rem; }
p, li { max-width: 46rem; } .lead { color: var(--ink); opacity: .8; margin-top: 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { padding: .35rem .7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } thead th { background: var(--soft); }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 28rem), 1fr)); gap: 1.5rem 2rem; }
figure { margin: 0; } figure svg { width: 100%; height: auto; } figcaption { font-size: .9rem; opacity: .85; }
figcaption b { display: block; opacity: 1; }
dt { font-weight: 600; margin-top: .6rem; } dd { margin: 0; max-width: 46rem; }
"""


def page(title: str, lead: str, parts: Sequence[str], *, style: str = "") -> str:
    """Return the whole page: a title, a line below it and parts of HTML; style: what its own parts need beside this."""
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">",
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title><style>{_STYLE}{style}</style></head><body>",
            f'<h1>{escape(title)}</h1><p class="lead">{escape(lead)}</p>',
            *(part for part in parts if part),
            "</body></html>\n",
        ]
    )


def listed(title: str, lines: Sequence[str]) -> str:
    """Return lines under a title; nothing where there is none."""
    if not lines:
        return ""
    return f"<h2>{escape(title)}</h2><ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"


def figures(drawn: Sequence[Picture]) -> str:
    """Return pictures with their titles and words, side by side where there is room."""
    shown = "".join(
        f'<figure role="img" aria-label="{escape(one.title)}">{one.svg}'
        f"<figcaption><b>{escape(one.title)}</b>{escape(one.text)}</figcaption></figure>"
        for one in drawn
    )
    return f'<div class="pictures">{shown}</div>' if shown else ""


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table; texts stand left in its first column and figures right in the others."""
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def terms(pairs: Sequence[tuple[str, str]]) -> str:
    """Return what each term means."""
    return "<dl>" + "\n".join(f"<dt>{escape(term)}</dt><dd>{escape(text)}</dd>" for term, text in pairs) + "</dl>"
