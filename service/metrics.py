"""What the HTTP edge counts, for Prometheus: one registry for one process, no default collectors, no user data."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_BUCKETS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0)


class Metrics:
    """registry: where other parts of the process add their own metrics.

    The children of the hot metrics are kept, since finding one by its labels costs more than counting.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter("fraud_requests", "Answers", ["route", "status"], registry=self.registry)
        self._seconds = Histogram(
            "fraud_request_seconds",
            "From the headers to the answer",
            ["route"],
            registry=self.registry,
            buckets=_BUCKETS_S,
        )
        self._problems = Counter("fraud_problems", "Problems answered, by code", ["code"], registry=self.registry)
        self._refused = Counter("fraud_refused", "Refused before any route", ["code"], registry=self.registry)
        self.in_flight = Gauge("fraud_in_flight", "Requests being answered", registry=self.registry)
        self._request_children: dict[tuple[str, int], Counter] = {}
        self._second_children: dict[str, Histogram] = {}
        self._refused_children: dict[str, Counter] = {}

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count an answer of a route."""
        child = self._request_children.get((route, status))
        if child is None:
            child = self._request_children[route, status] = self._requests.labels(route, str(status))
        child.inc()
        timer = self._second_children.get(route)
        if timer is None:
            timer = self._second_children[route] = self._seconds.labels(route)
        timer.observe(seconds)

    def problem(self, code: str) -> None:
        """Count a problem that a route answered."""
        self._problems.labels(code).inc()

    def refused(self, code: str) -> None:
        """Count what was refused before any route was reached."""
        child = self._refused_children.get(code)
        if child is None:
            child = self._refused_children[code] = self._refused.labels(code)
        child.inc()

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)
