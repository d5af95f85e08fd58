"""``funnel learning-curve``: how the quality of rankers depends on the amount of data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from feature_repo.progress import Progress
from feature_repo.workspace import Workspace
from pipelines.display import table
from pipelines.training.config import SampleConfig
from pipelines.training.ranking_sets import row_schema
from pipelines.training.train_ranking import trained_sets
from ranking.config import RankerConfig
from ranking.data import RankingData
from ranking.models.base import RankerLog
from ranking.report import RankerReport
from ranking.training.train_rankers import RankerSets, train_rankers

SHARES = tuple(map(Fraction, ("1/8", "1/4", "1/2", "1")))
"""Of the training requests; the smaller ones are parts of the larger ones."""


def learning_curve(
    workspace: Workspace, kinds: tuple[str, ...], sample: SampleConfig | None, progress: Progress
) -> dict[str, Any]:
    """Train kinds on growing shares of the training requests; compare them on equal validation.

    Points are kept in ``models/learning-curve`` and not trained again as long as data and settings
    are the same.

    Args:
        workspace: the working folder, trained.
        kinds: of rankers; none: the one that would be released.
        sample: how many requests the sets take; None: as in training.
        progress: progress callback.

    Raises:
        MissingStage: nothing is trained yet.

    """
    sets = trained_sets(workspace, sample, progress)
    report = RankerReport.load(workspace.models / "ranking")
    config = replace(report.config, kinds=kinds or (report.best,))
    rows = RankerSets(
        train=sets.train(),
        calibration=sets.calibrate(),
        selection=sets.selection(),
        schema=row_schema(sets.retrieval.codec),
    )

    def log_to(number: int) -> RankerLog:
        description = f"on {SHARES[number]} of the requests"
        return lambda kind, _: progress(f"{kind} {description}", number, len(SHARES))

    points = curve(rows, workspace.models / "learning-curve", config, log_to)
    return {
        "ndcg_k": config.ndcg_k,
        "kinds": list(config.kinds),
        "points": points,
        "validation_rows": len(rows.selection),
    }


def curve(
    rows: RankerSets, folder: Path, config: RankerConfig, log_to: Callable[[int], RankerLog]
) -> list[dict[str, Any]]:
    """Train the configured kinds on each share; return a point for each, with every kind's NDCG.

    Args:
        rows: what the kinds learn from and are judged by.
        folder: where each point has a folder.
        config: kinds and settings.
        log_to: called with a point's number, returns the log of its trainings.

    """
    points = []
    for number, share in enumerate(SHARES):
        part = share_of_requests(rows.train, share, config.seed)
        report = train_rankers(
            replace(rows, train=part),
            folder / f"{share.numerator}-{share.denominator}",
            config,
            log_to(number),
        )
        points.append(
            {
                "share": float(share),
                "requests": len(part.group_sizes()),
                "rows": len(part),
                "ndcg": {kind: figures.ndcg for kind, figures in report.kinds.items()},
            }
        )
    return points


def share_of_requests(data: RankingData, share: Fraction, seed: int) -> RankingData:
    """Return the rows of a random share of requests; smaller shares are parts of larger ones."""
    requests = np.unique(data.request)
    count = max(1, round(share * len(requests)))
    sample = np.random.default_rng(seed).permutation(requests)[:count]
    return data.take(np.flatnonzero(np.isin(data.request, sample)))


def show(result: dict[str, Any]) -> None:
    """Print a row for each share."""
    rows = [
        [
            f"{point['share']:.3g}",
            point["requests"],
            point["rows"],
            *(point["ndcg"][kind] for kind in result["kinds"]),
        ]
        for point in result["points"]
    ]
    table(
        f"NDCG@{result['ndcg_k']} on validation",
        ["share", "requests", "rows", *result["kinds"]],
        rows,
    )
