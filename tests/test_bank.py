"""The simulated bank keeps its promises: an exact oracle, and frauds that only order and pace give away."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import average_precision_score

from pipelines.bank.chain import IS_DECISION_V, Chain, bank_chain, bank_chain_with_later_story
from pipelines.bank.clock import clock_reading, clock_speed, time_of_reading
from pipelines.bank.log import AMOUNT_BASE_V, MIN_IDLE_S, ORIGIN_US, BankLog, simulate_bank
from pipelines.bank.oracle import fraud_probability
from pipelines.bank.routines import ALL_STORIES, AMOUNT_TYPES, EVENT_TYPES, KINDS, LATER_STORY, STORIES

DAY_US = 86_400_000_000
N_TYPES = len(EVENT_TYPES)
LATER_FROM_DAY = 12  # after it some of the customers are yet to come


@pytest.fixture(scope="module")
def chain() -> Chain:
    """Return a chain with much fraud, so that a small log can be judged."""
    return bank_chain(0.05)


@pytest.fixture(scope="module")
def log(chain: Chain) -> BankLog:
    return simulate_bank(chain, users=2500, days=60, seed=1)


@pytest.fixture(scope="module")
def p_fraud_N(chain: Chain, log: BankLog) -> np.ndarray:
    return fraud_probability(chain, log)


@pytest.fixture(scope="module")
def later_chain() -> Chain:
    """Return a chain that brings a new story after LATER_FROM_DAY days."""
    return bank_chain_with_later_story(0.03, later_fraud_rate=0.03, from_s=LATER_FROM_DAY * 86_400.0)


@pytest.fixture(scope="module")
def later_log(later_chain: Chain) -> BankLog:
    return simulate_bank(later_chain, users=2500, days=60, seed=1)


@pytest.fixture(scope="module")
def later_p_fraud_N(later_chain: Chain, later_log: BankLog) -> np.ndarray:
    return fraud_probability(later_chain, later_log)


def _enumerated(chain: Chain, log: BankLog, events: np.ndarray) -> float:
    """Return P(the last event is fraud) from every path of hidden states and session ends, one by one."""

    def shows(k: int, n: int) -> float:
        event_type, user = log.type_N[n], log.user_N[n]
        likelihood = chain.emit_KV[k, event_type]
        name = EVENT_TYPES[event_type]
        if name in AMOUNT_TYPES and name != "withdraw":
            level = log.habits.log_amount_U[user] + AMOUNT_BASE_V[event_type] + chain.amount_shift_K[k]
            likelihood *= NormalDist(level, log.habits.amount_spread_U[user]).pdf(math.log(log.amount_N[n]))
        if name == "transfer_out":
            likelihood *= chain.p_new_payee_K[k] if log.is_new_payee_N[n] else 1 - chain.p_new_payee_K[k]
        return likelihood

    def holds(k: int, gap_s: float) -> float:
        mean, deviation = chain.hold_HP[chain.hold_K[k]]
        return NormalDist(mean, deviation).pdf(math.log(gap_s)) / gap_s

    def idles(n: int, gap_s: float) -> float:
        if gap_s < MIN_IDLE_S:
            return 0.0
        now_s = np.array([(log.time_us_N[n] - ORIGIN_US) / 1e6])
        rate = log.habits.rate_U[log.user_N[n]]
        waited_s = clock_reading(now_s) - clock_reading(now_s - gap_s + MIN_IDLE_S)
        return (rate * clock_speed(now_s) * np.exp(-rate * waited_s)).item()

    def opens_with(n: int) -> np.ndarray:
        time_s = (log.time_us_N[n] - ORIGIN_US) / 1e6
        return next(
            start_K
            for from_s, start_K in zip(chain.era_from_s_E[::-1], chain.start_EK[::-1], strict=True)
            if time_s >= from_s
        )

    total = {True: 0.0, False: 0.0}

    def walk(depth: int, k: int, weight: float) -> None:
        weight *= shows(k, events[depth])
        if weight == 0.0:
            return
        if depth + 1 == len(events):
            total[bool(chain.is_fraud_K[k])] += weight
            return
        gap_s = (log.time_us_N[events[depth + 1]] - log.time_us_N[events[depth]]) / 1e6
        held, idle = holds(k, gap_s), idles(events[depth + 1], gap_s)
        for target in np.flatnonzero(chain.next_KK[k]):
            walk(depth + 1, target, weight * held * chain.next_KK[k, target])
        if chain.end_K[k] * idle > 0.0:
            start_K = opens_with(events[depth + 1])
            for target in np.flatnonzero(start_K):
                walk(depth + 1, target, weight * chain.end_K[k] * idle * start_K[target])

    start_K = opens_with(events[0])
    for first in np.flatnonzero(start_K):
        walk(0, first, start_K[first])
    return total[True] / (total[True] + total[False])


def test_the_oracle_equals_the_sum_over_every_hidden_path(chain: Chain, log: BankLog, p_fraud_N: np.ndarray) -> None:
    rank_N = np.arange(log.user_N.size) - np.searchsorted(log.user_N, log.user_N)
    short = np.flatnonzero(IS_DECISION_V[log.type_N] & (rank_N >= 1) & (rank_N <= 5))
    unsure = short[(p_fraud_N[short] > 0.01) & (p_fraud_N[short] < 0.85)]
    assert unsure.size >= 5
    # After these types an hour's pause is a slow story or a new session: both sums must be of the same unit.
    pauses = [EVENT_TYPES.index(name) for name in ("credit_score_check", "loan_check", "receive_transfer", "add_payee")]
    gap_us = np.diff(log.time_us_N)[short - 1]
    either = short[np.isin(log.type_N[short - 1], pauses) & (gap_us > MIN_IDLE_S * 1e6) & (gap_us < 0.5 * DAY_US)]
    assert either.size >= 10
    for last in [*unsure[:12], *either[:10], *short[:12]]:
        events = np.arange(last - rank_N[last], last + 1)
        assert p_fraud_N[last] == pytest.approx(_enumerated(chain, log, events), rel=1e-9, abs=1e-15)


def test_the_oracle_suspects_the_later_story_from_its_day_on(later_log: BankLog, later_p_fraud_N: np.ndarray) -> None:
    told = [EVENT_TYPES.index(name) for name in ("login", "chat_support", "pay_bill", "transfer_out")]
    ends = np.flatnonzero(later_log.type_N == told[-1])
    ends = ends[(later_log.type_N[ends[:, None] + np.arange(-3, 1)] == told).all(axis=1)]
    gap_us_N = np.diff(later_log.time_us_N, prepend=0)
    quick = ends[(gap_us_N[ends[:, None] + np.arange(-2, 1)] < 600e6).all(axis=1)]
    is_later = later_log.time_us_N[quick] >= ORIGIN_US + LATER_FROM_DAY * DAY_US
    assert min(is_later.sum(), (~is_later).sum()) >= 5
    assert np.median(later_p_fraud_N[quick[~is_later]]) < 0.01
    assert np.median(later_p_fraud_N[quick[is_later]]) > 0.7


def test_the_oracle_of_two_eras_equals_the_sum_over_every_hidden_path(
    later_chain: Chain, later_log: BankLog, later_p_fraud_N: np.ndarray
) -> None:
    first_N = np.searchsorted(later_log.user_N, later_log.user_N)
    rank_N = np.arange(later_log.user_N.size) - first_N
    is_later_N = later_log.time_us_N >= ORIGIN_US + LATER_FROM_DAY * DAY_US
    short_N = IS_DECISION_V[later_log.type_N] & (rank_N >= 1) & (rank_N <= 5)
    short_N &= (later_p_fraud_N > 0.001) & (later_p_fraud_N < 0.85)
    for chosen_N in (short_N & ~is_later_N, short_N & is_later_N & ~is_later_N[first_N], short_N & is_later_N[first_N]):
        chosen = np.flatnonzero(chosen_N)
        assert chosen.size >= 8
        for last in chosen[:8]:
            enumerated = _enumerated(later_chain, later_log, np.arange(first_N[last], last + 1))
            assert later_p_fraud_N[last] == pytest.approx(enumerated, rel=1e-9, abs=1e-15)


def _is_drawn_from(sample: np.ndarray, mean: float, deviation: float) -> bool:
    """Return whether mean and variance of the sample are within four standard errors (of a normal law)."""
    z = (sample - mean) / deviation
    return abs(z.mean()) < 4 / math.sqrt(z.size) and abs((z**2).mean() - 1) < 4 * math.sqrt(2 / z.size)


def test_the_log_is_drawn_from_the_laws_the_oracle_reads(chain: Chain, log: BankLog) -> None:
    state_N, user_N = log.state_N, log.user_N
    follows = np.flatnonzero((np.diff(user_N) == 0) & ~log.opens_session_N[1:])
    for hold, (mean, deviation) in enumerate(chain.hold_HP):
        held = follows[chain.hold_K[state_N[follows]] == hold]
        # A hold longer than what is left of the 60 days is not seen; at most 3 days are.
        held = held[log.time_us_N[held] < ORIGIN_US + 57 * DAY_US]
        gap_s = (log.time_us_N[held + 1] - log.time_us_N[held]) / 1e6
        assert _is_drawn_from(np.log(gap_s), mean, deviation), hold
    tells_N = ~np.isnan(log.amount_N) & (log.type_N != EVENT_TYPES.index("withdraw"))
    level_N = log.habits.log_amount_U[user_N] + AMOUNT_BASE_V[log.type_N] + chain.amount_shift_K[state_N]
    z_N = (np.log(log.amount_N) - level_N) / log.habits.amount_spread_U[user_N]
    for shift in np.unique(chain.amount_shift_K):
        assert _is_drawn_from(z_N[tells_N & (chain.amount_shift_K[state_N] == shift)], 0.0, 1.0), shift
    transfer_N = log.type_N == EVENT_TYPES.index("transfer_out")
    for p_new in np.unique(chain.p_new_payee_K):
        is_new = log.is_new_payee_N[transfer_N & (chain.p_new_payee_K[state_N] == p_new)]
        assert abs(is_new.mean() - p_new) < 4 * math.sqrt(p_new * (1 - p_new) / is_new.size), p_new
    n_events_K = np.bincount(state_N, minlength=chain.end_K.size)
    n_shown_KV = np.zeros_like(chain.emit_KV)
    np.add.at(n_shown_KV, (state_N, log.type_N), 1)
    expected_KV = n_events_K[:, None] * chain.emit_KV
    assert np.all(np.abs(n_shown_KV - expected_KV) <= 5 * np.sqrt(expected_KV))
    expected_K = log.opens_session_N.sum() * chain.start_EK[0]
    n_opened_K = np.bincount(state_N[log.opens_session_N], minlength=chain.end_K.size)
    assert np.all(np.abs(n_opened_K - expected_K) <= 5 * np.sqrt(expected_K))


def test_idle_times_are_exponential_on_the_bank_clock(log: BankLog) -> None:
    opens = np.flatnonzero((np.diff(log.user_N) == 0) & log.opens_session_N[1:])
    time_s_N = (log.time_us_N - ORIGIN_US) / 1e6
    waited_s = clock_reading(time_s_N[opens + 1]) - clock_reading(time_s_N[opens] + MIN_IDLE_S)
    rate = log.habits.rate_U[log.user_N[opens]]
    # Given that it ended inside the 60 days, a wait is an exponential time cut at what was left of them.
    left_s = clock_reading(np.full(opens.size, 60 * 86_400.0)) - clock_reading(time_s_N[opens] + MIN_IDLE_S)
    uniform = np.expm1(-rate * waited_s) / np.expm1(-rate * left_s)
    assert np.histogram(uniform, bins=10, range=(0.0, 1.0))[0] == pytest.approx(opens.size / 10, rel=0.06)


def test_the_oracle_is_calibrated(log: BankLog, p_fraud_N: np.ndarray) -> None:
    decision_N = IS_DECISION_V[log.type_N]
    p, truth, session = p_fraud_N[decision_N], log.is_fraud_N[decision_N], np.cumsum(log.opens_session_N)[decision_N]
    for low, high in ((0, 1), (0, 0.003), (0.003, 0.03), (0.03, 0.3), (0.3, 0.8), (0.8, 1)):
        chosen = (p >= low) & (p <= high)
        # Decision events of one session share their fate: the deviation of their sum is that of whole sessions.
        excess_S = np.bincount(session[chosen], weights=truth[chosen] - p[chosen])
        assert chosen.sum() > 30, (low, high)
        assert abs(excess_S.sum()) < 3.5 * math.sqrt((excess_S**2).sum()), (low, high)


def test_the_oracle_reads_no_later_event(chain: Chain, log: BankLog, p_fraud_N: np.ndarray) -> None:
    early_N = log.time_us_N < ORIGIN_US + 20 * DAY_US
    columns = {n: getattr(log, n)[early_N] for n in BankLog.__dataclass_fields__ if n.endswith("_N")}
    cut = replace(log, **columns)
    assert np.allclose(fraud_probability(chain, cut), p_fraud_N[early_N], rtol=1e-12, atol=0)


def _bag(log: BankLog, n_M: np.ndarray) -> np.ndarray:
    first_M = np.searchsorted(log.user_N, log.user_N[n_M])
    counts_NV = np.zeros((log.user_N.size + 1, N_TYPES))
    counts_NV[np.arange(1, log.user_N.size + 1), log.type_N] = 1
    counts_NV = np.cumsum(counts_NV, axis=0)
    return np.column_stack([counts_NV[n_M + 1] - counts_NV[np.maximum(n_M - 63, first_M)], log.amount_N[n_M]])


def _last_events(log: BankLog, n_M: np.ndarray) -> np.ndarray:
    """Return the last eight types and gaps, and the time since the last event of each type, and the amount."""
    first_M = np.searchsorted(log.user_N, log.user_N[n_M])
    columns: list[np.ndarray] = [log.amount_N[n_M]]
    for back in range(8):
        at_M = np.maximum(n_M - back, first_M)
        columns.append(np.where(n_M - back >= first_M, log.type_N[at_M], -1))
        gap_us_M = log.time_us_N[n_M] - log.time_us_N[at_M]
        columns.append(np.log1p(gap_us_M))
    for event_type in range(N_TYPES):
        seen_N = np.maximum.accumulate(np.where(log.type_N == event_type, np.arange(log.user_N.size), -1))
        at_M = seen_N[n_M - 1]
        columns.append(np.where(at_M >= first_M, np.log1p(np.abs(log.time_us_N[n_M] - log.time_us_N[at_M])), np.nan))
    return np.column_stack(columns)


def test_order_and_pace_reach_most_of_the_oracle_and_a_bag_of_events_less_than_half(
    log: BankLog, p_fraud_N: np.ndarray
) -> None:
    decision_M = np.flatnonzero(IS_DECISION_V[log.type_N])
    decision_M = decision_M[np.argsort(log.time_us_N[decision_M], kind="stable")]
    cut = int(0.7 * decision_M.size)
    train_M, test_M = decision_M[:cut], decision_M[cut:]

    def fitted_ap(features: object) -> float:
        model = HistGradientBoostingClassifier(max_iter=60, learning_rate=0.15, max_leaf_nodes=15, random_state=0)
        model.fit(features(log, train_M), log.is_fraud_N[train_M])  # type: ignore[operator]
        score_M = model.predict_proba(features(log, test_M))[:, 1]  # type: ignore[operator]
        return float(average_precision_score(log.is_fraud_N[test_M], score_M))

    oracle_ap = float(average_precision_score(log.is_fraud_N[test_M], p_fraud_N[test_M]))
    assert 0.7 < oracle_ap < 0.95
    assert fitted_ap(_bag) < 0.5 * oracle_ap
    assert 0.8 * oracle_ap < fitted_ap(_last_events) < 1.03 * oracle_ap


@pytest.mark.parametrize("fraud_rate", [0.005, 0.05, 0.1])
def test_fraud_has_the_rate_asked_for_and_decoys_outnumber_it(fraud_rate: float) -> None:
    chain = bank_chain(fraud_rate)
    log = simulate_bank(chain, users=3000, days=45, seed=2)
    decision_N = IS_DECISION_V[log.type_N]
    n_fraud, n_decisions = int(log.is_fraud_N.sum()), int(decision_N.sum())
    assert abs(n_fraud - fraud_rate * n_decisions) < 5 * math.sqrt(fraud_rate * n_decisions)
    kind_N, story_N = chain.kind_K[log.state_N][decision_N], log.story_N[decision_N]
    for story in range(len(STORIES)):
        n_of = {kind: int(((kind_N == k) & (story_N == story)).sum()) for k, kind in enumerate(KINDS)}
        assert min(n_of["order_decoy"], n_of["timing_decoy"]) > n_of["fraud"] > n_of["honest_same"] > 0
    assert (kind_N == KINDS.index("atypical")).sum() > 0


def test_each_era_opens_the_sessions_of_its_own_law_and_goes_on_with_those_begun(
    later_chain: Chain, later_log: BankLog
) -> None:
    opens = np.flatnonzero(later_log.opens_session_N)
    is_later_S = later_log.time_us_N[opens] >= ORIGIN_US + LATER_FROM_DAY * DAY_US
    for start_K, of_era_S in zip(later_chain.start_EK, (~is_later_S, is_later_S), strict=True):
        n_opened_K = np.bincount(later_log.state_N[opens[of_era_S]], minlength=start_K.size)
        assert np.all(np.abs(n_opened_K - of_era_S.sum() * start_K) <= 5 * np.sqrt(of_era_S.sum() * start_K))


def test_the_later_story_brings_fraud_at_its_rate_into_a_pattern_that_was_honest(
    later_chain: Chain, later_log: BankLog
) -> None:
    decision_N = IS_DECISION_V[later_log.type_N]
    is_later_N = decision_N & (later_log.time_us_N >= ORIGIN_US + LATER_FROM_DAY * DAY_US)
    told_N = later_log.story_N == ALL_STORIES.index(LATER_STORY)
    n_later = int(is_later_N.sum())
    n_fraud = int((is_later_N & told_N & later_log.is_fraud_N).sum())
    assert abs(n_fraud - 0.03 * n_later) < 5 * math.sqrt(0.03 * n_later)
    before_N = decision_N & ~is_later_N & told_N
    assert not later_log.is_fraud_N[before_N].any()
    for kind in ("honest_same", "order_decoy", "timing_decoy"):
        assert (later_chain.kind_K[later_log.state_N[before_N]] == KINDS.index(kind)).any(), kind


def test_an_era_that_changes_nothing_leaves_every_draw_as_it_was(chain: Chain, log: BankLog) -> None:
    twice = replace(chain, era_from_s_E=np.array([0.0, 20 * 86_400.0]), start_EK=np.repeat(chain.start_EK, 2, axis=0))
    again = simulate_bank(twice, users=2500, days=60, seed=1)
    for name in BankLog.__dataclass_fields__:
        if name.endswith("_N"):
            assert np.array_equal(getattr(again, name), getattr(log, name), equal_nan=name == "amount_N"), name


def test_the_default_log_is_of_the_promised_size() -> None:
    chain = bank_chain(0.01)
    log = simulate_bank(chain, users=8000, days=90, seed=0)
    assert 400_000 < log.user_N.size < 650_000
    assert log.is_fraud_N.sum() >= 1000
    assert np.unique(log.user_N).size == 8000


def test_events_of_a_user_never_share_a_time_and_sessions_never_interleave(log: BankLog) -> None:
    same_user = np.diff(log.user_N) == 0
    assert np.all(np.diff(log.user_N) >= 0)
    assert np.all(np.diff(log.time_us_N)[same_user] > 0)
    opens = log.opens_session_N[1:] & same_user
    assert MIN_IDLE_S <= np.diff(log.time_us_N)[opens].min() / 1e6 < 1.1 * MIN_IDLE_S
    assert np.all(log.opens_session_N[1:][~same_user])


def test_the_bank_clock_turns_back_into_time() -> None:
    time_s = np.linspace(0.0, 40 * 86_400.0, 997)
    assert np.allclose(time_of_reading(clock_reading(time_s)), time_s, atol=1e-5)
    step_s = 0.5
    slope = (clock_reading(time_s + step_s) - clock_reading(time_s)) / step_s
    inside_hour = np.mod(time_s, 3600.0) < 3600.0 - step_s
    assert np.allclose(slope[inside_hour], clock_speed(time_s)[inside_hour], atol=1e-6)
