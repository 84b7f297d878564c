"""The simulated bank: customers with habits, and their behaviour log drawn from the chain of `chain`.

A customer is one hidden Markov chain from the first event to the last; all customers take their n-th step together.
Sessions of a customer never overlap: the next one opens when the last is over, idle for MIN_IDLE_S and then for an
exponential time on the bank's own clock (`clock`), fast by day and slow by night. What the bank sees beside type
and time depends on the hidden state only through the amount of what is not cash and through "own or new payee"; channel
and device follow from habits and from what is already visible. A new payee is nobody else's, so nothing that tells
crosses from one customer to another. NumPy only, no files.

Axes: N events sorted by customer and time, U customers, K hidden states, V event types, A customers still active,
M own payees.
"""

from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

from pipelines.bank.chain import IS_DECISION_V, Bools, Chain, Floats, Ints
from pipelines.bank.clock import clock_reading, time_of_reading
from pipelines.bank.routines import EVENT_TYPES

ORIGIN_US = int(datetime(2025, 1, 6, tzinfo=UTC).timestamp()) * 1_000_000  # a Monday
DAY_S = 86_400.0
MIN_IDLE_S = 1_800.0
NEW_PAYEE_S = 3 * DAY_S
CHANNELS = ("mobile", "web", "atm", "branch", "core")
_MOBILE, _WEB, _ATM, _BRANCH, _CORE = range(len(CHANNELS))
MAX_PAYEES = 12
_N_COMPANIES, _N_ATMS, _N_BRANCHES = 300, 400, 40

# Log amount of each type against the customer's own level.
AMOUNT_BASE_V: Floats = np.full(len(EVENT_TYPES), np.nan)
for _name, _base in {"transfer_out": 0.0, "withdraw": -0.2, "pay_bill": -0.3, "receive_transfer": 0.8}.items():
    AMOUNT_BASE_V[EVENT_TYPES.index(_name)] = _base
