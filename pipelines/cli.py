"""The command line: `fraud COMMAND`. Every command imports its work when it is called, so `fraud --help` is instant."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fraud.errors import FraudError

if TYPE_CHECKING:
    from pipelines.console import Screen

EXIT_FAILED, EXIT_BAD_INPUT = 1, 2

app = typer.Typer(
    name="fraud",
    help="Sequence-based fraud detection: from any event log to scores, decisions and the truth about a model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="The TOML configuration (`fraud init` writes one).")]
BundleDirectory = Annotated[Path, typer.Argument(metavar="BUNDLE", help="The directory of a bundle.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.FIELD=VALUE", help="Set one value of the configuration; repeatable."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on where a run that was killed stopped.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, and nothing else there.")]

_Work = Callable[["Screen"], Mapping[str, Any]]  # Any: JSON


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="The folder that everything is written to.")] = Path("demo"),
    models: Annotated[
        str, typer.Option("--models", help="The scorers to compare, joined by commas.")
    ] = "boosting,lstm",
    users: Annotated[int, typer.Option("--users", help="How many users to simulate.")] = 8000,
    days: Annotated[int, typer.Option("--days", help="How many days to simulate.")] = 90,
    seed: Annotated[int, typer.Option("--seed", help="The seed of the simulation and of the training.")] = 0,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Simulate a bank, train and compare scorers, bundle the one validation picks, score the log."""

    def work(screen: Screen) -> Mapping[str, Any]:
        from pipelines.demo import run_demo
        from pipelines.files import only_one

        names = tuple(name.strip() for name in models.split(",") if name.strip())
        with only_one(out):
            return run_demo(out, names, users=users, days=days, seed=seed, overwrite=overwrite, screen=screen)

    _run(work, as_json=as_json)


@app.command()
def init(
    events: Annotated[str, typer.Argument(metavar="EVENTS", help="A log: a file, a folder or a glob.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The configuration to write.")] = Path("config.toml"),
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Look at a log and write a commented configuration to edit."""

    def work(screen: Screen) -> Mapping[str, Any]:
        from pipelines.init import init_config

        return init_config(events, out, overwrite=overwrite, screen=screen)

    _run(work, as_json=as_json)


@app.command()
def simulate(
    out: Annotated[Path, typer.Option("-o", "--out", help="The folder to write to.")],
    users: Annotated[int, typer.Option("--users", help="How many users.")] = 8000,
    days: Annotated[int, typer.Option("--days", help="How many days.")] = 90,
    seed: Annotated[int, typer.Option("--seed", help="The same seed gives the same bytes.")] = 0,
    fraud_rate: Annotated[float, typer.Option("--fraud-rate", help="Share of decisions that are fraud.")] = 0.01,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Write a bank's behaviour log with planted frauds, decoys, labels and the best possible score."""

    def work(screen: Screen) -> Mapping[str, Any]:
        from pipelines.simulate import simulate as write_log

        summary = write_log(out, users=users, days=days, seed=seed, fraud_rate=fraud_rate, overwrite=overwrite)
        screen.say(f"{summary['n_events']:,} events of {summary['n_users']:,} users -> {out}")
        return summary

    _run(work, as_json=as_json)


@app.command()
def prepare(
    config: ConfigFile,
    out: Annotated[Path, typer.Option("-o", "--out", help="The folder to write to.")],
    overrides: Overrides = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Validate, quarantine, sort, sessionize and tokenize a log; report what was in it."""

    def work(screen: Screen) -> Mapping[str, Any]:
        from fraud.config import load_config
        from pipelines.files import only_one
        from pipelines.prepare import prepare_log

        with only_one(out):
            return prepare_log(load_config(config, overrides or ()), out, overwrite=overwrite, screen=screen)

    _run(work, as_json=as_json)


@app.command()
def train(
    config: ConfigFile,
    out: Annotated[Path, typer.Option("-o", "--out", metavar="BUNDLE", help="The bundle to write.")],
    overrides: Overrides = None,
    overwrite: Overwrite = False,
    resume: Resume = False,
    as_json: AsJson = False,
) -> None:
    """Train one scorer, track it, print its test figures with intervals and write its bundle."""

    def work(screen: Screen) -> Mapping[str, Any]:
        from fraud.config import load_config
        from pipelines.files import only_one
        from pipelines.train import train_bundle

        chosen = load_config(config, overrides or ())
        with only_one(out):
            return train_bundle(chosen, out, overwrite=overwrite, resume=resume, screen=screen)

    _run(work, as_json=as_json)


@app.command()
def evaluate(
    bundle: BundleDirectory,
    config: ConfigFile,
    part: Annotated[str, typer.Option("--part", help="train, valid or test.")] = "test",
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Print the figures of a saved bundle on a labelled log."""

    def work(screen: Screen) -> Mapping[str, Any]:
        from fraud.config import load_config
        from pipelines.evaluate import evaluate_bundle, part_of

        chosen = load_config(config, overrides or ())
        return evaluate_bundle(bundle, chosen, part=part_of(part), screen=screen)

    _run(work, as_json=as_json)


@app.command()
def score(
    bundle: BundleDirectory,
    events: Annotated[str, typer.Argument(metavar="EVENTS", help="A log: a file, a folder or a glob.")],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="OUT.parquet", help="The scores; .parquet or .csv.")],
    config: Annotated[
        Path | None, typer.Option("--config", help="A configuration that names the log's labels (default: none).")
    ] = None,
    per_event: Annotated[bool, typer.Option("--per-event", help="One row an event instead of one a session.")] = False,
    overrides: Overrides = None,
    overwrite: Overwrite = False,
    resume: Resume = False,
    as_json: AsJson = False,
) -> None:
    """Score a log with a bundle."""

    def work(screen: Screen) -> Mapping[str, Any]:
        from fraud.config import load_config
        from fraud.errors import ConfigError
        from pipelines.files import only_one
        from pipelines.score import score_file

        if overrides and config is None:
            raise ConfigError("--set changes a configuration; it needs --config")
        chosen = None if config is None else load_config(config, overrides or ())
        with only_one(out):
            return score_file(
                bundle,
                events,
                out,
                config=chosen,
                per_event=per_event,
                overwrite=overwrite,
                resume=resume,
                screen=screen,
            )

    _run(work, as_json=as_json)


def main() -> None:
    """Run the command line; exit 0 done, 1 failed, 2 bad input or configuration."""
    app()


def _run(work: _Work, *, as_json: bool) -> None:
    from pipelines.console import Screen

    screen = Screen(as_json=as_json)
    try:
        screen.finish(work(screen))
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
