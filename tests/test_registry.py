"""Who is champion: at every moment one whole version, whatever is cut short, and nobody overrides another unheard."""

from __future__ import annotations

import random
import shutil
import signal
import sqlite3
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from urllib3.connection import HTTPConnection
from urllib3.connectionpool import HTTPConnectionPool
from urllib3.exceptions import ConnectTimeoutError, MaxRetryError

from fraud.errors import ConfigError
from pipelines.mlflow_client import answered, client_of
from pipelines.models import place_of, registry_at
from pipelines.registry import Registry, open_registry
from tests.commands import leftovers, run_fraud
from tests.registered import NAME, Killed, PlainClient, Turns, Watched, killed, registry_of

_N_VERSIONS = 5
_ALL_WRITES = 12  # more than any transition makes


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else is there to be waited for."""
    monkeypatch.setattr("pipelines.registry._PAUSE_S", 0.0)


def _promote(registry: Registry, number: str, expected: str | None) -> None:
    registry.promote(registry.named(number), expected_champion=expected, reason="better")


def _with_champions(*numbers: str) -> PlainClient:
    """Return a client of a model whose versions were promoted one after another."""
    client = PlainClient(_N_VERSIONS)
    for before, number in zip((None, *numbers), numbers, strict=False):
        _promote(registry_of(client), number, before)
    return client


def _aliases(client: PlainClient) -> tuple[str | None, str | None]:
    """Return the numbers of the champion and of the previous one."""
    return client.model.aliases.get("champion"), client.model.aliases.get("previous")


def _is_settled(client: PlainClient) -> bool:
    return "fraud.transition" not in client.model.tags


def test_a_promotion_makes_the_champion_the_previous_one() -> None:
    client = _with_champions("1")
    registry = registry_of(client)
    registry.challenge(registry.named("2"))
    registry.promote(registry.named("2"), expected_champion="1", reason="better")
    champion, previous = registry.champion(), registry.previous()
    assert champion is not None
    assert previous is not None
    assert (champion.number, champion.bundle, champion.aliases) == ("2", "000000000002", ("champion",))
    assert champion.since == champion.tags["fraud.champion_since"]
    assert champion.tags["fraud.reason"] == "better"
    assert (previous.number, previous.since) == ("1", None)
    assert registry.challenger() is None
    assert _is_settled(client)


def test_a_promotion_against_another_champion_than_the_judged_one_is_refused() -> None:
    client = _with_champions("1", "2")
    with pytest.raises(ConfigError, match=r"version 2, expected version 1"):
        _promote(registry_of(client), "3", "1")
    with pytest.raises(ConfigError, match=r"version 2, expected version none"):
        _promote(registry_of(client), "3", None)
    assert _aliases(client) == ("2", "1")


def test_promoting_the_champion_changes_nothing() -> None:
    client = _with_champions("1", "2")
    before = registry_of(client).versions()
    _promote(registry_of(client), "2", "1")
    assert registry_of(client).versions() == before


def test_rollbacks_go_back_one_champion_at_a_time() -> None:
    client = _with_champions("1", "2", "3")
    was, now = registry_of(client).rollback()
    assert (was.number, now.number, _aliases(client)) == ("3", "2", ("2", "1"))
    assert (was.was_rolled_back, now.was_rolled_back) == (True, False)
    registry_of(client).rollback()
    assert _aliases(client) == ("1", None)
    with pytest.raises(ConfigError, match="nothing to go back to"):
        registry_of(client).rollback()
    assert _aliases(client) == ("1", None)


def test_no_champion_no_rollback() -> None:
    with pytest.raises(ConfigError, match="has no champion"):
        registry_of(PlainClient(1)).rollback()


def test_a_rollback_never_goes_back_to_what_was_rolled_back() -> None:
    client = _with_champions("1", "2")
    registry_of(client).rollback()
    _promote(registry_of(client), "3", "1")
    _promote(registry_of(client), "2", "3")  # mended by hand, or so somebody thought
    assert not registry_of(client).named("2").was_rolled_back
    _promote(registry_of(client), "4", "2")
    registry_of(client).rollback()
    registry_of(client).rollback()  # from 2 to 3
    assert _aliases(client) == ("3", "1")
    _promote(registry_of(client), "5", "3")
    registry_of(client).rollback()
    assert _aliases(client) == ("3", "1")


def _killed_at(client: PlainClient, n_writes: int, work: Callable[[Registry], object]) -> bool:
    """Return whether the work was killed before its write number n_writes."""
    try:
        work(registry_of(Watched(client, n_writes, killed)))
    except Killed:
        return True
    return False


def test_a_promotion_killed_anywhere_is_finished_by_the_next_one() -> None:
    n_points = 0
    for at in range(_ALL_WRITES):
        client = _with_champions("1", "2")
        registry_of(client).challenge(registry_of(client).named("3"))
        was_killed = _killed_at(client, at, lambda registry: _promote(registry, "3", "2"))
        n_points += was_killed
        assert _aliases(client)[0] in ("2", "3")
        _promote(registry_of(client), "3", "2")
        assert _aliases(client) == ("3", "2")
        assert registry_of(client).challenger() is None
        assert registry_of(client).named("3").tags["fraud.champion_before"] == "2"
        assert _is_settled(client)
    assert n_points >= 6


def test_a_promotion_killed_anywhere_is_wholly_undone_by_a_rollback() -> None:
    for at in range(1, _ALL_WRITES):  # written ahead; before that it never was
        client = _with_champions("1", "2")
        _killed_at(client, at, lambda registry: _promote(registry, "3", "2"))
        was, now = registry_of(client).rollback()
        assert (was.number, now.number) == ("3", "2")
        assert _aliases(client) == ("2", "1")
        assert _is_settled(client)


def test_a_rollback_killed_anywhere_goes_back_one_step_when_it_is_called_again() -> None:
    for at in range(_ALL_WRITES):
        client = _with_champions("1", "2", "3")
        was_killed = _killed_at(client, at, Registry.rollback)
        assert _aliases(client)[0] in ("3", "2")
        if was_killed:
            was, now = registry_of(client).rollback()
            assert (was.number, now.number) == ("3", "2")
        assert _aliases(client) == ("2", "1")
        assert registry_of(client).named("3").was_rolled_back
        assert _is_settled(client)


def test_what_was_cut_short_is_told_until_it_is_finished() -> None:
    client = _with_champions("1")
    assert registry_of(client).pending() is None
    assert _killed_at(client, 3, lambda registry: _promote(registry, "2", "1"))
    pending = registry_of(client).pending()
    assert pending is not None
    assert (pending.kind, pending.champion, pending.replaced) == ("promotion", "2", "1")
    assert registry_of(client).finish_pending() == pending
    assert registry_of(client).pending() is None


def test_an_alias_moved_by_hand_overtakes_what_was_cut_short() -> None:
    client = _with_champions("1")
    assert _killed_at(client, 3, lambda registry: _promote(registry, "2", "1"))
    client.set_registered_model_alias(NAME, "champion", "4")
    assert registry_of(client).finish_pending() is None
    assert _aliases(client)[0] == "4"
    assert _is_settled(client)


def test_an_alias_moved_by_hand_during_a_promotion_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    client = _with_champions("1")

    def by_hand(_seconds: float) -> None:
        client.set_registered_model_alias(NAME, "champion", "4")

    monkeypatch.setattr("pipelines.transitions.sleep", by_hand)
    with pytest.raises(ConfigError, match="changed by somebody else"):
        _promote(registry_of(client), "2", "1")
    assert _aliases(client)[0] == "4"
    assert _is_settled(client)


def test_a_version_deleted_meanwhile_is_not_promoted_and_not_gone_back_to() -> None:
    client = _with_champions("1", "2")
    assert _killed_at(client, 3, lambda registry: _promote(registry, "3", "2"))
    client.delete_model_version(NAME, "3")
    assert registry_of(client).finish_pending() is None
    _promote(registry_of(client), "4", "2")
    client.delete_model_version(NAME, "2")
    with pytest.raises(ConfigError, match="nothing to go back to"):
        registry_of(client).rollback()
    assert _aliases(client) == ("4", None)


def test_a_tag_that_no_promotion_wrote_is_named() -> None:
    client = _with_champions("1")
    client.set_registered_model_tag(NAME, "fraud.transition", "{}")
    with pytest.raises(ConfigError, match=r"tag fraud.transition of the model 'fraud' in the registry: '{}'; expected"):
        _promote(registry_of(client), "2", "1")
    assert _aliases(client) == ("1", None)


def test_of_two_that_promote_at_once_one_succeeds_and_the_other_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their calls interleaved in hundreds of orders. Without the pause, both believe in 90 of 400 that they did."""
    winners = set[str]()
    for seed in range(300):
        client, turns, refused = _with_champions("1", "2"), Turns(seed), list[str]()
        threads = [
            threading.Thread(target=_promote_in_turns, args=(client, turns, thread, number, refused))
            for thread, number in enumerate(("3", "4"))
        ]
        monkeypatch.setattr("pipelines.transitions.sleep", partial(_sleep_in_turns, turns, threads))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        champion, previous = _aliases(client)
        assert {champion, *refused} == {"3", "4"}, seed
        assert (previous, _is_settled(client)) == ("2", True)
        monkeypatch.setattr("pipelines.transitions.sleep", lambda _: None)
        winners.add(str(champion))
    assert winners == {"3", "4"}


