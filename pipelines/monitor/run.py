"""`fraud monitor`: what has changed in a log since a bundle was trained, and how the bundle does where labels are in.

A week is looked at as it would have been when it ended; a change that lasts is one alarm. The statistics are
`fraud.monitoring.drift`, the words `fraud.monitoring.attribution`; here a log is read, scored and counted.
"""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from fraud.bundle import Bundle, load_bundle
from fraud.config import Config, SplitConfig, state_hash
from fraud.errors import ConfigError, DataError
from fraud.events import IntArray
from fraud.instants import as_of, instant_text, instant_us
from fraud.logs import check_usable, read_log
from fraud.monitoring.alarms import Change, Run, changes
from fraud.monitoring.attribution import Observed, headline, run_text, sentences, spoken_time
from fraud.monitoring.drift import Series, judge_weeks
from fraud.monitoring.outcomes import outcome_series
from fraud.monitoring.reference import read_reference
from fraud.monitoring.weekly import WEEK_US, week_starts
from pipelines.console import Screen
from pipelines.files import check_new, written_whole
from pipelines.monitor.watched import Alarm, Finding, Watched
from pipelines.monitor.watched_log import count_log
from pipelines.score import log_config, warn_without_labels

Json = dict[str, Any]  # Any: JSON
FALSE_ALARMS = 0.02
_FEWEST_REFERENCE_WEEKS = 3
_HOUR_US = 3_600_000_000
_SHOWN_WEEKS, _SHOWN_SENTENCES = 12, 6


class ShortReference(ConfigError):
    """A bundle has a reference of too few weeks: nobody knows how much weeks differ."""


def check_watchable(bundle: Bundle) -> None:
    """Raise ShortReference, or BundleError for a bundle without figures by week."""
    reference = read_reference(bundle.reference, bundle.scorer.model.vocabulary, bundle.scorer.config)
    n_weeks = len(reference.inputs.starts_us_W)
    if n_weeks < _FEWEST_REFERENCE_WEEKS:
        raise ShortReference(
            f"bundle {bundle.version}: its reference has {n_weeks} whole {'week' if n_weeks == 1 else 'weeks'}; "
            f"expected at least {_FEWEST_REFERENCE_WEEKS}, to know how much weeks differ"
        )


