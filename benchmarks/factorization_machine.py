"""A factorization machine (Rendle, ICDM 2010) over fields, for a row of the comparison."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from feature_repo.arrays import Float32Array
from ranking.data import RankingData
from ranking.metrics import log_loss
from ranking.row_schema import RowSchema
from ranking.training.dcn_network import CodeEmbedding

_WIDTH, _BATCH, _RATE, _EPOCHS, _PATIENCE = 16, 2_048, 1e-3, 40, 2
_DECAY = 1e-6
"""Of the embeddings' squares, summed over a batch."""


class FactorizationMachine(nn.Module):
    """``w_0 + sum_i w_i x_i + sum_{i<j} <v_i, v_j> x_i x_j``.

    Numeric columns count as one field, the sum of theirs.
    """

    def __init__(self, schema: RowSchema) -> None:
        super().__init__()
        self.factors = CodeEmbedding(schema.cardinalities, _WIDTH)
        self.weights = CodeEmbedding(schema.cardinalities, 1)
        self.numeric_factors = nn.Linear(len(schema.numeric), _WIDTH, bias=False)
        self.numeric_weights = nn.Linear(len(schema.numeric), 1)

    def forward(self, numeric: Tensor, categorical: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits ``[n]`` and the factors used, ``[n, C + 1, width]``."""
        codes = self.factors(categorical).view(len(categorical), -1, _WIDTH)
        factors = torch.cat([codes, self.numeric_factors(numeric).unsqueeze(1)], dim=1)
        pairs = (factors.sum(dim=1).square() - factors.square().sum(dim=1)).sum(dim=1) / 2
        linear = self.weights(categorical).sum(dim=1) + self.numeric_weights(numeric).squeeze(1)
        return linear + pairs, factors

    @torch.no_grad()
    def predict(self, data: RankingData) -> Float32Array:
        """Return probabilities, float32 ``[n]``."""
        logits, _ = self(_shares(data), torch.from_numpy(data.categorical))
        return np.asarray(torch.sigmoid(logits).numpy())


def fit_factorization_machine(
    train: RankingData, watch: RankingData, schema: RowSchema, seed: int
) -> FactorizationMachine:
    """Train until ``watch`` is not predicted better any more; rows of one head, numbers of tags."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = FactorizationMachine(schema)
    optimizer = torch.optim.Adam(model.parameters(), lr=_RATE)
    numeric, categorical, labels = (
        _shares(train),
        torch.from_numpy(train.categorical),
        torch.from_numpy(train.labels),
    )
    best, kept, waited = float("inf"), model.state_dict(), 0
    for _ in range(_EPOCHS):
        for rows in torch.split(torch.randperm(len(labels), generator=generator), _BATCH):
            logits, factors = model(numeric[rows], categorical[rows])
            loss = functional.binary_cross_entropy_with_logits(logits, labels[rows, 0])
            optimizer.zero_grad(set_to_none=True)
            (loss + _DECAY * factors.square().sum()).backward()
            optimizer.step()
        quality = log_loss(watch.labels[:, 0], model.predict(watch))
        waited += 1
        if quality < best:
            best, kept, waited = (
                quality,
                {name: value.clone() for name, value in model.state_dict().items()},
                0,
            )
        if waited == _PATIENCE:
            break
    model.load_state_dict(kept)
    return model


def _shares(data: RankingData) -> Tensor:
    """Return each tag's share of an item's tags."""
    return torch.from_numpy(data.numeric / np.maximum(data.numeric.sum(axis=1, keepdims=True), 1))
