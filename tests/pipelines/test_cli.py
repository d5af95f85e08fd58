"""The command line as a person meets it, and Feast's own."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import takewhile
from pathlib import Path

import httpx
import pyarrow.parquet as pq
import pytest
import typer
from typer.testing import CliRunner

from feature_repo import columns as c
from feature_repo.dataset import DatasetSpec, load_spec
from feature_repo.stores.embedded_redis import release as stop_redis
from feature_repo.stores.feature_store import feature_store
from feature_repo.workspace import Workspace
from pipelines.commands.cli import app
from pipelines.workflow.data_sets import known_specs
from tests.support.api_server import free_port
from tests.support.command_line import funnel
from tests.support.forked import Forked
from tests.support.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = {
    *("ingest", "features", "materialize", "train", "release", "evaluate", "demo", "serve"),
    *("stream", "skew", "replay", "batch", "erase", "keys", "tune", "importance"),
    *("learning-curve", "compress", "notebooks", "benchmark"),
}


@pytest.fixture(autouse=True)
def _environment() -> Iterator[None]:
    """Commands in this process set variables for their libraries: undo that."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


def run(*arguments, **environment):
    """Run a command in this process."""
    return CliRunner().invoke(app, [str(one) for one in arguments], env=environment)


def every_command(group, path=()):
    """Yield every command below a group with the words that call it."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from every_command(command, (*path, name))
        yield (*path, name), command


def test_every_command_and_option_is_explained():
    commands = dict(every_command(typer.main.get_command(app)))
    assert {path[0] for path in commands} == COMMANDS
    for path, command in commands.items():
        assert command.help, path
        for parameter in command.params:
            if parameter.name != "help":
                assert parameter.hidden or parameter.help, (path, parameter.name)
    assert run("--help").exit_code == 0


@pytest.mark.parametrize(
    "stage", ["features", "materialize", "release", "evaluate", "serve", "importance", "compress"]
)
def test_a_stage_before_its_turn_says_which_one_to_run(stage, tmp_path):
    done = run(stage, "--home", tmp_path / "empty")
    assert done.exit_code == 2
    assert re.fullmatch(r"(.*\n)?funnel: no .*run 'funnel \w+'.*\n", done.stderr), done.stderr
    assert not (tmp_path / "empty" / "ingest").exists()


def test_the_console_script_says_an_error_in_one_line(tmp_path):
    done = funnel("features", "--home", tmp_path / "empty")
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"funnel: no data in .*\n", done.stderr)


TINY = """name = "tiny"
[events]
path = "e.csv"
user = "u"
item = "i"
timestamp = "t"
"""


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A data set of two events, and a project whose working folders are in `tmp_path/work`."""
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "dataset.toml").write_text(TINY)
    (folder / "e.csv").write_text("u,i,t\na,b,1700000000\nb,c,1700000001\n")
    monkeypatch.setattr("feature_repo.workspace.PROJECT_ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)  # a project without pyproject.toml, as an installed package is
    return folder / "dataset.toml"


def test_ingest_makes_the_folder_of_a_data_set_the_one_in_use(tiny, tmp_path):
    done = run("ingest", "--data", tiny, FUNNEL_HOME="")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "work" / "current").resolve() == tmp_path / "work" / "tiny"
    assert (tmp_path / "work" / "tiny" / "ingest" / "manifest.json").is_file()


@pytest.mark.parametrize("how", ["option", "variable"])
def test_home_is_where_ingest_writes_and_nowhere_else(how, tiny, tmp_path):
    home = tmp_path / "mine"
    option = ["--home", home] if how == "option" else []
    done = run("ingest", "--data", tiny, *option, FUNNEL_HOME=str(home) if not option else "")
    assert done.exit_code == 0, done.output
    assert (home / "ingest" / "manifest.json").is_file()
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("command", ["features", "materialize", "train", "evaluate", "serve"])
def test_the_variable_names_the_folder_of_later_stages(command, tmp_path):
    done = run(command, FUNNEL_HOME=str(tmp_path / "mine"))
    assert done.exit_code == 2
    assert str(tmp_path / "mine") in done.stderr


def test_another_built_in_world_is_not_mixed_in(tmp_path):
    (tmp_path / "ingest").mkdir()
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "config.json").write_text("of an earlier version")
    done = run("ingest", "--home", tmp_path)
    assert done.exit_code == 2
    assert "another built-in world" in done.stderr and "--home" in done.stderr


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
    done = run("ingest", "--data", tmp_path / "dataset.toml", "--home", tmp_path / "w")
    assert done.exit_code == 2
    assert "events.timestamp" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "w").exists()


