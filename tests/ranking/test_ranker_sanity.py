"""The checks that every training runs: a sound kind passes, a broken one is named."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from feature_repo.sanity import CannotLearn, Guard, check_chance, check_learnt
from ranking.training.fit import fit
from ranking.training.fit_dcn import train_network
from ranking.training.sanity import GRADIENT_KINDS, chance_tolerance, check_kind
from tests.support.planted_rows import CONFIG, Trained, planted, silent, task_of


@pytest.mark.parametrize("kind", ["logistic", "lightgbm", "lambdarank", "dcn"])
def test_figures_of_the_checks_are_in_the_report(trained: Trained, kind: str) -> None:
    figures = trained.report.kinds[kind].sanity
    assert abs(figures["shuffled_auc"] - 0.5) <= figures["shuffled_tolerance"] < 0.08
    if kind in GRADIENT_KINDS:
        # Half of the batch is positive: a loss of log 2 a head before anything is learnt, for heads
        # balanced alike.
        assert figures["one_batch_loss_after"] < figures["one_batch_loss_before"] / 2
        assert 0 < figures["largest_gradient_norm"] < 1_000
    assert figures["steps"] > 0


def test_tolerance_is_four_standard_errors() -> None:
    # 50 positives among 100: sqrt(101 / (12 * 2,500)) = .05802
    assert chance_tolerance(50, 50) == pytest.approx(0.2321, abs=1e-4)


def test_equal_rows_with_other_labels_cannot_be_learnt() -> None:
    data = planted(1, requests=10)
    same = replace(
        data, numeric=np.ones_like(data.numeric), categorical=np.ones_like(data.categorical)
    )
    for kind in GRADIENT_KINDS:
        with pytest.raises(CannotLearn, match=f"^{kind}: one batch cannot be overfitted: loss"):
            check_kind(kind, task_of(same))


def test_labels_of_one_class_leave_nothing_to_check() -> None:
    data = planted(1, requests=10)
    for value in (0.0, 1.0):
        one_class = replace(data, labels=np.full_like(data.labels, value))
        assert check_kind("dcn", task_of(one_class)) == {}
    assert check_kind("popularity", task_of(data)) == {}


def test_an_order_that_follows_shuffled_labels_is_a_leak() -> None:
    check_chance("dcn", 0.55, 0.06)
    check_chance("dcn", 0.45, 0.06)
    for found in (0.57, 0.43, math.nan):
        with pytest.raises(
            CannotLearn, match=r"^dcn: AUC .* on shuffled labels .* held-out labels leak"
        ):
            check_chance("dcn", found, 0.06)


def test_a_loss_must_fall_below_half() -> None:
    check_learnt("towers of one item", 0.0, 0.0)
    check_learnt("dcn", 1.0, 0.49)
    for after in (0.5, math.nan):
        with pytest.raises(CannotLearn, match="one batch"):
            check_learnt("dcn", 1.0, after)


def test_the_guard_names_the_step() -> None:
    guard = Guard("dcn")
    guard(0.7, 900.0)  # the first steps may be steep
    guard(0.6, 3.0)
    guard(0.6, 3.0)
    assert guard.largest_norm == 900.0 and guard.steps == 3
    with pytest.raises(CannotLearn, match="^dcn: gradient norm 3001 at step 4, 3 is usual"):
        guard(0.6, 3_001.0)
    with pytest.raises(CannotLearn, match="^dcn: loss nan, gradient norm 1 at step 5"):
        guard(math.nan, 1.0)
    with pytest.raises(CannotLearn, match="gradient norm inf at step 6"):
        guard(0.5, math.inf)


def test_small_norms_may_grow() -> None:
    guard = Guard("dcn")
    guard(0.1, 1e-9)
    guard(0.1, 999.0)
    with pytest.raises(CannotLearn, match="gradient norm 1.001e+06 at step 3".replace("+", "[+]")):
        guard(0.1, 1_001_000.0)


def test_a_training_that_diverges_is_stopped() -> None:
    data = planted(6, requests=40)
    config = replace(CONFIG.dcn, learning_rate=1e30, min_steps=20, batch=128)
    with pytest.raises(CannotLearn, match=r"^dcn: .* at step \d+"):
        train_network(task_of(data, config=replace(CONFIG, dcn=config)), Guard("dcn"), silent)


@pytest.mark.parametrize("kind", ["popularity", "logistic", "lightgbm", "lambdarank", "dcn"])
def test_a_seed_gives_the_same_bits_again(kind: str) -> None:
    train, stop = planted(7, requests=60), planted(8, requests=30)
    config = replace(CONFIG, dcn=replace(CONFIG.dcn, min_steps=20, epochs=1))
    task = task_of(train, stop, config)
    one, same = (
        fit(kind, task, Guard(kind), silent).predict(stop.numeric, stop.categorical)
        for _ in range(2)
    )
    assert np.array_equal(one, same)
