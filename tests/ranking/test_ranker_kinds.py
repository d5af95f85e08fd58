"""Every kind on the same planted rows.

It learns, explains, and is on disk what it was in memory.
"""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from feature_repo.workspace import PROJECT_ROOT
from ranking.config import KINDS
from ranking.models.scorer import CalibratedRanker
from ranking.report import NdcgGap
from ranking.row_schema import RowSchema
from ranking.sigmoid import logit
from ranking.training.selection import BY_SERVING_COST, choose_kind
from ranking.training.train_rankers import train_rankers
from tests.support.planted_rows import CONFIG, SCHEMA, Trained, planted, sets_of, silent, splits

LEARNERS = [kind for kind in KINDS if kind != "popularity"]


def test_popularity_is_weak_but_better_than_chance(trained: Trained) -> None:
    assert 0.52 < trained.report.kinds["popularity"].heads["click"].auc < 0.65


@pytest.mark.parametrize("kind", LEARNERS)
def test_learns_the_planted_signal(trained: Trained, kind: str) -> None:
    report = trained.report.kinds[kind]
    assert report.ndcg > trained.report.kinds["popularity"].ndcg + 0.15
    assert report.weighted_ndcg > trained.report.kinds["popularity"].weighted_ndcg + 0.15
    assert report.heads["click"].auc > 0.83 and report.heads["buy"].auc > 0.83
    assert report.heads["click"].ece < 0.03


def test_the_chosen_is_the_cheapest_that_is_not_clearly_worse(trained: Trained) -> None:
    behind, ndcg = trained.report.behind, {kind: trained.report.kinds[kind].ndcg for kind in KINDS}
    for kind, (below, error) in behind.items():
        assert below == pytest.approx(max(ndcg.values()) - ndcg[kind], abs=1e-12)
        assert error == 0.0 if below == 0.0 else 0.0 < error < 0.05
    assert sorted(BY_SERVING_COST) == sorted(KINDS) and trained.report.best != "popularity"
    for kind in BY_SERVING_COST[1 : BY_SERVING_COST.index(trained.report.best)]:  # the cheaper ones
        below, error = behind[kind]
        assert below > 2 * error or below > 0.05 * max(ndcg.values())
    below, error = behind[trained.report.best]
    assert below <= 2 * error and below <= 0.05 * max(ndcg.values())


def test_how_far_behind_is_still_near() -> None:
    behind = {
        "popularity": NdcgGap(0.1, 0.06),
        "logistic": NdcgGap(0.03, 0.01),
        "lambdarank": NdcgGap(0.019, 0.01),
        "dcn": NdcgGap(0.0, 0.0),
    }
    assert [choose_kind(behind, errors, 1.0) for errors in (1.0, 2.0, 3.0)] == [
        "dcn",
        "lambdarank",
        "logistic",
    ]
    assert choose_kind(behind, 3.0, largest_gap=0.02) == "lambdarank"
    assert choose_kind(behind, 3.0, largest_gap=0.01) == "dcn"
    only_the_baseline = {"popularity": NdcgGap(0.0, 0.0), "logistic": NdcgGap(0.1, 0.01)}
    assert choose_kind(only_the_baseline, 2.0, 1.0) == "popularity"


