"""Two workers on one store, driven at random, say at every moment what a plain list of events says: no divergence.

Each run draws requests, repeats, late events, conflicts, races, labels, erasures, swaps, restarts and empty caches for
three users, too many for the smallest cache. Contexts are of 16 events, so blocks roll.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from fraud.decisions import DECISIONS
from fraud.enrich import empty_carry
from fraud.rows import EventRow, events_of_rows, sort_key
from fraud.scoring import Scorer, enrich_spec, score_events
from service.audit import verify
from service.clock import Clock
from service.models import ModelHolder, Served
from service.problems import Problem
from service.replay import Bundles, replay
from service.schemas import EventsRequest, LabelRequest, ScoreRequest, schema_of
from service.ticks import Outcome
from tests.plain_service import Kept, PlainService
from tests.trained import MODELS, trained_bundles
from tests.workers import Worker

_START_US = 1_767_225_600_000_000
# The same moment, one session, a new one, another hour, another day, a label settled.
_GAPS_S = (0, 1, 60, 1900, 7200, 90_000, 14 * 86_400)
_TYPES = ("login", "add_payee", "transfer_out", "withdraw", "receive_transfer", "change_device", "never seen")
_AMOUNTS, _CHANNELS, _ENTITIES = (None, 1.0, 250.0, 9000.0), ("web", None, "x"), ("a", None, "b")
# An event a gap after the last, a late one a gap before a known one, a known one again, or with another amount.
_KINDS = ("new", "late", "new", "again", "new", "late", "other", "new")

# One number an event, for the runs get longer the less is drawn; what it stood for is noted.
_event = st.integers(0, 2**30)
_events = st.lists(_event, min_size=1, max_size=9)
_workers = st.sampled_from((0, 1))
_users = st.sampled_from(("u0", "u0", "u0", "u0", "u1", "u2"))


class Machine(RuleBasedStateMachine):
    """holders: one for each worker; served: the bundle of each model; bundles: the same, for replays."""

    def __init__(self, holders: list[ModelHolder], served: dict[str, Served], bundles: Bundles) -> None:
        super().__init__()
        self._holders, self._served, self._bundles = holders, served, bundles
        # In memory where the system has such a place: a commit that waits for a disk takes most of the time.
        memory = Path("/dev/shm")
        self._folder = tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None)
        self._clock = Clock("log")
        self._plain = PlainService(holders[0].current.bundle.scorer.config)
        self._told: dict[tuple[str, str], dict[str, Any]] = {}
        self._decisions: list[tuple[str, str]] = []
        self._n_ids = 0
        self._workers: list[Worker] = []
        self._is_sound = True

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
            if self._workers and self._is_sound:
                for user in self._plain.kept:
                    self._check_timeline(self._workers[0], user)
                verdict = verify(self._workers[1].store, {})
                assert not verdict.broken
        finally:
            for worker in self._workers:
                worker.store.close()
            self._folder.cleanup()

    # What a caller does.

    @rule(worker=_workers, user=_users, numbers=_events)
    def send(self, worker: int, user: str, numbers: list[int]) -> None:
        self._tick(self._workers[worker], [self._request(user, numbers, kinds=("new",))])

    @rule(worker=_workers, drawn=st.dictionaries(_users, _events, min_size=1), explain=st.booleans())
    def send_anything(self, worker: int, drawn: dict[str, list[int]], explain: bool) -> None:
        requests = [self._request(user, numbers)._replace(explain=explain) for user, numbers in drawn.items()]
        for first in range(0, len(requests), self._n_users):  # as many users as fit are in one tick
            self._tick(self._workers[worker], requests[first : first + self._n_users])

    @rule(worker=_workers, user=_users, number=_event)
    def send_late(self, worker: int, user: str, number: int) -> None:
        self._tick(self._workers[worker], [self._request(user, [number], kinds=("late",))])

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
            self._check(fast, [faster], outcomes)
        self._check(slow, [slower], answered)
        if not outcomes:  # the first had nothing to write
            self._tick(fast, [faster])

    @rule(worker=_workers, user=_users, numbers=_events)
    def score(self, worker: int, user: str, numbers: list[int]) -> None:
        """A request without a past is the batch score of a log of just its events, given the entities' counters."""
        used, rows = self._workers[worker], self._request(user, numbers, kinds=("new",)).events
        answer = used.score(ScoreRequest(user, rows, explain=False))
        assert isinstance(answer, bytes)
        in_order = sorted(rows, key=_key)
        config = self._plain.config
        events = events_of_rows([user], [in_order], config, {})
        scored, _ = score_events(used.scorer, events, empty_carry(1, enrich_spec(config)), self._plain.tables())
        lines = json.loads(answer)["events"]
        assert [line["event_id"] for line in lines] == [row.event_id for row in in_order]
        for line, score, decision in zip(lines, scored.score_N.tolist(), scored.decision_N.tolist(), strict=True):
            _check_line(line, score, decision, used.scorer)
        self._decisions.append((user, json.loads(answer)["decision_id"]))

    @precondition(lambda self: self._told)
    @rule(worker=_workers, pick=st.integers(0, 200), label=st.sampled_from((0, 1)), is_of_user=st.booleans())
    def label(self, worker: int, pick: int, label: int, is_of_user: bool) -> None:
        user, event_id = list(self._told)[pick % len(self._told)]
        known_us = self._clock.arrival_us()
        self._n_ids += 1
        source = f"test {self._n_ids}"
        asked = LabelRequest(user, None if is_of_user else event_id, None, label, known_us - 60_000_000, source)
        for _ in range(2):  # the same label again changes nothing
            self._workers[worker].inquiries.label(asked)
        labelled = [one for one in self._plain.kept[user] if is_of_user or one.row.event_id == event_id]
        self._plain.label(labelled, label, known_us)

    @rule(worker=_workers, user=st.sampled_from(("u0", "u1", "u2", "u2")))
    def erase(self, worker: int, user: str) -> None:
        self._workers[worker].inquiries.erase(user)
        self._plain.erase(user)
        self._told = {key: line for key, line in self._told.items() if key[0] != user}
        self._decisions = [(owner if owner != user else "", decision) for owner, decision in self._decisions]

    @rule(worker=_workers, first=_events, second=_events, third=_events)
    def begin_again(self, worker: int, first: list[int], second: list[int], third: list[int]) -> None:
        """A user is erased by one worker and comes back while the other still remembers the former life."""
        other = 1 - worker
        self.erase(other, "u2")
        self.send(worker, "u2", first)
        self.erase(other, "u2")
        self.send(other, "u2", second)
        self.send(worker, "u2", third)

    @rule(worker=_workers, user=_users)
    def read_timeline(self, worker: int, user: str) -> None:
        if user in self._plain.kept:
            self._check_timeline(self._workers[worker], user)
        else:
            with pytest.raises(Problem, match="not_found"):
                self._workers[worker].inquiries.timeline(user)

    @precondition(lambda self: self._decisions)
    @rule(worker=_workers, pick=st.integers(0, 200))
    def replay(self, worker: int, pick: int) -> None:
        """A decision is the same again, to the bit; of an erased user there is none."""
        owner, decision_id = self._decisions[pick % len(self._decisions)]
        self._check_replay(self._workers[worker], decision_id, "equal" if owner else "erased")

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

    # What is sent, and what must come back.

    def _request(self, user: str, numbers: list[int], kinds: tuple[str, ...] = _KINDS) -> EventsRequest:
        kept = self._plain.kept.get(user, [])
        newest_us = kept[-1].row.time_us if kept else _START_US
        rows: dict[str, EventRow] = {}
        for number in numbers:
            kind, gap_s, place = _drawn(number, kinds, _GAPS_S, range(len(kept) or 1))
            known = kept[place].row if kept else None
            if known is not None and kind in ("again", "other"):
                rows[known.event_id or ""] = known if kind == "again" else known._replace(amount=77.0)
                continue
            if kind == "new":
                newest_us += gap_s * 1_000_000
            time_us = known.time_us - gap_s * 1_000_000 if known is not None and kind == "late" else newest_us
            row = self._row(number, time_us)
            rows[row.event_id or ""] = row
        for row in rows.values():
            note(f"{user}: {row}")
        return EventsRequest(user, tuple(rows.values()), explain=False)

    def _row(self, number: int, time_us: int) -> EventRow:
        self._n_ids += 1
        values = _drawn(number // 1000, _TYPES, _AMOUNTS, _CHANNELS, _ENTITIES, _ENTITIES)
        kind, amount, channel, payee, device = values
        return EventRow(f"e{self._n_ids}", time_us, kind, amount, (), (channel,), (payee, device), None, None)

    def _tick(self, worker: Worker, requests: list[EventsRequest]) -> None:
        self._check(worker, requests, worker.events(requests))

    def _check(self, worker: Worker, requests: list[EventsRequest], outcomes: list[Outcome]) -> None:
        self._is_sound = False
        added: dict[str, list[Kept]] = {}
        for request, outcome in zip(requests, outcomes, strict=True):
            new, code = self._plain.take(request.user_id, request.events)
            if code:
                assert isinstance(outcome, Problem)
                assert (outcome.status, outcome.code) == (409, code)
            else:
                assert isinstance(outcome, bytes), outcome
            added[request.user_id] = new
        self._plain.assess([one for new in added.values() for one in new])
        for request, outcome in zip(requests, outcomes, strict=True):
            if isinstance(outcome, bytes):
                self._check_answer(worker, request, json.loads(outcome), added[request.user_id])
        self._is_sound = True

    def _check_answer(self, worker: Worker, request: EventsRequest, answer: Any, new: list[Kept]) -> None:
        lines, user = answer["events"], request.user_id
        assert [line["event_id"] for line in lines] == [row.event_id for row in sorted(request.events, key=_key)]
        assert answer["score"] == lines[-1]["score"]
        made = [DECISIONS.index(line["decision"]) for line in lines if line["decision"] is not None]
        assert answer["decision"] == DECISIONS[max(made, default=0)]
        expected = self._plain.scores(worker.scorer, user) if new else []
        places = {one.row.event_id: place for place, one in enumerate(self._plain.kept[user])}
        fresh = {one.row.event_id for one in new}
        for line in lines:
            key, place = (user, line["event_id"]), places[line["event_id"]]
            if line["event_id"] in fresh:
                self._told[key] = line
                self._decisions.append((user, line["decision_id"]))
                if self._plain.has_context(user, place):
                    _check_line(line, *expected[place], worker.scorer)
                else:  # late, with a context cut short: all that can be said is that it can be said again
                    self._check_replay(worker, line["decision_id"], "equal")
            assert line == self._told[key]

    def _check_replay(self, worker: Worker, decision_id: str, verdict: str) -> None:
        assert replay(decision_id, worker.store, self._bundles).verdict == verdict

    def _check_timeline(self, worker: Worker, user: str) -> None:
        told = json.loads(worker.inquiries.timeline(user))
        first = self._plain.first[user]
        kept, expected = self._plain.kept[user], self._plain.scores(worker.scorer, user)
        assert (told["n_events"], told["events"][0]["index"]) == (len(kept), first)
        assert [event["event_id"] for event in told["events"]] == [one.row.event_id for one in kept[first:]]
        for event in told["events"]:
            told_then, place = self._told[user, event["event_id"]], event["index"]
            assert {key: event["answered"][key] for key in told_then} == told_then
            assert event["label"] == kept[place].label
            if self._plain.has_context(user, place):
                assert event["score"] == pytest.approx(expected[place][0], abs=1e-5)
            else:
                assert event["score"] is None


def _check_line(line: dict[str, Any], score: float, decision: int, scorer: Scorer) -> None:
    assert line["score"] == pytest.approx(score, abs=1e-5)
    thresholds = [at for at in (scorer.policy.review_at, scorer.policy.block_at) if at is not None]
    if all(abs(score - at) > 1e-5 for at in thresholds):
        assert line["decision"] == (None if decision < 0 else DECISIONS[decision])


def _drawn(number: int, *choices: Sequence[Any]) -> list[Any]:
    """Return one of each, as a number says."""
    drawn: list[Any] = []
    for values in choices:
        number, place = divmod(number, len(values))
        drawn.append(values[place])
    return drawn


def _key(row: EventRow) -> tuple[int, int, str]:
    return sort_key(row, by_id=True)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Machine]:
    folder = trained_bundles(tmp_path_factory).folder
    holders = [ModelHolder(folder / MODELS[0], state_hash=None, schema_of=schema_of) for _ in (0, 1)]
    served = {model: holders[0].load(folder / model) for model in MODELS}
    bundles = Bundles(folder)
    return lambda: Machine(holders, served, bundles)


def _run(machine: Callable[[], Machine], n_runs: int) -> None:
    chosen = settings(
        max_examples=n_runs, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
    )
    run_state_machine_as_test(machine, settings=chosen)


def test_the_service_says_what_a_plain_list_of_events_says(machine: Callable[[], Machine]) -> None:
    _run(machine, 200)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_service_says_so_in_two_thousand_runs(machine: Callable[[], Machine]) -> None:
    _run(machine, 2000)
