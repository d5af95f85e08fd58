"""``/metrics``: what an app measures, as text; with several workers, of all of them together."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterable
from contextlib import suppress

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from serving.observability.metrics import PREFIX, UNKNOWN, Metrics
from serving.observability.multiprocess import living, resident_memory, shared_folder

_AS_OF = f"{PREFIX}items_as_of_seconds"
_TRIES = 10
_PAUSE_S = 0.02


def render(metrics: Metrics) -> bytes:
    """Return the metrics of all workers in Prometheus's text format."""
    registry = CollectorRegistry()
    registry.register(_AllWorkers(metrics))
    for collector in metrics.at_scrape:
        registry.register(collector)
    return generate_latest(registry)


class _AllWorkers:
    """The metrics of all workers, with values that are computed at the scrape."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        folder = shared_folder()
        pids = living(folder) if folder else {os.getpid()}
        source: Collector = self._metrics.registry
        if folder:
            source = MultiProcessCollector(None, str(folder))  # type: ignore[no-untyped-call]
        for metric in _whole(source):
            if metric.name.startswith(PREFIX):  # Feast's may lie in the same folder
                metric.samples = [sample for sample in metric.samples if sample.value != UNKNOWN]
                yield _age(metric) if metric.name == _AS_OF else metric
        yield GaugeMetricFamily(f"{PREFIX}workers", "Processes that serve", len(pids))
        memory = "Resident memory of all workers; what they share counts for each"
        yield GaugeMetricFamily(
            f"{PREFIX}resident_memory_bytes", memory, sum(map(resident_memory, pids))
        )


def _whole(source: Collector) -> list[Metric]:
    """Return all metrics; the file of a worker that is just starting may be empty for a moment."""
    for _ in range(_TRIES):
        with suppress(struct.error):
            return list(source.collect())
        time.sleep(_PAUSE_S)
    return list(source.collect())


def _age(as_of: Metric) -> Metric:
    """Return the age of the item counters; of counters that were never read it is infinite."""
    age = GaugeMetricFamily(f"{PREFIX}items_age_seconds", "Age of the item counters in use")
    for sample in as_of.samples:
        age.add_metric([], time.time() - sample.value if sample.value else UNKNOWN)
    return age