def _promote_in_turns(client: PlainClient, turns: Turns, thread: int, number: str, refused: list[str]) -> None:
    try:
        _promote(registry_of(turns(thread, client)), number, "2")
    except ConfigError:
        refused.append(number)
    finally:
        turns.leave(thread)


def _sleep_in_turns(turns: Turns, threads: list[threading.Thread], _seconds: float) -> None:
    turns.sleep(threads.index(threading.current_thread()))


def test_any_sequence_of_changes_leaves_what_a_plain_history_says() -> None:
    """Promotions, rollbacks and kills drawn at random, against the list of who has answered and was not rolled back."""
    chance = random.Random(7)
    for _ in range(40):
        client, history = PlainClient(_N_VERSIONS), list[str]()
        for _ in range(12):
            number = str(chance.randint(1, _N_VERSIONS))
            champion = history[-1] if history else None
            if chance.random() < 0.6 and number not in history:
                promotes = partial(_promote, number=number, expected=champion)
                if _killed_at(client, chance.randrange(1, 2 * _ALL_WRITES), promotes):
                    registry_of(client).finish_pending()
                history.append(number)
            elif len(history) > 1:
                if _killed_at(client, chance.randrange(1, 2 * _ALL_WRITES), Registry.rollback):
                    registry_of(client).rollback()
                history.pop()
            expected = (history[-1] if history else None, history[-2] if len(history) > 1 else None)
            assert _aliases(client) == expected


