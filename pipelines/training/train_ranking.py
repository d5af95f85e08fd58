"""Builds the ranker's training sets from the retrieval stage's own candidates, and trains the rankers.

A request's positives are the events that its user really had with the item next taken up; its
negatives are the candidates that the retrieval stage proposed beside it, as serving would have.
Other items that the user takes up within a day are neither: they are left out.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from feature_repo import columns as c
from feature_repo.encoding import Codes
from feature_repo.workspace import MissingStage, Workspace, read_json, write_json
from pipelines.features.point_in_time import DAY_S, PointInTime
from pipelines.ingest.ingest import read_events
from pipelines.training.past_requests import Journal, Requests, replay, requests_from
from pipelines.training.split import Split, epoch_seconds, too_few_events
from ranking.config import RankerConfig, WarmStart
from ranking.data import RankingData, RowSchema
from ranking.training.train_rankers import RankerReport, train_rankers
from retrieval.towers.training import Progress
from serving.recommender.candidates import Candidates
from serving.recommender.codec import Codec
from serving.recommender.filters import FilterRules, Filters, RequestRules
from serving.recommender.hydrate import Hydrator
from serving.recommender.item_table import ItemTable
from serving.releases.release import Retrieval, load_retrieval

ATTRIBUTION_S = float(DAY_S)
SAMPLE = "sample.json"
"""File beside the models: which requests the rankers' sets took."""


@dataclass(frozen=True)
class SampleConfig:
    """How many requests each part takes, and how many negatives a training request keeps."""

    train_requests: int = 6_000
    calibrate_requests: int = 1_500
    choose_requests: int = 1_500
    negatives: int = 60
    seed: int = 7


def row_schema(codec: Codec) -> RowSchema:
    """Return the ranker's columns and heads for a codec."""
    types = codec.spec.events.types
    return RowSchema(
        numeric=codec.numeric,
        categorical=tuple(codec.categorical),
        cardinalities=tuple(codec.categorical.values()),
        heads=tuple(types),
        wanted=tuple(kind.positive for kind in types.values()),
        head_weights=tuple(kind.weight for kind in types.values()),
    )


def train_ranking(
    workspace: Workspace,
    events: pd.DataFrame,
    split: Split,
    sample: SampleConfig,
    config: RankerConfig,
    log: Any,
    progress: Progress,
    start: WarmStart | None = None,
) -> RankerReport:
    """Train every kind of ranker in ``models/ranking`` and return their table; the best is named in it.

    ``start``: an earlier ranker; one of its kind goes on from it.
    """
    retrieval = load_retrieval(workspace.models / "retrieval")
    write_json(workspace.models / SAMPLE, asdict(sample))
    sets = RankingSets(workspace, retrieval, events, split, sample, progress)
    parts, schema = (sets.train(), sets.calibrate(), sets.choose()), row_schema(retrieval.codec)
    return train_rankers(*parts, schema, workspace.models / "ranking", config, log, start=start)


