"""The GPU benchmark's parts that a CPU can check.

Its exact search, and its worlds can be learnt.
"""

from __future__ import annotations

import numpy as np
import torch

from benchmarks.gpu import nearest, planted_sequences, planted_towers


def test_search_in_chunks_finds_what_a_sort_of_everything_finds() -> None:
    generator = torch.Generator().manual_seed(5)
    vectors, queries = (
        torch.randn(1_003, 8, generator=generator),
        torch.randn(7, 8, generator=generator),
    )
    expected = (queries @ vectors.T).argsort(dim=1, descending=True)[:, :10]
    for chunk in (11, 100, 5_000):
        assert torch.equal(nearest(queries, vectors, 10, chunk), expected)


def test_planted_examples_and_sequences_fit_the_models() -> None:
    task = planted_towers(500, 400, seed=1)
    assert len(task.training) == 500 and len(task.validation) == 100
    history = task.training.context.history
    assert history.max() < task.build().config.items
    assert not (history == task.training.item[:, None]).any()
    sequences = planted_sequences(20, 400, seed=2, length=30)
    assert (
        np.all(sequences.lengths == 30)
        and sequences.items.min() >= 1
        and sequences.items.max() <= 400
    )
