"""A comparison as one page: verdict, tables and pictures in a file that needs nothing else and runs nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fraud.comparison import Comparison, Entry
from pipelines.console import interval, spoken_s
from pipelines.drawing import Picture
from pipelines.pages import figures, listed, page, table, terms

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
    words = comparison.words()
    return page(
        "Scorers side by side",
        lead,
        [
            listed("Verdict", words[: len(words) - len(comparison.limits)]),
            listed("Limits", comparison.limits),
            "<h2>Leaderboard</h2>",
            _leaderboard(comparison),
            "<h2>Pictures</h2>" + figures(drawn) if drawn else "",
            _paired(comparison),
            _ablation(comparison),
            "<h2>How to read it</h2>" + terms(_TERMS),
        ],
    )


def _leaderboard(comparison: Comparison) -> str:
    """Return a table with a column for each scorer: there are more figures than scorers."""
    columns = [_figures_of(entry) for entry in comparison.entries.values()]
    header = ["", *(f"{name} (picked)" if name == comparison.picked else name for name in comparison.entries)]
    return table(header, [[what, *(column[what] for column in columns)] for what in columns[0]])


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
    return "<h2>Paired differences</h2>" + table(header, rows)


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
    return "<h2>What order and time are worth</h2>" + table(header, rows)


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"
