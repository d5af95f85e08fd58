"""What a batch changes: rows to the online store first, then the same rows and the events to the offline tables.

Everything written is absolute and named by its batch, so that a batch that is run again overwrites.
"""

from __future__ import annotations

import json
import threading
import time
from collections import ChainMap
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import redis
from feast import FeatureStore
from pyspark.sql import DataFrame

from feature_repo import columns as c
from feature_repo.dataset import DatasetSpec
from feature_repo.erased import ErasedUsers
from feature_repo.events.log_names import DEAD_LETTERS, STATUS
from feature_repo.facts import load, position_key, row_of
from feature_repo.stores.online_store import RowEncoder, encode_moment, row_key
from feature_repo.views import HISTORY_SCHEMA, ITEM_RECENT_SCHEMA, USER_RECENT_SCHEMA
from feature_repo.workspace import Workspace
from pipelines.features.stream_facts import USER_KEY
from pipelines.streaming.lease import Lease
from pipelines.streaming.offline import (
    EVENT_SCHEMA,
    MERGE,
    SCHEMAS,
    Part,
    archive,
    arrival,
    merge,
    tables_lock,
    write_part,
)

_ROWS_A_TRANSACTION = 500
_FACTS = ["key", "payload"]
_DEAD_LETTERS_KEPT = 100_000

# A batch that is run again must not say twice what it has said: entries are numbered by their place
# in the log.
_DEAD = """
local last = redis.call('GET', KEYS[2]) or ''
if ARGV[1] <= last then return 0 end
redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[5], '*', 'position', ARGV[2], 'reason', ARGV[3], 'entry', ARGV[4])
redis.call('SET', KEYS[2], ARGV[1])
return 1
"""

_USER_VIEWS = [
    RowEncoder("user_history", HISTORY_SCHEMA),
    RowEncoder("user_recent", USER_RECENT_SCHEMA),
]
_ITEM_VIEWS = [RowEncoder("item_recent", ITEM_RECENT_SCHEMA)]

Row = dict[str, Any]


