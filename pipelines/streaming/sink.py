"""Writes the changes of a batch: feature rows online, then the same rows and the events offline.

Every write sets absolute values under the batch's name, so a repeated batch overwrites its own.
"""

from __future__ import annotations

import threading
import time
from collections import ChainMap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import redis
from feast import FeatureStore
from pyspark.sql import DataFrame

from feature_repo import columns as c
from feature_repo.aggregates.definition import AggregateView
from feature_repo.aggregates.key_state import KeyState
from feature_repo.dataset import DatasetSpec
from feature_repo.declarations.aggregate_views import feature_types
from feature_repo.erased import ErasedUsers
from feature_repo.events.log_names import DEAD_LETTERS
from feature_repo.events.log_position import position_key
from feature_repo.stores.online_store import RowEncoder, encode_timestamp, row_key
from feature_repo.workspace import Workspace
from pipelines.features.aggregates import arrow_schema
from pipelines.streaming.lease import Lease
from pipelines.streaming.offline import (
    EVENT_SCHEMA,
    MERGE,
    Part,
    archive,
    arrival,
    merge,
    tables_lock,
    write_part,
)
from pipelines.streaming.status import BatchStatus

_ROWS_PER_TRANSACTION = 500
_STATES = ["key", "payload"]
_MAX_DEAD_LETTERS = 100_000

# A repeated batch must not write its dead letters twice: they are ordered by their log position.
_APPEND_DEAD_LETTER = """
local last = redis.call('GET', KEYS[2]) or ''
if ARGV[1] <= last then return 0 end
redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[5], '*',
  'position', ARGV[2], 'reason', ARGV[3], 'entry', ARGV[4])
redis.call('SET', KEYS[2], ARGV[1])
return 1
"""

Row = dict[str, Any]


@dataclass(frozen=True)
class BatchChanges:
    """The changes of one batch.

    ``users`` and ``items`` are feature rows, ``events`` rows of ``processor.OUTPUT``, and
    ``poison`` the unreadable log entries with their reasons.
    """

    number: int
    users: list[Row]
    items: list[Row]
    events: pa.Table
    poison: list[Row]


