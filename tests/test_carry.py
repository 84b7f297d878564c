"""Laws of the transform: a log cut at any point and carried on gives what one pass gives, to the bit."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fraud.enrich import Enriched, empty_carry, enrich
from fraud.entities import NEVER_KNOWN_US, RISK_NAMES, entity_table
from fraud.events import Events, Text
from fraud.features import FeatureSpec, features
from fraud.scoring import risk_of
from fraud.sessions import NEVER_US, session_starts
from fraud.tokens import NONE_ID, Vocabulary, count_fields, encode, fit_vocabulary, half_octave, vocabulary_from_json
from tests.made_events import cut_at, enriched_whole, joined, made_config, made_events, spec_of, state_after

SEEDS = st.integers(0, 2**32 - 1)
CONFIG = made_config()


def _vocabulary(seed: int = 1) -> Vocabulary:
    enriched = enriched_whole(made_events(seed, n_users=20), CONFIG)
    risk = _risk(enriched.events)
    counts = count_fields(enriched, risk, np.ones(len(enriched.events), dtype=np.bool_))
    return fit_vocabulary(enriched, risk, counts)


def _risk(events: Events) -> dict[str, np.ndarray]:
    is_fraud_N = np.arange(len(events)) % 7 == 0
    known_us_N = events.time_us + 3 * 3600 * 10**6
    fraud_us_N, honest_us_N = (np.where(known_N, known_us_N, NEVER_KNOWN_US) for known_N in (is_fraud_N, ~is_fraud_N))
    tables = {n: entity_table(c, events.time_us, fraud_us_N, honest_us_N) for n, c in events.entity.items()}
    return dict(risk_of(events, tables))


VOCABULARY = _vocabulary()


def _rows_of(whole: Events, part: Events) -> np.ndarray:
    """Return where the events of a part stand in the whole; `row` names each event once."""
    return np.argsort(whole.row)[np.searchsorted(np.sort(whole.row), part.row)]


def _columns(enriched: Enriched, rows: np.ndarray) -> dict[str, np.ndarray]:
    columns = {f.name: getattr(enriched, f.name) for f in fields(enriched) if f.name.endswith(("_N", "_NK"))}
    there = {name: column for name, column in columns.items() if column is not None}
    return {name: column[rows] for name, column in (there | dict(enriched.first_seen)).items()}


@pytest.mark.parametrize("own_sessions", [False, True])
@given(seed=SEEDS, cut=SEEDS)
def test_enriching_two_parts_with_the_carry_equals_one_pass(own_sessions: bool, seed: int, cut: int) -> None:
    events = made_events(seed, own_sessions=own_sessions)
    first, second = cut_at(events, cut)
    spec = spec_of(CONFIG)
    whole, carry_whole = enrich(events, empty_carry(events.n_users, spec), spec)
    enriched_first, carry = enrich(first, empty_carry(events.n_users, spec), spec)
    enriched_second, carry_parts = enrich(second, carry, spec)
    for enriched, part in ((enriched_first, first), (enriched_second, second)):
        expected = _columns(whole, _rows_of(events, part))
        for name, column in _columns(enriched, np.arange(len(part))).items():
            np.testing.assert_array_equal(column, expected[name], err_msg=name)
    for field in fields(carry_whole):
        if field.name != "recent":
            expected = getattr(carry_whole, field.name)
            np.testing.assert_array_equal(getattr(carry_parts, field.name), expected, err_msg=field.name)
    for name, recent in carry_whole.recent.items():
        np.testing.assert_array_equal(carry_parts.recent[name].starts_U1, recent.starts_U1)
        assert carry_parts.recent[name].values.to_objects().tolist() == recent.values.to_objects().tolist()


@pytest.mark.parametrize("scope", ["user", "session"])
@given(seed=SEEDS, cut=SEEDS)
def test_tokens_and_features_from_the_stored_window_equal_one_pass(scope: str, seed: int, cut: int) -> None:
    events = made_events(seed)
    first, second = cut_at(events, cut)
    spec = FeatureSpec(scope, CONFIG.sessions.max_events, True)  # type: ignore[arg-type]
    whole, whole_risk = enriched_whole(events, CONFIG), _risk(events)
    carry, window = state_after(first, spec_of(CONFIG), scope, CONFIG.sessions.max_events)
    carried, _ = enrich(joined(window, second), carry, spec_of(CONFIG))
    rows = _rows_of(carried.events, second)
    whole_rows = _rows_of(events, second)
    risk = {name: risk_NR[_rows_of(events, carried.events)] for name, risk_NR in whole_risk.items()}
    np.testing.assert_array_equal(
        encode(carried, risk, VOCABULARY)[rows], encode(whole, whole_risk, VOCABULARY)[whole_rows]
    )
    np.testing.assert_array_equal(
        features(carried, risk, VOCABULARY, spec, rows), features(whole, whole_risk, VOCABULARY, spec, whole_rows)
    )


@given(seed=SEEDS)
def test_later_events_change_no_feature_and_no_token_of_earlier_ones(seed: int) -> None:
    events = made_events(seed)
    first, _ = cut_at(events, seed)
    spec = FeatureSpec("user", CONFIG.sessions.max_events, True)
    rows = _rows_of(events, first)
    risk = _risk(events)
    cut_risk = {name: risk_NR[rows] for name, risk_NR in risk.items()}
    alone, whole = enriched_whole(first, CONFIG), enriched_whole(events, CONFIG)
    all_first = np.arange(len(first))
    np.testing.assert_array_equal(encode(alone, cut_risk, VOCABULARY), encode(whole, risk, VOCABULARY)[rows])
    np.testing.assert_array_equal(
        features(alone, cut_risk, VOCABULARY, spec, all_first), features(whole, risk, VOCABULARY, spec, rows)
    )


@given(seed=SEEDS)
def test_a_session_opens_at_a_new_user_and_after_the_gap_only(seed: int) -> None:
    events = made_events(seed)
    opens_N = session_starts(
        events,
        CONFIG.sessions.gap,
        np.full(events.n_users, NEVER_US),
        np.full(events.n_users, None, dtype=object),
    )
    user_N = events.user_codes()
    for n in range(len(events)):  # the obvious rule, one event at a time
        is_new = n == 0 or user_N[n] != user_N[n - 1]
        assert opens_N[n] == (is_new or events.time_us[n] - events.time_us[n - 1] > CONFIG.sessions.gap)


@given(seed=SEEDS)
def test_counts_equal_a_plain_loop_over_the_context(seed: int) -> None:
    from fraud.contexts import context_rows
    from fraud.features import feature_names

    events = made_events(seed, n_users=2, max_count=25)
    enriched, risk = enriched_whole(events, CONFIG), _risk(events)
    spec = FeatureSpec("user", CONFIG.sessions.max_events, True)
    rows = np.arange(len(events))
    names = feature_names(enriched, risk, VOCABULARY, spec)
    got = dict(zip(names, features(enriched, risk, VOCABULARY, spec, rows).T, strict=True))
    start_N = context_rows(enriched, "user", CONFIG.sessions.max_events)
    types = events.type.to_objects()
    for n in range(len(events)):
        context = range(start_N[n], n + 1)
        for name in VOCABULARY.types:
            assert got[f"count:{name}:context"][n] == sum(types[k] == name for k in context)
            in_hour = sum(types[k] == name and events.time_us[n] - events.time_us[k] <= 3600 * 10**6 for k in context)
            assert got[f"count:{name}:1h"][n] == in_hour
            earlier = [k for k in context if k < n and types[k] == name]
            if earlier:
                ago_s = (events.time_us[n] - events.time_us[earlier[-1]]) / 1e6
                assert got[f"since:{name}_s"][n] == np.float32(ago_s)
            else:
                assert np.isnan(got[f"since:{name}_s"][n])
        for a, b in VOCABULARY.bigrams:
            pairs = sum(types[k - 1] == a and types[k] == b for k in context if k > start_N[n])
            assert got[f"pair:{a}>{b}"][n] == pairs


@given(seed=SEEDS)
def test_amounts_against_the_past_equal_a_plain_loop(seed: int) -> None:
    events = made_events(seed, n_users=2)
    enriched = enriched_whole(events, CONFIG)
    user_N = events.user_codes()
    assert events.amount is not None
    assert enriched.past_mean_N is not None
    assert enriched.past_spread_N is not None
    assert enriched.past_max_N is not None
    for n in range(len(events)):
        past = [k for k in range(n) if user_N[k] == user_N[n] and not np.isnan(events.amount[k])]
        logs = np.log1p(events.amount[past])
        if past:
            assert abs(enriched.past_mean_N[n] - logs.mean()) < 1e-6
            assert abs(enriched.past_max_N[n] - logs.max()) < 1e-6
        else:
            assert np.isnan(enriched.past_mean_N[n])
        if len(past) > 1:
            assert abs(enriched.past_spread_N[n] - logs.std()) < 2e-3


@given(seed=SEEDS)
def test_times_and_pauses_since_a_key_type_equal_a_plain_loop(seed: int) -> None:
    events = made_events(seed, n_users=3)
    enriched = enriched_whole(events, CONFIG)
    for k, name in enumerate(enriched.spec.key_types):
        for user in range(events.n_users):
            last = longest = -1
            for row in range(int(events.user_starts[user]), int(events.user_starts[user + 1])):
                time_us = int(events.time_us[row])
                if last >= 0:
                    longest = max(longest, time_us - int(events.time_us[row - 1]))
                assert enriched.since_key_us_NK[row, k] == (time_us - last if last >= 0 else -1)
                assert enriched.pause_us_NK[row, k] == (longest // 10**5 * 10**5 if last >= 0 else -1)
                if events.type.values[events.type.codes_N[row]] == name:
                    last, longest = time_us, 0


def test_a_value_is_first_seen_again_after_256_others() -> None:
    others = [f"v{k % 5}" for k in range(256)]
    for n_between, expected in ((255, 0), (256, 1)):
        cells = np.array(["x", *others[:n_between], "x"], dtype=object)
        events = made_events(3, n_users=1, max_count=0)
        from fraud.events import text_from_objects

        n_events = len(cells)
        events = Events(
            users=np.array(["u"], dtype=object),
            user_starts=np.array([0, n_events]),
            time_us=np.arange(n_events) + 10**15,
            has_clock=True,
            zone=None,
            type=Text(np.zeros(n_events, dtype=np.int32), np.array(["e"], dtype=object)),
            amount=None,
            numeric={},
            categorical={},
            entity={"payee": text_from_objects(cells)},
            session=None,
            row=np.arange(n_events),
        )
        assert enriched_whole(events, CONFIG).first_seen["payee"][-1] == expected


def test_the_vocabulary_does_not_depend_on_how_the_log_is_cut_into_chunks() -> None:
    from fraud.tokens import merge_counts

    events = made_events(5, n_users=9)
    whole, risk = enriched_whole(events, CONFIG), _risk(events)
    once = fit_vocabulary(whole, risk, count_fields(whole, risk, np.ones(len(events), dtype=np.bool_)))
    parts = []
    for first, last in ((0, 2), (2, 3), (3, 9)):
        part = enriched_whole(events.take_users(first, last), CONFIG)
        parts.append(count_fields(part, risk_none(part), np.ones(len(part.events), dtype=np.bool_)))
    assert fit_vocabulary(whole, risk, merge_counts(parts)) == once
    assert vocabulary_from_json(once.to_json()) == once


def risk_none(enriched: Enriched) -> dict[str, np.ndarray]:
    """Return risk columns without any known value; the counts do not read them."""
    return {name: np.full((len(enriched.events), len(RISK_NAMES)), np.nan) for name in enriched.events.entity}


def test_elapsed_times_fall_into_half_octaves() -> None:
    seconds = np.array([-1.0, 0, 0.04, 0.05, 0.1, 0.2, 0.3])
    ids = half_octave((np.array([-1, *(seconds[1:] * 1e6)])).astype(np.int64))
    assert ids.tolist() == [2, 3, 3, 4, 5, 6, 7]
    assert (np.diff(half_octave(np.arange(0, 10**9, 10**5))) >= 0).all()


@given(seed=SEEDS)
def test_recent_amounts_equal_a_plain_loop_over_the_context(seed: int) -> None:
    from fraud.contexts import context_rows
    from fraud.features import AMOUNT_WINDOWS, feature_names

    events = made_events(seed, n_users=2, max_count=25)
    enriched, risk = enriched_whole(events, CONFIG), _risk(events)
    spec, rows = FeatureSpec("user", CONFIG.sessions.max_events, True), np.arange(len(events))
    names = feature_names(enriched, risk, VOCABULARY, spec)
    got = dict(zip(names, features(enriched, risk, VOCABULARY, spec, rows).T, strict=True))
    start_N = context_rows(enriched, "user", CONFIG.sessions.max_events)
    amount_N, mean_N, spread_N = enriched.amount_log_N, enriched.past_mean_N, enriched.past_spread_N
    assert amount_N is not None
    assert mean_N is not None
    assert spread_N is not None
    for n in range(len(events)):
        for name, seconds in AMOUNT_WINDOWS:
            recent = [k for k in range(start_N[n], n) if events.time_us[n] - events.time_us[k] <= seconds * 10**6]
            amounts = [amount_N[k] for k in recent if not np.isnan(amount_N[k])]
            expected = np.mean(amounts) - mean_N[n] if amounts else np.nan
            assert got[f"recent_mean_over_mean:{name}"][n] == pytest.approx(expected, abs=1e-5, nan_ok=True)
            high = [k for k in recent if amount_N[k] > mean_N[k] + 2 * max(spread_N[k], 0.05)]
            assert abs(got[f"unusual_amounts:{name}"][n] - len(high)) == 0
        for back in range(1, 6):
            is_there = n - back >= start_N[n]
            expected = amount_N[n - back] - mean_N[n - back] if is_there else np.nan
            assert got[f"amount_over_mean_{back}"][n] == pytest.approx(expected, abs=1e-5, nan_ok=True)


def test_a_session_of_the_log_that_another_one_interrupts_is_counted() -> None:
    from fraud.sessions import n_reopened

    cells = np.array(["a", "a", "b", "a", "c"], dtype=object)
    from fraud.events import text_from_objects

    events = Events(
        users=np.array(["u"], dtype=object), user_starts=np.array([0, 5]), time_us=np.arange(5) + 10**15,
        has_clock=True, zone=None, type=Text(np.zeros(5, np.int32), np.array(["e"], dtype=object)), amount=None,
        numeric={}, categorical={}, entity={}, session=text_from_objects(cells), row=np.arange(5),
    )  # fmt: skip
    opens_N = session_starts(events, CONFIG.sessions.gap, np.full(1, NEVER_US), np.full(1, None, dtype=object))
    assert opens_N.tolist() == [True, False, True, True, True]
    assert n_reopened(events, opens_N) == 1


def test_events_mean_the_same_alone_as_in_a_large_input() -> None:
    events = made_events(7, n_users=900, max_count=60)
    assert len(events) > 16_384  # above it, what is read together in a small input is read one by one
    spec = FeatureSpec("user", CONFIG.sessions.max_events, True)
    whole, whole_risk = enriched_whole(events, CONFIG), _risk(events)
    all_tokens_NF = encode(whole, whole_risk, VOCABULARY)
    all_rows = np.arange(len(events))
    all_features_RC = features(whole, whole_risk, VOCABULARY, spec, all_rows)
    for user in range(0, 900, 50):
        part = events.take_users(user, user + 50)
        rows = _rows_of(events, part)
        alone, risk = enriched_whole(part, CONFIG), {name: risk_NR[rows] for name, risk_NR in whole_risk.items()}
        for name, column in _columns(alone, np.arange(len(part))).items():
            np.testing.assert_array_equal(column, _columns(whole, rows)[name], err_msg=name)
        np.testing.assert_array_equal(encode(alone, risk, VOCABULARY), all_tokens_NF[rows])
        own_rows = np.arange(len(part))
        np.testing.assert_array_equal(features(alone, risk, VOCABULARY, spec, own_rows), all_features_RC[rows])


def test_the_risk_of_no_entity_and_days_since_no_fraud_are_the_id_of_none() -> None:
    events = made_events(4)
    enriched, risk = enriched_whole(events, CONFIG), _risk(events)
    tokens = dict(zip((field.name for field in VOCABULARY.fields), encode(enriched, risk, VOCABULARY).T, strict=True))
    for what, risk_N in zip(RISK_NAMES, risk["payee"].T, strict=True):
        if f"{what}:payee" in tokens:
            np.testing.assert_array_equal(tokens[f"{what}:payee"] == NONE_ID, np.isnan(risk_N), err_msg=what)


@pytest.mark.parametrize("name", ["hour", "gap", "session_start", "amount"])
def test_a_category_that_is_called_like_a_field_of_ours_gives_way_to_it(name: str) -> None:
    events = made_events(6)
    named = replace(events, categorical={name: events.categorical["channel"]})
    enriched, risk = enriched_whole(named, CONFIG), _risk(named)
    vocabulary = fit_vocabulary(enriched, risk, count_fields(enriched, risk, np.ones(len(named), dtype=np.bool_)))
    fields_of_name = [f for f, field in enumerate(vocabulary.fields) if field.name == name]
    assert [vocabulary.fields[f].kind != "text" for f in fields_of_name] == [True]
    if name != "amount":  # whose edges are those of another vocabulary
        place = [field.name for field in VOCABULARY.fields].index(name)
        plain_NF = encode(enriched_whole(events, CONFIG), risk, VOCABULARY)
        named_NF = encode(enriched, risk, vocabulary)
        np.testing.assert_array_equal(named_NF[:, fields_of_name[0]], plain_NF[:, place])


@given(seed=SEEDS)
def test_a_dictionary_far_larger_than_the_rows_changes_no_token_and_no_feature(seed: int) -> None:
    events = made_events(seed, n_users=3, max_count=10)

    def widened(column: Text) -> Text:
        strangers = [f"never seen {k}" for k in range(400)]
        values = np.array([*strangers, *column.values.tolist(), *[None] * 100], dtype=object)
        return Text(np.where(column.codes_N < 0, -1, column.codes_N + len(strangers)).astype(np.int32), values)

    wide = replace(
        events,
        type=widened(events.type),
        categorical={name: widened(column) for name, column in events.categorical.items()},
        entity={name: widened(column) for name, column in events.entity.items()},
    )
    spec, rows = FeatureSpec("user", CONFIG.sessions.max_events, True), np.arange(len(events))
    plain, enriched, risk = enriched_whole(events, CONFIG), enriched_whole(wide, CONFIG), _risk(events)
    for name, column in _columns(plain, rows).items():
        np.testing.assert_array_equal(_columns(enriched, rows)[name], column, err_msg=name)
    np.testing.assert_array_equal(encode(enriched, risk, VOCABULARY), encode(plain, risk, VOCABULARY))
    np.testing.assert_array_equal(
        features(enriched, risk, VOCABULARY, spec, rows), features(plain, risk, VOCABULARY, spec, rows)
    )
