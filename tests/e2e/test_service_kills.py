"""kill -9 under load, a third of the requests repeated: nothing that was acknowledged is lost, doubled or changed.

The same harness finds the lost events of a service that answers before it commits.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.ledger import NO_FAULTS, Ledger
from tests.senders import Sender
from tests.serving import Caller, ServerProcess
from tests.trained import Trained, trained_bundles

pytestmark = pytest.mark.server

_N_SENDERS = 6
_LOAD_S = (0.1, 0.6)

# The service, but for the moment of its answers: they leave, and what they say is written 10 ms later, before anything
# is read again. (A commit to a disk takes as long, but what a killed process gave to the system before is not lost.)
_ANSWERS_EARLY = """
import sys, threading, time
from service.__main__ import main
from service.state.sql import SqlStore

read, write, writers = SqlStore.read, SqlStore.write, []

def write_soon(store, tick):
    settle()
    writers.append(threading.Thread(target=lambda: (time.sleep(0.01), write(store, tick))))
    writers[0].start()
    return frozenset()

def settle():
    while writers:
        writers.pop().join()

SqlStore.read = lambda store, wanted: (settle(), read(store, wanted))[1]
SqlStore.write = write_soon
sys.exit(main())
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return trained_bundles(tmp_path_factory)


class _Killed:
    """A server that is killed again and again under load, and what it acknowledged until then."""

    def __init__(self, bundle: Path, folder: Path, program: Sequence[str]) -> None:
        self.state = f"sqlite:///{folder}/state.db"
        self.ledger = Ledger()
        self.server = ServerProcess(bundle, self.state, folder=folder, program=program)
        self.senders = [
            Sender(self.server, self.ledger, name=f"s{n}", shared=("joint-1", "joint-2")) for n in range(_N_SENDERS)
        ]
        self._random = random.Random(len(program[0]))

    def round(self) -> None:
        """Start the server, load it, kill it."""
        self.server.start()
        never = threading.Event()
        threads = [threading.Thread(target=sender.run, args=(never,)) for sender in self.senders]
        for thread in threads:
            thread.start()
        time.sleep(self._random.uniform(*_LOAD_S))
        self.server.kill()
        for thread in threads:
            thread.join()

    def close(self) -> None:
        self.server.kill()
        for sender in self.senders:
            sender.close()


def _check_kills(bundle: Path, folder: Path, n_kills: int) -> None:
    killed = _Killed(bundle, folder, ("-m", "service"))
    try:
        for _ in range(n_kills):
            killed.round()
            assert killed.ledger.faults(killed.state) == NO_FAULTS
        killed.server.start()
        for sender in killed.senders:
            sender.settle()
        caller = Caller(killed.server)
        killed.ledger.send_again(caller)
        caller.close()
        killed.server.terminate()
        assert killed.server.ended() == 0
        assert killed.ledger.faults(killed.state) == NO_FAULTS
        assert not killed.ledger.contradictions
        assert len(killed.ledger.acknowledged) > 20 * n_kills  # it was under load
        assert all(sender.counts["silence"] == n_kills for sender in killed.senders)
    finally:
        killed.close()


def test_twenty_five_kills_lose_double_and_change_nothing(trained: Trained, tmp_path: Path) -> None:
    _check_kills(trained.folder / "lstm", tmp_path, 25)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_hundred_kills_lose_double_and_change_nothing(trained: Trained, tmp_path: Path) -> None:
    _check_kills(trained.folder / "fused", tmp_path, 200)


def test_an_answer_before_the_commit_is_found_out(trained: Trained, tmp_path: Path) -> None:
    killed = _Killed(trained.folder / "lstm", tmp_path, ("-c", _ANSWERS_EARLY))
    try:
        for _ in range(25):
            killed.round()
            if killed.ledger.faults(killed.state).lost:
                return
    finally:
        killed.close()
    pytest.fail("25 kills of a service that answers too early lost nothing: the harness is blind")