def test_a_version_is_named_by_its_number_or_its_bundle() -> None:
    registry = registry_of(PlainClient(3))
    assert registry.named("2") == registry.named("000000000002") == registry.of_bundle("000000000002")
    assert [version.number for version in registry.versions()] == ["3", "2", "1"]
    for text in ("4", "000000000009", "two", "", "-1"):
        with pytest.raises(ConfigError, match=r"newest: 3 = 000000000003, 2 = 000000000002"):
            registry.named(text)


@pytest.mark.parametrize("name", ["", " ", "a/b", "a:b", "a@b", "it's"])
def test_a_name_that_no_registry_takes_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"tracking\.model_name"):
        open_registry("sqlite:///never-made.db", name)


def test_a_tracker_that_is_away_is_named_with_its_reason_and_without_its_password() -> None:
    with pytest.raises(ConnectionError, match=r"the tracker at http://me:\*\*\*@127.0.0.1:9 .*: Connection refused"):
        open_registry("http://me:secret@127.0.0.1:9", NAME).champion()


def test_the_same_trouble_has_the_same_words_each_time() -> None:
    """Of a connection that timed out, the tracker's library says where the connection lay in memory."""
    said = set[str]()
    for _ in range(2):
        connection = HTTPConnection("tracker")
        timeout = ConnectTimeoutError(connection, "Connection to tracker timed out. (connect timeout=10)")
        error = MaxRetryError(HTTPConnectionPool("tracker"), "/api", timeout)
        assert hex(id(connection)) in str(error)
        with pytest.raises(ConnectionError) as raised, answered("http://tracker"):
            raise RuntimeError(str(error))
        said.add(str(raised.value))
    ending = "did not do what was asked: Connection to tracker timed out. (connect timeout=10)"
    assert said == {f"the tracker at http://tracker {ending}"}


