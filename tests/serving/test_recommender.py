"""The funnel as one function of arrays.

Full lists whatever is missing or broken, and a word that says so.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from feature_repo import columns as c
from ranking.config import DcnConfig, TreeConfig
from ranking.models.scorer import CalibratedRanker
from ranking.training.train_rankers import RankerSets, train_rankers
from retrieval.index import build_index
from serving.recommender.candidates import CandidateQuota, Retriever
from serving.recommender.codec import Codec
from serving.recommender.filters import FilterRules, RequestRules
from serving.recommender.hydrate import Hydrator
from serving.recommender.recommender import Recommender
from serving.recommender.results import Recommendation
from serving.recommender.users import UserBatch, UserReader
from tests.support.tiny_release import ITEMS, NOW, QUOTA, Tiny, random_rows

K = 10


def recommender(tiny: Tiny, **changes: Any) -> Recommender:
    retrieval = tiny.release.retrieval
    parts = {
        "tower": retrieval.tower,
        "vectors": retrieval.vectors,
        "retriever": retrieval.retriever,
        "ranker": tiny.release.recommender.ranker,
        "rules": FilterRules(),
        "items": tiny.items,
    }
    return Recommender(**{**parts, **changes})


def lists(funnel: Recommender, tiny: Tiny, users: UserBatch, k: int = K) -> list[Recommendation]:
    return funnel.recommend(users, [RequestRules(k)] * len(users), tiny.items)


def check(result: Recommendation, k: int = K) -> None:
    assert (
        len(result.items)
        == len(set(result.items.tolist()))
        == len(result.scores)
        == len(result.sources)
        == k
    )
    assert 0 not in result.items and all(result.sources)
    assert np.isfinite(result.scores).all() and (np.diff(result.scores) <= 0).all()


class BrokenRanker:
    def score(self, *_: object) -> Any:
        raise RuntimeError("out of order")


class NanRanker:
    def score(self, numeric: np.ndarray, _: object) -> Any:
        return np.full(len(numeric), np.nan, dtype=np.float32), np.full(
            (len(numeric), 3), np.nan, dtype=np.float32
        )


def test_every_user_gets_a_full_list_in_order(tiny: Tiny) -> None:
    users = tiny.clickers()
    for row, result in enumerate(lists(tiny.release.recommender, tiny, users)):
        check(result)
        assert result.degraded == (["no_history"] if row == 0 else [])
        assert not set(result.items) & set(users.seen[row]["view"])
        assert {"unavailable"} <= set(result.removed) <= {"unavailable", "seen"}


def test_user_of_whom_nothing_is_known(tiny: Tiny) -> None:
    (result,) = lists(tiny.release.recommender, tiny, tiny.users(["nobody"]))
    check(result)
    assert result.degraded == ["no_history"]


def test_history_of_items_that_are_gone_is_none(tiny: Tiny) -> None:
    users = tiny.users(
        ["u1"], history_item_ids=[["gone", "lost"]], history_timestamps=[[NOW - 9, NOW - 5]]
    )
    (result,) = lists(tiny.release.recommender, tiny, users)
    check(result)
    assert result.degraded == ["no_history"]


def test_numbers_that_are_missing_everywhere_do_no_harm(tiny: Tiny) -> None:
    users = tiny.users(["u1"], age=[None], plan=[None], events_30d=[None])
    bare = tiny.items.with_activity(
        replace(tiny.items.activity, counts=np.full_like(tiny.items.activity.counts, np.nan))
    )
    (result,) = tiny.release.recommender.recommend(users, [RequestRules(K)], bare)
    check(result)


@pytest.mark.parametrize("ranker", [BrokenRanker(), NanRanker()])
def test_broken_ranker_leaves_the_order_of_the_towers(tiny: Tiny, ranker: Any) -> None:
    users = tiny.clickers()
    funnel = recommender(tiny, ranker=ranker)
    results, ranked, vectors = funnel.recommend_ranked(
        users, [RequestRules(K)] * len(users), tiny.items
    )
    for row, result in enumerate(results):
        check(result)
        assert "ranker_unavailable" in result.degraded
        expected = tiny.release.retrieval.vectors[result.items] @ vectors[row]
        assert result.scores == pytest.approx(expected, abs=1e-6)
    assert ranked.probabilities.shape == (len(ranked.candidates.item), 3)
    assert np.isfinite(ranked.scores).all() and np.isfinite(ranked.probabilities).all()


def test_list_longer_than_the_candidates_is_filled_from_the_catalogue(tiny: Tiny) -> None:
    """Also when the last candidate's score is below zero, what is filled in stands below it."""
    possible = int(tiny.items.available(NOW).sum())
    for funnel in (tiny.release.recommender, recommender(tiny, ranker=BrokenRanker())):
        (result,) = lists(funnel, tiny, tiny.users(["nobody"]), k=ITEMS)
        check(result, possible)
        assert "few_candidates" in result.degraded
        filled = [sources == ["backfill"] for sources in result.sources]
        assert any(filled) and filled == sorted(filled)
        assert len(result.rows) == filled.index(True)
    assert result.scores.min() < 0