ADD_PAYEE, CHANGE_DEVICE, RECEIVE, PAY_BILL, TRANSFER_OUT, WITHDRAW = (
    EVENT_TYPES.index(name)
    for name in ("add_payee", "change_device", "receive_transfer", "pay_bill", "transfer_out", "withdraw")
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Habits:
    """What is lasting about each customer."""

    rate_U: Floats  # sessions per second of the bank's clock
    log_amount_U: Floats
    amount_spread_U: Floats
    p_mobile_U: Floats
    n_payees_U: Ints


@dataclass(frozen=True, slots=True, kw_only=True)
class BankLog:
    """A log with its truth. Codes: type_N into EVENT_TYPES, channel_N into CHANNELS; payee and device -1 = none."""

    time_us_N: Ints  # since 1970, whole milliseconds, strictly increasing per user
    user_N: Ints
    type_N: Ints
    amount_N: Floats  # NaN = none
    channel_N: Ints
    payee_N: Ints
    device_N: Ints
    is_new_payee_N: Bools  # the payee is not one of the customer's own
    state_N: Ints  # hidden state of the chain
    opens_session_N: Bools  # hidden too: the simulator's session, not the sessionizer's
    is_fraud_N: Bools
    story_N: Ints
    habits: Habits


def simulate_bank(chain: Chain, *, users: int, days: int, seed: int) -> BankLog:
    """Return the log of `users` customers over `days`, each with at least one event. Same arguments, same log."""
    habits_rng, walk_rng, dress_rng = (np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(3))
    habits = _draw_habits(users, habits_rng)
    user_N, state_N, time_ms_N, opens_N = _walk(chain, habits, horizon_s=days * DAY_S, rng=walk_rng)
    return _dress(chain, habits, user_N, state_N, time_ms_N, opens_N, rng=dress_rng)


def _draw_habits(users: int, rng: np.random.Generator) -> Habits:
    per_day_U = 0.045 + rng.gamma(1.4, 0.135, users)
    return Habits(
        rate_U=per_day_U / DAY_S,
        log_amount_U=rng.normal(4.6, 0.7, users),
        amount_spread_U=rng.uniform(0.45, 0.75, users),
        p_mobile_U=rng.beta(2.0, 0.7, users),
        n_payees_U=rng.integers(3, MAX_PAYEES + 1, users),
    )


def _walk(
    chain: Chain, habits: Habits, *, horizon_s: float, rng: np.random.Generator
) -> tuple[Ints, Ints, Ints, Bools]:
    """Return user, hidden state, time in ms since the origin and "opens a session" of each event, by user and time.

    One pass of the loop is one more event of every customer still inside the horizon.
    """
    n_states = chain.end_K.size
    start_cdf_EK = np.cumsum(chain.start_EK, axis=1)
    start_cdf_EK[:, -1] = np.inf  # rounding must leave no draw without a state
    next_cdf_KK = np.cumsum(chain.next_KK, axis=1)
    next_cdf_KK[chain.end_K == 0.0, -1] = 1.0  # rounding must not end a session that cannot end here
    user_A = np.arange(habits.rate_U.size)
    first_s_A = time_of_reading(rng.random(user_A.size) * np.minimum(1.0 / habits.rate_U, 0.7 * horizon_s))
    time_ms_A = np.ceil(first_s_A * 1e3).astype(np.int64)
    state_A = _opened(chain, start_cdf_EK, time_ms_A, rng.random(user_A.size))
    opens_A = np.ones(user_A.size, dtype=bool)
    steps: list[tuple[Ints, Ints, Ints, Bools]] = []
    while user_A.size:
        steps.append((user_A, state_A, time_ms_A, opens_A))
        next_A = (rng.random((user_A.size, 1)) >= next_cdf_KK[state_A]).sum(axis=1)
        opens_A = next_A == n_states
        draw = rng.random(int(opens_A.sum()))  # of a session that opens at a time not yet known
        hold_AP = chain.hold_HP[chain.hold_K[state_A]]
        gap_s_A = np.exp(hold_AP[:, 0] + hold_AP[:, 1] * rng.standard_normal(user_A.size))
        idle_since_s = time_ms_A[opens_A] / 1e3 + MIN_IDLE_S
        waited_s = rng.exponential(1.0 / habits.rate_U[user_A[opens_A]])
        gap_s_A[opens_A] = time_of_reading(clock_reading(idle_since_s) + waited_s) - time_ms_A[opens_A] / 1e3
        time_ms_A = time_ms_A + np.maximum(np.ceil(gap_s_A * 1e3).astype(np.int64), 1)
        next_A[opens_A] = _opened(chain, start_cdf_EK, time_ms_A[opens_A], draw)
        stays_A = time_ms_A < horizon_s * 1e3
        user_A, state_A, time_ms_A, opens_A = user_A[stays_A], next_A[stays_A], time_ms_A[stays_A], opens_A[stays_A]
    user_N, state_N, time_ms_N, opens_N = (np.concatenate(column) for column in zip(*steps, strict=True))
    by_user_N = np.argsort(user_N, kind="stable")
    return user_N[by_user_N], state_N[by_user_N], time_ms_N[by_user_N], opens_N[by_user_N]


def _opened(chain: Chain, start_cdf_EK: Floats, time_ms_A: Ints, draw_A: Floats) -> Ints:
    """Return the first state of a session that opens at each time, for a uniform draw each."""
    era_A = chain.era_at(time_ms_A / 1e3)
    state_A = np.empty_like(time_ms_A)
    for era in range(chain.start_EK.shape[0]):
        of_era_A = era_A == era
        state_A[of_era_A] = np.searchsorted(start_cdf_EK[era], draw_A[of_era_A], side="right")
    return state_A


def _dress(
    chain: Chain,
    habits: Habits,
    user_N: Ints,
    state_N: Ints,
    time_ms_N: Ints,
    opens_N: Bools,
    *,
    rng: np.random.Generator,
) -> BankLog:
    """Return the log: types, amounts, payees, channels and devices of events whose states and times are known."""
    type_N = _draw_types(chain, state_N, rng)
    is_cash_N = type_N == WITHDRAW
    shift_N = np.where(is_cash_N, 0.0, chain.amount_shift_K[state_N])
    spread_N = habits.amount_spread_U[user_N] * rng.standard_normal(user_N.size)
    amount_N = np.exp(habits.log_amount_U[user_N] + AMOUNT_BASE_V[type_N] + shift_N + spread_N)
    cash_N = np.maximum(np.round(amount_N, -1), 10.0)  # an automat gives notes
    pause_s_N = np.where(np.diff(user_N, prepend=-1) != 0, np.inf, np.diff(time_ms_N, prepend=0) / 1e3)
    payee_N, is_new_N = _draw_payees(chain, habits, user_N, state_N, type_N, pause_s_N, rng)
    channel_N, device_N = _draw_devices(habits, user_N, type_N, pause_s_N, rng)
    is_fraud_N = IS_DECISION_V[type_N] & chain.is_fraud_K[state_N]
    return BankLog(
        time_us_N=ORIGIN_US + time_ms_N * 1000,
        user_N=user_N,
        type_N=type_N,
        amount_N=np.where(is_cash_N, cash_N, np.maximum(np.round(amount_N, 2), 0.01)),
        channel_N=channel_N,
        payee_N=payee_N,
        device_N=device_N,
        is_new_payee_N=is_new_N,
        state_N=state_N,
        opens_session_N=opens_N,
        is_fraud_N=is_fraud_N,
        story_N=chain.story_K[state_N],
        habits=habits,
    )


def _draw_types(chain: Chain, state_N: Ints, rng: np.random.Generator) -> Ints:
    """Return a type drawn for each state: the states' distributions lie end to end on one line, one search for all."""
    n_states, n_types = chain.emit_KV.shape
    cdf_KV = np.cumsum(chain.emit_KV, axis=1)
    cdf_KV[cdf_KV > 1.0 - 1e-12] = 1.0
    line = (np.arange(n_states)[:, None] + cdf_KV).ravel()
    draw_N = rng.random(state_N.size) * (1.0 - 1e-9)  # a sum rounded up must not reach the next state's stretch
    return np.searchsorted(line, state_N + draw_N, side="right") - state_N * n_types


def _draw_payees(
    chain: Chain,
    habits: Habits,
    user_N: Ints,
    state_N: Ints,
    type_N: Ints,
    pause_s_N: Floats,
    rng: np.random.Generator,
) -> tuple[Ints, Bools]:
    """Return payee number (-1 = none) and "new payee" per event.

    A customer's own payees are companies that all know, or private accounts; a new payee is an account nobody used
    before, the one last added where there is one, and stays "the new one" until a pause of NEW_PAYEE_S: a rule on what
    is visible, so that which new payee it is tells nothing. Numbers are shuffled: none tells what it is.
    """
    n_users = habits.rate_U.size
    private_UM = _N_COMPANIES + np.arange(n_users * MAX_PAYEES).reshape(n_users, MAX_PAYEES)
    is_company_UM = rng.random((n_users, MAX_PAYEES)) < 0.6
    own_UM = np.where(is_company_UM, rng.integers(0, _N_COMPANIES, (n_users, MAX_PAYEES)), private_UM)
    favour_N = rng.random(user_N.size) ** 2  # the first few get most
    own_N = own_UM[user_N, (favour_N * habits.n_payees_U[user_N]).astype(np.int64)]
    is_new_N = (type_N == ADD_PAYEE) | (
        (type_N == TRANSFER_OUT) & (rng.random(user_N.size) < chain.p_new_payee_K[state_N])
    )
    new_N = _N_COMPANIES + n_users * MAX_PAYEES + np.cumsum((pause_s_N > NEW_PAYEE_S) | (type_N == ADD_PAYEE))
    has_payee_N = is_new_N | (type_N == TRANSFER_OUT) | (type_N == PAY_BILL)
    shuffled = rng.permutation(int(new_N[-1]) + 1)
    return np.where(has_payee_N, shuffled[np.where(is_new_N, new_N, own_N)], -1), is_new_N


def _draw_devices(
    habits: Habits, user_N: Ints, type_N: Ints, pause_s_N: Floats, rng: np.random.Generator
) -> tuple[Ints, Ints]:
    """Return channel and device number (-1 = none) per event: the visit's channel, its device after the changes so far.

    A visit ends after MIN_IDLE_S without an event, whatever the session: so they tell nothing that times do not.
    """
    n_users = habits.rate_U.size
    is_visit_N = pause_s_N > MIN_IDLE_S
    visit_N = np.cumsum(is_visit_N) - 1
    web_N = (rng.random(visit_N[-1] + 1) >= habits.p_mobile_U[user_N[is_visit_N]])[visit_N].astype(np.int64)
    by_app_N = np.lexsort((np.arange(user_N.size), web_N, user_N))
    app_N = user_N[by_app_N] * 2 + web_N[by_app_N]
    is_other_N = (np.diff(app_N, prepend=-1) != 0) | (type_N[by_app_N] == CHANGE_DEVICE)
    device_N = np.empty_like(user_N)
    device_N[by_app_N] = np.cumsum(is_other_N) - 1
    n_devices = int(is_other_N.sum())
    at_atm_N = rng.random(user_N.size) < 0.9
    usual_U, anywhere_N = rng.integers(0, _N_ATMS, n_users), rng.integers(0, _N_ATMS, user_N.size)
    atm_N = n_devices + np.where(rng.random(user_N.size) < 0.7, usual_U[user_N], anywhere_N)
    branch_N = n_devices + _N_ATMS + (user_N % _N_BRANCHES)
    is_cash_N, is_core_N = type_N == WITHDRAW, type_N == RECEIVE
    channel_N = np.where(is_cash_N, np.where(at_atm_N, _ATM, _BRANCH), np.where(is_core_N, _CORE, web_N))
    device_N = np.where(is_cash_N, np.where(at_atm_N, atm_N, branch_N), device_N)
    shuffled = rng.permutation(n_devices + _N_ATMS + _N_BRANCHES)
    return channel_N, np.where(is_core_N, -1, shuffled[device_N])
