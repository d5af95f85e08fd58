"""``funnel erase``: removes users who asked to be forgotten from all stored data, with a proof.

Every storage location is searched for all users on the list, not for one, so that a run also
removes what another stage has brought back. It is searched, cleaned and searched again. The next
run finishes one that was killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import redis
from pyspark.sql import SparkSession

from feature_repo.erased import ErasedUsers
from feature_repo.errors import FunnelError
from feature_repo.events.log_names import log_address
from feature_repo.files import TEMPORARY, locked
from feature_repo.parquet_files import files_set_aside
from feature_repo.progress import Progress, no_progress
from feature_repo.stage_locks import StageRunning, Written, stage_lock
from feature_repo.stores.feature_store import feature_store, redis_client
from feature_repo.workspace import Workspace
from pipelines import display
from pipelines.erasure.built_in_world import BuiltInWorld
from pipelines.erasure.locations import BusyLocation, LocationUnavailable, StorageLocation
from pipelines.erasure.log_files import LogFiles
from pipelines.erasure.models import model_locations
from pipelines.erasure.proof import ErasureProof, Proofs, RunOutcome, SearchResult
from pipelines.erasure.redis import redis_locations, rewrite_file
from pipelines.erasure.stream import StreamState
from pipelines.erasure.tables import table_locations
from pipelines.features.spark_scratch import living_scratch, remove_dead_scratch
from pipelines.streaming.offline import archive
from pipelines.streaming.repair import rebuild_archive
from pipelines.training.release import code_version
from serving.erasure import Erasure
from serving.impressions import FLUSH_S

_UNFINISHED_S = 60.0
"""Age of a temporary file from which its writer is taken to be dead."""


class NotErased(FunnelError):  # noqa: N818 - said to the user
    """Data of an erased user is left, or may be; the message says where, and what to do."""


def erase(
    workspace: Workspace, user: str | None, progress: Progress = no_progress
) -> list[ErasureProof]:
    """Remove every user on the list from every location; return the proofs that this changed.

    Args:
        workspace: the working folder.
        user: a user who is put on the list first.
        progress: called for each location.

    """
    config = feature_store(workspace).config
    client = redis_client(workspace)
    erasure = Erasure(workspace, config)
    with locked(workspace.root / "erasures" / ".running.lock"):
        requested = [erasure.erased.number(user)] if user is not None else []
        proofs = Proofs(erasure.erased)
        if user is not None:
            erasure.erase(user)
        # From here on, a command that starts knows the list; one that started before holds a lock.
        with _stages_held(workspace) as busy:
            _wait_for_impressions(erasure.erased)
            unfinished_files_removed = _remove_unfinished(workspace, busy)
            locations = _locations(workspace, erasure, client, config, busy=busy)
            left, outcome = _clean(workspace, locations, proofs, client, progress=progress)
        outcome = outcome.model_copy(update={"unfinished_files_removed": unfinished_files_removed})
        return proofs.finish(left, requested, outcome)


def _clean(
    workspace: Workspace,
    locations: Sequence[StorageLocation],
    proofs: Proofs,
    client: redis.Redis,
    *,
    progress: Progress,
) -> tuple[dict[str, SearchResult], RunOutcome]:
    """Search all locations, remove who was found, search again; return what is left."""
    # Users have no names there; the folder is made again when it is needed.
    shutil.rmtree(workspace.peers, ignore_errors=True)
    try:
        found = _search(locations, progress, "searching")
        proofs.begin(found)
        _remove(locations, found, progress)
        damaged_files_removed = _remove_damaged(workspace)
        redis_file = rewrite_file(client)
        left = _search(locations, progress, "searching again")
    finally:
        if spark := SparkSession.getActiveSession():
            spark.stop()
    outcome = RunOutcome(
        redis_file=redis_file,
        damaged_files_removed=damaged_files_removed,
        version=code_version(),
    )
    return left, outcome


@contextmanager
def _stages_held(workspace: Workspace) -> Iterator[dict[Written, str]]:
    """Keep other commands from writing; yield who writes what already, by what is written."""
    busy: dict[Written, str] = {}
    with ExitStack() as stack:
        for written in Written:
            try:
                stack.enter_context(stage_lock(workspace, written))
            except StageRunning as error:
                busy[written] = str(error)
        yield busy


def _locations(
    workspace: Workspace,
    erasure: Erasure,
    client: redis.Redis,
    config: Any,
    *,
    busy: Mapping[Written, str],
) -> list[StorageLocation]:
    address = log_address()
    logs = [LogFiles(erasure.erased, address)] if isinstance(address, Path) else []
    models = model_locations(workspace, erasure.erased)
    if Written.MODELS in busy:
        models = [BusyLocation(one.name, busy[Written.MODELS]) for one in models]
    scratch = [
        BusyLocation("scratch files of Spark", f"a Spark job uses {folder}: let it finish")
        for folder in living_scratch(workspace.root.resolve())[:1]
    ]
    names = {Written.FEATURES: "new feature tables", Written.ONLINE: "materialization"}
    return [
        *redis_locations(client, erasure, config),
        *logs,
        BuiltInWorld(workspace, erasure.erased),
        *table_locations(workspace, erasure.erased),
        StreamState(workspace, erasure.erased),
        *models,
        *scratch,
        *(BusyLocation(name, busy[what]) for what, name in names.items() if what in busy),
    ]


def _wait_for_impressions(erased: ErasedUsers) -> None:
    """Wait until servers have written what they served before the newest erasure."""
    files = [erased.proof(number) for number in erased.numbers()]
    newest = max((file.stat().st_mtime for file in files if file.is_file()), default=0.0)
    longest_s = FLUSH_S + 1.0
    time.sleep(max(0.0, min(newest + longest_s - time.time(), longest_s)))


def _remove_unfinished(workspace: Workspace, busy: Mapping[Written, str]) -> int:
    """Remove files, tables and Spark's folders that killed processes left; return their number."""
    removed = 0
    # Unlike pathlib, walk ignores folders that vanish meanwhile: Spark removes its own.
    files = [Path(folder, name) for folder, _, names in os.walk(workspace.root) for name in names]
    for path in (path for path in files if path.match(f".*{TEMPORARY}")):
        with contextlib.suppress(FileNotFoundError):  # its writer finished it
            if path.stat().st_mtime < time.time() - _UNFINISHED_S:
                path.unlink()
                removed += 1
    if Written.FEATURES not in busy:  # nobody makes tables now
        for folder in (workspace.root / "features").glob(".*/"):
            shutil.rmtree(folder)
            removed += 1
    return removed + remove_dead_scratch(workspace.root.resolve())


