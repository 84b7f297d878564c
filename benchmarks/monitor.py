"""How often a monitor is wrong: `python -m benchmarks.monitor [--seeds 7] [--sizes 1,0.5] [--json]`.

For each seed a bank of 3,000 users is simulated over 40 weeks, a bundle trained on the first 17 (boosting), and the 23
weeks after it watched: each alarm is a false one. Then changes of the sizes in `planted_changes` are planted, one at a
time, from a random week on: each must be found in that week or the next, and told in the right statistic. --sizes: how
large, in times of what is stated there. About five minutes a seed and size on one core.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq

from benchmarks.planted_changes import CHANGES, SCORE_CHANGE, Change
from fraud.bundle import Bundle
from fraud.config import Config, load_config
from fraud.instants import instant_us
from fraud.judging import train
from fraud.logs import read_log
from fraud.weekly import WEEK_US
from pipelines.console import Screen
from pipelines.monitor import Alarm, watch
from pipelines.simulate import simulate

USERS, WEEKS = 3_000, 40
_SPLIT = (
    "model.name=boosting",
    "split.train_until=2025-04-14T00:00:00Z",
    "split.valid_until=2025-05-05T00:00:00Z",
    "split.as_of=2025-05-26T00:00:00Z",
)
_REFERENCE_WEEKS = 17  # from 6 January to 5 May
_LATE_WEEKS = 2  # a change counts as found in its own week or the next
_ODDS = 1.2


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
            quiet_weeks, quiet_alarms = bank.quiet()
            n_quiet += quiet_weeks
            false += [alarm.text for alarm in quiet_alarms]
            planted += [bank.planted(change, size) for size in sizes for change in CHANGES]
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
        self.bundle = train(read_log(config), config, folder / "bundle")
        self.config: Config = load_config(folder / "log" / "config.toml")
        self.from_us = instant_us("valid_until", "2025-05-05T00:00:00Z")
        self.events = pq.read_table(folder / "log" / "events.parquet")

    def quiet(self) -> tuple[int, list[Alarm]]:
        """Return how many weeks nothing happened in, and the alarms they raised."""
        until_us = self.from_us + (WEEKS - _REFERENCE_WEEKS) * WEEK_US
        seen = watch(self.bundle, self.config, from_us=None, until_us=until_us, screen=Screen(as_json=True))
        return len(seen.starts_us_W), list(seen.alarms)

    def planted(self, change: Change, size: float) -> Planted:
        """Return whether a change was found that begins with a random week."""
        week = int(self.rng.integers(0, WEEKS - _REFERENCE_WEEKS - _LATE_WEEKS))
        from_us = self.from_us + week * WEEK_US
        until_us = from_us + _LATE_WEEKS * WEEK_US
        path = self.folder / "changed.parquet"
        pq.write_table(change.plant(self.events, from_us, self.rng, size), path)
        bundle = _with_odds(self.bundle, _ODDS**size) if change is SCORE_CHANGE else self.bundle
        screen = Screen(as_json=True)
        seen = watch(bundle, self.config, from_us=from_us, until_us=until_us, screen=screen, events=str(path))
        is_found = any(
            finding.statistic in change.statistics
            for alarm in seen.alarms
            if alarm.onset_us == from_us
            for finding in alarm.findings
        )
        return Planted(change.name, size, week, is_found, seen.alarms[0].text if seen.alarms else "no alarm")


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
