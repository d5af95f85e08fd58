"""The folders that Spark fills while it runs: shuffled rows, copies of tables, state of a stream.

Spark removes its own when it ends, but not when it is killed. Each process has one folder below
``spark/local`` and a lock on it, so whoever comes next knows which ones nobody uses any more.
"""

from __future__ import annotations

import atexit
import os
import shutil
import uuid
from pathlib import Path
from typing import IO

from feature_repo.files import LockHeld, lock

_LOCK = ".lock"
_own: dict[Path, tuple[int, Path, IO[bytes] | None]] = {}


def own_scratch(work: Path) -> Path:
    """Return this process's folder for a working folder; it is locked until the process ends."""
    pid, folder, _ = _own.get(work, (0, Path(), None))
    if pid != os.getpid() or not folder.is_dir():
        folder = _scratch(work) / f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
        unlocked = folder.with_name(f".{folder.name}")  # nobody looks at such names
        unlocked.mkdir(parents=True)
        file = (unlocked / _LOCK).open("ab")
        lock(file)
        os.rename(unlocked, folder)
        _own[work] = (os.getpid(), folder, file)
        atexit.register(_remove_own, work)
    return folder


def remove_dead_scratch(work: Path) -> int:
    """Remove the folders of processes that have ended, and return their number."""
    removed = 0
    for folder in _others(work):
        if _in_use(folder):
            continue
        shutil.rmtree(folder, ignore_errors=True)  # a Java process that still ends writes there
        removed += 1
    return removed


def living_scratch(work: Path) -> list[Path]:
    """Return the folders of other processes that run."""
    return [folder for folder in _others(work) if _in_use(folder)]


def _scratch(work: Path) -> Path:
    return work / "spark" / "local"


def _others(work: Path) -> list[Path]:
    pid, own, _ = _own.get(work, (0, Path(), None))
    mine = own if pid == os.getpid() else None
    folders = _scratch(work).glob("[!.]*")
    return sorted(folder for folder in folders if folder != mine and folder.is_dir())


def _in_use(folder: Path) -> bool:
    """Return whether a process has locked a folder; one without a lock is of an older version."""
    try:
        with (folder / _LOCK).open("rb") as file:
            lock(file, blocking=False)
    except LockHeld:
        return True
    except FileNotFoundError:
        return False
    return False


def _remove_own(work: Path) -> None:
    pid, folder, file = _own.get(work, (0, Path(), None))
    if file is None or pid != os.getpid():
        return
    del _own[work]
    shutil.rmtree(folder, ignore_errors=True)
    file.close()
