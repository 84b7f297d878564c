"""Laws of context windows: every event counts once, and what it sees is its context."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fraud.batches import buckets, counted, gather, prefix_windows, windows
from fraud.contexts import context_start

LENGTHS = st.lists(st.integers(0, 60), min_size=1, max_size=12)
HALVES = st.integers(2, 10)


@given(lengths=LENGTHS, half=HALVES)
def test_each_event_counts_in_one_window_that_starts_at_its_context(lengths: list[int], half: int) -> None:
    starts_S1 = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    chosen = windows(starts_S1, np.zeros(len(lengths), dtype=np.int64), 2 * half)
    row_R, window_R, step_R = counted(chosen)
    assert sorted(row_R.tolist()) == list(range(sum(lengths)))
    first_N = np.repeat(starts_S1[:-1], lengths)
    position_R = row_R - first_N[row_R]
    np.testing.assert_array_equal(chosen.starts_W[window_R], first_N[row_R] + context_start(position_R, 2 * half))
    assert (step_R < 2 * half).all()


@given(length=st.integers(0, 60), half=HALVES, dropped_blocks=st.integers(1, 4))
def test_a_sequence_whose_start_was_dropped_counts_from_its_second_block_on(
    length: int, half: int, dropped_blocks: int
) -> None:
    first = dropped_blocks * half
    chosen = windows(np.array([0, length]), np.array([first]), 2 * half)
    row_R, window_R, _ = counted(chosen)
    assert sorted(row_R.tolist()) == list(range(min(half, length), length))
    np.testing.assert_array_equal(chosen.starts_W[window_R] + first, context_start(row_R + first, 2 * half))


@given(lengths=LENGTHS, half=HALVES, dropped_blocks=st.integers(0, 3))
def test_a_prefix_window_is_the_context_of_its_last_row_and_no_later_one(
    lengths: list[int], half: int, dropped_blocks: int
) -> None:
    starts_S1 = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    first_S = np.full(len(lengths), dropped_blocks * half)
    row_R, window_R, _ = counted(windows(starts_S1, first_S, 2 * half))
    context = dict(zip(row_R.tolist(), windows(starts_S1, first_S, 2 * half).starts_W[window_R].tolist(), strict=True))
    chosen = prefix_windows(starts_S1, first_S, 2 * half)
    assert (chosen.scored_from_W == chosen.lengths_W - 1).all()
    last_W = chosen.starts_W + chosen.lengths_W - 1
    assert dict(zip(last_W.tolist(), chosen.starts_W.tolist(), strict=True)) == context


@given(lengths=st.lists(st.integers(1, 64), min_size=1, max_size=200), seed=st.none() | st.integers(0, 9))
def test_buckets_hold_every_window_once_and_keep_to_their_size(lengths: list[int], seed: int | None) -> None:
    lengths_W = np.array(lengths, dtype=np.int32)
    groups = buckets(lengths_W, 256, None if seed is None else np.random.default_rng(seed))
    assert sorted(np.concatenate(groups).tolist()) == list(range(len(lengths)))
    assert all(len(group) * lengths_W[group].max() <= 256 for group in groups)


def test_gather_pads_on_the_right_with_zeros() -> None:
    tokens_NF = np.arange(1, 13, dtype=np.int16).reshape(6, 2)
    chosen = windows(np.array([0, 4, 6]), np.zeros(2, dtype=np.int64), 4)
    assert gather(tokens_NF, chosen).tolist() == [
        [[1, 2], [3, 4], [5, 6], [7, 8]],
        [[9, 10], [11, 12], [0, 0], [0, 0]],
    ]
