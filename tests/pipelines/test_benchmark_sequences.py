"""``funnel benchmark sequences`` on a tiny file, as a user would run it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from benchmarks.sequences import _popular, _transitions
from retrieval.sequences.dataset import from_pairs
from tests.support.command_line import funnel


def test_a_tiny_file_from_end_to_end(tmp_path: Path) -> None:
    draw = np.random.default_rng(1)
    starts = draw.integers(12, size=40)
    steps = [(user, (start + step) % 12) for user, start in enumerate(starts) for step in range(9)]
    (tmp_path / "log.txt").write_text("".join(f"{user} {item}\n" for user, item in steps))
    done = funnel(
        "benchmark",
        "sequences",
        "--data-dir",
        str(tmp_path),
        "--home",
        str(tmp_path / "work"),
        "--epochs",
        "2",
        "--seeds",
        "2",
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    expected = {
        "hr@10",
        "ndcg@10",
        "hr@10_std",
        "ndcg@10_std",
        "seeds",
        "epochs",
        "seconds",
        "device",
        "selected_on",
    }
    assert expected <= set(figures)
    assert (figures["seeds"], figures["selected_on"], figures["dimension"]) == (
        2,
        "validation",
        256,
    )
    assert (
        figures["ranked"] == "unseen"
        and figures["hr@10"] == figures["unseen_hr@10"] >= figures["all_hr@10"]
    )
    assert 0 < figures["ndcg@10"] <= figures["hr@10"] <= 1 and figures["epochs"] <= 2
    assert "popular" in done.stderr and "item transitions" in done.stderr
    assert not any((tmp_path / "work").iterdir())


def test_a_mistake_is_one_sentence(tmp_path: Path) -> None:
    done = funnel("benchmark", "sequences", "--data-dir", str(tmp_path / "nowhere"))
    assert done.returncode == 2 and done.stdout == ""
    assert (
        done.stderr.splitlines()[-1].startswith("funnel: there is no ")
        and "Traceback" not in done.stderr
    )


def test_counting_by_hand() -> None:
    # Codes: p 1, q 2, r 3, s 4. Tests: r after q (seen once: p q r), and s after p, which q always
    # followed.
    log = from_pairs(list("aaaabbbcc"), ["p", "q", "r", "p", "p", "q", "r", "p", "q"])
    assert log.testable.tolist() == [0, 1]
    transitions, popular = _transitions(log), _popular(log)
    assert transitions["all_hr@10"] == popular["all_hr@10"] == 1.0
    # User a: after r nothing was seen to follow, so popularity (p 3, q 3, r 1) puts p and q first:
    # p at the middle, 0. User b: after q came r once: first.
    assert transitions["all_ndcg@10"] == 1.0
    assert transitions["unseen_hr@10"] == popular["unseen_hr@10"] == 0.5  # a took p up before
    # Popularity alone: p is first for a; r is third for b.
    assert popular["all_ndcg@10"] == (1.0 + 0.5) / 2
