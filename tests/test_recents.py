"""Laws of first-seen values: what is carried, under which dictionary, and what is read together changes nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fraud.events import NULL_CODE, IntArray, Text, text_from_objects
from fraud.recents import Recent, first_seen

USERS, FIELDS = 3, ("payee", "device")
# Of a few users, field by field: the values of some rows each. Few values, so that they come again.
CELLS = st.lists(st.sampled_from([None, *"abcdefg"]), max_size=12)
PARTS = st.lists(
    st.lists(st.tuples(CELLS, st.integers(0, 2**16)), min_size=USERS, max_size=USERS), min_size=1, max_size=4
)
DICTIONARY = np.array([*(f"other{k}" for k in range(50_000)), *"gfedcba", *[None] * 1_000], dtype=object)
PLACE_OF = {value: code for code, value in enumerate(DICTIONARY.tolist()) if value is not None}


def _cells_of(part: list[tuple[list[str | None], int]], field: int) -> list[list[str | None]]:
    """Return the cells of each user; those of the second field are the first field's, shuffled."""
    if field == 0:
        return [cells for cells, _ in part]
    return [[cells[k] for k in np.random.default_rng(seed).permutation(len(cells))] for cells, seed in part]


def _own_dictionary(cells: Sequence[str | None]) -> Text:
    column = np.empty(len(cells), dtype=object)
    column[:] = cells
    return text_from_objects(column)


def _one_dictionary(cells: Sequence[str | None]) -> Text:
    codes = [NULL_CODE if cell is None else PLACE_OF[cell] for cell in cells]
    return Text(np.array(codes, dtype=np.int32), DICTIONARY)


def _starts(cells_U: list[list[str | None]]) -> IntArray:
    return np.concatenate([[0], np.cumsum([len(cells) for cells in cells_U])]).astype(np.int64)


def _slow(past: list[str], cells: list[str | None], n_recent: int) -> list[int]:
    """Return first seen, by a plain loop that remembers everything; `past` is extended."""
    seen: list[int] = []
    for cell in cells:
        seen.append(-1 if cell is None else int(cell not in past[-n_recent:]))
        if cell is not None:
            past.append(cell)
    return seen


@pytest.mark.parametrize("column_of", [_own_dictionary, _one_dictionary], ids=["own dictionaries", "one dictionary"])
@given(parts=PARTS, n_recent=st.integers(1, 9))
def test_values_are_first_seen_as_a_plain_loop_over_all_parts_says(column_of, parts, n_recent) -> None:  # noqa: ANN001
    past: dict[tuple[str, int], list[str]] = {(name, user): [] for name in FIELDS for user in range(USERS)}
    before: dict[str, Recent] = {}
    for part in parts:
        cells = {name: _cells_of(part, field) for field, name in enumerate(FIELDS)}
        columns = {name: column_of([cell for user in of_U for cell in user]) for name, of_U in cells.items()}
        starts_U1 = _starts(cells[FIELDS[0]])
        seen, before = first_seen(columns, starts_U1, before, n_recent=n_recent)
        for name in FIELDS:
            slow = [_slow(past[name, user], own, n_recent) for user, own in enumerate(cells[name])]
            assert seen[name].tolist() == [cell for own in slow for cell in own]
            for user in range(USERS):
                first, last = before[name].starts_U1[user : user + 2].tolist()
                assert before[name].values.to_objects()[first:last].tolist() == past[name, user][-n_recent:]


@given(parts=PARTS)
def test_what_is_carried_stays_under_the_dictionary_that_the_events_share(parts) -> None:  # noqa: ANN001
    before: dict[str, Recent] = {}
    for part in parts:
        cells_U = _cells_of(part, 0)
        columns = {"payee": _one_dictionary([cell for own in cells_U for cell in own])}
        _, before = first_seen(columns, _starts(cells_U), before, n_recent=4)
        assert before["payee"].values.values is DICTIONARY


@pytest.mark.parametrize("n_between", [254, 255, 256, 257, 600])
@pytest.mark.parametrize("n_carried", [0, 1, 200, 256])
def test_a_value_is_forgotten_after_256_others_wherever_they_are_cut(n_between: int, n_carried: int) -> None:
    whole = ["a", *(f"other{k % 7}" for k in range(n_between)), "a"]
    before: dict[str, Recent] = {}
    seen: list[int] = []
    cut = min(n_carried, len(whole) - 1)
    for cells in (whole[:cut], whole[cut:-1], whole[-1:]):
        got, before = first_seen({"payee": _one_dictionary(cells)}, np.array([0, len(cells)]), before, n_recent=256)
        seen += got["payee"].tolist()
    assert seen == _slow([], list(whole), 256)
    assert seen[-1] == int(n_between >= 256)
    assert before["payee"].values.to_objects().tolist() == whole[-256:]


def test_fields_of_a_large_input_are_read_one_by_one_with_the_same_result() -> None:
    rng = np.random.default_rng(0)
    starts_U1 = np.arange(0, 20_001, 100)
    columns = {name: Text(rng.integers(-1, 300, 20_000).astype(np.int32), DICTIONARY) for name in FIELDS}
    _, before = first_seen(columns, starts_U1, {}, n_recent=256)
    large, after = first_seen(columns, starts_U1, before, n_recent=256)
    for user in range(0, 200, 40):
        rows, first, last = slice(100 * user, 100 * (user + 1)), *before["payee"].starts_U1[user : user + 2].tolist()
        few = {name: column.take(rows) for name, column in columns.items()}
        own = {
            name: Recent(recent.values.take(slice(*recent.starts_U1[user : user + 2].tolist())), np.array([0, n]))
            for name, recent in before.items()
            for n in [int(np.diff(recent.starts_U1)[user])]
        }
        small, after_small = first_seen(few, np.array([0, 100]), own, n_recent=256)
        assert last > first
        for name in FIELDS:
            np.testing.assert_array_equal(small[name], large[name][rows])
            kept = after[name].values.take(slice(*after[name].starts_U1[user : user + 2].tolist()))
            np.testing.assert_array_equal(after_small[name].values.codes_N, kept.codes_N)
