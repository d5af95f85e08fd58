"""Made-up impressions."""

import numpy as np

from serving.impressions import Impression


def impression(number=0, shown=3, ranked=2):
    return Impression(
        request_id=f"r{number}",
        user_id="кто 👻",
        time=1_700_000_000.25 + number,
        release="abc",
        k=shown,
        degraded=["few_candidates"],
        item_ids=[f"i{n}" for n in range(shown)],
        scores=np.arange(shown, 0, -1).astype(np.float32),
        sources=[["similar", "new"] for _ in range(ranked)] + [["backfill"]] * (shown - ranked),
        numeric=np.array(
            [[n + 0.5, np.nan, number] for n in range(ranked)], dtype=np.float32
        ).reshape(ranked, 3),
        categorical=np.array([[n, 7] for n in range(ranked)], dtype=np.int32).reshape(ranked, 2),
        propensities=None if number % 2 else np.full(shown, 0.5, dtype=np.float32),
        position=f"{number}-0" if number else None,
        row_position=f"{number}-1" if number else None,
        items_as_of="2023-11-14T22:13:20Z" if number else None,
    )
