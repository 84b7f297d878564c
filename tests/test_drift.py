"""What is off is told from what merely varies, a lasting change is one alarm, and the words say what was done."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from fraud.events import FloatArray
from fraud.instants import DAY_US
from fraud.monitoring.alarms import Change, Run, changes
from fraud.monitoring.attribution import Observed, headline, sentences
from fraud.monitoring.dispersion import moderated, prior_of
from fraud.monitoring.drift import Series, judge_weeks
from fraud.monitoring.tails import t_beyond, trigamma, trigamma_inverse, two_sided_t
from fraud.monitoring.weekly import WEEK_US, Means, Shares, Weekly, week_of, week_starts

N_EVENTS = 20_000
STARTS_US_W = 20_000 * DAY_US + WEEK_US * np.arange(40)


def weekly(shares: Shares) -> Weekly:
    return Weekly(STARTS_US_W[: len(shares.k_WC)], {"type": shares}, {}, {}, {}, {})


def drawn(rng: np.random.Generator, p_C: FloatArray, n_weeks: int, *, spread: float, n: int = N_EVENTS) -> Shares:
    """Return shares around p_C; spread: how many times the binomial's variance they vary by (beta-binomial)."""
    rho = (spread - 1) / (n - 1)
    p_WC = np.broadcast_to(p_C, (n_weeks, len(p_C)))
    if rho > 0:
        p_WC = rng.beta(p_C * (1 / rho - 1), (1 - p_C) * (1 / rho - 1), size=p_WC.shape)
    cells = tuple((f"cell {c}",) for c in range(len(p_C)))
    return Shares(cells, rng.binomial(n, p_WC).astype(np.int64), np.full(p_WC.shape, n, dtype=np.int64))


def judged(reference: Shares, later: Shares, *, level: float = 0.02) -> tuple[Series, ...]:
    pair = (weekly(reference), weekly(later))
    return judge_weeks([pair], level=level, others=lambda _: ()).series


def test_tails_are_undone_by_their_inverses() -> None:
    df = np.array([2.0, 9.0, 60.0])
    for p in (0.5, 1e-3, 1e-9):
        assert two_sided_t(t_beyond(p, df), df) == pytest.approx(p, rel=1e-6)
    for z in (0.2, 1.0, 4.5, 30.0):
        assert trigamma_inverse(float(trigamma(np.array([z]))[0])) == pytest.approx(z, rel=1e-6)


def test_weeks_end_where_they_should_and_hold_each_day_once() -> None:
    starts_us_W = week_starts(3 * DAY_US, 25 * DAY_US)
    assert starts_us_W.tolist() == [4 * DAY_US, 11 * DAY_US, 18 * DAY_US]
    time_us_N = np.array([4 * DAY_US - 1, 4 * DAY_US, 11 * DAY_US - 1, 11 * DAY_US, 25 * DAY_US])
    assert week_of(time_us_N, starts_us_W).tolist() == [-1, 0, 0, 1, -1]
    assert len(week_starts(3 * DAY_US, 9 * DAY_US)) == 0


@pytest.mark.parametrize("spread", [1.0, 4.0])
def test_quiet_weeks_alarm_as_rarely_as_was_asked_for(spread: float) -> None:
    rng = np.random.default_rng(1)
    p_C = np.geomspace(0.0001, 0.4, 100)
    n_off = 0
    for _ in range(10):
        series = judged(drawn(rng, p_C, 8, spread=spread), drawn(rng, p_C, 30, spread=spread), level=0.05)
        n_off += int(np.any([one.is_off_W for one in series], axis=0).sum())
    # 5 % of 300 are 15; weeks of one reference err together, so 27 is no more than two spreads above.
    assert n_off <= 27


def test_a_share_that_varies_more_needs_more_to_be_off() -> None:
    rng = np.random.default_rng(2)
    p_C = np.full(40, 0.05)
    calm, moody = drawn(rng, p_C, 12, spread=1.0), drawn(rng, p_C, 12, spread=20.0)
    later = drawn(rng, p_C * 1.2, 1, spread=1.0)
    assert all(one.is_off_W[0] for one in judged(calm, later))
    assert not any(one.is_off_W[0] for one in judged(moody, later))


def test_one_cell_that_varies_is_not_believed_to_vary_as_little_as_the_others() -> None:
    rng = np.random.default_rng(3)
    p_C = np.full(30, 0.05)
    reference, later = drawn(rng, p_C, 12, spread=1.0), drawn(rng, p_C * 1.15, 1, spread=1.0)
    moody = drawn(rng, p_C[:1], 12, spread=40.0)
    reference.k_WC[:, 0] = moody.k_WC[:, 0]
    series = judged(reference, later)
    assert not series[0].is_off_W[0]
    assert series[0].dispersion > 10 * series[1].dispersion


