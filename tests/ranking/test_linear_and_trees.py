import ctypes
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from feature_repo.sanity import Guard
from ranking.config import LogisticConfig, PopularityConfig, RankerConfig, TreeConfig
from ranking.metrics import ndcg_at_k
from ranking.models import lightgbm_library, load
from ranking.models.logistic import Slots
from ranking.row_schema import RowSchema
from ranking.training.fit_logistic import fit_logistic
from ranking.training.fit_popularity import fit_popularity
from ranking.training.fit_trees import fit_lambdarank
from tests.support.planted_rows import SCHEMA, planted, task_of


def test_logistic_equals_one_hot_by_hand() -> None:
    data = planted(0)
    task = task_of(data, config=RankerConfig(logistic=LogisticConfig(max_iterations=500)))
    ranker = fit_logistic(task, Guard("logistic"))
    one_hot = [
        np.eye(size)[data.categorical[:, column]]
        for column, size in enumerate(SCHEMA.cardinalities)
    ]
    design = np.hstack([task.transform(data.numeric), *one_hot])
    expected = (
        LogisticRegression(C=1.0, tol=1e-6, max_iter=500)
        .fit(design, data.labels[:, 0])
        .predict_proba(design)
    )
    assert ranker.predict(data.numeric, data.categorical)[:, 0] == pytest.approx(
        expected[:, 1], abs=0.01
    )


def test_wide_columns_are_hashed_and_unknown_is_never_shared() -> None:
    slots = Slots(cardinalities=(3, 1000), hash_size=16)
    codes = np.stack([np.arange(1000) % 3, np.arange(1000)], axis=1).astype(np.int32)
    out = slots(codes)
    assert slots.widths.tolist() == [3, 16]
    assert out[:, 0].max() == 2 and out[0, 1] == 3
    assert set(out[1:, 1]) == set(range(4, 19))


def test_popularity_uses_the_named_column_else_the_first() -> None:
    data = planted(0)
    assert fit_popularity(task_of(data)).column == 2
    config = RankerConfig(popularity=PopularityConfig("absent"))
    ranker = fit_popularity(task_of(data, config=config))
    assert ranker.column == 0
    rows = np.array([[np.nan, 0, 0, 0], [0, 0, 0, 0], [5, 0, 0, 0]], dtype=np.float32)
    p = ranker.predict(rows, np.zeros((3, 2), dtype=np.int32))
    assert (p[0] == p[1]).all() and (p[2] > p[1]).all()


def test_openmp_comes_from_torch_where_the_system_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []

    def bare_system(name: str, **_: object) -> None:
        if name == "libgomp.so.1":
            raise OSError("cannot open shared object file")
        loaded.append(name)

    monkeypatch.setattr(ctypes, "CDLL", bare_system)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    lightgbm_library._load_openmp()
    assert len(loaded) == 1 and loaded[0].endswith("torch/lib/libgomp.so.1")
    assert "torch" not in sys.modules


def test_more_levels_of_gain_than_lightgbm_expects() -> None:
    """Five heads give 32 sums of weights; LightGBM knows 31 gains unless it is told."""
    heads = tuple("abcde")
    schema = RowSchema(
        SCHEMA.numeric, SCHEMA.categorical, SCHEMA.cardinalities, heads, (1.0, 2.0, 4.0, 8.0, 16.0)
    )
    data = planted(0, requests=100)
    data.labels = np.random.default_rng(0).integers(0, 2, (len(data), 5)).astype(np.float32)
    config = RankerConfig(trees=TreeConfig(rounds=3, min_rows_in_leaf=20, threads=1))
    task = task_of(data, config=config, schema=schema)
    ranker = fit_lambdarank(task, Guard("trees"), lambda *_: None)
    assert ranker.predict(data.numeric, data.categorical).shape == (len(data), 5)


def test_what_lambdarank_reports_leaves_out_requests_without_a_positive_row() -> None:
    """As the network's figure does: a search prunes by both."""
    learn, held_out = planted(0), planted(1)
    held_out.labels[held_out.request % 2 == 0] = 0.0
    reported: list[float] = []
    trees = TreeConfig(rounds=60, patience=60, min_rows_in_leaf=20, threads=1)
    ranker = fit_lambdarank(
        task_of(learn, held_out, RankerConfig(trees=trees)),
        Guard("trees"),
        lambda _, figures: reported.append(figures.get("watch_ndcg", 0)),
    )
    score = SCHEMA.score(ranker.predict(held_out.numeric, held_out.categorical))
    ndcg = ndcg_at_k(held_out.gain(SCHEMA), score, held_out.request, 10)
    assert max(reported) == pytest.approx(ndcg, abs=0.02)


def test_unknown_kind_is_refused(tmp_path: Path) -> None:
    fit_popularity(task_of(planted(0))).save(tmp_path)
    model = tmp_path / "model.json"
    model.write_text(model.read_text().replace("popularity", "oracle"))
    with pytest.raises(ValueError, match="oracle"):
        load(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load(tmp_path / "nowhere")
