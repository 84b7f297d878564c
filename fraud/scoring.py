"""The ONE scoring path: events and their past in, a score and a decision for each event out.

Training judges its scorer, `fraud score` scores a log and the service scores a request through these functions. A
scorer is interchangeable by its `LogitModel`; everything around it (enrichment, calibration, policy) is the same for
all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from fraud.batches import Windows, buckets, context_windows, counted, gather
from fraud.calibration import Calibration
from fraud.config import Config, subjects_of
from fraud.contexts import sequences
from fraud.decisions import DecisionArray, Policy, decide
from fraud.enrich import Carry, Enriched, EnrichSpec, empty_carry, enrich
from fraud.entities import EntityTable, entity_risks
from fraud.events import BoolArray, Events, FloatArray, IntArray
from fraud.features import FeatureSpec, features
from fraud.models.fusion import Fusion
from fraud.parallel import in_order
from fraud.runtime import StepModel, TreeModel, WindowModel
from fraud.splits import decides
from fraud.tokens import Risk, TokenArray, Vocabulary, encode
from fraud.verdicts import NO_RULE, RuleArray, rule_verdicts

BATCH_EVENTS = 2048  # padded events of one call of the network: large enough for its matrix products, small in cache
FEATURE_ROWS = 65_536  # rows of features held at once
CHUNK_EVENTS = 250_000  # events of whole users enriched at once
NO_DECISION = -1

Tables = Mapping[str, EntityTable]


class LogitModel(Protocol):
    """What makes scorers interchangeable: the logit of each event from its context."""

    @property
    def kind(self) -> Literal["network", "boosting", "fused"]:
        """Return which files of a bundle hold it."""
        ...

    @property
    def vocabulary(self) -> Vocabulary:
        """Return the vocabulary it was fitted with."""
        ...

    def logits(self, enriched: Enriched, risk: Risk, *, wanted_N: BoolArray | None = None) -> FloatArray:
        """Return float64 [N]; of the wanted rows alone where that is said, and anything at the others."""
        ...


@dataclass(frozen=True, slots=True)
class NetworkModel:
    """A network that reads token windows; step: the same network one event at a time, where it is recurrent."""

    network: WindowModel
    vocabulary: Vocabulary
    config: Config
    step: StepModel | None = None
    kind: Literal["network"] = "network"

    def logits(self, enriched: Enriched, risk: Risk, *, wanted_N: BoolArray | None = None) -> FloatArray:
        """Return float64 [N]; of the wanted rows alone where that is said, NaN at most of the others."""
        tokens_NF = encode(enriched, risk, self.vocabulary)
        cut = sequences(enriched, self.config.sessions.scope)
        chosen = context_windows(
            cut.starts_S1,
            cut.first_position_S,
            self.config.sessions.max_events,
            causal=self.config.model.causal,
        )
        return window_logits(self.network, tokens_NF, chosen if wanted_N is None else holding(chosen, wanted_N))


@dataclass(frozen=True, slots=True)
class BoostingModel:
    """Boosted trees that read features."""

    trees: TreeModel
    vocabulary: Vocabulary
    config: Config
    kind: Literal["boosting"] = "boosting"

    def logits(self, enriched: Enriched, risk: Risk, *, wanted_N: BoolArray | None = None) -> FloatArray:
        """Return float64 [N]; of the wanted rows alone where that is said, NaN at the others."""
        spec = feature_spec(self.config)
        logit_N = np.full(len(enriched.events), np.nan, dtype=np.float64)
        wanted_R = np.arange(len(logit_N)) if wanted_N is None else np.flatnonzero(wanted_N)
        for first in range(0, len(wanted_R), FEATURE_ROWS):
            rows_R = wanted_R[first : first + FEATURE_ROWS]
            logit_N[rows_R] = self.trees.logits(features(enriched, risk, self.vocabulary, spec, rows_R))
        return logit_N


@dataclass(frozen=True, slots=True)
class FusedModel:
    """A weighted sum of the logits of other models, in the order of `fusion.members`."""

    fusion: Fusion
    members: tuple[LogitModel, ...]
    kind: Literal["fused"] = "fused"

    @property
    def vocabulary(self) -> Vocabulary:
        """Return the vocabulary that all members share."""
        return self.members[0].vocabulary

    def logits(self, enriched: Enriched, risk: Risk, *, wanted_N: BoolArray | None = None) -> FloatArray:
        """Return float64 [N]; of the wanted rows alone where that is said, NaN at most of the others."""
        logits = [member.logits(enriched, risk, wanted_N=wanted_N) for member in self.members]
        return self.fusion.logits(np.stack(logits, axis=1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Scorer:
    """A model with all that turns its logit into a decision. version names the bundle in every answer."""

    config: Config
    model: LogitModel
    calibration: Calibration
    policy: Policy
    version: str


class Scored(NamedTuple):
    """Scores of N events: logit_N, score_N float64; decision_N int8, NO_DECISION where no decision is made.

    rule_N: int16, which rule of `policy.in_order` decided, NO_RULE where the model did.
    """

    enriched: Enriched
    logit_N: FloatArray
    score_N: FloatArray
    decision_N: DecisionArray
    rule_N: RuleArray


class Decided(NamedTuple):
    """Decisions of N events: decision_N int8, NO_DECISION where none is made; rule_N int16, the rule of the policy that
    made it, NO_RULE where the model did."""

    decision_N: DecisionArray
    rule_N: RuleArray


def enrich_spec(config: Config) -> EnrichSpec:
    """Return what of the configuration shapes the enrichment."""
    return EnrichSpec(config.sessions.gap, config.fields.key_types)


def feature_spec(config: Config) -> FeatureSpec:
    """Return what of the configuration shapes the features."""
    return FeatureSpec(config.sessions.scope, config.sessions.max_events, config.model.order_features)


def risk_of(events: Events, tables: Tables) -> Risk:
    """Return the risk of each declared entity as known at each event; none without a clock."""
    if not events.has_clock:
        return {}
    return entity_risks(tables, events.entity, events.time_us)


def score_events(scorer: Scorer, events: Events, carry: Carry, tables: Tables) -> tuple[Scored, Carry]:
    """Return the scores of the events, given the past of their users and of their entities, and the carry after them.

    Where the carry holds a past, `events` must begin with the events since the start of the block before the current
    one (`fraud.contexts`): they are scored again, as context.
    """
    enriched, after = enrich(events, carry, enrich_spec(scorer.config))
    risk = risk_of(events, tables)
    logit_N = scorer.model.logits(enriched, risk)
    score_N = scorer.calibration.scores(logit_N)
    made = decided(scorer, enriched, risk, score_N)
    return Scored(enriched, logit_N, score_N, made.decision_N, made.rule_N), after


def decided(scorer: Scorer, enriched: Enriched, risk: Risk, score_N: FloatArray) -> Decided:
    """Return what the policy makes of the scores of N events: the one place where a decision is made."""
    events = enriched.events
    decision_N = np.where(
        decides(enriched, scorer.config), decide(scorer.policy, score_N, amount_N=events.amount), NO_DECISION
    )
    decision_N = decision_N.astype(np.int8)
    if not scorer.policy.lists and not scorer.policy.rules:
        return Decided(decision_N, np.full(len(events), NO_RULE, dtype=np.int16))
    verdicts = rule_verdicts(scorer.policy, enriched, risk, known=subjects_of(scorer.config))
    return Decided(np.where(verdicts.rule_N == NO_RULE, decision_N, verdicts.decision_N), verdicts.rule_N)


def score_log(scorer: Scorer, events: Events, tables: Tables) -> Iterator[Scored]:
    """Yield the scores of users without a past, some whole users at a time: memory is bounded by the longest user."""

    def scored(chunk: Events) -> Scored:
        return score_events(scorer, chunk, empty_carry(chunk.n_users, enrich_spec(scorer.config)), tables)[0]

    yield from in_order(scored, user_chunks(events))


def user_chunks(events: Events) -> Iterator[Events]:
    """Yield the events of some whole users at a time, about CHUNK_EVENTS each."""
    first = 0
    while first < events.n_users:
        wanted = int(events.user_starts[first]) + CHUNK_EVENTS
        last = max(first + 1, int(np.searchsorted(events.user_starts, wanted, side="right")) - 1)
        yield events.take_users(first, min(last, events.n_users))
        first = last


def window_logits(network: WindowModel, tokens_NF: TokenArray, chosen: Windows) -> FloatArray:
    """Return float64 [N]: the logit of each row that counts in a window, NaN in the others."""
    logit_N = np.full(len(tokens_NF), np.nan, dtype=np.float64)
    for group in buckets(chosen.lengths_W, BATCH_EVENTS, None):
        batch = chosen.take(group)
        logits_BT = network.logits(gather(tokens_NF, batch))
        row_R, window_R, step_R = counted(batch)
        logit_N[row_R] = logits_BT[window_R, step_R]
    return logit_N


def holding(chosen: Windows, wanted_N: BoolArray) -> Windows:
    """Return the windows in which a wanted row counts."""
    total_N1 = np.concatenate([[0], np.cumsum(wanted_N)])
    first_W, last_W = chosen.starts_W + chosen.scored_from_W, chosen.starts_W + chosen.lengths_W
    return chosen.take(np.flatnonzero(total_N1[last_W] > total_N1[first_W]))


def tree_logits(trees: TreeModel, features_RC: npt.NDArray[np.float32], rows_R: IntArray) -> FloatArray:
    """Return float64 [R]: the logits of some rows of a (mapped) feature matrix."""
    parts = [
        trees.logits(np.ascontiguousarray(features_RC[rows_R[first : first + FEATURE_ROWS]]))
        for first in range(0, len(rows_R), FEATURE_ROWS)
    ]
    return np.concatenate([*parts, np.zeros(0)]).astype(np.float64)
