"""Serves a promoted release while requests are answered; a bad one is refused."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from feature_repo.stores.registry import RegistryUnavailable, registry_state
from feature_repo.workspace import Workspace
from serving.releases.manifest import BadRelease, file_states, read_manifest
from serving.releases.release import Release
from serving.releases.verify import check_release, registered_features

_log = logging.getLogger(__name__)

_REFUSALS_SHOWN = 16

Adopt = Callable[[Release], None]
"""Serves a release from now on; it is wholly loaded and checked."""


class ReleasePoller:
    """Follows ``releases/current`` on a thread of its own.

    A release that was refused is checked again only when its files, the link or the feature
    registry have changed and are unchanged since the last poll, so that a copy under way is checked
    when it is complete. The releases served last stay loaded, which makes a rollback quick.
    """

    def __init__(
        self,
        workspace: Workspace,
        serving: Release,
        adopt: Adopt,
        *,
        check: Callable[[Path], Release] | None = None,
        every_s: float = 0.5,
        keep: int = 2,
    ) -> None:
        """Keep what is served; the first poll comes with ``start``.

        Args:
            workspace: whose ``releases/current`` is followed.
            serving: the release that is being served.
            adopt: called with each release that is to be served next, from the poller's thread.
            check: loads and checks a release or raises ``BadRelease`` (default: ``check_release``).
            every_s: seconds between two polls.
            keep: number of releases that stay loaded, the served one included.

        """
        self._link = workspace.releases / "current"
        self._registry = partial(registry_state, workspace)
        self._adopt = adopt
        self._every_s = every_s
        self._keep = keep
        self._check = check or (
            lambda folder: check_release(folder, registered_features(workspace))
        )
        self._serving = serving
        self._loaded = {serving.id: serving}
        self._refused: dict[str, str] = {}
        self._refusals = 0
        self._checked_state: Any = None
        self._last_state: Any = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="release-poller", daemon=True)

    def start(self) -> None:
        """Start polling, at once."""
        self._thread.start()

    def close(self) -> None:
        """Stop polling; wait at most five seconds for a check that is under way."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5.0)

    def status(self) -> dict[str, Any]:
        """Return ids ``serving`` and ``kept`` loaded, ``refused`` folders, number of ``refusals``.

        ``refused`` gives the reason by folder; a folder leaves it when it is served after all.
        """
        return {
            "serving": self._serving.id,
            "kept": list(self._loaded),
            "refused": dict(self._refused),
            "refusals": self._refusals,
        }

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.poll()
            except Exception:
                _log.exception("the release poller failed; it tries again")
            self._stop.wait(self._every_s)

    def poll(self) -> None:
        """Serve what ``releases/current`` points at, if that has changed and passes the check."""
        folder = Path(os.path.realpath(self._link))
        known = self._known(folder)
        if known is self._serving and folder.name not in self._refused:
            return
        state = self._state(folder)
        settled = state == self._last_state
        self._last_state = state
        if state == self._checked_state or (folder.name in self._refused and not settled):
            return
        self._checked_state = state
        try:
            self._serve(known or self._check(folder), folder)
        except Exception as error:
            self._refuse(
                folder,
                str(error) if isinstance(error, BadRelease) else f"{type(error).__name__}: {error}",
            )

    def _known(self, folder: Path) -> Release | None:
        """Return the loaded release of a folder; its manifest may be a copy of another's."""
        release = self._loaded.get(_claimed_id(folder))
        return release if release is not None and release.folder == folder else None

    def _serve(self, release: Release, folder: Path) -> None:
        """Serve a good release unless it is served already; its folder is no longer refused.

        Args:
            release: loaded and checked.
            folder: what the link points at, where the release was found.

        """
        before = self._serving
        if release.id != before.id:
            self._adopt(release)
            self._serving = release
            _log.info("release %s is served; before it was %s", release.id, before.id)

        # The served release goes to the end; of the others those that were served last stay.
        others = {name: other for name, other in self._loaded.items() if name != self._serving.id}
        last_served = list(others.items())[-self._keep + 1 :] if self._keep > 1 else []
        self._loaded = {**dict(last_served), self._serving.id: self._serving}
        self._refused = {
            name: reason for name, reason in self._refused.items() if name != folder.name
        }

    def _refuse(self, folder: Path, reason: str) -> None:
        self._refusals += 1
        others = [(name, why) for name, why in self._refused.items() if name != folder.name]
        self._refused = dict([*others, (folder.name, reason)][-_REFUSALS_SHOWN:])
        _log.error("release %s is refused, %s goes on: %s", folder.name, self._serving.id, reason)

    def _state(self, folder: Path) -> tuple[Any, ...]:
        try:
            files = file_states(folder)
        except OSError:  # a file went away in between
            files = frozenset()
        try:
            registry = self._registry()
        except RegistryUnavailable:  # must not hold up a release that is loaded already
            registry = "unavailable"
        return folder, files, _state_of(self._link), registry


def _claimed_id(folder: Path) -> str:
    try:
        return read_manifest(folder).release
    except BadRelease:
        return ""


def _state_of(path: Path) -> tuple[int, int] | None:
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino
