"""Metrics of several workers behind one port: each writes its values where all can read them.

Prometheus asks one address and any worker may answer. So each keeps its values in a file that the
others can read (the client library's multiprocess mode). Counters and histograms are summed, and
stay when their worker dies; each gauge says how those of the live workers are combined. An
observation costs about 1 µs more than in one process; a thread that wrote or fetched texts would
stop requests for milliseconds.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from prometheus_client import values
from prometheus_client.multiprocess import mark_process_dead

from feature_repo.processes import is_running
from feature_repo.settings import read_settings

_FOLDER = "FUNNEL_METRICS_DIR"
_PROMETHEUS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
# A disk would write the values back every few seconds, and may make a request wait.
_MEMORY = Path("/dev/shm")


@contextmanager
def shared_by_workers() -> Iterator[Path]:
    """Let workers that are forked within the block add up their metrics; yields their folder."""
    parent = _MEMORY if os.access(_MEMORY, os.W_OK) else None
    with tempfile.TemporaryDirectory(
        prefix="funnel-metrics-", dir=parent, ignore_cleanup_errors=True
    ) as folder:
        os.environ[_FOLDER] = folder
        try:
            yield Path(folder)
        finally:
            del os.environ[_FOLDER]


def shared_folder() -> Path | None:
    """Return the folder that workers share their values in; None: there is one worker."""
    return read_settings().metrics_dir


def choose_numbers() -> None:
    """Let new metrics keep their values in the shared folder, or in memory if there is none.

    Feast, when it is imported, turns the multiprocess mode on for the whole process, in a folder of
    its own on a disk; whose import came first must not decide how long an observation takes and who
    sees it.
    """
    folder = shared_folder()
    values.ValueClass = values.MutexValue if folder is None else _shared_numbers(str(folder))


@cache
def _shared_numbers(folder: str) -> Any:
    os.environ[_PROMETHEUS_FOLDER] = folder
    return values.MultiProcessValue(_name)  # type: ignore[no-untyped-call]


def _name() -> str:
    """Return this worker's part of its files' names; Feast writes other files in this process."""
    return f"worker{os.getpid()}"


def living(folder: Path) -> set[int]:
    """Return the process ids of the live workers; the gauges of the others are removed."""
    known = {int(path.stem.rpartition("_worker")[2]) for path in folder.glob("*_worker*.db")}
    alive = set(filter(is_running, known))
    for pid in known - alive:
        with suppress(FileNotFoundError):  # another worker was quicker
            mark_process_dead(f"worker{pid}", str(folder))  # type: ignore[no-untyped-call]
    return alive


def resident_memory(pid: int) -> int:
    """Return a process's resident memory in bytes; 0 where the system does not say."""
    try:
        pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    except OSError:
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
