"""Training of the sequential two-tower model: stopped on validation, then refitted with its items.

Several towers are trained, each on its own thread, and their vectors are concatenated: the dot
product of the result is the sum of their scores, an ensemble with one vector per user and item. A
run that was killed resumes after its last finished epoch, with the same bits unless time ran out.
"""

from __future__ import annotations

import math
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from feature_repo.files import replace_atomically
from feature_repo.progress import Progress, no_progress
from feature_repo.sanity import Guard
from retrieval.sequences.config import TEST, VALIDATION, SequenceConfig
from retrieval.sequences.dataset import Sequences
from retrieval.sequences.encoding import encode
from retrieval.sequences.losses import SoftmaxLoss
from retrieval.sequences.model import SequenceTower, SequenceTowerConfig
from retrieval.sequences.ranks import ranks
from retrieval.sequences.sanity import CLIP, check_sequences
from retrieval.sequences.windows import Window, inputs_and_targets, windows
from retrieval.towers.training_step import gradient_step

_REFIT_FROM = 0.85
_REFIT_UNTIL = 0.95
"""Shares of the time budget after which the refit begins, and ends."""

_BATCHES = 100
_SMALLEST_BATCH = 512
"""Target number of batches in an epoch of a small data set, and the least items of a batch."""


@dataclass(frozen=True)
class SequenceVectors:
    """Vectors of all towers, concatenated.

    Attributes:
        items: float32 ``[catalogue + 1, D]``; row 0 is no item.
        users: float32 ``[n, D]``, testable users just before their last item.
        epochs: each tower's best epoch.
        validation: each tower's NDCG@10 on validation at that epoch.
        seconds_before: seconds used by an earlier run that was killed.

    """

    items: Tensor
    users: Tensor
    epochs: list[int]
    validation: list[float]
    seconds_before: float


def pick_device(name: str | None) -> torch.device:
    """Return the named device, or CUDA where there is one."""
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


