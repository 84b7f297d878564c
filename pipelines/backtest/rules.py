"""When a rule of a backtest retrains: never, by the calendar, or while the monitor raises an alarm."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Protocol

from fraud.bundle import Bundle
from fraud.config import Config
from fraud.errors import ConfigError
from fraud.monitoring.weekly import WEEK_US
from pipelines.console import Screen
from pipelines.monitor.run import ShortReference, check_watchable, watch

NEVER, WEEKLY, MONTHLY, ALARM = "never", "weekly", "monthly", "alarm"
SPOKEN = {
    NEVER: "never retraining",
    WEEKLY: "retraining weekly",
    MONTHLY: "retraining monthly",
    ALARM: "retraining on alarm",
}


class Watch(Protocol):
    """What tells the alarms that a look at a champion's log raises at a time, in words. It may raise ShortReference."""

    def __call__(self, champion: Bundle, config: Config, until_us: int, screen: Screen) -> tuple[str, ...]: ...


def check_rules(rules: Sequence[str]) -> None:
    """Raise ConfigError for no rule, one that nobody knows, or one that stands twice."""
    unknown = [rule for rule in rules if rule not in SPOKEN]
    if unknown or not rules or len(set(rules)) < len(rules):
        raise ConfigError(f"--rules {','.join(rules)!r}: expected some of {', '.join(SPOKEN)}, each once")


def check_watched(first: Bundle) -> None:
    """Raise ConfigError where the rule "alarm" could not watch the first model of all rules."""
    try:
        check_watchable(first)
    except ShortReference as error:
        raise ConfigError(
            f"the rule {ALARM} cannot watch the first model: {error}. Give a later --from, or --rules without {ALARM}"
        ) from None


def is_due(rule: str, at_us: int, *, start_us: int, every_us: int) -> bool:
    """Return True where the calendar says that a rule retrains at a step: the first of a week since the start, the
    first of a month (UTC)."""
    before_us = at_us - every_us
    if rule == WEEKLY:
        return (at_us - start_us) // WEEK_US > (before_us - start_us) // WEEK_US
    return rule == MONTHLY and _month(at_us) != _month(before_us)


def newest_alarms(champion: Bundle, config: Config, until_us: int, screen: Screen) -> tuple[str, ...]:
    """Return what the monitor says of the week that ends at a time.

    Of that week alone: a change that lasts is heard every week, until a champion knows it.
    """
    watched = watch(champion, config, from_us=until_us - WEEK_US, until_us=until_us, screen=screen)
    return tuple(alarm.text for alarm in watched.alarms)


def _month(time_us: int) -> tuple[int, int]:
    day = datetime.fromtimestamp(time_us // 10**6, UTC)
    return day.year, day.month
