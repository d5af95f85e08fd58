"""Permutation importance and calibration curves, on rows whose cause is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ranking.calibration import Calibration, HeadCalibration
from ranking.data import RankingData
from ranking.inspection.importance import permutation_importance
from ranking.metrics import calibration_curve, ece
from ranking.models.popularity import PopularityRanker
from ranking.models.scorer import CalibratedRanker
from ranking.row_schema import RowSchema
from tests.support.planted_rows import SCHEMA, Trained, planted


def by_count(schema: RowSchema, column: int) -> CalibratedRanker:
    """Return what orders by one column alone."""
    heads = len(schema.heads)
    ranker = PopularityRanker(schema, column, (1.0,) * heads, (0.0,) * heads)
    return CalibratedRanker(ranker, Calibration((HeadCalibration(),) * heads))


def test_two_candidates_by_hand() -> None:
    """The wanted one of two stands first, NDCG 1.

    Swapped, it stands second, NDCG 1 / log2(3) = .6309.
    """
    schema, requests = RowSchema(("count", "idle"), (), (), ("click",), (1.0,)), 4_000
    data = RankingData(
        numeric=np.tile(np.float32([[5, 1], [2, 2]]), (requests, 1)),
        categorical=np.zeros((2 * requests, 0), dtype=np.int32),
        labels=np.tile(np.float32([[1], [0]]), (requests, 1)),
        request=np.repeat(np.arange(requests), 2),
    )
    before = data.numeric.copy()
    base, columns = permutation_importance(by_count(schema, 0), data, k=10, repeats=4, seed=0)
    assert base == 1.0 and [one.name for one in columns] == ["count", "idle"]
    # Half of the permutations of two rows swap them.
    assert (
        columns[0].drop == pytest.approx((1 - 1 / np.log2(3)) / 2, abs=0.01)
        and columns[0].spread < 0.01
    )
    assert columns[1].drop == columns[1].spread == 0.0
    assert {one.permuted for one in columns} == {"within"} and columns[0].gain is None
    assert np.array_equal(data.numeric, before)


def test_what_a_request_has_in_common_is_exchanged_between_requests() -> None:
    schema = RowSchema(("of_user", "of_item"), ("moment",), (5,), ("click",), (1.0,))
    random = np.random.default_rng(0)
    request = np.repeat(np.arange(50), 4)
    of_user = np.where(np.arange(50) % 5 == 0, np.nan, random.normal(size=50))[request]
    data = RankingData(
        numeric=np.stack([of_user, random.random(200)], axis=1).astype(np.float32),
        categorical=random.integers(0, 5, 50).astype(np.int32)[request][:, None],
        labels=(np.arange(200) % 4 == 0).astype(np.float32)[:, None],
        request=request,
    )
    _, columns = permutation_importance(by_count(schema, 0), data, k=10, repeats=2, seed=0)
    levels = {one.name: one.permuted for one in columns}
    assert levels == {"of_user": "across", "of_item": "within", "moment": "across"}
    # All candidates of a request tie before and after: the user's level by itself orders nothing.
    assert all(one.drop == 0.0 for one in columns)


@pytest.mark.parametrize("kind", ["lightgbm", "lambdarank", "dcn", "logistic"])
def test_the_cause_matters_most_and_noise_does_not(trained: Trained, kind: str) -> None:
    ranker = CalibratedRanker.load(trained.folder / kind)
    base, columns = permutation_importance(ranker, trained.validate, k=10, repeats=3, seed=0)
    assert base == pytest.approx(trained.report.kinds[kind].ndcg)
    drop = {one.name: one.drop for one in columns}
    assert {columns[0].name, columns[1].name} == {"affinity", "genre"} and columns[0].drop > 0.1
    assert (
        max(abs(drop[name]) for name in ("noise", "recency", "device"))
        < 0.03
        < drop["item_events_30d"] + 0.03
    )
    gains = [one.gain for one in columns]
    if kind in ("lightgbm", "lambdarank"):
        assert sum(gains) == pytest.approx(1.0) and columns[0].gain == max(gains)
    else:
        assert set(gains) == {None}


def test_the_same_seed_gives_the_same(trained: Trained) -> None:
    ranker, data = CalibratedRanker.load(trained.folder / "logistic"), trained.validate
    one, same = (permutation_importance(ranker, data, k=10, repeats=2, seed=1) for _ in range(2))
    assert one == same


def test_requests_without_a_positive_row_are_refused() -> None:
    data = planted(1, requests=3)
    with pytest.raises(ValueError, match="no request has a positive row"):
        permutation_importance(
            by_count(SCHEMA, 2),
            replace(data, labels=np.zeros_like(data.labels)),
            k=10,
            repeats=2,
            seed=0,
        )


def test_calibration_curve_by_hand() -> None:
    labels, p = np.array([0.0, 1.0, 1.0, 1.0]), np.array([0.1, 0.2, 0.7, 0.8])
    rows, predicted, rate = calibration_curve(labels, p, bins=2)
    assert rows.tolist() == [2, 2]
    assert predicted == pytest.approx([0.15, 0.75]) and rate == pytest.approx([0.5, 1.0])
    assert ece(labels, p, bins=2) == pytest.approx((0.35 + 0.25) / 2)
    # Rows of one probability share their labels; bins that get no row are left out.
    rows, predicted, rate = calibration_curve(labels, np.full(4, 0.5), bins=7)
    assert rows.sum() == 4 and (rows > 0).all() and rate == pytest.approx(0.75)


def test_curves_before_and_after_calibration() -> None:
    schema = RowSchema(("count",), (), (), ("click",), (1.0,))
    half = Calibration((HeadCalibration("isotonic", x=(0.0, 1.0), y=(0.0, 0.5)),))
    ranker = CalibratedRanker(PopularityRanker(schema, 0, (1.0,), (0.0,)), half)
    # Counts of 0 and 1: log1p is 0 and .693, the sigmoid of which is 1/2 and 2/3.
    data = RankingData(
        np.float32([[0], [0], [1], [1]]),
        np.zeros((4, 0), dtype=np.int32),
        np.float32([[0], [0], [0], [1]]),
        np.arange(4),
    )
    curves = ranker.calibration_curves(data, bins=2)["click"]
    assert [one["predicted"] for one in curves["raw"]] == pytest.approx([1 / 2, 2 / 3])
    # Isotonic: half of the probability, plus a thousandth of the raw one in its place.
    assert [one["predicted"] for one in curves["calibrated"]] == pytest.approx(
        [0.25, 1 / 3], abs=1e-3
    )
    for stage in curves.values():
        assert [(one["rows"], one["rate"]) for one in stage] == [(2, 0.0), (2, 0.5)]
