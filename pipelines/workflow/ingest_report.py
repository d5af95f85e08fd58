"""Shows a person what an ingest read, used and set aside."""

from __future__ import annotations

from typing import Any

from pipelines import display
from pipelines.ingest.report import IngestReport


def show_ingest(report: IngestReport) -> None:
    """Print what an ingest read, used and set aside, and what the data look like."""
    figures = report.figures
    set_aside = sum(report.quarantined.values())
    rows: list[list[Any]] = [
        ["new files", report.files],
        ["rows read from them", report.rows],
        ["new events", report.events],
        ["all events", report.total_events],
        ["users", report.users],
        ["items", report.items],
        ["rows set aside", set_aside],
        ["cells left empty or doubtful", sum(report.cells.values())],
        ["first event", figures.first],
        ["last event", figures.last],
        ["events over this time", _bars(figures.histogram)],
        ["days shifted", report.shift_s // 86_400],
    ]
    rows += [
        [f"quarantined: {reason}", count] for reason, count in sorted(report.quarantined.items())
    ]
    display.table("Ingest", ["", "rows"], rows)
    show_told(report)


def show_told(report: IngestReport) -> None:
    """Print the notes and warnings of an ingest."""
    for note in report.notes:
        display.sentence(note)
    for warning in report.warnings:
        display.warning(warning)


def _bars(counts: list[int]) -> str:
    """Return counts as a row of bars; the least bar is of a count above zero."""
    bars = "▁▂▃▄▅▆▇█"
    most = max(counts, default=0)
    return "".join(bars[-(-count * len(bars) // most) - 1] if count else " " for count in counts)
