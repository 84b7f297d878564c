"""Scores of a few new events of some users, each from what its user did before: the online side of `scoring`.

The same `enrich`, `encode`, features, models and policy as a pass over a whole log, over the rows that are here. What
is kept of a user between events is a carry and, of a recurrent network, two states; all of it can be made again from
the stored rows, so it is never more than a cache. Other models read the rows since the start of the stored block anew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fraud.carries import Carries
from fraud.carry_pool import CarryPool
from fraud.contexts import context_start
from fraud.decisions import DecisionArray
from fraud.enrich import Carry, Enriched, empty_carry, enrich
from fraud.entities import RISK_NAMES, EntityTable, entity_risks
from fraud.events import Events, FloatArray, IntArray
from fraud.exact import exact_logits, member_logits, sequence_positions, tokens_of
from fraud.explain import explain_known
from fraud.reasons import Reason, reasons
from fraud.rows import EventRow, events_of_rows
from fraud.scoring import FusedModel, LogitModel, NetworkModel, Scorer, decided, enrich_spec
from fraud.steps import Stepper
from fraud.tokens import Risk


class Part(NamedTuple):
    """One user's part in a tick.

    rows: the user's events in order, after what the carry in `slot` knows. new: places in `rows` of those to be scored.
    known_risk: float64 [old rows, E, R], the risk of the others as it was when they were scored. step_from: the first
    row that the states in `slot` have not seen.
    """

    user_id: str
    slot: int
    rows: Sequence[EventRow]
    new: tuple[int, ...]
    known_risk: FloatArray
    step_from: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveScores:
    """The scores of a tick.

    before, after: the carries of the parts [U]. risk: of all rows. new_R: int64 [R], the rows of the new events, part
    by part; logit_R, score_R, decision_R, rule_R are theirs.
    """

    enriched: Enriched
    before: Carry
    after: Carry
    risk: Risk
    new_R: IntArray
    logit_R: FloatArray
    score_R: FloatArray
    decision_R: DecisionArray
    rule_R: npt.NDArray[np.int16]


def is_stepped(model: LogitModel) -> bool:
    """Return True where a user's past is in the carry and the states alone: the cost of an event is then constant."""
    members = model.members if isinstance(model, FusedModel) else (model,)
    return all(isinstance(member, NetworkModel) and member.step is not None for member in members)


class LiveScorer:
    """A scorer with the states of the users in the slots of a pool."""

    def __init__(self, scorer: Scorer, pool: CarryPool, n_slots: int) -> None:
        """Take the scorer and the pool that holds the carries."""
        self.scorer = scorer
        self.is_stepped = is_stepped(scorer.model)
        self._pool = pool
        max_events = scorer.config.sessions.max_events
        members = scorer.model.members if isinstance(scorer.model, FusedModel) else (scorer.model,)
        self._steppers: dict[int, Stepper] = {
            m: Stepper(member.step, n_slots, max_events)
            for m, member in enumerate(members)
            if isinstance(member, NetworkModel) and member.step is not None
        }

    def reset(self, slots: Sequence[int]) -> None:
        """Forget the states in these slots."""
        for stepper in self._steppers.values():
            stepper.reset(np.array(slots, dtype=np.int64))

    def score(self, parts: Sequence[Part], tables: Mapping[str, EntityTable]) -> LiveScores:
        """Return the scores of the new events of the parts; the states are moved on, the carries are not.

        Raises BundleError where the bundle's model cannot read what its vocabulary makes.
        """
        return self._score(parts, lambda events, new_R: risk_of_rows(events, new_R, tables))

    def replay(self, part: Part, risk_RER: FloatArray) -> LiveScores:
        """Return the scores of a part whose new events had this risk, float64 [new rows, E, R], when they came."""

        def as_it_was(events: Events, new_R: IntArray) -> dict[str, FloatArray]:
            risk: dict[str, FloatArray] = {}
            for e, name in enumerate(events.entity):
                risk[name] = np.full((len(events), len(RISK_NAMES)), np.nan, dtype=np.float64)
                risk[name][new_R] = risk_RER[:, e]
            return risk

        return self._score([part], as_it_was)

    def _score(
        self, parts: Sequence[Part], risk_of_new: Callable[[Events, IntArray], dict[str, FloatArray]]
    ) -> LiveScores:
        config = self.scorer.config
        events = events_of_rows(
            [part.user_id for part in parts], [part.rows for part in parts], config, self._pool.dictionaries
        )
        slot_U = np.array([part.slot for part in parts], dtype=np.int64)
        before = self._pool.gather(slot_U)
        enriched, after = enrich(events, before, enrich_spec(config))
        start_U = events.user_starts[:-1]
        new_R = np.array(
            [start + place for part, start in zip(parts, start_U.tolist(), strict=True) for place in part.new],
            dtype=np.int64,
        )
        old_N = np.ones(len(events), dtype=np.bool_)
        old_N[new_R] = False
        risk = risk_of_new(events, new_R)
        known = [part.known_risk for part in parts if len(part.known_risk)]
        if known:
            known_OER = np.concatenate(known)
            for e, risk_NR in enumerate(risk.values()):
                risk_NR[old_N] = known_OER[:, e]
        first_U = start_U + np.array([part.step_from for part in parts], dtype=np.int64)
        logit_R = self._logits(enriched, risk, new_R, slot_U, first_U)
        return _scores(self.scorer, enriched, before, after, risk, new_R, logit_R)

    def _logits(
        self, enriched: Enriched, risk: Risk, new_R: IntArray, slot_U: IntArray, first_U: IntArray
    ) -> FloatArray:
        model, config = self.scorer.model, self.scorer.config
        members = model.members if isinstance(model, FusedModel) else (model,)
        tokens_NF = tokens_of(members, enriched, risk)
        columns: list[FloatArray] = []
        for m, member in enumerate(members):
            if m in self._steppers and tokens_NF is not None:
                position_N = sequence_positions(enriched, config)
                end_U = enriched.events.user_starts[1:]
                logit_N = self._steppers[m].logits(tokens_NF, position_N, slot_U, first_U, end_U)
                columns.append(logit_N[new_R])
            else:
                columns.append(member_logits(member, enriched, risk, tokens_NF, new_R))
        return model.fusion.logits(np.stack(columns, axis=1)) if isinstance(model, FusedModel) else columns[0]


