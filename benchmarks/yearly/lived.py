"""The year as it was lived: every week a challenger from what was known by then, behind the gate or not.

Each week's verdict is a file, and its bundle a folder, written whole: a run that was killed goes on from the last one.
"""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from yearly.bank import Year, week_start_us

from fraud.bundle import Bundle, load_bundle
from fraud.config import Config, load_config
from fraud.gate import parse_gate
from fraud.instants import instant_text
from fraud.logs import read_log
from fraud.periods import TooFewPositives, with_periods
from pipelines.challenge import challenge_periods, judge_challenger, make_challenger
from pipelines.console import Screen
from pipelines.files import written_whole

Json = dict[str, Any]  # Any: JSON


class LivedWeek(NamedTuple):
    """What Monday's retraining ended with, and who answers from then on. challenger: None where none could be made.

    champion, challenger: the week whose retraining made it, which names its bundle.
    """

    week: int
    verdict: str
    text: str
    champion: int
    challenger: int | None


def lived_weeks(config_path: Path, work: Path, year: Year, overrides: list[str], screen: Screen) -> list[LivedWeek]:
    """Return what each week's retraining ended with, from the first model on."""
    weeks: list[LivedWeek] = []
    for week in range(year.first_week, year.weeks):
        record = work / "weeks" / f"{week}.json"
        if not record.exists():
            champion = weeks[-1].champion if weeks else None
            lived = _retrained(as_of_week(config_path, week, overrides), work, week, champion, screen)
            with written_whole(record) as aside:
                aside.write_text(json.dumps(lived._asdict()), encoding="utf-8")
        weeks.append(LivedWeek(**json.loads(record.read_text(encoding="utf-8"))))
        screen.say(f"week {week}: {weeks[-1].verdict} ({weeks[-1].text})")
    return weeks


def as_of_week(config_path: Path, week: int, overrides: list[str]) -> Config:
    """Return the configuration as of the first moment of a week: nothing of it has been seen."""
    return load_config(config_path, [f'split.as_of="{instant_text(week_start_us(week))}"', *overrides])


def bundle_of(work: Path, week: int) -> Bundle:
    """Return the bundle that a week's retraining made."""
    return load_bundle(work / "bundles" / str(week))


def _retrained(config: Config, work: Path, week: int, champion: int | None, screen: Screen) -> LivedWeek:
    old = None if champion is None else bundle_of(work, champion)
    with closing(read_log(config)) as log:
        try:
            config = with_periods(config, challenge_periods(log, config, old))
        except TooFewPositives as error:
            if champion is None:
                raise  # the first week is too early for a first model
            return LivedWeek(week, "refused", str(error), champion, None)
        out = work / "bundles" / str(week)
        new = load_bundle(out) if out.exists() else make_challenger(config, out, screen).bundle
        judgement = judge_challenger(new, old, log, config, parse_gate(config.retrain.promote_if))
    if judgement.passed or champion is None:
        return LivedWeek(week, "promoted", judgement.text, week, week)
    return LivedWeek(week, "refused", judgement.text, champion, week)
