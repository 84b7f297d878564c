"""What workers answer, held against what the plain service says: every answer, every timeline, every replay."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from fraud.config import Config
from fraud.decisions import DECISIONS
from fraud.enrich import empty_carry
from fraud.rows import EventRow, events_of_rows, sort_key
from fraud.scoring import Scorer, enrich_spec, score_events
from service.problems import Problem
from service.replay import Bundles, replay
from service.schemas import EventsRequest, ScoreRequest
from service.ticks import Outcome
from tests.plain_service import Kept, PlainService
from tests.workers import Worker

Line = dict[str, Any]  # Any: JSON; one event of an answer


class Compared:
    """plain: what should be. told: the answer to each event, which never changes. decisions: (user, id), of an erased
    user ("", id). is_sound: no check has failed.
    """

    def __init__(self, config: Config, bundles: Bundles) -> None:
        """Take the configuration of all bundles, and the bundles that a replay may need."""
        self.plain = PlainService(config)
        self.told: dict[tuple[str, str], Line] = {}
        self.decisions: list[tuple[str, str]] = []
        self.is_sound = True
        self._bundles = bundles

    def tick(self, worker: Worker, requests: Sequence[EventsRequest]) -> None:
        """Let a worker answer, and check what it says."""
        self.check(worker, requests, worker.events(requests))

    def check(self, worker: Worker, requests: Sequence[EventsRequest], outcomes: Sequence[Outcome]) -> None:
        """Check what a worker answered to the requests of one tick."""
        self.is_sound = False
        added: dict[str, list[Kept]] = {}
        for request, outcome in zip(requests, outcomes, strict=True):
            new, code = self.plain.take(request.user_id, request.events)
            if code:
                assert isinstance(outcome, Problem)
                assert (outcome.status, outcome.code) == (409, code)
            else:
                assert isinstance(outcome, bytes), outcome
            added[request.user_id] = new
        self.plain.assess([one for new in added.values() for one in new])
        for request, outcome in zip(requests, outcomes, strict=True):
            if isinstance(outcome, bytes):
                self._check_answer(worker, request, json.loads(outcome), added[request.user_id])
        self.is_sound = True

    def check_score(self, worker: Worker, request: ScoreRequest) -> None:
        """Check the answer to a request without a past: the batch score of a log of just its events."""
        outcome = worker.score(request)
        assert isinstance(outcome, bytes), outcome
        rows, config, answer = sorted(request.events, key=_key), self.plain.config, json.loads(outcome)
        events = events_of_rows([request.user_id], [rows], config, {})
        scored, _ = score_events(worker.scorer, events, empty_carry(1, enrich_spec(config)), self.plain.tables())
        assert [line["event_id"] for line in answer["events"]] == [row.event_id for row in rows]
        for line, score, decision in zip(answer["events"], scored.score_N, scored.decision_N, strict=True):
            _check_line(line, score, decision, worker.scorer)
        self.decisions.append((request.user_id, answer["decision_id"]))

    def check_timeline(self, worker: Worker, user: str) -> None:
        """Check what a worker says of all that is kept of a user."""
        if user not in self.plain.kept:
            with pytest.raises(Problem, match="not_found"):
                worker.inquiries.timeline(user)
            return
        timeline = json.loads(worker.inquiries.timeline(user))
        first, kept = self.plain.first[user], self.plain.kept[user]
        expected = self.plain.scores(worker.scorer, user)
        assert (timeline["n_events"], timeline["events"][0]["index"]) == (len(kept), first)
        assert [event["event_id"] for event in timeline["events"]] == [one.row.event_id for one in kept[first:]]
        for event in timeline["events"]:
            told, place = self.told[user, event["event_id"]], event["index"]
            assert {key: event["answered"][key] for key in told} == told
            assert event["label"] == kept[place].label
            if self.plain.has_context(user, place):
                assert event["score"] == pytest.approx(expected[place][0], abs=1e-5)
            else:
                assert event["score"] is None

    def check_replay(self, worker: Worker, decision_id: str, verdict: str) -> None:
        """Check that a decision is the same again, to the bit ("equal"), or gone ("erased")."""
        assert replay(decision_id, worker.store, self._bundles).verdict == verdict

    def erase(self, user: str) -> None:
        """Forget a user, as a worker has."""
        self.plain.kept.pop(user, None)
        self.plain.first.pop(user, None)
        self.told = {key: line for key, line in self.told.items() if key[0] != user}
        self.decisions = [("" if owner == user else owner, decision) for owner, decision in self.decisions]

    def _check_answer(self, worker: Worker, request: EventsRequest, answer: Any, new: list[Kept]) -> None:
        lines, user = answer["events"], request.user_id
        assert [line["event_id"] for line in lines] == [row.event_id for row in sorted(request.events, key=_key)]
        assert answer["score"] == lines[-1]["score"]
        made = [DECISIONS.index(line["decision"]) for line in lines if line["decision"] is not None]
        assert answer["decision"] == DECISIONS[max(made, default=0)]
        expected = self.plain.scores(worker.scorer, user) if new else []
        places = {one.row.event_id: place for place, one in enumerate(self.plain.kept[user])}
        fresh = {one.row.event_id for one in new}
        for line in lines:
            key, place = (user, line["event_id"]), places[line["event_id"]]
            if line["event_id"] in fresh:
                self.told[key] = line
                self.decisions.append((user, line["decision_id"]))
                if self.plain.has_context(user, place):
                    _check_line(line, *expected[place], worker.scorer)
                else:  # late, with a context cut short: all that can be said is that it can be said again
                    self.check_replay(worker, line["decision_id"], "equal")
            assert line == self.told[key]


def _check_line(line: Line, score: float, decision: int, scorer: Scorer) -> None:
    assert line["score"] == pytest.approx(score, abs=1e-5)
    thresholds = [at for at in (scorer.policy.review_at, scorer.policy.block_at) if at is not None]
    if all(abs(score - at) > 1e-5 for at in thresholds):
        assert line["decision"] == (None if decision < 0 else DECISIONS[decision])


def _key(row: EventRow) -> tuple[int, int, str]:
    return sort_key(row, by_id=True)
