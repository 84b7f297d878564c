"""A comparison as one page: verdict, tables and pictures in a file that needs nothing else and runs nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from fraud.comparison import Comparison, Entry
from pipelines.console import interval, spoken_s
from pipelines.pictures import Picture

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

_TERMS = (
    (
        "AP",
        "average precision: the mean precision at each fraud found, going down the ranking. Chance: the fraud rate.",
    ),
    ("AUC", "the chance that a fraud stands above another example. 0.5 is chance."),
    (
        "recall, precision at budget",
        "with as many alerts as the alert budget allows: frauds found, alerts that are fraud.",
    ),
    ("alert rate, recall at threshold", "with the threshold that was set on the validation period, as it would run."),
    ("detection delay", "the median time from the first fraud of a session to its first alert, where there was one."),
    ("ECE", "how far score and fraud rate lie apart on average, in 15 groups of equal size."),
    ("score over base rate", "the sum of the scores over the number of frauds: 1 is unbiased."),
    ("intervals", "95 %, from drawing whole users again and again: what other users of this bank could have shown."),
)


def comparison_page(comparison: Comparison, drawn: Sequence[Picture], report: Mapping[str, Any]) -> str:
    """Return the page; report: what was in the log (JSON)."""
    first = next(iter(comparison.entries.values())).metrics
    seeds = (
        ""
        if comparison.n_seeds == 1
        else f" Each scorer was fitted with {comparison.n_seeds} seeds; figures are means."
    )
    lead = (
        f"{report['events']:,} events of {report['users']:,} users. Judged once, on a later period: "
        f"{first.n_positive:,} frauds among {first.n_test:,} examples.{seeds}"
    )
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>Comparison of scorers</title><style>{_STYLE}</style></head><body>",
        f'<h1>Scorers side by side</h1><p class="lead">{escape(lead)}</p>',
        _listed("Verdict", comparison.words()[: len(comparison.words()) - len(comparison.limits)]),
        _listed("Limits", comparison.limits),
        "<h2>Leaderboard</h2>",
        _leaderboard(comparison),
        _figures(drawn),
        _paired(comparison),
        _ablation(comparison),
        "<h2>How to read it</h2><dl>",
        *(f"<dt>{escape(term)}</dt><dd>{escape(text)}</dd>" for term, text in _TERMS),
        "</dl></body></html>\n",
    ]
    return "\n".join(part for part in parts if part)


def _listed(title: str, lines: Sequence[str]) -> str:
    if not lines:
        return ""
    return f"<h2>{escape(title)}</h2><ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"


def _leaderboard(comparison: Comparison) -> str:
    """Return a table with a column for each scorer: there are more figures than scorers."""
    columns = [_figures_of(entry) for entry in comparison.entries.values()]
    header = ["", *(f"{name} (picked)" if name == comparison.picked else name for name in comparison.entries)]
    return _table(header, [[what, *(column[what] for column in columns)] for what in columns[0]])


def _figures_of(entry: Entry) -> dict[str, str]:
    """Return the cells of one scorer, by what they are."""
    one = entry.metrics
    by_seed = entry.ap_by_seed if entry.ap_by_seed and len(entry.ap_by_seed) > 1 else ()
    cells = {"AP": interval(one.ap, one.ap_ci)}
    if by_seed:
        cells["AP by seed"] = ", ".join(f"{ap:.3f}" for ap in by_seed)
    delay = entry.delay
    return cells | {
        "AUC": interval(one.auc, one.auc_ci),
        "recall at budget": interval(one.recall_at_budget, one.recall_at_budget_ci),
        "precision at budget": interval(one.precision_at_budget, None),
        "alert rate": _share(one.alert_rate),
        "recall at threshold": interval(one.recall_at_threshold, None),
        "money saved": "–" if one.money_saved is None else f"{one.money_saved:,.0f}",
        "sessions detected": "–" if delay is None else _share(delay.detected_share),
        "detection delay": "–" if delay is None or delay.median_s is None else spoken_s(delay.median_s),
        "ECE": interval(one.ece, None),
        "score over base rate": interval(one.mean_score_over_base_rate, entry.mean_score_over_base_rate_ci),
        "AP that chose (validation)": interval(entry.choice_ap, None),
        "time to fit": "–" if entry.fit_s is None else spoken_s(entry.fit_s),
    }


def _paired(comparison: Comparison) -> str:
    if not comparison.paired:
        return ""
    rows = [
        [f"{a} – {b}", f"{one.diff:+.3f}", f"[{one.ci[0]:+.3f}, {one.ci[1]:+.3f}]", "yes" if one.is_clear else "no"]
        for (a, b), one in comparison.paired.items()
    ]
    header = ("pair", "difference in AP", "95 % interval", "clear of 0")
    return "<h2>Paired differences</h2>" + _table(header, rows)


def _ablation(comparison: Comparison) -> str:
    if not comparison.ablation:
        return ""
    rows = [
        [
            name,
            what,
            interval(worth.intact_ap, None),
            "–" if one is None else f"{one[0]:.3f}",
            "–" if one is None else f"{one[1].diff:+.3f} [{one[1].ci[0]:+.3f}, {one[1].ci[1]:+.3f}]",
        ]
        for name, worth in comparison.ablation.items()
        for what, one in worth.without.items()
    ]
    header = ("scorer", "taken away", "AP intact", "AP without", "worth")
    return "<h2>What order and time are worth</h2>" + _table(header, rows)


def _figures(drawn: Sequence[Picture]) -> str:
    figures = "".join(
        f'<figure role="img" aria-label="{escape(one.title)}">{one.svg}'
        f"<figcaption><b>{escape(one.title)}</b>{escape(one.text)}</figcaption></figure>"
        for one in drawn
    )
    return f'<h2>Pictures</h2><div class="pictures">{figures}</div>' if figures else ""


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"
