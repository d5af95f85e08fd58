"""Time splits: what each part may learn from lies before what it is judged on.

towers learn | ranker learns | calibration | choice of ranker | test
^ ranker         ^ calibrate    ^ choose           ^ test
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from feature_repo import columns as c
from feature_repo.dataset import SpecError

SHARES = {"ranker": 0.80, "calibrate": 0.86, "choose": 0.88, "test": 0.90}
"""Each part begins where this share of the positive events has happened."""


@dataclass(frozen=True)
class Split:
    """Where each part begins, epoch seconds."""

    ranker: float
    calibrate: float
    choose: float
    test: float

    @classmethod
    def by_time(cls, events: pd.DataFrame) -> Split:
        """Cut a log (in order of time) at the shares of its positive events, or as soon after as the time moves on.

        Raises:
            SpecError: the positive events have too few different moments.

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

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return asdict(self)


def too_few_events(what: str) -> SpecError:
    """Return the error that says that a part of the time line has nothing to learn from or to be judged by."""
    return SpecError(
        f"{what}: too few positive events, or too few different moments; bring more events, finer times"
    )


def epoch_seconds(moments: pd.Series) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return UTC timestamps as float64 epoch seconds."""
    return np.asarray(moments.astype("datetime64[us, UTC]").astype("int64").to_numpy() / 1e6)
