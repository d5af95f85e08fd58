"""A straightforward server of the same models: every feature is read during the request."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
from feast import FeatureStore

from feature_repo import columns as c
from feature_repo.encoding import Vocabulary
from serving.online.features import activity_reader, user_reader
from serving.recommender.item_table import build_items
from serving.releases.release import Release


class Naive:
    """Feast for the user, FAISS for candidates, Feast for the candidates, then the ranker."""

    def __init__(self, release: Release, store: FeatureStore) -> None:
        self._release = release
        self._store = store
        spec = release.codec.spec
        views = [view.name for view in store.list_feature_views()]
        attributes = (
            [f"item_profile:{name}" for name in spec.item_attributes]
            if "item_profile" in views
            else []
        )
        times = [
            f"item_profile:{name}" for name in (c.AVAILABLE_FROM, c.AVAILABLE_UNTIL) if spec.items
        ]
        self._users = user_reader(store)
        self._item_features = [
            *(
                f"item_activity:{name}"
                for name in activity_reader(store, release.codec).names["item_activity"]
            ),
            *attributes,
            *(feature for feature in times if getattr(spec.items, feature.partition(":")[2], None)),
        ]

    def recommend(self, user: str, k: int) -> list[str]:
        """Return ids of items, best first."""
        release = self._release
        recommender = release.recommender
        now = time.time()

        # The user's features, their vector and candidates.
        columns, _ = self._users.read([{c.USER: user, c.REQUEST_TIME: int(now)}], now)
        users = release.reader.read(columns, np.array([now]))
        vectors = recommender.tower(users.context)
        candidates = recommender.retriever.retrieve(
            vectors, users.context.history, release.items, users.context.time
        )

        # The candidates' features as an item table of their own.
        ids = release.codec.items.names(candidates.item)
        rows = self._store.get_online_features(
            features=self._item_features, entity_rows=[{c.ITEM: item} for item in ids]
        ).to_dict()
        codec = replace(release.codec, items=Vocabulary(ids))
        table = build_items(
            codec, {name: _plain(values) for name, values in rows.items() if name != c.ITEM}
        )
        pairs = recommender.hydrator.pairs(users, vectors, candidates, release.items)[0]
        fetched = replace(pairs, item=np.arange(1, len(ids) + 1, dtype=np.int32))
        scores, _ = recommender.ranker.score(*fetched.join(table.rows))

        # The best that the user has not seen.
        seen = {
            item
            for name, lists in columns.items()
            if name.startswith(c.seen(""))
            for item in lists[0] or ()
        }
        best = [ids[row] for row in np.argsort(-scores, kind="stable")]
        return [item for item in best if item not in seen][:k]


def _plain(values: list[object]) -> list[object]:
    """Return times as epoch seconds, as the item table takes them."""
    return [value.timestamp() if hasattr(value, "timestamp") else value for value in values]
