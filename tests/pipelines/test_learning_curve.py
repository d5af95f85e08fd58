"""Rankers against the amount of data, on planted rows."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from feature_repo.workspace import MissingStage, Workspace
from pipelines.training.config import SampleConfig
from pipelines.training.learning_curve import SHARES, curve, learning_curve, share_of_requests
from ranking.training.train_rankers import RankerSets
from tests.support.planted_rows import CONFIG, SCHEMA, planted

LINEAR = replace(CONFIG, kinds=("popularity", "logistic"))


def test_a_smaller_share_is_a_part_of_a_larger_one() -> None:
    data = planted(1, requests=40)
    parts = [share_of_requests(data, share, seed=3) for share in SHARES]
    assert [len(part.group_sizes()) for part in parts] == [5, 10, 20, 40]
    for small, large in zip(parts[:-1], parts[1:], strict=True):
        assert set(small.request) < set(large.request)
        rows = np.flatnonzero(np.isin(large.request, small.request))
        assert np.array_equal(large.numeric[rows], small.numeric, equal_nan=True)
    assert share_of_requests(
        planted(1, requests=2), Fraction(1, 8), seed=3
    ).group_sizes().tolist() == [20]


def test_more_data_is_better_and_finished_points_are_kept(tmp_path: Path) -> None:
    sets = RankerSets(planted(1, requests=64, candidates=8), planted(2), planted(3), SCHEMA)
    said: list[tuple[int, str, bool]] = []

    def note(number: int):
        return lambda kind, figures: said.append((number, kind, "resumed" in figures))

    points = curve(sets, tmp_path, LINEAR, note)
    assert [(one["share"], one["requests"], one["rows"]) for one in points] == [
        (0.125, 8, 64), (0.25, 16, 128), (0.5, 32, 256), (1.0, 64, 512)
    ]  # fmt: skip
    quality = [one["ndcg"]["logistic"] for one in points]
    assert quality[-1] > quality[0] and quality[-1] > points[-1]["ndcg"]["popularity"] + 0.1
    assert not any(resumed for *_, resumed in said)
    (tmp_path / "1-2" / "logistic" / "weights.npz").unlink()
    said.clear()
    assert curve(sets, tmp_path, LINEAR, note) == points
    assert [(number, kind) for number, kind, resumed in said if not resumed] == [(2, "logistic")]


def test_there_must_be_models(tmp_path: Path) -> None:
    with pytest.raises(MissingStage, match="run 'funnel train' first"):
        learning_curve(Workspace(tmp_path), (), SampleConfig(), lambda *_: None)
