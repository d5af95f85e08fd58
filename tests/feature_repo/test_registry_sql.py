"""Feast's registry in a database: Funnel and Feast's own command use the same one."""

import os
import sys

import pytest
import yaml

from feature_repo.stores.feature_store import feature_store
from feature_repo.stores.registry import RegistryUnavailable, registry_state
from feature_repo.workspace import PROJECT_ROOT, MissingStage, Workspace
from pipelines.features.point_in_time import PointInTime
from serving.releases.verify import registered_features
from tests.support import forked
from tests.support.tiny_release import register

REPOSITORY = PROJECT_ROOT / "feature_repo"


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    monkeypatch.setenv("FUNNEL_PROFILE", "cluster")
    monkeypatch.setenv("FUNNEL_REDIS", "127.0.0.1:1")  # not called
    monkeypatch.setenv("FUNNEL_SPARK_MASTER", "local[1]")
    monkeypatch.setenv("FUNNEL_REGISTRY", f"sqlite:///{tmp_path / 'registry.sqlite'}")
    monkeypatch.setenv("FUNNEL_HOME", str(tmp_path / "w"))
    return Workspace(tmp_path / "w")


def feast_lists_services():
    os.chdir(REPOSITORY)
    sys.argv = ["feast", "-f", "feature_store.cluster-sql.yaml", "feature-services", "list"]
    from feast.cli.cli import cli

    cli()


def test_features_are_registered_in_the_database(workspace, monkeypatch, tmp_path):
    assert registry_state(workspace) is None
    assert registered_features(workspace)() == {"user": set(), "item": set()}
    with pytest.raises(MissingStage, match="run 'funnel materialize'"):
        PointInTime(workspace)

    register(workspace)
    before = registry_state(workspace)
    assert before is not None and not workspace.feast_registry.exists()
    in_database = registered_features(workspace)()

    monkeypatch.setenv("FUNNEL_PROJECT", "another_shop")
    assert registry_state(workspace) is None
    register(workspace)
    assert registry_state(workspace) not in (None, before)
    assert feature_store(workspace).project == "another_shop"
    assert registered_features(workspace)() == in_database
    code, said = forked.run(feast_lists_services, out=tmp_path / "said")
    assert code == 0 and "ranking_v1" in said, said[-2_000:]
    monkeypatch.delenv("FUNNEL_PROJECT")
    assert registry_state(workspace) == before

    monkeypatch.delenv("FUNNEL_REGISTRY")
    assert registry_state(workspace) is None
    register(workspace)
    assert registered_features(workspace)() == in_database
    in_file = registry_state(workspace)
    os.utime(workspace.feast_registry)
    assert registry_state(workspace) not in (None, in_file)


@pytest.mark.parametrize(
    "url",
    ["sqlite:////no/such/folder/registry", "postgresql+psycopg://me:hidden@127.0.0.1:1/feast"],
)
def test_a_database_that_does_not_answer_is_said_without_its_password(workspace, monkeypatch, url):
    monkeypatch.setenv("FUNNEL_REGISTRY", url)
    with pytest.raises(RegistryUnavailable, match="FUNNEL_REGISTRY cannot be read") as refused:
        registry_state(workspace)
    assert "hidden" not in str(refused.value)


def test_the_two_files_of_the_profile_differ_in_the_registry_only():
    in_file, in_database = (
        yaml.safe_load((REPOSITORY / name).read_text())
        for name in ("feature_store.cluster.yaml", "feature_store.cluster-sql.yaml")
    )
    for config in (in_file, in_database):
        del config["registry"], config["project"]
    assert in_file == in_database
