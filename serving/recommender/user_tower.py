"""The user tower: a user's features to a vector."""

from __future__ import annotations

from copy import copy

import numpy as np

from feature_repo.arrays import Float32Array
from ranking.models.onnx import onnx_session
from retrieval.towers.context import UserContext


class UserTowerSession:
    """The user tower in ONNX Runtime."""

    def __init__(self, model: bytes, raw_items: Float32Array) -> None:
        """``raw_items``: item vectors before normalisation, float32 ``[N, D]``."""
        self._session = onnx_session(model)
        self._raw_items = np.asarray(raw_items)

    def with_items(self, raw_items: Float32Array) -> UserTowerSession:
        """Return the same tower over the raw vectors of more items."""
        extended = copy(self)
        extended._raw_items = raw_items
        return extended

    def __call__(self, context: UserContext) -> Float32Array:
        """Return unit vectors float32 ``[B, D]``."""
        inputs = {**context.arrays(), "clicked": self._raw_items[context.history]}
        return np.asarray(self._session.run(["vector"], inputs)[0], dtype=np.float32)
