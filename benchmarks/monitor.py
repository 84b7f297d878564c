"""How often a monitor is wrong: `python benchmarks/monitor.py [--seeds 7] [--sizes 1,0.5] [--json]`.

For each seed a bank of 2,000 users is simulated over 33 weeks, a bundle trained on the first 17 (boosting), and the 16
weeks after it watched: each alarm is a false one. Then the changes of `watching.changes` are planted for two weeks
each, five in one log with a quiet week between: each must be found in its weeks, in a statistic that tells it. --sizes:
how large, in times of what is stated there. About a minute a seed and size on one core.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from watching.changes import CHANGES, SCORE_CHANGE, Change

from fraud.bundle import Bundle
from fraud.config import Config, load_config
from fraud.instants import instant_us
from fraud.judging import train
from fraud.logs import read_log
from fraud.monitoring.weekly import WEEK_US
from pipelines.console import Screen
from pipelines.monitor.run import watch
from pipelines.monitor.watched import Watched
from pipelines.simulate import simulate

USERS, WEEKS = 2_000, 33
_SPLIT = (
    "model.name=boosting",
    "split.train_until=2025-04-14T00:00:00Z",
    "split.valid_until=2025-05-05T00:00:00Z",
    "split.as_of=2025-05-26T00:00:00Z",
)
_REFERENCE_WEEKS = 17  # from 6 January to 5 May
_LASTS_WEEKS = 2  # how long a change lasts: it must be found in that time
_SLOTS = 5  # changes in one log
_ODDS = 1.5


class Planted(NamedTuple):
    """A change and what the monitor said: found: in time and in the right statistic; text: its first line."""

    change: str
    size: float
    week: int
    is_found: bool
    text: str


def main() -> None:
    """Print how many quiet weeks raised an alarm and which changes were found, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=7)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--sizes", default="1")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    sizes = [float(text) for text in arguments.sizes.split(",")]
    n_quiet = 0
    false: list[str] = []
    planted: list[Planted] = []
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
        with tempfile.TemporaryDirectory() as folder:
            bank = Bank(Path(folder), seed)
            quiet = bank.watched(bank.bundle, bank.events)
            n_quiet += len(quiet.starts_us_W)
            false += [alarm.text for alarm in quiet.alarms]
            planted += [one for size in sizes for one in bank.planted(size)]
        missed = [f"{one.size:g} x {one.change} (week {one.week}: {one.text})" for one in planted if not one.is_found]
        sys.stderr.write(f"seed {seed}: {len(false)} false alarms in {n_quiet} weeks; {len(planted) - len(missed)} of ")
        sys.stderr.write(f"{len(planted)} changes found; missed: {missed}\n")
    document = _document(n_quiet, false, planted)
    sys.stdout.write(json.dumps(document, indent=1) if arguments.json else _said(document))
    sys.stdout.write("\n")


class Bank:
    """A simulated bank, a bundle trained on its first weeks, and the weeks after it."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.rng = folder, np.random.default_rng(seed)
        simulate(folder / "log", users=USERS, days=7 * WEEKS, seed=50_000 + seed, fraud_rate=0.03)
        config = load_config(folder / "log" / "config.toml", _SPLIT)
        with closing(read_log(config)) as log:
            self.bundle = train(log, config, folder / "bundle")
        self.config: Config = load_config(folder / "log" / "config.toml")
        self.from_us = instant_us("valid_until", "2025-05-05T00:00:00Z")
        self.events = pq.read_table(folder / "log" / "events.parquet")

    def watched(self, bundle: Bundle, events: pa.Table) -> Watched:
        """Return what a monitor says of the weeks after the reference."""
        path = self.folder / "watched.parquet"
        pq.write_table(events, path)
        until_us = self.from_us + (WEEKS - _REFERENCE_WEEKS) * WEEK_US
        return watch(
            bundle, self.config, from_us=None, until_us=until_us, screen=Screen(as_json=True), events=str(path)
        )

    def planted(self, size: float) -> list[Planted]:
        """Return of every change whether it was found, each planted for two weeks with a quiet one after it."""
        order = [CHANGES[c] for c in self.rng.permutation(len(CHANGES))]
        # Amounts in cents are in every later mean of a user's own past: nothing is planted after them.
        order.sort(key=lambda change: change.lasts)
        planted: list[Planted] = []
        for first in range(0, len(order), _SLOTS):
            together = order[first : first + _SLOTS]
            events = self.events
            for slot, change in enumerate(together):
                events = self._with(events, change, slot, size)
            watched = self.watched(self.bundle, events)
            planted += [_judged(watched, change, slot, size) for slot, change in enumerate(together)]
        watched = self.watched(_with_odds(self.bundle, _ODDS**size), self.events)
        return [*planted, _judged(watched, SCORE_CHANGE, 0, size)]

    def _with(self, events: pa.Table, change: Change, slot: int, size: float) -> pa.Table:
        from_us = self.from_us + _week_of(slot) * WEEK_US
        time_us_N = events["ts"].cast(pa.int64()).to_numpy()
        is_here_N = (time_us_N >= from_us) & (time_us_N < from_us + _LASTS_WEEKS * WEEK_US)
        changed = change.plant(events.filter(pa.array(is_here_N)), self.rng, size)
        return pa.concat_tables([events.filter(pa.array(~is_here_N)), changed])


def _week_of(slot: int) -> int:
    return 1 + (_LASTS_WEEKS + 1) * slot


def _judged(watched: Watched, change: Change, slot: int, size: float) -> Planted:
    weeks = slice(_week_of(slot), _week_of(slot) + _LASTS_WEEKS)
    is_found = any(one.is_off_W[weeks].any() for one in watched.judged.series if one.statistic in change.statistics)
    start_us = int(watched.starts_us_W[weeks.start])
    said = next((alarm.text for alarm in watched.alarms if alarm.onset_us == start_us), "no alarm")
    return Planted(change.name, size, weeks.start, is_found, said)


def _with_odds(bundle: Bundle, times: float) -> Bundle:
    calibration = bundle.scorer.calibration
    changed = replace(calibration, shift=calibration.shift + float(np.log(times)))
    return replace(bundle, scorer=replace(bundle.scorer, calibration=changed))


def _document(n_quiet: int, false: list[str], planted: list[Planted]) -> dict[str, Any]:  # Any: JSON
    by_size: dict[str, Any] = {}  # Any: JSON
    for size in dict.fromkeys(one.size for one in planted):
        those = [one for one in planted if one.size == size]
        n_planted, n_found = Counter(one.change for one in those), Counter(o.change for o in those if o.is_found)
        by_size[f"{size:g}"] = {
            "planted": len(those),
            "found": sum(n_found.values()),
            "by_change": {name: {"found": n_found[name], "planted": n} for name, n in n_planted.items()},
            "missed": [one._asdict() for one in those if not one.is_found],
        }
    return {"quiet_weeks": n_quiet, "false_alarms": len(false), "false_alarm_texts": false, "sizes": by_size}


def _said(document: dict[str, Any]) -> str:  # Any: JSON
    lines = [f"{document['false_alarms']} false alarms in {document['quiet_weeks']} quiet weeks"]
    for size, one in document["sizes"].items():
        lines.append(f"{one['found']} of {one['planted']} changes of {size} times the stated size found in two weeks")
        lines += [f"  {few['found']} of {few['planted']}  {name}" for name, few in one["by_change"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
