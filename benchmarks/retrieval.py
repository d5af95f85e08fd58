"""Retrieval alone on a public split, as papers on graph recommenders measure it.

All items are ranked, k = 20. The validation part decides the settings, by a short race, and the
number of epochs, by early stopping. The chosen models are then trained on train and validation
together. Each is measured on the test part once.

The validation part is drawn as the test part is, which the caller says: nothing is guessed from the
order of a file. In a random split the order of items enters neither model nor validation. In a tail
split (the test part came later) the ends of lines are validated on, and the newest items of a user
weigh more if that helps there: items drawn at random would have their neighbours in time still in
train, which flatters models that learn neighbours by heart.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.seeds import deviation
from feature_repo.progress import Progress
from pipelines import display
from retrieval.interactions.collaborative import (
    CollaborativeConfig,
    CollaborativeTowers,
    item_factors,
    spectral_vectors,
)
from retrieval.interactions.dataset import Interactions, Split, read_interactions
from retrieval.interactions.metrics import recall_and_ndcg
from retrieval.interactions.spectral import degrees

Figures = tuple[float, float]

LAYOUTS = {"lightgcn": read_interactions}

PUBLISHED = {
    "LightGCN (He et al., 2020)": (0.1830, 0.1554),
    "UltraGCN (Mao et al., 2021)": (0.1862, 0.1580),
    "SimpleX (Mao et al., 2021)": (0.1872, 0.1557),
}
GOWALLA = (29_858, 40_981, 810_128, 217_242)
"""Users, items, train and test interactions of the split that the published figures are of."""

SMALL = 64
"""The dimension of most published tables."""

_MAX_EPOCHS = 200
_RACE_EPOCHS = 20
_CHECK_EVERY = 5
_PATIENCE = 2
_VALIDATION_USERS = 5_000
_TRAINING_SHARE, _SMALL_SHARE, _CHOOSING_SHARE = 0.92, 0.2, 0.6
"""Of all the time, of the time for training, of the time for one dimension."""
_STEP = 1.3
"""From one temperature to the next."""
_FIRST_RECENCY = 1.0
"""While the temperature and the epochs are chosen, where the order of items is known."""
_RECENCY = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
_KEPT = (1.4, 1.3, 1.2, 1.1, 1.0, 0.9, 0.8, 0.7, 0.6, 0.5)


def run(
    folder: Path, layout: str, *, split: Split, seeds: int, dimension: int, minutes: float
) -> dict[str, Any]:
    """Choose on validation, train on train and validation, measure test once per seed.

    Args:
        folder: with the files.
        layout: their layout.
        split: how the test part was drawn, see ``read_interactions``.
        seeds: final models to train.
        dimension: of the vectors.
        minutes: for all of it.

    Returns:
        recall@20 and ndcg@20, means over the seeds, with ``_std``; those of seed 0 with 64
        dimensions as ``_64d``; what was chosen, the seconds taken and the device.

    Raises:
        SpecError: the folder cannot be used.

    """
    start = time.monotonic()
    data = LAYOUTS[layout](folder, split=split)
    bench = _Bench(data, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    until = start + _TRAINING_SHARE * 60 * minutes
    first = CollaborativeConfig(
        dimension=SMALL, recency=0.0 if data.places is None else _FIRST_RECENCY
    )
    small = bench.finished(first, 1, _part(_SMALL_SHARE, until))
    large = small
    if (dimension, seeds) != (SMALL, 1):
        large = bench.finished(replace(small.config, dimension=dimension), seeds, until)
    rows = [[name, *bench.test(*vectors)] for name, vectors in bench.baselines(dimension).items()]
    rows += [
        ["two towers, 64 dimensions", *small.means],
        [f"two towers, {dimension} dimensions", *large.means],
    ]
    counts = (*data.train.shape, data.known.nnz, data.test.nnz)
    published = (
        [[name, *figures] for name, figures in PUBLISHED.items()] if counts == GOWALLA else []
    )
    display.table(
        f"{folder.name}: all items ranked, k = 20", ["", "recall", "NDCG"], published + rows
    )
    return {
        **dict(zip(("recall@20", "ndcg@20"), large.means, strict=True)),
        **dict(zip(("recall@20_std", "ndcg@20_std"), large.deviations, strict=True)),
        **dict(zip(("recall@20_64d", "ndcg@20_64d"), small.means, strict=True)),
        **{"seeds": seeds, "epochs": large.epochs, "seconds": round(time.monotonic() - start, 1)},
        **{"device": bench.device.type, "selected_on": "validation", "dimension": dimension},
        **{"temperature": large.config.temperature, "popularity_kept": large.config.kept},
        "recency": large.config.recency,
        "split": split,
    }


@dataclass
class _Curve:
    """A model in training and its best epoch on the validation part, by recall plus NDCG."""

    model: CollaborativeTowers
    score: float = -1.0
    epochs: int = 1
    waited: int = 0

    def note(self, figures: Figures) -> None:
        if sum(figures) > self.score:
            self.score, self.epochs, self.waited = sum(figures), max(self.model.epoch, 1), 0
        else:
            self.waited += 1


@dataclass(frozen=True)
class _Result:
    config: CollaborativeConfig
    epochs: int
    figures: list[Figures]

    @property
    def means(self) -> list[float]:
        return [float(value) for value in np.mean(self.figures, axis=0)]

    @property
    def deviations(self) -> list[float]:
        return [deviation(values) for values in zip(*self.figures, strict=True)]


class _Bench:
    def __init__(self, data: Interactions, device: torch.device) -> None:
        self.data, self.device = data, device
        self.held = data.held
        self.learned = data.known - self.held
        self.learned.eliminate_zeros()
        wanting = np.flatnonzero(np.diff(self.held.indptr))
        self.sample = np.sort(np.random.default_rng(0).permutation(wanting)[:_VALIDATION_USERS])

    def finished(self, first: CollaborativeConfig, seeds: int, until: float) -> _Result:
        """Choose, beginning at ``first``.

        Train on all that is known with each seed, and measure test.
        """
        config, epochs = self._choose(first, _part(_CHOOSING_SHARE, until))
        results, reached, factors = (
            [],
            epochs,
            item_factors(self.data.known, first.dimension, self.device),
        )
        for seed in range(seeds):
            model = CollaborativeTowers(
                self.data.known, replace(config, seed=seed), factors, self.data.places
            )
            deadline = _part(1 / (seeds - seed), until)
            with display.stage(
                f"Train on train and validation, {first.dimension} dimensions, seed {seed}"
            ) as report:
                while model.epoch == 0 or (model.epoch < epochs and time.monotonic() < deadline):
                    _train_epoch(model, epochs, report)
            if model.epoch < epochs:
                display.console.print(
                    f"  out of time after {model.epoch} of {epochs} epochs; give more --minutes"
                )
            reached = min(reached, model.epoch)
            results.append(self.test(*model.vectors()))
        return _Result(config, reached, results)

    def baselines(self, dimension: int) -> dict[str, tuple[Tensor, Tensor]]:
        """Return vectors of users and items that need no training, by name."""
        popularity = torch.from_numpy(degrees(self.data.known)[1]).float().unsqueeze(1)
        return {
            "popular": (torch.ones(self.data.known.shape[0], 1), popularity),
            f"closed form (SVD), {dimension} dimensions": spectral_vectors(
                self.data.known, item_factors(self.data.known, dimension, self.device)
            ),
        }

    def test(self, users: Tensor, items: Tensor) -> Figures:
        """Return recall@20 and NDCG@20 of the test part."""
        return recall_and_ndcg(users, items, self.data.known, self.data.test)

    def _choose(self, first: CollaborativeConfig, until: float) -> tuple[CollaborativeConfig, int]:
        """Climb to the best temperature by a few epochs of each.

        Train on while it helps and there is time.
        """
        factors, raced = item_factors(self.learned, first.dimension, self.device), _part(0.5, until)

        def begun(temperature: float) -> _Curve:
            config = replace(first, temperature=round(temperature, 3), kept=1.0)
            curve = _Curve(CollaborativeTowers(self.learned, config, factors, self.data.places))
            self._advance(curve, _RACE_EPOCHS, until, report)
            return curve

        with display.stage(f"Choose on validation, {first.dimension} dimensions") as report:
            best = begun(first.temperature)
            for factor in (_STEP, 1 / _STEP):
                while time.monotonic() < raced:
                    other = begun(best.model.config.temperature * factor)
                    if other.score <= best.score:
                        break
                    best = other
                if best.model.config.temperature != first.temperature:
                    break
            self._advance(best, _MAX_EPOCHS, until, report)
            config = best.model.config
            if self.data.places is not None:
                config, _ = self._best(
                    best.model, [replace(config, recency=power) for power in _RECENCY]
                )
            config, (recall, ndcg) = self._best(
                best.model, [replace(config, kept=share) for share in _KEPT]
            )
        display.console.print(
            f"  validation recall {recall:.4f}, NDCG {ndcg:.4f}: temperature {config.temperature}, "
            f"{best.epochs} epochs, {config.kept} of the popularity kept, recency {config.recency}"
        )
        return config, best.epochs

    def _best(
        self, model: CollaborativeTowers, configs: list[CollaborativeConfig]
    ) -> tuple[CollaborativeConfig, Figures]:
        """Return the settings whose vectors are best on validation, and their recall and NDCG."""
        figures = {config: self._validated(*model.vectors(config)) for config in configs}
        best = max(configs, key=lambda config: sum(figures[config]))
        return best, figures[best]

    def _advance(self, curve: _Curve, epochs: int, until: float, report: Progress) -> None:
        model = curve.model
        while model.epoch < epochs and curve.waited < _PATIENCE and time.monotonic() < until:
            _train_epoch(model, epochs, report)
            if (
                model.epoch % _CHECK_EVERY == 0
                or model.epoch == epochs
                or time.monotonic() >= until
            ):
                curve.note(self._validated(*model.vectors()))

    def _validated(self, users: Tensor, items: Tensor) -> Figures:
        return recall_and_ndcg(users, items, self.learned, self.held, rows=self.sample)


def _part(share: float, until: float) -> float:
    """Return the moment at which ``share`` of the time from now to ``until`` has gone by."""
    now = time.monotonic()
    return now + share * (until - now)


def _train_epoch(model: CollaborativeTowers, epochs: int, report: Progress) -> None:
    for loss in model.train_epoch():
        report(f"temperature {model.config.temperature}, loss {loss:.3f}", model.epoch, epochs)
