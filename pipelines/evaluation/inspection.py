"""What a person looks at in a finished workspace: the tables behind the notebooks' figures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from feature_repo import columns as c
from feature_repo.arrays import BoolArray, Float32Array, Float64Array
from feature_repo.declarations.views import ONLINE_USERS
from feature_repo.workspace import Workspace
from pipelines.evaluation.evaluated_models import simple_models, two_tower_search
from pipelines.evaluation.held_out import HeldOut
from pipelines.evaluation.metrics import Ranks
from pipelines.evaluation.replayed_requests import Lists, Model, PastRequests, replay_requests
from pipelines.features.point_in_time import DAY_S, PointInTime
from pipelines.ingest.ingested import read_events
from pipelines.ingest.quarantine import QUARANTINE_COLUMNS
from pipelines.training.train_ranking import trained_sets
from ranking.data import RankingData
from serving.recommender.candidates import SOURCES
from serving.recommender.filters import RequestRules
from serving.releases.release import Release


def quarantined(workspace: Workspace) -> pd.DataFrame:
    """Return every row that ingest could not use, with its file, line and reason."""
    paths = sorted((workspace.ingest / "quarantine").glob("*.parquet"))
    tables = [pq.read_table(path).to_pandas() for path in paths]
    empty = pd.DataFrame(columns=QUARANTINE_COLUMNS)
    return pd.concat([empty, *(table for table in tables if len(table))])


def ages(workspace: Workspace, table: str, at: pd.Timestamp) -> Float64Array:
    """Return the age in days, at a time, of each user's or item's newest row in an offline table.

    Rows that were not known by then do not count.
    """
    key = c.USER if table.startswith("user") else c.ITEM
    rows = ds.dataset(workspace.features / table).to_table([key, c.EVENT_TIMESTAMP]).to_pandas()
    newest = rows[rows[c.EVENT_TIMESTAMP] <= at].groupby(key)[c.EVENT_TIMESTAMP].max()
    return np.asarray((at - newest).dt.total_seconds() / DAY_S, dtype=np.float64)


def user_features(
    features: PointInTime, users: npt.NDArray[Any], times: Float64Array
) -> pd.DataFrame:
    """Return what serving would have known of users just before some times, one row each.

    Args:
        features: historical feature reads.
        users: ids ``[n]``.
        times: epoch seconds, float64 ``[n]``.

    """
    parts = [
        pd.DataFrame(dict(columns)) for _, columns in features.users(ONLINE_USERS, users, times)
    ]
    return pd.concat(parts, ignore_index=True)


def missing_shares(rows: pd.DataFrame) -> pd.Series:
    """Return the share of each column's values that are missing: None, NaN, or an empty list."""

    def missing(value: Any) -> bool:
        return value is None or (len(value) == 0 if isinstance(value, list) else value != value)

    return rows.map(missing).mean()


@dataclass(frozen=True)
class Retrieved:
    """``n`` test events, replayed through retrieval alone.

    Attributes:
        vectors: the users' vectors just before, float32 ``[n, D]``.
        ranks: the right item's rank in the order of each model.
        sources: the S candidate sources.
        proposed: which of them proposed the right item, bool ``[n, S]``.

    """

    vectors: Float32Array
    ranks: dict[str, Ranks]
    sources: tuple[str, ...]
    proposed: BoolArray


def replay_retrieval(workspace: Workspace, release: Release, limit: int) -> Retrieved:
    """Replay at most ``limit`` test events, evenly spaced, through towers and simple models."""
    held_out = HeldOut.of(read_events(workspace), release, limit)
    models: dict[str, Model] = {
        "two_tower": two_tower_search(release),
        **simple_models(held_out.popularity()),
    }
    lists: dict[str, list[Lists]] = {name: [] for name in models}
    vectors = []
    proposed = []
    replayed = replay_requests(
        release, PointInTime(workspace), held_out.requests, held_out.interactions
    )
    for batch in replayed:
        vectors.append(release.recommender.tower(batch.users.context))
        proposed.append(_proposing_sources(release, batch, vectors[-1]))
        for name, model in models.items():
            lists[name].append(model(batch))

    return Retrieved(
        vectors=np.concatenate(vectors),
        ranks={name: Lists.join(parts).ranks for name, parts in lists.items()},
        sources=SOURCES,
        proposed=np.concatenate(proposed),
    )


def _proposing_sources(release: Release, batch: PastRequests, vectors: Float32Array) -> BoolArray:
    """Return which sources proposed each request's right item, bool ``[B, S]``."""
    context = batch.users.context
    filters = release.recommender.filters
    prefilters = [
        filters.prefilter(batch.items, RequestRules(1), float(time)) for time in context.time
    ]
    candidates = release.retrieval.retriever.retrieve(
        vectors, context.history, batch.items, context.time, prefilters=prefilters
    )

    # Bit s of a candidate's sources is set if source s proposed it.
    right = candidates.item == batch.requests.item[candidates.request]
    bits = np.zeros(len(context), dtype=np.uint8)
    bits[candidates.request[right]] = candidates.sources[right]
    return (bits[:, None] >> np.arange(len(SOURCES)) & 1).astype(np.bool_)


def held_out_rows(workspace: Workspace, requests: int) -> RankingData:
    """Return all candidates of at most ``requests`` test requests, as rankers see them."""
    return trained_sets(workspace, None, lambda *_: None).test(requests)