class Sink:
    """Writes the batches of one run of the job."""

    def __init__(
        self,
        workspace: Workspace,
        spec: DatasetSpec,
        store: FeatureStore,
        client: redis.Redis,
        *,
        lease: Lease,
        generation: int,
        aggregates: Sequence[AggregateView],
    ) -> None:
        """``aggregates``: what the stream computes."""
        self.watermark_micros = 0
        self._workspace = workspace
        self._types = spec.event_types
        self._config = store.config
        self._redis = client
        self._lease = lease
        self._generation = generation
        self._views = {
            key: [view for view in aggregates if view.key == key] for key in (c.USER, c.ITEM)
        }
        self._schemas = {view.name: arrow_schema(view) for view in aggregates}
        self._encoders = {
            key: [RowEncoder(view.name, feature_types(view)) for view in views]
            for key, views in self._views.items()
        }
        self._erased = ErasedUsers(workspace, client)
        self._merger: threading.Thread | None = None

    def __call__(self, changes: DataFrame, batch: int) -> None:
        """Write one batch: called by Spark, again after a crash."""
        started = time.time()
        self.write(changes.toArrow(), batch, started)

    def write(self, changes: pa.Table, batch: int, started: float) -> None:
        """Write the changes of a batch, rows of ``processor.OUTPUT``; the online store first."""
        parsed = BatchChanges(
            number=batch,
            users=self._feature_rows(_only(changes, "user"), c.USER),
            items=self._feature_rows(_only(changes, "item"), c.ITEM),
            events=_only(changes, "event"),
            poison=_only(changes, "poison").to_pylist(),
        )
        self.write_online(parsed.users, parsed.items)
        visible = time.time()
        self.write_offline(parsed)
        self.write_dead_letters(parsed.poison)
        self._write_status(parsed, started=started, visible=visible)
        if batch % MERGE == MERGE - 1:
            self._start_merge(batch)

    def _feature_rows(self, changes: pa.Table, key: str) -> list[Row]:
        """Return the feature rows of changed states."""
        rows = []
        for change in changes.select(_STATES).to_pylist():
            state = KeyState.load(change["payload"], self._views[key])
            stamp = arrival(state.position)
            rows.append({key: change["key"], c.EVENT_TIMESTAMP: stamp, **state.row()})
        return rows

    def write_online(self, users: list[Row], items: list[Row]) -> None:
        """Write feature rows in Feast's layout; all views of a key change in one step."""
        hashes = []
        for key, rows in ((c.USER, users), (c.ITEM, items)):
            for row in rows:
                moment = encode_timestamp(row[c.EVENT_TIMESTAMP])
                fields = [encoder.fields(row, moment) for encoder in self._encoders[key]]
                hashes.append((row_key(self._config, key, row[key]), dict(ChainMap(*fields))))
        for start in range(0, len(hashes), _ROWS_PER_TRANSACTION):
            self._lease.write(hashes[start : start + _ROWS_PER_TRANSACTION])
        # After the write: an erasure that begins from now on removes these rows itself.
        for user in self._erased.among(row[c.USER] for row in users):
            self._redis.delete(row_key(self._config, c.USER, user))

    def write_offline(self, changes: BatchChanges) -> None:
        """Append the same rows to the offline tables, and the events to their archive."""
        part = Part(self._generation, changes.number, changes.number)
        users = changes.users
        events = changes.events
        with tables_lock(self._workspace, exclusive=False):
            # Under the lock: an erasure takes it after its users were put on the list.
            if self._erased.numbers():
                users, events = self._without_erased(users, events)
            folder = self._workspace.features.resolve()
            for table, schema in self._schemas.items():
                rows = users if c.USER in schema.names else changes.items
                write_part(folder / table, part, rows, schema)
            write_part(archive(self._workspace), part, self._archived(events), EVENT_SCHEMA)

    def _without_erased(self, users: list[Row], events: pa.Table) -> tuple[list[Row], pa.Table]:
        """Drop users who were erased after their events were accepted, and these events."""
        erased = self._erased.among(events["user"].unique().to_pylist())
        erased |= self._erased.among(row[c.USER] for row in users)
        remaining = events.filter(
            pc.invert(pc.is_in(events["user"], pa.array(sorted(erased), pa.string())))
        )
        return [row for row in users if row[c.USER] not in erased], remaining

    def _archived(self, events: pa.Table) -> pa.Table:
        """Return a batch's events as rows of ``EVENT_SCHEMA``."""
        columns = {
            **{name: events[name] for name in ("position", "event_id", "value")},
            **{name: events[name] for name in ("request_id", "context")},
            c.USER: events["user"],
            c.ITEM: events["item"],
            c.TYPE: pa.array(self._types).take(events["kind"]),
            c.TIMESTAMP: events["micros"].cast(pa.timestamp("us", tz="UTC")),
            "accepted_at": pa.array(
                map(arrival, events["position"].to_pylist()), pa.timestamp("us", tz="UTC")
            ),
        }
        return pa.table(
            {field.name: columns[field.name] for field in EVENT_SCHEMA}, schema=EVENT_SCHEMA
        )

    def write_dead_letters(self, poison: list[Row]) -> None:
        """Append each unreadable entry once to the dead letters, with the reason."""
        for row in sorted(poison, key=lambda row: position_key(row["position"])):
            reason, _, entry = row["payload"].partition("\n")
            if self._erased.named_in(entry, (c.USER,)):
                continue
            order = "{:020d}-{:010d}".format(*position_key(row["position"]))
            arguments = (order, row["position"], reason, entry, _MAX_DEAD_LETTERS)
            self._redis.eval(
                _APPEND_DEAD_LETTER, 2, DEAD_LETTERS, f"{DEAD_LETTERS}:last", *arguments
            )

    def _write_status(self, changes: BatchChanges, *, started: float, visible: float) -> None:
        """Add a batch to the totals, unless it was counted before, and replace the last batch."""
        status = BatchStatus.read(self._redis) or BatchStatus()
        batch = (self._generation, changes.number)
        micros = changes.events["micros"].to_numpy()
        update: dict[str, Any] = {
            "batch": batch,
            "batch_events": len(changes.events),
            "watermark": self.watermark_micros / 1e6,
        }

        if status.batch is None or status.batch < batch:
            update["events"] = status.events + len(changes.events)
            update["late"] = status.late + int((micros < self.watermark_micros).sum())
            update["poison"] = status.poison + len(changes.poison)

        positions = changes.events["position"].to_pylist()
        positions += [row["position"] for row in changes.poison]
        if positions:
            newest = max(positions, key=position_key)
            update["position"] = newest
            update["lag_ms"] = round(visible * 1_000 - position_key(newest)[0])
        if len(micros):
            update["event_time"] = float(micros.max()) / 1e6

        now = time.time()
        update |= {"at": now, "batch_s": round(now - started, 3)}
        status.model_copy(update=update).write(self._redis)

    def _start_merge(self, below: int) -> None:
        """Merge small files in a thread, unless an earlier merge still runs."""
        if self._merger and self._merger.is_alive():
            return
        self._merger = threading.Thread(target=self.merge, args=(below,), daemon=True, name="merge")
        self._merger.start()

    def merge(self, below: int) -> None:
        """Merge the small files of batches before ``below``."""
        with tables_lock(self._workspace, exclusive=False):
            folder = self._workspace.features.resolve()
            for table, schema in self._schemas.items():
                merge(folder / table, schema, below, self._generation)
            merge(archive(self._workspace), EVENT_SCHEMA, below, self._generation)


def _only(changes: pa.Table, what: str) -> pa.Table:
    return changes.filter(pc.equal(changes["what"], what))
