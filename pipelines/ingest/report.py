"""The report of one ingest: how many rows it added, quarantined and dropped."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass
class IngestReport:
    """Counts of one run: added rows, quarantined rows by reason, dropped rows of erased users."""

    files: int = 0
    events: int = 0
    users: int = 0
    items: int = 0
    erased: int = 0
    quarantined: Counter[str] = field(default_factory=Counter)
    total_events: int = 0
    data_version: str = ""
    shift_s: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Return the report as JSON-ready values."""
        return {**self.__dict__, "quarantined": dict(sorted(self.quarantined.items()))}
