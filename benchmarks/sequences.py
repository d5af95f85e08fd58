"""Next-item prediction on ``user item`` sequences: the sequential two-tower model against counting.

Leave-last-out: a user's last item is the test's, the one before is validation's, the rest is
learned from; all items are ranked, and the history before the test includes validation's item.
Published figures leave the history's items out of the ranking (gSASRec's code,
``filter_rated=True``; HSTU's, ``filter_invalid_ids=True``), and so do ours where users do not
repeat themselves; the other figure stands beside it.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor

from benchmarks.seeds import deviation
from feature_repo.files import read_json, write_json
from feature_repo.hashing import file_hash, fingerprint
from pipelines import display
from pipelines.evaluation.metrics import accuracy
from retrieval.sequences.config import TEST, SequenceConfig
from retrieval.sequences.dataset import Sequences, read_sequences, sequence_file
from retrieval.sequences.ranks import ranks_by_score, score_chunks
from retrieval.sequences.training import pick_device, train_sequences

_METRICS = ("hr@10", "ndcg@10")
_COLUMNS = ("unseen_hr@10", "unseen_ndcg@10", "all_hr@10", "all_ndcg@10")
_REPEATS = 0.01
"""Above this share of repeated items, seen items are ranked too, as the next item may be one."""


def run(data: Path, work: Path, seeds: int, config: SequenceConfig) -> dict[str, Any]:
    """Train and test on a file of ``user item`` lines, or on the folder of one.

    Args:
        data: the file or folder.
        work: checkpoints lie here until the command has ended; one that was killed is taken up from
            them.
        seeds: how many trainings, from seed ``config.seed`` on.
        config: of each.

    Returns:
        Mean and sample standard deviation over seeds of HR@10 and NDCG@10, and how they came about;
        ``ranked`` says whether all items were ranked or those that are not in the history.

    Raises:
        SpecError: the file cannot be used.

    """
    with display.stage("Read and count"):
        sequences = read_sequences(data)
        counted = {"popular": _popular(sequences), "item transitions": _transitions(sequences)}
    folder = work / fingerprint(file_hash(sequence_file(data)), asdict(config))
    results = [
        _seed(sequences, replace(config, seed=config.seed + n), folder) for n in range(seeds)
    ]
    figures = {key: np.array([result[key] for result in results]) for key in results[0]}
    _show(
        sequences,
        {**counted, "two towers": {key: float(each.mean()) for key, each in figures.items()}},
    )
    shutil.rmtree(folder)
    ranked = "all" if sequences.repeats > _REPEATS else "unseen"
    main = {metric: figures[f"{ranked}_{metric}"] for metric in _METRICS}
    return {
        **{metric: round(float(values.mean()), 5) for metric, values in main.items()},
        **{
            f"{metric}_std": round(deviation(values.tolist()), 5) for metric, values in main.items()
        },
        "ranked": ranked,
        **{key: round(float(figures[key].mean()), 5) for key in (*_COLUMNS, "validation_ndcg@10")},
        "seeds": seeds,
        "epochs": int(figures["epochs"].max()),
        "seconds": round(float(figures["seconds"].sum()), 1),
        "device": pick_device(config.device).type,
        "selected_on": "validation",
        "dimension": config.towers * config.width,
    }


def _seed(sequences: Sequences, config: SequenceConfig, folder: Path) -> dict[str, float]:
    done = folder / f"seed-{config.seed}.json"
    if done.is_file():
        return dict(read_json(done))
    began = time.monotonic()
    with display.stage(f"Train, seed {config.seed}") as progress:
        vectors = train_sequences(sequences, config, folder / f"seed-{config.seed}", progress)
    chunks = score_chunks(len(vectors.users), len(vectors.items))
    result = {
        **_figures(sequences, (vectors.users[part] @ vectors.items.T for part in chunks)),
        "validation_ndcg@10": float(np.mean(vectors.validation)),
        "epochs": float(max(vectors.epochs)),
        "seconds": vectors.seconds_before + time.monotonic() - began,
    }
    write_json(done, result)
    return result


def _popular(sequences: Sequences) -> dict[str, float]:
    items = torch.from_numpy(sequences.training_counts(TEST)).float()
    chunks = score_chunks(len(sequences.testable), len(items))
    return _figures(sequences, (items.repeat(len(sequences.testable[part]), 1) for part in chunks))


def _transitions(sequences: Sequences) -> dict[str, float]:
    """Score an item by how often it came right after the user's last one, then by popularity."""
    size = sequences.catalogue + 1
    row = np.arange(len(sequences.items) - 1)
    owner = np.repeat(np.arange(len(sequences.lengths)), sequences.lengths)
    kept = (owner[1:] == owner[:-1]) & (row + 1 < sequences.training_ends(TEST)[owner[1:]])
    pairs = sequences.items[:-1][kept], sequences.items[1:][kept]
    table = csr_matrix((np.ones(kept.sum(), dtype=np.float32), pairs), shape=(size, size))
    popular = torch.from_numpy(sequences.training_counts(TEST) / len(sequences.items)).float()
    last = sequences.held_out(sequences.testable, TEST + 1)
    scores = (
        torch.from_numpy(table[last[part]].toarray()).add_(popular)
        for part in score_chunks(len(last), size)
    )
    return _figures(sequences, scores)


def _figures(sequences: Sequences, scores: Iterable[Tensor]) -> dict[str, float]:
    wanted = sequences.held_out(sequences.testable, TEST)
    every, new = (
        accuracy(found) for found in ranks_by_score(scores, wanted, sequences.histories(TEST))
    )
    return {
        "all_hr@10": every["hit_rate@10"],
        "all_ndcg@10": every["ndcg@10"],
        "unseen_hr@10": new["hit_rate@10"],
        "unseen_ndcg@10": new["ndcg@10"],
    }


def _show(sequences: Sequences, rows: dict[str, dict[str, float]]) -> None:
    title = (
        f"{len(sequences.testable):,} users, {sequences.catalogue:,} items, "
        f"{len(sequences.items):,} rows"
    )
    display.table(
        title,
        ["unseen | all items ranked", "HR@10", "NDCG@10", "HR@10", "NDCG@10"],
        [[name, *(figures[column] for column in _COLUMNS)] for name, figures in rows.items()],
    )
