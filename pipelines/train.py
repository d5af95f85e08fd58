"""``funnel train``: towers, index and rankers of one workspace, tracked in MLflow."""

from __future__ import annotations

from feature_repo.workspace import Workspace, write_json
from pipelines.impressions import train_from_impressions
from pipelines.ingest import read_events
from pipelines.split import Split
from pipelines.tracking import Tracker, track
from pipelines.train_ranking import SampleConfig, train_ranking
from pipelines.train_retrieval import train_retrieval
from ranking.config import RankerConfig
from ranking.models.base import Log
from ranking.train import RankerReport
from retrieval.training import Progress, TrainConfig


def train(
    workspace: Workspace,
    progress: Progress,
    towers: TrainConfig | None = None,
    sample: SampleConfig | None = None,
    rankers: RankerConfig | None = None,
) -> RankerReport:
    """Train everything that a release holds; finished parts of the same data and settings are kept.

    Returns:
        the table of rankers, with the best one's name.

    """
    towers, sample, rankers = towers or TrainConfig(), sample or SampleConfig(), rankers or RankerConfig()
    events = read_events(workspace)
    split = Split.by_time(events)
    workspace.models.mkdir(parents=True, exist_ok=True)
    write_json(workspace.models / "split.json", split.to_dict())
    with track(workspace, "towers") as run:
        run.parameters(vars(towers))
        train_retrieval(workspace, events, split, towers, lambda step, m: run.metrics(m, step), progress)
    with track(workspace, "rankers") as run:
        return train_ranking(workspace, events, split, sample, rankers, _noting(run, rankers, progress), progress)


def train_served(
    workspace: Workspace,
    attribution_s: float,
    progress: Progress,
    rankers: RankerConfig | None = None,
    *,
    ipw: bool = False,
) -> RankerReport:
    """Train the rankers alone, from what was served and the events that followed within ``attribution_s``.

    With ``ipw``, what was taken up counts the more the seldomer its position is looked at.

    Raises:
        MissingStage: there is no candidate generator.
        TooFewImpressions: there is not enough to learn from.

    """
    rankers = rankers or RankerConfig()
    with track(workspace, "rankers-from-impressions") as run:
        run.parameters({"attribution_s": attribution_s, "ipw": ipw})
        log = _noting(run, rankers, progress)
        return train_from_impressions(workspace, rankers, attribution_s, log, progress, ipw=ipw)


def _noting(run: Tracker, rankers: RankerConfig, progress: Progress) -> Log:
    trained: set[str] = set()

    def note(kind: str, metrics: dict[str, float]) -> None:
        trained.add(kind)
        progress(f"rankers: {kind} trained", len(trained), len(rankers.kinds))
        run.metrics({f"{kind}_{name}": value for name, value in metrics.items()})

    return note
