"""Prometheus metrics of one app: made once and observed on every request at low cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from time import perf_counter
from typing import Any, Generic, Literal, TypeVar, get_args

import numpy as np
import numpy.typing as npt
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.registry import Collector

from serving.observability.multiprocess import choose_numbers
from serving.recommender.candidates import SOURCES
from serving.recommender.results import Degradation

PREFIX = "funnel_"
"""What the name of every metric begins with."""

STAGES = ("features", "tower", "retrieve", "rank", "filter")
"""The stages of a recommendation, in their order."""

UNKNOWN = math.inf
"""The value of a gauge that was never set; such a sample is not shown."""

Spans = Callable[[str], AbstractContextManager[object]]
"""Opens a span of the current trace, by name."""

BreakerState = Literal["closed", "half_open", "open"]
_BREAKER: dict[BreakerState, float] = {"closed": 0.0, "half_open": 1.0, "open": 2.0}

_REQUEST_BUCKETS = [
    *(0.001, 0.002, 0.003, 0.004, 0.005, 0.0075, 0.01, 0.0125, 0.015, 0.02, 0.025, 0.03, 0.04),
    *(0.05, 0.075, 0.1, 0.25, 0.5, 1.0, 2.5),
]
_STAGE_BUCKETS = [
    *(0.0001, 0.00025, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
]
_AGE_BUCKETS = [0.25, 0.5, 1, 2, 5, 10, 60, 600, 3_600, 86_400, 604_800, 2_592_000]
_CANDIDATE_BUCKETS = [0, 1, 5, 10, 20, 30, 50, 100, 200, 350, 500, 1_000]
# [2 ** S, S]: which of the S sources each combination of bits names.
_PROPOSED = np.array(
    [[bits >> source & 1 for source in range(len(SOURCES))] for bits in range(1 << len(SOURCES))]
)

M = TypeVar("M", bound=MetricWrapperBase)


class Children(dict[Any, M], Generic[M]):
    """A metric's children by label value or tuple of values; ``labels`` is several times slower."""

    def __init__(self, metric: M, known: Iterable[Any] = ()) -> None:
        """Make the children of ``known`` values now.

        Prometheus must see a series at 0 for its first increase to count.
        """
        self._metric = metric
        for value in known:
            self[value]

    def __missing__(self, value: Any) -> M:
        child = self[value] = (
            self._metric.labels(*value) if isinstance(value, tuple) else self._metric.labels(value)
        )
        return child


class Stage:
    """Times a block, also one that fails."""

    __slots__ = ("_histogram", "_start")

    def __init__(self, histogram: Histogram) -> None:
        self._histogram = histogram

    def __enter__(self) -> None:
        self._start = perf_counter()

    def __exit__(self, *_: object) -> None:
        self._histogram.observe(perf_counter() - self._start)


class TracedStage(Stage):
    """Times a block and makes it a span."""

    __slots__ = ("_span",)

    def __init__(self, histogram: Histogram, span: AbstractContextManager[object]) -> None:
        super().__init__(histogram)
        self._span = span

    def __enter__(self) -> None:
        self._span.__enter__()
        super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._span.__exit__(*error)


