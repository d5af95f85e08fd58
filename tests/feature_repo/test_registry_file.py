"""Feast's registry is whole after a full disk, and a torn one is made anew by ``apply``."""

import resource

import pytest

from feature_repo.parquet_files import files_set_aside
from feature_repo.stores.feature_store import apply, feature_store
from feature_repo.workspace import Workspace
from tests.support import forked
from tests.support.tiny_release import register


@pytest.fixture
def workspace(tmp_path):
    workspace = Workspace(tmp_path / "w")
    register(workspace)
    return workspace


def apply_without_room(workspace):
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, hard))
    apply(feature_store(workspace), workspace)


def views(workspace):
    return sorted(view.name for view in feature_store(workspace).list_batch_feature_views())


def test_a_full_disk_leaves_the_registry_as_it_was(workspace, tmp_path):
    before = workspace.feast_registry.read_bytes()
    assert len(before) > 2_000
    code, _ = forked.run(apply_without_room, workspace, out=tmp_path / "out")
    assert code == 1 and workspace.feast_registry.read_bytes() == before
    assert views(workspace)
    assert not list(workspace.feast_registry.parent.glob(".*"))


def test_a_torn_registry_is_set_aside_and_applied_anew(workspace, caplog):
    known = views(workspace)
    path = workspace.feast_registry
    path.write_bytes(path.read_bytes()[:-7])
    assert views(workspace) == []
    assert len(files_set_aside(path.parent)) == 1 and "funnel materialize" in caplog.text
    apply(feature_store(workspace), workspace)
    assert views(workspace) == known