def test_variances_have_in_common_what_they_were_drawn_with() -> None:
    rng = np.random.default_rng(7)
    df_G = np.full(2_000, 8.0)
    true_G = 3.0 * 12.0 / rng.chisquare(12.0, len(df_G))  # scaled inverse chi-squared, s0 = 3, d0 = 12
    prior = prior_of(true_G * rng.chisquare(8.0, len(df_G)) / 8.0, df_G)
    assert prior.variance == pytest.approx(3.0, rel=0.05)
    assert prior.df == pytest.approx(12.0, rel=0.25)


def test_one_wild_variance_does_not_make_the_others_doubtful() -> None:
    rng = np.random.default_rng(8)
    variance_G, df_G = rng.chisquare(8.0, 40) / 8.0, np.full(40, 8.0)
    wild_G = np.append(variance_G, 500.0)
    calm, beside = prior_of(variance_G, df_G), prior_of(wild_G, np.append(df_G, 8.0))
    assert beside.variance == pytest.approx(calm.variance, rel=0.1)
    dispersion_C, df_C = moderated(wild_G, np.append(df_G, 8.0), np.ones(41, dtype=np.bool_), beside)
    assert dispersion_C[-1] == 500.0
    assert df_C[-1] == 8.0


def test_the_first_events_of_a_kind_are_no_alarm_and_a_hundred_are() -> None:
    cells = (("app_tour",), ("login",))
    n_VC = np.full((8, 2), N_EVENTS, dtype=np.int64)
    reference = Shares(cells, np.array([[0, 5_000]] * 8, dtype=np.int64), n_VC)
    for n_new, is_off in ((1, False), (2, False), (100, True)):
        later = Shares(cells, np.array([[n_new, 5_000]], dtype=np.int64), n_VC[:1])
        assert judged(reference, later)[0].is_off_W[0] == is_off


def test_ten_times_the_events_are_not_believed_to_be_ten_times_as_exact() -> None:
    rng = np.random.default_rng(4)
    p_C = np.full(20, 0.05)
    reference = drawn(rng, p_C, 12, spread=10.0)
    many = drawn(rng, p_C, 20, spread=100.0, n=10 * N_EVENTS)  # the moods of the weeks are what they were
    assert np.any([one.is_off_W for one in judged(reference, many)], axis=0).sum() <= 2


def test_an_empty_week_is_off_by_its_volume_alone() -> None:
    rng = np.random.default_rng(5)
    reference = weekly(drawn(rng, np.full(10, 0.1), 8, spread=1.0))
    reference = reference._replace(volumes={"events": rng.poisson(N_EVENTS, 8).astype(np.int64)})
    nothing = np.zeros((1, 10), dtype=np.int64)
    later = weekly(Shares(reference.shares["type"].cells, nothing, nothing))
    later = later._replace(volumes={"events": np.zeros(1, dtype=np.int64)})
    series = judge_weeks([(reference, later)], level=0.02, others=lambda _: ()).series
    assert {one.statistic for one in series if one.is_off_W[0]} == {"volume"}


def test_a_mean_is_off_where_it_moves_more_than_weeks_do() -> None:
    rng = np.random.default_rng(6)

    def means(shift: float, n_weeks: int) -> Means:
        values_WN = rng.normal(4.0 + shift, 0.8, (n_weeks, 500)) + rng.normal(0, 0.05, (n_weeks, 1))
        n_W1 = np.full((n_weeks, 1), 500.0)
        total, square = values_WN.sum(axis=1)[:, None], (values_WN**2).sum(axis=1)[:, None]
        return Means((("transfer_out",),), n_W1, total, square)

    for shift, is_off in ((0.0, False), (1.0, True)):
        pair = (only_means(means(0.0, 12)), only_means(means(shift, 1)))
        (series,) = judge_weeks([pair], level=0.02, others=lambda _: ()).series
        assert bool(series.is_off_W[0]) == is_off


def only_means(means: Means) -> Weekly:
    return Weekly(STARTS_US_W[: len(means.n_WC)], {}, {"amount": means}, {}, {}, {})


def series_of(t_W: list[float], *, statistic: str = "type", cell: str = "a", off_from: float = 4.5) -> Series:
    t = np.array(t_W)
    p_W = two_sided_t(t, np.full(len(t), 60.0))
    nothing_W = np.zeros(len(t))
    return Series(
        statistic=statistic,
        cell=(cell,),
        kind="share",
        reference_V=np.full(12, 0.1),
        observed_W=0.1 + t / 100,
        expected=0.1,
        low_W=nothing_W,
        high_W=nothing_W,
        t_W=t,
        p_W=p_W,
        is_off_W=np.abs(t) >= off_from,
        dispersion=1.0,
        df=60.0,
    )


