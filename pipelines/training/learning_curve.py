"""``funnel learning-curve``: how good rankers get with more data, and so whether more data would help."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from feature_repo.workspace import Workspace
from pipelines.display import table
from pipelines.training.train_ranking import SampleConfig, row_schema, trained_sets
from ranking.config import RankerConfig
from ranking.data import RankingData, RowSchema
from ranking.models.base import Log
from ranking.training.train_rankers import RankerReport, train_rankers
from retrieval.towers.training import Progress

SHARES = tuple(map(Fraction, ("1/8", "1/4", "1/2", "1")))
"""Of the training requests; the smaller ones are parts of the larger ones."""


def learning_curve(
    workspace: Workspace, kinds: tuple[str, ...], sample: SampleConfig | None, progress: Progress
) -> dict[str, Any]:
    """Train kinds on growing shares of the training requests and compare them on the same validation requests.

    Points are kept in ``models/learning-curve`` and not trained again as long as data and settings
    are the same.

    Args:
        workspace: the working folder, trained.
        kinds: of rankers; none: the one that would be released.
        sample: how many requests the sets take; None: as in training.
        progress: told what is done.

    Raises:
        MissingStage: nothing is trained yet.

    """
    sets = trained_sets(workspace, sample, progress)
    report = RankerReport.load(workspace.models / "ranking")
    kinds = kinds or (report.best,)
    parts, schema = (
        (sets.train(), sets.calibrate(), sets.choose()),
        row_schema(sets.retrieval.codec),
    )
    config, folder = replace(report.config, kinds=kinds), workspace.models / "learning-curve"

    def tell(number: int) -> Log:
        return lambda kind, _: progress(
            f"{kind} on {SHARES[number]} of the requests", number, len(SHARES)
        )

    points = curve(*parts, schema, folder, config, tell)
    return {
        "ndcg_k": config.ndcg_k,
        "kinds": list(kinds),
        "points": points,
        "validation_rows": len(parts[2]),
    }


def curve(
    train: RankingData,
    calibrate: RankingData,
    choose: RankingData,
    schema: RowSchema,
    folder: Path,
    config: RankerConfig,
    log: Callable[[int], Log],
) -> list[dict[str, Any]]:
    """Train the configured kinds on each share; return a point for each, with every kind's NDCG.

    Args:
        train: all training rows.
        calibrate: see ``train_rankers``; all of it at every point.
        choose: likewise.
        schema: columns.
        folder: where each point has a folder.
        config: kinds and settings.
        log: called with a point's number, returns the log of its trainings.

    """
    points = []
    for number, share in enumerate(SHARES):
        part = share_of_requests(train, share, config.seed)
        place = folder / f"{share.numerator}-{share.denominator}"
        report = train_rankers(part, calibrate, choose, schema, place, config, log(number))
        ndcg = {kind: figures.ndcg for kind, figures in report.kinds.items()}
        points.append(
            {
                "share": float(share),
                "requests": len(part.group_sizes()),
                "rows": len(part),
                "ndcg": ndcg,
            }
        )
    return points


def share_of_requests(data: RankingData, share: Fraction, seed: int) -> RankingData:
    """Return the rows of a share of the requests, drawn at random; a smaller share is a part of a larger one."""
    requests = np.unique(data.request)
    drawn = np.random.default_rng(seed).permutation(requests)[
        : max(1, round(share * len(requests)))
    ]
    return data.take(np.flatnonzero(np.isin(data.request, drawn)))


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
