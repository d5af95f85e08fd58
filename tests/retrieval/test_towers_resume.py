"""Interrupted, repeated and changed trainings of the towers."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support import forked
from tests.support.checkerboard import CONFIG, Solved, World, solve

SHORT = replace(CONFIG, epochs=3)
WORLD = World(known_users=True, attributes=True)


class PowerCut(Exception):
    pass


def weights(folder: Path) -> bytes:
    return (folder / "best.safetensors").read_bytes()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Solved:
    return solve(WORLD, tmp_path_factory.mktemp("undisturbed"), SHORT)


def test_seed_decides_every_bit(undisturbed: Solved, tmp_path: Path) -> None:
    solve(WORLD, tmp_path / "same", SHORT)
    solve(WORLD, tmp_path / "other", replace(SHORT, seed=4))
    assert weights(tmp_path / "same") == weights(undisturbed.folder)
    assert weights(tmp_path / "other") != weights(undisturbed.folder)


def killed_training(folder: Path) -> None:
    """Train, and kill this process in the middle of the second epoch."""

    def strike(text: str, step: int, _steps: int) -> None:
        if text.startswith("epoch 2") and step == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    solve(WORLD, folder, SHORT, progress=strike)


def test_killed_training_ends_with_the_same_bytes(undisturbed: Solved, tmp_path: Path) -> None:
    """Another process finishes what a killed one began."""
    code, said = forked.run(killed_training, tmp_path, out=tmp_path.with_suffix(".log"))
    assert code == -signal.SIGKILL, said
    assert (tmp_path / "checkpoint.pt").is_file() and not (tmp_path / "report.json").exists()
    epochs: list[int] = []
    finished = solve(WORLD, tmp_path, SHORT, log=lambda epoch, _: epochs.append(epoch))
    assert epochs == [2, 3]
    assert weights(tmp_path) == weights(undisturbed.folder)
    assert finished.report == undisturbed.report


@pytest.mark.parametrize("epoch", [1, 3])
def test_failure_in_any_epoch_ends_with_the_same_bytes(
    undisturbed: Solved, tmp_path: Path, epoch: int
) -> None:
    def strike(text: str, step: int, steps: int) -> None:
        if text.startswith(f"epoch {epoch}") and step == steps:
            raise PowerCut

    with pytest.raises(PowerCut):
        solve(WORLD, tmp_path, SHORT, progress=strike)
    solve(WORLD, tmp_path, SHORT)
    assert weights(tmp_path) == weights(undisturbed.folder)
    assert (tmp_path / "report.json").read_bytes() == (
        undisturbed.folder / "report.json"
    ).read_bytes()


def test_finished_training_is_loaded_and_other_settings_begin_anew(
    undisturbed: Solved, tmp_path: Path
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("trained again")

    again = solve(WORLD, undisturbed.folder, SHORT, progress=never)
    assert again.report == undisturbed.report
    steps: list[int] = []
    one = replace(SHORT, epochs=1)
    solve(WORLD, tmp_path, one)
    solve(
        WORLD,
        tmp_path,
        replace(one, learning_rate=5e-3),
        progress=lambda _, step, __: steps.append(step),
    )
    assert steps
