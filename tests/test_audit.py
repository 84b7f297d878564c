"""`fraud audit verify`: whatever is changed in 10,000 records is found, and nothing else is."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import sqlite3
import threading
import tracemalloc
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from fraud.errors import ConfigError
from service.audit import Verdict, verify, words
from service.audit_command import audit_command
from service.auth import key_hash
from service.heads import Head, Heads, read_heads, write_heads
from service.keys import keys_command
from service.state.chain import link_hash, record_id
from service.state.erasures import erasure_payload
from service.state.opening import open_existing_store, open_store
from service.state.store import RecordWrite, Tick
from tests.made_ticks import NOW_US, append
from tests.states import Opened

N_RECORDS, N_SHARDS = 10_000, 40
N_TAMPERINGS = 200


def _now_us() -> int:
    return NOW_US


def _fill(path: Path) -> None:
    """Write 10,000 records of 100 users in 40 chains, each with gaps, and erase five of the users."""
    for shard in range(N_SHARDS):
        with closing(open_store(f"sqlite:///{path}", now_us=_now_us)) as store:
            records: list[RecordWrite] = []
            for i in range(N_RECORDS // N_SHARDS):
                number = store.next_number()
                if i % 7 == 0:
                    number = store.next_number()
                user_id = f"u{(i * 13 + shard * 50) % 100}"
                payload = {"salt": i, "user_id": user_id, "place": None}
                records.append(RecordWrite(user_id, number, json.dumps(payload).encode()))
            store.write(Tick((), tuple(records), ()))
            if shard == N_SHARDS - 1:
                assert [store.erase(f"u{user}") for user in range(5)] == [N_RECORDS // 100] * 5


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file with 10,000 records, some erased; copy it before you change it."""
    path = tmp_path_factory.mktemp("audit") / "state.db"
    _fill(path)
    return path


def _verdict(path: Path, heads: Heads) -> Verdict:
    with closing(open_existing_store(f"sqlite:///{path}", now_us=_now_us)) as store:
        return verify(store, heads)


class _Forger:
    """Changes one shard of a store behind its back, each time in another place."""

    def __init__(self, database: sqlite3.Connection, shard: int, seed: int) -> None:
        self.database = database
        self.shard = shard
        self.chance = random.Random(seed)

    def pick(self, where: str = "1") -> int:
        """Return the number of a record, of those where a condition on r and c holds."""
        sql = f"SELECT c.number FROM chain c JOIN records r USING (shard, number) WHERE c.shard = ? AND ({where})"
        return self.chance.choice(self.rows(sql, self.shard))[0]

    def rows(self, sql: str, *values: object) -> list[tuple[Any, ...]]:  # Any: the columns of a query
        return self.database.execute(sql, values).fetchall()

    def run(self, sql: str, *values: object) -> None:
        assert self.database.execute(sql, values).rowcount > 0

    def at(self, table: str, number: int, change: str, *values: object) -> None:
        """Change the row of a record in `records` or in `chain`."""
        self.run(f"UPDATE {table} SET {change} WHERE shard = ? AND number = ?", *values, self.shard, number)

    def take(self, table: str, number: int) -> None:
        self.run(f"DELETE FROM {table} WHERE shard = ? AND number = ?", self.shard, number)

    def payload(self, number: int) -> bytes:
        return self.rows("SELECT payload FROM records WHERE shard = ? AND number = ?", self.shard, number)[0][0]

    def mend(self, *, rehash: bool) -> None:
        """Make the shard agree with itself again."""
        number, last = 0, bytes(32)
        sql = "SELECT c.number, c.payload_sha256, c.hash, r.payload FROM chain c JOIN records r USING (shard, number)"
        for number, payload_sha256, link, payload in self.rows(f"{sql} WHERE shard = ? ORDER BY number", self.shard):
            sha256 = payload_sha256 if payload is None else hashlib.sha256(payload).digest()
            last = link_hash(last, self.shard, number, payload_sha256=sha256) if rehash else link
            self.at("chain", number, "payload_sha256 = ?, hash = ?", sha256, last)
        self.run("UPDATE shards SET head_number = ?, head_hash = ? WHERE shard = ?", number, last, self.shard)