def _remove_damaged(workspace: Workspace) -> int:
    """Remove files that were set aside, since nobody can search them, and return their number.

    What the event log can replace is made anew first.
    """
    rebuild_archive(workspace)
    tables = (workspace.root / "features").glob("*/*")
    folders = {archive(workspace), workspace.impressions, *tables}
    asides = [aside for folder in folders if folder.is_dir() for aside in files_set_aside(folder)]
    for aside in asides:
        aside.unlink(missing_ok=True)
    return len(asides)


def _search(
    locations: Sequence[StorageLocation], progress: Progress, what: str
) -> dict[str, SearchResult]:
    results: dict[str, SearchResult] = {}
    for number, location in enumerate(locations):
        progress(f"{what}: {location.name}", number, len(locations))
        try:
            results[location.name] = location.find()
        except LocationUnavailable as reason:
            results[location.name] = str(reason)
        except (OSError, pa.ArrowException) as error:
            results[location.name] = f"cannot be read: {error}"
    return results


def _remove(
    locations: Sequence[StorageLocation], found: dict[str, SearchResult], progress: Progress
) -> None:
    """Remove all users who were found anywhere from every location that could be searched."""
    counts = [result for result in found.values() if not isinstance(result, str)]
    users: Set[str] = {user for count in counts for user in count}
    if not users:
        return
    for number, location in enumerate(locations):
        if isinstance(found[location.name], str):
            continue
        progress(f"removing: {location.name}", number, len(locations))
        with contextlib.suppress(LocationUnavailable):  # the second search reports it
            location.remove(users)


def run_erase(workspace: Workspace, user: str | None) -> None:
    """Erase, and print each proof as a table; the last line is JSON.

    Raises:
        MissingStage: there is no data in the working folder.
        NotErased: something is left, or a location could not be searched.

    """
    workspace.spec()
    with display.stage("Erase") as progress:
        proofs = erase(workspace, user, progress)
    for proof in proofs:
        rows = [
            [location, counts.found, counts.removed, counts.remaining]
            for location, counts in proof.places.items()
        ]
        display.table(f"Erasure {proof.erasure}", ["", "found", "removed", "remaining"], rows)
    display.result(json.dumps([proof.model_dump(exclude_unset=True) for proof in proofs]))

    problems = {f"{place}: {why}" for proof in proofs for place, why in proof.problems.items()}
    left = {location for proof in proofs for location in proof.remaining}
    if left or problems:
        reasons = "; ".join([*sorted(problems), *sorted(left)])
        raise NotErased(
            f"not erased everywhere yet ({reasons}); then run 'funnel erase --pending' again"
        )
