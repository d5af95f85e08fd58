"""A smoke test of a release: made-up users must get lists that could be shown."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from feature_repo import columns as c
from feature_repo.arrays import Float32Array
from feature_repo.dataset import AttributeKind
from feature_repo.encoding import AttributeEncoder
from ranking.data import spaced_rows
from ranking.rows import PairRows
from serving.recommender.codec import Codec
from serving.recommender.filters import RequestRules
from serving.recommender.results import Ranked, Recommendation
from serving.recommender.users import UserBatch
from serving.releases.release import Release

_K = 20
_SCORED = 1_000
_UNIT_WITHIN = 1e-3
_UNKNOWN = "\N{REPLACEMENT CHARACTER}nobody"


def smoke_test(release: Release) -> str | None:
    """Recommend twice for made-up users, score and explain sampled items; return what is wrong."""
    now = time.time()
    columns = made_up_users(release.codec, now)
    users = release.reader.read(columns, np.full(len(columns[c.USER]), now))
    requests = [RequestRules(_K)] * len(users)
    lists, ranked, vectors = release.recommender.recommend_ranked(users, requests, release.items)
    again = release.recommender.recommend(users, requests, release.items)
    return (
        _bad_functions(release)
        or _bad_users(vectors, release.retrieval.vectors.shape[1])
        or _bad_item_tower(release)
        or _bad_lists(release, users, lists, now)
        or _bad_scores(release, users, ranked)
        or (
            None
            if all(map(_equal, lists, again))
            else "the same request gets another list the second time"
        )
    )


def _bad_functions(release: Release) -> str | None:
    """Say which on-demand function cannot be loaded here, as where a module is missing."""
    for view in release.codec.on_demand:
        try:
            view.function.load()
        except Exception as error:  # noqa: BLE001 - whatever the text does
            return f"its on-demand view '{view.name}' cannot be loaded: {error}"
    return None


def made_up_users(codec: Codec, now: float) -> dict[str, list[Any]]:
    """Return feature columns of users with no, few and all features, and with the highest codes."""
    items = codec.items.values
    users = codec.users.values
    some = [items[row] for row in spaced_rows(len(items), c.HISTORY_LENGTH)]
    names = [_UNKNOWN, *users[:1], *users[-1:], _UNKNOWN]
    full = len(names) - 2
    histories: list[list[str] | None] = [None] * len(names)
    histories[1], histories[full], histories[-1] = some[-1:], some, [_UNKNOWN, items[-1]]
    columns: dict[str, list[Any]] = {
        c.USER: names,
        c.HISTORY_ITEMS: histories,
        c.HISTORY_TIMES: [
            of and [int(now) - 60 * n for n in range(len(of), 0, -1)] for of in histories
        ],
        c.CATEGORIES: [of and codec.categories.values[-3:] for of in histories],
    }
    columns[c.CATEGORY_SHARES] = [of and [1.0 / len(of)] * len(of) for of in columns[c.CATEGORIES]]
    numbers = [*codec.user_counts, c.FIRST_EVENT_AT, c.LAST_EVENT_AT]
    columns |= {
        name: [None if of is None else float(len(of)) for of in histories] for name in numbers
    }
    columns |= {
        c.seen(kind): [of and of[::2] for of in histories] for kind in codec.spec.event_types
    }
    for name, kind in codec.user_attributes.kinds.items():
        columns[name] = [of and _value(codec.user_attributes, name, kind) for of in histories]
    return columns


def _value(encoder: AttributeEncoder, name: str, kind: AttributeKind) -> Any:
    if kind == "numeric":
        return 1.0
    known = encoder.vocabularies[name].values[-1:]
    return known if kind == "multi_categorical" else next(iter(known), None)


def _bad_users(vectors: Float32Array, dimension: int) -> str | None:
    if vectors.shape[1:] != (dimension,):
        return f"its user tower gives {vectors.shape[1:]} values, its item vectors have {dimension}"
    if not np.allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=_UNIT_WITHIN):
        return "its user tower returns vectors that are not of unit length"
    return None


def _bad_item_tower(release: Release) -> str | None:
    """Ask for a sample of items, and for one with the highest codes, as if they were new."""
    items = release.items
    encoder = release.codec.item_attributes
    encoded = items.encoded[spaced_rows(len(items), _SCORED)]
    codes = encoded.codes.copy()
    numbers = release.codec.item_tower_numbers(encoded.numbers)
    codes[-1] = encoder.table_size - 1
    raw = release.retrieval.delta.tower(codes, numbers)
    if raw.shape != (len(codes), release.retrieval.vectors.shape[1]) or not np.isfinite(raw).all():
        return "its item tower returns NaN, or vectors of another dimension"
    return None


def _bad_lists(
    release: Release, users: UserBatch, lists: list[Recommendation], now: float
) -> str | None:
    for row, result in enumerate(lists):
        allowed = release.recommender.filters.allowed(
            release.items, RequestRules(_K), seen=users.seen[row], time=now
        )
        if "ranker_unavailable" in result.degraded:
            return "its ranker fails, or its scores contain NaN"
        if not np.isfinite(result.scores).all():
            return "recommendations contain NaN"
        if len(np.unique(result.items)) < len(result.items) or not allowed[result.items].all():
            return "it recommends an item twice, or one that the rules forbid"
        if not len(result.items) and allowed.any():
            return "it recommends nothing, though items are allowed"
    return None


def _bad_scores(release: Release, users: UserBatch, ranked: Ranked) -> str | None:
    """Score a sample of the catalogue beside the last user, and explain the first row."""
    items = release.items
    ranker = release.recommender.ranker
    sample = (spaced_rows(len(items) - 1, _SCORED) + 1).astype(np.int32)
    pair = np.zeros((len(sample), ranker.schema.pair_columns), dtype=np.float32)
    rows = PairRows(pair, users.rows.numeric[-1], users.rows.categorical[-1], sample).join(
        items.rows
    )
    scores, probabilities = ranker.score(*rows)
    every = np.concatenate([ranked.probabilities.ravel(), probabilities.ravel()])
    if not np.isfinite(scores).all() or not ((every >= 0.0) & (every <= 1.0)).all():
        return "its ranker returns NaN, or probabilities outside of 0 to 1"
    contributions = ranker.explain(rows[0][0], rows[1][0])
    if not np.isfinite([value for _, value in contributions]).all():
        return "its ranker cannot explain a score"
    return None


def _equal(one: Recommendation, other: Recommendation) -> bool:
    return np.array_equal(one.items, other.items) and np.array_equal(one.scores, other.scores)