def score_rows(
    scorer: Scorer, users: Sequence[str], rows_U: Sequence[Sequence[EventRow]], tables: Mapping[str, EntityTable]
) -> LiveScores:
    """Return the scores of all rows of users without a past: what `fraud score` gives of a log of just these rows."""
    events = events_of_rows(users, rows_U, scorer.config, {})
    return _whole(scorer, events, risk_of_rows(events, np.arange(len(events)), tables))


def score_known(scorer: Scorer, user_id: str, rows: Sequence[EventRow], risk: Risk) -> LiveScores:
    """Return what `score_rows` gives of one user, where the risk of each row is known already."""
    return _whole(scorer, events_of_rows([user_id], [rows], scorer.config, {}), risk)


def _whole(scorer: Scorer, events: Events, risk: Risk) -> LiveScores:
    before = empty_carry(events.n_users, enrich_spec(scorer.config))
    enriched, after = enrich(events, before, enrich_spec(scorer.config))
    all_N = np.arange(len(events))
    return _scores(scorer, enriched, before, after, risk, all_N, exact_logits(scorer.model, enriched, risk, all_N))


def risk_of_rows(events: Events, rows_R: IntArray, tables: Mapping[str, EntityTable]) -> dict[str, FloatArray]:
    """Return the risk of each declared entity, float64 [N, R]: as known at the rows given, NaN at all others."""
    if not events.has_clock or not events.entity:
        return {}
    columns = {name: column.take(rows_R) for name, column in events.entity.items()}
    own = entity_risks(tables, columns, events.time_us[rows_R])
    if len(rows_R) == len(events):
        return own  # all rows, in their order
    risk: dict[str, FloatArray] = {}
    for name, risk_RR in own.items():
        risk[name] = np.full((len(events), len(RISK_NAMES)), np.nan, dtype=np.float64)
        risk[name][rows_R] = risk_RR
    return risk


def kept_from(next_index: int, next_position: int, max_events: int) -> int:
    """Return the index of the first event of a user that a later one may need.

    That is the start of the block before the next event's own, and no later than the context of a session that the next
    event may go on with (next_position: its place in that session; the index itself where a sequence is a user).
    """
    starts = context_start(np.array([next_index, next_position], dtype=np.int64), max_events)
    return min(int(starts[0]), next_index - next_position + int(starts[1]))


def carries_at(scores: LiveScores, rows_R: IntArray) -> Carry:
    """Return the carry just before each of some rows of a tick, each as a user of its own."""
    return Carries(scores.enriched, scores.before).at(rows_R)


def _scores(
    scorer: Scorer,
    enriched: Enriched,
    before: Carry,
    after: Carry,
    risk: Risk,
    new_R: IntArray,
    logit_R: FloatArray,
) -> LiveScores:
    score_R = scorer.calibration.scores(logit_R)
    score_N = np.zeros(len(enriched.events), dtype=np.float64)
    score_N[new_R] = score_R
    verdicts = decided(scorer, enriched, risk, score_N)
    return LiveScores(
        enriched=enriched,
        before=before,
        after=after,
        risk=risk,
        new_R=new_R,
        logit_R=logit_R,
        score_R=score_R,
        decision_R=verdicts.decision_N[new_R],
        rule_R=verdicts.rule_N[new_R],
    )


def explained_rows(scorer: Scorer, scores: LiveScores, rows_R: IntArray) -> list[tuple[Reason, ...]]:
    """Return the reasons for the scores of some rows of a tick (increasing), whose whole contexts are in it."""
    enriched = scores.enriched
    return reasons(enriched, explain_known(scorer, enriched, scores.before, scores.risk, rows_R))


def explained(
    scorer: Scorer, user_id: str, rows: Sequence[EventRow], before: Carry, risk: Risk, wanted: IntArray
) -> list[tuple[Reason, ...]]:
    """Return the reasons for the scores of some rows of one user; before, risk: as when the rows were scored."""
    events = events_of_rows([user_id], [rows], scorer.config, {})
    enriched, _ = enrich(events, before, enrich_spec(scorer.config))
    return reasons(enriched, explain_known(scorer, enriched, before, risk, wanted))
