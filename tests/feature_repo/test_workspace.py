"""The paths below a working folder, and which folder is in use."""

import pytest

from feature_repo import workspace as w
from feature_repo.workspace import MissingStage, Workspace


def test_paths_and_the_spec(tmp_path, monkeypatch):
    workspace = Workspace(tmp_path)
    with pytest.raises(MissingStage, match="funnel ingest"):
        workspace.spec()
    below = [
        workspace.ingest,
        workspace.features,
        workspace.feast_registry,
        workspace.redis,
        workspace.models,
    ]
    below += [workspace.releases, workspace.tracking]
    assert len(set(below)) == 7
    assert all(path.is_relative_to(tmp_path) for path in below)
    monkeypatch.setenv("FUNNEL_HOME", str(tmp_path))
    assert w.default_root() == tmp_path
    monkeypatch.setenv("FUNNEL_HOME", "")
    assert w.default_root() == w.PROJECT_ROOT / "work" / "current"


def test_an_installed_package_works_in_the_current_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(w, "PROJECT_ROOT", tmp_path / "site-packages")
    monkeypatch.setenv("FUNNEL_HOME", "")
    monkeypatch.chdir(tmp_path)
    assert w.default_root() == tmp_path / "work" / "current"