def test_looking_makes_no_store(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such file"):
        registry_at(place_of(None, f"sqlite:///{tmp_path}/mlflow.db", None))
    assert not list(tmp_path.iterdir())


_OPEN = """
import sys
from pipelines.mlflow_client import client_of
print(len(client_of(sys.argv[1]).search_experiments()))
"""
# Killed in the middle of MLflow's tables: the first are made, and none of what its later releases added.
_CUT_SHORT = f"""
import os, signal
from mlflow.store.db import utils
utils._upgrade_db = lambda _: os.kill(os.getpid(), signal.SIGKILL)
{_OPEN}"""
# The tables are loaded once; every call is a process of its own, and the first of a store is killed some time into it.
_KILLED_ANYWHERE = """
import os, random, signal, sys, time
from pathlib import Path
from mlflow.store.tracking import sqlalchemy_store
from pipelines.mlflow_client import client_of


def started(uri):
    child = os.fork()
    if child:
        return child
    try:
        assert len(client_of(uri).search_experiments()) == 1
        os._exit(0)
    except BaseException as error:
        print(f"{uri}: {error!r}", file=sys.stderr)
        os._exit(1)


folder, chance = Path(sys.argv[1]), random.Random(int(sys.argv[3]))
began = time.monotonic()
assert os.waitpid(started(f"sqlite:///{folder}/first/mlflow.db"), 0)[1] == 0
whole_s = time.monotonic() - began
ended = []
for n in range(int(sys.argv[2])):
    uri = f"sqlite:///{folder}/{n}/mlflow.db"
    child = started(uri)
    time.sleep(chance.uniform(0, whole_s))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    made = (folder / str(n)).is_dir() and sorted(path.suffix for path in (folder / str(n)).iterdir())
    ended.append(f"{made} {os.waitpid(started(uri), 0)[1]}")
print("\\n".join(ended))
"""


def test_a_store_whose_making_was_cut_short_is_made_by_the_next_call(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    killed = run_fraud(uri, code=_CUT_SHORT)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    (aside,) = leftovers(tmp_path)
    with sqlite3.connect(tmp_path / aside / "mlflow.db") as half:
        assert half.execute("select count(*) from sqlite_master where name = 'experiments'").fetchone() == (1,)
    half.close()
    assert [path.name for path in tmp_path.iterdir()] == [aside]
    assert len(client_of(uri).search_experiments()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]


def test_the_journal_of_a_store_that_was_removed_is_not_applied_to_the_new_one(tmp_path: Path) -> None:
    """SQLite takes a journal beside a file for what was cut short in that file."""
    old = sqlite3.connect(tmp_path / "old.db")
    old.executescript("pragma cache_size = 1; create table old (text); begin;")
    old.executemany("insert into old values (?)", [("x" * 1000,)] * 500)
    old.commit()
    old.execute("update old set text = replace(text, 'x', 'y')")  # more than it keeps in memory: the journal is in use
    shutil.copy(tmp_path / "old.db-journal", tmp_path / "mlflow.db-journal")
    old.close()
    assert len(client_of(f"sqlite:///{tmp_path}/mlflow.db").search_experiments()) == 1
    with sqlite3.connect(tmp_path / "mlflow.db") as store:
        assert store.execute("pragma integrity_check").fetchone() == ("ok",)
    store.close()


@pytest.mark.server
def test_a_first_call_killed_at_any_moment_leaves_what_the_next_one_opens(tmp_path: Path) -> None:
    n_kills, seed = 8, random.SystemRandom().randrange(1_000_000)
    done = run_fraud(tmp_path, str(n_kills), str(seed), code=_KILLED_ANYWHERE)
    assert done.returncode == 0, done.stderr
    ended = done.stdout.splitlines()
    assert len(ended) == n_kills
    assert {line.split()[-1] for line in ended} == {"0"}, f"seed {seed}: {ended}\n{done.stderr}"
    assert any(".partial" in line for line in ended), ended  # some died in the middle of it
    for n in range(n_kills):
        assert [path.name for path in (tmp_path / str(n)).iterdir()] == ["mlflow.db"]


def test_where_the_registry_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bank").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    config = tmp_path / "bank" / "config.toml"
    config.write_text('[log]\nevents = "e.csv"\n[tracking]\nmodel_name = "cards"\n', encoding="utf-8")
    here, bank = f"sqlite:///{tmp_path}/here/mlflow.db", f"sqlite:///{tmp_path}/bank/mlflow.db"
    assert place_of(None, None, None) == (here, "fraud")
    assert place_of(config, None, None) == (bank, "cards")
    assert place_of(config, "http://tracker", "other") == ("http://tracker", "other")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracker")
    assert place_of(None, None, None) == ("http://tracker", "fraud")
    assert place_of(config, None, None) == (bank, "cards")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    config.replace(tmp_path / "here" / "config.toml")
    assert place_of(None, None, None) == (here, "cards")


def test_the_plain_registry_answers_as_mlflow_does(tmp_path: Path) -> None:
    """The same changes on both leave the same, but for the times; so what is shown above on one holds for the other."""
    real = open_registry(f"sqlite:///{tmp_path}/mlflow.db", NAME)
    assert (real.champion(), real.versions(), real.pending()) == (None, (), None)
    real.client.create_registered_model(NAME)
    for version in registry_of(PlainClient(_N_VERSIONS)).versions()[::-1]:
        real.client.create_model_version(NAME, "file:///nowhere", "run", tags=dict(version.tags), await_creation_for=0)
    plain = registry_of(PlainClient(_N_VERSIONS))
    for registry in (real, plain):
        _promote(registry, "1", None)
        registry.challenge(registry.named("2"))
        _promote(registry, "2", "1")
        registry.rollback()
        _promote(registry, "3", "1")
        registry.challenge(registry.named("000000000004"))
        registry.client.delete_model_version(NAME, "5")
        with pytest.raises(ConfigError):
            registry.named("5")
    assert [_timeless(version) for version in real.versions()] == [_timeless(version) for version in plain.versions()]
    assert real.pending() is None


def _timeless(version: Any) -> Any:  # Any: a Version
    times = ("fraud.champion_since", "fraud.rolled_back_at")
    tags = {name: "a time" if name in times else text for name, text in version.tags.items()}
    return version._replace(tags=tags, since=version.since is not None)
