"""``releases/history.jsonl``: a line for each time that another release became the current one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from feature_repo.files import replace_atomically
from feature_repo.workspace import Workspace

HISTORY = "history.jsonl"

Cause = Literal["release", "promote", "rollback"]
"""What changed the current release: a new release, or the operator."""


class HistoryEntry(BaseModel):
    """One change of the current release.

    Attributes:
        time: when, ISO 8601 in UTC.
        release: id of the release that became current.
        previous: id of the one before it; None: there was none.
        by: what changed it.

    """

    model_config = ConfigDict(frozen=True)

    time: str = ""
    release: str
    previous: str | None
    by: Cause


@contextmanager
def appending(workspace: Workspace, entry: HistoryEntry) -> Iterator[None]:
    """Add an entry if the block succeeds; lines that are there already stay as they are.

    The entry is on the disk before the block begins, so a full disk prevents what it tells of.
    """
    path = _path(workspace)
    before = path.read_text(encoding="utf-8") if path.is_file() else ""
    with replace_atomically(path) as temporary:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(f"{before}{entry.model_dump_json()}\n")
            file.flush()
            os.fsync(file.fileno())
        yield


def served_before(workspace: Workspace, current: str) -> list[str]:
    """Return the ids of releases that were current before ``current``, oldest first.

    What was rolled back from is left out: it is not returned to by another rollback.
    """
    # The pointer may have been moved by hand, or by a run that was killed before it wrote its
    # entry: then the entries do not join, and each end counts as a release of its own.
    present = HistoryEntry(release=current, previous=current, by="promote")
    served: list[str] = []
    for entry in [*_entries(workspace), present]:
        for name in (entry.previous, entry.release):
            if entry.by == "rollback" and name == entry.release and name in served:
                last = len(served) - 1 - served[::-1].index(name)
                del served[last + 1 :]
            elif name and name != (served[-1] if served else None):
                served.append(name)
    return served[:-1]


def now() -> str:
    """Return the present time as ISO 8601 in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _entries(workspace: Workspace) -> list[HistoryEntry]:
    """Return the history; lines that cannot be read are skipped."""
    path = _path(workspace)
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            entries.append(HistoryEntry.model_validate_json(line))
        except ValidationError:
            continue
    return entries


def _path(workspace: Workspace) -> Path:
    return workspace.releases / HISTORY
