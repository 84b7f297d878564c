"""A client of the service, to use as it is or to copy: retries that cannot count twice.

Needs httpx (`pip install 'fraud[client]'`) and nothing else of this project.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any
from urllib.parse import quote

import httpx

Json = dict[str, Any]  # Any: JSON
_RETRIED = (429, 502, 503, 504)


class ServiceError(Exception):
    """The service refused. problem: its problem+json: "code", "detail", "errors" (each with the path of a field)."""

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:  # Any: JSON
        super().__init__(
            f"{status} {problem.get('code')}: {problem.get('detail')} {problem.get('errors') or ''}".strip()
        )
        self.status = status
        self.problem = problem


class FraudClient:
    """Scores and remembers events over HTTP. A with-block closes its connections.

    What fails on the way (no connection, a time-out, 429, 503) is sent again, the same bytes, until `patience_s` is
    over. That is safe: an event is known by its event_id, and the same again gets the same answer.
    """

    def __init__(
        self, url: str, *, api_key: str | None = None, timeout_s: float = 2.0, patience_s: float = 30.0
    ) -> None:
        """Take where the service is and how long one request, and all tries of one, may take."""
        headers = {} if api_key is None else {"X-API-Key": api_key}
        self._http = httpx.Client(base_url=url, timeout=timeout_s, headers=headers)
        self._patience_s = patience_s

    def __enter__(self) -> FraudClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def score(self, user_id: str, events: Sequence[Json], *, explain: bool = False) -> Json:
        """Return the answer to some events of a user, scored from these events alone; nothing of them is remembered."""
        return self._post("/v1/score", {"user_id": user_id, "events": list(events), "explain": explain})

    def events(self, user_id: str, events: Sequence[Json], *, explain: bool = False) -> Json:
        """Return the answer to new events of a user, scored after all that was sent before, and remember them.

        Each event needs an "event_id" of its own; sent again it counts once. A degraded answer means that the events
        were not remembered: they are sent again, and one comes back only if the store is away for all of `patience_s`.
        """
        return self._post(
            "/v1/events", {"user_id": user_id, "events": list(events), "explain": explain}, again="degraded"
        )

    def label(self, user_id: str, event_id: str, *, is_fraud: bool, known_at: str, source: str) -> str:
        """Return the id of a label: an event turned out to be fraud, or not; known_at: RFC 3339 with a zone."""
        body = {
            "user_id": user_id,
            "event_id": event_id,
            "label": int(is_fraud),
            "known_at": known_at,
            "source": source,
        }
        return self._post("/v1/labels", body)["label_id"]

    def timeline(self, user_id: str) -> Json:
        """Return a user's stored events in order, with the scores they have now and the answers that were given."""
        return self._sent("GET", f"/v1/users/{quote(user_id, safe='')}/timeline", None)

    def decision(self, decision_id: str) -> Json:
        """Return the record of a decision."""
        return self._sent("GET", f"/v1/decisions/{quote(decision_id, safe='')}", None)

    def _post(self, path: str, body: Json, *, again: str = "") -> Json:
        return self._sent("POST", path, body, again=again)

    def _sent(self, method: str, path: str, body: Json | None, *, again: str = "") -> Json:
        """Return the answer; again: the name of what in an answer, where it is true, asks for another try."""
        until, pause_s = time.monotonic() + self._patience_s, 0.05
        while True:
            answer: httpx.Response | None = None
            try:
                answer = self._http.request(method, path, json=body)
            except httpx.TransportError:
                if time.monotonic() + pause_s > until:
                    raise
            is_last = time.monotonic() + pause_s > until
            if answer is not None and answer.is_success:
                document: Json = answer.json()
                if is_last or not document.get(again):
                    return document
            elif answer is not None and (is_last or answer.status_code not in _RETRIED):
                raise ServiceError(answer.status_code, answer.json())
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 2.0)
