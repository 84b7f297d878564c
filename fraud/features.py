"""Aggregate and order features of the same context and carry, for the gradient-boosting scorer.

Every count is over the event's context (windows of time are intersected with it), so a feature is known to the batch
pass and to the online store alike. Types beyond the 32 most frequent count as "other", pairs of types beyond 64 too.
With order_features = False only a bag is left: nothing that changes when earlier events swap their places.

Columns are made in blocks, some rows at a time: a small input costs the number of calls, a large one what leaves the
cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fraud.contexts import Scope, context_rows
from fraud.enrich import AMOUNT_UNIT, Enriched
from fraud.entities import RISK_NAMES
from fraud.events import BoolArray, IntArray, Text
from fraud.fields import RISK_FIELDS, NumberColumn, Risk, amount_deviation, event_columns
from fraud.tokens import FIRST_ID, TokenArray, Vocabulary, encode_column

FeatureArray = npt.NDArray[np.float32]
N_TYPES = 32
N_LAST = 6
WINDOWS = (("10m", 600), ("1h", 3600), ("1d", 86_400), ("7d", 604_800))
AMOUNT_WINDOWS = (("1d", 86_400), ("7d", 604_800), ("14d", 1_209_600), ("28d", 2_419_200))
_UNUSUAL = 2.0  # spreads above the user's mean from which on an amount counts as unusual
_SECOND_US = 10**6
_ROWS_TOGETHER = 4_096
_CELLS_TOGETHER = 65_536  # rows x groups that are counted at once
_NO_PAIR = int(np.iinfo(np.int64).max)
_Block = tuple[list[str], NumberColumn]  # the names of C columns, and [C, R]


class FeatureSpec(NamedTuple):
    """What of the configuration shapes the features."""

    scope: Scope
    max_events: int
    order_features: bool


def feature_names(enriched: Enriched, risk: Risk, vocabulary: Vocabulary, spec: FeatureSpec) -> tuple[str, ...]:
    """Return the names of the C columns of `features` for events with these fields."""
    source = _source(enriched, risk, vocabulary, spec)
    return tuple(name for names, _ in _blocks(source, np.zeros(0, dtype=np.int64)) for name in names)


def features(
    enriched: Enriched, risk: Risk, vocabulary: Vocabulary, spec: FeatureSpec, rows_R: IntArray
) -> FeatureArray:
    """Return float32 [R, C], NaN = none: the features of the events at rows_R, each from its own past only.

    Raises BundleError when the vocabulary was fitted with other fields than the events have.
    """
    source = _source(enriched, risk, vocabulary, spec)
    # Some rows are read from their first context on to the last of them: where they are in order, little more.
    step = _ROWS_TOGETHER if bool((rows_R[1:] >= rows_R[:-1]).all()) else len(rows_R)
    features_RC: FeatureArray | None = None
    for first in range(0, max(len(rows_R), 1), step):
        some = slice(first, first + step)
        blocks = [block_CR for _, block_CR in _blocks(source, rows_R[some])]
        part_CR = np.concatenate(blocks, dtype=np.float32, casting="same_kind")
        if features_RC is None:
            features_RC = np.empty((len(rows_R), len(part_CR)), dtype=np.float32)
        features_RC[some] = part_CR.T
    assert features_RC is not None  # there is a first part, be it empty
    return features_RC


class _Source(NamedTuple):
    """What features are made of.

    ids_N: the ids of the types. context_N: the first row of each event's context. is_unusual_N: where an amount is far
    above the user's own.
    """

    enriched: Enriched
    risk: Risk
    vocabulary: Vocabulary
    spec: FeatureSpec
    ids_N: TokenArray
    context_N: IntArray
    is_unusual_N: BoolArray


def _source(enriched: Enriched, risk: Risk, vocabulary: Vocabulary, spec: FeatureSpec) -> _Source:
    return _Source(
        enriched,
        risk,
        vocabulary,
        spec,
        encode_column(enriched.events.type, vocabulary.fields[0]),
        context_rows(enriched, spec.scope, spec.max_events),
        amount_deviation(enriched) > _UNUSUAL,
    )


class _Part(NamedTuple):
    """R events and the N rows that they read: from the first of their contexts on to the last of them.

    rows: these N. rows_R, context_R: the events and where their contexts start, counted from the first of the N;
    all_rows_R: the events counted from the first of all. ids_N: the ids of the types.
    """

    rows: slice
    rows_R: IntArray
    context_R: IntArray
    all_rows_R: IntArray
    ids_N: TokenArray


def _blocks(source: _Source, all_rows_R: IntArray) -> Iterator[_Block]:
    enriched, vocabulary = source.enriched, source.vocabulary
    context_R = source.context_N[all_rows_R]
    first = int(context_R.min(initial=len(source.context_N)))
    rows = slice(first, int(all_rows_R.max(initial=first - 1)) + 1)
    part = _Part(rows, all_rows_R - first, context_R - first, all_rows_R, source.ids_N[rows])
    names, start_WR = ["context"], part.context_R[None, :]
    if enriched.events.has_clock:
        names += [name for name, _ in WINDOWS]
        start_WR = np.concatenate([start_WR, _window_rows(enriched, part, WINDOWS)])
    yield from _own_columns(source, part)
    yield [f"events:{name}" for name in names], part.rows_R + 1 - start_WR
    if not source.spec.order_features:
        yield _type_counts(vocabulary, part, names[:1], start_WR[:1])
        return
    yield _type_counts(vocabulary, part, names, start_WR)
    yield _last_events(enriched, part)
    yield _bigram_counts(vocabulary, part)
    yield from _elapsed(enriched, vocabulary, part)
    yield from _recent_amounts(source, part)


def _own_columns(source: _Source, part: _Part) -> Iterator[_Block]:
    """Yield what the event itself says and its relation to the user's past, but not its type."""
    enriched, events, rows_R = source.enriched, source.enriched.events, part.all_rows_R
    field_of = {field.name: field for field in source.vocabulary.fields}
    of_risk = {f"{field}:{name}" for field in RISK_FIELDS for name in source.risk}
    names: list[str] = []
    columns: list[NumberColumn] = []
    for name, (kind, column) in event_columns(enriched, rows_R).items():
        if isinstance(column, Text):
            if name != "type" and name not in of_risk:
                names.append(name)
                columns.append(encode_column(column, field_of[name]))
        elif kind in ("quantile", "small") and name != "session_start" and name not in of_risk:
            names.append(name)
            columns.append(column)
    names += ["events_in_session", "events_of_user"]
    columns += [enriched.session_position_N[rows_R] + 1, enriched.index_N[rows_R] + 1]
    if events.has_clock:
        names += ["gap_s", "since_session_s", "weekday"]
        columns += [_seconds(enriched.gap_us_N[rows_R]), enriched.since_session_us_N[rows_R] / _SECOND_US]
        columns.append(enriched.weekday_N[rows_R])
    if enriched.past_mean_N is not None:
        names.append("past_mean")
        columns.append(enriched.past_mean_N[rows_R])
    if enriched.past_count_N is not None:
        names.append("past_amounts")
        columns.append(enriched.past_count_N[rows_R])
    yield names, np.array(columns, dtype=np.float32)
    for name, risk_NR in source.risk.items():
        yield [f"{what}:{name}" for what in RISK_NAMES], risk_NR[rows_R].T


