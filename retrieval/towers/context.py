"""Users at the times of their requests, as codes: the user tower's input (without torch)."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from feature_repo.arrays import Float32Array, Float64Array, Int32Array, Int64Array

GAP_BUCKETS = 32


def gap_buckets(seconds: npt.NDArray[Any]) -> Int64Array:
    """Return log2 buckets of ages in seconds.

    0 for a second or less, at most ``GAP_BUCKETS - 1``.
    """
    logs = np.log2(np.maximum(seconds, 1.0))
    return np.asarray(np.clip(logs, 0, GAP_BUCKETS - 1), dtype=np.int64)


@dataclass(frozen=True)
class UserContext:
    """``n`` users at the moments of their requests.

    ``user`` int32 ``[n]`` (0: unknown), ``attributes`` int32 ``[n, L]``, ``numbers`` float32 ``[n,
    M]`` (standardised), ``history`` int32 ``[n, H]`` item codes newest first (0: none), ``ages``
    float32 ``[n, H]`` seconds since each, ``time`` float64 ``[n]`` epoch seconds.
    """

    user: Int32Array
    attributes: Int32Array
    numbers: Float32Array
    history: Int32Array
    ages: Float32Array
    time: Float64Array

    def __len__(self) -> int:
        return len(self.user)

    def __getitem__(self, rows: Any) -> UserContext:
        return UserContext(*(getattr(self, field.name)[rows] for field in fields(self)))

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return the user tower's inputs by name, all but the vectors of the history's items."""
        seconds = self.time.astype(np.int64)
        return {
            "user": self.user.astype(np.int64),
            "attributes": self.attributes.astype(np.int64),
            "numbers": self.numbers,
            "present": (self.history > 0).astype(np.float32),
            "gaps": gap_buckets(self.ages),
            "hour": seconds // 3600 % 24,
            "weekday": (seconds // 86_400 + 3) % 7,
        }


def concatenate(parts: list[UserContext]) -> UserContext:
    """Join contexts end to end."""
    return UserContext(
        *(np.concatenate([getattr(p, field.name) for p in parts]) for field in fields(UserContext))
    )
