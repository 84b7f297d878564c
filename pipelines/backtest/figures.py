"""What the rules of a backtest found, by step and in all, from the files of its steps.

Intervals are of users, drawn whole over all steps; the same draws serve every rule, so that a difference between two
rules holds nothing of which users were drawn. Which alerts stand within the budget of a step is taken as it was lived.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fraud.config import Config
from fraud.events import BoolArray, FloatArray, IntArray
from fraud.metrics import N_RESAMPLES, Examples, average_precision
from fraud.ranking import LabelArray, n_within_budget, percentile_interval
from fraud.resamples import Resampled, resampled_figures, resampled_totals
from pipelines.backtest.steps import PROMOTED, REFUSED, Step, Turn, read_turns

Json = dict[str, Any]  # Any: JSON

# Each figure is a total of one column, or one total by another. Names as of `fraud.metrics`, but for what is alerted:
# there by the threshold alone, here as it was decided, by lists and rules too.
_RATIOS: Mapping[str, tuple[str, str | None]] = {
    "recall_at_budget": ("caught_in_budget", "fraud"),
    "precision_at_budget": ("caught_in_budget", "in_budget"),
    "recall": ("caught", "fraud"),
    "precision": ("caught", "alert"),
    "alert_rate": ("alert", "one"),
    "money_saved": ("saved", None),
    "money_lost": ("lost", None),
    "fraud_amount": ("fraud_amount", None),
}
FIGURES = (*_RATIOS, "ap")


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """The N examples of all steps, in their order. step_N: of which step; user_N: codes; amount_N: NaN = none.

    score_N, alert_N: by rule, as its champions of the time decided.
    """

    step_N: IntArray
    user_N: IntArray
    label_N: LabelArray
    amount_N: FloatArray | None
    score_N: Mapping[str, FloatArray]
    alert_N: Mapping[str, BoolArray]


def read_decided(paths: Sequence[Path], rules: Sequence[str]) -> Decided:
    """Return the decisions of all steps, from their files."""
    tables = [pq.read_table(path).replace_schema_metadata(None) for path in paths]
    whole = pa.concat_tables(tables)
    return Decided(
        step_N=np.repeat(np.arange(len(tables)), [len(table) for table in tables]),
        user_N=whole["user_id"].combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64),
        label_N=whole["fraud"].to_numpy(),
        amount_N=whole["amount"].to_numpy() if "amount" in whole.column_names else None,
        score_N={rule: whole[f"{rule}_score"].to_numpy() for rule in rules},
        alert_N={rule: pc.not_equal(whole[f"{rule}_decision"], "allow").to_numpy() for rule in rules},
    )


def figures_document(steps: Sequence[Step], paths: Sequence[Path], rules: Sequence[str], config: Config) -> Json:
    """Return {"rules": …, "paired": …, "steps": …}: each rule in all, the differences of each two, and every step."""
    decided = read_decided(paths, rules)
    turns = [read_turns(path) for path in paths]
    columns = {rule: counted_columns(decided, rule, config) for rule in rules}
    totals = {rule: _totals(decided, rule, columns[rule], config) for rule in rules}
    return {
        "rules": {rule: _spoken_totals(totals[rule]) | _counts([turn[rule] for turn in turns]) for rule in rules},
        "paired": {f"{a}|{b}": _difference(totals[a], totals[b]) for a, b in combinations(rules, 2)},
        "steps": [
            {
                "n_examples": int((decided.step_N == place).sum()),
                "n_frauds": int(decided.label_N[decided.step_N == place].sum()),
                "rules": {
                    rule: turns[place][rule]._asdict() | _step_figures(decided, place, rule, columns[rule])
                    for rule in rules
                },
            }
            for place in range(len(steps))
        ],
    }


def share_within_budget(score_N: FloatArray, budget: float) -> FloatArray:
    """Return float64 [N]: 1 for the best floor(budget x N) scores, 0 for the others; ties at the cut share what is left
    of it, as in the mean over their random orders."""
    n_inside = n_within_budget(budget, len(score_N))
    if n_inside == 0:
        return np.zeros(len(score_N))
    cut = np.partition(score_N, len(score_N) - n_inside)[len(score_N) - n_inside]
    is_above_N, is_tied_N = score_N > cut, score_N == cut
    return is_above_N + is_tied_N * (n_inside - is_above_N.sum()) / is_tied_N.sum()


def counted_columns(decided: Decided, rule: str, config: Config) -> dict[str, FloatArray]:
    """Return float64 [N] by name: what each example adds to the totals of a rule; no money without amounts."""
    fraud_N, alert_N = decided.label_N.astype(np.float64), decided.alert_N[rule].astype(np.float64)
    in_budget_N = np.zeros(len(fraud_N))
    for place in np.unique(decided.step_N):
        is_of_N = decided.step_N == place
        in_budget_N[is_of_N] = share_within_budget(decided.score_N[rule][is_of_N], config.policy.alert_budget)
    columns = {
        "one": np.ones(len(fraud_N)),
        "fraud": fraud_N,
        "alert": alert_N,
        "caught": alert_N * fraud_N,
        "in_budget": in_budget_N,
        "caught_in_budget": in_budget_N * fraud_N,
    }
    if decided.amount_N is not None:
        amount_N = np.nan_to_num(decided.amount_N)
        review_cost = config.policy.costs["review"] if config.policy.costs else 0.0
        columns["fraud_amount"] = amount_N * fraud_N
        columns["saved"] = amount_N * columns["caught"] - review_cost * alert_N
        columns["lost"] = amount_N * (fraud_N - columns["caught"])
    return columns


def _totals(decided: Decided, rule: str, columns: Mapping[str, FloatArray], config: Config) -> dict[str, Resampled]:
    """Return every figure that exists, as it is and on each resample of the users."""
    seed, names = config.training.seed, list(columns)
    resampled_VR = resampled_totals(list(columns.values()), decided.user_N, seed=seed, n_resamples=N_RESAMPLES)
    found: dict[str, Resampled] = {}
    for figure, (above, below) in _RATIOS.items():
        if above in columns:
            points = [columns[name].sum() for name in (above, below) if name]
            values = [resampled_VR[names.index(name)] for name in (above, below) if name]
            found[figure] = Resampled(_by(np.array(points)[:, None])[0], _by(np.stack(values)))
    examples = Examples(
        score_N=decided.score_N[rule], label_N=decided.label_N, user_N=decided.user_N, amount_N=decided.amount_N
    )
    budget = config.policy.alert_budget
    return found | resampled_figures(
        examples,
        ["ap"],
        alert_budget=budget,
        threshold=1.0,
        costs=None,
        price=None,
        seed=seed,
        n_resamples=N_RESAMPLES,
    )


def _by(values_VR: FloatArray) -> FloatArray:
    """Return the first row, by the second where there is one; NaN where that is 0."""
    if len(values_VR) == 1:
        return values_VR[0]
    above_R, below_R = values_VR
    return np.divide(above_R, below_R, out=np.full(len(above_R), np.nan), where=below_R > 0)


def _spoken_totals(totals: Mapping[str, Resampled]) -> Json:
    spoken: Json = {}
    for figure in FIGURES:
        one = totals.get(figure)
        spoken[figure] = None if one is None or np.isnan(one.point) else float(one.point)
        spoken[f"{figure}_ci"] = None if one is None else _interval(one.values_R)
    return spoken


def _difference(a: Mapping[str, Resampled], b: Mapping[str, Resampled]) -> Json:
    """Return {FIGURE: {"diff", "ci"}} of a minus b, for the figures that exist."""
    return {
        figure: {
            "diff": float(a[figure].point - b[figure].point),
            "ci": _interval(a[figure].values_R - b[figure].values_R),
        }
        for figure in FIGURES
        if figure in a and not np.isnan(a[figure].point - b[figure].point)
    }


def _interval(values_R: FloatArray) -> list[float] | None:
    interval = percentile_interval(values_R)
    return None if interval is None else list(interval)


def _counts(turns: Sequence[Turn]) -> Json:
    """Return how often a rule made a challenger and what became of it; the first model is none."""
    later = turns[1:]
    return {
        "n_promoted": sum(turn.verdict == PROMOTED for turn in later),
        "n_refused": sum(turn.verdict == REFUSED for turn in later),
        "n_alarms": sum(bool(turn.alarms) for turn in later),
    }


def _step_figures(decided: Decided, place: int, rule: str, columns: Mapping[str, FloatArray]) -> Json:
    is_of_N = decided.step_N == place
    total = {name: float(column_N[is_of_N].sum()) for name, column_N in columns.items()}
    figures: Json = {"n_alerts": round(total["alert"]), "n_caught": round(total["caught"])}
    for figure, (above, below) in _RATIOS.items():
        if above not in total or (below is not None and total[below] == 0):
            figures[figure] = None
        else:
            figures[figure] = total[above] if below is None else total[above] / total[below]
    label_N = decided.label_N[is_of_N]
    figures["ap"] = average_precision(decided.score_N[rule][is_of_N], label_N) if label_N.any() else None
    return figures
