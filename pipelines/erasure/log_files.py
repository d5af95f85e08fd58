"""Erased users in an event log of files."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path

from feature_repo import columns as c
from feature_repo.erased import ErasedUsers
from feature_repo.events.log_folder import LogFolder
from feature_repo.files import write_atomically


@dataclass(frozen=True)
class LogFiles:
    """The event log of files. A line carries its position and keeps it when others are removed."""

    erased: ErasedUsers
    folder: Path
    name: str = "files of the event log"

    def find(self) -> Counter[str]:
        """Return the entries of each erased user."""
        files = LogFolder(self.folder).after(0)
        return Counter(
            user for file in files for _, event in file.read() for user in self._users(event)
        )

    def remove(self, users: Set[str]) -> None:
        """Rewrite the files with entries of users; a file without other entries is removed."""
        with LogFolder(self.folder).writing() as writer:
            for file in writer.after(0):
                text = file.path.read_text(encoding="utf-8", errors="surrogateescape")
                lines = text.removesuffix("\n").split("\n")
                remaining = [line for line in lines if self._users(_event(line)).isdisjoint(users)]
                if not remaining:
                    file.path.unlink()
                elif len(remaining) < len(lines):
                    text = "\n".join(remaining) + "\n"
                    write_atomically(file.path, text.encode("utf-8", "surrogateescape"))

    def _users(self, event: str) -> set[str]:
        return self.erased.named_in(event, (c.USER,))


def _event(line: str) -> str:
    try:
        return json.dumps(json.loads(line)["event"])
    except (ValueError, TypeError, KeyError):
        return line
