"""Aggregate and order features of the same context and carry, for the gradient-boosting scorer.

Every count is over the event's context (windows of time are intersected with it), so a feature is known to the batch
pass and to the online store alike. Types beyond the 32 most frequent count as "other", pairs of types beyond 64 too.
With order_features = False only a bag is left: nothing that changes when earlier events swap their places.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fraud.contexts import Scope, context_rows
from fraud.enrich import AMOUNT_UNIT, Enriched
from fraud.entities import RISK_NAMES
from fraud.events import NULL_CODE, IntArray, Text
from fraud.tokens import FIRST_ID, Risk, Vocabulary, amount_deviation, encode_column, token_columns

FeatureArray = npt.NDArray[np.float32]
N_TYPES = 32
N_LAST = 6
WINDOWS = (("10m", 600), ("1h", 3600), ("1d", 86_400), ("7d", 604_800))
AMOUNT_WINDOWS = (("1d", 86_400), ("7d", 604_800), ("14d", 1_209_600), ("28d", 2_419_200))
_UNUSUAL = 2.0  # spreads above the user's mean from which on an amount counts as unusual
_SECOND_US = 10**6
_NamedColumn = tuple[str, npt.NDArray[np.generic]]


class FeatureSpec(NamedTuple):
    """What of the configuration shapes the features."""

    scope: Scope
    max_events: int
    order_features: bool


def feature_names(enriched: Enriched, risk: Risk, vocabulary: Vocabulary, spec: FeatureSpec) -> tuple[str, ...]:
    """Return the names of the C columns of `features` for events with these fields."""
    none = np.zeros(0, dtype=np.int64)
    return tuple(name for name, _ in _columns(enriched, risk, vocabulary, spec, none))


def features(
    enriched: Enriched, risk: Risk, vocabulary: Vocabulary, spec: FeatureSpec, rows_R: IntArray
) -> FeatureArray:
    """Return float32 [R, C], NaN = none: the features of the events at rows_R, each from its own past only.

    Raises BundleError when the vocabulary was fitted with other fields than the events have.
    """
    columns = [column.astype(np.float32) for _, column in _columns(enriched, risk, vocabulary, spec, rows_R)]
    return np.stack(columns, axis=1)


def _columns(
    enriched: Enriched, risk: Risk, vocabulary: Vocabulary, spec: FeatureSpec, rows_R: IntArray
) -> Iterator[_NamedColumn]:
    context_R = context_rows(enriched, spec.scope, spec.max_events)[rows_R]
    starts = {"context": context_R}
    if enriched.events.has_clock:
        starts |= _window_rows(enriched, rows_R, context_R, WINDOWS)
    yield from _own_columns(enriched, risk, vocabulary, rows_R)
    for name, start_R in starts.items():
        yield f"events:{name}", rows_R - start_R + 1
    yield from _type_counts(enriched, vocabulary, rows_R, starts if spec.order_features else {"context": context_R})
    if spec.order_features:
        yield from _last_events(enriched, vocabulary, rows_R, context_R)
        yield from _bigram_counts(enriched, vocabulary, rows_R, context_R)
        yield from _elapsed(enriched, vocabulary, rows_R, context_R)
        yield from _recent_amounts(enriched, rows_R, context_R)


def _own_columns(enriched: Enriched, risk: Risk, vocabulary: Vocabulary, rows_R: IntArray) -> Iterator[_NamedColumn]:
    """Yield what the event itself says and its relation to the user's past, but not its type."""
    events = enriched.events
    field_of = {field.name: field for field in vocabulary.fields}
    for name, (kind, column) in token_columns(enriched, risk).items():
        if isinstance(column, Text):
            if name != "type":
                yield name, encode_column(column.take(rows_R), field_of[name])
        elif kind == "quantile" or (kind == "small" and name != "session_start"):
            yield name, column[rows_R]
    yield "events_in_session", enriched.session_position_N[rows_R] + 1
    yield "events_of_user", enriched.index_N[rows_R] + 1
    if events.has_clock:
        yield "gap_s", _seconds(enriched.gap_us_N[rows_R])
        yield "since_session_s", enriched.since_session_us_N[rows_R] / _SECOND_US
        yield "weekday", enriched.weekday_N[rows_R]
    if enriched.past_mean_N is not None:
        yield "past_mean", enriched.past_mean_N[rows_R]
    if enriched.past_count_N is not None:
        yield "past_amounts", enriched.past_count_N[rows_R]
    for name, risk_NR in risk.items():
        for r, what in enumerate(RISK_NAMES):
            yield f"{what}:{name}", risk_NR[rows_R, r]