def change_payload(forger: _Forger) -> None:
    number = forger.pick("payload IS NOT NULL")
    payload = bytearray(forger.payload(number))
    payload[forger.chance.randrange(len(payload))] ^= 1 << forger.chance.randrange(8)
    forger.at("records", number, "payload = ?", bytes(payload))


def change_payload_and_its_hash(forger: _Forger) -> None:
    number = forger.pick("payload IS NOT NULL")
    forger.at("records", number, "payload = x'00'")
    forger.at("chain", number, "payload_sha256 = ?", hashlib.sha256(b"\0").digest())


def swap_payloads(forger: _Forger) -> None:
    number = forger.pick("payload IS NOT NULL")
    other = forger.pick(f"payload IS NOT NULL AND number <> {number}")
    sql = "SELECT payload, user_id FROM records WHERE shard = ? AND number = ?"
    rows = [forger.rows(sql, forger.shard, place)[0] for place in (number, other)]
    for place, row in zip((other, number), rows, strict=True):
        forger.at("records", place, "payload = ?, user_id = ?", *row)


def take_payload(forger: _Forger) -> None:
    forger.at("records", forger.pick("payload IS NOT NULL"), "payload = NULL")


def take_payload_as_if_erased(forger: _Forger) -> None:
    (erased_by,) = forger.rows("SELECT erased_by FROM records WHERE erased_by IS NOT NULL")[0]
    number = forger.pick("payload IS NOT NULL AND user_id IS NOT NULL")
    forger.at("records", number, "payload = NULL, user_id = NULL, erased_by = ?", erased_by)


def name_no_erasure(forger: _Forger) -> None:
    name = forger.chance.choice(["1-1", "", "x", "7fff-1", f"{forger.shard:x}-{forger.pick('payload IS NULL'):x}"])
    forger.at("records", forger.pick("payload IS NULL"), "erased_by = ?", name)


def take_row(forger: _Forger) -> None:
    forger.take("records", forger.pick())


def take_link(forger: _Forger) -> None:
    forger.take("chain", forger.pick())


def take_record(forger: _Forger) -> None:
    number = forger.pick()
    forger.take("records", number)
    forger.take("chain", number)


def add_row(forger: _Forger) -> None:
    number = forger.chance.choice([forger.pick(f"({_IS_FREE})") + 1, 90_000])
    forger.run("INSERT INTO records (shard, number, user_id, payload) VALUES (?, ?, 'u1', x'00')", forger.shard, number)


def add_record(forger: _Forger) -> None:
    number = forger.pick(_IS_FREE) + 1
    forger.run("INSERT INTO records (shard, number, user_id, payload) VALUES (?, ?, 'u1', x'00')", forger.shard, number)
    forger.run("INSERT INTO chain VALUES (?, ?, randomblob(32), randomblob(32))", forger.shard, number)


def add_record_behind_the_end(forger: _Forger) -> None:
    ((number, head),) = forger.rows("SELECT head_number, head_hash FROM shards WHERE shard = ?", forger.shard)
    sha256 = hashlib.sha256(b"\0").digest()
    link = link_hash(head, forger.shard, number + 1, payload_sha256=sha256)
    forger.run("INSERT INTO records (shard, number, payload) VALUES (?, ?, x'00')", forger.shard, number + 1)
    forger.run("INSERT INTO chain VALUES (?, ?, ?, ?)", forger.shard, number + 1, sha256, link)


def renumber(forger: _Forger) -> None:
    number = forger.pick(_IS_FREE)
    for table in ("records", "chain"):
        forger.at(table, number, "number = number + 1")


