"""`funnel benchmark ranking` as a person runs it, on a small world in MovieLens-1M's layout."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from benchmarks.movielens import read_movielens
from feature_repo.dataset import SpecError
from tests.support.command_line import funnel


def benchmark(folder: Path) -> subprocess.CompletedProcess[str]:
    command = ["benchmark", "ranking", "--data-dir", folder]
    return funnel(*command, COLUMNS="200")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Tastes are of users and items, not of the fields: only labels of others can tell."""
    generator = np.random.default_rng(0)
    users, items = 150, 80
    tastes, kinds = generator.normal(size=(users, 3)), generator.normal(size=(items, 3))
    met = generator.choice(users * items, 6_000, replace=False)
    liking = (tastes[met // items] * kinds[met % items]).sum(1) + generator.normal(size=len(met))
    value = np.clip(np.rint(3.6 + liking), 1, 5).astype(int)
    rows = [
        f"{m // items + 1}::{m % items + 1}::{v}::97830{n:04d}"
        for n, (m, v) in enumerate(zip(met, value, strict=True))
    ]
    (tmp_path / "ratings.dat").write_text("\n".join(rows) + "\n")
    people = [f"{u + 1}::{'MF'[u % 2]}::{25 + 10 * (u % 3)}::{u % 4}::0" for u in range(users)]
    (tmp_path / "users.dat").write_text("\n".join(people) + "\n")
    films = [
        f"{i + 1}::Été {i} ({1960 + i % 40})::{'Drama|War' if i % 3 else 'Comedy'}"
        for i in range(items)
    ]
    (tmp_path / "movies.dat").write_text("\n".join(films) + "\n", encoding="latin-1")
    return tmp_path


@pytest.mark.faults
def test_from_files_to_figures(folder: Path) -> None:
    done = benchmark(folder)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures.keys() >= {
        "auc",
        "logloss",
        "ece",
        "auc_std",
        "logloss_std",
        "seeds",
        "seconds",
        "device",
    }
    assert len(figures["models"]) == 5
    assert figures["auc"] > 0.75
    assert figures["auc"] > figures["models"]["logistic regression"]["auc"] + 0.03
    assert 0 < figures["logloss"] < 0.69
    assert figures["ece"] < 0.15
    assert "RecBole" not in done.stderr, "published figures are of another data set"


def test_what_is_read(folder: Path) -> None:
    data = read_movielens(folder)
    raw = [line.split("::") for line in (folder / "ratings.dat").read_text().splitlines()]
    kept = [row for row in raw if row[2] != "3"]
    assert len(data.pairs) == len(kept)
    assert data.pairs.label.sum() == sum(int(row[2]) >= 4 for row in kept)
    assert data.genres == ("Comedy", "Drama", "War")
    users = (folder / "users.dat").read_text()
    (folder / "users.dat").write_text(users.splitlines(keepends=True)[0] + users)
    again = read_movielens(folder)
    assert all(np.array_equal(again.fields[name], data.fields[name]) for name in data.fields)
    parts = data.split(0)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(kept)))
    assert [round(len(part) / len(kept), 2) for part in parts] == [0.8, 0.1, 0.1]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("ratings.dat", "1::1::five::978300000\n", "line 1: rating 'five' is not a number"),
        ("ratings.dat", "1::1::3::978300000\n", "no rating other than 3"),
        ("users.dat", "1::M::25::1::0\n", "users.dat lacks"),
        ("movies.dat", None, "movies.dat is missing"),
    ],
)
def test_bad_input_is_one_sentence(folder: Path, name: str, text: str | None, said: str) -> None:
    (folder / name).unlink()
    if text is not None:
        (folder / name).write_text(text)
    with pytest.raises(SpecError, match=said):
        read_movielens(folder)
