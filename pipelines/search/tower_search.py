"""The towers' search: recall on the validation part that stops their training."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from optuna import Trial

from feature_repo.hashing import fingerprint
from feature_repo.progress import Progress
from feature_repo.workspace import MissingStage, Workspace
from pipelines.ingest.ingested import data_version, read_events
from pipelines.search.plan import Params, Report
from pipelines.training.split import Split
from pipelines.training.train_retrieval import TowerData, tower_builder, tower_data
from retrieval.towers.config import RECALL_AT, TowerTrainingConfig
from retrieval.towers.model import TowerShape
from retrieval.towers.training import TowerTask, train_towers

TRAINING = ("learning_rate", "weight_decay", "batch", "uniform_negatives")
SHAPE = ("user_id_dropout", "item_id_dropout", "dropout")
"""Without the sizes: larger towers score better and cost more to serve, which recall ignores."""


@dataclass(frozen=True)
class TowerSearch:
    """See ``Plan``: settings around ``config`` and ``shape``."""

    config: TowerTrainingConfig = field(default_factory=TowerTrainingConfig)
    shape: TowerShape = field(default_factory=TowerShape)
    name = "towers"
    first_rung = 2

    @property
    def figure(self) -> str:
        """See ``Plan``."""
        return f"recall@{self.config.recall_at or RECALL_AT}"

    @property
    def steps(self) -> int:
        """See ``Plan``: a step is an epoch."""
        return max(self.config.epochs, self.first_rung)

    def version(self, workspace: Workspace) -> str:
        """See ``Plan``."""
        data = data_version(workspace)
        if not workspace.features.is_dir():
            raise MissingStage(f"no features in {workspace.root}: run 'funnel features' first")
        split = Split.by_time(read_events(workspace))
        return fingerprint(data, split.to_dict(), asdict(self.config), asdict(self.shape))

    def defaults(self) -> list[Params]:
        """See ``Plan``."""
        training = {name: getattr(self.config, name) for name in TRAINING}
        return [training | {name: getattr(self.shape, name) for name in SHAPE}]

    def draw(self, trial: Trial) -> Params:
        """See ``Plan``."""
        return {
            "learning_rate": trial.suggest_float("learning_rate", 3e-4, 1e-2, log=True),
            "weight_decay": trial.suggest_float("weight_decay", 1e-6, 1e-1, log=True),
            "batch": trial.suggest_int("batch", 128, 2048, log=True),
            "uniform_negatives": trial.suggest_int("uniform_negatives", 64, 1024, log=True),
            "user_id_dropout": trial.suggest_float("user_id_dropout", 0.0, 0.9),
            "item_id_dropout": trial.suggest_float("item_id_dropout", 0.0, 0.5),
            "dropout": trial.suggest_float("dropout", 0.0, 0.5),
        }

    def settings(self, params: Params) -> tuple[TowerTrainingConfig, TowerShape]:
        """Return the configurations of a choice."""
        config = replace(self.config, **{name: params[name] for name in TRAINING})
        return config, replace(self.shape, **{name: params[name] for name in SHAPE})

    def data(self, workspace: Workspace, progress: Progress) -> TowerData:
        """See ``Plan``."""
        events = read_events(workspace)
        return tower_data(workspace, events, Split.by_time(events), progress=progress)

    def value(self, data: TowerData, params: Params, folder: Path, report: Report) -> float:
        """See ``Plan``."""
        config, shape = self.settings(params)
        best = 0.0

        def log(epoch: int, metrics: dict[str, float]) -> None:
            nonlocal best
            best = max(best, metrics["recall"])
            report(epoch, best)

        task = TowerTask(
            tower_builder(data, shape), data.training, data.validation, version="trial"
        )
        _, trained = train_towers(task, config, folder, log=log)
        return trained.recall
