"""Training end to end on a planted chain.

What comes next follows from the last item, not from popularity.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from retrieval.sequences.config import TEST, SequenceConfig
from retrieval.sequences.dataset import Sequences, from_pairs
from retrieval.sequences.ranks import ranks
from retrieval.sequences.training import SequenceVectors, train_sequences

ITEMS, USERS = 60, 300
CONFIG = SequenceConfig(
    width=32, epochs=12, batch_items=512, warmup=20, window=16, average=0.9, dropout=0.1
)


@pytest.fixture(scope="module")
def chain() -> Sequences:
    """In a fixed walk over all items, the next is the last one's successor nine times of ten."""
    draw = np.random.default_rng(5)
    users, items = [], []
    for user in range(USERS):
        sequence = [int(draw.integers(ITEMS))]
        while len(sequence) < 24:
            planted = draw.random() < 0.9
            sequence.append(
                (7 * sequence[-1] + 3) % ITEMS if planted else int(draw.integers(ITEMS))
            )
        users += [f"u{user}"] * len(sequence)
        items += [f"i{item}" for item in sequence]
    return from_pairs(users, items)


@pytest.fixture(scope="module")
def trained(chain: Sequences, tmp_path_factory: pytest.TempPathFactory) -> SequenceVectors:
    return train_sequences(chain, CONFIG, tmp_path_factory.mktemp("trained"))


def first(vectors: SequenceVectors, chain: Sequences) -> float:
    return float(
        (ranks(vectors.users, vectors.items, chain.held_out(chain.testable, TEST)) == 0).mean()
    )


def test_a_planted_chain_is_learned(chain: Sequences, trained: SequenceVectors) -> None:
    assert trained.items.shape == (chain.catalogue + 1, 64) and trained.users.shape == (USERS, 64)
    assert (
        first(trained, chain) > 0.75
    )  # 0.9 can be known; one popular item is right 0.02 of the time


def test_a_large_catalogue_is_sampled(chain: Sequences, tmp_path: Path) -> None:
    sampled = replace(CONFIG, exact_items=10, negatives=20)
    assert first(train_sequences(chain, sampled, tmp_path), chain) > 0.6


def test_the_same_seed_gives_the_same_bits(chain: Sequences, tmp_path: Path) -> None:
    short = replace(CONFIG, epochs=2, device="cpu")
    one, two = (train_sequences(chain, short, tmp_path / name) for name in ("one", "two"))
    other = train_sequences(chain, replace(short, seed=2), tmp_path / "other")
    assert torch.equal(one.items, two.items) and torch.equal(one.users, two.users)
    assert not torch.equal(one.items, other.items)
    halves = one.items.split(CONFIG.width, dim=1)
    assert not torch.equal(halves[0], halves[1])


class PowerCut(Exception):
    pass


def test_a_killed_run_goes_on_and_ends_with_the_same_bits(chain: Sequences, tmp_path: Path) -> None:
    short = replace(CONFIG, epochs=3, device="cpu")
    whole = train_sequences(chain, short, tmp_path / "whole")
    epochs: list[str] = []

    def strike(what: str, _done: int, _total: int) -> None:
        if "epoch 3" in what:
            raise PowerCut

    with pytest.raises(PowerCut):
        train_sequences(chain, short, tmp_path / "killed", strike)
    again = train_sequences(
        chain, short, tmp_path / "killed", lambda what, *_: epochs.append(what.split(", ")[1])
    )
    assert "epoch 1" not in epochs and "epoch 3" in epochs
    assert torch.equal(whole.items, again.items) and torch.equal(whole.users, again.users)


def test_the_time_budget_is_kept(chain: Sequences, tmp_path: Path) -> None:
    vectors = train_sequences(
        chain, replace(CONFIG, epochs=10_000, patience=10_000, minutes=0.05), tmp_path
    )
    assert max(vectors.epochs) < 1_000 and torch.isfinite(vectors.users).all()
