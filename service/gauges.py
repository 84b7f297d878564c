"""What the engine counts, for Prometheus: read when somebody asks, so that counting costs a tick next to nothing."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from service.engine import Engine
from service.shadow import Shadow

_DECISIONS = ("allow", "review", "block", "None")


class Gauges(Collector):
    """The counts of the ticks, the model in use, its swaps, and the differences to a challenger in shadow."""

    def __init__(self, engine: Engine, shadow: Shadow | None) -> None:
        """Take what counts."""
        self._engine = engine
        self._shadow = shadow

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics as they are now."""
        counts = dict(self._engine.ticker.counts)
        decisions = CounterMetricFamily("fraud_decisions", "Events with a past, by decision", labels=["decision"])
        for name in _DECISIONS:
            shown = "none" if name == "None" else name
            decisions.add_metric([shown], counts.pop(f"decision_{name}", 0))
        yield decisions
        happened = CounterMetricFamily("fraud_happened", "What became of requests and ticks", labels=["what"])
        for name in sorted(counts):
            happened.add_metric([name], counts[name])
        yield happened
        served = self._engine.holder.current
        model = InfoMetricFamily("fraud_model", "The bundle that answers")
        model.add_metric([], {"name": served.name, "version": served.version, "policy": served.policy_version})
        yield model
        swaps = CounterMetricFamily("fraud_model_swaps", "Swaps of the bundle, by outcome", labels=["outcome"])
        for code, n_swaps in self._engine.holder.counts.items():
            swaps.add_metric([code], n_swaps)
        yield swaps
        is_up = self._engine.readiness()[1]["store"] == "up"
        yield GaugeMetricFamily("fraud_store_up", "1 where the store answers", value=float(is_up))
        yield GaugeMetricFamily("fraud_users_remembered", "Users in memory", value=self._engine.ticker.n_remembered)
        if self._shadow is not None:
            yield from self._shadow_metrics(self._shadow)

    def _shadow_metrics(self, shadow: Shadow) -> Iterator[Metric]:
        offers = CounterMetricFamily("fraud_shadow_offers", "Ticks offered to the challenger", labels=["outcome"])
        for name, n_offers in shadow.counts._asdict().items():
            offers.add_metric([name.removeprefix("n_")], n_offers)
        yield offers
        events = CounterMetricFamily(
            "fraud_shadow_events", "Events by both decisions", labels=["champion", "challenger"]
        )
        distance = CounterMetricFamily(
            "fraud_shadow_distance", "Sum of |difference|", labels=["champion", "challenger"]
        )
        for (theirs, ours), difference in shadow.differences.items():
            events.add_metric([theirs, ours], difference.n)
            distance.add_metric([theirs, ours], difference.sum_abs)
        yield events
        yield distance