class Metrics:
    """Metrics of one worker; any worker can show the sum over all."""

    def __init__(self, spans: Spans | None = None) -> None:
        """``spans``: where there is tracing, makes every stage a span as well."""
        choose_numbers()
        self.registry = CollectorRegistry()
        self.at_scrape: list[Collector] = []
        """Collectors that are read at every scrape, once for all workers."""
        self._spans = spans
        self._requests()
        self._quality()
        self._state()

    def _requests(self) -> None:
        self.requests = self._counter(
            "requests_total", "Requests by endpoint and status", "endpoint", "status"
        )
        self.request_seconds = self._histogram(
            "request_seconds", "Time of requests", "endpoint", _REQUEST_BUCKETS
        )
        self.seconds = self._histogram(
            "stage_seconds", "Time of each stage", "stage", _STAGE_BUCKETS
        )
        self.in_flight = self._gauge("in_flight", "Requests under way", "livesum")
        self.shed = self._counter("shed_total", "Requests refused because too many were under way")
        self.events = self._counter("events_total", "Events by outcome", "outcome")
        self.impressions = self._counter(
            "impressions_total", "Logged responses by outcome", "outcome"
        )
        self._answers = Children(self.requests)
        self._times = Children(self.request_seconds)
        self._stages = Children(self.seconds, STAGES)
        Children(self.events, ("accepted", "duplicate", "rejected"))

    def _quality(self) -> None:
        self.degraded = self._counter("degraded_total", "Losses of quality", "reason")
        self.age = self._histogram(
            "feature_age_seconds",
            "Age of the rows read from the online store",
            "view",
            _AGE_BUCKETS,
        )
        self.candidates = self._histogram(
            "candidates", "Candidates of a request", "source", _CANDIDATE_BUCKETS
        )
        self.shown = self._counter(
            "shown_total",
            "Shown items; one that n sources proposed counts as 1/n for each",
            "source",
        )
        self._losses = Children(self.degraded, get_args(Degradation))
        self._ages = Children(self.age)
        self._sources = Children(self.candidates, SOURCES)
        self._shown = Children(self.shown, SOURCES)

    def _state(self) -> None:
        self.release = self._gauge(
            "release_info", "1: the release being served", "livemax", "release"
        )
        self.refused = self._counter(
            "release_refused_total", "Releases that were not taken into service"
        )
        self.breaker_state = self._gauge(
            "breaker_state",
            "State of a circuit breaker: 0 closed, 1 half open, 2 open",
            "livemax",
            "breaker",
        )
        self.index_recall = self._gauge(
            "index_recall", "Recall of the index against exact search", "livemin"
        )
        self.items_as_of = self._gauge(
            "items_as_of_seconds", "Moment of the item counters in use", "livemin"
        )
        self.spare_rows = self._gauge(
            "spare_rows", "Items that can still be added to the release", "livemin"
        )
        for gauge in (self.index_recall, self.items_as_of, self.spare_rows):
            gauge.set(UNKNOWN)
        self._breakers = Children(self.breaker_state)
        self._release: str | None = None

    def _counter(self, name: str, what: str, *labels: str) -> Counter:
        return Counter(f"{PREFIX}{name}", what, labels, registry=self.registry)

    def _histogram(self, name: str, what: str, label: str, buckets: Sequence[float]) -> Histogram:
        return Histogram(f"{PREFIX}{name}", what, [label], registry=self.registry, buckets=buckets)

    def _gauge(
        self, name: str, what: str, workers: Literal["livemax", "livemin", "livesum"], *labels: str
    ) -> Gauge:
        """``workers``: how the gauges of several workers are combined."""
        return Gauge(
            f"{PREFIX}{name}", what, labels, registry=self.registry, multiprocess_mode=workers
        )

    def stage(self, name: str) -> Stage:
        """Time a block as a stage; where there is tracing it is a span too."""
        if self._spans is None:
            return Stage(self._stages[name])
        return TracedStage(self._stages[name], self._spans(name))

    def answered(self, endpoint: str, status: int, seconds: float) -> None:
        """Count an answered request and observe its time."""
        self._answers[endpoint, status].inc()
        self._times[endpoint].observe(seconds)

    def observe_age(self, view: str, seconds: float) -> None:
        """Note the age of a feature row."""
        self._ages[view].observe(seconds)

    def degrade(self, reasons: Iterable[str]) -> None:
        """Note the losses of quality of a response."""
        for reason in reasons:
            self._losses[reason].inc()

    def proposed(self, bits: npt.NDArray[np.uint8]) -> None:
        """Note how many candidates of one request each source proposed.

        ``bits``: as in ``Candidates.sources``.
        """
        counts = np.bincount(bits, minlength=len(_PROPOSED)) @ _PROPOSED
        for source, count in zip(SOURCES, counts.tolist(), strict=True):
            self._sources[source].observe(count)

    def show(self, sources: Iterable[Sequence[str]]) -> None:
        """Note the sources of each item of a response."""
        credit: dict[str, float] = {}
        for names in sources:
            for name in names:
                credit[name] = credit.get(name, 0.0) + 1.0 / len(names)
        for name, share in credit.items():
            self._shown[name].inc(share)

    def serving(self, release_id: str) -> None:
        """Note which release is served from now on."""
        self.release.labels(release_id).set(1)
        if self._release not in (None, release_id):
            self.release.labels(self._release).set(0)
        self._release = release_id

    def items_read(self, timestamp: float | None) -> None:
        """Note when the item counters were read, epoch seconds; None: they are the release's."""
        self.items_as_of.set(timestamp or 0.0)

    def breaker(self, name: str, state: BreakerState) -> None:
        """Note a circuit breaker's state."""
        self._breakers[name].set(_BREAKER[state])
