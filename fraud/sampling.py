"""Which windows an epoch reads and which of their events are in the loss.

Every positive is in it. A negative is in it with probability negative_rate, by one coin per window and epoch: its
neighbours are kept or left out with it, so that a window of none need not be read at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fraud.batches import TokenArray, Windows, gather
from fraud.events import BoolArray, IntArray

LabelArray = npt.NDArray[np.int8]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSet:
    """Events of N rows and the windows that give them context.

    tokens_NF: int16, may be mapped from a file. label_N: int8, 0 or 1. trained_N: True where the event's label may be
    in the loss. held_out_N: True where it is used to stop early. Both count only from scored_from on in each window; no
    event is in both.
    """

    tokens_NF: TokenArray
    windows: Windows
    label_N: npt.NDArray[np.int8]
    trained_N: BoolArray
    held_out_N: BoolArray


class LossBatch(NamedTuple):
    """Windows padded on the right. tokens_BTF: int64; label_BT: int8; in_loss_BT: True for the events in the loss."""

    tokens_BTF: IntArray
    label_BT: LabelArray
    in_loss_BT: BoolArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Windows with at least one event in the loss, each cut after its last one: what comes later cannot matter.

    eligible_N: True where an event may be in the loss. only_positives_W: True where of a window's eligible events only
    the positives are. n_events: how many events are in the loss in all.
    """

    training_set: TrainingSet
    windows: Windows
    eligible_N: BoolArray
    only_positives_W: BoolArray
    n_events: int

    def batch(self, chosen: IntArray) -> LossBatch:
        """Return the chosen windows as arrays."""
        windows = self.windows.take(chosen)
        tokens_BTF = gather(self.training_set.tokens_NF, windows)
        n_times: int = tokens_BTF.shape[1]
        steps_T = np.arange(n_times)
        counts_BT = (steps_T >= windows.scored_from_W[:, None]) & (steps_T < windows.lengths_W[:, None])
        rows_BT = np.where(counts_BT, windows.starts_W[:, None] + steps_T, windows.starts_W[:, None])
        label_BT = self.training_set.label_N[rows_BT]
        kept_BT = (label_BT == 1) | ~self.only_positives_W[chosen][:, None]
        return LossBatch(tokens_BTF, label_BT, counts_BT & self.eligible_N[rows_BT] & kept_BT)


def training_sample(training_set: TrainingSet, negative_rate: float, rng: np.random.Generator) -> Sample:
    """Return an epoch's windows: every trained event of a share negative_rate of them, the positives of the others."""
    only_positives_W = rng.random(len(training_set.windows)) >= negative_rate
    return _sample(training_set, training_set.trained_N, only_positives_W)


def held_out_sample(training_set: TrainingSet) -> Sample:
    """Return the windows with held-out events; all of these are in the loss."""
    return _sample(training_set, training_set.held_out_N, np.zeros(len(training_set.windows), dtype=np.bool_))


def _sample(training_set: TrainingSet, eligible_N: BoolArray, only_positives_W: BoolArray) -> Sample:
    windows = training_set.windows
    all_W, last_W = _counted(windows, eligible_N)
    positive_W, last_positive_W = _counted(windows, eligible_N & (training_set.label_N == 1))
    n_events_W = np.where(only_positives_W, positive_W, all_W)
    kept = np.flatnonzero(n_events_W)
    lengths_W = np.where(only_positives_W, last_positive_W, last_W) - windows.starts_W + 1
    return Sample(
        training_set=training_set,
        windows=Windows(windows.starts_W, lengths_W.astype(np.int32), windows.scored_from_W).take(kept),
        eligible_N=eligible_N,
        only_positives_W=only_positives_W[kept],
        n_events=int(n_events_W.sum()),
    )


def _counted(windows: Windows, wanted_N: BoolArray) -> tuple[IntArray, IntArray]:
    """Return (how many, row of the last): the wanted rows among those that count in each window, int64 [W] each.

    The second is meaningless where the first is 0.
    """
    before_N1 = np.concatenate([[0], np.cumsum(wanted_N, dtype=np.int64)])
    end_W = windows.starts_W + windows.lengths_W
    first_W = np.minimum(windows.starts_W + windows.scored_from_W, end_W)
    rows = np.append(np.flatnonzero(wanted_N), 0)
    return before_N1[end_W] - before_N1[first_W], rows[before_N1[end_W] - 1]
