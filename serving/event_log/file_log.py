"""The event log as a folder of files; Redis keeps deduplication and the overlay."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from feature_repo.events.log_folder import LogFile, LogFolder, Writer
from feature_repo.events.stored import StoredEvent, parse_stored
from feature_repo.workspace import Workspace
from serving.event_log.dedup import Entry, EventDedup, appended, entries_of
from serving.event_log.port import Appended, LogFull
from serving.event_log.redis_stream import id_digest
from serving.online.features import OnlineStoreUnavailable

SETTLED = "funnel:files:settled"
"""Redis key of the newest file whose events are marked; a killed process leaves later ones."""

_KNOWN_MS = 86_400_000  # ids are known for a day at least, so older files need no marks


class FileLog:
    """Files of JSON lines; an append is one file, synced, and seen by readers when it is whole.

    Appends go one at a time, for all processes that share the folder, and the folder's lock is held
    from the check for repeats to the marks. So files that are newer than the last mark were left by
    a process that was killed, or that lost Redis; the next append marks them first. Nothing is
    trimmed, and the log is full when the disk is.
    """

    def __init__(self, workspace: Workspace, folder: Path) -> None:
        self._folder = LogFolder(folder)
        self._dedup = EventDedup(workspace)

    def append(self, events: Sequence[StoredEvent]) -> Appended:
        """Append checked events; they are synced then, and their users' next requests see them.

        Raises:
            OnlineStoreUnavailable: Redis or the folder did not take them; repeating the call is
                safe.

        """
        if not events:
            return Appended(0)
        try:
            with self._folder.writing() as writer:
                self._catch_up(writer)
                new = self._dedup.unseen(entries_of(events))
                if new:
                    self._settle(writer.write([entry.payload for entry in new]))
        except LogFull as error:  # of Redis, which may come after the write
            raise OnlineStoreUnavailable(str(error)) from error
        except OSError as error:
            raise OnlineStoreUnavailable(f"the log's folder: {error}") from error
        return appended(events, new)

    def _catch_up(self, writer: Writer) -> None:
        settled = self._dedup.get(SETTLED)
        if writer.newest > settled:
            for file in writer.after(max(settled + 1, time.time_ns() // 1_000_000 - _KNOWN_MS)):
                self._settle(file)
            self._dedup.set(SETTLED, writer.newest)

    def _settle(self, file: LogFile) -> None:
        self._dedup.settle(_events_of(file))
        self._dedup.set(SETTLED, file.milliseconds)


def _events_of(file: LogFile) -> Iterator[tuple[Entry, str]]:
    for position, payload in file.read():
        try:
            event = parse_stored(payload)
            yield Entry(event, id_digest(event["event_id"]), payload), position
        except (ValueError, TypeError, KeyError, AttributeError):
            continue  # not ours; the stream puts it with its dead letters
