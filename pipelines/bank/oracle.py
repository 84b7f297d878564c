"""The best possible score: the probability that a decision event is fraud, given the user's past, under the true law.

A user's log is one hidden Markov chain (`chain`), so the forward recursion (Rabiner 1989, A Tutorial on Hidden
Markov Models, eq. 19-20, scaled as in V.A) is the exact posterior of the hidden state given everything up to and
including the event. Where a session begins is NOT told: "the session goes on" and "it ended, another one opened" are
summed over. It does know the lasting habits of the customer (rate of sessions, amount level and spread, own payees),
which a model must learn from the past: so it is an upper bound, tight where the past is long. Channel, device and the
amounts of cash follow from habits and from what is already visible, whatever the state, and cancel out.

Axes: N events sorted by user and time, A users that have a t-th event, K hidden states, H hold laws, J amount shifts.
"""

import numpy as np

from pipelines.bank.chain import IS_DECISION_V, Bools, Chain, Floats, Ints
from pipelines.bank.clock import clock_reading, clock_speed
from pipelines.bank.log import AMOUNT_BASE_V, MIN_IDLE_S, ORIGIN_US, TRANSFER_OUT, WITHDRAW, BankLog


def fraud_probability(chain: Chain, log: BankLog) -> Floats:
    """Return float64 [N]: P(fraud | the user's events up to and including this one); 0 where no decision is made."""
    is_first_N = np.diff(log.user_N, prepend=-1) != 0
    first_U = np.flatnonzero(is_first_N)
    n_events_U = np.diff(np.append(first_U, log.user_N.size))
    longest_first_U = np.argsort(-n_events_U, kind="stable")
    first_U, n_events_U = first_U[longest_first_U], n_events_U[longest_first_U]
    start_EK = chain.start_EK
    era_N = chain.era_at((log.time_us_N - ORIGIN_US) / 1e6)
    gap_s_N = np.diff(log.time_us_N, prepend=log.time_us_N[0]) / 1e6
    idle_density_N = _idle_density(log, gap_s_N, is_first_N)
    p_fraud_N = np.zeros(log.user_N.size)
    belief_AK = np.empty((first_U.size, chain.end_K.size))
    for t in range(int(n_events_U[0])):
        event_A = first_U[: np.searchsorted(-n_events_U, -t, side="left")] + t
        if t == 0:
            expected_AK = start_EK[era_N[event_A]]
        else:
            belief_AK = belief_AK[: event_A.size]
            goes_on_AK = (belief_AK * _hold_density(chain, gap_s_N[event_A])) @ chain.next_KK
            p_ended_A = belief_AK @ chain.end_K
            expected_AK = goes_on_AK + (p_ended_A * idle_density_N[event_A])[:, None] * start_EK[era_N[event_A]]
        belief_AK = expected_AK * _emission(chain, log, event_A)
        belief_AK /= belief_AK.sum(axis=1, keepdims=True)
        p_fraud_N[event_A] = belief_AK @ chain.is_fraud_K
    return np.where(IS_DECISION_V[log.type_N], p_fraud_N, 0.0)


def _idle_density(log: BankLog, gap_s_N: Floats, is_first_N: Bools) -> Floats:
    """Return the density of a gap between sessions: MIN_IDLE_S, then an exponential time on the bank's clock."""
    time_s_N = (log.time_us_N - ORIGIN_US) / 1e6
    is_possible_N = ~is_first_N & (gap_s_N >= MIN_IDLE_S)
    idle_since_s_N = np.where(is_possible_N, time_s_N - gap_s_N + MIN_IDLE_S, time_s_N)
    rate_N = log.habits.rate_U[log.user_N]
    waited_s_N = clock_reading(time_s_N) - clock_reading(idle_since_s_N)
    return is_possible_N * rate_N * clock_speed(time_s_N) * np.exp(-rate_N * waited_s_N)


def _hold_density(chain: Chain, gap_s_A: Floats) -> Floats:
    """Return the log-normal density of each gap under the hold law of each state, [A, K]."""
    mean_H, deviation_H = chain.hold_HP[:, 0], chain.hold_HP[:, 1]
    log_gap_A = np.log(gap_s_A)
    z_AH = (log_gap_A[:, None] - mean_H) / deviation_H
    return (np.exp(-0.5 * z_AH**2 - log_gap_A[:, None]) / (deviation_H * np.sqrt(2.0 * np.pi)))[:, chain.hold_K]


def _emission(chain: Chain, log: BankLog, event_A: Ints) -> Floats:
    """Return the likelihood of each event under each state, up to factors that are the same for all states, [A, K]."""
    type_A, user_A = log.type_N[event_A], log.user_N[event_A]
    likelihood_AK = chain.emit_KV.T[type_A]
    shifts_J, shift_K = np.unique(chain.amount_shift_K, return_inverse=True)
    log_amount_A = np.log(log.amount_N[event_A]) - log.habits.log_amount_U[user_A] - AMOUNT_BASE_V[type_A]
    z_AJ = (log_amount_A[:, None] - shifts_J) / log.habits.amount_spread_U[user_A, None]
    tells_A = ~(np.isnan(log_amount_A) | (type_A == WITHDRAW))  # cash is drawn by habit alone
    density_AJ = np.where(tells_A[:, None], np.exp(-0.5 * z_AJ**2), 1.0)
    is_new_A = log.is_new_payee_N[event_A, None]
    payee_AK = np.where(is_new_A, chain.p_new_payee_K, 1.0 - chain.p_new_payee_K)
    payee_AK[type_A != TRANSFER_OUT] = 1.0
    return likelihood_AK * density_AJ[:, shift_K] * payee_AK
