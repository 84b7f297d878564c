"""What a monitor saw as a file of metrics that Prometheus' textfile collector reads, written whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fraud.monitoring.weekly import WEEK_US
from pipelines.files import written_whole
from pipelines.monitor.watched import Watched

_PREFIX = "fraud_monitor"
_HELP = {
    "standing_alarms": "Changes that the newest week shows, or the newest that is known where labels come late.",
    "new_alarms": "Changes that the newest week was the first to show.",
    "week_end_timestamp_seconds": "The end of the newest week that was judged.",
    "smallest_p": "The smallest p of the newest week, all its tests considered.",
    "spreads_off": "How many of its own spreads a figure of the newest week lies off its reference.",
    "is_off": "1 where a figure of the newest week is off, all tests considered.",
    "observed": "A figure of the newest week: a share, a mean, a volume.",
    "expected": "The same in the reference.",
}


def write_metrics(watched: Watched, version: str, path: Path) -> None:
    """Write the newest week of a watch to a .prom file."""
    with written_whole(path) as aside:
        aside.write_text(metrics_text(watched, version), encoding="utf-8")


def metrics_text(watched: Watched, version: str) -> str:
    """Return the newest week in Prometheus' text format 0.0.4; figures of which nothing was counted are left out."""
    bundle = f'model_version="{_escaped(version)}"'
    lines: dict[str, list[str]] = {name: [] for name in _HELP}
    lines["standing_alarms"].append(f"{{{bundle}}} {len(watched.standing_alarms)}")
    lines["new_alarms"].append(f"{{{bundle}}} {len(watched.new_alarms)}")
    lines["week_end_timestamp_seconds"].append(f"{{{bundle}}} {(int(watched.starts_us_W[-1]) + WEEK_US) // 10**6}")
    lines["smallest_p"].append(f"{{{bundle}}} {watched.judged.p_W[-1]:.6g}")
    for one in watched.judged.series:
        if np.isnan(one.observed_W[-1]):
            continue
        labels = f'statistic="{_escaped(one.statistic)}",cell="{_escaped(" > ".join(one.cell))}",kind="{one.kind}"'
        for name, value in (
            ("spreads_off", one.t_W[-1]),
            ("is_off", float(one.is_off_W[-1])),
            ("observed", one.observed_W[-1]),
            ("expected", one.expected),
        ):
            lines[name].append(f"{{{bundle},{labels}}} {value:.6g}")
    return "".join(
        f"# HELP {_PREFIX}_{name} {text}\n# TYPE {_PREFIX}_{name} gauge\n"
        + "".join(f"{_PREFIX}_{name}{line}\n" for line in lines[name])
        for name, text in _HELP.items()
    )


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
