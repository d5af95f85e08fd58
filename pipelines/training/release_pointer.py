"""Which release is served: the one that the link ``releases/current`` points at.

Running servers poll the link, so moving it is a promotion or a rollback. Each move adds a line to
the history of releases.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from feature_repo.errors import FunnelError
from feature_repo.files import link_atomically, locked, read_json
from feature_repo.workspace import MissingStage, Workspace
from pipelines.training import release_history
from pipelines.training.release_history import HISTORY, Cause, HistoryEntry
from serving.releases.manifest import EVALUATION, MANIFEST, BadRelease, verify_files
from serving.releases.verify import check_release, registered_features

_log = logging.getLogger(__name__)


class UnknownRelease(FunnelError):
    """There is no such release, or several."""


@dataclass(frozen=True)
class ReleaseInfo:
    """What is known of a release without loading it.

    Attributes:
        id: of the release.
        created_at: when it was made; empty: unknown.
        data_version: of the data it learned from; empty: unknown.
        current: whether it is the one that is served.
        ndcg: NDCG@10 of its evaluation; None: not evaluated.
        problem: why it cannot be served; None: its files are what was released.

    """

    id: str
    created_at: str
    data_version: str
    current: bool
    ndcg: float | None
    problem: str | None


@contextmanager
def pointer_lock(workspace: Workspace) -> Iterator[None]:
    """Hold the lock that every process takes to make, promote or change releases."""
    with locked(workspace.releases / ".lock"):
        yield


def promote(workspace: Workspace, release_id: str) -> Path:
    """Check a release and serve it from now on: running servers take it within a second.

    Args:
        workspace: the working folder.
        release_id: the release's id, or the beginning of it.

    Raises:
        UnknownRelease: there is no such release, or several.
        BadRelease: it cannot be served; the current release stays.

    """
    folder = find_release(workspace, release_id)
    with pointer_lock(workspace):
        point_at(workspace, folder, "promote")
    return folder


def rollback(workspace: Workspace) -> Path:
    """Serve the release that was served before the current one.

    Twice in a row goes further back, as an undo does: who rolls back has seen that the newer one is
    bad, and must not get it again by rolling back from the next. The way forward is ``promote``.
    Releases that were deleted since are skipped.

    Raises:
        MissingStage: there is no release at all.
        UnknownRelease: none was served before.
        BadRelease: that one cannot be served; the current release stays, and any other can be
            promoted.

    """
    with pointer_lock(workspace):
        current = _target(workspace) or current_release(workspace)
        served = release_history.served_before(workspace, current.name)
        # An id may be a link to the release that took its place.
        folders = [(workspace.releases / name).resolve() for name in served]
        earlier = [folder for folder in folders if folder.is_dir() and folder != current]
        if not earlier:
            raise UnknownRelease(
                f"no release was served before {current.name}: "
                "promote one, see 'funnel release list'"
            )
        point_at(workspace, earlier[-1], "rollback")
    return earlier[-1]


def point_at(workspace: Workspace, folder: Path, cause: Cause) -> None:
    """Check a release and make it the current one; the caller holds ``pointer_lock``.

    If this fails, the current release stays, whatever the reason.

    Raises:
        BadRelease: it cannot be served.
        OSError: the disk is full, or refuses.

    """
    previous = _target(workspace)
    check_release(folder, registered_features(workspace))
    news: AbstractContextManager[None] = nullcontext()
    if previous != folder.resolve():
        entry = HistoryEntry(
            time=release_history.now(),
            release=folder.name,
            previous=previous.name if previous else None,
            by=cause,
        )
        news = release_history.appending(workspace, entry)
    try:
        with news:
            # Also where it points there already: servers that refused it then try it again.
            link_atomically(workspace.releases / "current", workspace.releases / folder.name)
    except OSError as error:
        if _target(workspace) != folder.resolve():
            raise
        _log.warning("%s is the current release, but %s lacks it: %s", folder.name, HISTORY, error)


def releases(workspace: Workspace) -> list[ReleaseInfo]:
    """Return all releases, the oldest first."""
    current = _target(workspace)
    infos = [_describe(folder, folder == current) for folder in _folders(workspace)]
    return sorted(infos, key=lambda info: (info.created_at, info.id))


def find_release(workspace: Workspace, release_id: str) -> Path:
    """Return the folder of a release by its id, or by a beginning that no other id has.

    Raises:
        UnknownRelease: there is no such release, or several.

    """
    links = [
        path
        for path in workspace.releases.glob("[!.]*")
        if path.is_symlink() and path.name != "current"
    ]
    named = [*_folders(workspace), *links]
    exact = [path for path in named if path.name == release_id]
    matches = {
        path.resolve() for path in exact or named if release_id and path.name.startswith(release_id)
    }
    if len(matches) == 1:
        return matches.pop()

    known = ", ".join(sorted(path.name for path in matches)) or "none"
    problem = (
        f"several releases begin with '{release_id}'" if matches else f"no release '{release_id}'"
    )
    raise UnknownRelease(f"{problem} in {workspace.releases} ({known}): see 'funnel release list'")


def current_release(workspace: Workspace) -> Path:
    """Return the folder of the current release.

    Raises:
        MissingStage: there is none.

    """
    link = workspace.releases / "current"
    if not link.exists():
        raise MissingStage(f"no release in {workspace.releases}: run 'funnel release' first")
    return link.resolve()


def _target(workspace: Workspace) -> Path | None:
    """Return the folder that ``current`` points at, whether or not it exists."""
    link = workspace.releases / "current"
    return Path(os.path.realpath(link)) if link.is_symlink() else None


def _folders(workspace: Workspace) -> list[Path]:
    return [
        path.resolve()
        for path in workspace.releases.glob("[!.]*")
        if path.is_dir() and not path.is_symlink()
    ]


def _describe(folder: Path, current: bool) -> ReleaseInfo:
    problem = None
    try:
        verify_files(folder)
    except BadRelease as error:
        problem = str(error).removeprefix(f"{folder}: ")

    # Read as far as possible: a damaged release is listed too.
    manifest = _read(folder / MANIFEST)
    ndcg = _value(_value(_value(_read(folder / EVALUATION), "models"), "funnel"), "ndcg@10")
    return ReleaseInfo(
        id=folder.name,
        created_at=str(_value(manifest, "created_at") or ""),
        data_version=str(_value(manifest, "data_version") or ""),
        current=current,
        ndcg=ndcg if isinstance(ndcg, float) else None,
        problem=problem,
    )


def _read(path: Path) -> Any:
    """Return the content of a JSON file that may be damaged; None: it cannot be read."""
    try:
        return read_json(path)
    except (OSError, ValueError):
        return None


def _value(values: Any, name: str) -> Any:
    return values.get(name) if isinstance(values, dict) else None
