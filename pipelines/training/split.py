"""Time splits: what each part may learn from lies before what it is judged on.

towers learn | ranker learns | calibration | selection of the ranker | test
^ ranker         ^ calibrate    ^ selection       ^ test
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from feature_repo import columns as c
from feature_repo.arrays import Float64Array
from feature_repo.dataset import SpecError

SHARES = {"ranker": 0.80, "calibrate": 0.86, "selection": 0.88, "test": 0.90}
"""Each part begins where this share of the positive events has happened."""

_STORED_NAMES = {"selection": "choose"}
"""Names of parts that files written so far spell differently."""


@dataclass(frozen=True)
class Split:
    """Where each part begins, epoch seconds."""

    ranker: float
    calibrate: float
    selection: float
    test: float

    @classmethod
    def by_time(cls, events: pd.DataFrame) -> Split:
        """Cut a log (in order of time) at the shares of its positive events.

        Events of equal time stay in one part: a cut moves on to the next later timestamp.

        Raises:
            SpecError: the positive events have too few distinct timestamps.

        """
        times = epoch_seconds(events.loc[events[c.POSITIVE], c.TIMESTAMP])
        cuts: dict[str, float] = {}
        last = times[0] if len(times) else 0.0

        for name, share in SHARES.items():
            later = times[int(share * (len(times) - 1)) :] if len(times) else times
            later = later[later > last]
            if not len(later):
                raise too_few_events(f"split of time, part '{name}'")
            last = cuts[name] = float(later[0])
        return cls(**cuts)

    @classmethod
    def from_dict(cls, values: dict[str, float]) -> Split:
        """Return the split that ``to_dict`` described, as in ``split.json`` and in manifests."""
        return cls(**{name: values[_STORED_NAMES.get(name, name)] for name in SHARES})

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values; the selection part is stored as ``choose``."""
        return {_STORED_NAMES.get(name, name): getattr(self, name) for name in SHARES}


def too_few_events(part: str) -> SpecError:
    """Return the error for a part without events to learn from or to be judged by."""
    return SpecError(
        f"{part}: too few positive events, or too few distinct timestamps; "
        "bring more events or finer timestamps"
    )


def epoch_seconds(timestamps: pd.Series) -> Float64Array:
    """Return UTC timestamps as float64 epoch seconds."""
    return timestamps.astype("datetime64[us, UTC]").astype("int64").to_numpy() / 1e6
