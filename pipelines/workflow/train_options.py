"""What ``funnel train`` can be asked for, and the settings that follow."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from feature_repo.workspace import Workspace
from pipelines import display

if TYPE_CHECKING:
    from pipelines.training.config import SampleConfig
    from pipelines.training.train import TrainSettings
    from serving.recommender.candidates import CandidateQuota


@dataclass(frozen=True)
class TrainOptions:
    """What ``funnel train`` was asked for; the defaults train everything from scratch.

    Attributes:
        attribution_hours: train only the rankers, from impressions and the events that followed
            within that time.
        ipw: weight clicks on impressions by the inverse of their position's propensity.
        tuned: use the settings that ``funnel tune`` found.
        warm_start: continue from the current release.
        logq: correct the towers' loss for the sampling of negatives.
        seed: random seed of models and samples.
        kinds: kinds of ranker to train; by default all.
        requests: past requests that the rankers learn from.
        quota: candidates of each source.

    """

    attribution_hours: float | None = None
    ipw: bool = False
    tuned: bool = False
    warm_start: bool = False
    logq: bool = True
    seed: int | None = None
    kinds: tuple[str, ...] = ()
    requests: int | None = None
    quota: CandidateQuota | None = None


def train_settings(workspace: Workspace, options: TrainOptions) -> TrainSettings:
    """Return settings for the options; None where the defaults, or the release's, apply."""
    from pipelines.training.train import TrainSettings
    from pipelines.training.warm_start import WarmStartConfig
    from ranking.config import RankerConfig
    from retrieval.towers.config import TowerTrainingConfig

    towers, shape, rankers = None, None, None
    if options.tuned:
        from pipelines.search.results import Tuned

        tuned = Tuned.of(workspace)
        towers, shape, rankers = tuned.train_config, tuned.shape, tuned.ranker_config
        for line in tuned.describe(workspace):
            display.console.print(line)
    if not options.logq:
        towers = replace(towers or TowerTrainingConfig(), logq=False)
    if options.seed is not None:
        towers = replace(towers or TowerTrainingConfig(), seed=options.seed)
        rankers = replace(rankers or RankerConfig(), seed=options.seed)
    if options.kinds:
        rankers = replace(rankers or RankerConfig(), kinds=options.kinds)
    return TrainSettings(
        towers=towers,
        shape=shape,
        quota=options.quota,
        sample=_sample(options),
        rankers=rankers,
        warm_start=WarmStartConfig() if options.warm_start else None,
    )


def _sample(options: TrainOptions) -> SampleConfig:
    """Return how past requests are sampled; a quarter as many calibrate, and a quarter select."""
    from pipelines.training.config import SampleConfig

    sample = SampleConfig()
    if options.seed is not None:
        sample = replace(sample, seed=options.seed)
    if options.requests is not None:
        held_out = max(1, options.requests // 4)
        sample = replace(
            sample,
            train_requests=options.requests,
            calibrate_requests=held_out,
            selection_requests=held_out,
        )
    return sample