def test_filling_goes_nearest_first_and_within_the_quota(tiny: Tiny) -> None:
    source = tiny.release.retrieval.retriever
    two = Retriever(source.index, source.neighbours, source.similarities, CandidateQuota(
        two_tower=2, similar=0, popular=0, trending=0, new=0
    ))  # fmt: skip
    users = tiny.users(["nobody"])
    vector = tiny.release.retrieval.tower(users.context)[0]
    (result,) = lists(recommender(tiny, retriever=two), tiny, users)
    check(result)
    near = tiny.release.retrieval.vectors[result.items[2:]] @ vector
    assert (np.diff(near) <= 0).all()
    (few,) = lists(
        recommender(tiny, retriever=two, rules=FilterRules(max_per_category=1)),
        tiny,
        users,
        k=ITEMS,
    )
    main = tiny.items.categories[few.items, 0]
    assert np.bincount(main)[1:].tolist() == [1] * (len(tiny.codec.categories) - 1)
    assert (main == 0).sum() == (
        tiny.items.available(NOW) & (tiny.items.categories[:, 0] == 0)
    ).sum()


def test_index_that_finds_fewer_than_asked_for(tiny: Tiny) -> None:
    source = tiny.release.retrieval.retriever
    vectors = np.asarray(tiny.release.retrieval.vectors[1:])
    index, _ = build_index(vectors, vectors, kind="IVF8,Flat", at=1)
    index.nprobe = 1
    funnel = recommender(
        tiny, retriever=Retriever(index, source.neighbours, source.similarities, QUOTA)
    )
    for result in lists(funnel, tiny, tiny.clickers(), k=25):
        check(result, 25)


def test_batch_is_its_single_requests(tiny: Tiny) -> None:
    """Also where the moments of a batch differ and an item comes in between."""
    users = tiny.clickers(6, NOW + np.array([0.0, 200.0, 0.0, 99.0, -10.0, 3000.0]))
    requests = [RequestRules(3 + 2 * row, exclude=(f"i{row + 8}",)) for row in range(6)]
    funnel = tiny.release.recommender
    together = funnel.recommend(users, requests, tiny.items)
    for row in range(6):
        one = UserBatch(
            users.context[row : row + 1],
            type(users.rows)(*(part[row : row + 1] for part in vars(users.rows).values())),
            users.category_shares[row : row + 1],
            users.seen[row : row + 1],
        )
        (alone,) = funnel.recommend(one, [requests[row]], tiny.items)
        both = together[row]
        assert alone.items.tolist() == both.items.tolist()
        assert alone.scores == pytest.approx(both.scores, abs=1e-5)
        assert (alone.sources, alone.degraded, alone.removed) == (
            both.sources,
            both.degraded,
            both.removed,
        )


def test_columns_that_the_ranker_does_not_read_are_in_no_row(tiny: Tiny) -> None:
    names = [*tiny.codec.numeric, *tiny.codec.categorical]
    items = [name for name in names if name.startswith("item_")]
    out = {"category_share", "age", "user_plan", "day_of_week", "item_genre", *items[3::4]}
    assert out < set(names)
    codec = replace(tiny.codec, left_out=frozenset(out))
    assert Codec.from_dict(json.loads(json.dumps(codec.to_dict()))).left_out == out
    assert [*codec.numeric, *codec.categorical] == [n for n in names if n not in out]

    found = []
    for one in (tiny.codec, codec):
        release = replace(tiny.release, reader=UserReader(one))
        users = replace(tiny, release=release).clickers()
        _, ranked, vectors = tiny.release.recommender.recommend_ranked(
            tiny.clickers(), [RequestRules(K)] * 6, tiny.items
        )
        hydrator = Hydrator(np.asarray(tiny.release.retrieval.vectors), one)
        table = replace(tiny.items, codec=one)
        rows = hydrator.hydrate(users, vectors, ranked.candidates, table)
        found.append(np.concatenate(rows, axis=1))
    kept = [number for number, name in enumerate(names) if name not in out]
    np.testing.assert_array_equal(found[1], found[0][:, kept])


