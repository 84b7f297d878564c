"""The page of one retraining: the verdict first, then both models side by side, each clause of the gate, the curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fraud.metrics import Examples
from pipelines.console import interval
from pipelines.drawing import BLUE, ORANGE, Picture, edge, picture
from pipelines.pages import figures, listed, page, table, terms
from pipelines.pictures import curves

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_TITLES = {"promoted": "Promoted", "refused": "Refused", "unchanged": "Nothing to do"}
_CHECKS = {
    "bundle_check": "the bundle scores as it did in training",
    "miscalibrated": "its scores are probabilities",
    "too_slow": "it is about as fast",
}
_FIGURES = (
    ("average precision", "ap", "ap_ci"),
    ("AUC", "auc", "auc_ci"),
    ("recall at the budget", "recall_at_budget", "recall_at_budget_ci"),
    ("precision at the budget", "precision_at_budget", None),
    ("recall at the threshold", "recall_at_threshold", None),
    ("share alerted", "alert_rate", None),
    ("money saved", "money_saved", None),
    ("calibration error", "ece", None),
    ("mean score / fraud rate", "mean_score_over_base_rate", None),
)
_TERMS = (
    ("judged period", "The newest frauds that are known, which neither model has learned from."),
    ("clause", "What must hold at the worse end of the 95 % interval of the difference, users resampled in pairs."),
    ("champion", "The model that answers; it goes on unless the challenger is promoted."),
)


def verdict_page(document: Mapping[str, Any], examples: Mapping[str, Examples]) -> str:  # Any: JSON
    """Return the page of the document that `fraud retrain --json` prints. examples: by scorer, where any was judged."""
    model = document["challenger"] or {}
    title = f"{_TITLES[document['verdict']]}: {model.get('model', 'no challenger')}"
    drawn = [*_gate_picture(document["gate"]), *curves(examples)]
    return page(
        title,
        document["text"],
        [
            _sides(document),
            _clauses(document),
            listed("Sources of labels", [report["text"] for report in document["labels"]]),
            figures(drawn),
            _periods(document),
            terms(_TERMS),
        ],
    )


def _sides(document: Mapping[str, Any]) -> str:
    sides = [(name, document[name]) for name in ("challenger", "champion") if (document[name] or {}).get("ap_ci")]
    if not sides:
        return ""
    header = ["", *(f"{name} (version {one.get('version', '-')}, {one['model']})" for name, one in sides)]
    rows = [[name, *(_cell(one, key, key_ci) for _, one in sides)] for name, key, key_ci in _FIGURES]
    n, n_positive = sides[0][1]["n_test"], sides[0][1]["n_positive"]
    return f"<h2>{n_positive:,} known frauds among {n:,} decisions</h2>" + table(header, rows)


def _cell(one: Mapping[str, Any], key: str, key_ci: str | None) -> str:
    if key == "money_saved":
        return "-" if one[key] is None else f"{one[key]:,.0f}"
    return interval(one[key], one[key_ci] if key_ci else None)


def _clauses(document: Mapping[str, Any]) -> str:
    found = [(clause["text"], clause["reason"], clause["passed"]) for clause in document["gate"]]
    found += [(_CHECKS[check["name"]], check["text"], check["passed"]) for check in document["checks"]]
    if not found:
        return ""
    return "<h2>What had to hold</h2>" + terms(
        [(f"{'✓' if passed else '✗ FAILS:'} {name}", why) for name, why, passed in found]
    )


def _periods(document: Mapping[str, Any]) -> str:
    periods = document["periods"]
    if periods is None:
        return ""
    return "<h2>Periods</h2>" + table(
        ["", "from", "until", "known frauds"],
        [
            ["training", _begin(periods["train_from"]), periods["train_until"], f"{periods['n_trained']:,}"],
            ["validation", periods["train_until"], periods["valid_until"], f"{periods['n_validated']:,}"],
            ["judged", periods["valid_until"], periods["as_of"], f"{periods['n_judged']:,}"],
        ],
    )


def _begin(train_from: str) -> str:
    return "the start" if train_from.startswith("1970-01-01T00:00:00") else train_from


def _gate_picture(gate: Sequence[Mapping[str, Any]]) -> list[Picture]:
    paired = [clause for clause in gate if clause["ci"] is not None and clause["difference"] is not None]
    if not paired:
        return []
    return [
        picture(
            "gate",
            "The gate",
            "Challenger minus champion, with the 95 % interval. The mark is what the worse end must reach.",
            (6.4, 1.4 + 0.6 * len(paired)),
            lambda axes: _draw_gate(axes, paired),
        )
    ]


def _draw_gate(axes: Axes, paired: Sequence[Mapping[str, Any]]) -> None:
    axes.axvline(0, color=edge(axes), linewidth=0.9, alpha=0.6)
    for place, clause in enumerate(paired):
        colour = BLUE if clause["passed"] else ORANGE
        low, high = clause["ci"]
        axes.plot([low, high], [place, place], color=colour, linewidth=2.2, solid_capstyle="butt")
        axes.plot(clause["difference"], place, marker="o", color=colour)
        axes.plot(clause["bound"], place, marker="|", markersize=22, markeredgewidth=2, color=edge(axes))
    axes.set_yticks(range(len(paired)), [clause["text"] for clause in paired])
    axes.set_ylim(len(paired) - 0.5, -0.5)
    axes.set_xlabel("challenger - champion")