def train_sequences(
    sequences: Sequences, config: SequenceConfig, folder: Path, progress: Progress = no_progress
) -> SequenceVectors:
    """Train all towers.

    Args:
        sequences: all items, those of validation and test among them.
        config: settings.
        folder: of checkpoints, for these data and settings only.
        progress: progress callback; a tower reports its epoch and best NDCG@10, in thousandths.

    Raises:
        CannotLearn: one batch could not be overfitted, shuffled items were learnt, or a loss or
            gradient was not finite or exploded.

    """
    folder.mkdir(parents=True, exist_ok=True)
    threads = max(1, torch.get_num_threads() // config.towers)
    runs = [
        _Run(sequences, config, folder, number=number, progress=progress)
        for number in range(config.towers)
    ]
    with ThreadPoolExecutor(
        config.towers, initializer=torch.set_num_threads, initargs=(threads,)
    ) as pool:
        parts = list(pool.map(_Run.finish, runs))
    items, users = (torch.cat(part, dim=1) for part in zip(*parts, strict=True))
    return SequenceVectors(
        items=items,
        users=users,
        epochs=[run.state["best_epoch"] for run in runs],
        validation=[run.state["best"] for run in runs],
        seconds_before=max(run.seconds_before for run in runs),
    )


class _Run:
    """One tower's training. ``state`` is what a checkpoint holds beside the optimizer's."""

    def __init__(
        self,
        sequences: Sequences,
        config: SequenceConfig,
        folder: Path,
        *,
        number: int,
        progress: Progress,
    ) -> None:
        self.sequences, self.config, self.number, self.progress = (
            sequences,
            config,
            number,
            progress,
        )
        self.checkpoint = folder / f"tower-{number}.pt"
        self.generator = torch.Generator(pick_device(config.device))
        self._reseed(0)
        self.guard = Guard(f"sequence tower {number + 1}")
        self.tower = self._untrained()
        self.optimizer = self._optimizer(config.learning_rate)
        average = {name: value.clone() for name, value in self.tower.state_dict().items()}
        self.state: dict[str, Any] = {
            "epoch": 0,
            "step": 0,
            "seconds": 0.0,
            "best": -1.0,
            "best_epoch": 0,
        }
        self.state |= {"tower": self.tower.state_dict(), "average": average, "best_tower": average}
        users = np.random.default_rng(config.seed).permutation(sequences.testable)
        self.validation = np.sort(users[: config.validation_users])
        self.targets = sequences.held_out(self.validation, VALIDATION)

    def finish(self) -> tuple[Tensor, Tensor]:
        """Train to the end, and return this tower's part of the vectors of items and of users."""
        if self.checkpoint.is_file():
            saved = torch.load(
                self.checkpoint, weights_only=True, map_location=self.generator.device
            )
            self.optimizer.load_state_dict(saved.pop("optimizer"))
            self.tower.load_state_dict(saved["tower"])
            self.state = saved
        self.seconds_before = self.state["seconds"]
        if not self.state["epoch"] and self.number == 0:  # towers differ in their seeds only
            self._check()
        while self._more():
            self._epoch()
        self._refit()
        users = encode(self.tower, self.sequences, self.sequences.testable, TEST)
        return self.tower.items.detach()[: self.sequences.catalogue + 1].cpu(), users.cpu()

    def _untrained(self) -> SequenceTower:
        config = self.config
        sizes = SequenceTowerConfig(
            items=self.sequences.catalogue,
            width=config.width,
            heads=config.heads,
            layers=config.layers,
            window=config.window,
            dropout=config.dropout,
        )
        return SequenceTower(sizes, self.generator)

    def _check(self) -> None:
        """Run the checks of every training on a tower of these settings."""
        first = self._windows(VALIDATION, latest=True)[0]
        batch = (
            part.to(self.generator.device) for part in inputs_and_targets(self.sequences, first)
        )
        check_sequences(self._untrained, self._loss(VALIDATION), *batch)

    def _more(self) -> bool:
        state, config = self.state, self.config
        late = state["seconds"] >= _REFIT_FROM * config.minutes * 60
        return (
            state["epoch"] < config.epochs
            and state["epoch"] - state["best_epoch"] < config.patience
            and not late
        )

    def _epoch(self) -> None:
        state = self.state
        config = self.config
        began = time.monotonic() - state["seconds"]
        self._reseed(state["epoch"] + 1)
        batches = self._windows(VALIDATION, latest=False)
        loss = self._loss(VALIDATION)
        for number, batch in enumerate(batches):
            done = (state["epoch"] + number / len(batches)) / config.epochs
            done = max(done, _used(began, _REFIT_FROM * config.minutes))
            if done >= 1:
                break
            state["step"] += 1
            rate = min(1.0, state["step"] / config.warmup) * (1 + math.cos(math.pi * done)) / 2
            self._step(batch, loss, config.learning_rate * rate)
            self._average(min(config.average, state["step"] / (state["step"] + 10)))
            self._report(done)
        state["epoch"] += 1
        self._validate()
        state["seconds"] = time.monotonic() - began
        self._save()

    def _step(self, batch: Window, loss: SoftmaxLoss, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        histories, targets = (
            part.to(self.generator.device) for part in inputs_and_targets(self.sequences, batch)
        )
        known = targets > 0
        value = loss(self.tower(histories)[known], self.tower.items, targets[known])
        gradient_step(value, self.tower, self.optimizer, clip=CLIP, guard=self.guard)

    @torch.no_grad()
    def _average(self, keep: float) -> None:
        """Update the average of the weights (Polyak and Juditsky 1992), which is validated."""
        current = self.tower.state_dict()
        average = self.state["average"]
        torch._foreach_lerp_(list(average.values()), [current[name] for name in average], 1 - keep)

    def _validate(self) -> None:
        state = self.state
        current = {name: value.clone() for name, value in self.tower.state_dict().items()}
        self.tower.load_state_dict(state["average"])
        users = encode(self.tower, self.sequences, self.validation, VALIDATION)
        items = self.tower.items.detach()[: self.sequences.catalogue + 1]
        rank = ranks(users, items, self.targets)
        ndcg = float(np.where(rank < 10, 1 / np.log2(rank + 2.0), 0.0).mean())
        if ndcg > state["best"]:
            best = {name: value.clone() for name, value in state["average"].items()}
            state |= {"best": ndcg, "best_epoch": state["epoch"], "best_tower": best}
        self.tower.load_state_dict(current)

    def _refit(self) -> None:
        """Continue slowly from the best weights on each user's newest items, validation's too."""
        self.tower.load_state_dict(self.state["best_tower"])
        self._reseed(-1)
        self.optimizer = self._optimizer(self.config.refit_rate)
        minutes = (_REFIT_UNTIL - _REFIT_FROM) * self.config.minutes
        epochs = max(1, round(self.config.refit_share * self.state["best_epoch"]))
        batches = [batch for _ in range(epochs) for batch in self._windows(TEST, latest=True)]
        loss, began = self._loss(TEST), time.monotonic()
        for number, batch in enumerate(batches):
            done = max(number / len(batches), _used(began, minutes))
            if done >= 1:
                break
            self._step(batch, loss, self.config.refit_rate * (1 - done))

    def _windows(self, held: int, latest: bool) -> list[Window]:
        items = int(np.minimum(self.sequences.lengths, self.config.window).sum())
        batch = min(self.config.batch_items, max(_SMALLEST_BATCH, items // _BATCHES))
        return windows(
            self.sequences,
            held=held,
            window=self.config.window,
            batch_items=batch,
            generator=self.shuffle,
            latest=latest,
        )

    def _loss(self, held: int) -> SoftmaxLoss:
        counts = self.sequences.training_counts(held)
        popularity = torch.from_numpy(counts).to(self.generator.device)
        return SoftmaxLoss(
            popularity, self.generator, self.config.exact_items, self.config.negatives
        )

    def _optimizer(self, rate: float) -> torch.optim.Optimizer:
        matrices = [
            p for name, p in self.tower.named_parameters() if p.ndim == 2 and name != "items"
        ]
        others = [p for name, p in self.tower.named_parameters() if p.ndim != 2 or name == "items"]
        groups = [
            {"params": matrices, "weight_decay": self.config.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), fused=True)

    def _reseed(self, epoch: int) -> None:
        """Let every epoch draw from its own seed, so that a resumed run draws the same."""
        seed = [self.config.seed, self.number, epoch + 1]
        self.shuffle = np.random.default_rng(seed)
        self.generator.manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))

    def _report(self, done: float) -> None:
        best = max(self.state["best"], 0)
        where = f"tower {self.number + 1}, epoch {self.state['epoch'] + 1}"
        self.progress(f"{where}, best NDCG@10 {best:.4f}", int(1_000 * done), 1_000)

    def _save(self) -> None:
        weights = {"tower": self.tower.state_dict(), "optimizer": self.optimizer.state_dict()}
        with replace_atomically(self.checkpoint) as temporary:
            torch.save(self.state | weights, temporary)


def _used(began: float, minutes: float) -> float:
    """Return the share of the minutes used, in whole hundredths: an instant changes no bits."""
    return int((time.monotonic() - began) / (0.6 * minutes)) / 100
