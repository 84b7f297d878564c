"""Rows -> Events: one order whatever the order of the rows, duplicates once, contradictions never."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fraud.config import Config, parse_config
from fraud.events import Events
from fraud.ordering import Ordered, stable_argsort, text_column, to_events
from fraud.quarantine import Quarantine
from fraud.validation import canonical_table
from tests.raw_logs import rows_of

IDS = ["a", "B", "é", "\uffff", "😀", "007", "7", "a" * 9, "a" * 8 + "b", "a" * 17]
CONFIG = '[log]\ntime_unit = "us"\nevent_id = "event_id"\n%s[fields]\namount = "amount"\ncategorical = ["channel"]\n'
CONFIGS = {
    "plain": CONFIG.replace('event_id = "event_id"\n', "") % "",
    "ids": CONFIG % "",
    "order": CONFIG % 'order = "seq"\n',
}

Row = dict[str, object]
row_strategy = st.fixed_dictionaries(
    {
        "user_id": st.sampled_from(["a", "\uffff", "😀"]),
        "ts": st.sampled_from([0, 1, 10**15]),
        "type": st.sampled_from(["login", "view"]),
        "event_id": st.sampled_from(IDS),
        "seq": st.sampled_from([-(2**63), -1, 0, 2**63 - 1]),
        "amount": st.sampled_from([None, 0.0, 1.5]),
        "channel": st.sampled_from([None, "app"]),
    }
)


@st.composite
def logs(draw: st.DrawFn) -> list[Row]:
    """Rows of which some come again, as they were or with other values."""
    drawn = draw(st.lists(row_strategy, max_size=15))
    rows = [{**row, "event_id": f"{row['event_id']}{i}"} for i, row in enumerate(drawn)]
    again = draw(st.lists(st.sampled_from(rows), max_size=4)) if rows else []
    changed = [{**draw(row_strategy), "user_id": r["user_id"], "event_id": r["event_id"]} for r in again[:2]]
    return draw(st.permutations([*rows, *again, *changed]))


TYPES = {"ts": pa.int64(), "seq": pa.int64(), "amount": pa.float64()}


def config_of(name: str) -> Config:
    return parse_config(CONFIGS[name], source="test", root=Path())


def ordered_of(rows: list[Row], config: Config) -> tuple[Ordered, Quarantine]:
    names = ("user_id", "ts", "type", "event_id", "seq", "amount", "channel")
    table = pa.table({n: pa.array([row[n] for row in rows], TYPES.get(n, pa.string())) for n in names})
    quarantine = Quarantine()
    canonical = canonical_table(table, config, quarantine, source="table", first_row=0)
    assert len(quarantine) == 0
    return to_events(canonical, config, quarantine), quarantine


def kept_and_refused(rows: list[Row], config: Config) -> tuple[list[int], list[int]]:
    """Return which rows stay and which contradict another, one row at a time."""
    if config.log.event_id is None:
        return list(range(len(rows))), []
    declared = [name for name in rows[0] if name != "seq" or config.log.order] if rows else []
    payloads: dict[tuple[object, object], list[tuple[int, tuple[object, ...]]]] = defaultdict(list)
    for i, row in enumerate(rows):
        payloads[row["user_id"], row["event_id"]].append((i, tuple(row[name] for name in declared)))
    kept, refused = [], []
    for same_id in payloads.values():
        if len({payload for _, payload in same_id}) == 1:
            kept.append(same_id[0][0])
        else:
            refused += [i for i, _ in same_id]
    return sorted(kept), sorted(refused)


@pytest.mark.parametrize("name", CONFIGS)
@given(rows=logs())
def test_events_stand_in_the_order_of_a_plain_sort(rows: list[Row], name: str) -> None:
    config = config_of(name)
    kept, refused = kept_and_refused(rows, config)

    def place(i: int) -> tuple[object, ...]:
        # Python compares text by code points.
        row = rows[i]
        tie = {"plain": (), "ids": (row["event_id"],), "order": (row["seq"], row["event_id"])}[name]
        return (row["user_id"], row["ts"], *tie, i)

    ordered, quarantine = ordered_of(rows, config)
    assert ordered.events.row.tolist() == sorted(kept, key=place)
    assert quarantine.table()["row"].to_pylist() == refused
    assert set(quarantine.table()["reason"].to_pylist()) <= {"conflicting_duplicate"}
    assert len(rows) == len(ordered.events) + ordered.n_duplicates + len(quarantine)


@pytest.mark.parametrize("name", CONFIGS)
@given(rows=logs())
def test_every_field_follows_its_row(rows: list[Row], name: str) -> None:
    events = ordered_of(rows, config_of(name))[0].events
    expected = [tuple(rows[i][n] for n in ("user_id", "ts", "type", "amount", "channel")) for i in events.row.tolist()]
    assert rows_of(events) == expected


def parts_of(events: Events) -> list[object]:
    """Return everything in the events but where their rows stood."""
    texts = [events.type, *events.categorical.values()]
    arrays = [events.users, events.user_starts, events.time_us, events.amount]
    codes = [part for text in texts for part in (text.codes_N, text.values)]
    return [None if array is None else array.tolist() for array in (*arrays, *codes)]


@pytest.mark.parametrize("name", ["ids", "order"])
@given(logs=logs().flatmap(lambda rows: st.tuples(st.just(rows), st.permutations(rows))))
def test_the_order_of_rows_does_not_matter_with_event_ids(logs: tuple[list[Row], list[Row]], name: str) -> None:
    rows, shuffled = logs
    (one, refused), (other, refused_shuffled) = (ordered_of(r, config_of(name)) for r in (rows, shuffled))
    assert repr(parts_of(one.events)) == repr(parts_of(other.events))
    assert one.n_duplicates == other.n_duplicates
    values = [Counter(q.table()["value"].to_pylist()) for q in (refused, refused_shuffled)]
    assert values[0] == values[1]


@given(st.lists(st.lists(st.sampled_from(IDS) | st.none(), max_size=6), max_size=3))
def test_a_text_column_has_the_values_that_occur_by_code_point(chunks: list[list[str | None]]) -> None:
    cells = [cell for chunk in chunks for cell in chunk]
    text = text_column(pa.chunked_array([pa.array(chunk, pa.string()) for chunk in chunks], pa.string()))
    assert text.values.tolist() == sorted({cell for cell in cells if cell is not None})
    assert text.to_objects().tolist() == cells


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from([0, 1, 2**16, 2**40, 2**62])), max_size=30))
def test_the_radix_sort_is_a_stable_sort(rows: list[tuple[int, int]]) -> None:
    major, minor = (np.array([row[i] for row in rows], dtype=np.int64) for i in (0, 1))
    assert stable_argsort([minor, major]).tolist() == np.lexsort((minor, major)).tolist()


def test_the_same_id_of_two_users_is_two_events() -> None:
    row: Row = {"ts": 0, "type": "login", "event_id": "e", "seq": 0, "amount": None, "channel": None}
    ordered, quarantine = ordered_of([{**row, "user_id": "u"}, {**row, "user_id": "v"}], config_of("ids"))
    assert (len(ordered.events), ordered.n_duplicates, len(quarantine)) == (2, 0, 0)
