"""A recurrent network one event at a time: two staggered states a user give each event exactly its context.

The context of an event begins at the start of the block before its own (`fraud.contexts`). The first state of a user
began there; the second began at the start of the current block and becomes the first when the next block begins. So an
event costs two steps, whatever came before it, and its logit is that of the window (DESIGN 2).

A matrix product of one row takes another way through ONNX Runtime than one of many and rounds otherwise; rows of many
are the same whatever their number. So one row is never run alone, and a logit does not depend on who shares the call.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fraud.events import FloatArray, IntArray
from fraud.runtime import LogitArray, StepModel
from fraud.tokens import TokenArray

_FIRST, _SECOND = 0, 1
_FEWEST_ROWS = 2


class Stepper:
    """The states of the users in the slots of a pool: float32 [S, 2, numbers of one state]."""

    def __init__(self, model: StepModel, n_slots: int, max_events: int) -> None:
        """Take the network's step, how many users fit, and the length of a context."""
        self._model = model
        self._half = max_events // 2
        self._states_SKN = np.zeros((n_slots, 2, model.n_numbers), dtype=np.float32)

    def reset(self, slots_U: IntArray) -> None:
        """Forget the users in these slots: they are read again from the start of their stored events."""
        self._states_SKN[slots_U] = 0.0

    def logits(
        self, tokens_NF: TokenArray, position_N: IntArray, slot_U: IntArray, first_U: IntArray, end_U: IntArray
    ) -> FloatArray:
        """Return float64 [N], NaN where no step was made; the states are moved on.

        position_N: the position of each event in its sequence. The rows first_U .. end_U - 1 of each user are stepped.
        """
        logit_N = np.full(len(tokens_NF), np.nan, dtype=np.float64)
        n_U = end_U - first_U
        for step in range(int(n_U.max(initial=0))):
            going = np.flatnonzero(n_U > step)
            rows = first_U[going] + step
            logit_N[rows] = self._step(tokens_NF[rows].astype(np.int64), position_N[rows], slot_U[going])
        return logit_N

    def _step(self, tokens_UF: npt.NDArray[np.int64], position_U: IntArray, slot_U: IntArray) -> LogitArray:
        states_UKN = self._states_SKN[slot_U]
        opens = np.flatnonzero(position_U % self._half == 0)
        if len(opens):
            self._open_blocks(states_UKN, opens, position_U[opens])
        # In the first block the second state would only be thrown away.
        later = np.flatnonzero(position_U >= self._half)
        n_users = len(slot_U)
        n_rows = max(n_users + len(later), _FEWEST_ROWS)
        tokens_BF = np.zeros((n_rows, tokens_UF.shape[1]), dtype=np.int64)
        state_BN = np.zeros((n_rows, states_UKN.shape[2]), dtype=np.float32)
        tokens_BF[:n_users], tokens_BF[n_users : n_users + len(later)] = tokens_UF, tokens_UF[later]
        state_BN[:n_users] = states_UKN[:, _FIRST]
        state_BN[n_users : n_users + len(later)] = states_UKN[later, _SECOND]
        state_BN, logit_B = self._model.step(tokens_BF, state_BN)
        states_UKN[:, _FIRST] = state_BN[:n_users]
        states_UKN[later, _SECOND] = state_BN[n_users : n_users + len(later)]
        self._states_SKN[slot_U] = states_UKN
        return logit_B[:n_users]

    def _open_blocks(self, states_UKN: LogitArray, opens: IntArray, position: IntArray) -> None:
        """Begin a block for the users at `opens`, in place in this tick's copy of their states."""
        promoted = opens[position >= 2 * self._half]
        states_UKN[promoted, _FIRST] = states_UKN[promoted, _SECOND]
        states_UKN[opens[position == 0], _FIRST] = 0.0
        states_UKN[opens, _SECOND] = 0.0
