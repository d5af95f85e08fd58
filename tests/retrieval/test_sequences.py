"""Reading, windows, the tower, the loss and items' places, each against cases worked by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from feature_repo.dataset import SpecError
from retrieval.sequences.dataset import Sequences, from_pairs, read_sequences
from retrieval.sequences.encoding import encode
from retrieval.sequences.losses import SoftmaxLoss
from retrieval.sequences.model import Dropout, SequenceTower, SequenceTowerConfig
from retrieval.sequences.ranks import ranks, ranks_by_score
from retrieval.sequences.windows import inputs_and_targets, windows

LINES = "a x\nb x\na y\nb z\na z\nc y\na x\n"
"""User a: x y z x; b: x z, too short to hold anything out; c: y. Codes: x 1, y 2, z 3."""


@pytest.fixture
def sequences(tmp_path: Path) -> Sequences:
    (tmp_path / "log.txt").write_text(LINES)
    return read_sequences(tmp_path)


def tower(items: int = 5, dropout: float = 0.0) -> SequenceTower:
    return SequenceTower(
        SequenceTowerConfig(items, 16, 2, 2, 8, dropout), torch.Generator().manual_seed(3)
    )


def test_sequences_keep_order_and_hold_out_the_end(sequences: Sequences) -> None:
    assert sequences.items.tolist() == [1, 2, 3, 1, 1, 3, 2] and sequences.start.tolist() == [
        0,
        4,
        6,
        7,
    ]
    assert sequences.testable.tolist() == [0] and sequences.catalogue == 3
    assert sequences.held_out(sequences.testable, 1).tolist() == [1]
    assert sequences.held_out(sequences.testable, 2).tolist() == [3]
    assert sequences.training_ends(2).tolist() == [2, 6, 7]
    assert sequences.training_counts(2).tolist() == [0, 2, 2, 1]
    assert sequences.repeats == 0.0
    assert from_pairs(list("aaaaab"), list("xxyxzx")).repeats == pytest.approx(
        1 / 4
    )  # x x y of a, x of b
    assert [history.tolist() for history in sequences.histories(1)] == [[1, 2, 3]]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "has no rows"),
        ("a x\na\n", r"log.txt:2: expected two columns, 'user item', found 1"),
        ("a x\na y 5\n", r"log.txt:2: .* found 3"),
        ("a x\na y\nb x\n", "no user has 3 items"),
        ("a x\na y\na z\nb x\nb y\nb z\n", "no user has two items besides those held out"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "log.txt").write_text(text)
    with pytest.raises(SpecError, match=complaint):
        read_sequences(tmp_path)


def test_missing_and_several_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="there is no .*nowhere; give a file"):
        read_sequences(tmp_path / "nowhere")
    with pytest.raises(SpecError, match="exactly one .txt file.*found: none"):
        read_sequences(tmp_path)
    for name in ("train.txt", "test.txt"):
        (tmp_path / name).write_text(LINES)
    with pytest.raises(SpecError, match="found: test.txt, train.txt; name the file"):
        read_sequences(tmp_path)
    assert len(read_sequences(tmp_path / "train.txt").items) == 7


def test_windows_hold_training_items_only() -> None:
    long = from_pairs(["a"] * 30 + ["b"] * 4, [f"{n}" for n in range(34)])
    for latest in (False, True):
        seen = []
        for epoch in range(40):
            for batch in windows(
                long,
                held=2,
                window=8,
                batch_items=100,
                generator=np.random.default_rng(epoch),
                latest=latest,
            ):
                histories, targets = inputs_and_targets(long, batch)
                known = targets > 0
                assert torch.equal(
                    targets[known], histories[known] + 1
                )  # the items are numbered in order
                assert not histories[~known].any() and histories.shape[1] <= 8
                seen.extend(targets[known].tolist())
        assert max(code for code in seen if code <= 30) == 28 and max(seen) == 32
        assert (min(seen) == 21) if latest else (min(seen) == 2)


def test_a_later_item_changes_nothing_before_it() -> None:
    model = tower().eval()
    histories = torch.tensor([[1, 2, 3, 4, 5]])
    before = model(histories)
    histories[0, 3] = 1
    after = model(histories)
    assert torch.equal(before[0, :3], after[0, :3])
    assert not torch.equal(before[0, 3], after[0, 3]) and not torch.equal(before[0, 4], after[0, 4])


def test_users_are_encoded_from_the_items_before_the_held_out_one() -> None:
    log = from_pairs(["a"] * 3 + ["b"] * 12, list("xyz") + [f"{n % 5}" for n in range(12)])
    model = SequenceTower(
        SequenceTowerConfig(log.catalogue, 16, 2, 2, 8), torch.Generator().manual_seed(3)
    ).eval()
    short = model(torch.tensor([[1, 2]]))[0, -1].float()
    long = model(torch.from_numpy(log.items[6:14]).unsqueeze(0))[0, -1].float()
    torch.testing.assert_close(
        encode(model, log, log.testable, 1), torch.stack([short, long]), rtol=2e-2, atol=2e-2
    )


def test_dropout_drops_its_share_and_keeps_the_mean() -> None:
    drop = Dropout(0.25, torch.Generator().manual_seed(1))
    values = drop(torch.ones(1_000, 400))
    assert float((values == 0).float().mean()) == pytest.approx(0.25, abs=0.005)
    assert float(values.mean()) == pytest.approx(1.0, abs=0.01)
    assert torch.equal(drop.eval()(torch.ones(3)), torch.ones(3))


def test_the_exact_loss_and_its_gradient_are_cross_entropy() -> None:
    generator = torch.Generator().manual_seed(1)
    vectors = torch.randn(2_500, 8, generator=generator, requires_grad=True)  # more than one chunk
    table = torch.randn(64, 8, generator=generator, requires_grad=True)
    targets = torch.randint(1, 11, (2_500,), generator=generator)
    loss = SoftmaxLoss(torch.ones(11), generator, exact=10, sampled=1)(vectors, table, targets)
    gradients = torch.autograd.grad(loss, (vectors, table))
    usual = torch.nn.functional.cross_entropy(vectors @ table[1:11].T, targets - 1)
    expected = torch.autograd.grad(usual, (vectors, table))
    torch.testing.assert_close(loss, usual)
    for ours, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_sampled_loss_is_near_the_exact_one() -> None:
    generator = torch.Generator().manual_seed(1)
    vectors, table = (
        torch.randn(64, 8, generator=generator),
        torch.randn(5_056, 8, generator=generator) * 0.5,
    )
    targets = torch.randint(1, 5_001, (64,), generator=generator)
    counts = torch.ones(5_001)
    counts[0] = 0
    exact = SoftmaxLoss(counts, generator, exact=5_000, sampled=1)(vectors, table, targets)
    sampler = SoftmaxLoss(counts, generator, exact=100, sampled=1_000)
    sampled = torch.stack([sampler(vectors, table, targets) for _ in range(30)])
    assert not sampler.exact and float(sampled.std()) > 0
    assert float(sampled.mean()) == pytest.approx(float(exact), abs=0.05)


def test_places_by_hand() -> None:
    users = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, 0.0]])
    items = torch.tensor([[9.0, 9.0], [3.0, 0.0], [2.0, 1.0], [1.0, 2.0]])
    wanted = np.array([2, 3, 1, 2])
    # First two: one item above, none above. Third: all three score 3; fourth: all 0: the middle of
    # three places.
    assert ranks(users, items, wanted).tolist() == [1, 0, 1, 1]
    histories = iter(
        [np.array([1, 1]), np.array([1, 3]), np.array([2, 3]), np.array([], dtype=np.int64)]
    )
    scores = users @ items.T
    everything, unseen = ranks_by_score([scores[:3], scores[3:]], wanted, histories)
    assert everything.tolist() == [1, 0, 1, 1] and unseen.tolist() == [0, -1, 0, 1]
    assert ranks_by_score([users @ items.T], wanted, iter([np.array([2])] * 4))[1].tolist() == [
        -1,
        0,
        0,
        -1,
    ]
    assert ranks(users * float("nan"), items, wanted).tolist() == [1, 1, 1, 1]
