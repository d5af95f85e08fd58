"""Takes a promoted release into service while requests are answered, and goes on with the old one if it is bad."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from feature_repo.workspace import Workspace
from serving.releases.manifest import BadRelease, file_states, read_manifest
from serving.releases.release import Release
from serving.releases.verify import check_release, registered_features

_log = logging.getLogger(__name__)

_REFUSALS_KEPT = 16

Adopt = Callable[[Release], None]
"""Serves a release from now on; it is wholly loaded and checked."""


class ReleasePoller:
    """Follows ``releases/current`` on a thread of its own.

    A release that is refused is tried again only when its files, the link or the feature registry
    have changed,
    and have stood still since the last look: a copy under way is taken when it is complete. The
    last releases served stay loaded, so that to go back is to look one up.
    """

    def __init__(
        self,
        workspace: Workspace,
        serving: Release,
        adopt: Adopt,
        check: Callable[[Path], Release] | None = None,
        every_s: float = 0.5,
        keep: int = 2,
    ) -> None:
        """Remember what is served; nothing is looked at before ``start``.

        Args:
            workspace: whose ``releases/current`` is followed.
            serving: the release that is being served.
            adopt: called with each release that is to be served next, from the watch's thread.
            check: loads and checks a release or raises ``BadRelease`` (default: ``check_release``).
            every_s: how often to look.
            keep: how many releases stay loaded, the one being served among them.

        """
        self._link, self._registry = workspace.releases / "current", workspace.feast_registry
        self._adopt, self._every_s, self._keep = adopt, every_s, keep
        self._check = check or (
            lambda folder: check_release(folder, registered_features(workspace))
        )
        self._serving = serving
        self._loaded = {serving.id: serving}
        self._refused: dict[str, str] = {}
        self._refusals = 0
        self._tried: Any = None
        self._seen: Any = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="release-poller", daemon=True)

    def start(self) -> None:
        """Begin to look, at once."""
        self._thread.start()

    def close(self) -> None:
        """Stop looking; a check that is under way is not waited for longer than a moment."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5.0)

    def status(self) -> dict[str, Any]:
        """Return the ``serving`` id, the ``kept`` ids, ``refused`` (folder: reason) and the count of ``refusals``.

        A folder leaves ``refused`` when it is taken after all.
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
        """Look once, and serve what ``releases/current`` points at if that has changed and is good."""
        folder = Path(os.path.realpath(self._link))
        known = self._known(folder)
        if known is self._serving and folder.name not in self._refused:
            return
        state = self._state(folder)
        settled, self._seen = state == self._seen, state
        if state == self._tried or (folder.name in self._refused and not settled):
            return
        self._tried = state
        try:
            self._serve(known or self._check(folder), folder)
        except Exception as error:
            self._refuse(
                folder,
                str(error) if isinstance(error, BadRelease) else f"{type(error).__name__}: {error}",
            )

    def _known(self, folder: Path) -> Release | None:
        """Return the loaded release of a folder; a manifest alone may be a copy of another release's."""
        release = self._loaded.get(_claimed_id(folder))
        return release if release is not None and release.folder == folder else None

    def _serve(self, release: Release, folder: Path) -> None:
        before = self._serving
        if release.id != before.id:
            self._adopt(release)
            self._serving = release
            _log.info("release %s is served; before it was %s", release.id, before.id)
        others = {name: other for name, other in self._loaded.items() if name != self._serving.id}
        latest = list(others.items())[-self._keep + 1 :] if self._keep > 1 else []
        self._loaded = {**dict(latest), self._serving.id: self._serving}
        self._refused = {
            name: reason for name, reason in self._refused.items() if name != folder.name
        }

    def _refuse(self, folder: Path, reason: str) -> None:
        self._refusals += 1
        others = [(name, of) for name, of in self._refused.items() if name != folder.name]
        self._refused = dict([*others, (folder.name, reason)][-_REFUSALS_KEPT:])
        _log.error("release %s is refused, %s goes on: %s", folder.name, self._serving.id, reason)

    def _state(self, folder: Path) -> tuple[Any, ...]:
        try:
            files = file_states(folder)
        except OSError:  # a file went away in between
            files = frozenset()
        return folder, files, _changed(self._link), _changed(self._registry)


def _claimed_id(folder: Path) -> str:
    try:
        return read_manifest(folder).release
    except BadRelease:
        return ""


def _changed(path: Path) -> tuple[int, int] | None:
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino
