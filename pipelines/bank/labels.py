"""What the simulated bank comes to know of its fraud, and when: some never, some wrongly, all of it late.

It knows the truth of a log and draws reports from it; it knows nothing of sessions or models.
"""

from dataclasses import dataclass

import numpy as np

from pipelines.bank.chain import IS_DECISION_V, Floats, Ints
from pipelines.bank.log import BankLog
from pipelines.bank.routines import ALL_STORIES

P_MISSED = 0.08  # of the frauds nobody ever reports
FALSE_PER_FRAUD = 0.03  # honest decision events reported as fraud, per fraud
# Days from the event to the report: log-normal, its median by story; None: fraud without a story, and false reports.
_MEDIAN_DAYS = {"victim": 6.0, "mule": 8.0, "takeover": 3.0, "support": 5.0, None: 9.0}
_SPREAD = 0.5
_DAY_US = 86_400_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Reports:
    """L reports of fraud: which event (position in the log), and when the bank knew (microseconds since 1970)."""

    event_L: Ints
    known_us_L: Ints


def observed_reports(log: BankLog, *, seed: int) -> Reports:
    """Return the reports in the order of their events. An honest decision event has none, but for the false ones."""
    rng = np.random.default_rng(np.random.SeedSequence(seed).spawn(4)[3])  # simulate_bank takes the first three
    n_events = log.user_N.size
    is_honest_N = IS_DECISION_V[log.type_N] & ~log.is_fraud_N
    p_false = FALSE_PER_FRAUD * log.is_fraud_N.sum() / max(int(is_honest_N.sum()), 1)
    draw_N = rng.random(n_events)
    event_L = np.flatnonzero((log.is_fraud_N & (draw_N >= P_MISSED)) | (is_honest_N & (draw_N < p_false)))
    median_days_L = _median_days(log, event_L)
    delay_us_L = median_days_L * np.exp(_SPREAD * rng.standard_normal(event_L.size)) * _DAY_US
    known_us_L = log.time_us_N[event_L] + np.round(delay_us_L / 1e6).astype(np.int64) * 1_000_000
    return Reports(event_L=event_L, known_us_L=known_us_L)


def _median_days(log: BankLog, event_L: Ints) -> Floats:
    by_story = np.array([*(_MEDIAN_DAYS[story] for story in ALL_STORIES), _MEDIAN_DAYS[None]])
    story_L = np.where(log.is_fraud_N[event_L], log.story_N[event_L], -1)  # -1: the last
    return by_story[story_L]
