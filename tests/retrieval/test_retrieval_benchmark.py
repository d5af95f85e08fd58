"""`funnel benchmark retrieval` as a person runs it, on a small world."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.support.block_world import BEST, blocks, lines
from tests.support.command_line import funnel

KEYS = {
    *("recall@20", "ndcg@20", "recall@20_std", "ndcg@20_std", "recall@20_64d", "ndcg@20_64d"),
    *("seeds", "epochs", "seconds", "device", "selected_on", "dimension"),
}


def benchmark(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["benchmark", "retrieval", "--data-dir", folder, *arguments]
    return funnel(*command, COLUMNS="200")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    known, held = blocks()
    (tmp_path / "train.txt").write_text(lines(known))
    (tmp_path / "test.txt").write_text(lines(held))
    return tmp_path


def test_from_files_to_figures(folder: Path) -> None:
    done = benchmark(
        folder, "--layout", "lightgcn", "--seeds", "2", "--dimension", "16", "--minutes", "3"
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures.keys() >= KEYS
    assert figures["recall@20"] > 0.9 * BEST
    assert figures["recall@20_64d"] > 0.9 * BEST
    assert 0 < figures["ndcg@20"] < 1
    assert figures["recall@20_std"] >= 0
    assert (figures["seeds"], figures["dimension"], figures["selected_on"]) == (2, 16, "validation")
    assert "popular" in done.stderr
    assert "LightGCN (" not in done.stderr, "published figures are of another data set"


def test_hardly_any_time_is_enough_for_a_figure(folder: Path) -> None:
    """The budget is a limit, not a wish: training is cut, not the answer."""
    done = benchmark(folder, "--dimension", "16", "--minutes", "0.1")
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["epochs"] >= 1
    assert figures["recall@20_std"] == 0


def test_bad_input_is_one_sentence_and_exit_code_2(folder: Path) -> None:
    (folder / "train.txt").write_text("0 1 2\n1 x\n")
    done = benchmark(folder)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("funnel: ")
    assert "train.txt, line 2" in done.stderr
    assert "Traceback" not in done.stderr
