"""The best possible recommender of the synthetic world, whose true preferences are known."""

from __future__ import annotations

import numpy as np

from feature_repo.arrays import Float32Array
from feature_repo.workspace import Workspace
from pipelines.evaluation.replayed_requests import Model, PastRequests, by_scores
from pipelines.synthetic.world import BUILT_IN, SESSION_GAP_S, World
from pipelines.training.past_requests import InteractionHistory
from serving.releases.release import Release


def oracle(
    workspace: Workspace, release: Release, interactions: InteractionHistory
) -> Model | None:
    """Return the model that knows the truth; None where the data is not of the synthetic world."""
    truth = workspace.root / "raw" / "truth.npz"
    if release.codec.spec.name not in BUILT_IN or not truth.is_file():
        return None
    return by_scores(_Oracle(World.load(truth), release, interactions))


class _Oracle:
    """The true preferences, updated by what the session has shown so far."""

    def __init__(self, world: World, release: Release, interactions: InteractionHistory) -> None:
        self._world = world
        self._shift_s: int = release.manifest.shift_s
        self._interactions = interactions
        self._view = interactions.types.index("view")

        # Users and items are rows of the world and codes of the release.
        self._row_of_user = {name: row for row, name in enumerate(world.user_ids)}
        self._code_of_row = np.array([release.codec.items.code(item) for item in world.item_ids])
        self._row_of_code = np.zeros(len(release.codec.items), dtype=np.int64)
        self._row_of_code[self._code_of_row] = np.arange(len(self._code_of_row))

    def __call__(self, batch: PastRequests) -> Float32Array:
        """Return log-probabilities of the next view, float32 ``[B, N]``."""
        requests = batch.requests

        # The items that each user viewed in the session so far, and before it.
        in_session = []
        before_session = []
        for user, time in zip(requests.user, requests.time, strict=True):
            past = self._interactions.between(user, -np.inf, time)
            viewed = past.type == self._view
            times = past.time[viewed]
            items = self._row_of_code[past.item[viewed]]
            breaks = np.flatnonzero(np.diff(np.append(times, time)) > SESSION_GAP_S)
            start = int(breaks[-1]) + 1 if len(breaks) else 0
            before_session.append(items[:start])
            in_session.append(items[start:])

        users = np.array([self._row_of_user[user] for user in requests.user])
        scores = np.full((len(requests), len(self._row_of_code)), -np.inf, dtype=np.float32)
        scores[:, self._code_of_row] = self._world.session_utilities(
            users, requests.time - self._shift_s, in_session, before_session
        )
        return scores
