"""The options that commands share, and how one runs: its errors as words, its result as words or JSON, its exit code.

Loaded with every `fraud --help`, so it imports nothing heavy.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fraud.errors import FraudError

if TYPE_CHECKING:
    from pipelines.console import Screen

EXIT_FAILED, EXIT_BAD_INPUT, EXIT_REFUSED, EXIT_ALARM = 1, 2, 3, 4

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="The TOML configuration (`fraud init` writes one).")]
BundleDirectory = Annotated[Path, typer.Argument(metavar="BUNDLE", help="The directory of a bundle.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.FIELD=VALUE", help="Set one value of the configuration; repeatable."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on where a run that was killed stopped.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, and nothing else there.")]

Work = Callable[["Screen"], Mapping[str, Any]]  # Any: JSON


def run(work: Work, *, as_json: bool) -> Mapping[str, Any]:  # Any: JSON
    """Return the document of a command, printed; raise typer.Exit with 2 for bad input, 1 for what else went wrong."""
    from pipelines.console import Screen

    screen = Screen(as_json=as_json)
    try:
        document = work(screen)
        screen.finish(document)
    except FraudError as error:
        sys.stderr.write(f"error: {error}\n")
        raise typer.Exit(EXIT_BAD_INPUT) from None
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        sys.stderr.write(f"error: {where}{error.strerror or error}\n")
        raise typer.Exit(EXIT_FAILED) from None
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        raise typer.Exit(EXIT_FAILED) from None
    return document
