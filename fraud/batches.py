"""Context windows, length buckets and padding: how sequences of any length become arrays a network can take.

The context is defined once, for every model and every path (DESIGN 2). A sequence is cut by event index into blocks of
max_events / 2; an event is scored from the start of the block BEFORE its own up to itself. Training and batch scoring
read windows of max_events that overlap by half and count their second half (the first window whole), which is the same
context. This file knows no model and no label.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fraud.contexts import context_start
from fraud.events import IntArray
from fraud.tokens import TokenArray


@dataclass(frozen=True, slots=True)
class Windows:
    """W windows over the rows of a token matrix.

    starts_W: int64, the row of the first event. lengths_W: int32. scored_from_W: int32, the position in the window from
    which on logits count; every row counts in exactly one window.
    """

    starts_W: IntArray
    lengths_W: npt.NDArray[np.int32]
    scored_from_W: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.starts_W)

    def take(self, chosen: IntArray) -> Windows:
        """Return the chosen windows."""
        return Windows(self.starts_W[chosen], self.lengths_W[chosen], self.scored_from_W[chosen])


def windows(sequence_starts_S1: IntArray, first_position_S: IntArray, max_events: int) -> Windows:
    """Return the windows that give each row of each sequence its context.

    sequence_starts_S1: int64 [S + 1], rows of sequence s are [s] : [s + 1]. first_position_S: int64 [S], the position
    in its sequence of the first row that is here: 0, or a multiple of max_events / 2 where earlier events were dropped;
    then the rows of the first half block are context only and count in no window.
    """
    half = max_events // 2
    lengths_S = np.diff(sequence_starts_S1)
    # One window for up to max_events rows, one more for each further half block begun.
    n_windows_S = np.where(lengths_S == 0, 0, 1 + np.maximum(-(-(lengths_S - max_events) // half), 0))
    sequence_W = np.repeat(np.arange(len(lengths_S)), n_windows_S)
    nth_W = np.arange(len(sequence_W)) - np.repeat(np.cumsum(n_windows_S) - n_windows_S, n_windows_S)
    starts_W = sequence_starts_S1[sequence_W] + nth_W * half
    lengths_W = np.minimum(max_events, sequence_starts_S1[sequence_W + 1] - starts_W).astype(np.int32)
    is_whole_W = (nth_W == 0) & (first_position_S[sequence_W] == 0)
    return Windows(starts_W, lengths_W, np.where(is_whole_W, 0, half).astype(np.int32))


def context_windows(
    sequence_starts_S1: IntArray, first_position_S: IntArray, max_events: int, *, causal: bool
) -> Windows:
    """Return the windows that a network of this kind reads."""
    cut = windows if causal else prefix_windows
    return cut(sequence_starts_S1, first_position_S, max_events)


def prefix_windows(sequence_starts_S1: IntArray, first_position_S: IntArray, max_events: int) -> Windows:
    """Return one window a row: its whole context, of which only the row itself counts.

    For a model that looks at a window in both directions: there the context of an event must hold no later one. The
    arguments are those of `windows`, and so are the contexts.
    """
    lengths_S = np.diff(sequence_starts_S1)
    rows_N = np.arange(int(sequence_starts_S1[0]), int(sequence_starts_S1[-1]))
    first_N = np.repeat(sequence_starts_S1[:-1], lengths_S)
    before_N = np.repeat(first_position_S, lengths_S)
    position_N = before_N + rows_N - first_N
    starts_N = np.maximum(rows_N - (position_N - context_start(position_N, max_events)), first_N)
    chosen = np.flatnonzero((before_N == 0) | (rows_N - first_N >= max_events // 2))
    lengths_W = (rows_N - starts_N + 1)[chosen].astype(np.int32)
    return Windows(starts_N[chosen], lengths_W, lengths_W - np.int32(1))


def buckets(lengths_W: npt.NDArray[np.int32], batch_events: int, rng: np.random.Generator | None) -> list[IntArray]:
    """Return groups of windows of like length, each of about batch_events padded events.

    With `rng`, windows of equal length and the groups themselves are shuffled; without, the order is by length, stable.
    """
    order = np.arange(len(lengths_W)) if rng is None else rng.permutation(len(lengths_W))
    order = order[np.argsort(lengths_W[order], kind="stable")]
    groups: list[IntArray] = []
    first = 0
    while first < len(order):
        # The first is the shortest; take as many as fit when padded to the longest of them.
        candidate = order[first : first + max(1, batch_events // max(1, int(lengths_W[order[first]])))]
        padded = lengths_W[candidate].astype(np.int64) * np.arange(1, len(candidate) + 1)
        n_fit = max(1, int(np.searchsorted(padded, batch_events, side="right")))
        groups.append(candidate[:n_fit])
        first += n_fit
    if rng is not None:
        groups = [groups[index] for index in rng.permutation(len(groups))]
    return groups


def gather(tokens_NF: TokenArray, chosen: Windows) -> npt.NDArray[np.int64]:
    """Return tokens_BTF int64, padded with 0 on the right to the longest window: one vectorised gather."""
    n_times = int(chosen.lengths_W.max()) if len(chosen) else 0
    steps_T = np.arange(n_times)
    is_real_BT = steps_T < chosen.lengths_W[:, None]
    rows_BT = np.where(is_real_BT, chosen.starts_W[:, None] + steps_T, chosen.starts_W[:, None])
    tokens_BTF = tokens_NF[rows_BT].astype(np.int64)
    tokens_BTF[~is_real_BT] = 0
    return tokens_BTF


def counted(chosen: Windows) -> tuple[IntArray, IntArray, IntArray]:
    """Return (row, window, step): where each logit that counts belongs, for scattering logits_BT back to rows."""
    n_times = int(chosen.lengths_W.max()) if len(chosen) else 0
    steps_T = np.arange(n_times)
    is_counted_BT = (steps_T < chosen.lengths_W[:, None]) & (steps_T >= chosen.scored_from_W[:, None])
    window_R, step_R = np.nonzero(is_counted_BT)
    return chosen.starts_W[window_R] + step_R, window_R, step_R
