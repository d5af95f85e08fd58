"""The best that any recommender could do in the synthetic world, whose true preferences are known."""

from __future__ import annotations

import numpy as np

from feature_repo.encoding import Floats
from feature_repo.workspace import Workspace
from pipelines.evaluation.replayed_requests import Model, PastRequests, by_scores
from pipelines.synthetic.world import SESSION_GAP_S, World
from pipelines.training.past_requests import InteractionHistory
from serving.releases.release import Release


def oracle(
    workspace: Workspace, release: Release, interactions: InteractionHistory
) -> Model | None:
    """Return the model that knows the truth; None where the data is not of the synthetic world."""
    truth = workspace.root / "raw" / "truth.npz"
    if release.codec.spec.name != "synthetic" or not truth.is_file():
        return None
    return by_scores(_Oracle(World.load(truth), release, release.manifest["shift_s"], interactions))


class _Oracle:
    """The true preferences, updated by what the session has shown so far."""

    def __init__(
        self, world: World, release: Release, shift_s: int, interactions: InteractionHistory
    ) -> None:
        self._world, self._shift, self._interactions = world, shift_s, interactions
        self._user = {name: row for row, name in enumerate(world.user_ids)}
        self._columns = np.array([release.codec.items.code(item) for item in world.item_ids])
        self._row = np.zeros(len(release.codec.items), dtype=np.int64)
        self._row[self._columns] = np.arange(len(self._columns))
        self._view = interactions.types.index("view")

    def __call__(self, batch: PastRequests) -> Floats:
        """Return log-probabilities of the next view, float32 ``[B, N]``."""
        requests = batch.requests
        earlier, before = [], []
        for user, time in zip(requests.user, requests.time, strict=True):
            past = self._interactions.between(user, -np.inf, time)
            viewed = past.type == self._view
            times, items = past.time[viewed], self._row[past.item[viewed]]
            breaks = np.flatnonzero(np.diff(np.append(times, time)) > SESSION_GAP_S)
            start = int(breaks[-1]) + 1 if len(breaks) else 0
            before.append(items[:start])
            earlier.append(items[start:])
        users = np.array([self._user[user] for user in requests.user])
        scores = np.full((len(requests), len(self._row)), -np.inf, dtype=np.float32)
        scores[:, self._columns] = self._world.session_utilities(
            users, requests.time - self._shift, earlier, before
        )
        return scores