def swap_numbers(forger: _Forger) -> None:
    number = forger.pick(f"NOT ({_IS_FREE})")
    for table in ("records", "chain"):
        for new, old in ((-1, number), (number, number + 1), (number + 1, -1)):
            forger.at(table, old, "number = ?", new)


def change_hash(forger: _Forger) -> None:
    forger.at("chain", forger.pick(), "hash = randomblob(32)")


def change_user(forger: _Forger) -> None:
    forger.at("records", forger.pick("user_id IS NOT NULL"), "user_id = user_id || 'x'")


def change_place(forger: _Forger) -> None:
    forger.at("records", forger.pick("user_id IS NOT NULL"), "snapshot = 3, ordinal = 1")


def name_a_user_of_an_erased_record(forger: _Forger) -> None:
    forger.at("records", forger.pick("payload IS NULL"), "user_id = 'u1'")


def bring_back_an_erased_payload(forger: _Forger) -> None:
    forger.at("records", forger.pick("payload IS NULL"), "payload = x'00', erased_by = NULL")


def cut_the_tail(forger: _Forger) -> None:
    number = forger.pick()
    for table in ("records", "chain"):
        forger.run(f"DELETE FROM {table} WHERE shard = ? AND number >= ?", forger.shard, number)


def cut_the_tail_and_mend_the_shard(forger: _Forger) -> None:
    cut_the_tail(forger)
    forger.mend(rehash=False)


def write_the_chain_anew(forger: _Forger) -> None:
    number = forger.pick("payload IS NOT NULL AND user_id IS NOT NULL")
    payload = json.dumps({"user_id": "u99", "place": None}).encode()
    forger.at("records", number, "payload = ?, user_id = 'u99'", payload)
    forger.mend(rehash=True)


def take_the_shard(forger: _Forger) -> None:
    for table in ("records", "chain", "shards"):
        forger.run(f"DELETE FROM {table} WHERE shard = ?", forger.shard)


def take_the_shards_row(forger: _Forger) -> None:
    forger.run("DELETE FROM shards WHERE shard = ?", forger.shard)


def change_the_end_of_the_shard(forger: _Forger) -> None:
    by = forger.chance.choice((-1, 1))
    forger.run("UPDATE shards SET head_number = head_number + ? WHERE shard = ?", by, forger.shard)


# No record has the number after this one's.
_IS_FREE = "NOT EXISTS (SELECT 1 FROM chain n WHERE n.shard = c.shard AND n.number = c.number + 1)"
# The store agrees with itself after these: only heads that were kept elsewhere show them.
NEED_HEADS = (cut_the_tail_and_mend_the_shard, write_the_chain_anew)
FORGERIES = (
    change_payload, change_payload_and_its_hash, swap_payloads, take_payload, take_payload_as_if_erased,
    name_no_erasure, take_row, take_link, take_record, add_row, add_record, add_record_behind_the_end, renumber,
    swap_numbers, change_hash, change_user, change_place, name_a_user_of_an_erased_record,
    bring_back_an_erased_payload, cut_the_tail, take_the_shard, take_the_shards_row, change_the_end_of_the_shard,
    *NEED_HEADS,
)  # fmt: skip


def test_what_nobody_changed_is_whole(filled: Path) -> None:
    verdict = _verdict(filled, {})
    assert verdict.broken == ()
    assert (verdict.n_shards, verdict.n_records) == (N_SHARDS, N_RECORDS + 5)
    assert (verdict.n_erased, verdict.n_erasures, verdict.n_new_erasures) == (500, 5, 5)
    again = _verdict(filled, verdict.heads)
    assert (again.broken, again.n_new_erasures) == ((), 0)
    assert "10,005 records in 40 chains" in words(verdict)[0]


