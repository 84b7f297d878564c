"""One step of a backtest: what each rule does with what is known at its start, and what its champion then decides.

A challenger depends on the time and the configuration alone, so all rules share it; whom it is judged against is each
rule's own champion. Nothing here reads what came after the step, but for the labels that it is judged by in the end.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fraud.bundle import load_bundle
from fraud.chunks import Chunk, chunks, labelled
from fraud.config import Config, SplitConfig
from fraud.decisions import DECISIONS
from fraud.errors import DataError
from fraud.gate import Gate
from fraud.instants import instant_text, instant_us
from fraud.logs import Log, read_log
from fraud.parallel import in_order
from fraud.periods import TooFewPositives, lived, with_periods
from fraud.scoring import Scorer, decided, risk_of
from fraud.splits import Cuts, supervise
from fraud.tables import tables_of
from pipelines.backtest.rules import ALARM, Watch, check_watched, is_due
from pipelines.challenge import challenge_periods, judge_challenger, make_challenger, watched_sources
from pipelines.console import Screen
from pipelines.files import written_whole
from pipelines.monitor.run import ShortReference
from pipelines.train import discard

Json = dict[str, Any]  # Any: JSON
PROMOTED, REFUSED, WAITED = "promoted", "refused", "waited"
STEPS, CHALLENGERS = "steps", "challengers"
_TURNS = b"turns"
_TIME = pa.timestamp("us", tz="UTC")


class Step(NamedTuple):
    """From when until when (exclusive) a champion decides; microseconds."""

    at_us: int
    until_us: int


class Outcome(NamedTuple):
    """What came of a challenger. reason: a code, as of `fraud retrain`. challenger: its bundle; None: none was made."""

    verdict: str
    reason: str
    text: str
    challenger: str | None
    gate: list[Json]


class Turn(NamedTuple):
    """What a rule did at the start of a step, and who decides in it.

    verdict: PROMOTED, REFUSED, or WAITED where nothing was due. unwatched: why nobody could tell whether there is an
    alarm; None where the champion was watched or is not to be. champion: a bundle; champion_since: when it was made.
    """

    verdict: str
    reason: str
    text: str
    challenger: str | None
    gate: list[Json]
    alarms: list[str]
    unwatched: str | None
    champion: str
    champion_since: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Backtest:
    """What a backtest works on. label_table: as it stands in the end; None where labels stand in the log."""

    config: Config
    gate: Gate
    rules: tuple[str, ...]
    steps: tuple[Step, ...]
    every_us: int
    label_table: pa.Table | None
    watch: Watch
    work: Path
    screen: Screen

    def config_at(self, time_us: int) -> Config:
        """Return the configuration under which nothing of a time or later is read."""
        return replace(self.config, split=replace(self.config.split, as_of=instant_text(time_us)))

    def step_file(self, step: Step) -> Path:
        """Return the file of a step's decisions."""
        return self.work / STEPS / f"{stamp(step.at_us)}.parquet"

    def bundle_made(self, at: str) -> Path:
        """Return the directory of the challenger that was made at a time."""
        return self.work / CHALLENGERS / stamp(instant_us("champion_since", at))


def stamp(time_us: int) -> str:
    """Return a time as part of a file's name."""
    return instant_text(time_us).replace(":", "")


def live_step(backtest: Backtest, step: Step, before: Mapping[str, Turn]) -> dict[str, Turn]:
    """Return what each rule did at the start of a step; its decisions are then in the step's file.

    before: the turns of the step before; none at the first. Raises DataError where no first champion can be made,
    ConfigError where one of the rules cannot watch it.
    """
    turns = _turns(backtest, step, before)
    champions = {turn.champion_since: turn.champion for turn in turns.values()}
    scorers = {name: load_bundle(backtest.bundle_made(at)).scorer for at, name in champions.items()}
    with closing(read_log(backtest.config_at(step.until_us))) as log:
        made = decisions_of(scorers, log, backtest.config, step, label_table=backtest.label_table)
    table = made.examples
    for rule, turn in turns.items():
        scored = made.by_bundle[turn.champion]
        table = table.append_column(f"{rule}_score", scored["score"]).append_column(
            f"{rule}_decision", scored["decision"]
        )
    table = table.sort_by([("ts", "ascending"), ("user_id", "ascending"), ("event_id", "ascending")])
    with written_whole(backtest.step_file(step)) as aside:
        told = {_TURNS: json.dumps({rule: turn._asdict() for rule, turn in turns.items()})}
        pq.write_table(table.replace_schema_metadata(told), aside, compression="zstd")
    return turns


def read_turns(path: Path) -> dict[str, Turn]:
    """Return what each rule did, from the file of a step."""
    turns = json.loads(pq.read_metadata(path).metadata[_TURNS])
    return {rule: Turn(**turn) for rule, turn in turns.items()}


