"""A challenger in shadow scores as it would have answered, counts every difference once, and never costs an answer."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from fraud.decisions import DECISIONS
from fraud.enrich import empty_carry
from fraud.entities import EntityTable
from fraud.events import Events
from fraud.golden import golden_tables
from fraud.logs import read_log
from fraud.scoring import Scored, enrich_spec, risk_of, score_events
from service.models import ModelHolder, Served
from service.schemas import schema_of
from service.shadow import MAX_WAITING_EVENTS, Shadow
from tests.trained import Trained, trained_bundles

_DAY_US = 86_400 * 10**6
_TODAY = 20_000


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return trained_bundles(tmp_path_factory)


class _Scene(NamedTuple):
    """Some whole users of the log, what the champion made of them, and what the challenger would have."""

    events: Events
    tables: dict[str, EntityTable]
    champion: Served
    challenger: Served
    by_champion: Scored
    by_challenger: Scored


def _served(directory: Path) -> Served:
    return ModelHolder(directory, state_hash=None, schema_of=schema_of).current


@pytest.fixture(scope="session", params=["lstm", "boosting", "fused"])
def scene(trained: Trained, request: pytest.FixtureRequest) -> _Scene:
    challenger = _served(trained.folder / request.param)
    champion = _served(trained.folder / ("lstm" if request.param == "boosting" else "boosting"))
    with closing(read_log(trained.config)) as log:
        events = log.partitions[0]().events.take_users(0, 12)
    tables = golden_tables(events)
    scored = [_scored(served, events, tables) for served in (champion, challenger)]
    return _Scene(events, tables, champion, challenger, *scored)


def _scored(served: Served, events: Events, tables: dict[str, EntityTable]) -> Scored:
    carry = empty_carry(events.n_users, enrich_spec(served.bundle.scorer.config))
    return score_events(served.bundle.scorer, events, carry, tables)[0]


@contextmanager
def _shadow(
    scene: _Scene,
    *,
    rate: float = 1.0,
    is_busy: Callable[[], bool] = lambda: False,
    max_waiting_events: int = MAX_WAITING_EVENTS,
    starts: bool = True,
) -> Iterator[Shadow]:
    shadow = Shadow(
        scene.challenger,
        rate=rate,
        is_busy=is_busy,
        now_us=lambda: _TODAY * _DAY_US + 5,
        max_waiting_events=max_waiting_events,
    )
    if starts:
        shadow.start()
    try:
        yield shadow
    finally:
        shadow.stop()


def _offer(shadow: Shadow, scene: _Scene, rows_R: np.ndarray) -> bool:
    return shadow.offer(
        scene.champion.version,
        events=scene.events,
        carry=empty_carry(scene.events.n_users, enrich_spec(scene.champion.bundle.scorer.config)),
        risk=risk_of(scene.events, scene.tables),
        rows_R=rows_R,
        score_R=scene.by_champion.score_N[rows_R],
        decision_R=scene.by_champion.decision_N[rows_R],
    )


def _names(decision_N: np.ndarray) -> list[str]:
    return ["none" if code < 0 else DECISIONS[code] for code in decision_N.tolist()]


def test_what_is_counted_is_what_the_challenger_would_have_answered(scene: _Scene) -> None:
    """Offered in ticks of any rows, against one pass of each bundle over the whole."""
    order = np.random.default_rng(1).permutation(len(scene.events))
    ticks = np.array_split(order, 17)
    with _shadow(scene) as shadow:
        for rows_R in ticks:
            assert _offer(shadow, scene, np.sort(rows_R))
            assert shadow.wait_until_idle(30)
        rows = shadow.take_rows()
        counts, totals = shadow.counts, shadow.differences
    assert (counts.n_offered, counts.n_scored_events) == (len(ticks), len(scene.events))
    assert (counts.n_dropped, counts.n_failed, counts.n_sampled_out) == (0, 0, 0)
    theirs, ours = _names(scene.by_champion.decision_N), _names(scene.by_challenger.decision_N)
    assert {cell: found.n for cell, found in totals.items()} == Counter(zip(theirs, ours, strict=True))
    distance_N = np.abs(scene.by_champion.score_N - scene.by_challenger.score_N)
    assert sum(found.sum_abs for found in totals.values()) == pytest.approx(distance_N.sum(), abs=1e-4)
    assert max(found.max_abs for found in totals.values()) == pytest.approx(distance_N.max(), abs=1e-5)
    versions = scene.champion.version, scene.challenger.version
    assert {(row.day, row.champion, row.challenger) for row in rows} == {(_TODAY, *versions)}
    written = {(row.decision_champion, row.decision_challenger): row.n for row in rows}
    assert written == {cell: found.n for cell, found in totals.items()}


def test_what_was_taken_is_not_taken_again_unless_it_is_given_back(scene: _Scene) -> None:
    first_N, second_N = np.arange(0, 30), np.arange(30, 60)
    with _shadow(scene) as shadow:
        _offer(shadow, scene, first_N)
        assert shadow.wait_until_idle(30)
        rows = shadow.take_rows()
        assert sum(row.n for row in rows) == 30
        assert shadow.take_rows() == ()
        shadow.give_back_rows(rows)
        _offer(shadow, scene, second_N)
        assert shadow.wait_until_idle(30)
        assert sum(row.n for row in shadow.take_rows()) == 60
        assert sum(found.n for found in shadow.differences.values()) == 60


def test_what_was_counted_can_be_taken_after_the_end(scene: _Scene) -> None:
    with _shadow(scene) as shadow:
        _offer(shadow, scene, np.arange(20))
        assert shadow.wait_until_idle(30)
    assert not _offer(shadow, scene, np.arange(20)), "nothing is taken any more"
    assert sum(row.n for row in shadow.take_rows()) == 20


def test_offers_are_dropped_first_under_load(scene: _Scene) -> None:
    """While requests wait, nothing is begun and nothing is kept for later."""
    busy = threading.Event()
    with _shadow(scene, is_busy=busy.is_set) as shadow:
        busy.set()
        assert not any(_offer(shadow, scene, np.arange(5)) for _ in range(50))
        busy.clear()
        assert _offer(shadow, scene, np.arange(5))
        assert shadow.wait_until_idle(30)
        assert shadow.counts._asdict() == {
            "n_offered": 51, "n_sampled_out": 0, "n_dropped": 50, "n_failed": 0, "n_scored_events": 5,
        }  # fmt: skip


def test_what_waits_is_dropped_when_requests_come(scene: _Scene) -> None:
    busy = threading.Event()
    with _shadow(scene, is_busy=busy.is_set, starts=False) as shadow:
        assert all(_offer(shadow, scene, np.arange(5)) for _ in range(3))
        busy.set()
        shadow.start()
        assert shadow.wait_until_idle(30)
        assert (shadow.counts.n_dropped, shadow.counts.n_scored_events) == (3, 0)


def test_more_than_fits_is_dropped_and_an_offer_stays_cheap(scene: _Scene) -> None:
    """The thread does not run here, as if it were far behind: the queue is full, and a tick pays microseconds."""
    held = 3 * len(scene.events)
    with _shadow(scene, max_waiting_events=held, starts=False) as shadow:
        taken = [_offer(shadow, scene, np.arange(5)) for _ in range(10)]
        assert taken == [True] * 3 + [False] * 7
        risk, carry = (
            risk_of(scene.events, scene.tables),
            empty_carry(0, enrich_spec(scene.champion.bundle.scorer.config)),
        )
        score_R, decision_R = scene.by_champion.score_N[:5], scene.by_champion.decision_N[:5]
        began_s = time.process_time()
        for _ in range(1000):
            shadow.offer(
                "v", events=scene.events, carry=carry, risk=risk, rows_R=np.arange(5), score_R=score_R,
                decision_R=decision_R,
            )  # fmt: skip
        assert (time.process_time() - began_s) / 1000 < 100e-6
        assert shadow.counts.n_dropped == 1007
    assert shadow.counts.n_dropped == 1010, "what still waited at the end"


def test_the_rate_is_the_share_of_ticks_that_are_scored(scene: _Scene) -> None:
    with _shadow(scene, rate=0.25, max_waiting_events=10**9, starts=False) as shadow:
        n_taken = sum(_offer(shadow, scene, np.arange(1)) for _ in range(2000))
        assert 400 < n_taken < 600
        assert shadow.counts.n_sampled_out == 2000 - n_taken
    with _shadow(scene, rate=0.0, starts=False) as shadow:
        assert not any(_offer(shadow, scene, np.arange(1)) for _ in range(100))


def test_an_event_without_its_context_is_not_scored(scene: _Scene, caplog: pytest.LogCaptureFixture) -> None:
    """Its score would be another one than the challenger's own; it is counted, and said once."""
    longest = int(np.argmax(np.diff(scene.events.user_starts)))
    events = scene.events.take_users(longest, longest + 1)
    late = events.keep(np.arange(len(events)) >= len(events) - 4)
    with _shadow(scene) as shadow:
        spec = enrich_spec(scene.champion.bundle.scorer.config)
        carry = replace(empty_carry(1, spec), n_events_U=np.array([len(events) - 4]))
        for _ in range(3):
            shadow.offer(
                scene.champion.version, events=late, carry=carry, risk={}, rows_R=np.array([0]),
                score_R=np.zeros(1), decision_R=np.zeros(1, dtype=np.int8),
            )  # fmt: skip
        assert shadow.wait_until_idle(30)
        assert (shadow.counts.n_failed, shadow.counts.n_scored_events) == (3, 0)
        assert shadow.take_rows() == ()
    assert len(caplog.records) == 1
    assert "without their context" in caplog.text


def test_a_challenger_of_another_state_does_not_fit(trained: Trained, scene: _Scene) -> None:
    with _shadow(scene, starts=False) as shadow:
        assert shadow.fits(scene.champion)
        assert not shadow.fits(_served(trained.plain))
