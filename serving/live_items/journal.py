"""The journal of added, removed and restored items: decisions of people, on a disk.

Servers follow the copy in Redis. The journal is what brings that back after Redis was emptied, or
an empty replica was promoted: its last word on each item counts.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NotRequired, TypedDict

import orjson

from feature_repo.errors import FunnelError
from feature_repo.files import locked, sync_folder, write_atomically

_COMPACT_BYTES = 4 << 20

Action = Literal["add", "remove", "restore"]


class JournalFailed(FunnelError):
    """A change could not be written to disk."""


class Change(TypedDict):
    """One line: what was done to an item, and when, in epoch seconds.

    ``item``: of an added one, as Redis has it.
    """

    action: Action
    item_id: str
    at: float
    item: NotRequired[str]


@dataclass
class Decisions:
    """What holds after all changes.

    ``removed`` are ids; ``added`` has, by id, when an item was first added and what Redis has of
    it.
    """

    removed: set[str] = field(default_factory=set)
    added: dict[str, tuple[float, str]] = field(default_factory=dict)

    def apply(self, change: Change) -> None:
        """Add the next change."""
        item_id = change["item_id"]
        if change["action"] == "remove":
            self.removed.add(item_id)
            return
        self.removed.discard(item_id)
        if change["action"] == "add":
            since = self.added.get(item_id, (change["at"], ""))[0]
            self.added[item_id] = (since, change.get("item", ""))

    def changes(self) -> Iterator[Change]:
        """Yield the fewest changes that lead here."""
        for item_id, (since, item) in self.added.items():
            yield {"action": "add", "item_id": item_id, "at": since, "item": item}
        for item_id in sorted(self.removed):
            yield {"action": "remove", "item_id": item_id, "at": 0.0}


class ChangeJournal:
    """The file; several processes may append to it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def empty(self) -> bool:
        """Whether nothing was ever changed."""
        try:
            return self._path.stat().st_size == 0
        except FileNotFoundError:
            return True

    def append(self, change: Change) -> None:
        """Write a change through to the disk.

        Raises:
            JournalFailed: the disk is full or broken; the change may be repeated.

        """
        try:
            self._append(change)
        except OSError as error:
            raise JournalFailed(
                f"the change could not be written to {self._path}: {error.strerror}"
            ) from error

    def _append(self, change: Change) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with locked(self._path.with_suffix(".lock")):
            is_new = not self._path.exists()
            with self._path.open("ab") as file:
                # A line that was cut off by a crash must not take this one with it.
                separator = b"" if is_new or self._ends_with_newline() else b"\n"
                file.write(separator + orjson.dumps(change) + b"\n")
                file.flush()
                os.fsync(file.fileno())
                size = file.tell()
            if is_new:
                sync_folder(self._path.parent)
            if size > _COMPACT_BYTES:
                self._write(self.decisions())

    def begin(self, decisions: Decisions) -> None:
        """Write what holds into an empty journal; if the disk is full, the next call will."""
        with suppress(OSError), locked(self._path.with_suffix(".lock")):
            if self.empty:
                self._write(decisions)

    def _write(self, decisions: Decisions) -> None:
        write_atomically(
            self._path, b"".join(orjson.dumps(one) + b"\n" for one in decisions.changes())
        )

    def decisions(self) -> Decisions:
        """Return what holds; a line that was cut off counts as not written."""
        decisions = Decisions()
        if self._path.exists():
            for line in self._path.read_bytes().splitlines():
                try:
                    decisions.apply(orjson.loads(line))
                except (ValueError, KeyError, TypeError):
                    continue
        return decisions

    def _ends_with_newline(self) -> bool:
        with self._path.open("rb") as file:
            if file.seek(0, os.SEEK_END) == 0:
                return True
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"
