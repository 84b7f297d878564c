"""Sequences with a known signal, for the tests of learning."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fraud.batches import windows
from fraud.sampling import TrainingSet
from fraud.tokens import FieldShape

FIELD_SIZES = (8, 5)
FIELDS = tuple(FieldShape(f"field{f}", size, is_ordered=False) for f, size in enumerate(FIELD_SIZES))
N_EVENTS = 16

Tokens = npt.NDArray[np.int64]
Labels = npt.NDArray[np.int8]


def order_pairs(n_sequences: int, seed: int) -> tuple[Tokens, Labels]:
    """Return (tokens [S, 16, 2], label [S]): pairs with the same events, of which only two are exchanged in order.

    Type 2 stands somewhere before type 3 (label 1) or after it (label 0); types 4 to 7 and the second field are noise,
    and so is the whole last event.
    """
    rng = np.random.default_rng(seed)
    n_pairs = n_sequences // 2
    noise, places, rows = _noise(rng, n_pairs)
    parts: list[Tokens] = []
    for early, late in ((2, 3), (3, 2)):
        tokens = noise.copy()
        tokens[rows, places[:, 0], 0], tokens[rows, places[:, 1], 0] = early, late
        parts.append(tokens)
    return np.concatenate(parts), np.repeat(np.array([1, 0], dtype=np.int8), n_pairs)


def bag_sequences(n_sequences: int, seed: int) -> tuple[Tokens, Labels]:
    """Return (tokens [S, 16, 2], label [S]): type 2 (label 1) or type 3 (label 0) stands somewhere before the end."""
    rng = np.random.default_rng(seed)
    tokens, places, rows = _noise(rng, n_sequences)
    label_S = rng.integers(0, 2, n_sequences).astype(np.int8)
    tokens[rows, places[:, 0], 0] = np.where(label_S == 1, 2, 3)
    return tokens, label_S


def _noise(rng: np.random.Generator, n_sequences: int) -> tuple[Tokens, Tokens, Tokens]:
    """Return (tokens [S, 16, 2] without types 2 and 3, two rising places before the last [S, 2], row numbers [S])."""
    fields = [
        rng.integers(first, size, (n_sequences, N_EVENTS)) for first, size in zip((4, 2), FIELD_SIZES, strict=True)
    ]
    places = np.argsort(rng.random((n_sequences, N_EVENTS - 1)), axis=1)[:, :2]
    return np.stack(fields, axis=-1), np.sort(places, axis=1), np.arange(n_sequences)


def last_event_set(tokens_STF: Tokens, label_S: Labels, *, every_held_out: int) -> TrainingSet:
    """Return a training set in which the last event of each sequence is labelled; each n-th sequence is held out."""
    n_sequences, n_events, n_fields = tokens_STF.shape
    is_last_ST = np.broadcast_to(np.arange(n_events) == n_events - 1, (n_sequences, n_events))
    is_held_out_S1 = (np.arange(n_sequences) % every_held_out == 0)[:, None]
    starts_S1 = np.arange(n_sequences + 1) * n_events
    return TrainingSet(
        tokens_NF=tokens_STF.reshape(-1, n_fields).astype(np.int16),
        windows=windows(starts_S1, np.zeros(n_sequences, dtype=np.int64), 64),
        label_N=np.where(is_last_ST, label_S[:, None], 0).astype(np.int8).ravel(),
        trained_N=(is_last_ST & ~is_held_out_S1).ravel(),
        held_out_N=(is_last_ST & is_held_out_S1).ravel(),
    )


def every_event_set(n_sequences: int, base_rate: float, seed: int, *, max_events: int = 16) -> TrainingSet:
    """Return sequences of 1 to 60 random events, each labelled; a fifth of them is held out.

    While the last event of type 2 or 3 was a 2, an event is a fraud nine times as often as otherwise, on the whole at
    base_rate: so a network has to remember.
    """
    rng = np.random.default_rng(seed)
    lengths_S = rng.integers(1, 61, n_sequences)
    starts_S1 = np.concatenate([[0], np.cumsum(lengths_S)])
    n_events = int(starts_S1[-1])
    tokens_NF = np.stack([rng.integers(1, size, n_events) for size in FIELD_SIZES], axis=1).astype(np.int16)
    speaks_N = np.isin(tokens_NF[:, 0], (2, 3))
    last_N = np.maximum.accumulate(np.where(speaks_N, np.arange(n_events), -1))
    is_risky_N = (last_N >= np.repeat(starts_S1[:-1], lengths_S)) & (tokens_NF[last_N, 0] == 2)
    odds_N = np.where(is_risky_N, 9.0, 1.0)
    return TrainingSet(
        tokens_NF=tokens_NF,
        windows=windows(starts_S1, np.zeros(n_sequences, dtype=np.int64), max_events),
        label_N=(rng.random(n_events) < base_rate * odds_N / odds_N.mean()).astype(np.int8),
        trained_N=np.repeat(np.arange(n_sequences) % 5 != 0, lengths_S),
        held_out_N=np.repeat(np.arange(n_sequences) % 5 == 0, lengths_S),
    )
