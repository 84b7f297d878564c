"""The service without its HTTP edge: bytes in, bytes out, ticks in this process. What a test can take apart."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from fraud.config import stored_state_hash
from service.clock import Clock
from service.inquiries import Inquiries
from service.models import ModelHolder
from service.problems import Problem
from service.schemas import schema_of
from service.state.opening import open_store
from service.ticks import Outcome, Ticker
from tests.replaying import Json, Post


class InProcess:
    """A holder, a store and ticks. n_users: how many are remembered; fewer than there are keep memory cold."""

    def __init__(self, bundle: Path, state: str, *, n_users: int = 64) -> None:
        """Open the store at the URL `state`."""
        self.clock = Clock("log")
        self.store = open_store(state, now_us=self.clock.wall_us)
        self.holder = ModelHolder(bundle, state_hash=self.store.state_hash(), schema_of=schema_of)
        self.store.set_state_hash(stored_state_hash(self.holder.current.bundle.scorer.config))
        self.ticker = Ticker(self.store, n_users=n_users, now_us=self.clock.wall_us)
        self.inquiries = Inquiries(self.holder, self.ticker, self.clock)

    def label(self, post: Post) -> bytes:
        """Return the answer to a label."""
        return self.inquiries.label(self.holder.current.schema.decode_label(_bytes(post.body), self.clock.limit_us()))

    def outcomes(self, posts: Sequence[Post]) -> list[Outcome]:
        """Return the answers and problems of one tick of events of different users."""
        schema = self.holder.current.schema
        requests = [schema.decode_events(_bytes(post.body), self.clock.limit_us()) for post in posts]
        self.clock.saw(max(row.time_us for request in requests for row in request.events))
        return self.ticker.run(self.holder.current, [], requests)[1]

    def events(self, posts: Sequence[Post]) -> list[bytes]:
        """Return the answers to events of different users; raises Problem where one is refused."""
        answers: list[bytes] = []
        for first in range(0, len(posts), self.ticker.n_users):
            for outcome in self.outcomes(posts[first : first + self.ticker.n_users]):
                if isinstance(outcome, Problem):
                    raise outcome
                answers.append(outcome)
        return answers

    def timeline(self, user_id: str) -> Json:
        """Return a user's timeline."""
        return json.loads(self.inquiries.timeline(user_id))

    def close(self) -> None:
        """Close the store."""
        self.store.close()


def _bytes(body: Json) -> bytes:
    return json.dumps(body).encode()