def test_hydrated_rows_are_what_their_names_say(tiny: Tiny) -> None:
    users = tiny.clickers()
    _, ranked, vectors = tiny.release.recommender.recommend_ranked(
        users, [RequestRules(K)] * 6, tiny.items
    )
    names, unit = tiny.codec.numeric, np.asarray(tiny.release.retrieval.vectors)
    numeric, categorical = tiny.release.recommender.hydrator.hydrate(
        users, vectors, ranked.candidates, tiny.items
    )
    assert numeric.shape[1] == len(names) and numeric.dtype == np.float32
    assert categorical.shape[1] == len(tiny.codec.categorical) and categorical.dtype == np.int32
    some = ranked.rows(2, np.arange(*ranked.candidates.offsets[2:4])[::3], tiny.items)
    every = [part[ranked.candidates.rows(2)][::3] for part in (numeric, categorical)]
    assert all(np.array_equal(*pair, equal_nan=True) for pair in zip(some, every, strict=True))
    column = {name: numeric[:, position] for position, name in enumerate(names)}
    code = {name: categorical[:, position] for position, name in enumerate(tiny.codec.categorical)}
    request, item = ranked.candidates.request, ranked.candidates.item
    for row in range(0, len(item), 7):
        user, other = int(request[row]), int(item[row])
        recent = [int(code) for code in users.context.history[user, :10] if code]
        cosines = [float(unit[other] @ unit[code]) for code in recent]
        expected = [cosines[0], np.mean(cosines[:5]), max(cosines)] if cosines else [np.nan] * 3
        found = [column[name][row] for name in ("cosine_last", "cosine_recent", "cosine_best")]
        assert found == pytest.approx(expected, abs=1e-5, nan_ok=True)
        assert column["tower_score"][row] == pytest.approx(unit[other] @ vectors[user], abs=1e-5)
        genre = tiny.items.raw["genre"][other]
        shares = dict(zip(["War", "Drama"], [0.75, 0.25], strict=True))
        assert column["category_share"][row] == shares.get(genre, 0.0)
        first = tiny.items.activity.first_event_at[other]
        assert column["item_age_days"][row] == pytest.approx((NOW - first) / 86_400, nan_ok=True)
        assert column["history_length"][row] == (users.context.history[user] > 0).sum()
        counts = tiny.items.activity.counts[other, tiny.codec.item_activity.index(c.EVENTS_7D)]
        assert column["item_events_7d"][row] == counts
        price = tiny.items.raw["price"][other]
        assert column["item_price"][row] == pytest.approx(
            np.nan if price is None else price, nan_ok=True
        )
        assert code["item_genre"][row] == tiny.codec.item_attributes.vocabularies["genre"].code(
            genre
        )
        assert code["user_plan"][row] == [1, 2, 0][user % 3]


@pytest.mark.parametrize("kind", ["logistic", "lightgbm", "dcn"])
def test_prepared_items_change_no_score(tiny: Tiny, tmp_path: Path, kind: str) -> None:
    data, schema, config = random_rows(tiny.codec, 3, (kind,))
    config = replace(config, dcn=DcnConfig(epochs=1, min_steps=5), trees=TreeConfig(rounds=5))
    train_rankers(RankerSets(data, data, data, schema), tmp_path, config, lambda *_: None)
    ranker, users = CalibratedRanker.load(tmp_path / kind), tiny.clickers()
    _, ranked, _ = tiny.release.recommender.recommend_ranked(
        users, [RequestRules(K)] * len(users), tiny.items
    )
    score = ranker.for_items(tiny.items.rows)
    for pairs in ranked.pairs:
        for prepared, joined in zip(
            score(pairs), ranker.score(*pairs.join(tiny.items.rows)), strict=True
        ):
            assert np.array_equal(prepared, joined)
