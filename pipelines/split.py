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
        """Cut a log (in order of time) at the shares of its positive events."""
        times = epoch_seconds(events.loc[events[c.POSITIVE], c.TIMESTAMP])
        return cls(**{name: float(times[int(share * (len(times) - 1))]) for name, share in SHARES.items()})

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return asdict(self)


def epoch_seconds(moments: pd.Series) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return UTC timestamps as float64 epoch seconds."""
    return np.asarray(moments.astype("datetime64[us, UTC]").astype("int64").to_numpy() / 1e6)
