"""What the kinds of event say: which of them a decision is made on, which are worth a clock of their own, the pace."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipelines.proposal.columns import Column, IntArray, word_set, words_of
from pipelines.proposal.roles import Doubt, Roles

_N_KEY_TYPES = 8
_MIN_FRAUDS = 10  # fewer frauds among the rows looked at do not say which types decisions are made on
_OUTGOING = word_set(
    "transfer transfers withdraw withdrawal payment pay payout cashout debit purchase buy wire order send"
)
_INCOMING = word_set("receive received in incoming deposit credit refund")
# What comes before money goes: access, a change of what protects the account, a look at what it holds.
_TELLING = word_set(
    "login logon signin auth password pin otp device payee beneficiary address phone email limit check credit loan "
    "balance receive deposit add change reset new update fail failed create register avatar"
)
_HOUR_US = 3600 * 10**6


class Types(NamedTuple):
    """The kinds of event in the sample: names [K], which of them each row is (int64 [N], -1 = none), how often."""

    names: tuple[str, ...]
    code_N: IntArray
    count_K: IntArray


def types_of(roles: Roles) -> Types:
    """Return the kinds of event as the log will read them: the columns of the type joined by "|"."""
    if not roles.types:
        n_rows = len(roles.user.code_N)
        return Types(("event",), np.zeros(n_rows, dtype=np.int64), np.array([n_rows]))
    texts = [column.texts.to_pylist() for column in roles.types]
    joined = [None if None in parts else "|".join(parts) for parts in zip(*texts, strict=True)]
    names, code_N = np.unique(np.array([name or "" for name in joined], dtype=object), return_inverse=True)
    keep = names != ""
    place = np.where(keep, np.cumsum(keep) - 1, -1)
    code_N = place[code_N]
    return Types(tuple(names[keep].tolist()), code_N, np.bincount(code_N[code_N >= 0], minlength=int(keep.sum())))


def decision_types(
    types: Types, positive_N: npt.NDArray[np.bool_] | None, amount: Column | None
) -> tuple[tuple[str, ...], Doubt | None]:
    """Return the types a decision is made on, none for every event: those that labelled frauds have, else by name."""
    if len(types.names) < 2:
        return (), None
    if positive_N is not None and int(positive_N.sum()) >= _MIN_FRAUDS:
        code = types.code_N[positive_N]
        n_frauds = np.bincount(code[code >= 0], minlength=len(types.names))
        chosen = np.flatnonzero(n_frauds > 0.01 * n_frauds.sum())
        if types.count_K[chosen].sum() < 0.9 * types.count_K.sum():
            text = "the types of the labelled frauds in the rows looked at"
            return tuple(types.names[k] for k in chosen), Doubt("decisions.on", text)
    outgoing = [k for k, name in enumerate(types.names) if _is_outgoing(name)]
    if amount is not None:
        has_amount = np.bincount(types.code_N[(amount.code_N >= 0) & (types.code_N >= 0)], minlength=len(types.names))
        outgoing = [k for k in outgoing if has_amount[k] >= 0.5 * types.count_K[k]]
    if not outgoing:
        return (), None
    text = "by their names, the types by which money goes; remove the line to decide on every event"
    return tuple(types.names[k] for k in outgoing), Doubt("decisions.on", text)


def key_types(types: Types) -> tuple[str, ...]:
    """Return up to 8 types, the telling ones by their names first, then the most frequent."""
    if len(types.names) < 2:
        return ()
    order = sorted(range(len(types.names)), key=lambda k: (not _is_telling(types.names[k]), -types.count_K[k]))
    # Of a type of two columns (what was done, how far it is) one of each first: their clocks hardly differ.
    first_of = {types.names[k].partition("|")[0]: k for k in reversed(order)}
    ranked = sorted(order, key=lambda k: k not in first_of.values())
    return tuple(types.names[k] for k in ranked[:_N_KEY_TYPES])


def session_gap(roles: Roles) -> tuple[str, str]:
    """Return (gap, why): how long a user may be idle within one session, by the pace of the sampled events."""
    if roles.clock is None:
        return "30m", "the log has no clock: the gap is not used"
    time_us_N, user_N = roles.clock.time_us_N, roles.user.code_N
    order = np.lexsort((time_us_N, user_N))
    gap_us = np.diff(time_us_N[order])[(np.diff(user_N[order]) == 0) & (time_us_N[order][:-1] >= 0)]
    median_us = float(np.median(gap_us)) if len(gap_us) else 0.0
    if median_us > 2 * _HOUR_US:
        return "1d", "idle for longer: a new session; half of the gaps are over two hours, so a day"
    return "30m", "idle for longer: a new session"


def _is_outgoing(name: str) -> bool:
    words = words_of(name)
    return bool({*words, "".join(words)} & _OUTGOING) and not set(words) & _INCOMING


def _is_telling(name: str) -> bool:
    return bool(set(words_of(name)) & _TELLING)
