"""Training of the two towers: resumable, seeded, stopped early on a validation slice of time.

A run that is killed and started again continues after its last finished epoch and ends with the
same
bits as an undisturbed one: every epoch draws its shuffling, negatives and dropout from its own
    seed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from feature_repo.arrays import Float32Array
from feature_repo.files import read_json, replace_atomically, write_json
from feature_repo.hashing import fingerprint
from feature_repo.progress import Progress, no_progress
from feature_repo.sanity import Guard
from retrieval.towers.examples import Examples, user_inputs
from retrieval.towers.model import TwoTowers
from retrieval.towers.sanity import Checks
from retrieval.towers.training_step import TrainingStep

Log = Callable[[int, dict[str, float]], None]
Begin = Callable[[TwoTowers], None]


RECALL_AT = 100
"""How many items are asked for to say how good towers are, where it is not given."""

_REVISION = 3
"""Raised when a training of the same data and settings leaves something else behind."""


@dataclass(frozen=True)
class TowerTrainingConfig:
    """How to train. ``logq`` corrects the sampler's bias; ``device`` None takes CUDA where there is one.

    Training stops by recall@``recall_at`` on validation; None: of 100 items, of a small catalogue a
    quarter, since nearly all would be among so many from the first epoch on.
    """

    epochs: int = 20
    batch: int = 512
    uniform_negatives: int = 256
    logq: bool = True
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    clip: float = 1.0
    patience: int = 2
    seed: int = 7
    recall_at: int | None = None
    validation_sample: int = 4_000
    device: str | None = None


@dataclass(frozen=True)
class TowerTrainingReport:
    """What came out: recall@k on the validation slice of the best epoch, the curves, and the checks.

    Attributes:
        best_epoch: the epoch whose weights are kept, from 1.
        recall: of that epoch.
        recall_at: the k of it.
        curve: figures of every epoch.
        one_batch_loss: before and after one batch was learnt by heart.
        shuffled_auc: AUC on shuffled items and the tolerance about .5; empty: too few examples.

    """

    best_epoch: int
    recall: float
    recall_at: int
    curve: list[dict[str, float]]
    one_batch_loss: list[float]
    shuffled_auc: list[float]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return asdict(self)


def train_towers(
    build: Callable[[], TwoTowers],
    training: Examples,
    validation: Examples,
    config: TowerTrainingConfig,
    folder: Path,
    version: str,
    log: Log = lambda *_: None,
    progress: Progress = no_progress,
    begin: Begin = lambda _: None,
) -> tuple[TwoTowers, TowerTrainingReport]:
    """Train towers, or finish or load a training that ``folder`` holds.

    Args:
        build: makes untrained towers.
        training: examples to learn from.
        validation: later examples, to stop by.
        config: settings.
        folder: checkpoints, best weights and report.
        version: of the data; a folder of another version or other settings is begun anew.
        log: told each epoch's metrics.
        progress: told each step.
        begin: gives untrained towers the weights to start from, if not the drawn ones.

    Raises:
        CannotLearn: one batch could not be overfitted, shuffled items were learnt, or a loss or
            gradient was not finite or exploded.

    """
    run = _Run(
        build,
        training,
        validation,
        config,
        folder,
        fingerprint(_REVISION, version, asdict(config)),
        begin,
    )
    return run.finish(log, progress)


class _Run:
    def __init__(
        self,
        build: Callable[[], TwoTowers],
        training: Examples,
        validation: Examples,
        config: TowerTrainingConfig,
        folder: Path,
        version: str,
        begin: Begin,
    ) -> None:
        self.config, self.training, self.folder, self.version = config, training, folder, version
        self.device = torch.device(
            config.device or ("cuda" if torch.cuda.is_available() else "cpu")
        )
        self.build = build
        torch.manual_seed(config.seed)
        self.towers = build().to(self.device)
        begin(self.towers)
        counts = np.bincount(training.item, minlength=self.towers.config.items).astype(np.float64)
        self.popularity = torch.from_numpy((counts / counts.sum()).astype(np.float32)).to(
            self.device
        )
        rows = np.random.default_rng(config.seed).permutation(len(validation))[
            : config.validation_sample
        ]
        self.validation = validation[np.sort(rows)]
        self.recall_at = config.recall_at or min(RECALL_AT, max(1, self.towers.config.items // 4))
        self.step = TrainingStep(
            self.popularity, config.uniform_negatives, config.clip, Guard("towers"), config.logq
        )

    def finish(self, log: Log, progress: Progress) -> tuple[TwoTowers, TowerTrainingReport]:
        self.folder.mkdir(parents=True, exist_ok=True)
        done = self.folder / "report.json"
        if done.is_file() and (report := read_json(done)).pop("version") == self.version:
            self.towers.load_state_dict(load_file(self.folder / "best.safetensors"))
            return self.towers.eval(), TowerTrainingReport(**report)
        optimizer = torch.optim.AdamW(
            self.towers.parameters(),
            lr=self.config.learning_rate,
            weight_decay=self.config.weight_decay,
        )
        state = self._resume(optimizer)
        if not state["one_batch"]:
            checks = Checks(
                self.build, self.training, self.popularity, self.config.uniform_negatives, self.config.clip,
                self.config.seed,
            )  # fmt: skip
            state |= {"one_batch": checks.overfit_one_batch(), "shuffled": checks.shuffled_items()}
        while state["epoch"] < self.config.epochs and state["since_best"] < self.config.patience:
            metrics = self._epoch(state["epoch"], optimizer, progress)
            self._note(state, metrics, optimizer)
            log(state["epoch"], metrics)
        self.towers.load_state_dict(load_file(self.folder / "best.safetensors"))
        report = TowerTrainingReport(
            state["best_epoch"],
            state["best"],
            self.recall_at,
            state["curve"],
            state["one_batch"],
            state["shuffled"],
        )
        write_json(done, {**report.to_dict(), "version": self.version})
        return self.towers.eval(), report

    def _resume(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        path = self.folder / "checkpoint.pt"
        if path.is_file():
            saved: dict[str, Any] = torch.load(path, weights_only=True, map_location=self.device)
            if saved["state"]["version"] == self.version:
                self.towers.load_state_dict(saved["towers"])
                optimizer.load_state_dict(saved["optimizer"])
                return dict(saved["state"])
        fresh: dict[str, Any] = {
            "epoch": 0,
            "best": -1.0,
            "best_epoch": 0,
            "since_best": 0,
            "curve": [],
            "one_batch": [],
            "shuffled": [],
        }
        return {"version": self.version, **fresh}

    def _note(
        self, state: dict[str, Any], metrics: dict[str, float], optimizer: torch.optim.Optimizer
    ) -> None:
        state["epoch"] += 1
        state["curve"].append(metrics)
        if metrics["recall"] > state["best"]:
            state |= {"best": metrics["recall"], "best_epoch": state["epoch"], "since_best": 0}
            with replace_atomically(self.folder / "best.safetensors") as temporary:
                save_file(self.towers.state_dict(), temporary)
        else:
            state["since_best"] += 1
        saved = {
            "towers": self.towers.state_dict(),
            "optimizer": optimizer.state_dict(),
            "state": state,
        }
        with replace_atomically(self.folder / "checkpoint.pt") as temporary:
            torch.save(saved, temporary)

    def _epoch(
        self, epoch: int, optimizer: torch.optim.Optimizer, progress: Progress
    ) -> dict[str, float]:
        config = self.config
        generator = np.random.default_rng([config.seed, epoch])
        torch.manual_seed(config.seed * 1_000 + epoch)
        order = generator.permutation(len(self.training))
        batches = [
            order[start : start + config.batch] for start in range(0, len(order), config.batch)
        ]
        losses, norms = [], []
        self.towers.train()
        for step, rows in enumerate(batches):
            loss, norm = self.step(self.towers, optimizer, self.training[np.sort(rows)], generator)
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


@torch.no_grad()
def recall(towers: TwoTowers, examples: Examples, k: int, chunk: int = 512) -> float:
    """Return the share of examples whose item is among the ``k`` best of all items, history left out.

    An item stands in the middle of those that score the same, so towers that collapsed, or whose
    scores are NaN, do not look perfect.
    """
    towers.eval()
    raw = towers.raw_items()
    items = F.normalize(raw, dim=-1, eps=1e-6)
    hits = 0
    for start in range(0, len(examples), chunk):
        part = examples[start : start + chunk]
        history = torch.from_numpy(part.context.history.astype(np.int64)).to(raw.device)
        scores = towers.users(*user_inputs(part.context, raw, history).tensors()) @ items.T
        own = torch.from_numpy(part.item.astype(np.int64)).to(raw.device).unsqueeze(1)
        wanted = scores.gather(1, own)
        scores.scatter_(1, history, float("-inf")).scatter_(1, own, wanted)
        scores[:, 0] = float("-inf")
        above, not_below = (scores > wanted).sum(dim=1), (~(scores < wanted)).sum(dim=1)
        hits += int(((above + not_below - 1) / 2 < k).sum().item())
    return hits / max(len(examples), 1)


@torch.no_grad()
def item_vectors(towers: TwoTowers) -> tuple[Float32Array, Float32Array]:
    """Return raw and unit vectors of all items, float32 ``[items, D]`` each."""
    raw = towers.eval().raw_items()
    return raw.cpu().numpy(), F.normalize(raw, dim=-1, eps=1e-6).cpu().numpy()