def test_two_hundred_tamperings_of_every_kind_are_found(filled: Path, tmp_path: Path) -> None:
    heads = _verdict(filled, {}).heads
    path = tmp_path / "state.db"
    for seed in range(N_TAMPERINGS // len(FORGERIES)):
        shutil.copy(filled, path)
        # Each has a shard of its own, for an audit tells the first broken record of each. The last shard, that of the
        # erasures, is left alone: without it no erased record is one.
        shards = dict(zip(FORGERIES, random.Random(seed).sample(range(1, N_SHARDS), len(FORGERIES)), strict=True))
        with closing(sqlite3.connect(path, isolation_level=None)) as database:
            for forgery, shard in shards.items():
                forgery(_Forger(database, shard, seed))
        for needs, kept in ((NEED_HEADS, {}), ((), heads)):
            verdict = _verdict(path, kept)
            expected = {shard: forgery for forgery, shard in shards.items() if forgery not in needs}
            found = {fault.shard for fault in verdict.broken}
            assert [forgery.__name__ for shard, forgery in expected.items() if shard not in found] == []
            assert found <= {*expected, N_SHARDS}  # there an erasure names the payload that was brought back


@pytest.fixture(params=["sqlite", "postgresql"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Opened]:
    """Yield what opens stores on one new database."""
    with Opened.on(request, tmp_path) as opened:
        yield opened


def test_an_erasure_is_no_tampering_and_a_tampering_is_no_erasure_on_both_databases(opened: Opened) -> None:
    first, second = opened.store(), opened.store()
    for i in range(5):
        append(first, "ann", f"e{i}")
        append(second, "bob", f"e{i}")
    assert second.erase("ann") == 5
    assert verify(first, {}).broken == ()
    opened.rows("UPDATE records SET payload = NULL WHERE user_id = 'bob' AND ordinal = 3")
    (fault,) = verify(first, {}).broken
    assert (fault.shard, fault.number, fault.text) == (2, 4, "its payload is missing, and no erasure is named")
    opened.rows("DELETE FROM chain WHERE shard = 1 AND number = 2")
    fault = verify(first, {}).broken[0]
    assert (fault.shard, fault.number) == (1, 3)  # the first that does not follow
    assert "does not follow from 1" in fault.text


def test_an_erasure_that_was_forged_shows_after_the_heads(filled: Path, tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    shutil.copy(filled, path)
    heads = _verdict(path, {}).heads
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        forger = _Forger(database, N_SHARDS, 0)
        number, erasure = forger.pick("user_id IS NOT NULL"), heads[N_SHARDS].number + 1
        payload = erasure_payload([(N_SHARDS, number)], stored_us=NOW_US)
        name = record_id(N_SHARDS, erasure)
        forger.at("records", number, "payload = NULL, user_id = NULL, erased_by = ?", name)
        forger.run("INSERT INTO records (shard, number, payload) VALUES (?, ?, ?)", N_SHARDS, erasure, payload)
        forger.run("INSERT INTO chain VALUES (?, ?, ?, ?)", N_SHARDS, erasure, b"", b"")
        forger.mend(rehash=False)
        assert _verdict(path, heads).broken  # its link must follow from the last
        sha256 = hashlib.sha256(payload).digest()
        link = link_hash(heads[N_SHARDS].hash, N_SHARDS, erasure, payload_sha256=sha256)
        forger.at("chain", erasure, "payload_sha256 = ?, hash = ?", sha256, link)
        forger.mend(rehash=False)
    verdict = _verdict(path, heads)
    assert (verdict.broken, verdict.n_erasures, verdict.n_new_erasures) == ((), 6, 1)
    assert "1 of these since the heads" in words(verdict)[1]


def test_shards_that_are_gone_are_missed_where_they_left_a_gap_or_a_head(filled: Path, tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    shutil.copy(filled, path)
    heads = _verdict(path, {}).heads | {N_SHARDS + 2: Head(3, bytes(32))}
    verdict = _verdict(path, heads)
    assert [(fault.shard, fault.text) for fault in verdict.broken] == [
        (N_SHARDS + 1, "the whole shard is missing"), (N_SHARDS + 2, "the whole shard is missing"),
    ]  # fmt: skip


def test_an_audit_of_a_store_that_is_written_to_finds_nothing(opened: Opened) -> None:
    writer, reader = opened.store(), opened.store()
    append(writer, "ann", "first")
    is_over = threading.Event()

    def write() -> None:
        for i in range(60):
            append(writer, f"u{i % 3}", f"e{i}")
            if i % 20 == 19:
                writer.erase(f"u{i % 3}")
        is_over.set()

    writing = threading.Thread(target=write)
    writing.start()
    n_audits = 0
    while not is_over.is_set() or not n_audits:
        assert verify(reader, {}).broken == ()
        n_audits += 1
    writing.join()
    assert verify(reader, {}).n_records == 61 + 3


def test_an_audit_takes_no_more_memory_for_more_records(filled: Path) -> None:
    with closing(open_existing_store(f"sqlite:///{filled}", now_us=_now_us)) as store:
        tracemalloc.start()
        verify(store, {})
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 1_000_000


def test_heads_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "heads.json"
    assert read_heads(path) == {}
    heads = {1: Head(7, b"h" * 32), 12: Head(0, bytes(32))}
    write_heads(path, heads)
    assert read_heads(path) == heads
    assert [found.name for found in tmp_path.iterdir()] == ["heads.json"]


@pytest.mark.parametrize(
    "content",
    ["", "{}", "[]", '{"format": 2, "heads": {}}', '{"format": 1, "heads": {"1": {"number": 1, "hash": "00"}}}',
     '{"format": 1, "heads": {"one": {"number": 1, "hash": ""}}}', '{"format": 1, "heads": {}, "more": 1}'],
)  # fmt: skip
def test_a_file_of_heads_that_is_none_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "heads.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"heads\.json"):
        read_heads(path)


def test_the_command_keeps_heads_only_while_all_is_well(
    filled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, head = tmp_path / "state.db", tmp_path / "heads.json"
    shutil.copy(filled, path)
    arguments = ["--state", f"sqlite:///{path}", "--head", str(head), "--json"]
    assert audit_command(["verify", *arguments]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["verified"], document["records"], document["broken"]) == (True, N_RECORDS + 5, [])
    kept = head.read_bytes()
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        cut_the_tail_and_mend_the_shard(_Forger(database, 3, 0))
    assert audit_command(["verify", *arguments[:2]]) == 0  # without heads nobody can know
    assert "all there" in capsys.readouterr().out
    assert audit_command(["verify", *arguments]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["verified"] is False
    assert [fault["shard"] for fault in document["broken"]] == [3]
    assert "the heads that were kept say" in document["broken"][0]["text"]
    assert head.read_bytes() == kept


def test_the_command_refuses_a_store_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no state store"):
        audit_command(["verify", "--state", f"sqlite:///{tmp_path / 'none.db'}"])
    assert list(tmp_path.iterdir()) == []


def test_a_key_is_shown_once_and_only_its_hash_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = ["--state", f"sqlite:///{tmp_path / 'state.db'}"]
    assert keys_command(["add", *state, "--role", "scorer"]) == 0
    key = capsys.readouterr().out.strip()
    assert key.startswith("frd_")
    assert len(key) == 47
    assert keys_command(["add", *state, "--role", "admin", "--json"]) == 0
    other = json.loads(capsys.readouterr().out)
    with closing(open_existing_store(state[1], now_us=_now_us)) as store:
        assert store.keys() == {key_hash(key): "scorer", key_hash(other["key"]): "admin"}
    assert key.encode() not in (tmp_path / "state.db").read_bytes()
    assert keys_command(["list", *state]) == 0
    listed = capsys.readouterr().out
    assert "scorer" in listed
    assert other["id"] in listed
    assert key not in listed
    assert keys_command(["revoke", *state, other["id"]]) == 0
    with closing(open_existing_store(state[1], now_us=_now_us)) as store:
        assert list(store.keys().values()) == ["scorer"]
    for start in ("", other["id"], "zzzz"):
        with pytest.raises(ConfigError, match="keys begin so"):
            keys_command(["revoke", *state, start])
