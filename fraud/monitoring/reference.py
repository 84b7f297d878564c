"""What a bundle keeps of the time it was trained on, for what comes later to be held against.

The percentiles of the score, and figures by week (`tally`): of the inputs over the newest whole weeks before the
end of validation, of the scores over the weeks that no model was fitted on. They are counted from the prepared set, so
a bundle costs no second look at the log.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from fraud.config import Config
from fraud.decisions import Policy
from fraud.errors import BundleError
from fraud.events import BoolArray, FloatArray, IntArray
from fraud.instants import instant_text, instant_us
from fraud.metrics import alerts
from fraud.monitoring.tally import Layout, Rows, count_inputs, count_scores
from fraud.monitoring.weekly import WEEK_US, Weekly, add_weekly, from_json, to_json, week_of, week_starts
from fraud.preparation import Prepared
from fraud.tokens import FIRST_ID, Vocabulary

N_WEEKS = 12
N_PAIRS = 160  # of types that follow each other
# The first weeks of a log are like no other: nobody has a past yet, and users are still coming in.
_WARM_UP_WEEKS, _FEWEST_WEEKS = 4, 6
_SCORE_PERCENTILES = (50, 75, 90, 95, 99)  # below the middle nobody acts on a score
_ROWS_TOGETHER = 500_000

Json = dict[str, Any]  # Any: JSON


class Reference(NamedTuple):
    """Figures by week of the inputs and of the scores, what was counted, and where the reference ends."""

    layout: Layout
    until_us: int
    inputs: Weekly
    scores: Weekly


def reference_json(
    prepared: Prepared, config: Config, policy: Policy, *, validation_score_V: FloatArray, test_score_T: FloatArray
) -> Json:
    """Return the content of reference.json; scores are those of the validation and the test examples, by row.

    Without a clock there are no weeks, and of those nothing.
    """
    reference: Json = {"score_percentiles": np.percentile(validation_score_V, np.arange(101)).tolist()}
    if not config.log.has_clock:
        return reference
    n_events = int(prepared.report["events"])
    time_us_N = np.asarray(prepared.time_us_N[:n_events])
    until_us = min(prepared.cuts.valid_until_us, int(time_us_N.max()) + 1)
    starts_us_W = _reference_weeks(int(time_us_N.min()), until_us)
    pairs = _frequent_pairs(prepared, week_of(time_us_N, starts_us_W) >= 0)
    layout = Layout(prepared.vocabulary, config, pairs, _score_edges(validation_score_V))
    score_N = np.full(n_events, np.nan)
    score_N[np.flatnonzero(prepared.validates_N[:n_events])] = validation_score_V
    score_N[np.flatnonzero(prepared.tests_N[:n_events])] = test_score_T
    if config.labels is not None and config.labels.level == "user":
        score_N[:] = np.nan  # one score a user in the whole log: no week has its own
    score_weeks = _score_weeks(time_us_N[~np.isnan(score_N)])
    parts = [
        (count_inputs(rows, layout, starts_us_W), count_scores(rows, layout, score_weeks))
        for rows in _rows_of(prepared, config, policy, score_N)
    ]
    return reference | {
        "until": instant_text(until_us),
        "pairs": [list(pair) for pair in layout.pairs],
        "score_edges": list(layout.score_edges),
        "inputs": to_json(add_weekly(inputs for inputs, _ in parts)),
        "scores": to_json(add_weekly(scores for _, scores in parts)),
    }


def read_reference(tree: Mapping[str, Any], vocabulary: Vocabulary, config: Config) -> Reference:  # Any: JSON
    """Return the figures by week of a bundle's reference.json.

    Raises BundleError for a bundle without them: one of a log without a clock, or one that an older version wrote.
    """
    if not config.log.has_clock:
        raise BundleError("reference.json: the log of this bundle has no clock, so there are no weeks to compare")
    missing = [name for name in ("until", "pairs", "score_edges", "inputs", "scores") if name not in tree]
    if missing:
        raise BundleError(
            f"reference.json: holds no figures by week ({missing[0]!r} is missing): an older version wrote this "
            "bundle; train it anew to monitor it"
        )
    known = set(vocabulary.types)
    pairs = tuple((str(a), str(b)) for a, b in tree["pairs"])
    if not known.issuperset(name for pair in pairs for name in pair):
        raise BundleError("reference.json: pairs: a type that is not in vocabulary.json; train the bundle anew")
    layout = Layout(vocabulary, config, pairs, tuple(float(edge) for edge in tree["score_edges"]))
    nothing = _no_rows(layout)
    no_weeks = np.zeros(0, dtype=np.int64)
    return Reference(
        layout,
        instant_us("reference.json: until", str(tree["until"])),
        from_json(tree["inputs"], count_inputs(nothing, layout, no_weeks)),
        from_json(tree["scores"], count_scores(nothing, layout, no_weeks)),
    )


def _reference_weeks(oldest_us: int, until_us: int) -> IntArray:
    all_us_W = week_starts(oldest_us, until_us)
    n_warm = min(_WARM_UP_WEEKS, max(0, len(all_us_W) - _FEWEST_WEEKS))
    return all_us_W[n_warm:][-N_WEEKS:]


def _frequent_pairs(prepared: Prepared, is_counted_N: BoolArray) -> tuple[tuple[str, str], ...]:
    """Return the types that most often follow each other in the weeks of the reference, the most frequent first."""
    n_events = len(is_counted_N)
    types, n_ids = prepared.vocabulary.types, prepared.vocabulary.field_sizes[0]
    id_N = np.asarray(prepared.tokens_NF[:n_events, 0]).astype(np.int64)
    follows_N = is_counted_N & (np.diff(prepared.user_N[:n_events], prepend=-1) == 0)
    row_R = np.flatnonzero(follows_N)
    row_R = row_R[(id_N[row_R] >= FIRST_ID) & (id_N[row_R - 1] >= FIRST_ID)]
    pair_P, counts_P = np.unique(id_N[row_R - 1] * n_ids + id_N[row_R], return_counts=True)
    ranked: list[int] = pair_P[np.argsort(-counts_P, kind="stable")[:N_PAIRS]].tolist()
    return tuple((types[pair // n_ids - FIRST_ID], types[pair % n_ids - FIRST_ID]) for pair in ranked)


def _score_weeks(time_us_E: IntArray) -> IntArray:
    """Return the whole weeks that these examples reach over, at most N_WEEKS; one where they reach over less."""
    if len(time_us_E) == 0:
        return np.zeros(0, dtype=np.int64)
    until_us = int(time_us_E.max()) + 1
    return week_starts(min(int(time_us_E.min()), until_us - WEEK_US), until_us, N_WEEKS)


def _rows_of(prepared: Prepared, config: Config, policy: Policy, score_N: FloatArray) -> Iterator[Rows]:
    """Yield the events of the log, some whole users at a time; padded copies are none."""
    n_events = len(score_N)
    start_U: IntArray = np.flatnonzero(np.diff(prepared.user_N[:n_events], prepend=-1))
    cuts = start_U[np.diff(start_U // _ROWS_TOGETHER, prepend=-1) > 0].tolist()
    for first, last in pairwise([*cuts, n_events]):
        yield _rows_between(prepared, config, policy, score_N, first, last)


def _rows_between(
    prepared: Prepared, config: Config, policy: Policy, score_N: FloatArray, first: int, last: int
) -> Rows:
    rows = slice(first, last)
    is_first_N = np.diff(prepared.user_N[rows], prepend=-1) != 0
    opens_N = is_first_N | (np.diff(prepared.session_N[rows], prepend=-1) != 0)
    place_N = np.arange(last - first)
    amount_N = None if config.fields.amount is None else np.asarray(prepared.amount_N[rows])
    is_settled_N = prepared.trains_N[rows] | prepared.validates_N[rows]
    return Rows(
        tokens_NF=prepared.tokens_NF[rows],
        time_us_N=np.asarray(prepared.time_us_N[rows]),
        is_first_N=is_first_N,
        opens_N=opens_N,
        position_N=place_N - np.maximum.accumulate(np.where(opens_N, place_N, 0)),
        amount_N=amount_N,
        score_N=score_N[rows],
        is_alert_N=alerts(score_N[rows], amount_N, threshold=policy.review_at, costs=policy.costs),
        label_N=np.where(is_settled_N, prepared.label_N[rows], -1).astype(np.int8),
    )


def _score_edges(score_V: FloatArray) -> tuple[float, ...]:
    """Return edges near some percentiles, each halfway between two neighbouring scores: no edge splits equal scores."""
    values_G = np.unique(score_V)
    if len(values_G) < 2:
        return ()
    wanted_P: FloatArray = np.percentile(score_V, _SCORE_PERCENTILES, method="higher")
    place_P: IntArray = np.unique(np.maximum(np.searchsorted(values_G, wanted_P), 1))
    return tuple(float(values_G[place - 1] + values_G[place]) / 2 for place in place_P.tolist())


def _no_rows(layout: Layout) -> Rows:
    no_N = np.zeros(0, dtype=np.bool_)
    nothing_N = np.zeros(0, dtype=np.float64)
    return Rows(
        tokens_NF=np.zeros((0, len(layout.vocabulary.fields)), dtype=np.int16),
        time_us_N=np.zeros(0, dtype=np.int64),
        is_first_N=no_N,
        opens_N=no_N,
        position_N=np.zeros(0, dtype=np.int64),
        amount_N=None if layout.config.fields.amount is None else nothing_N,
        score_N=nothing_N,
        is_alert_N=no_N,
        label_N=np.zeros(0, dtype=np.int8),
    )
