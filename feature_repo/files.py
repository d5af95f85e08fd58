"""Locks, files that are replaced in one step, and folders that appear only when they are complete.

What appears under its name is on the disk: content is synced before the rename and the folder after
it, so that a power cut leaves the old or the new, never an empty file of the right name.

A light module: Spark's Python workers import it.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import shutil
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from feature_repo.errors import FunnelError
from feature_repo.processes import is_running

TEMPORARY = ".tmp"
"""The suffix of a file that is being written; its name begins with a dot."""


class LockHeld(FunnelError):
    """Another process holds a lock that was asked for without waiting.

    Attributes:
        holder: the process, in words.

    """

    def __init__(self, path: Path) -> None:
        self.holder = _holder_of(path)
        super().__init__(f"{self.holder} holds the lock {path}")


def lock(file: IO[Any], *, shared: bool = False, blocking: bool = True) -> None:
    """Lock an open file until it is closed; a lock that the file has already is converted.

    The kernel releases the lock when the last descriptor is closed, also if the process is killed.

    Raises:
        LockHeld: ``blocking`` is false and another process holds a conflicting lock.

    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(file, kind if blocking else kind | fcntl.LOCK_NB)
    except BlockingIOError:
        raise LockHeld(Path(file.name)) from None


@contextmanager
def locked(path: Path, *, shared: bool = False, blocking: bool = True) -> Iterator[IO[bytes]]:
    """Hold the lock of a file, which is created if need be, and yield the open file.

    Whoever holds it alone is named in the file, so that others can say whom they wait for.

    Args:
        path: the lock file; it stays when the lock is released.
        shared: allow other shared holders; exclusive otherwise.
        blocking: wait until the lock is free.

    Raises:
        LockHeld: ``blocking`` is false and another process holds a conflicting lock.

    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        lock(file, shared=shared, blocking=blocking)
        if not shared:
            _sign(file)
        try:
            yield file
        finally:
            if not shared:
                file.truncate(0)
            fcntl.flock(file, fcntl.LOCK_UN)  # a child forked meanwhile has the file open as well


def _sign(file: IO[bytes]) -> None:
    """Write into a lock file who holds it."""
    words = list(itertools.takewhile(lambda word: not word.startswith("-"), sys.argv[1:3]))
    holder = {
        "pid": os.getpid(),
        # Without options: they may name a user, who must not be remembered here.
        "command": " ".join([Path(sys.argv[0]).name, *words]),
        "since": datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
    }
    file.truncate(0)
    with contextlib.suppress(OSError):  # a full disk must not cost the lock
        file.write(json.dumps(holder).encode())
        file.flush()


def _holder_of(path: Path) -> str:
    """Return who holds a lock, as far as its file says so."""
    try:
        holder = json.loads(path.read_bytes())
        if is_running(holder["pid"]):
            return f"process {holder['pid']} ('{holder['command']}', since {holder['since']})"
    except (OSError, ValueError, TypeError, KeyError):
        pass
    return "another process"


@contextmanager
def replace_atomically(path: Path) -> Iterator[Path]:
    """Yield the path of a temporary file that replaces ``path`` only if the block succeeds.

    The temporary file is in the same folder and its name is always the same: only one writer at a
    time, and what a killed writer left is overwritten.
    """
    with _replacing(path, path.with_name(f".{path.name}{TEMPORARY}")) as temporary:
        yield temporary


def write_atomically(path: Path, content: str | bytes, *, mode: int = 0o666) -> None:
    """Write a file so that readers see the old or the new content, never a part.

    Several processes may write the same path: the last one wins.

    Args:
        path: the file to write; its folder is made if need be.
        content: the whole content, text as UTF-8.
        mode: its permissions, less what the umask takes away.

    """
    data = content.encode() if isinstance(content, str) else content
    unique = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}{TEMPORARY}")
    with _replacing(path, unique) as temporary:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)


def write_json(path: Path, value: Any, *, mode: int = 0o666) -> None:
    """Write JSON atomically, keys sorted, so that equal content gives equal bytes."""
    text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n"
    write_atomically(path, text, mode=mode)


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def link_atomically(link: Path, target: Path) -> None:
    """Point a symbolic link at ``target`` in one step."""
    temporary = link.with_name(f".{link.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    try:
        temporary.symlink_to(os.path.relpath(target, link.parent))
        os.replace(temporary, link)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(link.parent)


@contextmanager
def staged_folder(final: Path) -> Iterator[Path]:
    """Yield an empty folder beside ``final`` that becomes ``final`` only if the block succeeds.

    What a killed run left is removed first, so a stage can always be run again.
    """
    staging = final.with_name(f".staging-{final.name}")
    old = final.with_name(f".old-{final.name}")
    for leftover in (staging, old):
        shutil.rmtree(leftover, ignore_errors=True)

    staging.mkdir(parents=True)
    try:
        yield staging
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise

    publish_folder(staging, final, old)
    shutil.rmtree(old, ignore_errors=True)


def publish_folder(staging: Path, final: Path, old: Path) -> None:
    """Give a finished folder its name, on the disk with all that is in it.

    Args:
        staging: the folder with its final content.
        final: its name from now on, in an existing folder of the same file system.
        old: where a folder that has the name is moved.

    """
    _sync_tree(staging)
    if final.exists():
        os.replace(final, old)  # a rename: `final` is missing only between two system calls
    os.replace(staging, final)
    sync_folder(final.parent)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it; each new name is on the disk."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Write a folder's list of names to the disk: after a crash, a new file exists only with it."""
    _sync(folder)


@contextmanager
def _replacing(path: Path, temporary: Path) -> Iterator[Path]:
    make_folder(path.parent)
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def _sync_tree(folder: Path) -> None:
    """Sync every file below a folder, and then the folders from the innermost outwards."""
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            path = Path(parent, name)
            if not path.is_symlink():
                _sync(path)
        _sync(Path(parent))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
