"""What was found: a line for each figure, with its goal and whether it is met, and a table of latencies."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Any

from serving.latency import QUANTILES, Loaded


@dataclass(slots=True)
class Report:
    """What was found, line by line: printed as it comes, or as one JSON document at the end."""

    is_json: bool
    lines: list[dict[str, Any]] = field(default_factory=list)  # Any: JSON

    def tell(self, name: str, value: float, text: str, *, goal: str = "", met: bool | None = None) -> None:
        """Note one figure. met: None where there is no goal."""
        self.lines.append({"name": name, "value": value, "text": text, "goal": goal, "met": met})
        verdict = "" if met is None else f" (goal: {goal}): {'met' if met else 'MISSED'}"
        self.say(f"{name}: {text}{verdict}")

    def say(self, text: str) -> None:
        """Print a line that holds no figure."""
        if not self.is_json:
            sys.stdout.write(text + "\n")
            sys.stdout.flush()


def tell_load(report: Report, name: str, load: Loaded) -> None:
    """Tell the latencies at one load."""
    p50, p99, p999 = load.result.quantiles_ms(*QUANTILES)
    refused = load.result.n - load.result.n_answered
    report.tell(
        f"{name} of capacity, open loop", p99,
        f"p50 {p50:.1f} ms, p99 {p99:.1f} ms, p99.9 {p999:.1f} ms at {load.rate:,.0f} a second, {refused} not answered",
    )  # fmt: skip


def table(loads: dict[str, Loaded]) -> str:
    """Return the latencies at all loads as a table in Markdown."""
    lines = ["| load | asked a second | p50 ms | p99 ms | p99.9 ms |", "|---|---:|---:|---:|---:|"]
    for name, load in loads.items():
        quantiles = " | ".join(f"{value:.1f}" for value in load.result.quantiles_ms(*QUANTILES))
        lines.append(f"| {name} | {load.rate:,.0f} | {quantiles} |")
    return "\n".join(lines) + "\n"