def _window_rows(
    enriched: Enriched, rows_R: IntArray, context_R: IntArray, windows: tuple[tuple[str, int], ...]
) -> dict[str, IntArray]:
    """Return the first row of each window of time, by name: at most so old, and inside the context."""
    longest_us = windows[-1][1] * _SECOND_US
    # One clock for all users that never runs backwards: idle time is cut at just over the longest window, and the
    # same lies between two users, so no window reaches across either.
    step_us_N = np.minimum(np.maximum(enriched.gap_us_N, 0), longest_us + 1)
    step_us_N[enriched.events.first_of_user()] = longest_us + 1
    clock_us_N = np.cumsum(step_us_N)
    return {
        name: np.maximum(np.searchsorted(clock_us_N, clock_us_N[rows_R] - seconds * _SECOND_US), context_R)
        for name, seconds in windows
    }


def _recent_amounts(enriched: Enriched, rows_R: IntArray, context_R: IntArray) -> Iterator[_NamedColumn]:
    """Yield how the user's latest amounts lie beside their usual ones: those of a stolen card are high together.

    Sums are of integers, so that they do not depend on where the rows begin.
    """
    amount_N, mean_N = enriched.amount_log_N, enriched.past_mean_N
    if amount_N is None or mean_N is None:
        return
    for back in range(1, N_LAST):
        row_R = np.maximum(rows_R - back, 0)
        is_there_R = rows_R - back >= context_R
        yield f"amount_over_mean_{back}", np.where(is_there_R, amount_N[row_R] - mean_N[row_R], np.nan)
    if not enriched.events.has_clock:
        return
    has_N = ~np.isnan(amount_N)
    unit_N = np.rint(np.where(has_N, amount_N, 0.0) * AMOUNT_UNIT).astype(np.int64)
    unit_N1 = np.concatenate([[0], np.cumsum(unit_N)])
    has_N1, unusual_N1 = _running_count(has_N), _running_count(amount_deviation(enriched) > _UNUSUAL)
    for name, start_R in _window_rows(enriched, rows_R, context_R, AMOUNT_WINDOWS).items():
        count_R = has_N1[rows_R] - has_N1[start_R]
        recent_R = (unit_N1[rows_R] - unit_N1[start_R]) / AMOUNT_UNIT / np.maximum(count_R, 1)
        yield f"recent_mean_over_mean:{name}", np.where(count_R > 0, recent_R - mean_N[rows_R], np.nan)
        yield f"unusual_amounts:{name}", unusual_N1[rows_R] - unusual_N1[start_R]


def _type_ids(enriched: Enriched, vocabulary: Vocabulary) -> npt.NDArray[np.int16]:
    """Return int16 [N]: 0..31 for the most frequent types, 32 for every other."""
    ids_N = encode_column(enriched.events.type, vocabulary.fields[0]) - FIRST_ID
    return np.where((ids_N < 0) | (ids_N >= N_TYPES), N_TYPES, ids_N).astype(np.int16)


def _type_counts(
    enriched: Enriched, vocabulary: Vocabulary, rows_R: IntArray, starts: dict[str, IntArray]
) -> Iterator[_NamedColumn]:
    ids_N = _type_ids(enriched, vocabulary)
    names = (*vocabulary.types[:N_TYPES], "other")
    for t, type_name in zip((*range(len(names) - 1), N_TYPES), names, strict=True):
        total_N1 = _running_count(ids_N == t)
        for window, start_R in starts.items():
            yield f"count:{type_name}:{window}", total_N1[rows_R + 1] - total_N1[start_R]


