"""A log read, scored and counted by week, as training counted its own: what `fraud monitor` holds against a bundle."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fraud.chunks import Chunk, Labelled, chunks, known_table, labelled
from fraud.config import Config
from fraud.enrich import Enriched
from fraud.events import BoolArray, CodeArray, IntArray
from fraud.fields import text_columns
from fraud.labels import no_labels
from fraud.logs import Log
from fraud.metrics import alerts
from fraud.monitoring.outcomes import Outcomes
from fraud.monitoring.reference import Reference
from fraud.monitoring.tally import Rows, count_inputs, count_scores
from fraud.monitoring.weekly import Weekly, add_weekly, week_of
from fraud.parallel import in_order
from fraud.scoring import Scorer, risk_of
from fraud.splits import END_OF_TIME_US, Cuts, supervise
from fraud.tables import tables_of
from fraud.tokens import UNKNOWN_ID, TokenArray, encode
from pipelines.console import Screen


class LogFigures(NamedTuple):
    """What a log is like by week. novel: how often each value that no vocabulary holds stood in it, by field and (week,
    value). outcomes: the examples of the weeks whose labels have arrived."""

    inputs: Weekly
    scores: Weekly
    novel: Mapping[str, Counter[tuple[int, str]]]
    outcomes: Outcomes
    n_users: int
    n_events: int


def count_log(
    scorer: Scorer,
    log: Log,
    config: Config,
    reference: Reference,
    starts_us_W: IntArray,
    until_us: int,
    screen: Screen,
) -> LogFigures:
    """Return the figures of the weeks; only what falls into them is scored, with its whole past.

    until_us: what was known then. Labels and the entities' frauds are those of the configuration.
    """
    tables = tables_of(log, config)
    known_rows = known_table(log, until_us)

    def count(chunk: Chunk) -> LogFigures:
        one = labelled(chunk, log, config, known_rows)
        enriched, layout = one.enriched, reference.layout
        week_N = week_of(enriched.events.time_us, starts_us_W)
        risk = risk_of(enriched.events, tables)
        tokens_NF = encode(enriched, risk, layout.vocabulary)
        examples = _examples(one, scorer.config, config, until_us)
        wanted_N = examples.is_scored_N & (week_N >= 0)
        score_N = np.full(len(week_N), np.nan)
        if wanted_N.any():
            score_N[wanted_N] = scorer.calibration.scores(
                scorer.model.logits(enriched, risk, wanted_N=wanted_N)[wanted_N]
            )
        policy, amount_N = scorer.policy, enriched.events.amount
        rows = Rows(
            tokens_NF=tokens_NF,
            time_us_N=enriched.events.time_us,
            is_first_N=enriched.events.first_of_user(),
            opens_N=enriched.session_opens_N,
            position_N=enriched.session_position_N,
            amount_N=amount_N,
            score_N=score_N,
            is_alert_N=alerts(score_N, amount_N, threshold=policy.review_at, costs=policy.costs),
            label_N=examples.label_N,
        )
        return LogFigures(
            count_inputs(rows, layout, starts_us_W),
            count_scores(rows, layout, starts_us_W),
            _novel(enriched, tokens_NF, week_N, layout.place_of),
            _outcomes(rows, week_N, enriched.events.user_codes()),
            enriched.events.n_users,
            len(week_N),
        )

    parts: list[LogFigures] = []
    done = 0
    with screen.progress() as advance:
        for part in in_order(count, chunks(log)):
            parts.append(part)
            done += part.n_events
            advance("watch", done, log.n_events)
    novel: dict[str, Counter[tuple[int, str]]] = {}
    for part in parts:
        for field, values in part.novel.items():
            novel.setdefault(field, Counter()).update(values)
    n_before = np.cumsum([0, *(part.n_users for part in parts)])
    outcomes = [p.outcomes._replace(user_E=p.outcomes.user_E + n) for p, n in zip(parts, n_before[:-1], strict=True)]
    return LogFigures(
        add_weekly(part.inputs for part in parts),
        add_weekly(part.scores for part in parts),
        novel,
        Outcomes(*(np.concatenate(column) for column in zip(*outcomes, strict=True))),
        int(n_before[-1]),
        log.n_events,
    )


def _outcomes(rows: Rows, week_N: IntArray, user_N: CodeArray) -> Outcomes:
    row_E = np.flatnonzero((week_N >= 0) & (rows.label_N >= 0) & ~np.isnan(rows.score_N))
    return Outcomes(rows.score_N[row_E], rows.label_N[row_E], user_N[row_E].astype(np.int64), week_N[row_E])


class _Examples(NamedTuple):
    """is_scored_N: one event a label, as the bundle was judged. label_N: int8, -1 where nothing is settled yet."""

    is_scored_N: BoolArray
    label_N: npt.NDArray[np.int8]


def _examples(one: Labelled, trained: Config, config: Config, until_us: int) -> _Examples:
    n_events = len(one.enriched.events)
    nobody_N = np.full(n_events, -1, dtype=np.int8)
    if trained.labels is None or trained.labels.level == "user":
        # One score a user in the whole log: no week has its own.
        return _Examples(np.zeros(n_events, dtype=np.bool_), nobody_N)
    judged_by = replace(config, labels=trained.labels)
    if one.labels is None or one.known is None:
        honest = replace(no_labels(one.enriched), label_N=np.zeros(n_events, dtype=np.int8))
        everything = Cuts(0, 0, END_OF_TIME_US)
        return _Examples(supervise(one.enriched, honest, honest, everything, judged_by, None).tests_N, nobody_N)
    # A part named in a column says what trains, not what is watched.
    labels, known = replace(one.labels, part_N=None), replace(one.known, part_N=None)
    scored = supervise(one.enriched, labels, known, Cuts(0, 0, END_OF_TIME_US), judged_by, None)
    settled = supervise(one.enriched, labels, known, Cuts(0, 0, until_us, is_lived=True), judged_by, None)
    return _Examples(scored.tests_N, np.where(settled.tests_N, settled.label_N, -1).astype(np.int8))


def _novel(
    enriched: Enriched, tokens_NF: TokenArray, week_N: IntArray, place_of: Mapping[str, int]
) -> dict[str, Counter[tuple[int, str]]]:
    """Return how often each value that no vocabulary holds stands in each week, by text field."""
    found: dict[str, Counter[tuple[int, str]]] = {}
    for name, column in text_columns(enriched.events).items():
        rows = np.flatnonzero((tokens_NF[:, place_of[name]] == UNKNOWN_ID) & (week_N >= 0))
        n_values = max(len(column.values), 1)
        keys, counts = np.unique(week_N[rows] * n_values + column.codes_N[rows], return_counts=True)
        found[name] = Counter(
            {
                (int(key // n_values), str(column.values[key % n_values])): int(n)
                for key, n in zip(keys, counts, strict=True)
            }
        )
    return found
