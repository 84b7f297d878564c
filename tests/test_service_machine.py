"""Two workers on one store, driven at random, say at every moment what a plain list of events says: no divergence.

Each run draws requests, repeats, late events, conflicts, races, labels, erasures, swaps, restarts and empty caches for
three users, too many for the smallest cache. Contexts are of 16 events, so blocks roll.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from service.audit import verify
from service.clock import Clock
from service.models import ModelHolder, Served
from service.replay import Bundles
from service.schemas import EventsRequest, LabelRequest, ScoreRequest, schema_of
from service.ticks import Outcome
from tests.compared import Compared
from tests.made_requests import ANY_KIND, LATE, NEW, Maker
from tests.trained import MODELS, trained_bundles
from tests.workers import Worker

pytestmark = pytest.mark.server

# One number an event (`Maker`), for the runs get longer the less is drawn; what it stood for is noted.
_event = st.integers(0, 2**30)
_events = st.lists(_event, min_size=1, max_size=9)
_workers = st.sampled_from((0, 1))
_users = st.sampled_from(("u0", "u0", "u0", "u0", "u1", "u2"))


class Machine(RuleBasedStateMachine):
    """holders: one for each worker; served: the bundle of each model; bundles: the same, for replays."""

    def __init__(self, holders: Sequence[ModelHolder], served: dict[str, Served], bundles: Bundles) -> None:
        super().__init__()
        self._holders, self._served = holders, served
        # In memory where the system has such a place: a commit that waits for a disk takes most of the time.
        memory = Path("/dev/shm")
        self._folder = tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None)
        self._clock, self._maker = Clock("log"), Maker()
        self._compared = Compared(holders[0].current.bundle.scorer.config, bundles)
        self._workers: list[Worker] = []
        self._n_users = self._n_labels = 0

    @initialize(
        n_users=st.sampled_from((1, 2, 50)),
        models=st.tuples(st.sampled_from(MODELS), st.sampled_from(MODELS)),
        past=st.sampled_from((0, 7, 16, 25, 30)),
    )
    def begin(self, n_users: int, models: tuple[str, str], past: int) -> None:
        self._n_users = n_users
        for holder, model in zip(self._holders, models, strict=True):
            holder.current = self._served[model]
        self._workers = [self._worker(place) for place in (0, 1)]
        for first in range(0, past, 5):
            self.send(0, "u0", list(range(first, min(first + 5, past))))

    def _worker(self, place: int) -> Worker:
        path = Path(self._folder.name) / "state.db"
        return Worker(path, self._holders[place], self._clock, n_users=self._n_users)

    def teardown(self) -> None:
        try:
            if self._workers and self._compared.is_sound:
                for user in self._compared.plain.kept:
                    self._compared.check_timeline(self._workers[0], user)
                assert not verify(self._workers[1].store, {}).broken
        finally:
            for worker in self._workers:
                worker.store.close()
            self._folder.cleanup()

    def _request(self, user: str, numbers: Sequence[int], kinds: Sequence[str] = ANY_KIND) -> EventsRequest:
        known = [one.row for one in self._compared.plain.kept.get(user, [])]
        request = self._maker.request(user, numbers, known, kinds)
        for row in request.events:
            note(f"{user}: {row}")
        return request

    # What a caller does.

    @rule(worker=_workers, user=_users, numbers=_events)
    def send(self, worker: int, user: str, numbers: list[int]) -> None:
        self._compared.tick(self._workers[worker], [self._request(user, numbers, NEW)])

    @rule(worker=_workers, user=_users, number=_event)
    def send_late(self, worker: int, user: str, number: int) -> None:
        self._compared.tick(self._workers[worker], [self._request(user, [number], LATE)])

    @rule(worker=_workers, drawn=st.dictionaries(_users, _events, min_size=1), explain=st.booleans())
    def send_anything(self, worker: int, drawn: dict[str, list[int]], explain: bool) -> None:
        requests = [self._request(user, numbers)._replace(explain=explain) for user, numbers in drawn.items()]
        for first in range(0, len(requests), self._n_users):  # as many users as fit are in one tick
            self._compared.tick(self._workers[worker], requests[first : first + self._n_users])

    @rule(worker=_workers, user=_users, first=_events, second=_events)
    def race(self, worker: int, user: str, first: list[int], second: list[int]) -> None:
        """A tick of one worker is overtaken by one of the other between its read and its write."""
        slow, fast = self._workers[worker], self._workers[1 - worker]
        slower, faster = self._request(user, first), self._request(user, second)
        outcomes: list[Outcome] = []
        slow.store.before_write = lambda: outcomes.extend(fast.events([faster]))
        answered = slow.events([slower])
        slow.store.before_write = None
        if outcomes:
            self._compared.check(fast, [faster], outcomes)
        self._compared.check(slow, [slower], answered)
        if not outcomes:  # the first had nothing to write
            self._compared.tick(fast, [faster])

    @rule(worker=_workers, user=_users, numbers=_events)
    def score(self, worker: int, user: str, numbers: list[int]) -> None:
        rows = self._request(user, numbers, NEW).events
        self._compared.check_score(self._workers[worker], ScoreRequest(user, rows, explain=False))

    @precondition(lambda self: self._compared.told)
    @rule(worker=_workers, pick=st.integers(0, 200), label=st.sampled_from((0, 1)), is_of_user=st.booleans())
    def label(self, worker: int, pick: int, label: int, is_of_user: bool) -> None:
        told = list(self._compared.told)
        user, event_id = told[pick % len(told)]
        known_us = self._clock.arrival_us()
        self._n_labels += 1
        source = f"test {self._n_labels}"
        asked = LabelRequest(user, None if is_of_user else event_id, None, label, known_us - 60_000_000, source)
        for _ in range(2):  # the same label again changes nothing
            self._workers[worker].inquiries.label(asked)
        for one in self._compared.plain.kept[user]:
            if is_of_user or one.row.event_id == event_id:
                one.label, one.known_us = label, known_us

    @rule(worker=_workers, user=st.sampled_from(("u0", "u1", "u2", "u2")))
    def erase(self, worker: int, user: str) -> None:
        self._workers[worker].inquiries.erase(user)
        self._compared.erase(user)

    @rule(worker=_workers, user=_users, first=_events, second=_events)
    def begin_again(self, worker: int, user: str, first: list[int], second: list[int]) -> None:
        """A user is erased by one worker and comes back while the other still remembers the former life."""
        if user not in self._compared.plain.kept:
            self.send(worker, user, second)
        self.erase(1 - worker, user)
        self.send(1 - worker, user, first)
        self.send(worker, user, second)

    @rule(worker=_workers, user=_users)
    def read_timeline(self, worker: int, user: str) -> None:
        self._compared.check_timeline(self._workers[worker], user)

    @precondition(lambda self: self._compared.decisions)
    @rule(worker=_workers, pick=st.integers(0, 200))
    def replay(self, worker: int, pick: int) -> None:
        decisions = self._compared.decisions
        owner, decision_id = decisions[pick % len(decisions)]
        self._compared.check_replay(self._workers[worker], decision_id, "equal" if owner else "erased")

    # What happens to a process.

    @rule(worker=_workers)
    def restart(self, worker: int) -> None:
        self._workers[worker].store.close()
        self._workers[worker] = self._worker(worker)

    @rule(worker=_workers)
    def forget_all(self, worker: int) -> None:
        self._workers[worker].ticker.forget_all()

    @rule(worker=_workers, model=st.sampled_from(MODELS))
    def swap(self, worker: int, model: str) -> None:
        self._workers[worker].holder.current = self._served[model]


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Machine]:
    folder = trained_bundles(tmp_path_factory).folder
    holders = [ModelHolder(folder / MODELS[0], state_hash=None, schema_of=schema_of) for _ in (0, 1)]
    served = {model: holders[0].load(folder / model) for model in MODELS}
    bundles = Bundles(folder)
    return lambda: Machine(holders, served, bundles)


def _run(machine: Callable[[], Machine], n_runs: int) -> None:
    slow = (HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much)
    chosen = settings(max_examples=n_runs, stateful_step_count=30, deadline=None, suppress_health_check=slow)
    run_state_machine_as_test(machine, settings=chosen)  # type: ignore[arg-type]  # it takes what makes a machine


def test_the_service_says_what_a_plain_list_of_events_says(machine: Callable[[], Machine]) -> None:
    _run(machine, 200)


@pytest.mark.slow  # six minutes
@pytest.mark.timeout(1800)
def test_the_service_says_so_in_two_thousand_runs(machine: Callable[[], Machine]) -> None:
    _run(machine, 2000)
