"""Erased users in the checkpoint of the streaming job.

RocksDB keeps overwritten values for hundreds of batches, so nothing is deleted in it. The states of
all other users are moved into the table ``stream_state``, with the log position that they include,
and the checkpoint is removed. The job's next start makes a new one from that table, and no event is
counted twice or lost.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pyspark.errors import PySparkException
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from feature_repo.erased import ErasedUsers
from feature_repo.events.log_position import position_key
from feature_repo.files import read_json, staged_folder, write_json
from feature_repo.stores.feature_store import redis_url
from feature_repo.workspace import Workspace
from pipelines.erasure.locations import LocationUnavailable
from pipelines.features.stream_state import (
    KEY,
    POSITION_FILE,
    STATE,
    STATE_COLUMN,
    USER_KEY,
)
from pipelines.features.whole_tables import forget_files, list_files
from pipelines.streaming.generation import Generation, checkpoint_folder
from pipelines.streaming.job import StreamConfig, stream_session
from pipelines.streaming.lease import JobRunning, Lease
from pipelines.streaming.offline import read_archive, tables_lock
from pipelines.streaming.source import patient_client


@dataclass(frozen=True)
class StreamState:
    """The states of all keys in the checkpoint."""

    workspace: Workspace
    erased: ErasedUsers
    name: str = "state of the stream"

    def find(self) -> Counter[str]:
        """Return whether the checkpoint has states of each erased user.

        The lease is taken where there is no checkpoint, too: a job may be about to make one.
        """
        with self._states() as states:
            return Counter(self._among(states)) if states else Counter()

    def remove(self, users: Set[str]) -> None:
        """Move the states of all others into the table of the state, and remove the checkpoint."""
        shutil.rmtree(self._dropped, ignore_errors=True)
        with self._states() as states:
            erased = self._among(states) & set(users) if states else set()
            if states and erased:
                keys = [USER_KEY + user for user in erased]
                self._move(states.where(~F.col(KEY).isin(keys)), _newest(states))
                self._drop()

    @property
    def _checkpoint(self) -> Path:
        return checkpoint_folder(self.workspace)

    @property
    def _dropped(self) -> Path:
        return self._checkpoint.with_name(".erased-checkpoint")

    @contextmanager
    def _states(self) -> Iterator[DataFrame | None]:
        """Yield the states of the last finished batch, or None; no job can start meanwhile."""
        lease = Lease(patient_client(redis_url(self.workspace)))
        try:
            lease.acquire()
        except JobRunning:
            raise LocationUnavailable(
                "the streaming job runs: stop it, run 'funnel erase --pending', start it"
            ) from None
        try:
            if not any(path.name.isdigit() for path in self._checkpoint.glob("commits/*")):
                if self._checkpoint.is_dir():
                    self._drop()  # it has nothing that the next start does not read from tables
                yield None
                return
            spark = stream_session(self.workspace, StreamConfig(), None)
            state = (
                spark.read.format("statestore")
                .option("stateVarName", STATE_COLUMN)
                .load(str(self._checkpoint))
            )
            key, value = f"user_map_key.{KEY}", f"user_map_value.{STATE_COLUMN}"
            yield state.select(F.col(key), F.col(value))
        except PySparkException as error:
            reason = str(error).splitlines()[0]
            raise LocationUnavailable(
                f"the checkpoint cannot be read: 'funnel stream --rebuild' ({reason})"
            ) from None
        finally:
            lease.release()

    def _among(self, states: DataFrame) -> set[str]:
        users = states.select(KEY).where(F.col(KEY).startswith(USER_KEY)).toLocalIterator()
        return self.erased.among(row[KEY][len(USER_KEY) :] for row in users)

    def _move(self, states: DataFrame, position: str) -> None:
        """Replace the table from which a new checkpoint starts; it continues after ``position``."""
        if not self.workspace.features.is_dir():
            raise LocationUnavailable(
                f"{self.workspace.features} has no tables to store the state in: "
                "run 'funnel features'"
            )
        with tables_lock(self.workspace, exclusive=True):
            features = self.workspace.features.resolve()
            position = max(position, *self._positions(features), key=position_key)
            if len(read_archive(self.workspace, position)):
                raise LocationUnavailable(
                    "the streaming job was killed within a batch: start it, stop it, "
                    "and run this command again"
                )
            forget_files(features)
            with staged_folder(features / STATE) as folder:
                states.select(KEY, STATE_COLUMN).write.mode("overwrite").parquet(str(folder))
            list_files(features)
            stored = features / POSITION_FILE
            kept = read_json(stored) if stored.is_file() else {}
            write_json(stored, {**kept, "position": position})

    def _positions(self, features: Path) -> list[str]:
        """Return the log positions at which the table of the state and the checkpoint started."""
        positions = ["0-0"]
        if (features / POSITION_FILE).is_file():
            positions.append(read_json(features / POSITION_FILE).get("position", "0-0"))
        if generation := Generation.read(self.workspace):
            positions.append(generation.start)
        return positions

    def _drop(self) -> None:
        # In one step, so that no job starts from a part of it.
        os.replace(self._checkpoint, self._dropped)
        shutil.rmtree(self._dropped)


def _newest(states: DataFrame) -> str:
    """Return the newest log position that the states include."""
    parts = F.split(F.get_json_object(STATE_COLUMN, "$.position"), "-")
    newest = F.max(F.struct(parts[0].cast("bigint"), parts[1].cast("bigint"))).alias("newest")
    milliseconds, number = states.select(newest).collect()[0]["newest"]
    return f"{milliseconds}-{number}"
