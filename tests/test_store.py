"""The laws of a state store, on SQLite and on PostgreSQL: who wins, what is kept, what an erasure leaves."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.state.chain import record_id, record_of_id
from service.state.erasures import ERASURE_MARK
from service.state.opening import open_existing_store
from service.state.sql import SqlStore
from service.state.store import (
    KEEP_EVENTS_US,
    WINDOW_HOURS,
    CounterDelta,
    CounterRow,
    LabelledEvent,
    NewSnapshot,
    RecordWrite,
    ShadowRow,
    Tick,
    UserWrite,
    Wanted,
)
from tests.made_ticks import HOUR, NOW_US, append, event_write, label_write, read_user, user_write
from tests.states import Opened

EMPTY = Tick((), (), ())


@pytest.fixture(params=["sqlite", "postgresql"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Opened]:
    """Yield what opens stores on one new database."""
    with Opened.on(request, tmp_path) as opened:
        yield opened


@pytest.fixture
def store(opened: Opened) -> SqlStore:
    """Return a store on a new database."""
    return opened.store()


def _counters(store: SqlStore, *entities: tuple[str, str, int]) -> set[CounterRow]:
    return set(store.read(Wanted((), (), entities)).counters)


def test_what_was_written_is_read(store: SqlStore) -> None:
    event = event_write(store, "ann", "e1")
    assert store.write(Tick((user_write("ann", [event], None),), (), ())) == frozenset()
    found = store.read(Wanted(("ann", "bob"), (("ann", "e1"), ("ann", "e2"), ("bob", "e1")), ()))
    assert list(found.users) == ["ann"]
    user = found.users["ann"]
    assert user[:5] == (NOW_US, 1, NOW_US, 1, 0)
    assert (user.carry, user.rows, user.since) == (b"carry", b"rows", (event.payload,))
    assert list(found.events) == [("ann", "e1")]
    stored = found.events["ann", "e1"]
    assert (stored.payload_hash, stored.payload) == (event.payload_hash, event.payload)
    assert (stored.ts_us, stored.label, stored.entities, stored.session_id) == (
        NOW_US, None, ("payee of ann", None), f"ann@{NOW_US}",
    )  # fmt: skip


def test_nothing_wanted_is_nothing_found(store: SqlStore) -> None:
    assert store.read(Wanted((), (), ())) == ({}, {}, [])
    assert store.write(EMPTY) == frozenset()


@pytest.mark.parametrize("text", ["ann", "ann'); --", 'q"\\', "%s ? {x}", "Zoë 日本 🦊", "\u2028\u00a0~", "a" * 256])
def test_any_text_is_a_user(store: SqlStore, text: str) -> None:
    assert not append(store, text, text)
    found = store.read(Wanted((text,), ((text, text),), (("payee", f"payee of {text}", HOUR + 1),)))
    assert (list(found.users), list(found.events), len(found.counters)) == ([text], [(text, text)], 1)


def test_records_of_the_snapshot_come_by_ordinal_and_late_ones_stand_in_the_snapshot(store: SqlStore) -> None:
    append(store, "ann", "e0", "e1")
    append(store, "ann", "e2")
    user = read_user(store, "ann")
    assert user is not None
    assert [b'"place": %d,' % i in payload for i, payload in enumerate(user.since)] == [True] * 3
    late = event_write(store, "ann", "late", snapshot=2, ordinal=-1)
    first = event_write(store, "ann", "e3", snapshot=2, ordinal=0)
    write = user_write("ann", [first, late], user, new_snapshot=NewSnapshot(2, b"carry 2", b"rows 2"))
    assert not store.write(Tick((write,), (), ()))
    user = read_user(store, "ann")
    assert user is not None
    assert (user.snapshot, user.first_index, user.carry, user.rows) == (2, 2, b"carry 2", b"rows 2")
    assert user.since == (first.payload,)
    assert [record.ordinal for record in store.user_records("ann", 2)] == [-1, 0]
    assert [record.ordinal for record in store.user_records("ann", 1)] == [0, 1, 2]
    assert store.snapshot("ann", 1) == (0, b"carry", b"rows")
    assert store.snapshot("ann", 3) is None


def test_who_loses_leaves_nothing_and_the_others_are_written(store: SqlStore) -> None:
    append(store, "ann", "a1")
    append(store, "bob", "b1")
    old = {name: read_user(store, name) for name in ("ann", "bob")}
    append(store, "bob", "b2")  # somebody was faster
    before = store.shard_heads()[0]
    writes = [
        user_write("ann", [event_write(store, "ann", "a2", ordinal=1)], old["ann"]),
        user_write("bob", [event_write(store, "bob", "b3", ordinal=1)], old["bob"]),
        user_write("cid", [event_write(store, "cid", "c1")], None),
    ]
    stateless = RecordWrite("bob", store.next_number(), b"stateless")
    assert store.write(Tick(tuple(writes), (stateless,), ())) == {"bob"}
    found = store.read(Wanted(("ann", "bob", "cid"), (("ann", "a2"), ("bob", "b3"), ("cid", "c1")), ()))
    assert {name: user.n_events for name, user in found.users.items()} == {"ann": 2, "bob": 2, "cid": 1}
    assert set(found.events) == {("ann", "a2"), ("cid", "c1")}
    assert _counters(store, ("payee", "payee of bob", HOUR + 1)) == {CounterRow("payee", "payee of bob", HOUR, 2, 0, 0)}
    written = store.chain(store.shard, before.number, 10)
    assert [link.user_id for link in written] == ["ann", "cid", "bob"]  # by number, with a gap where the loser's was
    assert written[-1].payload == b"stateless"


def test_a_new_user_who_is_there_already_loses(store: SqlStore) -> None:
    append(store, "ann", "e1")
    assert store.write(Tick((user_write("ann", [event_write(store, "ann", "e2")], None),), (), ())) == {"ann"}
    assert ("ann", "e2") not in store.read(Wanted((), (("ann", "e2"),), ())).events


def test_a_known_user_who_is_gone_loses(store: SqlStore) -> None:
    append(store, "ann", "e1")
    was = read_user(store, "ann")
    store.erase("ann")
    assert store.write(Tick((user_write("ann", [event_write(store, "ann", "e2")], was),), (), ())) == {"ann"}
    assert read_user(store, "ann") is None


def test_two_stores_take_turns_and_no_write_is_lost(opened: Opened) -> None:
    stores = [opened.store(), opened.store()]
    assert stores[0].shard != stores[1].shard
    won = [0, 0]

    def write(me: int) -> None:
        n = 0
        while won[me] < 30:
            names = (f"u{n % 3}", f"u{(n + 1 + me) % 3}")
            users = stores[me].read(Wanted(names, (), ())).users
            writes = [
                user_write(
                    name,
                    [event_write(stores[me], name, f"{me}-{n}", ordinal=len(was.since) if was else 0)],
                    was,
                )
                for name in names
                for was in [users.get(name)]
            ]
            won[me] += len(names) - len(stores[me].write(Tick(tuple(writes), (), ())))
            n += 1

    threads = [threading.Thread(target=write, args=(me,)) for me in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    users = stores[0].read(Wanted(("u0", "u1", "u2"), (), ())).users
    assert sum(user.n_events for user in users.values()) == sum(won)
    assert sum(len(user.since) for user in users.values()) == sum(won)
    counted = _counters(stores[1], *(("payee", f"payee of {name}", HOUR + 1) for name in users))
    assert sum(row.volume for row in counted) == sum(won)
    assert sum(len(stores[0].chain(store.shard, 0, 1000)) for store in stores) == sum(won)


def test_a_warm_event_has_no_record(store: SqlStore) -> None:
    event = event_write(store, "ann", "e1")._replace(number=None, ordinal=None, payload=None, label=1, label_known_us=5)
    assert not store.write(Tick((user_write("ann", [event], None),), (), ()))
    stored = store.read(Wanted((), (("ann", "e1"),), ())).events["ann", "e1"]
    assert (stored.payload, stored.label, stored.label_known_us) == (None, 1, 5)
    assert store.record_of_event("ann", "e1") is None
    assert store.chain(store.shard, 0, 10) == ()


def test_who_only_reads_opens_no_chain(store: SqlStore) -> None:
    store.read(Wanted(("ann",), (), ()))
    assert store.shard_heads() == ()


def test_numbers_of_a_tick_rise_and_none_is_used_twice(store: SqlStore) -> None:
    number = store.next_number()
    assert store.next_number() == number + 1
    store.write(Tick((), (RecordWrite("ann", number + 1, b"x"),), ()))
    with pytest.raises(ValueError, match="numbers rise"):
        store.write(Tick((), (RecordWrite("ann", number, b"y"),), ()))
    with pytest.raises(ValueError, match="one number"):
        store.write(Tick((), (RecordWrite("ann", 7, b"y"), RecordWrite("ann", 7, b"z")), ()))
    store.write(Tick((), (RecordWrite("ann", 8, b"y"),), ()))
    assert [link.number for link in store.chain(store.shard, 0, 9)] == [number + 1, 8]


def test_nobody_can_write_what_looks_like_an_erasure(store: SqlStore) -> None:
    with pytest.raises(ValueError, match="erasure"):
        store.write(Tick((), (RecordWrite("ann", store.next_number(), ERASURE_MARK + b"{}"),), ()))


def test_counters_in_the_window_are_found_and_older_ones_with_a_fraud(store: SqlStore) -> None:
    chance = random.Random(3)
    rows = {
        CounterRow("payee", name, HOUR - chance.randrange(-5, 2 * WINDOW_HOURS), 1, chance.randrange(2), 0)
        for name in ("p", "q")
        for _ in range(200)
    }
    rows = {row[:3]: row for row in rows}  # one a key
    deltas = tuple(CounterDelta(*row) for row in rows.values())
    store.write(Tick((user_write("ann", [event_write(store, "ann", "e")], None)._replace(counters=deltas),), (), ()))
    expected = {
        row for row in rows.values()
        if row.entity == "p" and row.hour < HOUR and (row.hour >= HOUR - WINDOW_HOURS or row.frauds > 0)
    }  # fmt: skip
    found = store.read(Wanted((), (), (("payee", "p", HOUR), ("device", "p", HOUR), ("payee", "none", HOUR))))
    assert len(found.counters) == len(expected)
    assert set(found.counters) == expected
    assert any(row.hour < HOUR - WINDOW_HOURS for row in expected)
    wide = _counters(store, ("payee", "p", HOUR), ("payee", "p", HOUR - 9))
    assert wide >= expected


def test_an_entity_wanted_for_two_hours_comes_once(store: SqlStore) -> None:
    append(store, "ann", "e1")
    wanted = Wanted((), (), (("payee", "payee of ann", HOUR + 1), ("payee", "payee of ann", HOUR + 700)))
    assert store.read(wanted).counters == [CounterRow("payee", "payee of ann", HOUR, 1, 0, 0)]


def test_deltas_of_a_tick_are_summed_and_none_falls_below_zero(store: SqlStore) -> None:
    def write(*deltas: CounterDelta) -> None:
        store.write(Tick((), (), (label_write(f"l{len(seen)}", (), 1, counters=deltas),)))
        seen.append(1)

    seen: list[int] = []
    key = ("payee", "p", HOUR)
    write(CounterDelta(*key, 2, 1, 0), CounterDelta(*key, 1, 0, 1))
    write(CounterDelta(*key, 0, -1, 1))
    assert _counters(store, ("payee", "p", HOUR + 1)) == {CounterRow(*key, 3, 0, 2)}
    for deltas in ([CounterDelta(*key, 0, -1, 0)], [CounterDelta("payee", "other", HOUR, 0, 0, -1)]):
        with pytest.raises(ValueError, match="below zero"):
            write(CounterDelta("payee", "p", HOUR + 1, 1, 0, 0), *deltas)
    assert _counters(store, ("payee", "p", HOUR + 9)) == {CounterRow(*key, 3, 0, 2)}


def test_a_label_is_written_once(store: SqlStore) -> None:
    append(store, "ann", "e1")
    delta = CounterDelta("payee", "payee of ann", HOUR, 0, 1, 0)
    label = label_write("l1", [LabelledEvent("ann", "e1", None, None)], 1, counters=[delta])
    for tick in (Tick((), (), (label, label)), Tick((), (), (label,))):
        assert store.write(tick) == frozenset()
    stored = store.read(Wanted((), (("ann", "e1"),), ())).events["ann", "e1"]
    assert (stored.label, stored.label_known_us) == (1, NOW_US)
    assert {row.frauds for row in _counters(store, ("payee", "payee of ann", HOUR + 1))} == {1}


def test_a_label_made_from_what_was_changed_since_loses(store: SqlStore) -> None:
    append(store, "ann", "e1")
    append(store, "bob", "e1")
    unlabelled = LabelledEvent("ann", "e1", None, None)
    assert not store.write(Tick((), (), (label_write("l1", [unlabelled], 1),)))
    other = LabelledEvent("bob", "e1", None, None)
    ticks = (label_write("l2", [unlabelled, other], 0), label_write("l3", [other], 1))
    assert store.write(Tick((), (), ticks)) == {"ann"}
    events = store.read(Wanted((), (("ann", "e1"), ("bob", "e1")), ())).events
    assert {key[0]: event.label for key, event in events.items()} == {"ann": 1, "bob": 1}
    again = label_write("l2", [LabelledEvent("ann", "e1", 1, NOW_US)], 0)
    assert not store.write(Tick((), (), (again,)))


def test_a_label_of_an_event_that_is_not_there_loses(store: SqlStore) -> None:
    assert store.write(Tick((), (), (label_write("l1", [LabelledEvent("ann", "e1", None, None)], 1),))) == {"ann"}


def test_labels_of_one_tick_follow_one_another_and_its_events(store: SqlStore) -> None:
    write = user_write("ann", [event_write(store, "ann", "e1")], None)
    first = label_write("l1", [LabelledEvent("ann", "e1", None, None)], 1)
    second = label_write("l2", [LabelledEvent("ann", "e1", 1, NOW_US)], 0)
    assert not store.write(Tick((write,), (), (first, second)))
    assert store.read(Wanted((), (("ann", "e1"),), ())).events["ann", "e1"].label == 0


def test_a_user_loses_whole_where_a_label_of_theirs_does(store: SqlStore) -> None:
    write = user_write("ann", [event_write(store, "ann", "e1")], None)
    stale = label_write("l1", [LabelledEvent("ann", "e1", 1, 5)], 0)
    assert store.write(Tick((write,), (), (stale,))) == {"ann"}
    assert read_user(store, "ann") is None
    assert not append(store, "ann", "e1")


def test_an_erasure_takes_all_of_a_user_from_every_chain(opened: Opened) -> None:
    first, second = opened.store(), opened.store()
    append(first, "ann", "e1", "e2")
    append(second, "ann", "e3")
    append(second, "ann@home", "e1")
    stateless = RecordWrite("ann", second.next_number(), b"stateless")
    label = label_write("l1", [LabelledEvent("ann", "e1", None, None)], 1)
    session = label_write("l2", [], 1, session_id=f"ann@{NOW_US}")
    neighbour = label_write("l3", [], 1, session_id=f"ann@home@{NOW_US}")
    assert not second.write(Tick((), (stateless,), (label, session, neighbour)))
    record = first.record_of_event("ann", "e1")
    assert record is not None
    assert first.erase("ann") == 4
    assert first.erase("ann") is None
    assert first.erase("nobody") is None
    found = first.read(Wanted(("ann", "ann@home"), (("ann", "e1"), ("ann@home", "e1")), ()))
    assert (list(found.users), list(found.events)) == (["ann@home"], [("ann@home", "e1")])
    assert first.record_of_event("ann", "e1") is None
    erased = first.record(record.shard, record.number)
    assert erased is not None
    assert erased[2:] == (None, None, None, None, record_id(first.shard, first.shard_heads()[0].number))
    assert first.recent_events("ann", 10) == ()
    assert first.snapshot("ann", 1) is None
    assert opened.texts_naming("ann") == []
    assert {row[0] for row in opened.rows("SELECT label_id FROM labels")} == {"l3"}
    assert {row.volume for row in _counters(first, ("payee", "payee of ann", HOUR + 1))} == {3}
    assert not append(second, "ann", "e1")  # a new life


def test_sessions_are_found_whether_the_log_names_them_or_not(store: SqlStore) -> None:
    events = [event_write(store, "ann", f"e{i}", ordinal=i, ts_us=NOW_US - i) for i in range(3)]
    events[2] = events[2]._replace(session_id="visit 7")
    store.write(Tick((user_write("ann", events, None),), (), ()))
    other = event_write(store, "bob", "b1")._replace(session_id="visit 7")
    store.write(Tick((user_write("bob", [other], None),), (), ()))
    assert [found[:2] for found in store.session_events(f"ann@{NOW_US}")] == [("ann", "e1"), ("ann", "e0")]
    assert [found[:2] for found in store.session_events("visit 7")] == [("ann", "e2"), ("bob", "b1")]
    assert store.session_events("nobody@1") == ()


def test_recent_events_are_the_newest_oldest_first(store: SqlStore) -> None:
    events = [event_write(store, "ann", f"e{i}", ordinal=i, ts_us=NOW_US + (i * 7) % 5) for i in range(5)]
    store.write(Tick((user_write("ann", events, None),), (), ()))
    by_time = sorted(range(5), key=lambda i: (i * 7) % 5)
    assert [name for name, _ in store.recent_events("ann", 3)] == [f"e{i}" for i in by_time[-3:]]


def test_old_events_are_pruned_by_when_they_were_stored(store: SqlStore) -> None:
    old = event_write(store, "ann", "old")._replace(stored_us=NOW_US - KEEP_EVENTS_US - 1)
    store.write(Tick((user_write("ann", [old, event_write(store, "ann", "new", ordinal=1)], None),), (), ()))
    assert store.prune(NOW_US) == 1
    assert store.prune(NOW_US) == 0
    assert [name for name, _ in store.recent_events("ann", 9)] == ["new"]
    user = read_user(store, "ann")
    assert user is not None
    assert len(user.since) == 2  # its record stays


def test_what_is_small_is_kept(opened: Opened) -> None:
    store = opened.store()
    assert store.state_hash() is None
    store.set_state_hash("a")
    store.set_state_hash("b")
    store.add_key(b"h" * 32, "scorer")
    store.add_key(b"i" * 32, "admin")
    assert store.revoke_key(b"i" * 32)
    assert not store.revoke_key(b"i" * 32)
    row = ShadowRow(20000, "one", "two", "allow", "block", 3, 0.5)
    store.shadow_add([row, row._replace(decision_challenger="allow", n=1, sum_abs_difference=0.25)])
    store.shadow_add([row])
    again = opened.store()
    assert again.state_hash() == "b"
    assert again.keys() == {b"h" * 32: "scorer"}
    assert [(found.decision_challenger, found.n, found.sum_abs_difference) for found in again.shadow_rows()] == [
        ("allow", 1, 0.25), ("block", 6, 1.0),
    ]  # fmt: skip


def test_a_tick_of_many_users_is_one_like_any_other(store: SqlStore) -> None:
    writes: list[UserWrite] = [user_write(f"u{i}", [event_write(store, f"u{i}", "e")], None) for i in range(1500)]
    assert not store.write(Tick(tuple(writes), (), ()))
    names = tuple(write.user_id for write in writes)
    found = store.read(Wanted(names, tuple((name, "e") for name in names), ()))
    assert (len(found.users), len(found.events)) == (1500, 1500)


def test_an_existing_store_is_asked_for_and_there_is_none(opened: Opened) -> None:
    from fraud.errors import ConfigError

    with pytest.raises(ConfigError, match="no state store"):
        open_existing_store(opened.url, now_us=lambda: NOW_US)


@pytest.mark.parametrize("place", [(1, 1), (1, 255), (31, 1 << 40)])
def test_a_record_is_found_by_its_id(place: tuple[int, int]) -> None:
    assert record_of_id(record_id(*place)) == place


@pytest.mark.parametrize(
    "text", ["", "1", "1-", "-1-1", "1-g", "1-0x1", "1-01", "1-1.0", " 1-1", "1_0-1", "1-A", "f" * 20 + "-1"]
)
def test_what_is_not_written_as_an_id_is_none(text: str) -> None:
    assert record_of_id(text) is None
