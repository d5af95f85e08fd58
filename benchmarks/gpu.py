"""Training and exact search on a GPU beside the CPU of the same machine.

The module needs torch, NumPy and Funnel's `retrieval` package only, so it also runs where Spark,
Feast and Redis are
not installed: ``python -m benchmarks.gpu``. Data are generated: users belong to clusters of items,
so both devices have something to learn and their recall can be compared.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from feature_repo.arrays import Float32Array, Int64Array
from retrieval.sequences.config import SequenceConfig
from retrieval.sequences.dataset import Sequences
from retrieval.sequences.training import train_sequences
from retrieval.towers.config import TowerTrainingConfig
from retrieval.towers.context import UserContext
from retrieval.towers.examples import Examples
from retrieval.towers.model import TowerConfig, TwoTowers
from retrieval.towers.training import TowerTask, train_towers

_CLUSTERS, _HISTORY, _ATTRIBUTES = 200, 50, 4
_DIMENSION = 64


def run(
    *,
    examples: int = 300_000,
    items: int = 100_000,
    epochs: int = 3,
    sequence_users: int = 6_000,
    index_items: int = 10_000_000,
    queries: int = 1_000,
    devices: tuple[str, ...] = ("cpu", "cuda"),
) -> dict[str, Any]:
    """Train towers and a sequence tower on each device, and search exactly on the last one.

    Args:
        examples: training examples of the two towers.
        items: size of the catalogue.
        epochs: of each training.
        sequence_users: users of the sequence tower, 100 items each.
        index_items: vectors of ``_DIMENSION`` dimensions to search.
        queries: searches for the 100 nearest.
        devices: torch device names.

    Returns:
        JSON-ready figures: examples a second, recall@100 and loss by device and batch size; seconds
        a search.

    """
    figures: dict[str, Any] = {
        "machine": _machine(devices),
        "examples": examples,
        "items": items,
        "epochs": epochs,
    }
    task = planted_towers(examples, items, seed=1)
    for batch in (512, 4_096):
        for device in devices:
            _say(f"two towers, batch {batch}, {device}")
            config = TowerTrainingConfig(epochs=epochs, batch=batch, patience=epochs, device=device)
            figures[f"towers_{batch}_{device}"] = _towers(task, config)
    sequences = planted_sequences(sequence_users, items, seed=2)
    for device in devices:
        _say(f"sequence tower, {device}")
        figures[f"sequences_{device}"] = _sequences(
            sequences, SequenceConfig(towers=1, epochs=2, device=device)
        )
    _say("exact search")
    figures["search"] = exact_search(index_items, queries, devices[-1])
    return figures


def planted_towers(examples: int, items: int, *, seed: int) -> TowerTask:
    """Return towers, examples to learn from, and a tenth as many to validate on.

    A user likes one cluster of items; within it, popularity falls as 1/rank. The history is drawn
    as the target is.
    """
    random = np.random.default_rng(seed)
    users, size = max(100, examples // 20), items // _CLUSTERS
    cluster_of = random.integers(0, _CLUSTERS, users)
    share = 1.0 / np.arange(1, size + 1)
    share /= share.sum()

    def draw(count: int) -> Examples:
        user = random.integers(0, users, count)
        rank = random.choice(size, (count, _HISTORY + 1), p=share)
        # Codes from 1, int32 [count, H + 1]; the first column is the target, the others the
        # history.
        codes = (cluster_of[user][:, None] * size + rank + 1).astype(np.int32)
        history = codes[:, 1:]
        history[history == codes[:, :1]] = 0
        context = UserContext(
            user=(user + 1).astype(np.int32),
            attributes=random.integers(0, 20, (count, _ATTRIBUTES)).astype(np.int32),
            numbers=random.normal(size=(count, 2)).astype(np.float32),
            history=history,
            ages=np.sort(random.exponential(86_400.0, (count, _HISTORY)), axis=1).astype(
                np.float32
            ),
            time=random.uniform(1.7e9, 1.71e9, count),
        )
        return Examples(context, codes[:, 0], np.ones(count, dtype=np.float32))

    shape = TowerConfig(
        users=users + 1, items=items + 1, user_attributes=20, item_attributes=50,
        user_attribute_width=_ATTRIBUTES, user_numbers=2, item_numbers=1, dimension=_DIMENSION,
        history=_HISTORY,
    )  # fmt: skip
    attributes = torch.from_numpy(random.integers(0, 50, (items + 1, _ATTRIBUTES)))
    numbers = torch.from_numpy(random.normal(size=(items + 1, 1)).astype(np.float32))
    has_id = torch.ones(items + 1, dtype=torch.bool)
    return TowerTask(
        build=lambda: TwoTowers(shape, attributes, numbers, has_id),
        training=draw(examples),
        validation=draw(max(100, examples // 10)),
        version="benchmark",
    )


def planted_sequences(users: int, items: int, *, seed: int, length: int = 100) -> Sequences:
    """Return synthetic sequences with a pattern that a model can learn.

    Items form clusters. With probability 0.7 the next item is the successor of the last one in
    its cluster.
    """
    random = np.random.default_rng(seed)
    size = items // _CLUSTERS
    cluster = random.integers(0, _CLUSTERS, users)
    steps = np.where(
        random.random((users, length)) < 0.7, 1, random.integers(0, size, (users, length))
    )
    rank = np.cumsum(steps, axis=1) % size
    codes = cluster[:, None] * size + rank + 1
    return Sequences(
        codes.ravel().astype(np.int64), np.arange(users + 1, dtype=np.int64) * length, items
    )


def exact_search(
    items: int, queries: int, device: str, *, k: int = 100, chunk: int = 1_000_000
) -> dict[str, Any]:
    """Time exact search among ``items`` unit vectors, all queries at once and one by one.

    Both precisions are compared with float64 on the CPU, for the first ten queries: ``recall`` is
    the share of the exact neighbours found.
    """
    generator = torch.Generator(device).manual_seed(3)

    def unit(rows: int) -> Tensor:
        drawn = torch.randn(rows, _DIMENSION, generator=generator, device=device)
        return torch.nn.functional.normalize(drawn, dim=-1)

    table, asked = (
        torch.cat([unit(min(chunk, items - start)) for start in range(0, items, chunk)]),
        unit(queries),
    )
    k = min(k, items)
    truth = _exact_neighbours(asked[:10].cpu().numpy(), table.cpu().numpy(), k)
    figures: dict[str, Any] = {"items": items, "queries": queries, "k": k, "device": device}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        figures[name] = _search(asked.to(dtype), table.to(dtype), truth, k=k, chunk=chunk)
    return figures


def nearest(queries: Tensor, vectors: Tensor, k: int, chunk: int) -> Tensor:
    """Return the rows of the ``k`` largest dot products, int64 ``[q, k]``, best first.

    Args:
        queries: ``[q, D]``.
        vectors: ``[n, D]``, of the same dtype and device.
        k: neighbours of each query.
        chunk: vectors scored at once; a chunk's best are merged with those of the chunks before.

    """
    best: Tensor | None = None
    rows: Tensor | None = None
    for start in range(0, len(vectors), chunk):
        scores = queries @ vectors[start : start + chunk].T  # [q, chunk]
        top, where = scores.topk(min(k, scores.shape[1]), dim=1)
        where = where + start
        if best is not None and rows is not None:
            top, where = torch.cat([best, top], dim=1), torch.cat([rows, where], dim=1)
            top, order = top.topk(k, dim=1)
            where = where.gather(1, order)
        best, rows = top, where
    assert rows is not None
    return rows


def _search(
    asked: Tensor, table: Tensor, truth: Int64Array, *, k: int, chunk: int
) -> dict[str, float]:
    """Measure recall against ``truth`` ``[10, k]``, throughput of batches, and one query."""
    device = table.device.type

    def search(batch: int, rows: int) -> tuple[Tensor, float]:
        found = [
            nearest(part, table, k, chunk) for part in torch.split(asked[:rows], batch)
        ]  # warm-up and answer
        _wait(device)
        start = time.perf_counter()
        for part in torch.split(asked[:rows], batch):
            nearest(part, table, k, chunk)
        _wait(device)
        return torch.cat(found), time.perf_counter() - start

    found, together = search(batch=128, rows=len(asked))
    _, alone = search(batch=1, rows=min(20, len(asked)))
    hits = sum(
        len(np.intersect1d(a, b))
        for a, b in zip(truth, found[: len(truth)].cpu().numpy(), strict=True)
    )
    return {
        "recall": hits / truth.size,
        "queries_per_s": len(asked) / together,
        "ms_one_query": 1_000 * alone / min(20, len(asked)),
    }


def _exact_neighbours(queries: Float32Array, vectors: Float32Array, k: int) -> Int64Array:
    """Return the ``k`` nearest rows of each query in float64, int64 ``[q, k]``, in no order."""
    wide = queries.astype(np.float64)
    scores = np.concatenate(
        [wide @ part.astype(np.float64).T for part in np.array_split(vectors, 20)], axis=1
    )
    return np.argpartition(-scores, k - 1, axis=1)[:, :k]


def _towers(task: TowerTask, config: TowerTrainingConfig) -> dict[str, Any]:
    """Train; the rate is of whole epochs with validation, without the first, which has checks."""
    ends: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        _, report = train_towers(
            task, config, Path(folder), log=lambda *_: ends.append(time.monotonic())
        )
    seconds = (ends[-1] - ends[0]) / max(len(ends) - 1, 1)
    last = report.curve[-1]
    rate = len(task.training) / seconds if len(ends) > 1 else None
    return {"examples_per_s": rate, "recall@100": last["recall"], "loss": last["loss"]}


def _sequences(sequences: Sequences, config: SequenceConfig) -> dict[str, Any]:
    items = int(sequences.training_counts(2).sum())
    with tempfile.TemporaryDirectory() as folder:
        start = time.monotonic()
        vectors = train_sequences(sequences, replace(config, minutes=5.0), Path(folder))
        seconds = time.monotonic() - start
    return {
        "seconds": seconds,
        "items_per_s": items * config.epochs / seconds,
        "ndcg@10": vectors.validation[0],
        "finite": bool(torch.isfinite(vectors.items).all()),
    }


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def _machine(devices: tuple[str, ...]) -> dict[str, Any]:
    with_cuda = any(device.startswith("cuda") for device in devices)
    name = torch.cuda.get_device_name() if with_cuda else None
    return {
        "cpus": os.cpu_count(),
        "gpu": name,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _say(what: str) -> None:
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {what}\n")
    sys.stderr.flush()


def main() -> None:
    """Run with sizes from the command line, and print one line of JSON."""
    parser = argparse.ArgumentParser(description=run.__doc__)
    for name, size in (run.__kwdefaults__ or {}).items():
        if isinstance(size, int):
            parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=size)
    parser.add_argument("--devices", default="cpu,cuda", help="Torch devices, separated by commas")
    options = vars(parser.parse_args())
    options["devices"] = tuple(options["devices"].split(","))
    sys.stdout.write(json.dumps(run(**options)) + "\n")


if __name__ == "__main__":
    main()
