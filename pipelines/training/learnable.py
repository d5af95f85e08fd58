"""Says before anything costly runs whether a log can be learned from."""

from __future__ import annotations

import pandas as pd
import pyarrow.parquet as pq

from feature_repo import columns as c
from feature_repo.dataset import SpecError
from feature_repo.workspace import Workspace
from pipelines.ingest.ingested import read_events
from pipelines.training.split import Split, epoch_seconds

_MOST_UNAVAILABLE = 0.5


def check_learnable(
    workspace: Workspace, events: pd.DataFrame | None = None, *, evaluated: bool = False
) -> Split:
    """Return where the parts of a log begin, if models can learn from it.

    Args:
        workspace: a working folder with ingested data.
        events: all of its events in order of time; None: they are read.
        evaluated: the models are to be evaluated, too.

    Raises:
        MissingStage: nothing has been ingested.
        SpecError: a part has nothing to learn from, or most events are of items that were not
            available.

    """
    events = read_events(workspace) if events is None else events
    split = Split.by_time(events)
    _check_first_contacts(events, split, evaluated=evaluated)
    _check_availability(workspace, events, split)
    return split


def _check_first_contacts(events: pd.DataFrame, split: Split, *, evaluated: bool) -> None:
    """Refuse a log whose later parts have no event of an item that is new to its user."""
    time = epoch_seconds(events[c.TIMESTAMP])
    new = ~events.duplicated([c.USER, c.ITEM]).to_numpy()
    positive = new & events[c.POSITIVE].to_numpy(dtype=bool)
    parts = [
        ("80% to 86%", positive, split.ranker, split.calibrate),
        ("86% to 88%", new, split.calibrate, split.selection),
        ("88% to 90%", positive, split.selection, split.test),
    ]
    if evaluated:
        parts.append(("90% to 100%", positive, split.test, float("inf")))
    for name, counts, start, stop in parts:
        if not (counts & (time >= start) & (time < stop)).any():
            raise SpecError(
                f"nothing to learn from: of the events from {name} of the time, no positive one "
                "is of an item that its user did not know. Each of these parts needs at least "
                f"one; the log has {events[c.ITEM].nunique():,} items and "
                f"{events[c.USER].nunique():,} users: bring more items, or more events"
            )


def _check_availability(workspace: Workspace, events: pd.DataFrame, split: Split) -> None:
    """Refuse a log that is mostly of times at which its items were not available yet."""
    file = workspace.ingest / "items.parquet"
    if not file.is_file() or c.AVAILABLE_FROM not in pq.read_schema(file).names:
        return
    begin = pq.read_table(file, columns=[c.ITEM, c.AVAILABLE_FROM]).to_pandas()
    learned = events[
        events[c.POSITIVE].to_numpy(dtype=bool)
        & (epoch_seconds(events[c.TIMESTAMP]) < split.ranker)
    ]
    starts = learned[c.ITEM].map(begin.set_index(c.ITEM)[c.AVAILABLE_FROM])
    share = float((learned[c.TIMESTAMP] < starts).mean())
    if share > _MOST_UNAVAILABLE:
        raise SpecError(
            f"{share:.0%} of the positive events to learn from are before their item's "
            "available_from, so that nothing could be had in them: leave available_from out of "
            "[items] if it is the day of an import, or correct it"
        )
