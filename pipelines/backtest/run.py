"""`fraud backtest`: rules of retraining side by side, each step with nothing but what was known at its time.

Beside the folder to be stands a working folder with a file for each step that was lived and a folder for each
challenger, all written whole: --resume goes on after the last step and ends with the same bytes as a run nobody killed.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from fraud.config import Config, config_to_toml
from fraud.errors import ConfigError, DataError, FraudError
from fraud.gate import parse_gate
from fraud.instants import as_of, instant_text
from fraud.literals import duration_text
from fraud.logs import check_usable, read_log
from fraud.periods import lived
from fraud.readers import log_files
from pipelines.backtest.figures import figures_document
from pipelines.backtest.page import backtest_page
from pipelines.backtest.pictures import backtest_pictures
from pipelines.backtest.rules import Watch, check_rules, newest_alarms
from pipelines.backtest.steps import (
    CHALLENGERS,
    STEPS,
    WAITED,
    Backtest,
    Step,
    Turn,
    live_step,
    read_turns,
)
from pipelines.backtest.words import limits, money, verdict
from pipelines.console import Screen, interval
from pipelines.files import check_output, directory_written_whole, written_whole

Json = dict[str, Any]  # Any: JSON
REPORT, PAGE, PICTURES = "backtest.json", "backtest.html", "pictures"
_IDENTITY = "run.json"


def backtest(
    config: Config,
    out: Path,
    *,
    start_us: int,
    end_us: int,
    every_us: int,
    rules: Sequence[str],
    overwrite: bool,
    resume: bool,
    screen: Screen,
    watch: Watch = newest_alarms,
) -> Json:
    """Return what each rule would have found from a day to another, with its page and its steps written to `out`.

    watch: what tells the rule "alarm" that it is due. Raises ConfigError; DataError where the log is empty or too short
    for a first model at the start. A run that was killed leaves its working folder, which --resume takes up.
    """
    started = time.monotonic()
    check_rules(rules)
    steps = steps_between(start_us, end_us, every_us)
    gate = parse_gate(config.retrain.promote_if)
    work = out.with_name(f".{out.name}.work")
    check_output(out, work, overwrite=overwrite, resume=resume, mark=REPORT)
    label_table, known_until_us = _the_end(config, end_us)
    _take_up(work, _identity(config, steps, rules), resume=resume)
    one = Backtest(
        config=config,
        gate=gate,
        rules=tuple(rules),
        steps=steps,
        every_us=every_us,
        label_table=label_table,
        watch=watch,
        work=work,
        screen=screen,
    )
    try:
        _live(one)
    except FraudError:
        # Nothing to take up: what was asked for cannot be done. Steps that were lived stay, for a mended call.
        if not any((work / STEPS).glob("*.parquet")):
            _discard(work)
        raise
    document = _write(one, out, known_until_us)
    _discard(work)
    _show(document, screen)
    screen.say(f"pictures and tables: {out / PAGE}")
    return document | {"out": str(out), "seconds": round(time.monotonic() - started, 1)}


def steps_between(start_us: int, end_us: int, every_us: int) -> tuple[Step, ...]:
    """Return the steps; the last one ends at the end. Raises ConfigError for times in the wrong order."""
    if every_us <= 0:
        raise ConfigError(f'--every {duration_text(every_us)}: expected a duration above 0, such as "7d"')
    if end_us <= start_us:
        raise ConfigError(f"--to {instant_text(end_us)}: expected a time after --from {instant_text(start_us)}")
    return tuple(Step(at_us, min(at_us + every_us, end_us)) for at_us in range(start_us, end_us, every_us))


def _the_end(config: Config, end_us: int) -> tuple[pa.Table | None, int]:
    """Return the label table as it stands in the end, and until when it could know."""
    with closing(read_log(config)) as log:
        check_usable(log)
        if log.n_events == 0:
            before = f" before split.as_of = {config.split.as_of}" if config.split.as_of else ""
            raise DataError(
                f"{config.log.events}: the log holds no event{before}; expected some to learn and to decide"
            )
        lived(log, config)  # raises where the log has no clock or no labels
        newest_us = int(log.time_us.max())
        if end_us > newest_us + 1:
            raise ConfigError(
                f"--to {instant_text(end_us)}: the log ends at {instant_text(newest_us)}; expected a time up to that"
            )
        table = log.label_table
        if table is not None and "known_us" in table.column_names:
            newest_us = max(newest_us, pc.max(table["known_us"]).as_py() or 0)
        return table, as_of(config.split) or newest_us + 1


def _identity(config: Config, steps: Sequence[Step], rules: Sequence[str]) -> dict[str, str]:
    """Return what a run depends on, by what a person calls it."""
    blocks = [block for block in config_to_toml(config).split("\n\n") if not block.startswith("[tracking]")]
    patterns = [config.log.events, *([config.labels.path] if config.labels and config.labels.path else [])]
    paths = [path for pattern in patterns for path in log_files(pattern, config.root)]
    files = [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in paths]
    return {
        "the configuration": hashlib.sha256("\n\n".join(blocks).encode()).hexdigest(),
        "the files of the log or the labels": json.dumps(files),
        "--from, --to or --every": json.dumps(steps),
        "--rules": ",".join(rules),
    }


def _take_up(work: Path, identity: Mapping[str, str], *, resume: bool) -> None:
    """Make the working folder; with resume, leave the one that is there, if its run is this very one."""
    path = work / _IDENTITY
    if resume and path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        other = [name for name, value in identity.items() if before.get(name) != value]
        if other:
            raise ConfigError(
                f"--resume: {' and '.join(other)} differ from those of the unfinished run in {work}; expected the "
                "same, or no --resume, which begins anew"
            )
        return
    _discard(work)
    (work / STEPS).mkdir(parents=True)
    with written_whole(path) as aside:
        aside.write_text(json.dumps(identity), encoding="utf-8")


def _discard(work: Path) -> None:
    """Remove a working folder; what says whose steps these are goes first, in case the removal is killed half-way."""
    (work / _IDENTITY).unlink(missing_ok=True)
    shutil.rmtree(work, ignore_errors=True)


def _live(one: Backtest) -> None:
    """Live the steps that were not lived yet."""
    turns: dict[str, Turn] = {}
    n_found = sum(one.step_file(step).exists() for step in one.steps)
    if n_found:
        one.screen.say(f"taking up {n_found} of {len(one.steps)} steps")
    for place, step in enumerate(one.steps):
        if one.step_file(step).exists():
            turns = read_turns(one.step_file(step))
            continue
        one.screen.say(f"step {place + 1} of {len(one.steps)}, from {instant_text(step.at_us)}")
        turns = live_step(one, step, turns)
        _say_turns(one, turns)


def _say_turns(one: Backtest, turns: Mapping[str, Turn]) -> None:
    """Print what was done, once for the rules that did the same."""
    done: dict[str, list[str]] = {}
    for rule, turn in turns.items():
        if turn.verdict != WAITED or turn.alarms or turn.unwatched:
            unwatched = [f"no alarm can be heard: {turn.unwatched}"] if turn.unwatched else []
            words = "; ".join([turn.text, *(f"alarm: {alarm}" for alarm in turn.alarms), *unwatched])
            done.setdefault(f"{turn.verdict} ({turn.reason}): {words}", []).append(rule)
    for words, rules in done.items():
        one.screen.say(f"{', '.join(rules)}: {words}")


def _write(one: Backtest, out: Path, known_until_us: int) -> Json:
    """Return the document, its folder written whole: page, pictures, the steps and the challengers' bundles."""
    figures = figures_document(one.steps, [one.step_file(step) for step in one.steps], one.rules, one.config)
    delay_us = (one.config.labels.delay if one.config.labels else None) or 0
    for step, cells in zip(one.steps, figures["steps"], strict=True):
        cells |= {"at": instant_text(step.at_us), "until": instant_text(step.until_us)}
        cells["is_settled"] = step.until_us + delay_us <= known_until_us
    document: Json = {
        "from": instant_text(one.steps[0].at_us),
        "to": instant_text(one.steps[-1].until_us),
        "every": duration_text(one.every_us),
        "model": one.config.model.name,
        "gate": one.config.retrain.promote_if,
        "alert_budget": one.config.policy.alert_budget,
        "n_examples": sum(cells["n_examples"] for cells in figures["steps"]),
        "n_frauds": sum(cells["n_frauds"] for cells in figures["steps"]),
        **figures,
    }
    document |= {"verdict": verdict(document), "limits": limits(document)}
    drawn = backtest_pictures(document)
    with directory_written_whole(out) as aside:
        (aside / REPORT).write_text(json.dumps(document, indent=1, allow_nan=False), encoding="utf-8")
        (aside / PAGE).write_text(backtest_page(document, drawn), encoding="utf-8")
        (aside / PICTURES).mkdir()
        for one_picture in drawn:
            (aside / PICTURES / f"{one_picture.name}.png").write_bytes(one_picture.png)
            (aside / PICTURES / f"{one_picture.name}.svg").write_text(one_picture.svg, encoding="utf-8")
        shutil.copytree(one.work / STEPS, aside / STEPS)
        hidden = shutil.ignore_patterns(".*", "*.quarantine.parquet")
        shutil.copytree(one.work / CHALLENGERS, aside / CHALLENGERS, ignore=hidden)
    return document


def _show(document: Mapping[str, Any], screen: Screen) -> None:
    rows = [
        [
            rule,
            f"{one['n_promoted']} of {one['n_promoted'] + one['n_refused']}",
            interval(one["recall_at_budget"], one["recall_at_budget_ci"]),
            interval(one["recall"], one["recall_ci"]),
            interval(one["precision"], one["precision_ci"]),
            interval(one["ap"], one["ap_ci"]),
            money(one["money_saved"], one["money_saved_ci"]),
        ]
        for rule, one in document["rules"].items()
    ]
    title = (
        f"{document['from']} to {document['to']}: {document['n_frauds']:,} frauds among {document['n_examples']:,} "
        "decisions (95 % intervals by user)"
    )
    header = ["rule", "promoted", "recall at budget", "recall as decided", "precision", "AP", "money saved"]
    screen.table(title, header, rows)
    for line in (*document["verdict"], *document["limits"]):
        screen.say(line)
