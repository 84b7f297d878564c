"""The commands of a model's life: retrain, models, promote, rollback, publish, track, monitor, backtest, labels.

Declared here, done elsewhere; every one imports its work when it is called, so that `fraud --help` is instant.
Over 300 lines because every command declares its options here, and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.options import (
    EXIT_ALARM,
    EXIT_FAILED,
    EXIT_REFUSED,
    AsJson,
    BundleDirectory,
    ConfigFile,
    Overrides,
    Overwrite,
    Resume,
    run,
)
from pipelines.serve import DEFAULT_STATE, State, become

if TYPE_CHECKING:
    from pipelines.console import Screen

HtmlFile = Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write a page of it, too.")]
Tracker = Annotated[
    str | None,
    typer.Option(
        "--tracking-uri",
        metavar="URI",
        help="The tracker (default: of the configuration, MLFLOW_TRACKING_URI, ./config.toml, ./mlflow.db).",
    ),
]
OfConfig = Annotated[
    Path | None,
    typer.Option("--config", metavar="CONFIG", help="A configuration whose [tracking] says where the model is."),
]
ModelName = Annotated[
    str | None, typer.Option("--name", metavar="NAME", help="The registered model (default: tracking.model_name).")
]
Since = Annotated[str | None, typer.Option("--since", metavar="TIME", help="From when on, RFC 3339.")]
Until = Annotated[str | None, typer.Option("--until", metavar="TIME", help="Until when, RFC 3339.")]

models = typer.Typer(
    help="The registered model: its versions, who is champion; what would change with another one.",
    invoke_without_command=True,
    rich_markup_mode=None,
)
labels = typer.Typer(help="Labels that came by HTTP, as a label file.", no_args_is_help=True, rich_markup_mode=None)


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
    """Train a challenger on the newest data; promote it if it passes the gate, else refuse it and say why (exit 3)."""

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


@models.callback()
def list_versions(
    context: typer.Context,
    config: OfConfig = None,
    tracking_uri: Tracker = None,
    name: ModelName = None,
    as_json: AsJson = False,
) -> None:
    """List the versions of the registered model: who is champion, since when, on which data, with which figures."""
    if context.invoked_subcommand is not None:
        return

    def work(screen: Screen) -> Mapping[str, Any]:
        from pipelines.models import list_models, place_of

        return list_models(place_of(config, tracking_uri, name), screen)

    run(work, as_json=as_json)


@models.command("diff")
def diff(
    a: Annotated[
        str, typer.Argument(metavar="A", help="A version, an alias (champion), or the directory of a bundle.")
    ],
    b: Annotated[str, typer.Argument(metavar="B", help="What would take its place.")],
    config: Annotated[Path, typer.Option("--config", metavar="CONFIG", help="The log to decide on, and its labels.")],
    since: Since = None,
    until: Until = None,
    html: HtmlFile = None,
    overwrite: Overwrite = False,
    tracking_uri: Tracker = None,
    name: ModelName = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Which users' decisions change from A to B, how much money, where in score and segment."""

    def work(screen: Screen) -> Mapping[str, Any]:
        from tempfile import TemporaryDirectory

        from fraud.config import load_config
        from pipelines.diff.run import diff_bundles
        from pipelines.models import bundle_at, place_of

        chosen = load_config(config, overrides or ())
        place = place_of(config, tracking_uri, name)
        with TemporaryDirectory(prefix="fraud-models-") as folder:
            one, other = (bundle_at(text, place, Path(folder)) for text in (a, b))
            return diff_bundles(
                one, other, chosen, since=since, until=until, html=html, overwrite=overwrite, screen=screen
            )

    run(work, as_json=as_json)


def promote(
    version: Annotated[
        str, typer.Argument(metavar="VERSION", help="Its number, its bundle's digits, or a bundle's directory.")
    ],
    because: Annotated[
        str, typer.Option("--because", metavar="TEXT", help="Why, for those who look at it later.")
    ] = "promoted by hand",
    config: OfConfig = None,
    tracking_uri: Tracker = None,
    name: ModelName = None,
    as_json: AsJson = False,
) -> None:
    """Make a version the champion, without a gate; who was it becomes the previous."""

    def work(screen: Screen) -> Mapping[str, Any]:
        from pipelines.models import place_of, promote_version

        return promote_version(place_of(config, tracking_uri, name), version, screen, because=because)

    run(work, as_json=as_json)


def rollback(
    config: OfConfig = None, tracking_uri: Tracker = None, name: ModelName = None, as_json: AsJson = False
) -> None:
    """Make the previous champion the champion again."""

    def work(screen: Screen) -> Mapping[str, Any]:
        from pipelines.models import place_of, roll_back

        return roll_back(place_of(config, tracking_uri, name), screen)

    run(work, as_json=as_json)


def publish(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="models:/NAME@ALIAS or models:/NAME/VERSION")],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="DIR", help="The folder that `fraud serve` follows.")],
    every: Annotated[
        str | None, typer.Option("--every", metavar="DURATION", help="Look again so often, such as 2s; else once.")
    ] = None,
    tracking_uri: Tracker = None,
    as_json: AsJson = False,
) -> None:
    """Keep the link DIR/current on the verified bundle of an alias: what `fraud serve DIR --follow` follows."""

    def work(screen: Screen) -> Mapping[str, Any]:
        from fraud.errors import ConfigError
        from fraud.literals import duration_us
        from pipelines.publish import publish as keep

        try:
            every_s = None if every is None else duration_us(every) / 1e6
        except ValueError as error:
            raise ConfigError(f"--every {every!r}: {error}") from None
        return keep(model, out, tracking_uri=tracking_uri, every_s=every_s, screen=screen)

    run(work, as_json=as_json)


