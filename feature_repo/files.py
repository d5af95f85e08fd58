"""Locks, files that are replaced in one step, and folders that appear only when they are complete.

A light module: Spark's Python workers import it.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from feature_repo.errors import FunnelError

TEMPORARY = ".tmp"
"""The suffix of a file that is being written; its name begins with a dot."""


class LockHeld(FunnelError):
    """Another process holds a lock that was asked for without waiting."""


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
        raise LockHeld(f"another process holds the lock {file.name}") from None


@contextmanager
def locked(path: Path, *, shared: bool = False, blocking: bool = True) -> Iterator[IO[bytes]]:
    """Hold the lock of a file, which is created if need be, and yield the open file.

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
        try:
            yield file
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)  # a child forked meanwhile has the file open as well


@contextmanager
def replace_atomically(path: Path, *, sync: bool = True) -> Iterator[Path]:
    """Yield the path of a temporary file that replaces ``path`` only if the block succeeds.

    The temporary file is in the same folder and its name is always the same: only one writer at a
    time, and what a killed writer left is overwritten.

    Args:
        path: the file to replace.
        sync: write the content through to the disk first; without it, a crash of the machine may
            leave an empty file.

    """
    with _replacing(path, path.with_name(f".{path.name}{TEMPORARY}"), sync) as temporary:
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
    with _replacing(path, unique, sync=True) as temporary:
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
    temporary.symlink_to(os.path.relpath(target, link.parent))
    os.replace(temporary, link)


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

    if final.exists():
        os.replace(final, old)  # a rename: `final` is missing only between two system calls
    os.replace(staging, final)
    shutil.rmtree(old, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """Write a folder's list of names to the disk: after a crash, a new file exists only with it."""
    _sync(folder)


@contextmanager
def _replacing(path: Path, temporary: Path, sync: bool) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield temporary
        if sync:
            _sync(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
