"""Training of the two towers: resumable, seeded, stopped early on a validation slice of time.

Every epoch draws its shuffling, negatives and dropout from its own seed. So a run that was killed
resumes after its last finished epoch and ends with the same bits as an undisturbed one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from feature_repo.files import replace_atomically
from feature_repo.hashing import fingerprint
from feature_repo.progress import Progress, no_progress
from feature_repo.sanity import Guard
from retrieval.towers.config import RECALL_AT, TowerTrainingConfig
from retrieval.towers.evaluation import recall
from retrieval.towers.examples import Examples
from retrieval.towers.model import TwoTowers
from retrieval.towers.report import TowerTrainingReport
from retrieval.towers.sanity import Checks
from retrieval.towers.training_step import TrainingStep

Build = Callable[[], TwoTowers]
"""Makes untrained towers."""

EpochLog = Callable[[int, dict[str, float]], None]
"""Called with the number of an epoch, from 1, and its metrics."""

_REVISION = 3
"""Raised when equal data and settings give another result."""

_WEIGHTS = "best.safetensors"
_CHECKPOINT = "checkpoint.pt"


@dataclass(frozen=True)
class TowerTask:
    """What towers are trained from.

    Attributes:
        build: makes untrained towers.
        training: examples to learn from.
        validation: later examples, for early stopping.
        version: of the data; a folder of another version or other settings is trained again.
        initialise: sets the weights to start from, if not random ones.

    """

    build: Build
    training: Examples
    validation: Examples
    version: str
    initialise: Callable[[TwoTowers], None] | None = None


def train_towers(
    task: TowerTask,
    config: TowerTrainingConfig,
    folder: Path,
    *,
    log: EpochLog = lambda *_: None,
    progress: Progress = no_progress,
) -> tuple[TwoTowers, TowerTrainingReport]:
    """Train towers, or resume or load a training that ``folder`` holds.

    Args:
        task: towers and examples.
        config: settings.
        folder: checkpoints, best weights and report.
        log: called after each epoch.
        progress: progress callback, called after each step.

    Raises:
        CannotLearn: one batch could not be overfitted, shuffled items were learnt, or a loss or
            gradient was not finite or exploded.

    """
    folder.mkdir(parents=True, exist_ok=True)
    run = _Run(task, config, folder)
    report = TowerTrainingReport.load(folder, run.version) or run.finish(log, progress)
    run.towers.load_state_dict(load_file(folder / _WEIGHTS))
    return run.towers.eval(), report


@dataclass
class _State:
    """What a checkpoint holds beside weights and optimizer."""

    version: str
    epoch: int = 0
    best: float = -1.0
    best_epoch: int = 0
    since_best: int = 0
    curve: list[dict[str, float]] = field(default_factory=list)
    one_batch: list[float] = field(default_factory=list)
    shuffled: list[float] = field(default_factory=list)


class _Run:
    def __init__(self, task: TowerTask, config: TowerTrainingConfig, folder: Path) -> None:
        self.task = task
        self.config = config
        self.folder = folder
        self.version = fingerprint(_REVISION, task.version, asdict(config))
        self.device = torch.device(
            config.device or ("cuda" if torch.cuda.is_available() else "cpu")
        )
        torch.manual_seed(config.seed)
        self.towers = task.build().to(self.device)
        if task.initialise:
            task.initialise(self.towers)

        # Each item's share of the training examples, [items].
        items = self.towers.config.items
        counts = np.bincount(task.training.item, minlength=items).astype(np.float64)
        shares = (counts / counts.sum()).astype(np.float32)
        self.popularity = torch.from_numpy(shares).to(self.device)

        order = np.random.default_rng(config.seed).permutation(len(task.validation))
        self.validation = task.validation[np.sort(order[: config.validation_sample])]
        self.recall_at = config.recall_at or min(RECALL_AT, max(1, items // 4))
        self.step = TrainingStep(
            popularity=self.popularity,
            uniform_negatives=config.uniform_negatives,
            clip=config.clip,
            guard=Guard("towers"),
            logq=config.logq,
        )

    def finish(self, log: EpochLog, progress: Progress) -> TowerTrainingReport:
        """Train until the recall no longer improves, save the report and return it."""
        config = self.config
        optimizer = torch.optim.AdamW(
            self.towers.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        state = self._resume(optimizer)
        if not state.one_batch:
            checks = Checks(self.task.build, self.task.training, self.popularity, config)
            state.one_batch = checks.overfit_one_batch()
            state.shuffled = checks.shuffled_items()
        while state.epoch < config.epochs and state.since_best < config.patience:
            metrics = self._epoch(state.epoch, optimizer, progress)
            self._checkpoint(state, metrics, optimizer)
            log(state.epoch, metrics)
        report = TowerTrainingReport(
            best_epoch=state.best_epoch,
            recall=state.best,
            recall_at=self.recall_at,
            curve=state.curve,
            one_batch_loss=state.one_batch,
            shuffled_auc=state.shuffled,
        )
        report.save(self.folder, self.version)
        return report

    def _resume(self, optimizer: torch.optim.Optimizer) -> _State:
        """Load the checkpoint of this version, if there is one."""
        path = self.folder / _CHECKPOINT
        if path.is_file():
            saved = torch.load(path, weights_only=True, map_location=self.device)
            if saved["state"]["version"] == self.version:
                self.towers.load_state_dict(saved["towers"])
                optimizer.load_state_dict(saved["optimizer"])
                return _State(**saved["state"])
        return _State(self.version)

    def _checkpoint(
        self, state: _State, metrics: dict[str, float], optimizer: torch.optim.Optimizer
    ) -> None:
        """Count a finished epoch, keep its weights if they are the best, and save the rest."""
        state.epoch += 1
        state.curve.append(metrics)
        if metrics["recall"] > state.best:
            state.best = metrics["recall"]
            state.best_epoch = state.epoch
            state.since_best = 0
            with replace_atomically(self.folder / _WEIGHTS) as temporary:
                save_file(self.towers.state_dict(), temporary)
        else:
            state.since_best += 1
        saved = {
            "towers": self.towers.state_dict(),
            "optimizer": optimizer.state_dict(),
            "state": asdict(state),
        }
        with replace_atomically(self.folder / _CHECKPOINT) as temporary:
            torch.save(saved, temporary)

    def _epoch(
        self, epoch: int, optimizer: torch.optim.Optimizer, progress: Progress
    ) -> dict[str, float]:
        """Learn from all examples once, shuffled, and return the epoch's metrics."""
        config = self.config
        training = self.task.training
        generator = np.random.default_rng([config.seed, epoch])
        torch.manual_seed(config.seed * 1_000 + epoch)
        order = generator.permutation(len(training))
        batches = [
            order[start : start + config.batch] for start in range(0, len(order), config.batch)
        ]

        losses: list[float] = []
        norms: list[float] = []
        self.towers.train()
        for step, rows in enumerate(batches):
            loss, norm = self.step(self.towers, optimizer, training[np.sort(rows)], generator)
            losses.append(loss)
            norms.append(norm)
            progress(f"epoch {epoch + 1}, loss {np.mean(losses):.3f}", step + 1, len(batches))
        return {
            "loss": float(np.mean(losses)),
            "gradient_norm": float(np.mean(norms)),
            "largest_gradient_norm": float(np.max(norms)),
            "temperature": float(self.towers.temperature().item()),
            "recall": recall(self.towers, self.validation, self.recall_at),
        }
