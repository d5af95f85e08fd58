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
from feature_repo.encoding import Floats
from feature_repo.views import ONLINE_USERS
from feature_repo.workspace import Workspace
from pipelines.evaluation.evaluate import HeldOut, popularity
from pipelines.evaluation.evaluated_models import simple_models, towers
from pipelines.evaluation.metrics import Ranks
from pipelines.evaluation.replayed_requests import Lists, Model, replay_requests
from pipelines.features.point_in_time import DAY_S, PointInTime, Times
from pipelines.ingest.ingest import read_events
from pipelines.ingest.parsing import QUARANTINE_COLUMNS
from pipelines.training.past_requests import InteractionHistory, requests_from
from pipelines.training.train_ranking import trained_sets
from ranking.data import RankingData
from serving.recommender.candidates import SOURCES
from serving.recommender.filters import RequestRules
from serving.releases.release import Release


def quarantined(workspace: Workspace) -> pd.DataFrame:
    """Return every row that ingest could not use, with its file, line and reason."""
    found = [
        pq.read_table(path).to_pandas()
        for path in sorted((workspace.ingest / "quarantine").glob("*.parquet"))
    ]
    return pd.concat(
        [pd.DataFrame(columns=QUARANTINE_COLUMNS), *(part for part in found if len(part))]
    )


def ages(workspace: Workspace, table: str, at: pd.Timestamp) -> npt.NDArray[np.float64]:
    """Return how many days old the newest row of each user or item in an offline table is at a time.

    Rows that were not known by then do not count.
    """
    key = c.USER if table.startswith("user") else c.ITEM
    rows = ds.dataset(workspace.features / table).to_table([key, c.EVENT_TIMESTAMP]).to_pandas()
    newest = rows[rows[c.EVENT_TIMESTAMP] <= at].groupby(key)[c.EVENT_TIMESTAMP].max()
    return np.asarray((at - newest).dt.total_seconds() / DAY_S, dtype=np.float64)


def user_features(features: PointInTime, users: npt.NDArray[Any], times: Times) -> pd.DataFrame:
    """Return what serving would have known of users ``[n]`` just before ``times`` (epoch seconds), one row each."""
    parts = [
        pd.DataFrame(dict(columns)) for _, columns in features.users(ONLINE_USERS, users, times)
    ]
    return pd.concat(parts, ignore_index=True)


def missing_shares(rows: pd.DataFrame) -> pd.Series:
    """Return the share of each column's values that are missing: none, not a number, or an empty list."""

    def missing(value: Any) -> bool:
        return value is None or (len(value) == 0 if isinstance(value, list) else value != value)

    return rows.map(missing).mean()


@dataclass(frozen=True)
class Retrieved:
    """``n`` events of the test slice, replayed through retrieval alone.

    ``vectors`` float32 ``[n, D]``: the users' just before; ``ranks``: the right item's place in
    the order of each model; ``proposed`` bool ``[n, S]``: which of the candidate ``sources``
    proposed it.
    """

    vectors: Floats
    ranks: dict[str, Ranks]
    sources: tuple[str, ...]
    proposed: npt.NDArray[np.bool_]


def replay_retrieval(workspace: Workspace, release: Release, limit: int) -> Retrieved:
    """Replay events of the test slice, evenly spaced, ``limit`` at most; models are towers and popularity."""
    held_out = HeldOut.of(read_events(workspace), release, limit)
    interactions, requests = (
        InteractionHistory(held_out.events, release.codec),
        requests_from(held_out.chosen, release.codec),
    )
    models: dict[str, Model] = {
        "two_tower": towers(release),
        **simple_models(popularity(release, held_out.known)),
    }
    lists: dict[str, list[Lists]] = {name: [] for name in models}
    vectors, proposed = [], []
    for batch in replay_requests(release, PointInTime(workspace), requests, interactions):
        context = batch.users.context
        vectors.append(release.recommender.tower(context))
        filters = release.recommender.filters
        prefilters = [
            filters.prefilter(batch.items, RequestRules(1), float(time)) for time in context.time
        ]
        found = release.retrieval.retriever.retrieve(
            vectors[-1], context.history, batch.items, context.time, prefilters
        )
        right = found.item == batch.requests.item[found.request]
        bits = np.zeros(len(context), dtype=np.uint8)
        bits[found.request[right]] = found.sources[right]
        proposed.append((bits[:, None] >> np.arange(len(SOURCES)) & 1).astype(np.bool_))
        for name, model in models.items():
            lists[name].append(model(batch))
    ranks = {name: Lists.join(parts).ranks for name, parts in lists.items()}
    return Retrieved(np.concatenate(vectors), ranks, SOURCES, np.concatenate(proposed))


def held_out_rows(workspace: Workspace, requests: int) -> RankingData:
    """Return all candidates of at most so many requests of the test slice, as rankers see them."""
    return trained_sets(workspace, None, lambda *_: None).test(requests)