def _window_rows(enriched: Enriched, part: _Part, windows: tuple[tuple[str, int], ...]) -> IntArray:
    """Return int64 [W, R]: the first row of each window of time: at most so old, and inside the context."""
    longest_us = windows[-1][1] * _SECOND_US
    # One clock for all users that never runs backwards: idle time is cut at just over the longest window, and the
    # same lies between two users, so no window reaches across either.
    step_us_N = np.minimum(np.maximum(enriched.gap_us_N[part.rows], 0), longest_us + 1)
    first_U = enriched.events.user_starts[:-1]
    begin, end = first_U.searchsorted([part.rows.start, part.rows.stop])
    step_us_N[first_U[begin:end] - part.rows.start] = longest_us + 1
    clock_us_N = np.add.accumulate(step_us_N)
    age_us_W1 = np.array([[seconds * _SECOND_US] for _, seconds in windows])
    return np.maximum(clock_us_N.searchsorted(clock_us_N[part.rows_R] - age_us_W1), part.context_R)


def _counts(group_N: npt.NDArray[np.integer], n_groups: int, start_WR: IntArray, end_R: IntArray) -> FeatureArray:
    """Return float32 [G, W, R]: how many of the rows start : end are of each of the groups 0 .. n_groups - 1."""
    counts_GWR = np.empty((n_groups, *start_WR.shape), dtype=np.float32)
    step = max(1, _CELLS_TOGETHER // max(len(group_N), 1))
    for first in range(0, n_groups, step):
        groups_G1 = np.arange(first, min(first + step, n_groups), dtype=group_N.dtype)[:, None]
        total_GN1 = np.zeros((len(groups_G1), len(group_N) + 1), dtype=np.int32)
        np.add.accumulate(group_N == groups_G1, axis=1, dtype=np.int32, out=total_GN1[:, 1:])
        counts_GWR[first : first + step] = total_GN1.take(end_R, axis=1)[:, None] - total_GN1.take(start_WR, axis=1)
    return counts_GWR


def _type_counts(vocabulary: Vocabulary, part: _Part, windows: Sequence[str], start_WR: IntArray) -> _Block:
    types = vocabulary.types[:N_TYPES]
    place_N = part.ids_N - FIRST_ID
    group_N = np.where((place_N < 0) | (place_N >= len(types)), np.int16(len(types)), place_N)
    counts_TWR = _counts(group_N, len(types) + 1, start_WR, part.rows_R + 1)
    names = [f"count:{name}:{window}" for name in (*types, "other") for window in windows]
    return names, counts_TWR.reshape(len(names), len(part.rows_R))


def _last_events(enriched: Enriched, part: _Part) -> _Block:
    row_LR = part.rows_R - np.arange(N_LAST)[:, None]
    is_there_LR = row_LR >= part.context_R
    row_LR = np.where(is_there_LR, row_LR, part.rows_R)
    type_LR = np.where(is_there_LR, part.ids_N[row_LR], np.nan)
    if not enriched.events.has_clock:
        return [f"type_{back}" for back in range(N_LAST)], type_LR
    time_us_N = enriched.events.time_us[part.rows]
    ago_s_LR = np.where(is_there_LR, (time_us_N[part.rows_R] - time_us_N[row_LR]) / _SECOND_US, np.nan)
    names = [name for back in range(N_LAST) for name in (f"type_{back}", f"since_event_{back}_s")]
    both_CR = np.stack([type_LR, ago_s_LR], axis=1).reshape(len(names), len(part.rows_R))
    return [names[0], *names[2:]], both_CR[[0, *range(2, len(names))]]  # no time since the event itself


def _bigram_counts(vocabulary: Vocabulary, part: _Part) -> _Block:
    id_of, n_types = vocabulary.fields[0].id_of, len(vocabulary.fields[0].values)
    place_N = part.ids_N.astype(np.int64) - FIRST_ID
    pair_N = np.full(len(place_N), -1)
    pair_N[1:] = np.where((place_N[:-1] < 0) | (place_N[1:] < 0), -1, place_N[:-1] * n_types + place_N[1:])
    id_B2 = [id_of.get(name, FIRST_ID) for pair in vocabulary.bigrams for name in pair]
    place_B2 = np.array(id_B2, dtype=np.int64).reshape(-1, 2) - FIRST_ID
    pair_G, group_B = np.unique(place_B2[:, 0] * n_types + place_B2[:, 1], return_inverse=True)
    pair_G1 = np.append(pair_G, _NO_PAIR)
    group_N = pair_G1.searchsorted(pair_N)
    group_N[pair_G1[group_N] != pair_N] = len(pair_G)
    counts_GR = _counts(group_N.astype(np.int16), len(pair_G1), part.context_R[None, :] + 1, part.rows_R + 1)[:, 0]
    names = [*(f"pair:{first}>{second}" for first, second in vocabulary.bigrams), "pair:other"]
    return names, counts_GR[np.append(group_B, len(pair_G))]


def _elapsed(enriched: Enriched, vocabulary: Vocabulary, part: _Part) -> Iterator[_Block]:
    """Yield the time and the longest gap since each key type, and the time since each frequent type in the context."""
    if not enriched.events.has_clock:
        return
    names = [name for key in enriched.spec.key_types for name in (f"since_key:{key}_s", f"pause:{key}_s")]
    since_us_RK, pause_us_RK = enriched.since_key_us_NK[part.all_rows_R], enriched.pause_us_NK[part.all_rows_R]
    yield names, _seconds(np.stack([since_us_RK.T, pause_us_RK.T], axis=1).reshape(len(names), len(part.rows_R)))
    types = vocabulary.types[:N_TYPES]
    last_TR = _last_rows(part.ids_N - FIRST_ID, len(types), part.rows_R)
    time_us_N = enriched.events.time_us[part.rows]
    ago_us_TR = time_us_N[part.rows_R] - time_us_N[last_TR]
    yield [f"since:{name}_s" for name in types], np.where(last_TR >= part.context_R, ago_us_TR / _SECOND_US, np.nan)


def _last_rows(group_N: npt.NDArray[np.integer], n_groups: int, rows_R: IntArray) -> npt.NDArray[np.int32]:
    """Return int32 [G, R]: the last row before each of rows_R that is of group 0 .. n_groups - 1, -1 = none."""
    last_GR = np.empty((n_groups, len(rows_R)), dtype=np.int32)
    all_N = np.arange(len(group_N), dtype=np.int32)
    step = max(1, _CELLS_TOGETHER // max(len(group_N), 1))
    for first in range(0, n_groups, step):
        groups_G1 = np.arange(first, min(first + step, n_groups), dtype=group_N.dtype)[:, None]
        last_GN1 = np.full((len(groups_G1), len(group_N) + 1), -1, dtype=np.int32)
        np.maximum.accumulate(np.where(group_N == groups_G1, all_N, np.int32(-1)), axis=1, out=last_GN1[:, 1:])
        last_GR[first : first + step] = last_GN1.take(rows_R, axis=1)
    return last_GR


def _recent_amounts(source: _Source, part: _Part) -> Iterator[_Block]:
    """Yield how the user's latest amounts lie beside their usual ones: those of a stolen card are high together.

    Sums are of integers, so that they do not depend on where the rows begin.
    """
    enriched, rows_R = source.enriched, part.rows_R
    if enriched.amount_log_N is None or enriched.past_mean_N is None:
        return
    amount_N, mean_N = enriched.amount_log_N[part.rows], enriched.past_mean_N[part.rows]
    row_LR = rows_R - np.arange(1, N_LAST)[:, None]
    is_there_LR = row_LR >= part.context_R
    over_LR = np.where(is_there_LR, (amount_N - mean_N)[np.where(is_there_LR, row_LR, rows_R)], np.nan)
    yield [f"amount_over_mean_{back}" for back in range(1, N_LAST)], over_LR
    if not enriched.events.has_clock:
        return
    has_N = ~np.isnan(amount_N)
    unit_N = np.rint(np.where(has_N, amount_N, 0.0) * AMOUNT_UNIT).astype(np.int64)
    start_WR = _window_rows(enriched, part, AMOUNT_WINDOWS)
    n_WR, unit_WR, unusual_WR = (
        total_N1[rows_R] - total_N1[start_WR]
        for total_N1 in (_running_sum(has_N), _running_sum(unit_N), _running_sum(source.is_unusual_N[part.rows]))
    )
    mean_WR = np.where(n_WR > 0, unit_WR / AMOUNT_UNIT / np.maximum(n_WR, 1) - mean_N[rows_R], np.nan)
    names = [f"{what}:{name}" for name, _ in AMOUNT_WINDOWS for what in ("recent_mean_over_mean", "unusual_amounts")]
    yield names, np.stack([mean_WR, unusual_WR], axis=1).reshape(len(names), len(part.rows_R))


def _running_sum(values_N: IntArray | BoolArray) -> IntArray:
    """Return int64 [N + 1]: the sum of the values before each row, and of all."""
    total_N1 = np.zeros(len(values_N) + 1, dtype=np.int64)
    np.add.accumulate(values_N, dtype=np.int64, out=total_N1[1:])
    return total_N1


def _seconds(time_us: IntArray) -> npt.NDArray[np.float64]:
    return np.where(time_us < 0, np.nan, time_us / _SECOND_US)
