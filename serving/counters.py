"""Item counters for all workers of a server.

One process reads them from the online store; the others map its files into memory.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import redis

from feature_repo.arrays import Float32Array
from feature_repo.files import write_json
from feature_repo.stores.embedded_redis import RedisFailed
from feature_repo.stores.feature_store import redis_client, redis_url
from feature_repo.stores.online_store import written_key
from feature_repo.workspace import Workspace
from serving.online.features import OnlineFeatures, OnlineStoreUnavailable
from serving.recommender.codec import ITEM_ACTIVITY, Codec
from serving.recommender.item_attributes import ItemAttributes
from serving.recommender.item_table import Activity
from serving.releases.item_files import map_raw, map_rows, save_raw, with_spare
from serving.releases.release import Release

_log = logging.getLogger(__name__)

_VERSIONS = 2
"""Versions of the files that stay, the newest included."""

_CODES = ("categorical", "categories")
"""Arrays of ``ItemAttributes`` with a file each; the numbers lie beside the counts."""

_GIVEN = "attributes.arrow"
_LONGEST_PAUSE_S = 60.0


class CounterFiles:
    """Item counters as files, the newest named by ``current.json``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._last_state: tuple[int, int] | None = None

    def publish(self, release: Release, activity: Activity, as_of: str) -> None:
        """Write counters and make them the newest; those of added items are missing.

        ``as_of``: when they were read, ISO 8601.
        """
        name = f"{time.time_ns():020d}"
        folder = self._folder / name
        folder.mkdir(parents=True)
        spare = release.retrieval.delta.spare

        # Counts and numeric attributes side by side, [N, F + M]: a worker ranks with the file.
        attributes = activity.attributes
        numbers = attributes.numbers if attributes else release.items.encoded.numbers
        numeric = np.concatenate([activity.counts, numbers], axis=1, dtype=np.float32)
        np.save(folder / "numeric.npy", with_spare(numeric, np.nan, spare))

        # First and last event times [2, N].
        times = [
            with_spare(column, np.nan, spare)
            for column in (activity.first_event_at, activity.last_event_at)
        ]
        np.save(folder / "times.npy", np.stack(times))
        for number, vectors in enumerate(activity.vectors):
            np.save(folder / f"vectors-{number}.npy", with_spare(vectors, rows=spare))
        if activity.categories is not None:
            np.save(folder / "categories.npy", with_spare(activity.categories, rows=spare))
        if attributes is not None:
            _save_attributes(folder, release, attributes)

        write_json(
            self._folder / "current.json", {"folder": name, "release": release.id, "as_of": as_of}
        )
        for old in sorted(path for path in self._folder.iterdir() if path.is_dir())[:-_VERSIONS]:
            shutil.rmtree(old, ignore_errors=True)  # a process that maps it can still read it

    def changed(self) -> bool:
        """Return whether there are new counters since the last call."""
        try:
            status = os.stat(self._folder / "current.json")
        except OSError:
            return False
        state = (status.st_mtime_ns, status.st_ino)
        changed = state != self._last_state
        self._last_state = state
        return changed

    def newest(self, release: Release) -> tuple[Activity, str] | None:
        """Return the newest counters and when they were read, if they are of this release."""
        try:
            current: dict[str, Any] = json.loads((self._folder / "current.json").read_bytes())
            if current["release"] != release.id:
                return None
            folder = self._folder / current["folder"]
            codec = release.codec
            names = ["numeric", "times"]
            names += [f"vectors-{number}" for number in range(len(codec.vectors))]
            names += ["categories"] if codec.item_categories else []
            numeric, times, *others = (_mapped(folder, name) for name in names)
            attributes = _mapped_attributes(folder, codec, numeric[:, len(codec.item_activity) :])
        except (OSError, ValueError, KeyError):
            return None
        categories = others.pop() if codec.item_categories else None
        counts = numeric[:, : len(codec.item_activity)]
        activity = Activity(
            counts, times[0], times[1], numeric, tuple(others), categories, attributes
        )
        return activity, current["as_of"]


def _save_attributes(folder: Path, release: Release, attributes: ItemAttributes) -> None:
    """Write the items' attributes beside counters, but for the numbers, which are with these."""
    for name in _CODES:
        codes = with_spare(getattr(attributes, name), rows=release.retrieval.delta.spare)
        np.save(folder / f"attributes-{name}.npy", codes)
    save_raw(folder / _GIVEN, release.codec.items.values, attributes.raw)


def _mapped(folder: Path, name: str) -> npt.NDArray[Any]:
    return map_rows(folder / f"{name}.npy").view(np.ndarray)


def _mapped_attributes(folder: Path, codec: Codec, numbers: Float32Array) -> ItemAttributes | None:
    """Return the items' attributes beside counters, whose ``numbers`` are float32 ``[N, M]``."""
    names = codec.spec.dated_item_attributes
    if not names:
        return None
    codes = {name: _mapped(folder, f"attributes-{name}") for name in _CODES}
    return ItemAttributes(raw=map_raw(folder / _GIVEN, names), numbers=numbers, **codes)


class CounterReader:
    """Reads the counters from the online store when they were written, or after some time."""

    def __init__(
        self, workspace: Workspace, files: CounterFiles, at_least_every_s: float = 900.0
    ) -> None:
        """``at_least_every_s``: read also without a write, since values pass their TTL."""
        self._workspace = workspace
        self._files = files
        self._longest_s = at_least_every_s
        self._redis = redis_client(workspace, timeout_s=1.0)
        self._state: tuple[str | bytes | None, ...] | None = None
        self._read_at = 0.0
        self._online: tuple[str, OnlineFeatures] | None = None
        self._next_try = 0.0
        self._pause_s = 0.5

    def step(self, release: Release) -> bool:
        """Read if it is time, and return whether it was; without an answer, try again later."""
        if time.monotonic() < self._next_try:
            return False
        try:
            redis_url(self._workspace)  # an embedded server that has died is started again
            views = dict.fromkeys([ITEM_ACTIVITY, *(view for view, _ in release.codec.item_reads)])
            written: list[bytes | None] = self._redis.mget(map(written_key, views))  # type: ignore[assignment]
            if written[0] is None:
                # Nothing was materialized, or Redis was emptied: nothing replaces no counters.
                return False
            state = (release.id, *written)
            if state == self._state and time.monotonic() - self._read_at < self._longest_s:
                return False
            if self._online is None or self._online[0] != release.id:
                self._online = (release.id, OnlineFeatures(self._workspace, release.items))
            now = datetime.now(UTC)
            activity = self._online[1].item_activity(now.timestamp())
        except RedisFailed as error:
            self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
            self._next_try = time.monotonic() + self._pause_s
            _log.error("%s; trying again in %g s", error, self._pause_s)  # noqa: TRY400 - one line
            return False
        except (redis.RedisError, OSError, OnlineStoreUnavailable):
            return False
        self._pause_s = 0.5
        self._files.publish(release, activity, now.isoformat(timespec="microseconds"))
        self._state = state
        self._read_at = time.monotonic()
        return True
