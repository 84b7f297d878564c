"""Logits that are the same to the bit whoever shares the call: what a decision can be replayed by.

Windows are run a few at a time, never one row alone (a matrix product of one row rounds otherwise than one of many),
and never so many that a network would take another way through its graph. The context of a row is that of every path.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fraud.batches import Windows, gather
from fraud.config import Config
from fraud.contexts import context_rows
from fraud.enrich import Enriched
from fraud.events import FloatArray, IntArray
from fraud.features import features
from fraud.runtime import WindowModel
from fraud.scoring import BoostingModel, FusedModel, LogitModel, NetworkModel, feature_spec
from fraud.tokens import Risk, TokenArray, encode

# Below the fewest (5, of an rnn) from which a network takes its other way. Two of 20 events look up 0.5 MB of numbers,
# which the heap of a service keeps for the next; the 0.9 MB of four go back and are asked for again: a fifth more CPU.
WINDOWS_AT_ONCE = 2
_FEWEST_EVENTS = 2


def exact_logits(model: LogitModel, enriched: Enriched, risk: Risk, rows_R: IntArray) -> FloatArray:
    """Return float64 [R]: the logits of some rows whose contexts are here, the same whatever else is scored beside."""
    members = model.members if isinstance(model, FusedModel) else (model,)
    tokens_NF = tokens_of(members, enriched, risk)
    columns = [member_logits(member, enriched, risk, tokens_NF, rows_R) for member in members]
    return model.fusion.logits(np.stack(columns, axis=1)) if isinstance(model, FusedModel) else columns[0]


def tokens_of(members: Sequence[LogitModel], enriched: Enriched, risk: Risk) -> TokenArray | None:
    """Return the tokens that the networks among the members read; all share one vocabulary."""
    networks = [member for member in members if isinstance(member, NetworkModel)]
    return encode(enriched, risk, networks[0].vocabulary) if networks else None


def member_logits(
    member: LogitModel, enriched: Enriched, risk: Risk, tokens_NF: TokenArray | None, rows_R: IntArray
) -> FloatArray:
    """Return float64 [R]: the logits that one member gives some rows; tokens_NF: of `tokens_of`."""
    if isinstance(member, NetworkModel):
        assert tokens_NF is not None  # `tokens_of` made them for this member
        sessions = member.config.sessions
        context_N = context_rows(enriched, sessions.scope, sessions.max_events)
        return _window_logits(member.network, tokens_NF, context_N[rows_R], rows_R, causal=member.config.model.causal)
    if isinstance(member, BoostingModel):
        rows_RC = features(enriched, risk, member.vocabulary, feature_spec(member.config), rows_R)
        return member.trees.logits(rows_RC).astype(np.float64)
    return member.logits(enriched, risk)[rows_R]


def _window_logits(
    network: WindowModel, tokens_NF: TokenArray, context_R: IntArray, rows_R: IntArray, *, causal: bool
) -> FloatArray:
    """Return float64 [R]: rows with one context start share a window, a few windows share a call."""
    opens_R = np.ones(len(rows_R), dtype=np.bool_)
    if causal:
        opens_R[1:] = context_R[1:] != context_R[:-1]
    first_W = np.flatnonzero(opens_R)
    last_W = np.append(first_W[1:], len(rows_R)) - 1
    window_R = np.cumsum(opens_R) - 1
    starts_W = context_R[first_W]
    lengths_W = (rows_R[last_W] - starts_W + 1).astype(np.int32)
    step_R = rows_R - starts_W[window_R]
    logit_R = np.empty(len(rows_R), dtype=np.float64)
    order = np.argsort(lengths_W, kind="stable")
    for first in range(0, len(order), WINDOWS_AT_ONCE):
        group = order[first : first + WINDOWS_AT_ONCE]
        tokens_BTF = gather(tokens_NF, Windows(starts_W[group], lengths_W[group], np.zeros(len(group), np.int32)))
        if tokens_BTF.shape[1] < _FEWEST_EVENTS:
            tokens_BTF = np.pad(tokens_BTF, ((0, 0), (0, _FEWEST_EVENTS - tokens_BTF.shape[1]), (0, 0)))
        logits_BT = network.logits(tokens_BTF)
        place = np.full(len(starts_W), -1)
        place[group] = np.arange(len(group))
        mine = np.flatnonzero(place[window_R] >= 0)
        logit_R[mine] = logits_BT[place[window_R[mine]], step_R[mine]]
    return logit_R


def sequence_positions(enriched: Enriched, config: Config) -> IntArray:
    """Return int64 [N]: how many events of its sequence came before each event."""
    return enriched.session_position_N if config.sessions.scope == "session" else enriched.index_N
