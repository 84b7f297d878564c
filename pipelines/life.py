"""The commands of a model's life: retrain, models, promote, rollback, publish, track, monitor, backtest, labels.

Declared here, done elsewhere; every one imports its work when it is called, so that `fraud --help` is instant.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.options import EXIT_REFUSED, AsJson, ConfigFile, Overrides, run

if TYPE_CHECKING:
    from pipelines.console import Screen

HtmlFile = Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write a page of it, too.")]


def retrain(
    config: ConfigFile,
    promote_if: Annotated[
        str | None,
        typer.Option(
            "--promote-if",
            metavar="GATE",
            help="What must hold at the worse end of the 95 % interval (default: retrain.promote_if).",
        ),
    ] = None,
    accept_source: Annotated[
        list[str] | None,
        typer.Option("--accept-source", metavar="NAME", help="Take a source of labels that is held back; repeatable."),
    ] = None,
    html: HtmlFile = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Train a challenger on the newest data; promote it if it passes the gate, else refuse it, and say why (exit 3)."""

    def work(screen: Screen) -> Mapping[str, Any]:
        from fraud.config import load_config
        from pipelines.files import only_one
        from pipelines.retrain import retrain as decide
        from pipelines.retrain import work_folder

        chosen = load_config(config, overrides or ())
        with only_one(work_folder(chosen)):
            return decide(
                chosen, promote_if=promote_if, accepted_sources=tuple(accept_source or ()), html=html, screen=screen
            )

    if run(work, as_json=as_json)["verdict"] == "refused":
        raise typer.Exit(EXIT_REFUSED)


def add_commands(app: typer.Typer) -> None:
    """Add the commands of this file to the command line."""
    for command in (retrain,):
        app.command()(command)
