"""``funnel train``: towers, index and rankers of one workspace, tracked in MLflow."""

from __future__ import annotations

from collections.abc import Callable

from feature_repo.workspace import Workspace, write_json
from pipelines.ingest.ingest import read_events
from pipelines.training.from_impressions import train_from_impressions
from pipelines.training.split import Split
from pipelines.training.tracking import Tracker, track
from pipelines.training.train_ranking import SampleConfig, train_ranking
from pipelines.training.train_retrieval import train_retrieval
from pipelines.training.warm_start import Base, WarmStartConfig
from ranking.config import RankerConfig
from ranking.models.base import Log
from ranking.training.train_rankers import RankerReport
from retrieval.towers.model import TowerShape
from retrieval.towers.training import Log as Curve
from retrieval.towers.training import Progress, TowerTrainingConfig
from serving.recommender.candidates import Shares

Say = Callable[[str], None]


def train(
    workspace: Workspace,
    progress: Progress,
    towers: TowerTrainingConfig | None = None,
    sample: SampleConfig | None = None,
    rankers: RankerConfig | None = None,
    shape: TowerShape | None = None,
    warm: WarmStartConfig | None = None,
    say: Say = lambda _: None,
    shares: Shares | None = None,
) -> RankerReport:
    """Train everything that a release holds; finished parts of the same data and settings are kept.

    Args:
        workspace: the working folder, features applied.
        progress: told each step.
        towers: how the towers are trained; by default as the release was that a warm start goes on
            from.
        sample: how many requests the rankers learn from.
        rankers: which kinds are trained, and how; by default the release's kind as it was, for a
            warm start.
        shape: of the towers.
        warm: go on from the current release, on what is new, as this says; by default all is
            learned anew.
        say: told what a person should know of a warm start.
        shares: how many candidates each source may propose; by default as in the release to go on
            from.

    Returns:
        the table of rankers, with the best one's name.

    Raises:
        MissingStage: an earlier stage is missing, or the release to go on from.
        SpecError: the release is of another data set.
        NothingNew: the release has learned from all events already.

    """
    base = Base.of(workspace) if warm else None
    if warm and base:
        towers, rankers, shape = (
            warm.towers(towers or base.config),
            rankers or base.rankers,
            base.shape,
        )
        shares = shares or base.shares
        say(f"towers: go on from release {base.folder.name}")
    towers, shape = towers or TowerTrainingConfig(), shape or TowerShape()
    sample, rankers = sample or SampleConfig(), rankers or RankerConfig()
    events = read_events(workspace)
    split = Split.by_time(events)
    workspace.models.mkdir(parents=True, exist_ok=True)
    write_json(workspace.models / "split.json", split.to_dict())
    with track(workspace, "towers") as run:
        run.parameters(vars(towers) | vars(shape))
        note: Curve = lambda step, figures: run.metrics(figures, step)  # noqa: E731
        train_retrieval(workspace, events, split, towers, note, progress, shares, shape, base)
    start = warm.ranker(base) if warm and base else None
    with track(workspace, "rankers") as run:
        tell = _noting(run, rankers, progress, say)
        return train_ranking(workspace, events, split, sample, rankers, tell, progress, start)


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


def _noting(
    run: Tracker, rankers: RankerConfig, progress: Progress, say: Say = lambda _: None
) -> Log:
    trained: set[str] = set()

    def note(kind: str, metrics: dict[str, float]) -> None:
        if "seconds" in metrics or "resumed" in metrics:
            trained.add(kind)
            progress(f"rankers: {kind} trained", len(trained), len(rankers.kinds))
        if "continued" in metrics:
            how = (
                "goes on from the release's"
                if metrics["continued"]
                else "trained anew: the release's cannot go on"
            )
            say(f"rankers: {kind} {how}")
        run.metrics({f"{kind}_{name}": value for name, value in metrics.items()})

    return note
