"""What an ingest tells a person: notes, and warnings where a share is implausible."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import NamedTuple

import pandas as pd

from feature_repo import event_time
from feature_repo.dataset import DatasetSpec, Users
from pipelines.ingest.figures import Figures, Meeting
from pipelines.ingest.readers import RawFile

_NAMED = 20
_SHOWN = 60
_MOST_SET_ASIDE = 0.1
_MOST_OF_A_FILE = 0.5
_MOST_REPEATED = 0.5
_LEAST_KNOWN = 0.5
_MOST_UNAVAILABLE = 0.2
_MOST_EMPTY_CELLS = 0.5


class Told(NamedTuple):
    """Sentences for a person: notes, and warnings about implausible shares."""

    notes: list[str]
    warnings: list[str]


def samples(spec: DatasetSpec, kind: str, rejected: pd.DataFrame) -> Iterator[str]:
    """Yield for each reason how many rows it set aside, with a value, file and line."""
    for reason, rows in rejected.groupby("reason", sort=False):
        first = rows.iloc[0]
        value = _value_of(spec, kind, str(reason), str(first["row"]))
        where = f"{first['file']}, line {first['line']}"
        shown = f"such as {_short(value)} in {where}" if value is not None else f"first in {where}"
        advice = _advice(str(reason), value)
        yield f"{_rows(len(rows))} of {kind} not used: {reason}, {shown}{advice}"


def cell_samples(kind: str, table: Users, cells: pd.DataFrame) -> Iterator[str]:
    """Yield for each reason how many cells it emptied, with a value, file and line."""
    for (attribute, reason), rows in cells.groupby(["attribute", "reason"], sort=False):
        first = rows.iloc[0]
        column = getattr(table, attribute, None) or table.source_column(attribute)
        value = json.loads(first["row"]).get(column)
        where = f"{first['file']}, line {first['line']}"
        yield (
            f"{len(rows):,} {kind}: {reason}, such as {_short(value)} in {where}"
            f"{_advice(str(reason), value)}"
        )


def tell(spec: DatasetSpec, figures: Figures) -> Told:
    """Return what the events and tables look like."""
    told = Told([], [])
    _tell_times(told, figures)
    for kind, meeting in (("users", figures.users), ("items", figures.items)):
        if meeting is not None and figures.events:
            _tell_meeting(told, kind, meeting, figures.events)
    if figures.items is not None and figures.items.unlisted:
        _tell_unlisted(told, spec, figures.items)
    if figures.before_available:
        _tell_available(told, figures)
    if figures.empty:
        told.warnings.append(
            f"attributes without any value: {', '.join(figures.empty)}; check rename and the files"
        )
    if figures.constant:
        told.notes.append(f"attributes with one value only: {', '.join(figures.constant)}")
    return told


def tell_shares(
    told: Told, *, read: int, rejected: pd.DataFrame, first_run: bool, kind: str = "events"
) -> None:
    """Add warnings where much of what was read is not used, or repeats itself."""
    repeats = rejected["reason"].str.startswith("duplicate")
    bad, again = int((~repeats).sum()), int(repeats.sum())
    if read and bad > _MOST_SET_ASIDE * read:
        told.warnings.append(f"{_share(bad, read)} of the rows of {kind} cannot be used")
    if read and first_run and again > _MOST_REPEATED * read:
        told.warnings.append(f"{_share(again, read)} of the rows of {kind} repeat others")


def tell_cells(told: Told, kind: str, cells: pd.DataFrame, rows: int) -> None:
    """Add warnings where most cells of an attribute cannot be read."""
    for attribute, found in cells.groupby("attribute", sort=False):
        if rows and len(found) > _MOST_EMPTY_CELLS * rows:
            told.warnings.append(
                f"{_share(len(found), rows)} of the cells of {kind}.{attribute} cannot be read"
            )


def unused_file(raw: RawFile, rejected: pd.DataFrame) -> Iterator[str]:
    """Yield a warning if most rows of a file cannot be used."""
    read = len(raw.rows) + len(raw.bad)
    bad = int((~rejected["reason"].str.startswith("duplicate")).sum())
    if bad > _MOST_OF_A_FILE * read:
        yield f"{raw.name}: {_share(bad, read)} of its rows cannot be used"


def _tell_times(told: Told, figures: Figures) -> None:
    if figures.events and figures.early * 2 > figures.events:
        told.warnings.append(
            f"{_share(figures.early, figures.events)} of the events are of before 1990, the first "
            f"of {figures.first}: check timestamp_unit and the values"
        )
    elif figures.far:
        told.warnings.append(
            f"{figures.far:,} events are decades away from most others, such as one of "
            f"{figures.far_example}: check these values"
        )


def _tell_meeting(told: Told, kind: str, meeting: Meeting, events: int) -> None:
    known = events - meeting.unlisted_events
    line = (
        f"{kind} table: {_share(known, events)} of the events are of listed {kind}; "
        f"{len(meeting.unlisted):,} of {meeting.log:,} {kind} of the log are not listed"
    )
    if meeting.unlisted:
        line += (
            f" ({_share(meeting.unlisted_events, events)} of the events; "
            f"the log has '{meeting.unlisted[0]}', the table '{meeting.example}')"
        )
    line += f"; {meeting.without_events:,} of {meeting.table:,} listed {kind} have no event"
    implausible = known < _LEAST_KNOWN * events
    (told.warnings if implausible else told.notes).append(line)


def _tell_unlisted(told: Told, spec: DatasetSpec, items: Meeting) -> None:
    names = ", ".join(items.unlisted[:_NAMED])
    more = f" and {len(items.unlisted) - _NAMED:,} more" if len(items.unlisted) > _NAMED else ""
    verb = (
        "are recommended all the same, because of recommend_unlisted"
        if spec.items and spec.items.recommend_unlisted
        else "are not recommended (recommend_unlisted = true in [items] changes that)"
    )
    told.notes.append(f"items that only the log has {verb}: {names}{more}")


def _tell_available(told: Told, figures: Figures) -> None:
    before = figures.before_available or 0
    line = (
        f"{_share(before, figures.events)} of the events are before their item's available_from: "
        "if it is the day of an import, leave available_from out of [items], or correct it"
    )
    implausible = before > _MOST_UNAVAILABLE * figures.events
    (told.warnings if implausible else told.notes).append(line)


def _value_of(spec: DatasetSpec, kind: str, reason: str, row: str) -> object:
    """Return the value that a reason is about, None if it is about the whole row."""
    if reason.startswith(("broken line", "duplicate", "not valid")):
        return row if reason.startswith("broken line") else None
    e = spec.events
    columns = {"user_id": e.user, "item_id": e.item, "timestamp": e.timestamp, "event_id": e.id}
    if kind != "events":
        table = spec.users if kind == "users" else spec.items
        columns = dict.fromkeys(("user_id", "item_id"), table.key if table else "")
        columns |= {"valid_from": table.valid_from if table else None}
    columns |= {"bad number": e.value, "value": e.value, "unknown event type": e.type or e.value}
    column = next((column for word, column in columns.items() if word in reason), None)
    if column is None:
        return None
    return json.loads(row).get(column) or ""


def _advice(reason: str, value: object) -> str:
    if "no epoch time" in reason:
        number = float(str(value)) if re.fullmatch(event_time.NUMBER, str(value)) else None
        doubt = f"; {event_time.doubt_of(number)}" if number is not None else ""
        unit = "; timestamp_unit = 's' takes it as it is" if "timestamp" in reason else ""
        return f"{doubt}{unit}; read are {event_time.FORMS}"
    unreadable = ("unreadable timestamp", "before 1970", "unreadable avail", "unreadable valid")
    if any(words in reason for words in unreadable):
        return f"; read are {event_time.FORMS}"
    if "bad number" in reason:
        return "; for numbers like 12,99 set decimal = ','"
    if "unknown event type" in reason:
        return "; list it in [events.types] or map it in rename_types"
    return ""


def _short(value: object) -> str:
    text = "an empty cell" if value in (None, "") else repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count:,} rows"


def _share(part: int, whole: int) -> str:
    percent = 100 * part / max(1, whole)
    digits = 0 if percent in (0, 100) or 1 <= percent <= 99 else 1
    return f"{percent:.{digits}f}% ({part:,} of {whole:,})"
