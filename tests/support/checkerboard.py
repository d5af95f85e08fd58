"""A world with a known answer: users of the even group take even items, the others odd ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from feature_repo.progress import Progress, no_progress
from retrieval.towers.config import TowerTrainingConfig
from retrieval.towers.context import UserContext
from retrieval.towers.evaluation import recall
from retrieval.towers.examples import Examples
from retrieval.towers.model import TowerConfig, TwoTowers
from retrieval.towers.report import TowerTrainingReport
from retrieval.towers.training import EpochLog, TowerTask, train_towers

USERS, ITEMS, HISTORY, EVENTS = 60, 60, 6, 14
NEW_ITEMS = (ITEMS + 1, ITEMS + 2)
"""Codes of an odd and an even item that nobody has taken yet."""
WITHIN = ITEMS // 2 - HISTORY
"""How many items of a user's group are not in the history."""
CHANCE = WITHIN / (ITEMS - HISTORY)

CONFIG = TowerTrainingConfig(
    epochs=8,
    batch=128,
    uniform_negatives=32,
    learning_rate=1e-2,
    patience=8,
    recall_at=WITHIN,
    seed=3,
    device="cpu",
)
START = 1_700_000_000.0


@dataclass(frozen=True)
class World:
    """What of the world is told: user ids, and the parity of users and items as an attribute."""

    known_users: bool
    attributes: bool

    def build(self) -> TwoTowers:
        items = ITEMS + 1 + len(NEW_ITEMS)
        config = TowerConfig(
            users=USERS + 1 if self.known_users else 1,
            items=items,
            user_attributes=3,
            item_attributes=3,
            user_attribute_width=int(self.attributes),
            user_numbers=int(self.attributes),
            dimension=16,
            hidden=32,
            heads=2,
            history=HISTORY,
        )
        parity = torch.arange(items).unsqueeze(1) % 2 + 1
        has_id = torch.arange(items) <= ITEMS
        return TwoTowers(
            config, parity if self.attributes else parity[:, :0], torch.zeros(items, 0), has_id
        )

    def context(self, users: np.ndarray, history: np.ndarray) -> UserContext:
        """Return users, int ``[n]`` numbered from 1, with histories, int ``[n, H]``."""
        n = len(users)
        ages = np.cumsum(np.full((n, HISTORY), 3600.0), axis=1)
        return UserContext(
            (users * self.known_users).astype(np.int32),
            (users % 2 + 1).astype(np.int32)[:, None][:, : int(self.attributes)],
            np.zeros((n, int(self.attributes)), dtype=np.float32),
            history.astype(np.int32),
            (ages * (history > 0)).astype(np.float32),
            START + 3600.0 * np.arange(n),
        )

    def examples(self, seed: int) -> Examples:
        """Return each user's events, of which the first few have short histories."""
        generator = np.random.default_rng(seed)
        users, histories, items = [], [], []
        for user in range(1, USERS + 1):
            own = np.arange(1, ITEMS + 1)[np.arange(1, ITEMS + 1) % 2 == user % 2]
            taken = generator.permutation(own)[:EVENTS]
            for place in range(1, EVENTS):
                newest = taken[:place][::-1][:HISTORY]
                users.append(user)
                histories.append(np.pad(newest, (0, HISTORY - len(newest))))
                items.append(taken[place])
        item = np.array(items, dtype=np.int32)
        return Examples(
            self.context(np.array(users), np.stack(histories)),
            item,
            np.ones(len(item), dtype=np.float32),
        )


@dataclass(frozen=True, repr=False)  # a failing test would print all of it
class Solved:
    world: World
    towers: TwoTowers
    report: TowerTrainingReport
    folder: Path


def solve(
    world: World,
    folder: Path,
    config: TowerTrainingConfig = CONFIG,
    *,
    log: EpochLog = lambda *_: None,
    progress: Progress = no_progress,
    build: Callable[[], TwoTowers] | None = None,
    training: Examples | None = None,
) -> Solved:
    task = TowerTask(
        build=build or world.build,
        training=training or world.examples(1),
        validation=full(world.examples(2)),
        version="1",
    )
    towers, report = train_towers(task, config, folder, log=log, progress=progress)
    return Solved(world, towers, report, folder)


def full(examples: Examples) -> Examples:
    """Return the examples whose history is full.

    The group has the same number of items left in each.
    """
    return examples[examples.context.history[:, -1] > 0]


def shuffled(examples: Examples) -> Examples:
    """Return examples whose items have nothing to do with their users."""
    return replace(examples, item=np.random.default_rng(9).permutation(examples.item))


measure = partial(recall, k=WITHIN)
