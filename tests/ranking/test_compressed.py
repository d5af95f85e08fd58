"""Students and int8 networks: near the original, and served like any ranker."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ranking.calibration import Calibration, HeadCalibration
from ranking.config import PopularityConfig, RankerConfig
from ranking.data import RankingData
from ranking.inspection.latency import latencies, one_request
from ranking.metrics import auc, ndcg_at_k
from ranking.models.dcn import DcnRanker
from ranking.models.scorer import CalibratedRanker
from ranking.row_schema import RowSchema
from ranking.rows import CROSS, ITEM_AGES
from ranking.sigmoid import logit
from ranking.training.distil import at_rate, distil, student_config
from ranking.training.fit_popularity import fit_popularity
from ranking.training.quantise import dynamic_int8, static_int8
from tests.support.planted_rows import CONFIG, SCHEMA, Trained, silent, splits, task_of


def size(ranker: CalibratedRanker, folder: Path) -> int:
    folder.mkdir()
    ranker.save(folder)
    return sum(path.stat().st_size for path in folder.iterdir())


@pytest.mark.parametrize("kind", ["lightgbm", "lambdarank", "dcn"])
def test_a_student_is_smaller_and_nearly_as_good(
    trained: Trained, kind: str, tmp_path: Path
) -> None:
    teacher, sets = CalibratedRanker.load(trained.folder / kind), splits()
    validate = sets.selection
    task = task_of(sets.train, sets.calibration, student_config(CONFIG))
    student = distil(teacher, task, silent)
    assert student.kind == kind
    small = CalibratedRanker(student, teacher.calibration)
    assert size(small, tmp_path / "small") < 0.75 * size(teacher, tmp_path / "large")
    score, _ = small.score(validate.numeric, validate.categorical)
    assert (
        ndcg_at_k(validate.relevance(SCHEMA), score, validate.request, 10)
        > 0.95 * trained.report.kinds[kind].ndcg
    )


def test_a_student_learns_from_the_teacher_where_labels_say_nothing(trained: Trained) -> None:
    teacher, sets = CalibratedRanker.load(trained.folder / "lightgbm"), splits()
    validate = sets.selection
    shuffled = np.random.default_rng(0).permutation(sets.train.labels)
    noise = replace(sets.train, labels=shuffled)
    task = task_of(noise, sets.calibration, student_config(CONFIG))
    p = distil(teacher, task, silent).predict(validate.numeric, validate.categorical)
    assert auc(validate.labels[:, 0], p[:, 0]) > 0.8


def test_log_odds_are_moved_to_a_rate() -> None:
    p = np.array([0.01, 0.02, 0.2], dtype=np.float32)
    moved = at_rate(p, 0.5)
    assert moved.mean() == pytest.approx(0.5) and (np.diff(moved) > 0).all()
    assert np.ptp(logit(moved) - logit(p)) == pytest.approx(0.0, abs=1e-6)
    assert at_rate(p, 0.0).tolist() == [0.0] * 3


def test_int8_networks_order_like_the_original(trained: Trained, tmp_path: Path) -> None:
    original, sets = CalibratedRanker.load(trained.folder / "dcn"), splits()
    validate = sets.selection
    network = original.ranker
    assert isinstance(network, DcnRanker)
    expected = network.logits(validate.numeric, validate.categorical)
    for ranker in (dynamic_int8(network), static_int8(network, sets.train)):
        assert len(ranker.graph) != len(network.graph)
        logits = ranker.logits(validate.numeric, validate.categorical)
        assert np.corrcoef(logits[:, 0], expected[:, 0])[0, 1] > 0.99
        folder = tmp_path / str(len(ranker.graph))
        folder.mkdir()
        CalibratedRanker(ranker, original.calibration).save(folder)
        again = CalibratedRanker.load(folder).ranker
        assert np.array_equal(again.logits(validate.numeric, validate.categorical), logits)  # type: ignore[attr-defined]


def test_a_request_is_the_joined_rows_taken_apart() -> None:
    pair, item = len(CROSS) + len(ITEM_AGES), ("item_price", "item_size")
    schema = RowSchema(
        (*CROSS, *ITEM_AGES, "clicks", *item), ("device", "genre"), (3, 4), ("click",), (1.0,)
    )
    random, n = np.random.default_rng(0), 12
    data = RankingData(
        random.normal(size=(n, pair + 3)).astype(np.float32),
        random.integers(0, 3, (n, 2)).astype(np.int32),
        (np.arange(n) % 4 == 0).astype(np.float32)[:, None],
        np.repeat([3, 5], 6),
    )
    data.numeric[:6, pair], data.categorical[:6, 0] = 1.5, 2  # of the first request's user
    by_size = RankerConfig(popularity=PopularityConfig("item_size"))
    ranker = CalibratedRanker(
        fit_popularity(task_of(data, config=by_size, schema=schema)),
        Calibration((HeadCalibration(),)),
    )
    pairs, items = one_request(data, 9, (2, 1))
    assert len(pairs) == 9 and items.numeric.shape == (9, 2) and items.categorical.shape == (9, 1)
    rows = [0, 1, 2, 3, 4, 5, 0, 1, 2]
    numeric, categorical = pairs.join(items)
    assert np.array_equal(numeric, data.numeric[rows]) and np.array_equal(
        categorical, data.categorical[rows]
    )
    times = latencies({"one": ranker, "same": ranker}, pairs, items, rounds=3)
    assert set(times) == {"one", "same"} and min(times.values()) > 0
