"""What the monitor said in each week of the year, of the champion that answered then."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from yearly.bank import week_start_us
from yearly.lived import LivedWeek, as_of_week, bundle_of

from pipelines.console import Screen
from pipelines.files import written_whole
from pipelines.monitor.run import watch


class WatchedWeek(NamedTuple):
    """The alarms that a week raised when it was over, in words."""

    week: int
    alarms: tuple[str, ...]


def watched_weeks(
    config_path: Path, work: Path, lived: Sequence[LivedWeek], overrides: list[str], screen: Screen
) -> list[WatchedWeek]:
    """Return what the monitor says after each lived week that it did not say before."""
    weeks: list[WatchedWeek] = []
    for one in lived:
        record = work / "watched" / f"{one.week}-{one.champion}.json"
        if not record.exists():
            bundle, config = bundle_of(work, one.champion), as_of_week(config_path, one.week + 1, overrides)
            watched = watch(bundle, config, from_us=None, until_us=week_start_us(one.week + 1), screen=screen)
            with written_whole(record) as aside:
                aside.write_text(json.dumps([alarm.text for alarm in watched.new_alarms]), encoding="utf-8")
        alarms = tuple(json.loads(record.read_text(encoding="utf-8")))
        weeks.append(WatchedWeek(one.week, alarms))
        for alarm in alarms:
            screen.say(f"week {one.week}: {alarm}")
    return weeks
