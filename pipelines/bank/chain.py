"""The routines of `stories` as one hidden Markov model in arrays: what the simulator draws from, the oracle reads.

It knows routines and rates, and nothing of users, clocks or files.
Axes: E eras, K hidden states, V event types, H hold laws, P = 2 (mean, standard deviation).
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipelines.bank.routines import ALL_STORIES, DECISION_TYPES, EVENT_TYPES, HOLDS, KINDS, LATER_STORY, Routine, State
from pipelines.bank.stories import ATYPICAL, LATER, NORMAL, PLANTED

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

IS_DECISION_V: Bools = np.array([name in DECISION_TYPES for name in EVENT_TYPES])
_FRAUD_KINDS = ("fraud", "atypical")


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """All routines as one chain over a user's whole stream: a session ends with end_K, the next opens with start_EK.

    Which sessions are opened is the one law that changes, from era to era: a session goes on as it began.
    """

    era_from_s_E: Floats  # the era's first second since the origin; of the first era 0
    start_EK: Floats  # P(routine) P(first state | routine) of a session that opens in the era
    next_KK: Floats
    end_K: Floats
    emit_KV: Floats
    hold_K: Ints  # row of hold_HP
    hold_HP: Floats  # mean and standard deviation of log seconds
    amount_shift_K: Floats
    p_new_payee_K: Floats
    is_fraud_K: Bools  # a decision event of this state is fraud
    is_beat_K: Bools
    kind_K: Ints  # index into KINDS
    story_K: Ints  # index into ALL_STORIES, -1 = none

    def era_at(self, time_s: Floats) -> Ints:
        """Return the era of each time, in seconds since the origin."""
        return np.searchsorted(self.era_from_s_E, time_s, side="right") - 1


def bank_chain(fraud_rate: float) -> Chain:
    """Return the chain of one era in which `fraud_rate` of the decision events are fraud.

    Decoys and honest twins scale with the fraud. Raises ValueError for a rate that would leave no normal session.
    """
    return _compile(_mixed(NORMAL, (*PLANTED, ATYPICAL), fraud_rate))


def bank_chain_with_later_story(fraud_rate: float, *, later_fraud_rate: float, from_s: float) -> Chain:
    """Return a chain of two eras: as `bank_chain`, until from `from_s` on there is fraud of LATER_STORY too.

    Its decoys and honest twins are there from the start, so that it brings nothing that nobody did before.
    later_fraud_rate: the share of the second era's decision events that are fraud of it. fraud_rate: of all fraud among
    the decision events without that story's sessions. Raises ValueError as `bank_chain` does.
    """
    base = _mixed(NORMAL, (*PLANTED, ATYPICAL), fraud_rate)
    chain = _compile(_mixed(base, LATER, later_fraud_rate))
    is_later_fraud_K = chain.is_fraud_K & (chain.story_K == ALL_STORIES.index(LATER_STORY))
    before_K = np.where(is_later_fraud_K, 0.0, chain.start_EK[0])
    return replace(
        chain,
        era_from_s_E=np.array([0.0, from_s]),
        start_EK=np.stack([before_K / before_K.sum(), chain.start_EK[0]]),
    )


def _mixed(base: tuple[Routine, ...], planted: tuple[Routine, ...], fraud_rate: float) -> tuple[Routine, ...]:
    """Return both with weights that add up to 1, and `fraud_rate` of the decision events fraud of `planted`."""
    base_weight, planted_weight = _weight(base), _weight(planted)
    n_decisions_base, _ = _per_session(base)
    n_decisions_planted, n_frauds_planted = _per_session(planted)
    # With a share x of planted sessions: rate = x F / ((1 - x) D_base + x D_planted), solved for x.
    share = fraud_rate * n_decisions_base / (n_frauds_planted - fraud_rate * (n_decisions_planted - n_decisions_base))
    if not 0.0 < share < 1.0:
        raise ValueError(f"fraud_rate = {fraud_rate} would leave no normal session")
    return (
        *(replace(r, weight=r.weight * (1.0 - share) / base_weight) for r in base),
        *(replace(r, weight=r.weight * share / planted_weight) for r in planted),
    )


def _weight(routines: tuple[Routine, ...]) -> float:
    return sum(routine.weight for routine in routines)


def _per_session(routines: tuple[Routine, ...]) -> tuple[float, float]:
    """Return the expected decision events and frauds of one session of these routines: start (I - next)^-1 P(type)."""
    chain = _compile(tuple(replace(r, weight=r.weight / _weight(routines)) for r in routines))
    n_visits_K = np.linalg.solve(np.eye(chain.end_K.size) - chain.next_KK.T, chain.start_EK[0])
    n_decisions_K = n_visits_K * chain.emit_KV[:, IS_DECISION_V].sum(axis=1)
    return float(n_decisions_K.sum()), float(n_decisions_K[chain.is_fraud_K].sum())


def _compile(routines: tuple[Routine, ...]) -> Chain:
    """Return the block-diagonal chain, of one era, of routines whose weights add up to 1."""
    named: list[tuple[Routine, str, State]] = [(r, name, state) for r in routines for name, state in r.states.items()]
    index = {(r.name, name): k for k, (r, name, _) in enumerate(named)}
    n_states = len(named)
    start_K, next_KK = np.zeros(n_states), np.zeros((n_states, n_states))
    emit_KV = np.zeros((n_states, len(EVENT_TYPES)))
    for k, (routine, name, state) in enumerate(named):
        start_K[k] = routine.weight * routine.start.get(name, 0.0)
        for target, probability in state.goes.items():
            next_KK[k, index[routine.name, target]] += probability
        for event_type, probability in state.emits.items():
            emit_KV[k, EVENT_TYPES.index(event_type)] += probability
    end_K = 1.0 - next_KK.sum(axis=1)
    assert np.allclose([start_K.sum(), *emit_KV.sum(axis=1)], 1.0)
    assert end_K.min() > -1e-9
    holds = tuple(HOLDS)
    return Chain(
        era_from_s_E=np.zeros(1),
        start_EK=start_K[None],
        next_KK=next_KK,
        end_K=np.where(end_K > 1e-9, end_K, 0.0),
        emit_KV=emit_KV,
        hold_K=np.array([holds.index(state.hold) for _, _, state in named]),
        hold_HP=np.array([(np.log(median_s), sigma) for median_s, sigma in HOLDS.values()]),
        amount_shift_K=np.array([state.amount_shift for _, _, state in named]),
        p_new_payee_K=np.array([state.p_new_payee for _, _, state in named]),
        is_fraud_K=np.array([routine.kind in _FRAUD_KINDS for routine, _, _ in named]),
        is_beat_K=np.array([state.is_beat for _, _, state in named]),
        kind_K=np.array([KINDS.index(routine.kind) for routine, _, _ in named]),
        story_K=np.array([ALL_STORIES.index(routine.story) if routine.story else -1 for routine, _, _ in named]),
    )
