"""A challenger in shadow: scores what the champion scored, after the answer, and counts where they differ.

It must never cost an answer anything. A tick only offers; a thread of its own scores, one offer after the other. What
is offered while requests wait, or while too much lies here already, is dropped and counted: a shadow that falls behind
says less, never later. Its thread has no lower priority of the system: a thread that is put aside while it holds the
interpreter would make every request wait for it.
"""

from __future__ import annotations

import logging
import random
import threading
from collections import deque
from collections.abc import Callable, Hashable, Mapping
from typing import NamedTuple, TypeVar

import numpy as np

from fraud.config import SessionsConfig
from fraud.contexts import context_start
from fraud.decisions import DECISIONS, DecisionArray
from fraud.enrich import Carry, Enriched, enrich
from fraud.errors import DataError, FraudError
from fraud.events import Events, FloatArray, IntArray
from fraud.exact import exact_logits
from fraud.fields import Risk
from fraud.scoring import NO_DECISION, decided, enrich_spec
from service.models import Served
from service.state.store import ShadowRow

MAX_WAITING_EVENTS = 20_000  # context included: some 5 MB
_DAY_US = 86_400 * 10**6
_NO_DECISION = "none"

_log = logging.getLogger(__name__)


class ShadowCounts(NamedTuple):
    """How many offers there were and what became of them, since the start. n_scored_events: events, not offers."""

    n_offered: int
    n_sampled_out: int
    n_dropped: int
    n_failed: int
    n_scored_events: int


class Difference(NamedTuple):
    """How far a challenger's scores of n events are from the champion's: sum and maximum of the distances."""

    n: int
    sum_abs: float
    max_abs: float

    def plus(self, other: Difference) -> Difference:
        """Return both as one."""
        return Difference(self.n + other.n, self.sum_abs + other.sum_abs, max(self.max_abs, other.max_abs))


class _Offer(NamedTuple):
    champion: str
    day: int
    events: Events
    carry: Carry
    risk: Risk
    rows_R: IntArray
    score_R: FloatArray
    decision_R: DecisionArray


_Cell = tuple[int, str, str, str]  # day, champion, its decision, the challenger's
_Key = TypeVar("_Key", bound=Hashable)
# What scoring can raise on a bundle that verified and events that were scored before; counted, and logged once. It must
# not end the thread.
_FAILURES = (FraudError, MemoryError, ArithmeticError, LookupError, RuntimeError, TypeError, ValueError)


