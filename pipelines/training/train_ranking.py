"""Trains the rankers on sets of past requests, and reads the sets of a finished training."""

from __future__ import annotations

import pandas as pd

from feature_repo.files import read_json, write_json
from feature_repo.progress import Progress
from feature_repo.workspace import MissingStage, Workspace
from pipelines.ingest.ingested import read_events
from pipelines.training.config import SampleConfig
from pipelines.training.ranking_sets import RankingSets, row_schema
from pipelines.training.reports import generator_id
from pipelines.training.split import Split
from ranking.config import RankerConfig, WarmStart
from ranking.models.base import RankerLog
from ranking.report import RankerReport
from ranking.training.train_rankers import RankerSets, train_rankers
from serving.releases.release import load_retrieval

SAMPLE = "sample.json"
"""File beside the models: which requests the rankers' sets took."""


def train_ranking(
    workspace: Workspace,
    events: pd.DataFrame,
    split: Split,
    config: RankerConfig,
    *,
    sample: SampleConfig,
    log: RankerLog,
    progress: Progress,
    start: WarmStart | None = None,
) -> RankerReport:
    """Train every kind of ranker in ``models/ranking``; return their table, which names the best.

    Args:
        workspace: the working folder, with a trained candidate generator.
        events: the whole log in order of time.
        split: which part of it each set is drawn from.
        config: which kinds are trained, and how.
        sample: how many requests each set takes.
        log: called with each kind's figures.
        progress: progress callback.
        start: an earlier ranker; one of its kind continues from it.

    """
    retrieval = load_retrieval(workspace.models / "retrieval")
    write_json(workspace.models / SAMPLE, sample.to_dict())
    sets = RankingSets(workspace, retrieval, events, split, sample=sample, progress=progress)
    rows = RankerSets(
        train=sets.train(),
        calibration=sets.calibrate(),
        selection=sets.selection(),
        schema=row_schema(retrieval.codec),
    )
    return train_rankers(
        rows,
        workspace.models / "ranking",
        config,
        log,
        start=start,
        trained_on=generator_id(workspace.models),
    )


def trained_sets(
    workspace: Workspace, sample: SampleConfig | None, progress: Progress
) -> RankingSets:
    """Return the builder of the trained models' sets, whether or not they were released.

    Args:
        workspace: the working folder.
        sample: how many requests each set takes; None: as in training.
        progress: progress callback.

    Raises:
        MissingStage: nothing is trained yet.

    """
    if not (workspace.models / "ranking" / "report.json").is_file():
        raise MissingStage(f"no trained models in {workspace.models}: run 'funnel train' first")
    if sample is None:
        if not (workspace.models / SAMPLE).is_file():
            raise MissingStage(
                f"{workspace.models} is of an earlier version: run 'funnel train' again"
            )
        sample = SampleConfig.from_dict(read_json(workspace.models / SAMPLE))
    return RankingSets(
        workspace,
        load_retrieval(workspace.models / "retrieval"),
        read_events(workspace),
        Split.from_dict(read_json(workspace.models / "split.json")),
        sample=sample,
        progress=progress,
    )
