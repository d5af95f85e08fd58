"""An event log in a folder: files of JSON lines, in the same order for all writers and readers.

A file holds the events of one call. It gets its name when it is complete and synced:
``<hours>/<milliseconds>-<events>-<pid>.jsonl``, hours and milliseconds since the epoch. Each line
carries the position of its entry, ``<milliseconds>-<number in the file>``.

A writer holds an exclusive lock on the folder, so milliseconds rise from file to file, whichever
process writes and whatever its clock says. A reader lists files under a shared lock: a listing
while files appear could have a later file and lack an earlier one.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from feature_repo.events.stored import encode
from feature_repo.files import lock, replace_atomically

_HOUR_MS = 3_600_000
_NAME = re.compile(r"(\d+)-(\d+)-\d+\.jsonl")
_LOCK = ".lock"  # Spark and others who read folders pass over such names


@dataclass(frozen=True, order=True)
class LogFile:
    """A file of the log: milliseconds of its positions, number of entries, and path."""

    milliseconds: int
    entries: int
    path: Path

    @property
    def last(self) -> str:
        """The position of its last entry."""
        return f"{self.milliseconds}-{self.entries - 1}"

    def read(self) -> Iterator[tuple[str, str]]:
        """Yield each entry's position and event (JSON); an unreadable line stays as it is."""
        text = self.path.read_text(encoding="utf-8", errors="replace")
        for number, line in enumerate(text.removesuffix("\n").split("\n")):
            try:
                fields = json.loads(line)
                yield fields["position"], encode(fields["event"])
            except (ValueError, TypeError, KeyError):
                yield f"{self.milliseconds}-{number}", line


class LogFolder:
    """The log's folder, which may not exist yet; its file system must support locks."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextmanager
    def writing(self) -> Iterator[Writer]:
        """Lock the folder for writing; nobody else writes or lists it meanwhile.

        Raises:
            OSError: the folder cannot be written.

        """
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / _LOCK).open("a+") as file:
            lock(file)
            yield Writer(self._folder, file)

    def after(self, milliseconds: int) -> list[LogFile]:
        """Return the files from these milliseconds on, in order."""
        try:
            file = (self._folder / _LOCK).open("rb")
        except FileNotFoundError:
            return []
        with file:
            lock(file, shared=True)
            return _files(self._folder, milliseconds)


class Writer:
    """A writer that has locked the folder; the lock file contains the last used milliseconds."""

    def __init__(self, folder: Path, lock: IO[str]) -> None:
        self._folder = folder
        self._lock = lock
        lock.seek(0)
        text = lock.read()
        self.newest = (
            int(text)
            if text.isdigit()
            else max((file.milliseconds for file in self.after(0)), default=0)
        )

    def after(self, milliseconds: int) -> list[LogFile]:
        """Return the files from these milliseconds on, in order."""
        return _files(self._folder, milliseconds)

    def write(self, events: Sequence[str]) -> LogFile:
        """Write a file of events (JSON) and sync it to disk.

        Raises:
            OSError: there is no such file, or it may not survive a power cut.

        """
        milliseconds = max(time.time_ns() // 1_000_000, self.newest + 1)
        self._reserve(milliseconds)
        folder = self._folder / str(milliseconds // _HOUR_MS)
        name = f"{milliseconds}-{len(events)}-{os.getpid()}.jsonl"
        file = LogFile(milliseconds, len(events), folder / name)
        lines = (
            f'{{"position":"{milliseconds}-{number}","event":{event}}}\n'
            for number, event in enumerate(events)
        )
        with (
            replace_atomically(file.path) as temporary,
            temporary.open("w", encoding="utf-8", newline="\n") as out,
        ):
            out.writelines(lines)
        return file

    def _reserve(self, milliseconds: int) -> None:
        self._lock.truncate(0)
        self._lock.write(str(milliseconds))
        self._lock.flush()
        self.newest = milliseconds


def _files(folder: Path, milliseconds: int) -> list[LogFile]:
    hours = [
        hour
        for hour in folder.iterdir()
        if hour.name.isdigit() and int(hour.name) >= milliseconds // _HOUR_MS
    ]
    paths = ((path, _NAME.fullmatch(path.name)) for hour in hours for path in hour.iterdir())
    files = (LogFile(int(name[1]), int(name[2]), path) for path, name in paths if name)
    return sorted(file for file in files if file.milliseconds >= milliseconds)
