"""Candidates and their sources against a recount with plain loops."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest

from feature_repo import columns as c
from retrieval.index import build_index
from serving.recommender.candidates import (
    RECENT,
    SOURCES,
    CandidateQuota,
    Candidates,
    Retriever,
    static_lists,
    top,
    trend,
)
from serving.recommender.item_table import ItemTable, build_items
from serving.recommender.users import UserBatch
from tests.support.tiny_release import DAY, ITEMS, NOW, QUOTA, Tiny, item_columns


def retrieve(tiny: Tiny, users: UserBatch, retriever: Retriever | None = None) -> Candidates:
    retrieval = tiny.release.retrieval
    vectors = retrieval.tower(users.context)
    chosen = retriever or retrieval.retriever
    return chosen.retrieve(vectors, users.context.history, tiny.items, users.context.time)


def similar_by_hand(
    retriever: Retriever, history: np.ndarray
) -> tuple[dict[int, float], dict[int, float]]:
    """Return co-visitation with the recent items and with the newest one, by item."""
    recent = [int(code) for code in history[:RECENT] if code]
    score: dict[int, float] = defaultdict(float)
    last: dict[int, float] = {}
    for place, item in enumerate(recent):
        for other, similarity in zip(
            retriever.neighbours[item], retriever.similarities[item], strict=True
        ):
            if other:
                score[int(other)] += 0.8**place * float(similarity)
                if place == 0:
                    last[int(other)] = float(similarity)
    return score, last


def test_shares_are_read_as_they_are_written_on_the_command_line():
    assert CandidateQuota.parse(["new=5", "similar=100"]) == CandidateQuota(new=5, similar=100)
    for wrong, word in (
        (["nova=3"], "nova"),
        (["new=-1"], "new"),
        (["new"], "new"),
        (["two_tower=0"], "two_tower"),
    ):
        with pytest.raises(
            ValueError, match=f"{word}: .*sources: two_tower, similar, popular, trending, new"
        ):
            CandidateQuota.parse(wrong)


def test_every_source_is_the_recount(tiny: Tiny) -> None:
    users, retrieval = tiny.clickers(), tiny.release.retrieval
    found = retrieve(tiny, users)
    vectors = retrieval.tower(users.context)
    static = static_lists(tiny.items, QUOTA, NOW)
    assert found.offsets[0] == 0 and found.offsets[-1] == len(found.item)
    for row in range(len(users)):
        part = slice(found.offsets[row], found.offsets[row + 1])
        item, bits = found.item[part].tolist(), found.sources[part]
        assert 0 not in item and len(set(item)) == len(item)
        near = vectors[row] @ retrieval.vectors[1:].T
        tower = (np.argsort(-near)[: QUOTA.two_tower] + 1).tolist()
        score, last = similar_by_hand(retrieval.retriever, users.context.history[row])
        proposed = {
            "two_tower": set(tower),
            "similar": set(sorted(score, key=lambda code: (-score[code], code))[: QUOTA.similar]),
            **{name: set(codes.tolist()) for name, codes in static.items()},
        }
        for position, name in enumerate(SOURCES[:-1]):
            named = {code for code, bit in zip(item, bits, strict=True) if bit >> position & 1}
            assert named == proposed[name], name
        assert set(item) == set().union(*proposed.values())
        ranks = {code: np.log1p(place) for place, code in enumerate(tower)}
        assert found.tower_rank[part] == pytest.approx(
            [ranks.get(code, np.nan) for code in item], nan_ok=True
        )
        assert found.similar[part, 0] == pytest.approx(
            [score.get(code, 0.0) for code in item], rel=1e-5
        )
        assert found.similar[part, 1] == pytest.approx(
            [last.get(code, 0.0) for code in item], rel=1e-5
        )


def test_rows_know_their_request(tiny: Tiny) -> None:
    found = retrieve(tiny, tiny.clickers(3))
    assert np.array_equal(np.bincount(found.request), np.diff(found.offsets))
    assert (found.item.dtype, found.sources.dtype, found.similar.dtype) == (
        np.int32,
        np.uint8,
        np.float32,
    )


def test_sources_can_be_switched_off(tiny: Tiny) -> None:
    source = tiny.release.retrieval.retriever
    only = Retriever(source.index, source.neighbours, source.similarities, CandidateQuota(
        two_tower=3, similar=0, popular=0, trending=0, new=0
    ))  # fmt: skip
    found = retrieve(tiny, tiny.clickers(3), only)
    assert (found.sources == 1).all() and np.diff(found.offsets).tolist() == [3, 3, 3]


def test_lists_shorter_than_asked_for(tiny: Tiny) -> None:
    """FAISS says -1 where the lists that it read hold fewer items.

    That must never become an item.
    """
    source = tiny.release.retrieval.retriever
    vectors = np.asarray(tiny.release.retrieval.vectors[1:])
    index, _ = build_index(vectors, vectors, kind="IVF8,Flat", at=1)
    index.nprobe = 1
    assert (index.search(vectors[:1], ITEMS)[1] == -1).any()
    found = retrieve(
        tiny,
        tiny.clickers(3),
        Retriever(index, source.neighbours, source.similarities, CandidateQuota(two_tower=1000)),
    )
    assert found.item.min() >= 1 and found.item.max() <= ITEMS
    assert np.isfinite(found.tower_rank[(found.sources & 1) > 0]).all()


def table(tiny: Tiny, **columns: list[float | None]) -> ItemTable:
    return build_items(tiny.codec, {**item_columns(tiny.codec), **columns})


def test_static_lists_have_only_what_can_be_had(tiny: Tiny) -> None:
    everything = CandidateQuota(popular=ITEMS, trending=ITEMS, new=ITEMS)
    for time in (NOW, NOW + 200.0, NOW - 10.0):
        allowed = set(np.flatnonzero(tiny.items.available(time)).tolist())
        lists = static_lists(tiny.items, everything, time)
        for codes in lists.values():
            assert len(set(codes.tolist())) == len(codes) and set(codes.tolist()) == allowed
    assert 4 not in static_lists(tiny.items, everything, NOW)["popular"]
    assert static_lists(tiny.items, QUOTA, NOW + 200.0)["new"][0] == 4


def test_static_lists_are_in_order(tiny: Tiny) -> None:
    counts: list[float | None] = [float(n % 7) for n in range(ITEMS)]
    week: list[float | None] = [float(n % 5) for n in range(ITEMS)]
    items = table(
        tiny,
        **{c.EVENTS_30D: counts, c.EVENTS_7D: week, c.TREND: [0.0] * (ITEMS - 1) + [3.0]},
    )
    lists = static_lists(items, CandidateQuota(popular=6, trending=4, new=3), NOW)
    # Items 4, 6 and 7 cannot be had; item 40 has the trend e^3, and the month tells items of equal
    # weeks apart.
    assert lists["popular"].tolist() == [14, 21, 28, 35, 13, 20]
    assert lists["trending"].tolist() == [40, 35, 20, 5]
    assert lists["new"].tolist() == [1, 2, 3]
    assert trend(items)[-1] == 3.0


def test_moments_of_one_batch_have_their_own_static_lists(tiny: Tiny) -> None:
    """Item 4 comes a hundred seconds after now.

    A request before that must not lose a place to it.
    """
    moments = np.array([NOW, NOW + 200.0, NOW - 10.0])
    users = tiny.users(["a", "b", "c"], moments)
    found = retrieve(tiny, users)
    for row, time in enumerate(moments):
        part = slice(found.offsets[row], found.offsets[row + 1])
        new = found.item[part][found.sources[part] >> SOURCES.index("new") & 1 > 0]
        assert sorted(new) == sorted(static_lists(tiny.items, QUOTA, float(time))["new"])
    state = [
        tiny.items.availability_state(time) for time in (NOW - DAY, NOW, NOW + 99.0, NOW + 100.0)
    ]
    assert state[1] == state[2] and state[0] < state[1] < state[3]


def test_top_breaks_ties_by_row_and_leaves_out_what_is_not_finite() -> None:
    values = np.array([2.0, 5.0, 2.0, np.nan, 2.0, -np.inf, np.inf, 2.0, 1.0])
    assert top(values, 3).tolist() == [1, 0, 2]
    assert top(values, 5).tolist() == [1, 0, 2, 4, 7]
    assert top(values, 100).tolist() == [1, 0, 2, 4, 7, 8]
    assert top(values, 0).tolist() == [] and top(values[:0], 3).tolist() == []
    generator = np.random.default_rng(0)
    for _ in range(50):
        values = generator.integers(0, 4, 30).astype(np.float64)
        expected = sorted(range(30), key=lambda row: (-values[row], row))
        assert top(values, 7).tolist() == expected[:7]
