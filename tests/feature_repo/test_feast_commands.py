"""The commands of ``feast``, run from ``feature_repo/`` on the working folder of FUNNEL_HOME."""

import json
import os
import shutil
import traceback

import pytest

from tests.support import forked
from tests.support.built_once import ROOT
from tests.support.tiny_world import tiny_world

OWN = """
from feast.permissions.permission import Permission
from feast.permissions.policy import RoleBasedPolicy

bi = Permission(name="bi", types=[FeatureService], policy=RoleBasedPolicy(roles=["reader"]))
dashboard = FeatureService(name="dashboard", features=[spend, dear])
"""
ROW = json.dumps([{"user_id": "u0001", "event_timestamp": "2026-01-01T00:00:00"}])
COMMANDS = [
    *[
        "apply",
        "materialize-incremental 2030-01-01T00:00:00",
        "plan",
        "version",
        "configuration",
        "endpoint",
        "registry-dump",
    ],
    *["data-sources list", "data-sources describe spend_push"],
    *["entities list", "entities describe user"],
    *["feature-services list", "feature-services describe dashboard"],
    *["feature-views list", "feature-views describe user_activity", "feature-views describe spend"],
    *["feature-views list-versions spend", "features list", "features list --output json"],
    *["features describe events_7d", "features describe spend_1h"],
    *["on-demand-feature-views list", "on-demand-feature-views describe request_time"],
    *["stream-feature-views list", "stream-feature-views describe spend"],
    *["label-views list", "saved-datasets list", "validation-references list"],
    *["permissions list", "permissions list -v", "permissions describe bi", "permissions check"],
    *["permissions list-roles", "permissions list-roles -v"],
    *["projects list", "projects current_project", "projects describe funnel"],
    "get-online-features -e user_id=u0001 -f user_activity:events_7d -f spend:dearest",
    "monitor run -v margins -g daily --start-date 2020-01-01 --end-date 2020-01-02",
    ["get-historical-features", "-d", ROW, "-f", "spend:spend_1h"],
    ["get-historical-features", "-s", "2020-01-01 00:00:00", "-f", "spend:spend_1h"],
]
"""``apply``, ``materialize-incremental``, and what only reads."""


def run_commands(home, folder):
    """Run all commands in this process; leave what each of them printed."""
    os.environ["FUNNEL_HOME"] = str(home)
    os.chdir(ROOT / "feature_repo")
    from click.testing import CliRunner
    from feast.cli.cli import cli

    said = {}
    for command in COMMANDS:
        words = command.split() if isinstance(command, str) else command
        result = CliRunner().invoke(cli, words)
        trace = "".join(traceback.format_exception(*result.exc_info)) if result.exit_code else ""
        said[" ".join(words)] = [result.exit_code, result.stdout, trace]
    (folder / "said.json").write_text(json.dumps(said))


@pytest.fixture(scope="module")
def said(copy, tmp_path_factory):
    """Exit code, output and traceback of each command, by its words."""
    folder = tmp_path_factory.mktemp("commands")
    with copy(tiny_world(), folder / "w") as workspace:
        declared = workspace.declarations
        (folder / "features.py").write_text(declared.read_text() + OWN)
        shutil.copy(declared.with_name("margins.parquet"), folder)
        spec = workspace.spec().model_copy(update={"features": str(folder / "features.py")})
        (workspace.ingest / "dataset.json").write_text(spec.model_dump_json())
        workspace.feast_registry.unlink()  # 'feast apply' makes it
        code, _ = forked.run(run_commands, workspace.root, folder, out=folder / "out")
        assert code == 0, (folder / "out").read_text()[-2_000:]
        yield json.loads((folder / "said.json").read_text())
        assert (workspace.root / "feast" / "feast_monitoring").is_dir()
    assert not (ROOT / "feature_repo" / "feast_monitoring").exists()


def test_no_command_ends_with_a_traceback(said):
    assert {words: trace[-600:] for words, (code, _, trace) in said.items() if code} == {}
    assert len(said) == len(COMMANDS)


def test_they_read_the_working_folder_and_its_stores(said):
    services = said["feature-services list"][1]
    assert "dashboard" in services and "ranking_v1" in services
    assert "reader" in said["permissions list-roles"][1]
    online = next(out for words, (_, out, _) in said.items() if words.startswith("get-online"))
    read = json.loads(online[online.index("{") :])
    assert read["user_id"] == ["u0001"] and read["events_7d"] != [None]
    assert read["dearest"] != [None]


def test_stream_views_and_python_functions_are_listed(said):
    lines = said["feature-views list"][1].splitlines()
    (dear,) = [line for line in lines if line.startswith("dear ")]
    assert "user" in dear and "item" in dear
    dump = said["registry-dump"][1]
    registered = json.loads(dump[dump.index("{") :])
    names = {view["spec"]["name"] for view in registered["streamFeatureViews"]}
    assert {"spend", "bought", "user_recent"} <= names
    names = {view["spec"]["name"] for view in registered["onDemandFeatureViews"]}
    assert names == {"request_time", "dear"}
