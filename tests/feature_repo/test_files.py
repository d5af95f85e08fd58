"""Locks exclude, and files and folders appear whole or not at all."""

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from feature_repo import files
from feature_repo.errors import FunnelError
from feature_repo.files import LockHeld, locked, replace_atomically, staged_folder


def contents(folder):
    return sorted(path.name for path in folder.iterdir())


def test_write_makes_folders_and_replaces(tmp_path):
    path = tmp_path / "a" / "b.txt"
    files.write_atomically(path, "é")
    assert path.read_bytes() == "é".encode()
    files.write_atomically(path, b"\xff")
    assert path.read_bytes() == b"\xff"
    assert contents(path.parent) == ["b.txt"]


@pytest.fixture
def steps(monkeypatch):
    """What is synced and renamed, in order; a name with / is a folder's."""
    done = []
    sync, replace = os.fsync, os.replace

    def synced(descriptor):
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        done.append(("sync", f"{path.name}/" if path.is_dir() else path.name))
        sync(descriptor)

    def renamed(source, target):
        done.append(("rename", Path(target).name))
        replace(source, target)

    monkeypatch.setattr(files.os, "fsync", synced)
    monkeypatch.setattr(files.os, "replace", renamed)
    return done


def test_a_file_is_on_the_disk_before_it_has_its_name_and_its_name_before_the_caller_goes_on(
    tmp_path, steps
):
    with replace_atomically(tmp_path / "f") as temporary:
        temporary.write_text("x")
    assert steps == [("sync", ".f.tmp"), ("rename", "f"), ("sync", f"{tmp_path.name}/")]
    steps.clear()
    files.write_atomically(tmp_path / "new" / "inner" / "f", "x")
    assert steps[:2] == [("sync", f"{tmp_path.name}/"), ("sync", "new/")], "the folders' own names"
    assert [what for what, _ in steps[2:]] == ["sync", "rename", "sync"]
    assert steps[-1] == ("sync", "inner/")
    steps.clear()
    files.link_atomically(tmp_path / "current", tmp_path / "f")
    assert steps == [("rename", "current"), ("sync", f"{tmp_path.name}/")]


def test_a_folder_is_on_the_disk_with_all_that_is_in_it_before_it_has_its_name(tmp_path, steps):
    with staged_folder(tmp_path / "out") as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "deep").write_text("x")
        (folder / "top").write_text("x")
        (folder / "link").symlink_to("top")
    renamed = steps.index(("rename", "out"))
    assert set(steps[:renamed]) == {
        ("sync", name) for name in ("deep", "inner/", "top", ".staging-out/")
    }
    assert steps.index(("sync", "deep")) < steps.index(("sync", "inner/"))
    assert steps[renamed - 1] == ("sync", ".staging-out/")
    assert steps[renamed + 1 :] == [("sync", f"{tmp_path.name}/")]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "f"
    files.write_atomically(path, "old")

    def full(_):
        raise OSError("no space left")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        files.write_atomically(path, "new")
    assert path.read_text() == "old"
    assert contents(tmp_path) == ["f"]


def test_files_are_readable_as_the_umask_allows(tmp_path):
    old = os.umask(0o022)
    try:
        files.write_atomically(tmp_path / "f", "x")
    finally:
        os.umask(old)
    assert (tmp_path / "f").stat().st_mode & 0o777 == 0o644


def test_permissions_are_the_file_s_from_its_first_moment(tmp_path, monkeypatch):
    modes, replace = [], os.replace

    def noted(source, target):
        modes.append(source.stat().st_mode & 0o777)
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", noted)
    files.write_json(tmp_path / "secret", {}, mode=0o600)
    files.write_atomically(tmp_path / "script", "#!/bin/sh\n", mode=0o755)
    assert modes == [0o600, 0o755]


def test_json_of_equal_content_is_equal(tmp_path):
    files.write_json(tmp_path / "a", {"b": 1, "a": [None, "é"]})
    files.write_json(tmp_path / "b", {"a": [None, "é"], "b": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert files.read_json(tmp_path / "a") == {"a": [None, "é"], "b": 1}
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(tmp_path / "a", float("nan"))
    assert files.read_json(tmp_path / "a") == {"a": [None, "é"], "b": 1}


def test_links_are_relative_and_replaced(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        files.link_atomically(tmp_path / "current", tmp_path / name)
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
        "import os, signal, sys; from pathlib import Path; "
        "from feature_repo.files import staged_folder\n"
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


def test_a_replaced_file_appears_whole(tmp_path):
    path = tmp_path / "a" / "model.bin"
    with replace_atomically(path) as temporary:
        temporary.write_bytes(b"old")
        assert temporary.parent == path.parent and not path.exists()
    with replace_atomically(path) as temporary:
        temporary.write_bytes(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert contents(path.parent) == ["model.bin"]


def test_a_failed_replacement_leaves_the_old_file(tmp_path):
    path = tmp_path / "f"
    path.write_text("old")
    with pytest.raises(KeyError), replace_atomically(path) as temporary:
        temporary.write_text("half")
        raise KeyError
    assert path.read_text() == "old"
    assert contents(tmp_path) == ["f"]


def test_a_killed_writer_leaves_nothing_once_the_file_is_written_again(tmp_path):
    (tmp_path / ".f.tmp").write_text("a longer half")
    with replace_atomically(tmp_path / "f") as temporary:
        temporary.write_text("whole")
    assert (tmp_path / "f").read_text() == "whole"
    assert contents(tmp_path) == ["f"]


@pytest.mark.parametrize(
    ("held_shared", "asked_shared", "refused"),
    [(False, False, True), (False, True, True), (True, False, True), (True, True, False)],
)
def test_only_shared_locks_are_held_together(tmp_path, held_shared, asked_shared, refused):
    path = tmp_path / "a" / ".lock"
    with locked(path, shared=held_shared):
        if refused:
            with (
                pytest.raises(LockHeld, match=r" holds the lock .*\.lock"),
                locked(path, shared=asked_shared, blocking=False),
            ):
                raise AssertionError("not reached")
        else:
            with locked(path, shared=asked_shared, blocking=False):
                pass
    with locked(path, shared=asked_shared, blocking=False):
        pass
    assert issubclass(LockHeld, FunnelError)


WAITS = """
import sys
from pathlib import Path
from feature_repo.files import locked
print("starts", flush=True)
with locked(Path(sys.argv[1])):
    print("locked", flush=True)
"""


def test_a_lock_is_waited_for(tmp_path):
    path = tmp_path / ".lock"
    with locked(path):
        process = subprocess.Popen(
            [sys.executable, "-c", WAITS, str(path)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout.readline() == "starts\n"
        assert not select.select([process.stdout], [], [], 0.2)[0]
    assert process.communicate(timeout=30)[0] == "locked\n"
    assert process.returncode == 0


def test_a_forked_child_does_not_prolong_a_lock(tmp_path):
    path = tmp_path / ".lock"
    with locked(path):
        child = os.fork()
        if child == 0:  # it has inherited the open file
            signal.pause()
    try:
        with locked(path, blocking=False):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_an_open_file_converts_its_lock(tmp_path):
    path = tmp_path / ".lock"
    with path.open("ab") as mine:
        files.lock(mine, shared=True)
        with locked(path, shared=True), pytest.raises(LockHeld, match=r"\.lock"):
            files.lock(mine, blocking=False)
        files.lock(mine, blocking=False)
        with pytest.raises(LockHeld, match=r"\.lock"), locked(path, shared=True, blocking=False):
            raise AssertionError("not reached")
