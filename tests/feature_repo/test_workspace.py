"""Files and folders appear whole or not at all, and hashes do not change."""

import os
import subprocess
import sys

import pytest

from feature_repo import workspace as w
from feature_repo.workspace import MissingStage, Workspace, staged_folder


def contents(folder):
    return sorted(path.name for path in folder.iterdir())


def test_write_makes_folders_and_replaces(tmp_path):
    path = tmp_path / "a" / "b.txt"
    w.write_atomically(path, "é")
    assert path.read_bytes() == "é".encode()
    w.write_atomically(path, b"\xff")
    assert path.read_bytes() == b"\xff"
    assert contents(path.parent) == ["b.txt"]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "f"
    w.write_atomically(path, "old")

    def full(_):
        raise OSError("no space left")

    monkeypatch.setattr(w.os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        w.write_atomically(path, "new")
    assert path.read_text() == "old"
    assert contents(tmp_path) == ["f"]


def test_files_are_readable_as_the_umask_allows(tmp_path):
    old = os.umask(0o022)
    try:
        w.write_atomically(tmp_path / "f", "x")
    finally:
        os.umask(old)
    assert (tmp_path / "f").stat().st_mode & 0o777 == 0o644


def test_json_of_equal_content_is_equal(tmp_path):
    w.write_json(tmp_path / "a", {"b": 1, "a": [None, "é"]})
    w.write_json(tmp_path / "b", {"a": [None, "é"], "b": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert w.read_json(tmp_path / "a") == {"a": [None, "é"], "b": 1}
    with pytest.raises(ValueError, match="JSON"):
        w.write_json(tmp_path / "a", float("nan"))
    assert w.read_json(tmp_path / "a") == {"a": [None, "é"], "b": 1}


def test_links_are_relative_and_replaced(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        w.link_atomically(tmp_path / "current", tmp_path / name)
        assert os.readlink(tmp_path / "current") == name
    assert contents(tmp_path) == ["current", "one", "two"]


def test_a_staged_folder_appears_whole(tmp_path):
    final = tmp_path / "out"
    for text in ("old", "new"):
        with staged_folder(final) as folder:
            (folder / text).write_text(text)
            assert not (final / text).exists()
        assert contents(final) == [text]
    assert contents(tmp_path) == ["out"]


def test_a_failed_stage_leaves_the_old_folder(tmp_path):
    final = tmp_path / "out"
    with staged_folder(final) as folder:
        (folder / "old").touch()
    with pytest.raises(KeyError), staged_folder(final) as folder:
        (folder / "new").touch()
        raise KeyError
    assert contents(final) == ["old"]
    assert contents(tmp_path) == ["out"]


def test_what_a_killed_stage_left_is_removed(tmp_path):
    final = tmp_path / "out"
    script = (
        "import os, signal, sys; from pathlib import Path; from feature_repo.workspace import staged_folder\n"
        "with staged_folder(Path(sys.argv[1])) as folder:\n"
        "    (folder / 'part').write_text('x')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", script, str(final)], check=False).returncode == -9
    assert contents(tmp_path) == [".staging-out"]
    (tmp_path / ".old-out").mkdir()
    with staged_folder(final) as folder:
        assert contents(folder) == []
        (folder / "whole").touch()
    assert contents(final) == ["whole"]
    assert contents(tmp_path) == ["out"]


def test_fingerprints_are_stable(tmp_path):
    assert w.fingerprint("a", {"b": [1, 2.5, None]}) == "7207c7a9ee4430e3"
    assert w.fingerprint({"a": 1, "b": 2}) == w.fingerprint({"b": 2, "a": 1})
    assert w.fingerprint("a", "b") != w.fingerprint("ab") != w.fingerprint(["a", "b"])
    script = "from feature_repo.workspace import fingerprint as f; print(f({'x', 'y', 'z'}))"
    seeds = [{**os.environ, "PYTHONHASHSEED": str(seed)} for seed in range(3)]
    found = [
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env)
        for env in seeds
    ]
    assert len({run.stdout for run in found}) == 1
    assert all(run.returncode == 0 for run in found)
    (tmp_path / "f").write_bytes(b"abc")
    assert (
        w.file_hash(tmp_path / "f")
        == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )


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
