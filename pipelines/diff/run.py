"""`fraud models diff`: what changes, and where, if one bundle takes the place of another: table, JSON or page."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from fraud.bundle import Bundle
from fraud.changes import decision_matrix, movements, outcome
from fraud.config import Config
from fraud.decisions import DECISIONS
from fraud.errors import ConfigError, DataError
from fraud.events import BoolArray
from fraud.instants import instant_text, instant_us
from fraud.logs import Log, check_usable, read_log
from fraud.segments import orders, segments
from fraud.splits import END_OF_TIME_US, time_cuts
from pipelines.console import Screen
from pipelines.diff.event_columns import event_columns
from pipelines.diff.page import diff_page
from pipelines.diff.pictures import diff_pictures
from pipelines.diff.report import Affected, Diff, Event, Named
from pipelines.diff.side_by_side import N_BEFORE, Period, SideBySide, side_by_side
from pipelines.diff.tables import show
from pipelines.files import check_new, written_whole
from pipelines.score import warn_without_labels

Json = dict[str, Any]  # Any: JSON
_MAX_USERS = 50  # listed for each direction
_START_US = 0
_PATHS = ("events", "delimiter")  # of [log]: where a log lies, not how it is read


def diff_bundles(
    a: Bundle,
    b: Bundle,
    config: Config,
    *,
    since: str | None,
    until: str | None,
    html: Path | None,
    overwrite: bool,
    screen: Screen,
) -> Json:
    """Return what changes in the decisions on a log if b takes the place of a, and show it.

    since, until: RFC 3339; which decisions are compared. By default those after what either bundle was fitted to, so
    that neither is judged on what it learned from. Raises ConfigError and DataError.
    """
    started = time.monotonic()
    if html is not None:
        check_new(html, overwrite=overwrite)
    for name, bundle in (("A", a), ("B", b)):
        _check_reads_alike(name, bundle, config)
    with closing(read_log(config)) as log:
        check_usable(log)
        if not log.n_events:
            raise DataError(f"{config.log.events}: the log holds no row; there is nothing to decide on")
        warn_without_labels(config, screen)
        period, limits = _period(a, b, config, log, since, until)
        with screen.progress() as advance:
            found = side_by_side(
                a.scorer, b.scorer, log, config, period, progress=lambda done, whole: advance("score", done, whole)
            )
        newest_us = int(log.time_us.max())
    if not len(found.sides.user_D):
        raise DataError(
            f"no event on which both decide from {_told(period.since_us)} to {_told(period.until_us)}; the log ends at "
            f"{instant_text(newest_us)}: --since and --until choose another period"
        )
    report = _report(a, b, found, config, period, (*limits, *_limits(found)))
    document = report.to_json()
    if html is not None:
        with written_whole(html) as aside:
            aside.write_text(diff_page(report, diff_pictures(report, found, a, b)), encoding="utf-8")
        document["html"] = str(html)
    document["seconds"] = round(time.monotonic() - started, 3)
    show(report, screen)
    if html is not None:
        screen.say(f"page -> {html}")
    return document


def _check_reads_alike(name: str, bundle: Bundle, config: Config) -> None:
    """Raise ConfigError where a bundle was made for a log that is read in another way; sessions may differ."""
    if _reading(bundle.scorer.config) != _reading(config):
        raise ConfigError(
            f"{name} ({bundle.version}) was made for another [log] or [fields] than this configuration declares; see "
            f"{bundle.path / 'config.toml'}"
        )


def _reading(config: Config) -> Mapping[str, Any]:  # Any: settings
    """Return what of the configuration shapes how the rows of a log are read."""
    settings = {f"log.{name}": value for name, value in asdict(config.log).items() if name not in _PATHS}
    return settings | {f"fields.{name}": value for name, value in asdict(config.fields).items() if name != "key_types"}


def _period(
    a: Bundle, b: Bundle, config: Config, log: Log, since: str | None, until: str | None
) -> tuple[Period, list[str]]:
    """Return which decisions are compared, and what a reader must know of that."""
    if not config.log.has_clock:
        if since or until:
            raise ConfigError("--since, --until: the log has positions and no clock")
        return Period(_START_US, END_OF_TIME_US), ["The whole log is compared, what A and B learned from included."]
    learned_us = [learned for bundle in (a, b) if (learned := _learned_until_us(bundle, config, log)) is not None]
    is_known = len(learned_us) == 2
    default_us = max(learned_us) if is_known else _START_US
    since_us = default_us if since is None else instant_us("--since", since)
    until_us = END_OF_TIME_US if until is None else instant_us("--until", until)
    if until_us <= since_us:
        raise ConfigError(f"--until {until}: expected a time after the start of the period, {_told(since_us)}")
    limits: list[str] = []
    if not is_known:
        limits.append("Users, not times, were split for training: the period holds users that A or B learned from.")
    elif since_us < default_us:
        limits.append(
            f"A or B learned from events until {instant_text(default_us)}; before that both look better than they are."
        )
    return Period(since_us, until_us), limits


def _learned_until_us(bundle: Bundle, config: Config, log: Log) -> int | None:
    """Return the end of the validation period that the bundle was made with; None where users were split."""
    periods = bundle.metrics.get("periods")
    if isinstance(periods, dict):
        return instant_us("metrics.json: periods.valid_until", periods["valid_until"])
    if bundle.scorer.config.split.by != "time" or config.split.by != "time":
        return None
    return time_cuts(config.split, log.time_us).valid_until_us


def _limits(found: SideBySide) -> list[str]:
    limits: list[str] = []
    if found.known is None:
        limits.append("Without [labels] nobody can say which changes are for the better.")
    if found.n_unsettled:
        limits.append(
            f"{found.n_unsettled:,} judged decisions are younger than labels.delay: not all their frauds may be known."
        )
    if found.n_only_a or found.n_only_b:
        limits.append(
            f"Left out: {found.n_only_a:,} events on which only A decides and {found.n_only_b:,} on which only B does."
        )
    return limits


def _report(a: Bundle, b: Bundle, found: SideBySide, config: Config, period: Period, limits: tuple[str, ...]) -> Diff:
    sides, facts, known = found.sides, found.facts, found.known
    change_D = sides.change_D
    before_DL = facts.before_B.codes_N.reshape(-1, N_BEFORE)
    types = [str(name) for name in facts.before_B.values]
    seed = config.training.seed
    return Diff(
        a=Named(a.manifest.name, a.version),
        b=Named(b.manifest.name, b.version),
        since=None if period.since_us == _START_US else instant_text(period.since_us),
        until=None if period.until_us == END_OF_TIME_US else instant_text(period.until_us),
        n=len(change_D),
        n_users=len(np.unique(sides.user_D)),
        n_stricter=int((change_D > 0).sum()),
        n_milder=int((change_D < 0).sum()),
        n_changed_users=len(np.unique(sides.user_D[change_D != 0])),
        matrix=decision_matrix(sides),
        movements=movements(sides),
        outcome=None if known is None else outcome(sides, known, costs=config.policy.costs, seed=seed),
        alert_budget=config.policy.alert_budget,
        segments=segments(event_columns(sides, facts, config), sides),
        orders=orders(before_DL, types, change_D != 0, sides.user_D),
        stricter=_affected(found, change_D > 0, has_clock=config.log.has_clock),
        milder=_affected(found, change_D < 0, has_clock=config.log.has_clock),
        limits=limits,
    )


def _affected(found: SideBySide, chosen_D: BoolArray, *, has_clock: bool) -> tuple[Affected, ...]:
    """Return the users of these events: those with the most known frauds first, then with the largest amounts."""
    sides, rows = found.sides, np.flatnonzero(chosen_D)
    users_U, user_R = np.unique(sides.user_D[rows], return_inverse=True)
    amount_R = np.zeros(len(rows)) if sides.amount_D is None else np.nan_to_num(sides.amount_D[rows])
    fraud_R = np.zeros(len(rows)) if found.known is None else (found.known.label_D * found.known.judged_D)[rows]
    moved_R = np.abs(sides.b.score_D[rows] - sides.a.score_D[rows])
    n_U, amount_U, frauds_U = (
        np.bincount(user_R, weights=of, minlength=len(users_U)) for of in (None, amount_R, fraud_R)
    )
    # The event that stands for each user: a fraud before others, then the largest amount, then the largest move.
    ranked = np.lexsort((-moved_R, -amount_R, -fraud_R, user_R))
    first_U = ranked[np.searchsorted(user_R[ranked], np.arange(len(users_U)))]
    order = np.lexsort((-moved_R[first_U], -n_U, -amount_U, -frauds_U))[:_MAX_USERS]
    return tuple(
        Affected(
            user_id=str(found.users[users_U[u]]),
            changed=int(n_U[u]),
            amount=None if sides.amount_D is None else float(amount_U[u]),
            frauds=int(frauds_U[u]),
            event=_event(found, int(rows[first_U[u]]), has_clock=has_clock),
        )
        for u in order.tolist()
    )


def _event(found: SideBySide, row: int, *, has_clock: bool) -> Event:
    sides, facts, known = found.sides, found.facts, found.known
    amount = None if sides.amount_D is None or np.isnan(sides.amount_D[row]) else float(sides.amount_D[row])
    moment = datetime.fromtimestamp(int(facts.time_us_D[row]) / 1e6, UTC)
    return Event(
        event_id=facts.event_id[row].as_py(),
        ts=moment.isoformat(timespec="seconds") if has_clock else None,
        type=str(facts.type.values[facts.type.codes_N[row]]),
        amount=amount,
        decision_a=DECISIONS[sides.a.decision_D[row]],
        decision_b=DECISIONS[sides.b.decision_D[row]],
        score_a=float(sides.a.score_D[row]),
        score_b=float(sides.b.score_D[row]),
        is_fraud=None if known is None or not known.judged_D[row] else bool(known.label_D[row]),
    )


def _told(time_us: int) -> str:
    if time_us in (_START_US, END_OF_TIME_US):
        return "the start" if time_us == _START_US else "the end"
    return instant_text(time_us)
