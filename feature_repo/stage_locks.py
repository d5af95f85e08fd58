"""Locks of what a stage writes: two commands that write the same do not run at once.

They do not wait either, since a training may take hours: the second one says who is at work.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from enum import StrEnum
from pathlib import Path
from typing import ClassVar

from feature_repo.errors import FunnelError
from feature_repo.files import LockHeld, locked
from feature_repo.workspace import Workspace


class Written(StrEnum):
    """What is locked: the trained models, the offline tables, the online store's batch views."""

    MODELS = "models"
    FEATURES = "features"
    ONLINE = "online"


class StageRunning(FunnelError):  # noqa: N818 - a state, said to the user
    """Another command writes what this one would read or write; the message names it."""

    exit_code: ClassVar[int] = 2


@contextmanager
def stage_lock(workspace: Workspace, written: Written, *, shared: bool = False) -> Iterator[None]:
    """Hold the lock of one kind of output; ``shared``: to read it, which several may do.

    Raises:
        StageRunning: another process holds it.

    """
    path = workspace.root / f".{written}.lock"
    with output_lock(path, f"the {written} in {workspace.root}", shared=shared):
        yield


@contextmanager
def output_lock(path: Path, what: str, *, shared: bool = False) -> Iterator[None]:
    """Hold a lock file; ``what`` says in an error what the other process works on.

    Raises:
        StageRunning: another process holds it.

    """
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(path, shared=shared, blocking=False))
        except LockHeld as error:
            raise StageRunning(
                f"{error.holder} works on {what}: "
                "wait until it has finished, or stop it, and run this command again"
            ) from None
        yield
