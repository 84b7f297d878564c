"""What a command shows: progress on a terminal, tables, or with --json one document alone on stdout."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table


class Advance(Protocol):
    """Tell how far a stage of the work is."""

    def __call__(self, stage: str, done: int, whole: int) -> None: ...


class Screen:
    """Where a command writes: words and progress to stderr, results to stdout; as_json silences the words."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self.words = Console(stderr=True, quiet=as_json, highlight=False, soft_wrap=True)
        # A pipe has no width of its own; 80 columns would break the tables.
        self.results = Console(highlight=False, quiet=as_json, width=None if sys.stdout.isatty() else 140)

    def say(self, text: str) -> None:
        """Print a line about the work."""
        self.words.print(text, markup=False)

    def warn(self, text: str) -> None:
        """Print a warning; with --json it goes to stderr all the same."""
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"warning: {text}", markup=False, style="yellow")

    def table(self, title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table of results."""
        table = Table(title=title, title_justify="left", title_style="bold")
        for place, name in enumerate(header):
            table.add_column(name, justify="left" if place == 0 else "right")
        for row in rows:
            table.add_row(*row)
        self.results.print(table)

    def finish(self, document: Mapping[str, Any]) -> None:  # Any: JSON
        """Print the one JSON document, where it was asked for."""
        if self.as_json:
            sys.stdout.write(json.dumps(document, indent=1, allow_nan=False) + "\n")

    @contextmanager
    def progress(self) -> Iterator[Advance]:
        """Yield a function that shows how far each stage is; it shows nothing where nobody looks."""
        if self.as_json or not sys.stderr.isatty():
            yield lambda stage, done, whole: None
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self.words, transient=True) as bars:
            tasks: dict[str, Any] = {}  # Any: rich's task ids

            def advance(stage: str, done: int, whole: int) -> None:
                if stage not in tasks:
                    tasks[stage] = bars.add_task(stage, total=whole)
                bars.update(tasks[stage], completed=done, total=whole)

            yield advance


def interval(value: float | None, bounds: Sequence[float] | None) -> str:
    """Return "0.731 [0.690, 0.770]", or a dash where there is no figure."""
    if value is None:
        return "-"
    return f"{value:.3f}" if bounds is None else f"{value:.3f} [{bounds[0]:.3f}, {bounds[1]:.3f}]"


def spoken_s(seconds: float) -> str:
    """Return a duration as a person says it: "40 s", "12 min", "3 h", "2 d"."""
    for size, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.0f} {name}"
    return f"{seconds:.0f} s"