def _turns(backtest: Backtest, step: Step, before: Mapping[str, Turn]) -> dict[str, Turn]:
    """Return the turn of each rule; rules with one champion are judged once."""
    config, start_us = backtest.config_at(step.at_us), backtest.steps[0].at_us
    looks = {rule: _look(rule, backtest, step, before) for rule in backtest.rules}
    due = [
        rule
        for rule in backtest.rules
        if not before or looks[rule].alarms or is_due(rule, step.at_us, start_us=start_us, every_us=backtest.every_us)
    ]
    outcomes: dict[str | None, Outcome] = {}
    if due:
        with closing(read_log(config)) as log:
            for champion in {before[rule].champion_since if before else None for rule in due}:
                outcomes[champion] = _challenge(backtest, step, log, config, champion)
    turns: dict[str, Turn] = {}
    for rule in backtest.rules:
        old = before.get(rule)
        outcome = _WAITED if rule not in due else outcomes[old.champion_since if old else None]
        is_new = outcome.verdict == PROMOTED
        assert old is not None or is_new  # `_challenge` raises where there is no first champion
        turns[rule] = Turn(
            *outcome,
            alarms=list(looks[rule].alarms),
            unwatched=looks[rule].unwatched,
            champion=str(outcome.challenger) if old is None or is_new else old.champion,
            champion_since=instant_text(step.at_us) if old is None or is_new else old.champion_since,
        )
    if not before and ALARM in turns:
        check_watched(load_bundle(backtest.bundle_made(turns[ALARM].champion_since)))
    return turns


_WAITED = Outcome(WAITED, "not_due", "nothing was due", None, [])


class _Look(NamedTuple):
    """What the monitor said; unwatched: why it could say nothing."""

    alarms: tuple[str, ...]
    unwatched: str | None


def _look(rule: str, backtest: Backtest, step: Step, before: Mapping[str, Turn]) -> _Look:
    if rule != ALARM or not before:
        return _Look((), None)
    champion = load_bundle(backtest.bundle_made(before[rule].champion_since))
    try:
        return _Look(backtest.watch(champion, backtest.config_at(step.at_us), step.at_us, backtest.screen), None)
    except ShortReference as error:  # of a later champion: of the first it was refused
        return _Look((), str(error))


def _challenge(backtest: Backtest, step: Step, log: Log, config: Config, champion: str | None) -> Outcome:
    """Return what `fraud retrain` would have said at the start of a step, with this champion."""
    old = None if champion is None else load_bundle(backtest.bundle_made(champion))
    log, config = lived(log, config)
    held = [report.text for report in watched_sources(log, old, as_of_us=step.at_us) if report.is_held_back]
    if held:  # nobody is there to accept them
        return _without_challenger("labels_held_back", "; ".join(held), champion)
    try:
        config = with_periods(config, challenge_periods(log, config, old))
    except TooFewPositives as error:
        return _without_challenger("too_few_positives", str(error), champion)
    out = backtest.work / CHALLENGERS / stamp(step.at_us)
    new = load_bundle(out) if out.exists() else make_challenger(config, out, backtest.screen).bundle
    discard(out.with_name(f".{out.name}.work"))
    judgement = judge_challenger(new, old, log, config, backtest.gate)
    verdict = PROMOTED if judgement.passed else REFUSED
    if old is None and verdict == REFUSED:
        raise DataError(f"the first model, as of {config.split.as_of}, was refused: {judgement.text}")
    gate = [ruling.to_json() for ruling in judgement.rulings]
    return Outcome(verdict, judgement.reason, judgement.text, new.version, gate)


def _without_challenger(reason: str, text: str, champion: str | None) -> Outcome:
    if champion is None:
        raise DataError(f"--from is too early for a first model: {text}")
    return Outcome(REFUSED, reason, text, None, [])


class Decisions(NamedTuple):
    """Examples: event_id, user_id, ts, fraud, amount; and, by bundle, "score" and "decision" in the same order."""

    examples: pa.Table
    by_bundle: dict[str, pa.Table]


def decisions_of(
    scorers: Mapping[str, Scorer], log: Log, config: Config, step: Step, *, label_table: pa.Table | None
) -> Decisions:
    """Return what bundles decide on the examples of a step, from a log that ends with it.

    What is known of an entity is what was known by then; what is fraud is what label_table says, the one of the end.
    With labels of sessions or users, one that was active in the step is one example, its last event by then.
    """
    config = replace(config, split=SplitConfig())
    tables = tables_of(log, config)
    in_the_end = replace(log, label_table=label_table)
    cuts = Cuts(train_until_us=0, valid_until_us=step.at_us, as_of_us=step.until_us)

    def decide(chunk: Chunk) -> Decisions:
        one = labelled(chunk, in_the_end, config, None)
        assert one.labels is not None  # `fraud.periods.lived` sees to it
        assert one.known is not None
        supervision = supervise(one.enriched, one.labels, one.known, cuts, config, None)
        events, rows = one.enriched.events, np.flatnonzero(supervision.tests_N)
        columns = {
            "event_id": chunk.event_ids.take(pa.array(rows)),
            "user_id": pa.array(events.users[events.user_codes()[rows]], pa.string()),
            "ts": pa.array(events.time_us[rows], pa.int64()).cast(_TIME),
            "fraud": pa.array(supervision.label_N[rows]),
        }
        if events.amount is not None:
            columns["amount"] = pa.array(events.amount[rows])
        risk = risk_of(events, tables)
        by_bundle: dict[str, pa.Table] = {}
        for name, scorer in scorers.items():
            logit_N = scorer.model.logits(one.enriched, risk, wanted_N=supervision.tests_N)
            score_N = scorer.calibration.scores(np.where(supervision.tests_N, logit_N, 0.0))
            decision_N = decided(scorer, one.enriched, risk, score_N).decision_N
            decisions = pa.array(DECISIONS).take(pa.array(decision_N[rows], pa.int8()))
            by_bundle[name] = pa.table({"score": score_N[rows], "decision": decisions})
        return Decisions(pa.table(columns), by_bundle)

    parts = list(in_order(decide, chunks(log)))
    return Decisions(
        pa.concat_tables([part.examples for part in parts]),
        {name: pa.concat_tables([part.by_bundle[name] for part in parts]) for name in scorers},
    )