def test_a_change_that_lasts_is_one_alarm_with_the_week_it_began() -> None:
    (change,) = changes((series_of([0, 1, -1, 0, 9, 8, 9, 8, 9]),), {})
    assert (change.onset, change.found, change.last) == (4, 4, 8)


def test_a_small_change_is_found_late_and_dated_back() -> None:
    (change,) = changes((series_of([0, 1, -1, 3.5, 3.2, 5, 3, 2, 5]),), {})
    assert (change.onset, change.found, change.last) == (3, 5, 8)


def test_a_fault_of_two_weeks_is_over_after_them() -> None:
    (change,) = changes((series_of([0, 1, 9, 9, 0, 1, -1, 0, 0]),), {})
    assert (change.onset, change.last) == (2, 3)


def test_two_changes_are_two_alarms() -> None:
    first, second = changes((series_of([0, 9, 9, 9, 9, 9, 9]), series_of([0, 0, 1, -1, 1, 9, 9], cell="b")), {})
    assert (first.onset, second.onset) == (1, 5)
    assert [run.series.cell for run in first.runs + second.runs] == [("a",), ("b",)]


def test_what_begins_together_is_one_alarm_the_clearest_first() -> None:
    (change,) = changes((series_of([0, 0, 5, 9], cell="late"), series_of([0, 0, 20, 20]), series_of([0, 0, 1, 9])), {})
    assert change.onset == 2
    assert change.runs[0].series.t_W[3] == 20


def test_a_faint_trace_of_an_earlier_change_is_no_new_alarm() -> None:
    clear = series_of([0, 0, 20, 20, 20, 20, 20, 20, 20, 20])
    faint = series_of([0, 1, 2, 1.5, 2, 1.8, 1.2, 4.9, 2, 2], cell="b")
    fresh = series_of([0, 1, 0, -1, 1, 0.5, -1, 4.9, 2, 2], cell="c")
    assert len(changes((clear, faint), {})) == 1
    assert len(changes((clear, fresh), {})) == 2


def test_what_labels_tell_is_found_when_they_have_come() -> None:
    (change,) = changes((series_of([0, 0, 9, 9], statistic="fraud"),), {"fraud": 2})
    assert (change.onset, change.found) == (2, 4)


def test_what_labels_tell_stands_while_the_newest_week_that_is_known_is_off() -> None:
    weeks: list[float] = [0, 0, 9, 9, 0, 0]
    (late,) = changes((series_of(weeks, statistic="fraud"),), {"fraud": 2})
    assert late.is_standing
    (over,) = changes((series_of(weeks),), {"fraud": 2})
    assert not over.is_standing
    (over,) = changes((series_of([0, 0, 9, 0, 0, 0], statistic="fraud"),), {"fraud": 2})
    assert not over.is_standing


def told(*series: Series, late: dict[str, int]) -> tuple[str, ...]:
    """Return the headline of one change, and what is said besides."""
    starts_us_W = STARTS_US_W[: len(series[0].t_W)]
    nothing = Weekly(starts_us_W, {}, {}, {}, {}, {})
    (change,) = changes(series, late)
    texts = sentences(change, Observed(nothing, nothing, {}))
    return headline(change, texts, starts_us_W), *(sentence.text for sentence in texts[1:])


def test_a_headline_says_whether_a_change_stands() -> None:
    """Weeks begin on 4 October 2024."""
    (since,) = told(series_of([0, 9, 9, 9]), late={})
    assert since.startswith("since 11 October 2024, `a` is ")
    (over,) = told(series_of([0, 9, 9, 0]), late={})
    assert over.startswith("over: from 11 October 2024 to 25 October 2024, `a` is ")
    (late,) = told(series_of([0, 9, 9, 0], statistic="fraud"), late={"fraud": 1})
    assert late.startswith("since 11 October 2024 (up to 25 October 2024, the newest that is known), ")


def test_what_still_stands_is_said_before_what_is_over() -> None:
    cause, effect = series_of([0, 9, 9, 0]), series_of([0, 9, 9, 9], statistic="alert")
    first, second = told(cause, effect, late={})
    assert first.startswith("since 11 October 2024, ")
    assert "alerted" in first
    assert second.startswith("`a` is ")
    assert second.endswith(" (over since 25 October 2024)")


def one_change(run: Run) -> Change:
    return Change(run.onset, run.found, run.last, (run,))