def test_a_missing_column_is_one_sentence_and_nothing_is_written(tmp_path):
    (tmp_path / "dataset.toml").write_text(
        'name = "x"\n[events]\npath = "e.csv"\nuser = "u"\nitem = "i"\ntimestamp = "when"\n'
    )
    (tmp_path / "e.csv").write_text("u,i,t\na,b,1700000000\n")
    done = run("ingest", "--data", tmp_path / "dataset.toml", "--home", tmp_path / "w")
    assert done.exit_code == 2
    assert "e.csv" in done.stderr and "when" in done.stderr
    assert not (tmp_path / "w").exists()


def test_an_unknown_data_set_names_the_known_ones():
    done = run("ingest", "--data", "netflix")
    assert done.exit_code == 2
    assert all(name in done.stderr for name in known_specs())


def test_the_readme_describes_a_valid_data_set(tmp_path):
    section = (ROOT / "README.md").read_text().split("## Bring your own data")[1]
    block = takewhile(lambda line: line.startswith("    "), section.split("\n\n", 2)[2].split("\n"))
    (tmp_path / "dataset.toml").write_text("\n".join(line[4:] for line in block))
    spec = load_spec(tmp_path / "dataset.toml")
    assert isinstance(spec, DatasetSpec)
    assert spec.positive_types == ["view", "purchase"]
    assert spec.items and spec.items.rename and spec.category


def test_batch_gives_everyone_a_list(built, tmp_path):
    done = funnel(
        "batch", "--out", tmp_path / "r.parquet", "--k", 7, "--home", built.workspace.root
    )
    assert done.returncode == 0, done.stderr[-2_000:]
    rows = pq.read_table(tmp_path / "r.parquet").to_pylist()
    assert len({row[c.USER] for row in rows}) == len(rows) > 300
    assert all(len(set(row["item_ids"])) == 7 for row in rows)


def feast_command(folder, *arguments):
    """Run Feast's own command line in a folder, in a process that has imported it already."""
    os.chdir(folder)
    sys.argv = ["feast", *arguments]
    from feast.cli.cli import cli

    cli()


def feast_serves(folder, environment, rows):
    """Return a feature of some users as ``feast serve`` answers."""
    port, out = free_port(), folder.parent / "serve.log"
    arguments = ("serve", "--host", "127.0.0.1", "--port", str(port))
    server = Forked(feast_command, folder, *arguments, out=out, environment=environment)
    query = {
        "features": ["user_activity:events_all"],
        "entities": {c.USER: [row[c.USER] for row in rows]},
    }

    def asked():
        assert server.poll() is None, out.read_text()[-1_500:]
        with contextlib.suppress(httpx.TransportError):
            return httpx.post(
                f"http://127.0.0.1:{port}/get-online-features", json=query, timeout=20
            )
        return None

    try:
        wait_until(asked, 60)
        answer = asked()
    finally:
        server.send_signal(signal.SIGTERM)  # its workers end with it, and let Redis go
        server.wait(60)
    assert answer.status_code == 200, answer.text
    names = answer.json()["metadata"]["feature_names"]
    return answer.json()["results"][names.index("events_all")]["values"]


@pytest.mark.faults  # six processes of Feast
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
    done = subprocess.run(
        [Path(sys.executable).with_name("feast"), "apply"],
        cwd=tmp_path / "feature_repo",
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-1_500:] + done.stderr[-1_500:]
    for arguments in (
        ["plan"],
        ["data-sources", "list"],
        ["features", "list"],
        ["materialize", "2015-01-01T00:00:00", now],
        ["materialize-incremental", now],
    ):
        out = tmp_path / f"{arguments[0]}.log"
        process = Forked(
            feast_command, tmp_path / "feature_repo", *arguments, out=out, environment=environment
        )
        assert process.wait(600) == 0, out.read_text()[-1_500:]
    store = feature_store(Workspace(copied.root.resolve()))
    rows = [{c.USER: f"u{n:04}"} for n in range(1, 30)]
    answer = store.get_online_features(
        features=["user_activity:events_all"], entity_rows=rows
    ).to_dict()
    assert any(answer["events_all"])
    served = feast_serves(tmp_path / "feature_repo", environment, rows)
    assert served == answer["events_all"]
    stop_redis(copied.redis)
