"""``funnel train``: towers, index and rankers of one workspace, tracked in MLflow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from feature_repo.files import write_json
from feature_repo.progress import Progress
from feature_repo.stage_locks import Written, stage_lock
from feature_repo.workspace import Workspace
from pipelines.ingest.ingested import read_events
from pipelines.training.config import RetrievalConfig, SampleConfig
from pipelines.training.from_impressions import train_from_impressions
from pipelines.training.learnable import check_learnable
from pipelines.training.tracking import Tracker, track
from pipelines.training.train_ranking import train_ranking
from pipelines.training.train_retrieval import train_retrieval
from pipelines.training.warm_start import BaseRelease, WarmStartConfig
from ranking.config import RankerConfig
from ranking.models.base import RankerLog
from ranking.report import RankerReport
from retrieval.towers.config import TowerTrainingConfig
from retrieval.towers.model import TowerShape
from serving.recommender.candidates import CandidateQuota

Announce = Callable[[str], None]
"""Called with a line that a person should read."""


@dataclass(frozen=True)
class TrainSettings:
    """What to train and how; None means the default or, in a warm start, the release's setting.

    Attributes:
        towers: how the towers are trained.
        shape: sizes and dropout of the towers; a warm start keeps the release's.
        quota: how many candidates each source may propose.
        sample: how many requests the rankers learn from.
        rankers: which kinds are trained, and how; a warm start continues the release's kind.
        warm_start: how far to continue from the current release; None: train from scratch.

    """

    towers: TowerTrainingConfig | None = None
    shape: TowerShape | None = None
    quota: CandidateQuota | None = None
    sample: SampleConfig = field(default_factory=SampleConfig)
    rankers: RankerConfig | None = None
    warm_start: WarmStartConfig | None = None

    def retrieval(self, base: BaseRelease | None) -> RetrievalConfig:
        """Return how the candidate generator is made, from ``base`` where there is one."""
        if base is None or self.warm_start is None:
            return RetrievalConfig(
                towers=self.towers or TowerTrainingConfig(),
                shape=self.shape or TowerShape(),
                quota=self.quota or CandidateQuota(),
            )
        return RetrievalConfig(
            towers=self.warm_start.towers(self.towers or base.retrieval.towers),
            shape=base.retrieval.shape,
            quota=self.quota or base.retrieval.quota,
        )


def train(
    workspace: Workspace,
    progress: Progress,
    settings: TrainSettings | None = None,
    *,
    announce: Announce = lambda _: None,
) -> RankerReport:
    """Train everything that a release holds; finished parts of equal data and settings are kept.

    Args:
        workspace: the working folder, features applied.
        progress: progress callback.
        settings: what to train and how.
        announce: called with what a person should know of a warm start.

    Returns:
        the table of rankers, with the best one's name.

    Raises:
        MissingStage: an earlier stage is missing, or the release to continue from.
        SpecError: the release is of another data set.
        NothingNew: the release has learned from all events already.
        StageRunning: another command works on the models.

    """
    with stage_lock(workspace, Written.MODELS):
        return _train(workspace, progress, settings or TrainSettings(), announce)


def _train(
    workspace: Workspace, progress: Progress, settings: TrainSettings, announce: Announce
) -> RankerReport:
    """Train everything; see ``train``."""
    base = BaseRelease.of(workspace) if settings.warm_start else None
    retrieval = settings.retrieval(base)
    rankers = settings.rankers or (base.rankers if base else RankerConfig())
    if base:
        announce(f"towers: continue from release {base.folder.name}")

    events = read_events(workspace)
    split = check_learnable(workspace, events)
    workspace.models.mkdir(parents=True, exist_ok=True)
    write_json(workspace.models / "split.json", split.to_dict())

    with track(workspace, "towers") as run:
        run.parameters(vars(retrieval.towers) | vars(retrieval.shape))
        train_retrieval(
            workspace,
            events,
            split,
            retrieval,
            base=base,
            log=lambda step, figures: run.metrics(figures, step),
            progress=progress,
        )

    with track(workspace, "rankers") as run:
        return train_ranking(
            workspace,
            events,
            split,
            rankers,
            sample=settings.sample,
            start=settings.warm_start.ranker(base) if settings.warm_start and base else None,
            log=_log_to(run, rankers, progress, announce),
            progress=progress,
        )


def train_served(
    workspace: Workspace,
    attribution_s: float,
    progress: Progress,
    rankers: RankerConfig | None = None,
    *,
    ipw: bool = False,
) -> RankerReport:
    """Train the rankers alone, from served responses and the events that followed them.

    Args:
        workspace: the working folder, with a trained candidate generator.
        attribution_s: how long after a response an event still counts, seconds.
        progress: progress callback.
        rankers: which kinds are trained, and how.
        ipw: weight clicks by the inverse propensity of their position.

    Raises:
        MissingStage: there is no candidate generator.
        TooFewImpressions: there is not enough to learn from.
        StageRunning: another command works on the models.

    """
    rankers = rankers or RankerConfig()
    with (
        stage_lock(workspace, Written.MODELS),
        track(workspace, "rankers-from-impressions") as run,
    ):
        run.parameters({"attribution_s": attribution_s, "ipw": ipw})
        return train_from_impressions(
            workspace,
            rankers,
            attribution_s=attribution_s,
            log=_log_to(run, rankers, progress),
            progress=progress,
            ipw=ipw,
        )


def _log_to(
    run: Tracker,
    rankers: RankerConfig,
    progress: Progress,
    announce: Announce = lambda _: None,
) -> RankerLog:
    """Return a log that writes figures to MLflow and reports each finished kind as progress."""
    trained: set[str] = set()

    def log(kind: str, metrics: dict[str, float]) -> None:
        if "seconds" in metrics or "resumed" in metrics:
            trained.add(kind)
            progress(f"rankers: {kind} trained", len(trained), len(rankers.kinds))
        if "continued" in metrics:
            announce(
                f"rankers: {kind} continues from the release's"
                if metrics["continued"]
                else f"rankers: {kind} is trained from scratch: the release's cannot continue"
            )
        run.metrics({f"{kind}_{name}": value for name, value in metrics.items()})

    return log