def test_requests_of_one_user_count_together(trained: Trained, tmp_path: Path) -> None:
    """The same requests, ten a user: only how sure the differences are is another matter."""
    shutil.copytree(trained.folder, tmp_path / "kinds")
    sets = splits()
    users = replace(sets.selection, user=sets.selection.request // 10)
    report = train_rankers(replace(sets, selection=users), tmp_path / "kinds", CONFIG, silent)
    assert report.kinds == trained.report.kinds
    assert {kind: below for kind, (below, _) in report.behind.items()} == {
        kind: below for kind, (below, _) in trained.report.behind.items()
    }
    assert report.behind["popularity"][1] != trained.report.behind["popularity"][1]


def test_no_standard_errors_mean_the_best(trained: Trained, tmp_path: Path) -> None:
    shutil.copytree(trained.folder, tmp_path / "kinds")
    report = train_rankers(
        splits(), tmp_path / "kinds", replace(CONFIG, standard_errors=0.0), silent
    )
    assert report.best == max(KINDS, key=lambda kind: report.kinds[kind].ndcg)


@pytest.mark.parametrize("kind", KINDS)
def test_answers_whatever_it_is_asked(trained: Trained, kind: str) -> None:
    ranker = CalibratedRanker.load(trained.folder / kind)
    assert (ranker.kind, ranker.schema) == (kind, SCHEMA)
    numeric = np.array([[np.nan] * 4, [np.inf, -np.inf, 3e38, -3e38]], dtype=np.float32)
    score, p = ranker.score(numeric, np.array([[-7, 99], [5, 2**31 - 1]], dtype=np.int32))
    assert score.dtype == p.dtype == np.float32 and p.shape == (2, 2)
    assert (p >= 0).all() and (p <= 1).all() and score == pytest.approx(p @ [1, 3], rel=1e-5)
    score, p = ranker.score(numeric[:0], np.empty((0, 2), dtype=np.int32))
    assert score.shape == (0,) and p.shape == (0, 2)
    with pytest.raises(ValueError, match="columns"):
        ranker.score(numeric[:, :3], np.zeros((2, 2), dtype=np.int32))


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_scores_the_same_alone_and_in_company(trained: Trained, kind: str) -> None:
    ranker, data = CalibratedRanker.load(trained.folder / kind), trained.validate
    together = ranker.score(data.numeric[:50], data.categorical[:50])[0]
    alone = [
        ranker.score(data.numeric[i : i + 1], data.categorical[i : i + 1])[0][0] for i in range(50)
    ]
    assert together == pytest.approx(alone, rel=1e-4)


@pytest.mark.parametrize("kind", ["popularity", "logistic", "lightgbm", "lambdarank"])
def test_contributions_add_up(trained: Trained, kind: str) -> None:
    """The differences between rows are explained to the last digit; the constant cancels."""
    ranker, data = CalibratedRanker.load(trained.folder / kind).ranker, trained.validate
    worth = logit(ranker.predict(data.numeric[:20], data.categorical[:20])) @ SCHEMA.weights
    parts = [ranker.explain(data.numeric[row], data.categorical[row]) for row in range(20)]
    sums = [sum(value for _, value in part) for part in parts]
    assert np.diff(sums) == pytest.approx(np.diff(worth), abs=2e-3)


@pytest.mark.parametrize("kind", LEARNERS)
def test_explanations_name_the_cause(trained: Trained, kind: str) -> None:
    ranker, data = CalibratedRanker.load(trained.folder / kind), trained.validate
    size = dict.fromkeys(SCHEMA.numeric + SCHEMA.categorical, 0.0)
    for row in range(40):
        parts = ranker.explain(data.numeric[row], data.categorical[row])
        sizes = [abs(value) for _, value in parts]
        assert {name for name, _ in parts} == set(size) and sizes == sorted(sizes, reverse=True)
        assert parts[:2] == ranker.explain(data.numeric[row], data.categorical[row], top=2)
        for name, value in parts:
            size[name] += abs(value)
    assert set(sorted(size, key=size.__getitem__)[-2:]) == {"affinity", "genre"}
    good = np.array([0.0, 3.0, 5.0, 0.5], dtype=np.float32)
    assert dict(ranker.explain(good, np.array([1, 1], dtype=np.int32)))["affinity"] > 0


def test_saved_models_predict_the_same_without_torch(trained: Trained, tmp_path: Path) -> None:
    data = trained.validate
    np.savez(tmp_path / "rows.npz", numeric=data.numeric, categorical=data.categorical)
    code = f"""
import sys
from pathlib import Path
import numpy as np
from ranking.models.scorer import CalibratedRanker
rows = np.load({str(tmp_path / "rows.npz")!r})
for kind in {KINDS!r}:
    ranker = CalibratedRanker.load(Path({str(trained.folder)!r}) / kind)
    scores = ranker.score(rows["numeric"], rows["categorical"])[0]
    np.save(Path({str(tmp_path)!r}) / f"{{kind}}.npy", scores)
    ranker.explain(rows["numeric"][0], rows["categorical"][0])
assert "torch" not in sys.modules
"""
    subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        env={**os.environ, "PYTHONPATH": str(PROJECT_ROOT)},
    )
    for kind in KINDS:
        here = CalibratedRanker.load(trained.folder / kind).score(data.numeric, data.categorical)[0]
        assert np.array_equal(here, np.load(tmp_path / f"{kind}.npy")), kind


def test_shuffled_labels_teach_nothing(tmp_path: Path) -> None:
    # Validation labels are shuffled too: a model of noise points somewhere in a space where two
    # directions decide everything, so true labels would score it anywhere between good and bad.
    random = np.random.default_rng(0)
    sets = splits()
    parts = (sets.train, sets.calibration, sets.selection)
    mixed = [replace(part, labels=random.permutation(part.labels)) for part in parts]
    config = replace(CONFIG, dcn=replace(CONFIG.dcn, min_steps=100))
    report = train_rankers(sets_of(mixed), tmp_path, config, silent)
    for kind in KINDS:
        # The standard error of this AUC is 0.011.
        assert report.kinds[kind].heads["click"].auc == pytest.approx(0.5, abs=0.035), kind


def test_heads_without_positives_and_rows_without_categories(tmp_path: Path) -> None:
    schema = RowSchema(SCHEMA.numeric, (), (), ("click", "never"), (1.0, -2.0))
    parts = []
    for seed in range(3):
        data = planted(seed, requests=60)
        labels = np.stack([data.labels[:, 0], np.zeros(len(data))], axis=1).astype(np.float32)
        parts.append(
            replace(data, labels=labels, categorical=np.empty((len(data), 0), dtype=np.int32))
        )
    config = replace(CONFIG, dcn=replace(CONFIG.dcn, min_steps=60))
    report = train_rankers(sets_of(parts, schema), tmp_path, config, silent)
    for kind in KINDS:
        assert report.kinds[kind].heads["never"].auc is None
        _, p = CalibratedRanker.load(tmp_path / kind).score(parts[2].numeric, parts[2].categorical)
        assert np.isfinite(p).all() and p[:, 1].max() < 0.1, kind
