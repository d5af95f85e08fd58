"""The checkerboard: what the towers must find, from every kind of evidence."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from feature_repo.sanity import CannotLearn
from retrieval.towers.context import UserContext
from retrieval.towers.evaluation import item_vectors
from retrieval.towers.examples import user_inputs
from retrieval.towers.model import TwoTowers
from retrieval.towers.sanity import paired_auc
from tests.support.checkerboard import (
    CHANCE,
    CONFIG,
    HISTORY,
    ITEMS,
    NEW_ITEMS,
    WITHIN,
    Solved,
    World,
    full,
    measure,
    shuffled,
    solve,
)


def best(towers: TwoTowers, context: UserContext, k: int) -> np.ndarray:
    """Return the codes of the ``k`` best items that were trained on, int ``[n, k]``."""
    raw, unit = item_vectors(towers)
    history = torch.from_numpy(context.history.astype(np.int64))
    with torch.no_grad():
        users = towers.users(
            *user_inputs(context, torch.from_numpy(raw), history).tensors()
        ).numpy()
    return np.argsort(-(users @ unit[1 : ITEMS + 1].T), axis=1)[:, :k] + 1


def popularity_recall(solved: Solved) -> float:
    training, unseen = solved.world.examples(1), full(solved.world.examples(5))
    counts = np.bincount(training.item, minlength=ITEMS + 1).astype(np.float64)
    scores = np.tile(counts, (len(unseen), 1))
    np.put_along_axis(scores, unseen.context.history.astype(np.int64), -1.0, axis=1)
    top = np.argsort(-scores, axis=1, kind="stable")[:, :WITHIN]
    return float((top == unseen.item[:, None]).any(axis=1).mean())


def test_history_alone_is_enough(histories: Solved) -> None:
    found = measure(histories.towers, full(histories.world.examples(5)))
    assert found > 0.97
    assert found > popularity_recall(histories) + 0.3


def test_one_click_tells_the_group(histories: Solved) -> None:
    examples = histories.world.examples(5)
    one = examples[(examples.context.history > 0).sum(axis=1) == 1]
    groups = best(histories.towers, one.context, 20) % 2
    assert (groups == one.item[:, None] % 2).mean() > 0.9


def test_known_users_and_strangers_are_served_alike(attributes: Solved) -> None:
    unseen = full(attributes.world.examples(5))
    stranger = replace(unseen.context, user=np.zeros_like(unseen.context.user))
    k = WITHIN + 1  # the group's new item may stand among them
    assert measure(attributes.towers, unseen, k=k) > 0.97
    assert measure(attributes.towers, replace(unseen, context=stranger), k=k) > 0.97


def test_attributes_alone_place_a_new_user(attributes: Solved) -> None:
    users = np.array([1, 2])
    context = attributes.world.context(users, np.zeros((2, HISTORY), dtype=np.int32))
    groups = best(attributes.towers, replace(context, user=np.zeros(2, dtype=np.int32)), 20) % 2
    assert (groups == users[:, None] % 2).mean() > 0.9


def test_attributes_alone_place_a_new_item(attributes: Solved) -> None:
    _, unit = item_vectors(attributes.towers)
    for code in NEW_ITEMS:
        cosines = unit[1 : ITEMS + 1] @ unit[code]
        own = np.arange(1, ITEMS + 1) % 2 == code % 2
        assert cosines[own].mean() > cosines[~own].mean() + 0.3
        assert (own[np.argsort(-cosines)[:20]]).mean() > 0.9


def test_vectors_have_length_one_and_no_item_is_zero(attributes: Solved) -> None:
    raw, unit = item_vectors(attributes.towers)
    assert np.allclose(np.linalg.norm(unit[1:], axis=1), 1.0, atol=1e-5)
    assert not raw[0].any() and not unit[0].any()


def test_report_tells_what_happened(histories: Solved) -> None:
    report = histories.report
    assert len(report.curve) == CONFIG.epochs
    assert report.recall == max(epoch["recall"] for epoch in report.curve)
    assert report.recall_at == CONFIG.recall_at
    assert report.curve[report.best_epoch - 1]["recall"] == report.recall
    first, last = report.one_batch_loss
    assert last < first / 2
    found, tolerance = report.shuffled_auc
    assert abs(found - 0.5) <= tolerance < 0.1
    assert all(epoch["largest_gradient_norm"] >= epoch["gradient_norm"] for epoch in report.curve)


def test_of_a_small_catalogue_fewer_items_count(tmp_path: Path) -> None:
    """Among 100 of 62 items is everything."""
    settings = replace(CONFIG, epochs=1, recall_at=None)
    report = solve(World(known_users=False, attributes=False), tmp_path, settings).report
    assert report.recall_at == (ITEMS + 1 + len(NEW_ITEMS)) // 4 and report.recall < 1


def test_shuffled_labels_teach_nothing(tmp_path: Path) -> None:
    world = World(known_users=False, attributes=False)
    noise = solve(world, tmp_path, replace(CONFIG, epochs=3), training=shuffled(world.examples(1)))
    assert measure(noise.towers, full(world.examples(5))) == pytest.approx(CHANCE, abs=0.12)


def test_towers_without_capacity_are_refused(tmp_path: Path) -> None:
    """Items with neither an id nor an attribute all look the same: no labels can be fitted."""
    world = World(known_users=True, attributes=False)

    def build() -> TwoTowers:
        towers = world.build()
        towers.items.has_id.zero_()
        return towers

    with pytest.raises(CannotLearn, match="one batch cannot be overfitted: loss"):
        solve(world, tmp_path, build=build)
    assert not (tmp_path / "report.json").exists()


def test_a_training_that_diverges_is_stopped(tmp_path: Path) -> None:
    with pytest.raises(CannotLearn, match=r"^towers: loss .*, gradient norm .* at step \d+"):
        solve(
            World(known_users=False, attributes=False),
            tmp_path,
            replace(CONFIG, learning_rate=1e30),
        )
    assert not (tmp_path / "report.json").exists()


def test_pairs_are_ordered_by_what_was_learnt(histories: Solved) -> None:
    unseen = full(histories.world.examples(5))
    # Half of the pairs are of one group, and their order is anybody's guess: 1 * .5 + .5 * .5.
    assert paired_auc(histories.towers, unseen) == pytest.approx(0.75, abs=0.06)
    assert paired_auc(histories.towers, shuffled(unseen)) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_collapsed_towers_do_not_look_good(value: float) -> None:
    world = World(known_users=False, attributes=False)
    towers = world.build()
    with torch.no_grad():
        towers.items.ids.weight.fill_(value)
    assert measure(towers, full(world.examples(5))) == 0.0
    assert paired_auc(towers, full(world.examples(5))) == pytest.approx(
        0.5 if value == 0.0 else value, nan_ok=True
    )