class RankingSets:
    """Builds the sets that rankers of one candidate generator are trained from, calibrated on and chosen by."""

    def __init__(
        self,
        workspace: Workspace,
        retrieval: Retrieval,
        events: pd.DataFrame,
        split: Split,
        sample: SampleConfig,
        progress: Progress,
    ) -> None:
        """Take the whole log, in order of time, and where its slices begin."""
        self.retrieval, self.split, self.sample, self.progress = retrieval, split, sample, progress
        self.features = PointInTime(workspace)
        self.events = events
        self.time = epoch_seconds(events[c.TIMESTAMP])
        self.first = ~events.duplicated([c.USER, c.ITEM]).to_numpy()
        self.journal = Journal(events, retrieval.codec)
        self.hydrator = Hydrator(retrieval.vectors)
        self.filters = Filters(FilterRules(), retrieval.items)

    def train(self) -> RankingData:
        """Return rows to learn from, at most so many negatives a request."""
        return self._build(
            "train",
            self.split.ranker,
            self.split.calibrate,
            self.sample.train_requests,
            self.sample.negatives,
        )

    def calibrate(self) -> RankingData:
        """Return rows that say when to stop, and that probabilities are calibrated on."""
        return self._build(
            "calibrate",
            self.split.calibrate,
            self.split.choose,
            self.sample.calibrate_requests,
            None,
        )

    def choose(self) -> RankingData:
        """Return rows that models are compared by: every candidate of so many requests that ended well, and others.

        Orders are judged by requests that ended well, probabilities by all, since all are asked
        for.
        """
        return self._build(
            "choose",
            self.split.choose,
            self.split.test,
            self.sample.choose_requests,
            None,
            wanted=True,
        )

    def test(self, requests: int) -> RankingData:
        """Return rows like those of ``choose``, of the time after all of these."""
        return self._build("test", self.split.test, np.inf, requests, None, wanted=True)

    def _build(
        self,
        name: str,
        start: float,
        stop: float,
        count: int,
        negatives: int | None,
        wanted: bool = False,
    ) -> RankingData:
        """Return the rows of sampled requests in ``[start, stop)``; ``negatives`` None keeps every candidate.

        ``count``: how many requests, at most; ``wanted``: only those that ended well are counted.
        """
        rows = np.flatnonzero((self.time >= start) & (self.time < stop) & self.first)
        generator = np.random.default_rng([self.sample.seed, len(name)])
        rows = generator.permutation(rows)
        counted = (
            self.events[c.POSITIVE].to_numpy()[rows]
            if wanted
            else np.ones(len(rows), dtype=np.bool_)
        )
        if not counted.any():
            raise too_few_events(f"ranking rows: {name}")
        rows = np.sort(rows[np.cumsum(counted) <= count])
        requests = requests_from(self.events.iloc[rows], self.retrieval.codec)
        owner = pd.factorize(requests.user)[0].astype(np.int64)
        parts = []
        done = 0
        past = replay(
            requests, self.features, self.retrieval.codec, self.retrieval.items, self.journal
        )
        for places, users, items in past:
            vectors = self.retrieval.tower(users.context)
            time = users.context.time
            narrow = [self.filters.narrow(items, RequestRules(1), float(t)) for t in time]
            found = self.retrieval.retriever.retrieve(
                vectors, users.context.history, items, time, narrow
            )
            allowed = self._allowed(found, requests[places], users.seen, items)
            labels, ambiguous = next_labels(self.journal, requests[places], found, stop)
            keep: npt.NDArray[np.bool_] = allowed & ~ambiguous
            if negatives is not None:
                keep &= _sampled(found, labels, negatives, generator)
            numeric, categorical = self.hydrator.hydrate(users, vectors, found, items)
            parts.append(
                (numeric[keep], categorical[keep], labels[keep], places[found.request[keep]])
            )
            done += len(places)
            self.progress(f"ranking rows: {name}", done, len(requests))
        numeric, categorical, labels, request = (
            np.concatenate(column) for column in zip(*parts, strict=True)
        )
        return RankingData(
            numeric, categorical, labels, request.astype(np.int64), user=owner[request]
        )

    @staticmethod
    def _allowed(
        found: Candidates, requests: Requests, seen: list[dict[str, Codes]], items: ItemTable
    ) -> npt.NDArray[np.bool_]:
        allowed = np.ones(len(found.item), dtype=np.bool_)
        for row in range(len(requests)):
            part = slice(found.offsets[row], found.offsets[row + 1])
            met = np.concatenate([*seen[row].values(), np.zeros(0, dtype=np.int32)])
            allowed[part] = items.available(float(requests.time[row]))[found.item[part]]
            allowed[part] &= ~np.isin(found.item[part], met)
        return allowed


def trained_sets(
    workspace: Workspace, sample: SampleConfig | None, progress: Progress
) -> RankingSets:
    """Return what builds the sets of the models that are trained, released or not; ``sample`` None: those of training.

    Raises:
        MissingStage: nothing is trained yet.

    """
    if not (workspace.models / "ranking" / "report.json").is_file():
        raise MissingStage(f"no trained models in {workspace.models}: run 'funnel train' first")
    if sample is None:
        if not (workspace.models / SAMPLE).is_file():
            raise MissingStage(
                f"{workspace.models} is of an earlier version: run 'funnel train' again"
            )
        sample = SampleConfig(**read_json(workspace.models / SAMPLE))
    retrieval = load_retrieval(workspace.models / "retrieval")
    split = Split(**read_json(workspace.models / "split.json"))
    return RankingSets(workspace, retrieval, read_events(workspace), split, sample, progress)


def next_labels(
    journal: Journal, requests: Requests, found: Candidates, stop: float
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Return labels float32 ``[n, T]`` of candidates and which are ambiguous (taken up soon, but not next).

    What happened from ``stop`` on (epoch seconds) is not known yet.
    """
    labels = np.zeros((len(found.item), len(journal.types)), dtype=np.float32)
    ambiguous = np.zeros(len(found.item), dtype=np.bool_)
    for row in range(len(requests)):
        part = slice(found.offsets[row], found.offsets[row + 1])
        start = float(requests.time[row])
        _, soon, how = journal.between(requests.user[row], start, min(start + ATTRIBUTION_S, stop))
        codes = found.item[part]
        ambiguous[part] = np.isin(codes, soon) & (codes != requests.item[row])
        place = np.flatnonzero(codes == requests.item[row])
        if len(place):
            labels[part.start + place[0], how[soon == requests.item[row]]] = 1.0
    return labels, ambiguous


def _sampled(
    found: Candidates,
    labels: npt.NDArray[np.float32],
    negatives: int,
    generator: np.random.Generator,
) -> npt.NDArray[np.bool_]:
    """Keep every positive and at most so many other candidates of each request."""
    positive = np.asarray(labels.any(axis=1))
    draw = generator.random(len(positive))
    draw[positive] = -1.0
    keep = np.zeros(len(positive), dtype=np.bool_)
    for first, last in zip(found.offsets[:-1], found.offsets[1:], strict=True):
        keep[
            first
            + np.argsort(draw[first:last], kind="stable")[
                : negatives + int(positive[first:last].sum())
            ]
        ] = True
    return keep
