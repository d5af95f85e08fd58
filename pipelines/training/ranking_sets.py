"""Rows that rankers learn from: past requests, their candidates, and the events that followed.

A request's positives are the events that its user had with the next item that they interacted
with. Its negatives are the candidates that the retrieval stage proposed beside it, as in serving.
Other items that the user interacts with within a day are neither, and are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from feature_repo import columns as c
from feature_repo.arrays import BoolArray, Float32Array, Int32Array, Int64Array
from feature_repo.progress import Progress
from feature_repo.workspace import Workspace
from pipelines.features.point_in_time import DAY_S, PointInTime
from pipelines.training.config import SampleConfig
from pipelines.training.past_requests import (
    InteractionHistory,
    Requests,
    replay,
    requests_from,
)
from pipelines.training.split import Split, epoch_seconds, too_few_events
from ranking.data import RankingData
from ranking.row_schema import RowSchema
from serving.recommender.candidates import Candidates
from serving.recommender.codec import Codec
from serving.recommender.filters import FilterRules, Filters, RequestRules
from serving.recommender.hydrate import Hydrator
from serving.recommender.item_table import ItemTable
from serving.recommender.users import UserBatch
from serving.releases.release import Retrieval

ATTRIBUTION_S = float(DAY_S)


def row_schema(codec: Codec) -> RowSchema:
    """Return the ranker's columns and heads for a codec."""
    types = codec.spec.events.types
    return RowSchema(
        numeric=codec.numeric,
        categorical=tuple(codec.categorical),
        cardinalities=tuple(codec.categorical.values()),
        heads=tuple(types),
        relevant=tuple(kind.positive for kind in types.values()),
        head_weights=tuple(kind.weight for kind in types.values()),
        pair_columns=codec.pair_width,
    )


@dataclass(frozen=True)
class _Part:
    """Which requests one set takes.

    Attributes:
        name: shown as progress.
        stream: number of its random stream.
        start: epoch seconds of the earliest request.
        stop: epoch seconds after the latest request; nothing from then on is known.
        requests: maximum number of requests that count.
        negatives: maximum negatives of a request; None keeps every candidate.
        positive_only: only requests with a positive event count.

    """

    name: str
    stream: int
    start: float
    stop: float
    requests: int
    negatives: int | None = None
    positive_only: bool = False


@dataclass(frozen=True)
class _Rows:
    """Ranker rows of a batch: ``[n, F]``, ``[n, C]``, ``[n, T]``, and their requests ``[n]``."""

    numeric: Float32Array
    categorical: Int32Array
    labels: Float32Array
    request: Int64Array


