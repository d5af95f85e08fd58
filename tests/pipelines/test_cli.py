"""The command line as a person meets it, and Feast's own."""

import os
import re
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from feature_repo import columns as c
from feature_repo.dataset import DatasetSpec, load_spec
from feature_repo.stores.embedded_redis import release as stop_redis
from feature_repo.stores.feature_store import feature_store
from feature_repo.workspace import Workspace
from pipelines.commands.cli import app
from pipelines.workflow.stages import known_specs
from tests.support.command_line import funnel

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = [
    "ingest",
    "features",
    "materialize",
    "tune",
    "train",
    "release",
    "evaluate",
    "serve",
    "keys",
    "erase",
    "batch",
    "demo",
    "skew",
    "benchmark",
    "importance",
    "learning-curve",
    "compress",
]


def test_every_command_explains_itself():
    said = funnel("--help").stdout
    assert all(command in said for command in COMMANDS)


@pytest.mark.parametrize(
    "stage", ["features", "materialize", "release", "evaluate", "serve", "importance", "compress"]
)
def test_a_stage_before_its_turn_says_which_one_to_run(stage, tmp_path):
    done = funnel(stage, "--home", tmp_path / "empty")
    assert done.returncode == 2
    assert re.fullmatch(r"(.*\n)?funnel: no .*run 'funnel \w+'.*\n", done.stderr), done.stderr
    assert not (tmp_path / "empty" / "ingest").exists()


class Reached(Exception):
    """Raised in a training's or an evaluation's place, with what it was given."""


def test_options_of_train_become_its_settings(monkeypatch, tmp_path):
    def trained(_workspace, _progress, settings, **_):
        raise Reached(settings)

    monkeypatch.setattr("pipelines.training.train.train", trained)
    options = ["--no-logq", "--seed", "5", "--candidates", "similar=100"]
    options += ["--candidates", "two_tower=400", "--kind", "lambdarank", "--requests", "400"]
    reached = CliRunner().invoke(app, ["train", "--home", str(tmp_path), *options]).exception
    assert isinstance(reached, Reached)
    settings = reached.args[0]
    sample, quota = settings.sample, settings.quota
    assert settings.towers.logq is False
    assert (settings.towers.seed, settings.rankers.seed, sample.seed) == (5, 5, 5)
    assert settings.rankers.kinds == ("lambdarank",)
    requests = (sample.train_requests, sample.calibrate_requests, sample.selection_requests)
    assert requests == (400, 100, 100)
    assert (quota.similar, quota.two_tower, quota.new) == (100, 400, 70)
    assert settings.shape is settings.warm_start is None


def test_an_unknown_kind_of_ranker_names_the_known_ones(tmp_path):
    done = CliRunner().invoke(app, ["train", "--home", str(tmp_path), "--kind", "svm"])
    assert done.exit_code == 2
    assert "svm" in done.output and "lambdarank" in done.output


def test_options_of_evaluate_reach_it(monkeypatch, built):
    def evaluated(_workspace, folder, _progress, limit, **given):
        raise Reached(folder, limit, given)

    monkeypatch.setattr("pipelines.evaluation.evaluate.evaluate", evaluated)
    of = [
        "--home",
        str(built.workspace.root),
        "--replay",
        "--ablations",
        "--limit",
        "9",
        "--peer-minutes",
        "3",
    ]
    reached = (
        CliRunner()
        .invoke(app, ["evaluate", *of, "--no-baselines", "--against", built.release.name])
        .exception
    )
    assert isinstance(reached, Reached)
    folder, limit, given = reached.args
    assert (folder.name, limit) == (built.release.name, 9)
    assert given == {"baselines": False, "peer_minutes": 3.0, "ablations": True, "against": folder}


def test_a_wrong_spec_is_one_sentence_and_exit_code_2(tmp_path):
    (tmp_path / "dataset.toml").write_text(
        'name = "x"\n[events]\npath = "e.csv"\nuser = "u"\nitem = "i"\n'
    )
    done = funnel("ingest", "--data", tmp_path / "dataset.toml", "--home", tmp_path / "w")
    assert done.returncode == 2
    assert "events.timestamp" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "w").exists()


def test_a_missing_column_is_one_sentence_and_nothing_is_written(tmp_path):
    (tmp_path / "dataset.toml").write_text(
        'name = "x"\n[events]\npath = "e.csv"\nuser = "u"\nitem = "i"\ntimestamp = "when"\n'
    )
    (tmp_path / "e.csv").write_text("u,i,t\na,b,1700000000\n")
    done = funnel("ingest", "--data", tmp_path / "dataset.toml", "--home", tmp_path / "w")
    assert done.returncode == 2
    assert "e.csv" in done.stderr and "when" in done.stderr
    assert not (tmp_path / "w").exists()


def test_an_unknown_data_set_names_the_known_ones():
    done = funnel("ingest", "--data", "netflix")
    assert done.returncode == 2
    assert all(name in done.stderr for name in known_specs())


def test_the_readme_describes_a_valid_data_set(tmp_path):
    block = (ROOT / "README.md").read_text().split("## Bring your own data")[1].split("\n## ")[0]
    block = block.split("\n    name = ")[1]
    lines = [
        'name = "my-shop"',
        *(line[4:] for line in block.splitlines()[1:] if line.startswith("    ")),
    ]
    (tmp_path / "dataset.toml").write_text(
        "\n".join(lines[: lines.index('category = "department"') + 1])
    )
    spec = load_spec(tmp_path / "dataset.toml")
    assert isinstance(spec, DatasetSpec)
    assert spec.positive_types == ["view", "purchase"]
    assert len(lines) <= 25


def test_batch_gives_everyone_a_list(built, tmp_path):
    done = funnel(
        "batch", "--out", tmp_path / "r.parquet", "--k", 7, "--home", built.workspace.root
    )
    assert done.returncode == 0, done.stderr[-2_000:]
    rows = pq.read_table(tmp_path / "r.parquet").to_pylist()
    assert len({row[c.USER] for row in rows}) == len(rows) > 300
    assert all(len(set(row["item_ids"])) == 7 for row in rows)


def test_feast_on_its_own_command_line(copied, tmp_path):
    """From a project folder with `work/current`, on a store that nothing was written to yet."""
    shutil.copytree(
        ROOT / "feature_repo",
        tmp_path / "feature_repo",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "current").symlink_to(copied.root)
    shutil.rmtree(copied.root / "feast")
    environment = {**os.environ, "FUNNEL_HOME": str(tmp_path / "work" / "current")}
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S")
    feast = Path(sys.executable).with_name("feast")
    for arguments in (
        ["apply"],
        ["materialize", "2015-01-01T00:00:00", now],
        ["materialize-incremental", now],
    ):
        done = subprocess.run(
            [feast, *arguments],
            cwd=tmp_path / "feature_repo",
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout[-1_500:] + done.stderr[-1_500:]
    store = feature_store(Workspace(copied.root.resolve()))
    rows = [{c.USER: f"u{n:04}"} for n in range(1, 30)]
    answer = store.get_online_features(
        features=["user_activity:events_all"], entity_rows=rows
    ).to_dict()
    assert any(answer["events_all"])
    stop_redis(copied.redis)
