"""Makes files of the archive anew, from the event log, after they were found to be torn.

A part holds the events between those of its neighbours, so what the log has between them is what
the part held: without what was unreadable in the log, and without users who were erased since.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import redis

from feature_repo import columns as c
from feature_repo.erased import ErasedUsers
from feature_repo.events.log_folder import LogFolder
from feature_repo.events.log_names import LOG, log_address
from feature_repo.events.log_position import event_micros, position_key
from feature_repo.parquet_files import files_set_aside, original_name, read_whole, set_torn_aside
from feature_repo.stores.feature_store import redis_client
from feature_repo.units import MICROS
from feature_repo.workspace import Workspace
from pipelines.streaming.decode import PoisonError, checked_event, context_text
from pipelines.streaming.generation import Generation
from pipelines.streaming.offline import (
    EVENT_SCHEMA,
    Part,
    archive,
    arrival,
    parts,
    write_part,
)
from pipelines.streaming.status import BatchStatus

_ENTRIES_PER_READ = 1_000
_log = logging.getLogger(__name__)

Entry = tuple[str, str]
"""A log entry: its position and the event as JSON."""


@dataclass(frozen=True)
class _Range:
    """The log positions between which a part lies; ``last`` is in it, ``end`` is not."""

    after: str
    last: str
    end: str | None

    def __contains__(self, position: str) -> bool:
        key = position_key(position)
        below = self.end is None or key < position_key(self.end)
        return below and position_key(self.after) < key <= position_key(self.last)


def rebuild_archive(workspace: Workspace) -> None:
    """Make every part that was set aside anew, as far as the event log has its entries."""
    folder = archive(workspace)
    if not files_set_aside(folder):
        return
    set_torn_aside([folder / part.name for part in parts(folder)])  # neighbours must be readable
    for aside in files_set_aside(folder):
        part = Part.named(original_name(aside))
        if part is None or (folder / part.name).exists():
            continue
        try:
            _rebuild(workspace, folder, part, aside)
        except redis.RedisError as error:
            _log.warning("%s cannot be made anew: Redis does not answer (%s)", aside, error)


def _rebuild(workspace: Workspace, folder: Path, part: Part, aside: Path) -> None:
    client = redis_client(workspace)
    wanted = _range(workspace, folder, part, client)
    address = log_address()
    if address is None:
        complete, entries = _redis_entries(client, wanted)
    elif isinstance(address, Path):
        complete, entries = _file_entries(address, wanted)
    else:
        _log.warning(
            "%s: its events are missing, and Funnel does not read them again from Kafka: "
            "run 'funnel ingest', 'funnel features' and 'funnel materialize' from source files "
            "that have them",
            aside,
        )
        return
    rows = _archive_rows(workspace, entries)
    write_part(folder, part, rows, EVENT_SCHEMA)
    if complete:
        aside.unlink(missing_ok=True)
        _log.warning("%s was made anew from the event log: %d events", part.name, len(rows))
    else:
        _log.warning(
            "%s was made anew with the %d events that the event log still has; if the log has "
            "dropped earlier ones of that file, they are lost, and %s is kept",
            part.name,
            len(rows),
            aside,
        )


def _range(workspace: Workspace, folder: Path, part: Part, client: redis.Redis) -> _Range:
    """Return where in the log a part's events are, from its neighbours and the job's status."""
    others = parts(folder)
    before = [other for other in others if other < part]
    later = [other for other in others if other > part]
    generation = Generation.read(workspace)
    start = generation.start if generation and generation.number == part.generation else "0-0"
    status = BatchStatus.read(client)
    newest = status.position if status and status.position else "0-0"
    return _Range(
        after=max([start, *(_edge(folder, before[-1:], max))], key=position_key),
        last=newest,
        end=next(iter(_edge(folder, later[:1], min)), None),
    )


def _edge(folder: Path, some: list[Part], which: Callable[..., str]) -> list[str]:
    """Return the first or last position of each part."""
    tables = (read_whole(folder / part.name, EVENT_SCHEMA) for part in some)
    return [which(table["position"].to_pylist(), key=position_key) for table in tables if table]


def _redis_entries(client: redis.Redis, wanted: _Range) -> tuple[bool, list[Entry]]:
    """Return entries of the Redis Stream, and whether it still reaches back to all of them."""
    if not client.exists(LOG):
        return False, []
    about: dict[str, Any] = client.xinfo_stream(LOG)  # type: ignore[assignment]
    oldest = about["first-entry"]
    reaches = oldest and position_key(oldest[0].decode()) <= position_key(wanted.after)
    complete = bool(reaches or about.get("entries-added") == about["length"])
    return complete, list(_scan(client, wanted))


def _scan(client: redis.Redis, wanted: _Range) -> Iterator[Entry]:
    start = wanted.after
    while True:
        found: list[Any] = client.xrange(  # type: ignore[assignment]
            LOG, min=f"({start}", max=wanted.last, count=_ENTRIES_PER_READ
        )
        if not found:
            return
        for key, fields in found:
            start = key.decode()
            if start not in wanted:
                return
            yield start, fields.get(b"event", b"").decode(errors="replace")


def _file_entries(folder: Path, wanted: _Range) -> tuple[bool, list[Entry]]:
    """Return entries of the log of files, which drops none."""
    files = LogFolder(folder).after(position_key(wanted.after)[0])
    return True, [entry for file in files for entry in file.read() if entry[0] in wanted]


def _archive_rows(workspace: Workspace, entries: list[Entry]) -> pa.Table:
    """Return the events of log entries as rows of ``EVENT_SCHEMA``; the sink drops the same."""
    types = workspace.spec().event_types
    rows: list[dict[str, Any]] = []
    for position, payload in entries:
        try:
            event = checked_event(payload, types)
        except PoisonError:
            continue
        micros = event_micros(event["timestamp"], position)
        rows.append(
            {
                "position": position,
                c.EVENT_ID: event["event_id"],
                c.USER: event["user_id"],
                c.ITEM: event["item_id"],
                c.TYPE: event["type"],
                c.TIMESTAMP: datetime.fromtimestamp(micros // MICROS, UTC).replace(
                    microsecond=micros % MICROS
                ),
                c.VALUE: event.get("value"),
                "request_id": event.get("request_id"),
                "context": context_text(event),
                "accepted_at": arrival(position),
            }
        )
    table = pa.Table.from_pylist(rows, EVENT_SCHEMA)
    erased = ErasedUsers(workspace).among(set(table[c.USER].to_pylist()))
    return table.filter(pc.invert(pc.is_in(table[c.USER], pa.array(sorted(erased), pa.string()))))