class Sink:
    """Writes the batches of one run of the job."""

    def __init__(
        self,
        workspace: Workspace,
        spec: DatasetSpec,
        store: FeatureStore,
        client: redis.Redis,
        lease: Lease,
        generation: int,
        categories: dict[str, str],
    ) -> None:
        self._workspace, self._types, self._config = workspace, spec.event_types, store.config
        self._redis, self._lease, self._generation = client, lease, generation
        self._category: Callable[[str], str] = lambda item: categories.get(item, "")
        self._erased = ErasedUsers(workspace, client)
        self._merger: threading.Thread | None = None
        self.watermark_micros = 0

    def __call__(self, changes: DataFrame, batch: int) -> None:
        """Write one batch: called by Spark, again after a crash."""
        started = time.time()
        self.write(changes.toArrow(), batch, started)

    def write(self, changes: pa.Table, batch: int, started: float) -> None:
        """Write the changes of a batch (rows of ``processor.OUTPUT``), in the order in which they matter to readers."""
        events, poison = _only(changes, "event"), _only(changes, "poison").to_pylist()
        users = [
            self._feature_row(c.USER, row)
            for row in _only(changes, "user").select(_FACTS).to_pylist()
        ]
        items = [
            self._feature_row(c.ITEM, row)
            for row in _only(changes, "item").select(_FACTS).to_pylist()
        ]
        self.write_online(users, items)
        visible = time.time()
        self.write_offline(users, items, events, batch)
        self.write_dead_letters(poison)
        self._write_status(batch, events, poison, started, visible)
        if batch % MERGE == MERGE - 1:
            self._start_merge(batch)

    def _feature_row(self, key: str, change: Row) -> Row:
        row = row_of(load(change["payload"]), self._types, self._category)
        return {key: change["key"], c.EVENT_TIMESTAMP: arrival(row[c.POSITION]), **row}

    def write_online(self, users: list[Row], items: list[Row]) -> None:
        """Write feature rows in Feast's layout; both views of a user change in one step."""
        hashes = []
        for key, rows, encoders in ((c.USER, users, _USER_VIEWS), (c.ITEM, items, _ITEM_VIEWS)):
            for row in rows:
                moment = encode_moment(row[c.EVENT_TIMESTAMP])
                fields = [encoder.fields(row, moment) for encoder in encoders]
                hashes.append((row_key(self._config, key, row[key]), dict(ChainMap(*fields))))
        for start in range(0, len(hashes), _ROWS_A_TRANSACTION):
            self._lease.write(hashes[start : start + _ROWS_A_TRANSACTION])
        # Looked at after the write: who is erased from now on removes the rows by himself.
        for user in self._erased.among(row[c.USER] for row in users):
            self._redis.delete(row_key(self._config, c.USER, user))

    def write_offline(
        self, users: list[Row], items: list[Row], events: pa.Table, batch: int
    ) -> None:
        """Append the same rows to the offline tables, and the events to their archive."""
        part = Part(self._generation, batch, batch)
        with tables_lock(self._workspace, exclusive=False):
            # Looked at under the lock: an erasure takes it when its users are on the list.
            if self._erased.numbers():
                users, events = self._without_erased(users, events)
            folder = self._workspace.features.resolve()
            for table, rows in (
                ("user_history", users),
                ("user_recent", users),
                ("item_recent", items),
            ):
                write_part(folder / table, part, rows, SCHEMAS[table])
            write_part(archive(self._workspace), part, self._archived(events), EVENT_SCHEMA)

    def _without_erased(self, users: list[Row], events: pa.Table) -> tuple[list[Row], pa.Table]:
        """Leave out users who were erased after their events were accepted, and these events."""
        gone = self._erased.among(
            key[len(USER_KEY) :] for key in events["key"].unique().to_pylist()
        )
        gone |= self._erased.among(row[c.USER] for row in users)
        keys = pa.array([USER_KEY + user for user in gone], pa.string())
        kept = events.filter(pc.invert(pc.is_in(events["key"], keys)))
        return [row for row in users if row[c.USER] not in gone], kept

    def _archived(self, events: pa.Table) -> pa.Table:
        """Return a batch's events as rows of ``EVENT_SCHEMA``."""
        columns = {
            **{name: events[name] for name in ("position", "event_id", "value", "request_id")},
            c.USER: pc.utf8_slice_codeunits(events["key"], 1),
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
        """Put entries that could not be read aside, with the reason, each once."""
        for row in sorted(poison, key=lambda row: position_key(row["position"])):
            reason, _, entry = row["payload"].partition("\n")
            if self._erased.named_in(entry, (c.USER,)):
                continue
            order = "{:020d}-{:010d}".format(*position_key(row["position"]))
            arguments = (order, row["position"], reason, entry, _DEAD_LETTERS_KEPT)
            self._redis.eval(_DEAD, 2, DEAD_LETTERS, f"{DEAD_LETTERS}:last", *arguments)

    def _write_status(
        self, batch: int, events: pa.Table, poison: list[Row], started: float, visible: float
    ) -> None:
        """Add a batch to the totals; one that was counted before is not counted again."""
        raw: bytes | None = self._redis.get(STATUS)  # type: ignore[assignment]
        status: dict[str, Any] = json.loads(raw) if raw else {"events": 0, "late": 0, "poison": 0}
        mark = [self._generation, batch]
        micros = events["micros"].to_numpy()
        if status.get("batch", [-1, -1]) < mark:
            status["events"] += len(events)
            status["late"] += int((micros < self.watermark_micros).sum())
            status["poison"] += len(poison)
        positions = [*events["position"].to_pylist(), *(row["position"] for row in poison)]
        if positions:
            status["position"] = max(positions, key=position_key)
            status["lag_ms"] = round(visible * 1_000 - position_key(status["position"])[0])
        if len(micros):
            status["event_time"] = float(micros.max()) / 1e6
        status |= {
            "batch": mark,
            "batch_events": len(events),
            "batch_s": round(time.time() - started, 3),
            "at": time.time(),
            "watermark": self.watermark_micros / 1e6,
        }
        self._redis.set(STATUS, json.dumps(status))

    def _start_merge(self, below: int) -> None:
        """Merge small files beside the next batches; a merge that still runs is waited for by nobody."""
        if self._merger and self._merger.is_alive():
            return
        self._merger = threading.Thread(target=self.merge, args=(below,), daemon=True, name="merge")
        self._merger.start()

    def merge(self, below: int) -> None:
        """Merge the small files of batches before ``below``."""
        with tables_lock(self._workspace, exclusive=False):
            folder = self._workspace.features.resolve()
            for table, schema in SCHEMAS.items():
                merge(folder / table, schema, below, self._generation)
            merge(archive(self._workspace), EVENT_SCHEMA, below, self._generation)


def _only(changes: pa.Table, what: str) -> pa.Table:
    return changes.filter(pc.equal(changes["what"], what))
