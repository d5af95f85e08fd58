"""A release stored by commit 97f4b5b loads, verifies and recommends what that commit recommended.

``tests/data/release-97f4b5b.tar.xz`` is a release of forty items with a logistic ranker and with
every kind of filter rule. The JSON file beside it holds feature rows and requests, and the answers
that the old code gave to them: ranked, and degraded in each way that the recommender knows.
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.recommender.deadline import Deadline
from serving.recommender.filters import AttributeRule, RequestRules
from serving.recommender.results import Recommendation
from serving.recommender.users import UserBatch
from serving.releases.manifest import verify_files
from serving.releases.release import Release, load_release
from serving.releases.smoke import smoke_test

DATA = Path(__file__).parent.parent / "data"
NAME = "release-97f4b5b"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    parent = tmp_path_factory.mktemp("stored")
    with tarfile.open(DATA / f"{NAME}.tar.xz") as archive:
        archive.extractall(parent, filter="data")
    return parent / NAME


@pytest.fixture(scope="module")
def release(folder: Path) -> Release:
    return load_release(folder)


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    golden: dict[str, Any] = json.loads((DATA / f"{NAME}.json").read_text())
    return golden


@pytest.fixture(scope="module")
def users(release: Release, golden: dict[str, Any]) -> UserBatch:
    columns = golden["users"]
    return release.reader.read(columns, np.full(len(columns["user_id"]), golden["time"]))


@pytest.fixture(scope="module")
def requests(golden: dict[str, Any]) -> list[RequestRules]:
    return [
        RequestRules(
            request["k"],
            tuple(request.get("exclude", ())),
            {
                name: AttributeRule.model_validate(rule)
                for name, rule in request.get("filters", {}).items()
            },
        )
        for request in golden["requests"]
    ]


def assert_same(
    release: Release, recommendations: list[Recommendation], expected: list[dict[str, Any]]
) -> None:
    for recommendation, answer in zip(recommendations, expected, strict=True):
        assert list(release.codec.items.names(recommendation.items)) == answer["items"]
        assert recommendation.scores.tolist() == pytest.approx(answer["scores"], abs=1e-5)
        assert recommendation.sources == answer["sources"]
        assert recommendation.degraded == answer["degraded"]
        assert recommendation.removed == answer["removed"]


def test_the_stored_release_is_whole_and_works(
    folder: Path, release: Release, golden: dict[str, Any]
) -> None:
    verify_files(folder)
    assert release.id == golden["release"]
    assert smoke_test(release) is None


def test_ranked_recommendations_and_explanations_are_the_same(
    release: Release, users: UserBatch, requests: list[RequestRules], golden: dict[str, Any]
) -> None:
    lists, ranked, vectors = release.recommender.recommend_ranked(users, requests, release.items)
    assert_same(release, lists, golden["answers"]["ranked"])
    np.testing.assert_allclose(vectors, golden["user_vectors"], atol=1e-5)
    numeric, categorical = ranked.rows(3, lists[3].rows, release.items)
    explained = release.recommender.ranker.explain(numeric[0], categorical[0], 5)
    assert [name for name, _ in explained] == [name for name, _ in golden["explained"]]
    assert [value for _, value in explained] == pytest.approx(
        [value for _, value in golden["explained"]], abs=1e-5
    )


def test_recommendations_without_time_to_rank_are_the_same(
    release: Release, users: UserBatch, requests: list[RequestRules], golden: dict[str, Any]
) -> None:
    lists, _, _ = release.recommender.recommend_ranked(
        users, requests, release.items, deadline=Deadline(-1.0)
    )
    assert_same(release, lists, golden["answers"]["ranker_skipped"])


def test_recommendations_without_a_ranker_are_the_same(
    folder: Path, users: UserBatch, requests: list[RequestRules], golden: dict[str, Any]
) -> None:
    release = load_release(folder)
    release.recommender.ranker = object()  # type: ignore[assignment]  # whatever is asked of it fails
    lists, _, _ = release.recommender.recommend_ranked(users, requests, release.items)
    assert_same(release, lists, golden["answers"]["ranker_unavailable"])


def test_recommendations_without_candidates_are_the_same(
    release: Release, users: UserBatch, requests: list[RequestRules], golden: dict[str, Any]
) -> None:
    lists = [
        release.recommender.popular(users, row, request, release.items)
        for row, request in enumerate(requests)
    ]
    assert_same(release, lists, golden["answers"]["retrieval_unavailable"])
