"""What the figures of a week are called, and their values in the unit in which a person reads them."""

from __future__ import annotations

import numpy as np

from fraud.events import FloatArray
from fraud.monitoring.drift import Series


def figure_name(series: Series) -> str:
    """Return what a series is of, as the title of its picture."""
    statistic, _, field = series.statistic.partition(":")
    cell = series.cell
    match statistic, series.kind:
        case "unknown", _:
            return f"events with an unseen `{cell[0]}`"
        case "null", _:
            return f"`{cell[-1]}` without {cell[0]}" if len(cell) == 2 else f"events without {cell[0]}"
        case "value", _:
            return f"`{field}` is `{cell[0]}`"
        case "type", _:
            return f"events of type `{cell[0]}`"
        case "bigram", _:
            return f"`{cell[-1]}` after `{cell[0]}`"
        case "bucket", _:
            return f"`{field}` {cell[0]}"
        case "amount", _:
            return f"typical amount of `{cell[0]}`"
        case "gap", "mean":
            return "typical pause inside a session"
        case "gap", _:
            return f"pauses of {cell[0]}"
        case "session_length", "mean":
            return "typical events of a session"
        case "session_length", _:
            return f"sessions of {cell[0]}"
        case "hour", _:
            return f"events from {cell[0]}"
        case "volume", _:
            return cell[0]
        case "score", "mean":
            return "typical score"
        case "score", _:
            return f"scores {cell[0]}"
        case "alert", _:
            return "alerts among what is scored"
        case "fraud", _:
            return "known frauds among what is settled"
        case "performance", _:
            return {"ap": "average precision", "recall_at_budget": "recall at the budget"}.get(
                cell[0], "scores over frauds"
            )
        case _:
            return f"{series.statistic} {' '.join(cell)}"


def in_own_unit(series: Series, values: FloatArray) -> FloatArray:
    """Return values of a series as a person reads them: amounts, seconds, events, scores; shares in percent."""
    if series.kind == "share":
        return 100 * values
    match series.statistic, series.cell:
        case "amount", _:
            return np.sign(values) * np.expm1(np.abs(values))
        case "gap", _:
            return (2.0**values - 1) / 10
        case ("session_length", _) | ("performance", ("mean_score_over_base_rate",)):
            return np.exp(values)
        case "score", _:
            return 100 / (1 + np.exp(-values))
        case _:
            return values
