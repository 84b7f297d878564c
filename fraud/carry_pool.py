"""Carries of many users kept in memory between their events, and one user's carry as bytes for a store.

The numbers of all users stand in one matrix and their recent values in one matrix of codes a field, so that the users
of a tick are gathered, and put back, by a few vectorised copies. Codes point into a growing dictionary of the field,
which the events of the tick share.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fraud.config import FieldsConfig
from fraud.enrich import N_RECENT, Carry, EnrichSpec, Recent, empty_carry
from fraud.errors import DataError
from fraud.events import NULL_CODE, IntArray, Text, text_from_objects
from fraud.rows import Dictionary

_NUMBERS = (
    "n_events_U",
    "last_time_us_U",
    "session_start_us_U",
    "session_first_U",
    "amount_count_U",
    "amount_sum_U",
    "amount_square_U",
    "amount_max_U",
)
_MATRICES = ("key_time_us_UK", "key_pause_UK")


class _Values(NamedTuple):
    """The recent values of one field: codes_SR int32 [S, 256], those of slot s are its first count_S[s]."""

    codes_SR: npt.NDArray[np.int32]
    count_S: IntArray
    dictionary: Dictionary


class CarryPool:
    """Carries of up to `n_slots` users, each in a slot of its own."""

    def __init__(self, n_slots: int, fields: FieldsConfig, spec: EnrichSpec) -> None:
        """Take how many users fit and what a carry holds."""
        self._spec = spec
        self._n_keys = len(spec.key_types)
        self._numbers_SC = np.zeros((n_slots, len(_NUMBERS) + 2 * self._n_keys), dtype=np.int64)
        self._session_S = np.full(n_slots, None, dtype=object)
        self._values = {
            name: _Values(
                np.zeros((n_slots, N_RECENT), dtype=np.int32), np.zeros(n_slots, dtype=np.int64), Dictionary()
            )
            for name in (*fields.categorical, *fields.entity)
        }

    @property
    def dictionaries(self) -> Mapping[str, Dictionary]:
        """Return the dictionary of each field that a carry holds values of."""
        return {name: values.dictionary for name, values in self._values.items()}

    @property
    def n_values(self) -> int:
        """Return how many different values the dictionaries hold: what grows with use."""
        return sum(len(values.dictionary) for values in self._values.values())

    def gather(self, slots_U: IntArray) -> Carry:
        """Return the carry of some users."""
        numbers_UC = self._numbers_SC[slots_U]
        first_key = len(_NUMBERS)
        recent: dict[str, Recent] = {}
        for name, values in self._values.items():
            count_U = values.count_S[slots_U]
            codes_UR = values.codes_SR[slots_U]
            codes_V = codes_UR[np.arange(N_RECENT) < count_U[:, None]]
            recent[name] = Recent(Text(codes_V, values.dictionary.values), np.concatenate([[0], np.cumsum(count_U)]))
        return Carry(
            **{name: numbers_UC[:, c] for c, name in enumerate(_NUMBERS)},
            last_session_U=self._session_S[slots_U],
            key_time_us_UK=numbers_UC[:, first_key : first_key + self._n_keys],
            key_pause_UK=numbers_UC[:, first_key + self._n_keys :],
            recent=recent,
        )

    def put(self, slots_U: IntArray, carry: Carry) -> None:
        """Keep the carries of some users, whose recent values are codes of this pool's dictionaries or texts."""
        columns = [getattr(carry, name)[:, None] for name in _NUMBERS]
        self._numbers_SC[slots_U] = np.concatenate([*columns, *(getattr(carry, name) for name in _MATRICES)], axis=1)
        self._session_S[slots_U] = carry.last_session_U
        for name, values in self._values.items():
            recent = carry.recent.get(name)
            if recent is None:
                values.count_S[slots_U] = 0
                continue
            codes_V = recent.values.codes_N
            if recent.values.values is not values.dictionary.values:
                used, place_V = np.unique(codes_V, return_inverse=True)
                codes = values.dictionary.codes(recent.values.values[used].tolist())
                codes_V = np.array(codes, dtype=np.int32)[place_V]
            count_U = np.diff(recent.starts_U1)
            values.count_S[slots_U] = count_U
            codes_UR = np.full((len(count_U), N_RECENT), NULL_CODE, dtype=np.int32)
            codes_UR[np.arange(N_RECENT) < count_U[:, None]] = codes_V
            values.codes_SR[slots_U] = codes_UR

    def forget_all(self) -> None:
        """Empty the dictionaries; every slot must be filled anew before it is read."""
        for name, values in self._values.items():
            self._values[name] = values._replace(dictionary=Dictionary())


def carry_to_bytes(carry: Carry, user: int) -> bytes:
    """Return one user's carry as text of JSON: exact, since every number in it is an integer."""
    tree = {name: int(getattr(carry, name)[user]) for name in _NUMBERS}
    lists = {name: getattr(carry, name)[user].tolist() for name in _MATRICES}
    recent = {name: _values_of(values, user) for name, values in carry.recent.items()}
    whole = {**tree, **lists, "last_session_U": carry.last_session_U[user], "recent": recent}
    return json.dumps(whole, ensure_ascii=False, separators=(",", ":")).encode()


def carry_from_bytes(content: bytes, spec: EnrichSpec) -> Carry:
    """Return the carry [1] that `carry_to_bytes` wrote; empty content is a user without a past.

    Raises DataError for anything else: a store that was changed by hand.
    """
    if not content:
        return empty_carry(1, spec)
    try:
        tree: dict[str, Any] = json.loads(content)  # Any: JSON; each cell is converted below
        return Carry(
            **{name: np.array([tree[name]], dtype=np.int64) for name in _NUMBERS},
            **{name: np.array(tree[name], dtype=np.int64).reshape(1, len(spec.key_types)) for name in _MATRICES},
            last_session_U=np.array([tree["last_session_U"]], dtype=object),
            recent={name: _recent(cells) for name, cells in tree["recent"].items()},
        )
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise DataError(f"state: a stored carry cannot be read ({error!r}); was the store changed by hand?") from None


def _values_of(recent: Recent, user: int) -> list[str]:
    first, last = int(recent.starts_U1[user]), int(recent.starts_U1[user + 1])
    return recent.values.values[recent.values.codes_N[first:last]].tolist()


def _recent(cells: list[str]) -> Recent:
    column = np.empty(len(cells), dtype=object)
    column[:] = cells
    return Recent(text_from_objects(column), np.array([0, len(cells)]))
