"""The held-out events of a log: what a release is evaluated on, and what was known before."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from feature_repo import columns as c
from feature_repo.arrays import Float64Array, Int64Array
from pipelines.training.past_requests import InteractionHistory, Requests, requests_from
from pipelines.training.split import Split, epoch_seconds
from serving.releases.release import Release


@dataclass(frozen=True)
class HeldOut:
    """The events after the test cut that a release must predict.

    Attributes:
        release: the release, whose codes and cut apply.
        events: the whole log in order of time.
        known: the part of it before the cut.
        test: the events to predict: positive, and their user's first contact with the item.
        requests: the same as requests.
        interactions: the whole log by user.
        repeats: positive events after the cut that are no first contact.

    """

    release: Release
    events: pd.DataFrame
    known: pd.DataFrame
    test: pd.DataFrame
    requests: Requests
    interactions: InteractionHistory
    repeats: int

    @classmethod
    def of(cls, events: pd.DataFrame, release: Release, limit: int | None) -> HeldOut:
        """Return the test events, at most ``limit`` of them, evenly spaced."""
        after = epoch_seconds(events[c.TIMESTAMP]) >= Split.from_dict(release.manifest.split).test
        positive = after & events[c.POSITIVE].to_numpy()
        first_contact = positive & ~events.duplicated([c.USER, c.ITEM]).to_numpy()
        test = events.iloc[spaced(np.flatnonzero(first_contact), limit)]
        return cls(
            release=release,
            events=events,
            known=events[~after],
            test=test,
            requests=requests_from(test, release.codec),
            interactions=InteractionHistory(events, release.codec),
            repeats=int(positive.sum() - first_contact.sum()),
        )

    def requests_after_cut_of(self, other: Release) -> tuple[Requests, Int64Array]:
        """Return the test events after another release's cut, by its codes, and which these are."""
        cut = Split.from_dict(other.manifest.split).test
        rows = np.flatnonzero(epoch_seconds(self.test[c.TIMESTAMP]) >= cut)
        return requests_from(self.test.iloc[rows], other.codec), rows

    def popularity(self) -> Float64Array:
        """Return the number of known positive events of each item, float64 ``[N]``."""
        items = self.release.codec.items
        codes = items.encode(self.known.loc[self.known[c.POSITIVE], c.ITEM].tolist())
        return np.bincount(codes, minlength=len(items)).astype(np.float64)


def spaced(rows: Int64Array, limit: int | None) -> Int64Array:
    """Return at most ``limit`` of ascending rows, evenly spaced; None: all."""
    if limit is None or len(rows) <= limit:
        return rows
    return rows[np.linspace(0, len(rows) - 1, limit).astype(np.int64)]