def said(series: Series, *, observed: Observed | None = None) -> str:
    week = int(np.argmax(np.abs(series.t_W)))
    nothing = Weekly(STARTS_US_W[:1], {}, {}, {}, {}, {})
    (sentence,) = sentences(
        one_change(Run(series, week, week, week, week, late=0)), observed or Observed(nothing, nothing, {})
    )
    return sentence.text


def shown(statistic: str, cell: tuple[str, ...], now: float, before: float, *, kind: str = "share") -> Series:
    one = series_of([9.0], statistic=statistic)
    return one._replace(cell=cell, expected=before, observed_W=np.array([now]), kind=kind)


@pytest.mark.parametrize(
    ("series", "text"),
    [
        (shown("type", ("withdraw",), 0.04, 0.02), "`withdraw` is 2x as frequent (4 %, 2 % before)"),
        (
            shown("bigram", ("receive_transfer", "withdraw"), 0.3, 0.1),
            "`withdraw` follows `receive_transfer` 3x as often (30 %, 10 % before)",
        ),
        (shown("bigram", ("login", "withdraw"), 0.02, 0.0), "`withdraw` follows `login` for the first time (2 %)"),
        (shown("type", ("withdraw",), 0.0, 0.02), "`withdraw` is gone (2 % before)"),
        (
            shown("null", ("amount", "pay_bill"), 0.02, 0.0),
            "`amount` of `pay_bill` is missing in 2 % of events, 0 % before",
        ),
        (shown("value:channel", ("web",), 0.4, 0.25), "`channel` is `web` in 40 % of events, 25 % before"),
        (
            shown("amount", ("transfer_out",), 4.6 + np.log(100.0), 4.6, kind="mean"),
            "amounts of `transfer_out` are 100x as high: another unit?",
        ),
        (shown("amount", ("transfer_out",), 4.9, 4.6, kind="mean"), "amounts of `transfer_out` are 1.3x as high"),
        (shown("gap", ("pauses in a session",), 9.0, 8.0, kind="mean"), "pauses inside sessions are 2x as long"),
        (shown("volume", ("events",), 21_000, 44_000, kind="volume"), "21,000 events in a week, 44,000 before"),
        (shown("alert", ("alerts",), 0.021, 0.01), "2.1 % of what is scored is alerted, 1 % before"),
    ],
)  # fmt: skip
def test_a_change_is_said_in_words(series: Series, text: str) -> None:
    assert said(series) == text


def test_what_was_never_seen_is_named() -> None:
    nothing = Weekly(STARTS_US_W[:1], {}, {}, {}, {}, {})
    novel = {"type": Counter({(0, "app_tour"): 120, (0, "typo"): 1, (1, "other"): 900})}
    text = said(shown("unknown", ("type",), 0.12, 0.0), observed=Observed(nothing, nothing, novel))
    assert text == "12 % of events are of type `app_tour`, never seen before"


def test_a_change_is_placed_where_most_of_it_sits() -> None:
    cells = tuple((a, b, value) for a, b in (("login", "withdraw"),) for value in ("mobile", "web"))

    def segments(mobile: int, web: int) -> Weekly:
        counted = Shares(cells, np.array([[mobile, web]]), np.array([[1_000, 1_000]]))
        return Weekly(STARTS_US_W[:1], {}, {}, {}, {"bigram|channel": counted}, {})

    series = shown("bigram", ("login", "withdraw"), 0.2, 0.1)
    only_web = Observed(segments(100, 100), segments(105, 300), {})
    everywhere = Observed(segments(100, 100), segments(200, 200), {})
    assert said(series, observed=only_web).endswith(", mostly in channel web")
    assert "mostly" not in said(series, observed=everywhere)


def test_the_cause_is_said_before_what_follows_from_it() -> None:
    scores = Run(shown("score", ("logit",), -3.0, -4.0, kind="mean")._replace(t_W=np.array([30.0])), 0, 0, 0, 0, 0)
    amounts = Run(shown("amount", ("pay_bill",), 9.2, 4.6, kind="mean"), 0, 0, 0, 0, 0)
    nothing = Observed(Weekly(STARTS_US_W[:1], {}, {}, {}, {}, {}), Weekly(STARTS_US_W[:1], {}, {}, {}, {}, {}), {})
    change = Change(0, 0, 0, (scores, amounts))
    told = sentences(change, nothing)
    assert [sentence.run.series.statistic for sentence in told] == ["amount", "score"]
    assert headline(change, told, STARTS_US_W[:1]) == (
        "since 4 October 2024, amounts of `pay_bill` are 100x as high: another unit? (and 1 more change at that time)"
    )
