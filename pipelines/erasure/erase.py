"""``funnel erase``: users who asked to be forgotten, out of everything that was kept, with a proof for each.

Every place is searched for everybody on the list, not for one user, so that a run also takes out
what a run of another stage brought back meanwhile. It is searched, cleaned and searched again; a
run that was killed is finished by the next one. The proof names nobody.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence, Set
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import redis
from pyspark.sql import SparkSession

from feature_repo.erased import ERASED, PENDING, ErasedUsers
from feature_repo.errors import FunnelError
from feature_repo.events.log_names import KafkaAddress, log_address
from feature_repo.files import TEMPORARY, locked, read_json
from feature_repo.progress import Progress, no_progress
from feature_repo.stores.feature_store import feature_store, redis_client
from feature_repo.workspace import Workspace
from pipelines import display
from pipelines.erasure.models import model_places
from pipelines.erasure.places import LogFiles, Place, Unsearchable, file_places
from pipelines.erasure.redis import redis_places, rewrite_file
from pipelines.erasure.sources import BuiltInWorld
from pipelines.erasure.stream import StreamState
from pipelines.training.release import code_version
from serving.erasure import Erasure
from serving.impressions import FLUSH_S

NOT_SEARCHED = {
    "source files": "files outside of the working folder: remove the user there; ingest leaves the rows out",
    "outputs": "files written by 'funnel batch --out': make them anew",
    "backups": "copies of the working folder or of Redis, and its snapshots",
    "models": "weights that were learned from the user's events with everybody else's, until the next 'funnel train'",
    "counts": "numbers of events by item, until the next 'funnel features' and 'funnel materialize'",
    "mlflow": "settings and figures of training runs; no ids are written there",
}
_KAFKA = "events in a topic stay for as long as it is set to keep them; the streaming job writes none of them"
_UNFINISHED_S = 60.0

Found = dict[str, Counter[str] | str]
"""What was found, by place: rows of each user, or why it could not be searched."""


class NotErased(FunnelError):  # noqa: N818 - said to the user
    """Something of an erased user is left, or may be; the message says where, and what to do."""


def erase(
    workspace: Workspace, user: str | None, progress: Progress = no_progress
) -> list[dict[str, Any]]:
    """Take every user on the list out of every place, and return the proofs of the erasures that this touched.

    Args:
        workspace: the working folder.
        user: put this one on the list first.
        progress: told each place.

    """
    store_config, client = feature_store(workspace).config, redis_client(workspace)
    erasure = Erasure(workspace, store_config)
    with _alone(workspace):
        asked = [erasure.erased.number(user)] if user is not None else []
        proofs = Proofs(erasure.erased)
        if user is not None:
            erasure.erase(user)
        _wait_for_impressions(erasure.erased)
        removed_files = _remove_unfinished(workspace.root)
        shutil.rmtree(
            workspace.peers, ignore_errors=True
        )  # users have no names there; it is made again when asked for
        places = _places(workspace, erasure, client, store_config)
        try:
            found = _search(places, progress, "searching")
            proofs.begin(found)
            users = {name for part in found.values() if not isinstance(part, str) for name in part}
            _remove(places, found, users, progress)
            redis_file = rewrite_file(client)
            left = _search(places, progress, "searching again")
        finally:
            if spark := SparkSession.getActiveSession():
                spark.stop()
        about = {
            "redis_file": redis_file,
            "unfinished_files_removed": removed_files,
            "version": code_version(),
        }
        return proofs.finish(left, asked, about)


def _places(
    workspace: Workspace, erasure: Erasure, client: redis.Redis, config: Any
) -> list[Place]:
    address = log_address()
    logs: list[Place] = [LogFiles(erasure.erased, address)] if isinstance(address, Path) else []
    return [
        *redis_places(client, erasure, config),
        *logs,
        BuiltInWorld(workspace, erasure.erased),
        *file_places(workspace, erasure.erased),
        StreamState(workspace, erasure.erased),
        *model_places(workspace, erasure.erased),
    ]


@contextlib.contextmanager
def _alone(workspace: Workspace) -> Iterator[None]:
    """Wait until no other run is at work."""
    with locked(workspace.root / "erasures" / ".running.lock"):
        yield


def _wait_for_impressions(erased: ErasedUsers) -> None:
    """Wait until servers have written what they served before the newest user came on the list."""
    newest = max(
        (erased.proof(n).stat().st_mtime for n in erased.numbers() if erased.proof(n).is_file()),
        default=0.0,
    )
    time.sleep(max(0.0, min(newest + FLUSH_S + 1.0 - time.time(), FLUSH_S + 1.0)))


def _remove_unfinished(root: Path) -> int:
    """Remove files that a killed process left half written, and return how many there were."""
    removed = 0
    # Unlike pathlib, walk passes over folders that are gone by the time it comes to them: Spark
    # removes its own.
    files = [Path(folder, name) for folder, _, names in os.walk(root) for name in names]
    for path in (path for path in files if path.match(f".*{TEMPORARY}")):
        with contextlib.suppress(FileNotFoundError):  # its writer finished it
            if path.stat().st_mtime < time.time() - _UNFINISHED_S:
                path.unlink()
                removed += 1
    return removed


def _search(places: Sequence[Place], progress: Progress, what: str) -> Found:
    found: Found = {}
    for number, place in enumerate(places):
        progress(f"{what}: {place.name}", number, len(places))
        try:
            found[place.name] = place.find()
        except Unsearchable as reason:
            found[place.name] = str(reason)
        except (OSError, pa.ArrowException) as error:
            found[place.name] = f"cannot be read: {error}"
    return found


def _remove(places: Sequence[Place], found: Found, users: Set[str], progress: Progress) -> None:
    for number, place in enumerate(places):
        if not isinstance(found[place.name], str) and users:
            progress(f"removing: {place.name}", number, len(places))
            try:
                place.remove(users)
            except Unsearchable:
                continue  # the second search says so


class Proofs:
    """The files of the erasures, as a run goes on."""

    def __init__(self, erased: ErasedUsers) -> None:
        self._erased = erased

    def begin(self, found: Found) -> None:
        """Note what was found before anything is removed, so that a run that is killed loses no count."""
        for number, counts in self._by_number(found).items():
            with self._erased.editing(number) as proof:
                proof["state"] = PENDING
                for place, count in counts.items():
                    known = proof["places"].setdefault(place, {"found": 0, "removed": 0})
                    known["found"] = max(
                        known["found"], known["removed"] + count
                    )  # more: of a run that was killed

    def finish(
        self, left: Found, asked: Collection[str], about: dict[str, Any]
    ) -> list[dict[str, Any]]:
        """Write the proofs of erasures that are pending or were asked for, and return them."""
        remaining = self._by_number(left)
        problems = {place: reason for place, reason in left.items() if isinstance(reason, str)}
        done = []
        for number in sorted(self._erased.numbers()):
            if self._is_done(number) and number not in asked and number not in remaining:
                continue
            with self._erased.editing(number) as proof:
                for place in left:
                    count = None if place in problems else remaining.get(number, {}).get(place, 0)
                    _settle(proof["places"].setdefault(place, {"found": 0, "removed": 0}), count)
                proof |= about | {"problems": problems, "not_searched": _not_searched()}
                proof["state"] = PENDING if problems or number in remaining else ERASED
                proof["checked_at"] = datetime.now(UTC).isoformat(timespec="seconds")
                done.append(proof)
        return done

    def _is_done(self, number: str) -> bool:
        path = self._erased.proof(number)
        return path.is_file() and read_json(path)["state"] == ERASED

    def _by_number(self, found: Found) -> dict[str, dict[str, int]]:
        counts: dict[str, dict[str, int]] = {}
        for place, part in found.items():
            for user, count in part.items() if not isinstance(part, str) else ():
                counts.setdefault(self._erased.number(user), {})[place] = count
        return counts


def _settle(counts: dict[str, Any], remaining: int | None) -> None:
    counts["remaining"] = remaining
    if remaining is not None:
        counts["found"] = max(counts["found"], counts["removed"] + remaining)
        counts["removed"] = counts["found"] - remaining


def _not_searched() -> dict[str, str]:
    return NOT_SEARCHED | ({"kafka": _KAFKA} if isinstance(log_address(), KafkaAddress) else {})


def run_erase(workspace: Workspace, user: str | None) -> None:
    """Erase, and print each proof as a table; the last line is JSON.

    Raises:
        MissingStage: there is no data in the working folder.
        NotErased: something is left, or a place could not be searched.

    """
    workspace.spec()
    with display.stage("Erase") as progress:
        proofs = erase(workspace, user, progress)
    for proof in proofs:
        rows = [
            [name, n["found"], n["removed"], n["remaining"]] for name, n in proof["places"].items()
        ]
        display.table(f"Erasure {proof['erasure']}", ["", "found", "removed", "remaining"], rows)
    display.result(json.dumps(proofs))
    left = {place for proof in proofs for place, n in proof["places"].items() if n["remaining"]}
    problems = dict(item for proof in proofs for item in proof["problems"].items())
    if left or problems:
        said = [f"{place}: {reason}" for place, reason in sorted(problems.items())] + sorted(left)
        raise NotErased(
            f"not erased everywhere yet ({'; '.join(said)}); then run 'funnel erase --pending' again"
        )
