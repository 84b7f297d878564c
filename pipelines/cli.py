"""The command line: `fraud COMMAND`. Every command imports its work when it is called, so `fraud --help` is instant.

Over 300 lines because every command declares its options here, and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.audit import audit, keys
from pipelines.life import add_commands
from pipelines.options import EXIT_FAILED, AsJson, BundleDirectory, ConfigFile, Overrides, Overwrite, Resume, run
from pipelines.serve import serve, serve_demo, warm

if TYPE_CHECKING:
    from pipelines.console import Screen

app = typer.Typer(
    name="fraud",
    help="Sequence-based fraud detection: from any event log to scores, decisions and the truth about a model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

policy = typer.Typer(
    help="Lists and rules in front of the model: test them, put them into a bundle.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(policy, name="policy")


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="The folder that everything is written to.")] = Path("demo"),
    models: Annotated[
        str, typer.Option("--models", help="The scorers to compare, joined by commas, or all; fused stacks the others.")
    ] = "average,boosting,lstm,transformer,fused",
    users: Annotated[int, typer.Option("--users", help="How many users to simulate.")] = 8000,
    days: Annotated[int, typer.Option("--days", help="How many days to simulate.")] = 90,
    seed: Annotated[int, typer.Option("--seed", help="The seed of the simulation and of the training.")] = 0,
    no_serve: Annotated[bool, typer.Option("--no-serve", help="End after the scores; --json ends there too.")] = False,
    port: Annotated[int, typer.Option("--port", help="Where the bundle is served; 0: any port that is free.")] = 8000,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Simulate a bank, train and compare scorers, bundle the one validation picks, score the log, serve the bundle."""

    def work(screen: Screen) -> Mapping[str, Any]:
        from pipelines.demo import run_demo
        from pipelines.files import only_one
        from pipelines.jobs import free_cores

        names = tuple(name.strip() for name in models.split(",") if name.strip())
        with only_one(out):
            return run_demo(
                out,
                names,
                users=users,
                days=days,
                seed=seed,
                n_processes=min(free_cores(), 4),
                overwrite=overwrite,
                screen=screen,
            )

    run(work, as_json=as_json)
    if not (no_serve or as_json):
        serve_demo(out, port)


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

    run(work, as_json=as_json)


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

    run(work, as_json=as_json)


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

    run(work, as_json=as_json)


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

    run(work, as_json=as_json)


@app.command()
def compare(
    config: ConfigFile,
    out: Annotated[Path, typer.Option("-o", "--out", help="The folder to write to.")] = Path("comparison"),
    models: Annotated[
        str, typer.Option("--models", help="The scorers, joined by commas; fused stacks the others.")
    ] = "average,boosting,lstm,transformer,fused",
    seeds: Annotated[int, typer.Option("--seeds", help="How often each is fitted, with a seed of its own.")] = 1,
    ablate: Annotated[
        bool, typer.Option("--ablate", help="Fit each again without order, without times: what are they worth?")
    ] = False,
    jobs: Annotated[
        int | None, typer.Option("--jobs", min=1, help="How many fits at a time (default: the cores, at most 4).")
    ] = None,
    overrides: Overrides = None,
    overwrite: Overwrite = False,
    resume: Resume = False,
    as_json: AsJson = False,
) -> None:
    """Train scorers side by side: leaderboard, paired differences, what order and time are worth, a page, bundles."""

    def work(screen: Screen) -> Mapping[str, Any]:
        from fraud.config import load_config
        from pipelines.compare import compare_log
        from pipelines.files import only_one
        from pipelines.jobs import free_cores

        chosen = load_config(config, overrides or ())
        with only_one(out):
            return compare_log(
                chosen,
                out,
                tuple(name.strip() for name in models.split(",") if name.strip()),
                seeds=seeds,
                ablate=ablate,
                overwrite=overwrite,
                resume=resume,
                n_processes=jobs or min(free_cores(), 4),
                screen=screen,
            )

    run(work, as_json=as_json)


