"""A log sent event by event gives what `fraud score` gives of it: in process, where the service can be taken apart.

The same through HTTP, with other databases, restarts and swaps, stands in `tests/e2e/test_service_replay.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fraud.exact
from fraud.events import IntArray
from fraud.steps import Stepper
from service.problems import Problem
from service.replay import Bundles, replay
from service.warm import Warmed, warm
from tests.in_process import InProcess
from tests.replaying import Post, Replay, differences, part_of_log
from tests.trained import Trained, trained_bundles

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Return the bundles of this session."""
    return trained_bundles(tmp_path_factory)


@pytest.fixture(scope="module")
def part(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Replay:
    """Return the first events of some users."""
    return part_of_log(trained.log, tmp_path_factory.mktemp("part"), 30, 1700)


@pytest.fixture
def service(request: pytest.FixtureRequest, trained: Trained, tmp_path: Path) -> Iterator[InProcess]:
    """Return a service of the bundle that the test names, with room for fewer users than the log has."""
    made = InProcess(trained.folder / request.param, f"sqlite:///{tmp_path}/state.db", n_users=24)
    yield made
    made.close()


def _replayed(service: InProcess, part: Replay, *, with_labels: bool = True, forgets: float = 0.0) -> Replay:
    replay = Replay(part.folder, part.events, part.labels)
    rng = np.random.default_rng(0)
    for labels, posts in replay.steps(rng):
        for label in labels if with_labels else ():
            service.label(label)
        for answer in service.events(posts):
            replay.note(answer)
        if rng.random() < forgets:
            service.ticker.forget_all()
    return replay


def _largest(service: InProcess, replay: Replay) -> float:
    bundle = service.holder.current.bundle
    found = differences(replay.answers, replay.expected(bundle), bundle, bundle.version)
    assert found.n == len(replay.events)
    assert not found.wrong_decisions or found.largest > TOLERANCE
    return found.largest


@pytest.mark.parametrize("service", ["lstm", "boosting", "fused"], indirect=True)
def test_a_log_sent_event_by_event_scores_as_in_batch_and_replays_to_the_bit(service: InProcess, part: Replay) -> None:
    assert _largest(service, _replayed(service, part, forgets=0.05)) <= TOLERANCE
    bundles = Bundles(service.holder.current.bundle.path)
    shard = service.store.shard
    for number in np.random.default_rng(5).choice(len(part.events), 100, replace=False) + 1:
        replayed = replay(f"{shard:x}-{number:x}", service.store, bundles)
        assert (replayed.verdict, replayed.again) == ("equal", replayed.scores)


@pytest.mark.parametrize("service", ["lstm"], indirect=True)
def test_the_comparison_notices_labels_that_do_not_come(service: InProcess, part: Replay) -> None:
    assert _largest(service, _replayed(service, part, with_labels=False)) > TOLERANCE


@pytest.mark.parametrize("service", ["lstm"], indirect=True)
def test_a_state_that_is_never_begun_anew_is_noticed(
    service: InProcess, part: Replay, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unbounded(self: Stepper, states: Any, opens: IntArray, position: IntArray) -> None:  # Any: an array
        states[opens[position == 0], 0] = 0.0

    monkeypatch.setattr(Stepper, "_open_blocks", unbounded)
    assert _largest(service, _replayed(service, part)) > TOLERANCE


@pytest.mark.parametrize("service", ["transformer"], indirect=True)
def test_a_window_that_slides_event_by_event_is_noticed(
    service: InProcess, part: Replay, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fraud.exact.context_rows

    def sliding(enriched: Any, scope: Any, max_events: int) -> IntArray:  # Any: as the function it replaces
        rows_N = np.arange(len(enriched.events))
        return np.maximum(whole(enriched, scope, max_events), rows_N - max_events // 2)

    assert _largest(service, _replayed(service, part)) <= TOLERANCE
    monkeypatch.setattr(fraud.exact, "context_rows", sliding)
    other = InProcess(service.holder.current.bundle.path, "sqlite:///" + str(part.folder / "sliding.db"))
    assert _largest(other, _replayed(other, part)) > TOLERANCE
    other.close()


@pytest.mark.parametrize("service", ["lstm", "fused"], indirect=True)
def test_a_state_that_was_warmed_goes_on_as_the_log_does(service: InProcess, part: Replay, tmp_path: Path) -> None:
    half = part.events[len(part.events) // 2]["ts"][:13]  # of an hour, all events are of one half
    first = part.only({event["event_id"] for event in part.events if event["ts"][:13] < half}, tmp_path / "first")
    bundle = service.holder.current.bundle

    def warmed() -> Warmed:
        return warm(
            bundle.scorer.config, str(first.folder / "events.parquet"), first.config, service.store,
            now_us=service.clock.wall_us, progress=lambda _done, _all: None,
        )  # fmt: skip

    done = warmed()
    assert (done.events, done.users_there, done.quarantined) == (len(first.events), 0, 0)
    assert warmed() == Warmed(0, 0, done.users, 0)
    rest = Replay(part.folder, part.events[len(first.events) :], part.labels)
    for labels, posts in rest.steps(np.random.default_rng(3)):
        for label in labels:
            service.label(label)
        for answer in service.events(posts):
            rest.note(answer)
    found = differences(rest.answers, part.expected(bundle), bundle, bundle.version)
    assert found.n == len(rest.events) > 500
    assert found.largest <= TOLERANCE
    again = service.events([Post("/v1/events", _as_sent(first, 5))])
    assert b"known_from_log" in again[0]


def _as_sent(replay: Replay, n_events: int) -> dict[str, Any]:  # Any: JSON
    user_id = replay.events[0]["user_id"]
    own = [event for event in replay.events if event["user_id"] == user_id][:n_events]
    return {"user_id": user_id, "events": [{k: v for k, v in event.items() if k != "user_id"} for event in own]}


@pytest.mark.parametrize("service", ["lstm", "transformer", "boosting", "fused"], indirect=True)
def test_after_late_events_the_timeline_scores_as_in_batch(
    service: InProcess, trained: Trained, tmp_path: Path
) -> None:
    # Without entities: what was known of them when an event was answered stands.
    part = part_of_log(trained.log, tmp_path / "part", 40, 900, without=("payee", "device"))
    rng = np.random.default_rng(1)
    waiting: list[tuple[int, Post]] = []
    taken: set[str] = set()
    n_refused = 0
    for step, (_, posts) in enumerate(part.steps(rng)):
        delayed = rng.random(len(posts)) < 0.15
        now = [post for post, is_delayed in zip(posts, delayed, strict=True) if not is_delayed]
        waiting += [(step + int(rng.integers(1, 60)), p) for p, is_late in zip(posts, delayed, strict=True) if is_late]
        now += [post for until, post in waiting if until <= step]
        waiting = [(until, post) for until, post in waiting if until > step]
        for post in now:
            (outcome,) = service.outcomes([post])
            if isinstance(outcome, Problem):
                assert outcome.code == "too_late"
                n_refused += 1
            else:
                taken |= {event["event_id"] for event in post.body["events"]}
    assert service.ticker.counts["late"] > 10
    kept = part.only(taken, tmp_path / "kept")
    expected = kept.expected(service.holder.current.bundle)
    n_compared = 0
    for user_id in {event["user_id"] for event in kept.events}:
        events = service.timeline(user_id)["events"]
        in_order = [event["event_id"] for event in kept.events if event["user_id"] == user_id]
        assert [event["event_id"] for event in events] == in_order[events[0]["index"] :]
        scored = [event for event in events if event["score"] is not None]
        assert all(abs(event["score"] - expected[event["event_id"]].score) <= TOLERANCE for event in scored)
        n_compared += len(scored)
    assert n_compared > 200
