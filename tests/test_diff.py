"""What changes where one scorer takes the place of another: counts, money, segments, orders, beside slow references."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fraud.changes import Known, Side, Sides, decision_matrix, movements, outcome
from fraud.config import parse_config
from fraud.decisions import DECISIONS, Policy, decide
from fraud.events import Text
from fraud.metrics import Examples, evaluate
from fraud.segments import MIN_EVENTS, Column, Order, bands, clear_from, difference_z, orders, segments
from pipelines.diff.event_columns import event_columns
from pipelines.diff.page import diff_page
from pipelines.diff.report import Affected, Diff, Event, Named
from pipelines.diff.side_by_side import N_BEFORE, Facts
from tests.commands import ROOT, SMALL_CONFIG

CONFIG = parse_config(SMALL_CONFIG, source="a test", root=ROOT)
SEEDS = st.integers(0, 2**32 - 1)
N_RESAMPLES = 50
REVIEW_AT, BLOCK_AT = 0.5, 0.8
POLICY = Policy(review_at=REVIEW_AT, block_at=BLOCK_AT, alert_budget=0.1, block_budget=0.05, costs=None)


def _sides(seed: int, *, n: int = 300, n_users: int = 40) -> tuple[Sides, Known]:
    """Return two scorers that agree somewhat, on events of some users."""
    rng = np.random.default_rng(seed)
    label_D = (rng.random(n) < 0.2).astype(np.int8)
    amount_D = np.where(rng.random(n) < 0.2, np.nan, rng.lognormal(3, 1, n).round(2))
    sides = [_side(1 / (1 + np.exp(-rng.normal(2.0 * label_D - 1, 1.5)))) for _ in range(2)]
    user_D = np.sort(rng.integers(0, n_users, n))
    return Sides(a=sides[0], b=sides[1], user_D=user_D, amount_D=amount_D), Known(label_D, rng.random(n) < 0.9)


def _side(score_D: np.ndarray) -> Side:
    return Side(score_D, decide(POLICY, score_D, amount_N=None))


def _swapped(sides: Sides) -> Sides:
    return replace(sides, a=sides.b, b=sides.a)


@given(seed=SEEDS)
def test_swapping_the_scorers_turns_everything_round(seed: int) -> None:
    sides, known = _sides(seed)
    np.testing.assert_array_equal(decision_matrix(_swapped(sides)), decision_matrix(sides).T)
    here, there = movements(sides), movements(_swapped(sides))
    assert (here.newly_alerted, here.newly_blocked) == (there.no_longer_alerted, there.no_longer_blocked)
    one, other = (outcome(x, known, costs=None, seed=1, n_resamples=N_RESAMPLES) for x in (sides, _swapped(sides)))
    assert one is not None
    assert other is not None
    assert (one.gained, one.lost, one.false_gained) == (other.lost, other.gained, other.false_lost)
    assert one.caught.ci == pytest.approx([-end for end in reversed(other.caught.ci)])
    assert one.saved is not None
    assert other.saved is not None
    assert one.saved.diff == pytest.approx(-other.saved.diff)


@given(seed=SEEDS)
def test_each_decision_is_counted_once_where_both_put_it(seed: int) -> None:
    sides, _ = _sides(seed)
    matrix = decision_matrix(sides)
    for place in range(len(DECISIONS)):
        assert matrix[place].sum() == (sides.a.decision_D == place).sum()
        assert matrix[:, place].sum() == (sides.b.decision_D == place).sum()
    moved = movements(sides)
    assert moved.newly_alerted.n == matrix[0, 1:].sum()
    assert moved.no_longer_blocked.n == matrix[2, :2].sum()
    assert sides.amount_D is not None
    newly_D = (sides.b.decision_D > 0) & (sides.a.decision_D == 0)
    assert moved.newly_alerted.amount == pytest.approx(np.nansum(sides.amount_D[newly_D]))


@pytest.mark.parametrize("costs", [None, {"review": 3.0}])
def test_caught_and_saved_are_what_evaluate_says_of_each_scorer(costs: dict[str, float] | None) -> None:
    sides, known = _sides(5)
    if costs is not None:
        policy = replace(POLICY, costs=costs)
        a, b = (Side(one.score_D, decide(policy, one.score_D, amount_N=sides.amount_D)) for one in (sides.a, sides.b))
        sides = replace(sides, a=a, b=b)
    found = outcome(sides, known, costs=costs, seed=0, n_resamples=N_RESAMPLES)
    assert found is not None
    assert found.saved is not None
    assert sides.amount_D is not None
    for side, caught, saved in ((sides.a, found.caught.a, found.saved.a), (sides.b, found.caught.b, found.saved.b)):
        examples = Examples(
            score_N=side.score_D[known.judged_D],
            label_N=known.label_D[known.judged_D],
            user_N=sides.user_D[known.judged_D],
            amount_N=sides.amount_D[known.judged_D],
        )
        told = evaluate(examples, alert_budget=0.1, threshold=REVIEW_AT, costs=costs, n_resamples=N_RESAMPLES)
        assert told.recall_at_threshold is not None
        assert told.money_saved is not None
        assert caught == pytest.approx(told.recall_at_threshold * told.n_positive)
        assert saved == pytest.approx(told.money_saved)
    assert found.gained.n - found.lost.n == found.caught.diff


def test_a_scorer_catches_as_much_with_its_own_alerts_as_it_does() -> None:
    sides, known = _sides(6)
    found = outcome(replace(sides, b=sides.a), known, costs=None, seed=0, n_resamples=N_RESAMPLES)
    assert found is not None
    assert found.caught_at_equal == pytest.approx(found.caught.a)
    assert found.ap is not None
    assert (found.ap.diff, found.ap.lo, found.ap.hi, found.caught.ci) == (0, 0, 0, (0, 0))


def test_what_nobody_knows_is_none_and_not_0() -> None:
    sides, known = _sides(7)
    assert outcome(sides, known._replace(judged_D=np.zeros(300, dtype=np.bool_)), costs=None, seed=0) is None
    honest = known._replace(label_D=np.zeros(300, dtype=np.int8))
    found = outcome(replace(sides, amount_D=None), honest, costs=None, seed=0, n_resamples=N_RESAMPLES)
    assert found is not None
    assert (found.n_frauds, found.saved, found.ap, found.ap_a, found.caught_at_equal) == (0, None, None, None, None)
    assert movements(replace(sides, amount_D=None)).newly_alerted.amount is None


@given(seed=SEEDS)
def test_how_clear_a_difference_is_equals_a_loop_over_users(seed: int) -> None:
    rng = np.random.default_rng(seed)
    user_D = np.sort(rng.integers(0, 12, 80))
    changed_D, inside_D = rng.random(80) < 0.3, rng.random(80) < 0.4
    inside, changed = inside_D - inside_D.mean(), changed_D - changed_D.mean()
    users = [np.flatnonzero(user_D == user) for user in np.unique(user_D)]
    by_user = [sum(inside[row] * changed[row] for row in rows) for rows in users]
    pairs = [(one, other) for rows in users for one in rows for other in rows if one != other]
    shared = max(np.mean([changed[one] * changed[other] for one, other in pairs]), 0)
    at_random = np.mean(changed**2) * sum(inside**2) + shared * sum(inside[x] * inside[y] for x, y in pairs)
    expected = sum(by_user) / np.sqrt(max(sum(part**2 for part in by_user), at_random))
    assert difference_z(changed_D, inside_D, user_D) == pytest.approx(expected, abs=1e-9)


@given(seed=SEEDS)
def test_the_same_events_again_of_the_same_users_make_nothing_clearer(seed: int) -> None:
    rng = np.random.default_rng(seed)
    user_D, changed_D, inside_D = np.arange(60), rng.random(60) < 0.3, rng.random(60) < 0.4
    once = difference_z(changed_D, inside_D, user_D)
    five_times = difference_z(changed_D.repeat(5), inside_D.repeat(5), user_D.repeat(5))
    assert five_times == pytest.approx(once, abs=1e-9)


def test_nothing_is_clear_where_all_or_none_changes() -> None:
    inside_D, user_D = np.arange(100) < 40, np.arange(100)
    for changed_D in (np.ones(100, dtype=np.bool_), np.zeros(100, dtype=np.bool_)):
        assert difference_z(changed_D, inside_D, user_D) == 0
    assert difference_z(inside_D, np.ones(100, dtype=np.bool_), user_D) == 0


def test_where_changes_are_random_hardly_a_table_has_a_segment_that_stands_out() -> None:
    rng = np.random.default_rng(0)
    n, n_users, n_tables = 3_000, 600, 200
    user_D = np.sort(rng.integers(0, n_users, n))
    still = Side(np.full(n, 0.1), np.zeros(n, dtype=np.int8))
    n_with = 0
    for _ in range(n_tables):
        # Whole users change more or less, so events alone would look clearer than they are.
        risky_D = rng.beta(0.3, 6, n_users)[user_D]
        decision_D = (rng.random(n) < risky_D).astype(np.int8)
        sides = Sides(a=still, b=still._replace(decision_D=decision_D), user_D=user_D, amount_D=None)
        habit_D = rng.integers(0, 8, n_users)[user_D]
        columns = [Column("habit", tuple("abcdefgh"), habit_D), Column("x", tuple("abcd"), rng.integers(0, 4, n))]
        n_with += any(segment.stands_out for segment in segments(columns, sides))
    assert n_with <= 0.05 * n_tables


def test_a_planted_segment_stands_out_and_is_counted() -> None:
    rng = np.random.default_rng(1)
    n = 2_000
    code_D = rng.integers(0, 3, n)
    before = Side(np.full(n, 0.6), np.ones(n, dtype=np.int8))
    after_D = np.where((code_D == 1) & (rng.random(n) < 0.3), 0, 1).astype(np.int8)
    sides = Sides(a=before, b=before._replace(decision_D=after_D), user_D=np.arange(n), amount_D=None)
    found = {segment.name: segment for segment in segments([Column("channel", ("web", "app", "pos"), code_D)], sides)}
    app = found["app"]
    assert (app.n, app.stricter, app.milder) == ((code_D == 1).sum(), 0, (after_D == 0).sum())
    assert (app.alerted_a, app.alerted_b) == (app.n, app.n - app.milder)
    assert app.stands_out
    assert app.ratio == pytest.approx(app.share / (after_D == 0).mean())
    assert app.z > 0 > found["web"].z


def test_a_segment_of_a_few_events_is_none() -> None:
    sides, _ = _sides(2)
    code_D = np.where(np.arange(300) < MIN_EVENTS - 1, 0, 1)
    assert [one.name for one in segments([Column("x", ("few", "many"), code_D)], sides)] == ["many"]


def _befores(rng: np.random.Generator, n: int, n_types: int) -> np.ndarray:
    before_DL = rng.integers(0, n_types, (n, 6)).astype(np.int32)
    before_DL[np.arange(6) >= rng.integers(0, 7, n)[:, None]] = -1  # users with a short past
    return before_DL


@settings(max_examples=20)
@given(seed=SEEDS)
def test_orders_are_counted_as_a_loop_over_the_events_counts_them(seed: int) -> None:
    rng = np.random.default_rng(seed)
    types, n = ("a", "b", "c"), 900
    before_DL = _befores(rng, n, len(types))
    is_hit_D = np.array([_last_is(row, first=0, then=1) for row in before_DL])
    changed_D = rng.random(n) < np.where(is_hit_D == 1, 0.6, 0.05)
    found = orders(before_DL, types, changed_D, np.arange(n))
    assert (found[0].first, found[0].then) == ("a", "b")
    for one in found:
        place = (types.index(one.first), types.index(one.then))
        told_D = np.array([_last_is(row, *place) for row in before_DL])
        assert (one.n, one.n_other) == ((told_D == 1).sum(), (told_D == -1).sum())
        assert (one.changed, one.changed_other) == (changed_D[told_D == 1].sum(), changed_D[told_D == -1].sum())
        assert one.z >= clear_from(3)


def _last_is(newest_first: np.ndarray, first: int, then: int) -> int:
    """Return 1 where `then` came last of the two, -1 where `first` did, 0 where not both are there."""
    row = newest_first.tolist()
    if first not in row or then not in row:
        return 0
    return 1 if row.index(then) < row.index(first) else -1


def test_where_the_events_count_and_their_order_does_not_no_order_is_told() -> None:
    rng = np.random.default_rng(3)
    n = 4_000
    before_DL = _befores(rng, n, 6)
    has_both_D = (before_DL == 0).any(axis=1) & (before_DL == 1).any(axis=1)
    changed_D = rng.random(n) < np.where(has_both_D, 0.5, 0.02)
    assert orders(before_DL, tuple("abcdef"), changed_D, np.arange(n)) == ()


def test_each_event_is_in_one_segment_of_a_field() -> None:
    sides, _ = _sides(4)
    n = len(sides.user_D)
    columns = event_columns(sides, _facts(4, n), CONFIG)
    by_field: dict[str, np.ndarray] = {}
    for column in columns:
        assert column.code_D.max() < len(column.names)
        by_field[column.field] = by_field.get(column.field, np.zeros(n, dtype=int)) + (column.code_D >= 0)
    whole = {"type", "amount", "channel", "payee to the user", "hour of day", "events before in the session"}
    assert {field for field, n_D in by_field.items() if (n_D == 1).all()} >= whole
    amounts = next(column for column in columns if column.field == "amount")
    assert sides.amount_D is not None
    for code, name in enumerate(amounts.names):
        inside = sides.amount_D[amounts.code_D == code]
        assert len(inside)
        if name == "(none)":
            assert np.isnan(inside).all()
        elif " to " in name:
            low, high = (float(edge.replace(",", "")) for edge in name.split(" to "))
            assert ((inside >= low) & (inside < high)).all()


def _facts(seed: int, n: int) -> Facts:
    rng = np.random.default_rng(seed)
    types = np.array(["login", "withdraw", "transfer_out"], dtype=object)
    codes = rng.integers(-1, 2, n).astype(np.int32)
    return Facts(
        event_id=pa.array([f"e{row}" for row in range(n)]),
        time_us_D=np.sort(rng.integers(0, 10**15, n)),
        hour_D=rng.integers(0, 24, n),
        type=Text(rng.integers(0, 3, n).astype(np.int32), types),
        categorical={"channel": Text(codes, np.array(["web", "app"], dtype=object))},
        first_seen={"payee": rng.integers(-1, 2, n)},
        place_D=rng.integers(0, 30, n),
        gap_us_D=rng.integers(-1, 10**12, n),
        before_B=Text(rng.integers(-1, 3, n * N_BEFORE).astype(np.int32), types),
        by_rule_a_D=np.zeros(n, dtype=np.bool_),
        by_rule_b_D=rng.random(n) < 0.1,
    )


def test_a_value_on_an_edge_belongs_to_the_band_above() -> None:
    code_D = bands(np.array([-1.0, 0.0, 9.9, 10.0, 1e9, np.nan]), (0, 10), ("below", "few", "many"))
    assert code_D.tolist() == [0, 1, 1, 2, 2, -1]


def _diff(**changes: object) -> Diff:
    sides, known = _sides(8)
    change_D = sides.change_D
    event = Event("e1", "2026-03-01T10:00:00+00:00", "withdraw", 12.5, "allow", "block", 0.1, 0.9, True)
    whole = Diff(
        a=Named("lstm", "0123456789ab"),
        b=Named("fused", "ba9876543210"),
        since="2026-03-01T00:00:00Z",
        until=None,
        n=len(change_D),
        n_users=40,
        n_stricter=int((change_D > 0).sum()),
        n_milder=int((change_D < 0).sum()),
        n_changed_users=30,
        matrix=decision_matrix(sides),
        movements=movements(sides),
        outcome=outcome(sides, known, costs=None, seed=0, n_resamples=N_RESAMPLES),
        alert_budget=0.01,
        segments=segments(event_columns(sides, _facts(8, len(change_D)), CONFIG), sides),
        orders=(Order("login", "withdraw", 200, 40, 100, 2, 5.0),),
        stricter=(Affected("u1", 2, 30.0, 1, event),),
        milder=(),
        limits=("a limit",),
    )
    return replace(whole, **changes)  # type: ignore[arg-type]


def test_the_words_say_which_way_the_order_goes() -> None:
    said = " ".join(_diff().words())
    assert "after login then withdraw 20.0% of the decisions change, after withdraw then login 2.0%" in said


def test_nothing_is_told_but_that_nothing_changes() -> None:
    diff = _diff(n_stricter=0, n_milder=0)
    assert diff.words() == ["Nothing changes: A and B decide all 300 events alike."]


def test_the_page_is_whole_in_itself_and_escapes_what_it_shows() -> None:
    evil = '<script>alert("x")</script>'
    diff = _diff(limits=(evil,), orders=(Order(evil, "withdraw", 200, 40, 100, 2, 5.0),))
    affected = diff.stricter[0]
    diff = replace(diff, stricter=(affected._replace(user_id=evil, event=affected.event._replace(event_id=evil)),))
    shown = diff_page(diff, [])
    assert "<script" not in shown
    assert shown.count("&lt;script&gt;") >= 4
    assert "default-src 'none'" in shown
    assert "nan" not in shown.lower()
