"""The report of one ingest: how many rows it read, used and set aside, and what they look like."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from pipelines.ingest.figures import Figures

_SHOWN_ONLY = ("notes", "warnings", "figures")


@dataclass
class IngestReport:
    """What one run read, and what all ingested events look like.

    ``quarantined`` counts the rows that were not used, by reason; ``cells`` the cells of user and
    item tables that were left out of rows that were used. ``notes`` and ``warnings`` are sentences
    with examples; they are shown, but not stored: what is stored has to be searched when a user is
    erased. A warning is about a share that is implausible.
    """

    files: int = 0
    rows: int = 0
    events: int = 0
    users: int = 0
    items: int = 0
    erased: int = 0
    quarantined: Counter[str] = field(default_factory=Counter)
    cells: Counter[str] = field(default_factory=Counter)
    total_events: int = 0
    data_version: str = ""
    shift_s: int = 0
    figures: Figures = field(default_factory=Figures)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Return what is stored, as JSON-ready values."""
        values = {name: value for name, value in self.__dict__.items() if name not in _SHOWN_ONLY}
        return {
            **values,
            **self.figures.as_dict(),
            "quarantined": dict(sorted(self.quarantined.items())),
            "cells": dict(sorted(self.cells.items())),
        }