class Shadow:
    """A challenger and what is counted of it."""

    def __init__(
        self,
        challenger: Served,
        *,
        rate: float,
        is_busy: Callable[[], bool],
        now_us: Callable[[], int],
        max_waiting_events: int = MAX_WAITING_EVENTS,
        seed: int = 0,
    ) -> None:
        """Take the challenger. rate: the share of ticks it scores. is_busy: True while requests wait.

        now_us: the clock that says which day a difference is counted on.
        """
        self.challenger = challenger
        self._rate, self._is_busy, self._now_us = rate, is_busy, now_us
        self._max_waiting_events = max_waiting_events
        self._chance = random.Random(seed)
        self._changed = threading.Condition()
        self._waiting: deque[_Offer] = deque()
        self._n_waiting_events = 0
        self._is_scoring = False
        self._ends = False
        self._counts = dict.fromkeys(ShadowCounts._fields, 0)
        self._unwritten: dict[_Cell, Difference] = {}
        self._total: dict[tuple[str, str], Difference] = {}
        self._last_failure = ""
        self._thread = threading.Thread(target=self._run, name="shadow", daemon=True)

    def start(self) -> None:
        """Begin to score what is offered."""
        self._thread.start()

    def stop(self) -> None:
        """Score no more; what waits is dropped, what was counted can still be taken."""
        with self._changed:
            self._ends = True
            self._drop_waiting()
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    def fits(self, champion: Served) -> bool:
        """Return True where the challenger reads the same stored state as the champion; nothing is offered else."""
        return self.challenger.bundle.manifest.state_hash == champion.bundle.manifest.state_hash

    def offer(
        self,
        champion: str,
        *,
        events: Events,
        carry: Carry,
        risk: Mapping[str, FloatArray],
        rows_R: IntArray,
        score_R: FloatArray,
        decision_R: DecisionArray,
    ) -> bool:
        """Return True where the challenger will score what the champion (its version) gave the rows of a tick.

        Call it after the answers have left; it costs a few microseconds. events: with the whole context of each row,
        that is from the start of the block before the row's own; carry: the one just before them. risk: float64 [N, R]
        by entity. score_R, decision_R: the champion's. No array may be changed afterwards.
        """
        with self._changed:
            self._counts["n_offered"] += 1
            if self._rate < 1.0 and self._chance.random() >= self._rate:
                self._counts["n_sampled_out"] += 1
                return False
            if self._ends or self._is_busy() or self._n_waiting_events + len(events) > self._max_waiting_events:
                self._counts["n_dropped"] += 1
                return False
            day = self._now_us() // _DAY_US
            self._waiting.append(_Offer(champion, day, events, carry, risk, rows_R, score_R, decision_R))
            self._n_waiting_events += len(events)
            self._changed.notify_all()
        return True

    @property
    def counts(self) -> ShadowCounts:
        """Return what became of the offers so far."""
        with self._changed:
            return ShadowCounts(**self._counts)

    @property
    def differences(self) -> Mapping[tuple[str, str], Difference]:
        """Return the differences since the start by (decision of the champion, decision of the challenger)."""
        with self._changed:
            return dict(self._total)

    def take_rows(self) -> tuple[ShadowRow, ...]:
        """Return what was counted since it was last taken: the caller adds it to the store, or gives it back."""
        with self._changed:
            taken, self._unwritten = self._unwritten, {}
        version = self.challenger.version
        return tuple(
            ShadowRow(day, champion, version, theirs, ours, difference.n, difference.sum_abs)
            for (day, champion, theirs, ours), difference in sorted(taken.items())
        )

    def give_back_rows(self, rows: tuple[ShadowRow, ...]) -> None:
        """Take back what could not be written, so that it is taken again."""
        with self._changed:
            for row in rows:
                cell = (row.day, row.champion, row.decision_champion, row.decision_challenger)
                _add(self._unwritten, cell, Difference(row.n, row.sum_abs_difference, 0.0))

    def wait_until_idle(self, timeout_s: float) -> bool:
        """Return True as soon as nothing waits and nothing is being scored, False after the time."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting and not self._is_scoring, timeout_s)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._is_scoring = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: bool(self._waiting) or self._ends)
                if self._ends:
                    return
                if self._is_busy():
                    self._drop_waiting()
                    continue
                offer = self._waiting.popleft()
                self._n_waiting_events -= len(offer.events)
                self._is_scoring = True
            self._count(offer)

    def _drop_waiting(self) -> None:
        self._counts["n_dropped"] += len(self._waiting)
        self._waiting.clear()
        self._n_waiting_events = 0

    def _count(self, offer: _Offer) -> None:
        try:
            score_R, decision_R = challenger_scores(
                self.challenger, offer.events, offer.carry, offer.risk, offer.rows_R
            )
        except _FAILURES as error:
            with self._changed:
                self._counts["n_failed"] += 1
                is_new, self._last_failure = str(error) != self._last_failure, str(error)
            if is_new:
                _log.warning("shadow failed challenger=%s reason=%s", self.challenger.version, error)
            return
        difference_R = np.abs(score_R - offer.score_R)
        with self._changed:
            self._counts["n_scored_events"] += len(score_R)
            for theirs in np.unique(offer.decision_R).tolist():
                for ours in np.unique(decision_R).tolist():
                    both_R = (offer.decision_R == theirs) & (decision_R == ours)
                    if both_R.any():
                        found = difference_R[both_R]
                        names = _name(theirs), _name(ours)
                        difference = Difference(len(found), float(found.sum()), float(found.max()))
                        _add(self._unwritten, (offer.day, offer.champion, *names), difference)
                        _add(self._total, names, difference)


def challenger_scores(
    challenger: Served, events: Events, carry: Carry, risk: Risk, rows_R: IntArray
) -> tuple[FloatArray, DecisionArray]:
    """Return score float64 [R] and decision int8 [R] that a bundle gives some rows whose contexts are here.

    Raises BundleError where its model cannot read what its vocabulary makes, DataError for a row without its context:
    a score from less would not be the challenger's own.
    """
    scorer = challenger.bundle.scorer
    enriched, _ = enrich(events, carry, enrich_spec(scorer.config))
    _check_contexts(enriched, scorer.config.sessions, rows_R)
    score_R = scorer.calibration.scores(exact_logits(scorer.model, enriched, risk, rows_R))
    score_N = np.zeros(len(events), dtype=np.float64)
    score_N[rows_R] = score_R
    return score_R, decided(scorer, enriched, risk, score_N).decision_N[rows_R]


def _check_contexts(enriched: Enriched, sessions: SessionsConfig, rows_R: IntArray) -> None:
    position_N = enriched.session_position_N if sessions.scope == "session" else enriched.index_N
    position_R = position_N[rows_R]
    first_R = np.repeat(enriched.events.user_starts[:-1], np.diff(enriched.events.user_starts))[rows_R]
    lacks_R = rows_R - (position_R - context_start(position_R, sessions.max_events)) < first_R
    if lacks_R.any():
        raise DataError(f"shadow: {int(lacks_R.sum())} of {len(rows_R)} events were offered without their context")


def _name(decision: int) -> str:
    return _NO_DECISION if decision == NO_DECISION else DECISIONS[decision]


def _add(differences: dict[_Key, Difference], key: _Key, difference: Difference) -> None:
    before = differences.get(key)
    differences[key] = difference if before is None else before.plus(difference)
