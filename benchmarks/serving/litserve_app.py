"""The same bundle behind LitServe: `python benchmarks/serving/litserve_app.py BUNDLE PORT`.

As its documentation advises for a model that gains by batches: one worker, max_batch_size and a batch_timeout of some
milliseconds, one API server, and `fast_queue`. The scoring is ours; nothing is remembered, recorded or explained.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import litserve

from fraud.bundle import load_bundle
from fraud.decisions import DECISIONS
from fraud.live import score_rows
from fraud.rows import EventRow, sort_key
from fraud.scoring import NO_DECISION
from service.counters import entity_tables_of

MAX_BATCH_SIZE = 16
BATCH_TIMEOUT_S = 0.005

Json = dict[str, Any]  # Any: JSON
Asked = tuple[str, list[EventRow]]


class FraudApi(litserve.LitAPI):
    """Scores the events of each request."""

    def __init__(self, path: str) -> None:
        super().__init__(max_batch_size=MAX_BATCH_SIZE, batch_timeout=BATCH_TIMEOUT_S)
        self._path = path

    def setup(self, device: str) -> None:
        """Load the bundle, in the worker."""
        self.scorer = load_bundle(self._path).scorer
        self.fields = self.scorer.config.fields
        self.tables = entity_tables_of(self.fields.entity, [])

    def decode_request(self, request) -> Asked:  # noqa: ANN001  # LitServe takes an annotation for a query parameter
        """Return the user and the rows of a request, which is a dict of its JSON."""
        return request["user_id"], sorted(map(self._row, request["events"]), key=lambda row: sort_key(row, by_id=True))

    def batch(self, inputs: Sequence[Asked]) -> Sequence[Asked]:
        """Return the requests as they are: they become one matrix in the scorer."""
        return inputs

    def predict(self, batch: Sequence[Asked]) -> list[Json]:
        """Return the answers."""
        users, rows_U = [user for user, _ in batch], [rows for _, rows in batch]
        scores = score_rows(self.scorer, users, rows_U, self.tables)
        ends = scores.enriched.events.user_starts[1:] - 1
        answers: list[Json] = []
        for first, last in zip(scores.enriched.events.user_starts.tolist(), ends.tolist(), strict=False):
            severest = max(int(scores.decision_R[first : last + 1].max()), 0)
            lines = [
                {"score": score, "decision": None if decision == NO_DECISION else DECISIONS[decision]}
                for score, decision in zip(
                    scores.score_R[first : last + 1].tolist(), scores.decision_R[first : last + 1].tolist(), strict=True
                )
            ]
            answers.append({"score": lines[-1]["score"], "decision": DECISIONS[severest], "events": lines})
        return answers

    def unbatch(self, output: list[Json]) -> list[Json]:
        """Return the answers one by one."""
        return output

    def encode_response(self, output):  # noqa: ANN001, ANN201  # annotated, each answer would be validated
        """Return an answer as JSON."""
        return output

    def _row(self, event: Json) -> EventRow:
        fields = self.fields
        return EventRow(
            event.get("event_id"),
            int(datetime.fromisoformat(event["ts"]).timestamp() * 1e6),
            event["type"],
            event.get(fields.amount or ""),
            tuple(event.get(name) for name in fields.numeric),
            tuple(event.get(name) for name in fields.categorical),
            tuple(event.get(name) for name in fields.entity),
            None,
            None,
        )


def main() -> None:
    """Serve until a signal comes."""
    path, port = sys.argv[1:]
    server = litserve.LitServer(FraudApi(path), accelerator="cpu", workers_per_device=1, fast_queue=True)
    server.run(host="127.0.0.1", port=int(port), num_api_servers=1, generate_client_file=False, log_level="warning")


if __name__ == "__main__":
    main()