def watch(
    bundle: Bundle,
    config: Config,
    *,
    from_us: int | None,
    until_us: int | None,
    false_alarms: float = FALSE_ALARMS,
    screen: Screen,
    events: str | None = None,
) -> Watched:
    """Return what changed in the log of a configuration, in the whole weeks that end at until_us.

    from_us: where the first week may begin, by default where the bundle's reference ends. until_us: by default
    split.as_of, else the first whole hour after the newest event; nothing later is read, and no label that came later.
    false_alarms: the chance that a quiet week raises an alarm. events: another log than the configuration's.

    Raises ConfigError for a bundle of another [log], [fields] or [sessions], what `check_watchable` raises, and
    DataError for a log with no whole week to judge.
    """
    if state_hash(config) != state_hash(bundle.scorer.config):
        raise ConfigError(
            f"bundle {bundle.version} was made for another [log], [fields] or [sessions] than this configuration "
            "declares; see its config.toml"
        )
    check_watchable(bundle)
    reference = read_reference(bundle.reference, bundle.scorer.model.vocabulary, bundle.scorer.config)
    until_us = as_of(config.split) if until_us is None else until_us
    split = SplitConfig() if until_us is None else SplitConfig(as_of=instant_text(until_us))
    config = replace(config, split=split)
    with closing(read_log(config, events=events)) as log:
        check_usable(log)
        if log.n_events == 0:
            raise DataError("the log holds no event to watch")
        until_us = _next_hour_us(int(log.time_us.max())) if until_us is None else until_us
        from_us = reference.until_us if from_us is None else from_us
        starts_us_W = week_starts(from_us, until_us)
        if len(starts_us_W) == 0:
            raise DataError(
                f"the log has no whole week between {instant_text(from_us)} and {instant_text(until_us)} "
                "(by default it begins where the bundle's reference ends); expected seven days at least"
            )
        counted = count_log(bundle.scorer, log, config, reference, starts_us_W, until_us, screen)
    pairs = [(reference.inputs, counted.inputs)]
    if len(reference.scores.starts_us_W):
        pairs.append((reference.scores, counted.scores))

    def performance(level: float) -> tuple[Series, ...]:
        if config.labels is None:
            return ()
        is_settled_W = starts_us_W + WEEK_US + (config.labels.delay or 0) <= until_us
        budget, promoted = bundle.scorer.policy.alert_budget, bundle.metrics["test"]
        return outcome_series(counted.outcomes, promoted, is_settled_W=is_settled_W, budget=budget, level=level)

    judged = judge_weeks(pairs, level=false_alarms, others=performance)
    delay_us = 0 if config.labels is None else config.labels.delay or 0
    late: dict[str, int] = dict.fromkeys(("fraud", "performance"), -(-delay_us // WEEK_US))
    observed = Observed(reference.inputs, counted.inputs, counted.novel)
    alarms = tuple(_alarm(change, observed, starts_us_W) for change in changes(judged.series, late))
    return Watched(alarms, starts_us_W, until_us, judged, reference, counted.inputs, counted.scores)


def _next_hour_us(time_us: int) -> int:
    return (time_us // _HOUR_US + 1) * _HOUR_US


def _alarm(change: Change, observed: Observed, starts_us_W: IntArray) -> Alarm:
    said = sentences(change, observed)
    return Alarm(
        onset_us=int(starts_us_W[change.onset]),
        found_us=int(starts_us_W[0]) + (change.found + 1) * WEEK_US,
        last_us=int(starts_us_W[change.last]) + WEEK_US,
        is_standing=change.is_standing,
        when=spoken_time(change, said, starts_us_W),
        text=headline(change, said, starts_us_W),
        said=tuple(sentence.text for sentence in said),
        pictured=tuple(sentence.run.series for sentence in said),
        findings=tuple(_finding(run, observed) for run in change.runs),
    )


def _finding(run: Run, observed: Observed) -> Finding:
    series, week = run.series, run.worst
    return Finding(
        statistic=series.statistic,
        cell=series.cell,
        text=run_text(run, observed),
        observed=float(series.observed_W[week]),
        expected=series.expected,
        low=float(series.low_W[week]),
        high=float(series.high_W[week]),
        p=float(series.p_W[week]),
    )


def monitor(
    bundle: Path,
    events: str,
    *,
    config: Config | None,
    since: str | None = None,
    until: str | None = None,
    false_alarms: float = FALSE_ALARMS,
    html: Path | None = None,
    prometheus: Path | None = None,
    overwrite: bool = False,
    screen: Screen,
) -> Json:
    """Return what changed in a log since a bundle's reference: alarms, and the newest weeks one by one.

    config: where the labels are; without it frauds are unknown and nothing is said of performance. since, until: RFC
    3339. html, prometheus: files to write. `standing` counts the alarms that are not over: those are what wants a
    person. Raises what `watch` raises, and ConfigError for an output that exists or a time nobody can read.
    """
    started = time.monotonic()
    if html is not None:
        check_new(html, overwrite=overwrite)
    if not 0 < false_alarms < 1:
        raise ConfigError(f"--false-alarms {false_alarms}: expected a share of the quiet weeks between 0 and 1")
    loaded = load_bundle(bundle)
    read_with = log_config(loaded, config)
    warn_without_labels(read_with, screen)
    watched = watch(
        loaded,
        read_with,
        from_us=None if since is None else instant_us("--since", since),
        until_us=None if until is None else instant_us("--until", until),
        false_alarms=false_alarms,
        screen=screen,
        events=events,
    )
    document = watched.to_json() | {"model_version": loaded.version, "false_alarms": false_alarms}
    if html is not None:
        from pipelines.monitor.page import monitor_page

        with written_whole(html) as aside:
            aside.write_text(monitor_page(watched, loaded.version, false_alarms=false_alarms), encoding="utf-8")
        document["html"] = str(html)
    if prometheus is not None:
        from pipelines.monitor.metrics import write_metrics

        write_metrics(watched, loaded.version, prometheus)
        document["prometheus"] = str(prometheus)
    document["seconds"] = round(time.monotonic() - started, 3)
    _show(watched, screen)
    return document


def _show(watched: Watched, screen: Screen) -> None:
    """Print the newest weeks as a table, and the alarms in words."""
    rows = [
        [
            week["start"][:10],
            f"{week['events']:,}",
            f"{week['users']:,}",
            "-" if week["alert_rate"] is None else f"{100 * week['alert_rate']:.2f} %",
            str(week["off"]) if week["off"] else "",
            f"{week['p']:.2g}",
        ]
        for week in watched.weeks_json()[-_SHOWN_WEEKS:]
    ]
    n_figures = len(watched.judged.series)
    title = f"{n_figures} figures a week, against {len(watched.reference.inputs.starts_us_W)} weeks of reference"
    screen.table(title, ["week of", "events", "users", "alerts", "figures off", "p of the week"], rows)
    if not watched.alarms:
        screen.say("no alarm: no week differs from the reference more than weeks differ from each other")
    elif not watched.standing_alarms:
        screen.say("no alarm stands: what differed from the reference is over")
    for alarm in watched.alarms:
        screen.say(f"ALARM {alarm.text}" if alarm.is_standing else alarm.text)
        for sentence in alarm.said[1:_SHOWN_SENTENCES]:
            screen.say(f"      {sentence}")