class RankingSets:
    """Builds the sets that the rankers of one candidate generator learn from and are judged by."""

    def __init__(
        self,
        workspace: Workspace,
        retrieval: Retrieval,
        events: pd.DataFrame,
        split: Split,
        *,
        sample: SampleConfig,
        progress: Progress,
    ) -> None:
        """Take the whole log, in order of time, and where its parts begin."""
        self.retrieval = retrieval
        self.split = split
        self.sample = sample
        self.progress = progress
        self.features = PointInTime(workspace)
        self.events = events
        self.time = epoch_seconds(events[c.TIMESTAMP])
        self.first_contact = ~events.duplicated([c.USER, c.ITEM]).to_numpy()
        self.interactions = InteractionHistory(events, retrieval.codec)
        self.hydrator = Hydrator(retrieval.vectors, retrieval.codec)
        self.filters = Filters(FilterRules(), retrieval.items)

    def train(self) -> RankingData:
        """Return rows to learn from, with a maximum number of negatives per request."""
        return self._build(
            _Part(
                name="train",
                stream=5,
                start=self.split.ranker,
                stop=self.split.calibrate,
                requests=self.sample.train_requests,
                negatives=self.sample.negatives,
            )
        )

    def calibrate(self) -> RankingData:
        """Return rows for early stopping and for the calibration of probabilities."""
        return self._build(
            _Part(
                name="calibrate",
                stream=9,
                start=self.split.calibrate,
                stop=self.split.selection,
                requests=self.sample.calibrate_requests,
            )
        )

    def selection(self) -> RankingData:
        """Return rows by which models are compared: every candidate of each request.

        Orders are judged by requests with a positive event, which alone count towards the
        maximum; probabilities are judged by all requests.
        """
        return self._build(
            _Part(
                name="selection",
                stream=6,
                start=self.split.selection,
                stop=self.split.test,
                requests=self.sample.selection_requests,
                positive_only=True,
            )
        )

    def test(self, requests: int) -> RankingData:
        """Return rows like those of ``selection``, from the test part."""
        return self._build(
            _Part(
                name="test",
                stream=4,
                start=self.split.test,
                stop=np.inf,
                requests=requests,
                positive_only=True,
            )
        )

    def _build(self, part: _Part) -> RankingData:
        """Return the rows of sampled requests of a part."""
        generator = np.random.default_rng([self.sample.seed, part.stream])
        rows = self._sampled_events(part, generator)
        requests = requests_from(self.events.iloc[rows], self.retrieval.codec)
        owner = pd.factorize(requests.user)[0].astype(np.int64)

        batches = list(self._batches(part, requests, generator))
        request = np.concatenate([batch.request for batch in batches]).astype(np.int64)
        return RankingData(
            np.concatenate([batch.numeric for batch in batches]),
            np.concatenate([batch.categorical for batch in batches]),
            np.concatenate([batch.labels for batch in batches]),
            request,
            user=owner[request],
        )

    def _sampled_events(self, part: _Part, generator: np.random.Generator) -> Int64Array:
        """Return the rows of the log that become requests, ascending."""
        inside = (self.time >= part.start) & (self.time < part.stop) & self.first_contact
        rows = generator.permutation(np.flatnonzero(inside))

        # Draw in random order until enough requests count.
        counts = np.ones(len(rows), dtype=np.bool_)
        if part.positive_only:
            counts = self.events[c.POSITIVE].to_numpy()[rows]
        if not counts.any():
            raise too_few_events(f"ranking rows: {part.name}")
        return np.sort(rows[np.cumsum(counts) <= part.requests])

    def _batches(
        self, part: _Part, requests: Requests, generator: np.random.Generator
    ) -> Iterator[_Rows]:
        """Yield the rows of each batch of requests."""
        replayed = replay(
            requests,
            features=self.features,
            codec=self.retrieval.codec,
            items=self.retrieval.items,
            interactions=self.interactions,
        )
        done = 0
        for rows, users, items in replayed:
            yield self._rows_of(part, requests, rows, users=users, items=items, generator=generator)
            done += len(rows)
            self.progress(f"ranking rows: {part.name}", done, len(requests))

    def _rows_of(
        self,
        part: _Part,
        requests: Requests,
        rows: Int64Array,
        *,
        users: UserBatch,
        items: ItemTable,
        generator: np.random.Generator,
    ) -> _Rows:
        """Return the rows of requests ``rows``, whose users and items were as given."""
        batch = requests[rows]
        vectors = self.retrieval.tower(users.context)
        candidates = self.candidates(vectors, users, items)

        labels, ambiguous = next_labels(self.interactions, batch, candidates, part.stop)
        keep = self._allowed(candidates, batch, users, items) & ~ambiguous
        if part.negatives is not None:
            keep &= _sampled(candidates, labels, part.negatives, generator)

        numeric, categorical = self.hydrator.hydrate(users, vectors, candidates, items)
        return _Rows(numeric[keep], categorical[keep], labels[keep], rows[candidates.request[keep]])

    def candidates(self, vectors: Float32Array, users: UserBatch, items: ItemTable) -> Candidates:
        """Return what serving would propose to users with vectors float32 ``[B, D]``."""
        time = users.context.time
        prefilters = [self.filters.prefilter(items, RequestRules(1), float(at)) for at in time]
        return self.retrieval.retriever.retrieve(
            vectors, users.context.history, items, time, prefilters=prefilters
        )

    def _allowed(
        self, candidates: Candidates, requests: Requests, users: UserBatch, items: ItemTable
    ) -> BoolArray:
        """Return which candidates were available and unseen at their request, bool ``[n]``."""
        allowed = np.ones(len(candidates.item), dtype=np.bool_)
        for row, time in enumerate(requests.time):
            part = slice(candidates.offsets[row], candidates.offsets[row + 1])
            codes = candidates.item[part]
            allowed[part] = self.filters.allowed(
                items, RequestRules(1), seen=users.seen[row], time=float(time), codes=codes
            )
        return allowed


def next_labels(
    interactions: InteractionHistory, requests: Requests, candidates: Candidates, stop: float
) -> tuple[Float32Array, BoolArray]:
    """Return the labels of candidates, and which are ambiguous.

    A candidate is ambiguous if its user soon interacts with it, but with another item first.

    Args:
        interactions: what each user did.
        requests: the B requests.
        candidates: n candidates of the requests.
        stop: epoch seconds; what happened from then on is not known yet.

    Returns:
        labels float32 ``[n, T]`` and ambiguous bool ``[n]``.

    """
    labels = np.zeros((len(candidates.item), len(interactions.types)), dtype=np.float32)
    ambiguous = np.zeros(len(candidates.item), dtype=np.bool_)
    for row in range(len(requests)):
        part = slice(candidates.offsets[row], candidates.offsets[row + 1])
        codes = candidates.item[part]
        start = float(requests.time[row])
        soon = interactions.between(requests.user[row], start, min(start + ATTRIBUTION_S, stop))

        right = codes == requests.item[row]
        ambiguous[part] = np.isin(codes, soon.item) & ~right
        if right.any():
            types = soon.type[soon.item == requests.item[row]]
            labels[part.start + int(np.argmax(right)), types] = 1.0
    return labels, ambiguous


def _sampled(
    candidates: Candidates,
    labels: Float32Array,
    negatives: int,
    generator: np.random.Generator,
) -> BoolArray:
    """Return which candidates to keep: positives, and up to ``negatives`` others per request."""
    positive = np.asarray(labels.any(axis=1))
    draw = generator.random(len(positive))
    draw[positive] = -1.0  # before all others

    keep = np.zeros(len(positive), dtype=np.bool_)
    for start, stop in zip(candidates.offsets[:-1], candidates.offsets[1:], strict=True):
        count = negatives + int(positive[start:stop].sum())
        keep[start + np.argsort(draw[start:stop], kind="stable")[:count]] = True
    return keep
