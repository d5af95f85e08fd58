"""The FAISS index over item vectors: chosen by the catalogue's size, its recall is measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import faiss
import numpy as np

from feature_repo.arrays import Float32Array, Int64Array
from feature_repo.threads import inference_threads

FLAT_UP_TO = 50_000
QUANTIZED_FROM = 2_000_000
_TARGET_RECALL = 0.99
_SEED = 7


@dataclass(frozen=True)
class IndexReport:
    """What was built and how near it comes to exact search."""

    kind: str
    recall: float
    at: int
    nprobe: int

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return dict(self.__dict__)


def index_kind(items: int) -> str:
    """Return the FAISS factory string for a catalogue: exact, or inverted lists of codes.

    Half precision costs no recall that could be measured, and scanning a list is bound by memory.
    """
    if items <= FLAT_UP_TO:
        return "Flat"
    lists = int(2 ** np.round(np.log2(4 * np.sqrt(items))))
    return f"IVF{lists},{'SQfp16' if items < QUANTIZED_FROM else 'SQ8'}"


def build_index(
    vectors: Float32Array,
    queries: Float32Array,
    *,
    kind: str | None = None,
    at: int = 100,
    gpu: bool | None = None,
) -> tuple[faiss.Index, IndexReport]:
    """Build an inner-product index and tune it until it finds 99% of what exact search finds.

    Args:
        vectors: item vectors ``[n, D]``; row ``i`` gets id ``i``.
        queries: user vectors ``[q, D]`` to measure with.
        kind: FAISS factory string; by default by size.
        at: how many neighbours the recall is measured at.
        gpu: build on the GPU; by default where FAISS has one.

    """
    vectors, queries = np.ascontiguousarray(vectors), np.ascontiguousarray(queries)
    kind = kind or index_kind(len(vectors))
    at = min(at, len(vectors))
    index = faiss.index_factory(vectors.shape[1], kind, faiss.METRIC_INNER_PRODUCT)
    inverted = faiss.try_extract_index_ivf(index) if kind != "Flat" else None
    if inverted is not None:
        inverted.cp.seed = _SEED
    on_gpu = has_gpu() if gpu is None else gpu
    built = faiss.index_cpu_to_all_gpus(index) if on_gpu else index
    if not built.is_trained:
        built.train(vectors)
    built.add(vectors)
    index = faiss.index_gpu_to_cpu(built) if on_gpu else built
    if inverted is None:
        return index, IndexReport(kind, 1.0, at, 0)
    return index, _tune(index, vectors, queries, kind=kind, at=at)


def _tune(
    index: faiss.Index, vectors: Float32Array, queries: Float32Array, *, kind: str, at: int
) -> IndexReport:
    exact = faiss.IndexFlatIP(vectors.shape[1])
    exact.add(vectors)
    truth = exact.search(queries, at)[1]
    inverted = faiss.extract_index_ivf(index)

    def recall(nprobe: int) -> float:
        inverted.nprobe = nprobe
        return recall_against(truth, index.search(queries, at)[1])

    enough = 1
    while enough < inverted.nlist and recall(enough) < _TARGET_RECALL:
        enough = min(2 * enough, inverted.nlist)
    too_few = enough // 2
    while enough - too_few > max(1, enough // 16):
        middle = (enough + too_few) // 2
        too_few, enough = (
            (too_few, middle) if recall(middle) >= _TARGET_RECALL else (middle, enough)
        )
    return IndexReport(kind, recall(enough), at, enough)


@dataclass(frozen=True)
class Search:
    """Recall and time of a search of ``nprobe`` inverted lists; ``nprobe`` 0: exact search.

    ``recall``: share of the exact neighbours; ``seconds``: a query, asked alone, the median of all.
    """

    nprobe: int
    recall: float
    seconds: float


def search_tradeoff(
    index: faiss.Index, vectors: Float32Array, queries: Float32Array, at: int = 100
) -> list[Search]:
    """Return exact search, then the search of 1, 2, 4, ... and all inverted lists of an index.

    Args:
        index: with inverted lists, over ``vectors``; left as it was.
        vectors: ``[n, D]``.
        queries: ``[q, D]``.
        at: how many neighbours are asked for.

    Raises:
        RuntimeError: the index has no inverted lists.

    """
    vectors, queries, at = (
        np.ascontiguousarray(vectors),
        np.ascontiguousarray(queries),
        min(at, len(vectors)),
    )
    exact, inverted = faiss.IndexFlatIP(vectors.shape[1]), faiss.extract_index_ivf(index)
    exact.add(vectors)
    truth, seconds = _one_by_one(exact, queries, at)
    found, nprobe = [Search(0, 1.0, seconds)], inverted.nprobe
    probes = [2**power for power in range(int(np.log2(inverted.nlist)) + 1)]
    for probed in dict.fromkeys([*probes, inverted.nlist]):
        inverted.nprobe = probed
        rows, seconds = _one_by_one(index, queries, at)
        found.append(Search(probed, recall_against(truth, rows), seconds))
    inverted.nprobe = nprobe
    return found


def _one_by_one(index: faiss.Index, queries: Float32Array, at: int) -> tuple[Int64Array, float]:
    rows, seconds = [], []
    for query in queries:
        start = perf_counter()
        rows.append(index.search(query[None, :], at)[1][0])
        seconds.append(perf_counter() - start)
    return np.stack(rows), float(np.median(seconds))


def recall_against(truth: Int64Array, found: Int64Array) -> float:
    """Return the share of ``truth`` ``[q, k]`` that ``found`` ``[q, k]`` has, row by row."""
    hits = sum(len(np.intersect1d(t, f)) for t, f in zip(truth, found, strict=True))
    return hits / truth.size


def has_gpu() -> bool:
    """Return whether this FAISS can use a GPU of this machine."""
    return bool(getattr(faiss, "get_num_gpus", lambda: 0)())


def save_index(index: faiss.Index, path: Path) -> None:
    """Write an index to a file."""
    faiss.write_index(index, str(path))


def load_index(path: Path, *, gpu: bool = False) -> faiss.Index:
    """Read an index; with ``gpu`` copy it to the GPUs. Searches then use ``inference_threads``."""
    faiss.omp_set_num_threads(inference_threads())
    index = faiss.read_index(str(path))
    return faiss.index_cpu_to_all_gpus(index) if gpu else index
