"""What a monitor saw: the weeks of a log against a bundle's reference, and the alarms they raise."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fraud.events import IntArray
from fraud.instants import instant_text
from fraud.monitoring.drift import Judged, Series
from fraud.monitoring.reference import Reference
from fraud.monitoring.weekly import WEEK_US, Weekly

Json = dict[str, Any]  # Any: JSON


class Finding(NamedTuple):
    """One figure that is off: what it was in its worst week, what was expected, and from where to where would pass."""

    statistic: str
    cell: tuple[str, ...]
    text: str
    observed: float
    expected: float
    low: float
    high: float
    p: float

    def to_json(self) -> Json:
        """Return the finding as JSON; what does not exist is null."""
        tree = self._asdict() | {"cell": list(self.cell)}
        return {n: None if isinstance(v, float) and not np.isfinite(v) else v for n, v in tree.items()}


class Alarm(NamedTuple):
    """A change. onset_us: the start of the week in which it began; found_us: the end of the week that showed it, when a
    weekly look raises it; last_us: the end of the last week that is off. text: one line. said: each sentence of it, the
    likely cause first; pictured: the figure that each of them is clearest in. findings: all figures that are off.
    is_standing: the newest week shows it, or the newest that is known where its figures come late. when: that in words,
    with the days; `text` begins with it."""

    onset_us: int
    found_us: int
    last_us: int
    is_standing: bool
    when: str
    text: str
    said: tuple[str, ...]
    pictured: tuple[Series, ...]
    findings: tuple[Finding, ...]


class Watched(NamedTuple):
    """What a monitor saw of the weeks [W] that end at until_us."""

    alarms: tuple[Alarm, ...]
    starts_us_W: IntArray
    until_us: int
    judged: Judged
    reference: Reference
    inputs: Weekly
    scores: Weekly

    @property
    def new_alarms(self) -> tuple[Alarm, ...]:
        """Return the alarms that the newest week raised: those that a look a week ago had not seen."""
        return tuple(alarm for alarm in self.alarms if alarm.found_us > self.until_us - WEEK_US)

    @property
    def standing_alarms(self) -> tuple[Alarm, ...]:
        """Return the alarms that the newest week shows, or the newest that is known where figures come late."""
        return tuple(alarm for alarm in self.alarms if alarm.is_standing)

    def weeks_json(self) -> list[Json]:
        """Return the weeks: how much there was, how many figures are off, the smallest p, all tests considered."""
        off_W = np.sum([one.is_off_W for one in self.judged.series], axis=0)
        alerted = self.scores.shares["alert"]
        return [
            {
                "start": instant_text(int(start_us)),
                "events": int(self.inputs.volumes["events"][w]),
                "users": int(self.inputs.volumes["users"][w]),
                "scored": int(alerted.n_WC[w, 0]),
                "alert_rate": float(alerted.k_WC[w, 0] / alerted.n_WC[w, 0]) if alerted.n_WC[w, 0] else None,
                "off": int(off_W[w]),
                "p": float(self.judged.p_W[w]),
            }
            for w, start_us in enumerate(self.starts_us_W)
        ]

    def to_json(self) -> Json:
        """Return the alarms and the weeks as JSON."""
        times = ("onset_us", "found_us", "last_us")
        alarms = [
            {name.removesuffix("_us"): instant_text(getattr(alarm, name)) for name in times}
            | {
                "text": alarm.text,
                "said": list(alarm.said),
                "is_standing": alarm.is_standing,
                "findings": [finding.to_json() for finding in alarm.findings],
            }
            for alarm in self.alarms
        ]
        return {
            "alarms": alarms,
            "standing": len(self.standing_alarms),
            "new": len(self.new_alarms),
            "weeks": self.weeks_json(),
            "figures": len(self.judged.series),
            "reference": {
                "until": instant_text(self.reference.until_us),
                "weeks": len(self.reference.inputs.starts_us_W),
            },
        }