def track(
    folder: Annotated[Path, typer.Argument(metavar="[FOLDER]", help="In or below it the runs were kept.")] = Path(),
    resend: Annotated[
        bool, typer.Option("--resend", help="Log the runs that were kept, and remove them here.")
    ] = False,
    tracking_uri: Annotated[
        str | None,
        typer.Option("--tracking-uri", metavar="URI", help="Log them there (default: where each was to go)."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Log the runs that were kept while the tracker was away (--resend); exit 1 where one is still kept."""

    def work(screen: Screen) -> Mapping[str, Any]:
        from fraud.errors import ConfigError
        from pipelines.resend import resend as tell

        if not resend:
            raise ConfigError("expected --resend: it logs the runs that were kept while the tracker was away")
        return tell(folder, tracking_uri=tracking_uri, screen=screen)

    if run(work, as_json=as_json)["kept"]:
        raise typer.Exit(EXIT_FAILED)


def monitor(
    bundle: BundleDirectory,
    events: Annotated[str, typer.Argument(metavar="EVENTS", help="A log: a file, a folder or a glob.")],
    config: Annotated[
        Path | None, typer.Option("--config", help="A configuration that names the log's labels (default: none).")
    ] = None,
    since: Since = None,
    until: Until = None,
    false_alarms: Annotated[
        float, typer.Option("--false-alarms", metavar="SHARE", help="How many quiet weeks may alarm.")
    ] = 0.02,
    html: HtmlFile = None,
    prometheus: Annotated[
        Path | None, typer.Option("--prometheus", metavar="FILE", help="Write figures for node_exporter's textfiles.")
    ] = None,
    overrides: Overrides = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Compare a log's weeks with what the bundle was made from; say in words what changed (exit 4 on alarm)."""

    def work(screen: Screen) -> Mapping[str, Any]:
        from fraud.config import load_config
        from fraud.errors import ConfigError
        from pipelines.monitor.run import monitor as look

        if overrides and config is None:
            raise ConfigError("--set changes a configuration; it needs --config")
        return look(
            bundle,
            events,
            config=None if config is None else load_config(config, overrides or ()),
            since=since,
            until=until,
            false_alarms=false_alarms,
            html=html,
            prometheus=prometheus,
            overwrite=overwrite,
            screen=screen,
        )

    if run(work, as_json=as_json)["standing"]:
        raise typer.Exit(EXIT_ALARM)


def backtest(
    config: ConfigFile,
    start: Annotated[str, typer.Option("--from", metavar="TIME", help="When the first model is made, RFC 3339.")],
    end: Annotated[str, typer.Option("--to", metavar="TIME", help="Where it ends, RFC 3339.")],
    every: Annotated[str, typer.Option("--every", metavar="DURATION", help="The length of a step.")] = "7d",
    rules: Annotated[
        str, typer.Option("--rules", help="When to retrain, joined by commas: never, weekly, monthly, alarm.")
    ] = "never,weekly,monthly,alarm",
    out: Annotated[Path, typer.Option("-o", "--out", metavar="DIR", help="The folder to write to.")] = Path("backtest"),
    overrides: Overrides = None,
    overwrite: Overwrite = False,
    resume: Resume = False,
    as_json: AsJson = False,
) -> None:
    """Live a log again, step by step: what was known then, retrained by each rule, what its alerts found and missed."""

    def work(screen: Screen) -> Mapping[str, Any]:
        from fraud.config import load_config
        from fraud.errors import ConfigError
        from fraud.instants import instant_us
        from fraud.literals import duration_us
        from pipelines.backtest.run import backtest as live
        from pipelines.files import only_one

        try:
            every_us = duration_us(every)
        except ValueError as error:
            raise ConfigError(f"--every {every!r}: {error}") from None
        with only_one(out):
            return live(
                load_config(config, overrides or ()),
                out,
                start_us=instant_us("--from", start),
                end_us=instant_us("--to", end),
                every_us=every_us,
                rules=tuple(rule.strip() for rule in rules.split(",") if rule.strip()),
                overwrite=overwrite,
                resume=resume,
                screen=screen,
            )

    run(work, as_json=as_json)


@labels.command("pull")
def labels_pull(
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="FILE.jsonl", help="The label file; what is new is added.")
    ],
    state: State = DEFAULT_STATE,
    config: Annotated[
        Path | None, typer.Option("--config", metavar="CONFIG", help="Whose [log] and [labels] name the columns.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Add the labels that came by HTTP to a label file, each once, with who sent it and when it was known."""
    arguments = ["pull", "--state", state, "-o", str(out), *([] if config is None else ["--config", str(config)])]
    become("labels", [*arguments, *(["--json"] if as_json else [])])


def add_commands(app: typer.Typer) -> None:
    """Add the commands of this file to the command line."""
    for command in (retrain, promote, rollback, publish, track, monitor, backtest):
        app.command()(command)
    app.add_typer(models, name="models")
    app.add_typer(labels, name="labels")
