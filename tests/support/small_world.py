"""The settings of the one small world that is taken through every real stage, and what it leaves."""

from dataclasses import dataclass
from pathlib import Path

from feature_repo.workspace import Workspace
from pipelines.synthetic.generate import WorldConfig
from pipelines.training.config import SampleConfig
from ranking.config import DcnConfig, RankerConfig, TreeConfig
from retrieval.towers.config import TowerTrainingConfig

WORLD = WorldConfig(users=400, items=250, days=60, seed=11, events_per_user=50.0)
TOWERS = TowerTrainingConfig(
    epochs=4, batch=512, uniform_negatives=128, patience=2, validation_sample=1_000
)
SAMPLE = SampleConfig(
    train_requests=800, calibrate_requests=250, selection_requests=250, negatives=40
)
RANKERS = RankerConfig(
    trees=TreeConfig(rounds=40, learning_rate=0.1), dcn=DcnConfig(epochs=1, min_steps=60)
)


def silent(*_: object) -> None:
    """Report progress to nobody."""


@dataclass(frozen=True)
class Built:
    """The workspace, its release and the release's evaluation."""

    workspace: Workspace
    release: Path
    evaluation: dict
