"""The routines of `stories` as one hidden Markov model in arrays: what the simulator draws from, the oracle reads.

It knows routines and rates, and nothing of users, clocks or files.
Axes: K hidden states, V event types, H hold laws, P = 2 (mean, standard deviation).
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipelines.bank.routines import DECISION_TYPES, EVENT_TYPES, HOLDS, KINDS, STORIES, Routine, State
from pipelines.bank.stories import ATYPICAL, NORMAL, PLANTED

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

IS_DECISION_V: Bools = np.array([name in DECISION_TYPES for name in EVENT_TYPES])
_FRAUD_KINDS = ("fraud", "atypical")


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """All routines as one chain over a user's whole stream: a session ends with end_K, the next opens with start_K."""

    start_K: Floats  # P(routine) P(first state | routine)
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
    story_K: Ints  # index into STORIES, -1 = none


def bank_chain(fraud_rate: float) -> Chain:
    """Return the chain in which `fraud_rate` of the decision events are fraud.

    Decoys and honest twins scale with the fraud. Raises ValueError for a rate that would leave no normal session.
    """
    planted = (*PLANTED, ATYPICAL)
    normal_weight, planted_weight = _weight(NORMAL), _weight(planted)
    n_decisions_normal, _ = _per_session(NORMAL)
    n_decisions_planted, n_frauds_planted = _per_session(planted)
    # With a share x of planted sessions: rate = x F / ((1 - x) D_normal + x D_planted), solved for x.
    share = (
        fraud_rate * n_decisions_normal / (n_frauds_planted - fraud_rate * (n_decisions_planted - n_decisions_normal))
    )
    if not 0.0 < share < 1.0:
        raise ValueError(f"fraud_rate = {fraud_rate} would leave no normal session")
    return _compile(
        (
            *(replace(r, weight=r.weight * (1.0 - share) / normal_weight) for r in NORMAL),
            *(replace(r, weight=r.weight * share / planted_weight) for r in planted),
        )
    )


def _weight(routines: tuple[Routine, ...]) -> float:
    return sum(routine.weight for routine in routines)


def _per_session(routines: tuple[Routine, ...]) -> tuple[float, float]:
    """Return the expected decision events and frauds of one session of these routines: start (I - next)^-1 P(type)."""
    chain = _compile(tuple(replace(r, weight=r.weight / _weight(routines)) for r in routines))
    n_visits_K = np.linalg.solve(np.eye(chain.end_K.size) - chain.next_KK.T, chain.start_K)
    n_decisions_K = n_visits_K * chain.emit_KV[:, IS_DECISION_V].sum(axis=1)
    return float(n_decisions_K.sum()), float(n_decisions_K[chain.is_fraud_K].sum())


def _compile(routines: tuple[Routine, ...]) -> Chain:
    """Return the block-diagonal chain of routines whose weights add up to 1."""
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
        start_K=start_K,
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
        story_K=np.array([STORIES.index(routine.story) if routine.story else -1 for routine, _, _ in named]),
    )
