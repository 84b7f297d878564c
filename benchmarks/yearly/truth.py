"""A bank's year with its truth: what any bundle says of its decisions, week by week, beside what the generator knows.

Read once: a bundle only has to be asked. A score is what production would have given at the time, for enrichment and
risk look backwards alone.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from yearly.bank import WEEK_US, week_start_us

from fraud.bundle import Bundle
from fraud.chunks import chunks
from fraud.config import load_config
from fraud.enrich import Enriched, empty_carry, enrich
from fraud.events import BoolArray, FloatArray, IntArray
from fraud.logs import read_log
from fraud.metrics import Examples
from fraud.ranking import n_within_budget
from fraud.scoring import enrich_spec, risk_of
from fraud.tables import tables_of
from fraud.tokens import Risk
from pipelines.bank.routines import LATER_STORY


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """One bank's year: enriched events with the risk of their entities, and D decisions with their truth.

    place_D: where a decision stands among all events. week_D: counted from 0.
    """

    chunks: tuple[tuple[Enriched, Risk], ...]
    place_D: IntArray
    week_D: IntArray
    user_D: IntArray
    p_fraud_D: FloatArray
    is_fraud_D: BoolArray
    is_later_story_D: BoolArray
    budget: float

    def scores(self, bundle: Bundle, from_week: int, until_week: int) -> FloatArray:
        """Return float64 [D]: the bundle's scores of the decisions of some weeks, NaN at the others."""
        is_wanted_D = (self.week_D >= from_week) & (self.week_D < until_week)
        wanted_N = np.zeros(sum(len(enriched.events) for enriched, _ in self.chunks), dtype=np.bool_)
        wanted_N[self.place_D[is_wanted_D]] = True
        score_N = np.full(len(wanted_N), np.nan)
        first = 0
        for enriched, risk in self.chunks:
            rows = slice(first, first + len(enriched.events))
            logit_N = bundle.scorer.model.logits(enriched, risk, wanted_N=wanted_N[rows])
            score_N[rows][wanted_N[rows]] = bundle.scorer.calibration.scores(logit_N[wanted_N[rows]])
            first = rows.stop
        return np.where(is_wanted_D, score_N[self.place_D], np.nan)

    def examples(self, score_D: FloatArray, chosen_D: BoolArray) -> Examples:
        """Return some decisions with their scores against the truth."""
        return Examples(
            score_N=score_D[chosen_D],
            label_N=self.is_fraud_D[chosen_D].astype(np.int8),
            user_N=self.user_D[chosen_D],
            amount_N=None,
        )

    def recalls(self, score_D: FloatArray, week: int) -> tuple[float, float | None]:
        """Return the share of a week's frauds among its highest scores within the budget; and of the later story's.

        The second is None where the week has none.
        """
        rows = np.flatnonzero(self.week_D == week)
        first = rows[np.argsort(-score_D[rows], kind="stable")[: n_within_budget(self.budget, len(rows))]]
        is_alerted_D = np.zeros(len(score_D), dtype=np.bool_)
        is_alerted_D[first] = True
        is_fraud_D = self.is_fraud_D & (self.week_D == week)
        is_later_D = is_fraud_D & self.is_later_story_D
        later = float(is_alerted_D[is_later_D].mean()) if is_later_D.any() else None
        return float(is_alerted_D[is_fraud_D].mean()), later


def read_world(config_path: Path) -> World:
    """Return the world of a log that `simulate_year` wrote."""
    config = load_config(config_path)
    oracle = pq.read_table(config_path.with_name("oracle.parquet"))
    parts: list[tuple[Enriched, Risk]] = []
    ids: list[pa.Array] = []
    with closing(read_log(config)) as log:
        tables = tables_of(log, config)
        for chunk in chunks(log):
            spec = enrich_spec(config)
            enriched, _ = enrich(chunk.events, empty_carry(chunk.events.n_users, spec), spec)
            parts.append((enriched, risk_of(chunk.events, tables)))
            ids.append(chunk.event_ids)
    place_D = pc.index_in(oracle["event_id"].combine_chunks(), value_set=pa.concat_arrays(ids)).to_numpy()
    time_us_N = np.concatenate([enriched.events.time_us for enriched, _ in parts])
    return World(
        chunks=tuple(parts),
        place_D=place_D.astype(np.int64),
        week_D=(time_us_N[place_D] - week_start_us(0)) // WEEK_US,
        user_D=pc.index_in(oracle["user_id"], oracle["user_id"].unique()).to_numpy().astype(np.int64),
        p_fraud_D=oracle["p_fraud"].to_numpy(),
        is_fraud_D=oracle["is_fraud"].to_numpy(),
        is_later_story_D=pc.fill_null(pc.equal(oracle["story"], LATER_STORY), False).to_numpy(),
        budget=config.policy.alert_budget,
    )
