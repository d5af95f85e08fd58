"""A folder that is an event log: whole files of JSON lines, in one order for all who write and read it.

A file has what one call appended. It appears under its name when it is complete and synced, and its
name
gives its place: ``<hours>/<milliseconds>-<events>-<pid>.jsonl``, both since the epoch. Each line
carries its entry's position, ``<milliseconds>-<number in the file>``. Who writes holds a lock on
the folder, so the milliseconds rise from file to file, whatever process wrote it and wherever the
clock is set; who lists files holds it with others, because a listing during which files appear may
have a later one and lack an earlier one.
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

from feature_repo.events.log_names import encode
from feature_repo.files import lock, replace_atomically, sync_folder

_HOUR_MS = 3_600_000
_NAME = re.compile(r"(\d+)-(\d+)-\d+\.jsonl")
_LOCK = ".lock"  # Spark and others who read folders pass over such names


@dataclass(frozen=True, order=True)
class LogFile:
    """A file of the log: the milliseconds of its entries' positions, how many it has, and where it lies."""

    milliseconds: int
    entries: int
    path: Path

    @property
    def last(self) -> str:
        """The position of its last entry."""
        return f"{self.milliseconds}-{self.entries - 1}"

    def read(self) -> Iterator[tuple[str, str]]:
        """Yield each entry's position and event (JSON); of a line that is none, its place and the line."""
        text = self.path.read_text(encoding="utf-8", errors="replace")
        for number, line in enumerate(text.removesuffix("\n").split("\n")):
            try:
                fields = json.loads(line)
                yield fields["position"], encode(fields["event"])
            except (ValueError, TypeError, KeyError):
                yield f"{self.milliseconds}-{number}", line


class LogFolder:
    """The log's folder, which need not be there yet; it lies on a file system that has locks."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextmanager
    def writing(self) -> Iterator[Writer]:
        """Hold the folder for writing; nobody else writes or lists it meanwhile.

        Raises:
            OSError: it cannot be written.

        """
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / _LOCK).open("a+") as file:
            lock(file)
            yield Writer(self._folder, file)

    def after(self, milliseconds: int) -> list[LogFile]:
        """Return the files of a place and later ones, in order."""
        try:
            file = (self._folder / _LOCK).open("rb")
        except FileNotFoundError:
            return []
        with file:
            lock(file, shared=True)
            return _files(self._folder, milliseconds)


class Writer:
    """Who holds the folder. The lock's own content is the place that was last taken."""

    def __init__(self, folder: Path, lock: IO[str]) -> None:
        self._folder, self._lock = folder, lock
        lock.seek(0)
        text = lock.read()
        self.taken = (
            int(text)
            if text.isdigit()
            else max((file.milliseconds for file in self.after(0)), default=0)
        )

    def after(self, milliseconds: int) -> list[LogFile]:
        """Return the files of a place and later ones, in order."""
        return _files(self._folder, milliseconds)

    def write(self, events: Sequence[str]) -> LogFile:
        """Write a file of events (JSON); when it returns they are synced to disk.

        Raises:
            OSError: there is no file of them, or there is one that may not outlast a power cut.

        """
        place = max(time.time_ns() // 1_000_000, self.taken + 1)
        self._take(place)
        folder = self._folder / str(place // _HOUR_MS)
        if not folder.is_dir():
            folder.mkdir()
            sync_folder(self._folder)
        file = LogFile(place, len(events), folder / f"{place}-{len(events)}-{os.getpid()}.jsonl")
        lines = (
            f'{{"position":"{place}-{number}","event":{event}}}\n'
            for number, event in enumerate(events)
        )
        with (
            replace_atomically(file.path) as temporary,
            temporary.open("w", encoding="utf-8", newline="\n") as out,
        ):
            out.writelines(lines)
        sync_folder(folder)
        return file

    def _take(self, place: int) -> None:
        self._lock.truncate(0)
        self._lock.write(str(place))
        self._lock.flush()
        self.taken = place


def _files(folder: Path, milliseconds: int) -> list[LogFile]:
    hours = [
        hour
        for hour in folder.iterdir()
        if hour.name.isdigit() and int(hour.name) >= milliseconds // _HOUR_MS
    ]
    paths = ((path, _NAME.fullmatch(path.name)) for hour in hours for path in hour.iterdir())
    files = (LogFile(int(name[1]), int(name[2]), path) for path, name in paths if name)
    return sorted(file for file in files if file.milliseconds >= milliseconds)