@app.command()
def tune(
    config: ConfigFile,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--out", metavar="OUT.toml", help="The configuration to write (default: CONFIG.tuned.toml)."
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="The scorer (default: model.name of the configuration).")
    ] = None,
    trials: Annotated[int, typer.Option("--trials", help="How many settings to try, your own first.")] = 30,
    overrides: Overrides = None,
    overwrite: Overwrite = False,
    resume: Resume = False,
    as_json: AsJson = False,
) -> None:
    """Search better settings on the training and validation periods only; write the configuration that won."""

    def work(screen: Screen) -> Mapping[str, Any]:
        from fraud.config import load_config
        from fraud.errors import ConfigError
        from pipelines.files import only_one
        from pipelines.tune import tune as search

        changes = [*(overrides or ()), *([] if model is None else [f"model.name={model}"])]
        chosen = load_config(config, changes)
        target = config.with_suffix(".tuned.toml") if out is None else out
        if target.resolve() == config.resolve():
            raise ConfigError(f"{target}: is the configuration itself; expected another name for the one that won")
        typed = ["fraud", "tune", str(config), "--trials", str(trials)]
        typed += [] if model is None else ["--model", model]
        typed += [part for change in overrides or () for part in ("--set", change)]
        with only_one(target):
            return search(
                chosen, target, trials=trials, command=typed, overwrite=overwrite, resume=resume, screen=screen
            )

    run(work, as_json=as_json)


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

    run(work, as_json=as_json)


@app.command()
def score(
    bundle: BundleDirectory,
    events: Annotated[str, typer.Argument(metavar="EVENTS", help="A log: a file, a folder or a glob.")],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="OUT.parquet", help="The scores; .parquet or .csv.")],
    config: Annotated[
        Path | None, typer.Option("--config", help="A configuration that names the log's labels (default: none).")
    ] = None,
    per_event: Annotated[bool, typer.Option("--per-event", help="One row an event instead of one a session.")] = False,
    with_reasons: Annotated[
        bool, typer.Option("--explain", help="Add a column of reasons: what raised the score of each alert.")
    ] = False,
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
                with_reasons=with_reasons,
                overwrite=overwrite,
                resume=resume,
                screen=screen,
            )

    run(work, as_json=as_json)


@app.command()
def explain(
    bundle: BundleDirectory,
    events: Annotated[str, typer.Argument(metavar="EVENTS", help="A log: a file, a folder or a glob.")],
    user: Annotated[str, typer.Option("--user", metavar="ID", help="The user whose decisions are explained.")],
    event: Annotated[
        str | None, typer.Option("--event", metavar="ID", help="The event to explain (default: the last alert).")
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="A configuration that names the log's labels (default: none).")
    ] = None,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write a page of it, too.")] = None,
    overrides: Overrides = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Show what each event of a user added to the score of a decision."""

    def work(screen: Screen) -> Mapping[str, Any]:
        from fraud.config import load_config
        from fraud.errors import ConfigError
        from pipelines.explain import explain_user

        if overrides and config is None:
            raise ConfigError("--set changes a configuration; it needs --config")
        chosen = None if config is None else load_config(config, overrides or ())
        return explain_user(
            bundle, events, user, event=event, config=chosen, html=html, overwrite=overwrite, screen=screen
        )

    run(work, as_json=as_json)


app.command()(warm)
app.command()(serve)
add_commands(app)
app.add_typer(audit, name="audit")
app.add_typer(keys, name="keys")


@policy.command("test")
def policy_test(
    config: ConfigFile,
    events: Annotated[
        str | None, typer.Argument(metavar="[EVENTS]", help="A log: count what would decide on it, too.")
    ] = None,
    bundle: Annotated[
        Path | None,
        typer.Option("--bundle", metavar="BUNDLE", help="Whose thresholds, and scores of the log, are the model's."),
    ] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Run the [[policy.tests]] of a configuration; exit 1 where one fails."""
    failed = 0

    def work(screen: Screen) -> Mapping[str, Any]:
        nonlocal failed
        from fraud.config import load_config
        from pipelines.policy import run_policy_tests

        chosen = load_config(config, overrides or ())
        document = run_policy_tests(chosen, bundle=bundle, events=events, screen=screen)
        failed = document["failed"]
        return document

    run(work, as_json=as_json)
    if failed:
        raise typer.Exit(EXIT_FAILED)


@policy.command("apply")
def policy_apply(
    bundle: BundleDirectory,
    config: ConfigFile,
    out: Annotated[Path, typer.Option("-o", "--out", metavar="BUNDLE", help="The bundle to write.")],
    overrides: Overrides = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Write a bundle anew with the lists and rules of a configuration; the model and its thresholds stay."""

    def work(screen: Screen) -> Mapping[str, Any]:
        from fraud.config import load_config
        from pipelines.policy import apply_policy

        return apply_policy(bundle, load_config(config, overrides or ()), out, overwrite=overwrite, screen=screen)

    run(work, as_json=as_json)


def main() -> None:
    """Run the command line; exit 0 done, 1 failed, 2 bad input or configuration."""
    app()
