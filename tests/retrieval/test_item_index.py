"""FAISS against exact search."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from retrieval.index import (
    FLAT_UP_TO,
    QUANTIZED_FROM,
    build_index,
    index_kind,
    load_index,
    recall_against,
    save_index,
    search_tradeoff,
)


def unit(seed: int, n: int, dimension: int = 16) -> np.ndarray:
    # Clustered, as trained vectors are: uniform noise in many dimensions has no near neighbours.
    generator = np.random.default_rng(seed)
    centres = np.random.default_rng(0).normal(size=(40, dimension))
    raw = centres[generator.integers(0, 40, n)] + 0.4 * generator.normal(size=(n, dimension))
    return (raw / np.linalg.norm(raw, axis=1, keepdims=True)).astype(np.float32)


def test_flat_is_exact() -> None:
    vectors, queries = unit(1, 500), unit(2, 20)
    index, report = build_index(vectors, queries)
    assert report.to_dict() == {"kind": "Flat", "recall": 1.0, "at": 100, "nprobe": 0}
    scores, rows = index.search(queries, 10)
    exact = queries @ vectors.T
    assert np.allclose(scores, -np.sort(-exact, axis=1)[:, :10], atol=1e-5)
    assert np.allclose(np.take_along_axis(exact, rows, axis=1), scores, atol=1e-5)


@pytest.mark.parametrize("kind", ["IVF64,Flat", "IVF64,SQfp16", "IVF50,SQ8"])
def test_inverted_lists_come_near_and_say_how_near(kind: str, tmp_path: Path) -> None:
    vectors, queries = unit(1, 4000), unit(2, 100)
    truth = build_index(vectors, queries)[0].search(queries, 100)[1]
    index, report = build_index(vectors, queries, kind=kind)
    found = index.search(queries, 100)[1]
    assert report.recall >= 0.95 and report.kind == kind and report.at == 100
    assert recall_against(truth, found) == pytest.approx(report.recall, abs=1e-9)
    save_index(index, tmp_path / "index.faiss")
    again = load_index(tmp_path / "index.faiss").search(queries, 100)[1]
    assert np.array_equal(found, again)
    rebuilt = build_index(vectors, queries, kind=kind)[0].search(queries, 100)[1]
    assert np.array_equal(found, rebuilt)


def test_report_names_the_lists_that_are_read() -> None:
    """Codes of four bits never reach the target.

    All lists are read, also where their number is no power of two.
    """
    import faiss

    index, report = build_index(unit(1, 3000), unit(2, 50), kind="IVF50,SQ4")
    assert report.recall < 0.99
    assert report.nprobe == faiss.extract_index_ivf(index).nprobe == 50


@pytest.mark.parametrize("kind", ["Flat", "IVF4,Flat"])
def test_fewer_items_than_asked_for(kind: str) -> None:
    vectors = unit(1, 200)[:160]
    index, report = build_index(vectors, vectors, kind=kind, at=1000)
    assert report.at == 160
    rows = index.search(vectors[:3], 200)[1]
    found = [row[row >= 0] for row in rows]
    assert all((rows == -1).sum(axis=1) >= 40)
    assert all(len(set(row)) == len(row) and row.max() < 160 for row in found)


def test_kind_follows_from_the_size() -> None:
    assert index_kind(FLAT_UP_TO) == "Flat"
    assert index_kind(FLAT_UP_TO + 1) == "IVF1024,SQfp16"
    assert index_kind(QUANTIZED_FROM).endswith(",SQ8")


def test_recall_is_counted_row_by_row() -> None:
    truth = np.array([[1, 2], [3, 4]])
    assert recall_against(truth, np.array([[2, 9], [4, 3]])) == 0.75
    assert recall_against(truth, truth[::-1]) == 0.0


def test_the_tradeoff_runs_from_one_list_to_exact_search_and_leaves_the_index_as_it_was() -> None:
    vectors, queries = unit(1, 2000), unit(2, 50)
    index, report = build_index(vectors, queries, kind="IVF20,Flat")
    exact, *approximate = search_tradeoff(index, vectors, queries)
    assert (exact.nprobe, exact.recall) == (0, 1.0)
    assert [of.nprobe for of in approximate] == [1, 2, 4, 8, 16, 20]
    recalls = [of.recall for of in approximate]
    assert recalls == sorted(recalls) and recalls[0] < 0.9 and recalls[-1] > 0.999
    assert all(of.seconds > 0 for of in (exact, *approximate))
    assert index.nprobe == report.nprobe


def test_an_exact_index_has_no_tradeoff() -> None:
    vectors = unit(1, 500)
    with pytest.raises(RuntimeError, match="(?i)ivf"):
        search_tradeoff(build_index(vectors, vectors[:5])[0], vectors, vectors[:5])