def _last_events(
    enriched: Enriched, vocabulary: Vocabulary, rows_R: IntArray, context_R: IntArray
) -> Iterator[_NamedColumn]:
    ids_N = encode_column(enriched.events.type, vocabulary.fields[0])
    for back in range(N_LAST):
        is_there_R = rows_R - back >= context_R
        row_R = np.where(is_there_R, rows_R - back, 0)
        yield f"type_{back}", np.where(is_there_R, ids_N[row_R] if len(ids_N) else 0, np.nan)
        if back and enriched.events.has_clock:
            time_us_N = enriched.events.time_us
            ago_us_R = time_us_N[rows_R] - time_us_N[row_R]
            yield f"since_event_{back}_s", np.where(is_there_R, ago_us_R / _SECOND_US, np.nan)


def _bigram_counts(
    enriched: Enriched, vocabulary: Vocabulary, rows_R: IntArray, context_R: IntArray
) -> Iterator[_NamedColumn]:
    place_of = {name: place for place, name in enumerate(vocabulary.types)}
    codes_of_value = np.array([place_of.get(str(v), NULL_CODE) for v in enriched.events.type.values], dtype=np.int64)
    place_N = codes_of_value[enriched.events.type.codes_N]
    pair_N = np.full(len(place_N), NULL_CODE, dtype=np.int64)
    pair_N[1:] = np.where((place_N[:-1] < 0) | (place_N[1:] < 0), -1, place_N[:-1] * len(place_of) + place_N[1:])
    is_other_N = np.ones(len(place_N), dtype=np.bool_)
    for first, second in vocabulary.bigrams:
        is_pair_N = pair_N == place_of.get(first, 0) * len(place_of) + place_of.get(second, 0)
        is_other_N &= ~is_pair_N
        total_N1 = _running_count(is_pair_N)
        yield f"pair:{first}>{second}", total_N1[rows_R + 1] - total_N1[context_R + 1]
    total_N1 = _running_count(is_other_N)
    yield "pair:other", total_N1[rows_R + 1] - total_N1[context_R + 1]


def _elapsed(
    enriched: Enriched, vocabulary: Vocabulary, rows_R: IntArray, context_R: IntArray
) -> Iterator[_NamedColumn]:
    """Yield the time and the longest gap since each key type, and the time since each frequent type in the context."""
    if not enriched.events.has_clock:
        return
    for k, name in enumerate(enriched.spec.key_types):
        yield f"since_key:{name}_s", _seconds(enriched.since_key_us_NK[rows_R, k])
        yield f"pause:{name}_s", _seconds(enriched.pause_us_NK[rows_R, k])
    ids_N, time_us_N = _type_ids(enriched, vocabulary), enriched.events.time_us
    all_rows_N = np.arange(len(ids_N))
    for t, name in enumerate(vocabulary.types[:N_TYPES]):
        last_N = np.maximum.accumulate(np.where(ids_N == t, all_rows_N, -1))
        last_R = np.where(rows_R > 0, last_N[rows_R - 1], -1) if len(rows_R) else rows_R
        ago_us_R = time_us_N[rows_R] - time_us_N[last_R]
        yield f"since:{name}_s", np.where(last_R >= context_R, ago_us_R / _SECOND_US, np.nan)


def _running_count(is_counted_N: npt.NDArray[np.bool_]) -> npt.NDArray[np.int32]:
    """Return int32 [N + 1]: how many of the rows before each are True."""
    total_N1 = np.zeros(len(is_counted_N) + 1, dtype=np.int32)
    np.cumsum(is_counted_N, out=total_N1[1:])
    return total_N1


def _seconds(time_us: IntArray) -> npt.NDArray[np.float64]:
    return np.where(time_us < 0, np.nan, time_us / _SECOND_US)
