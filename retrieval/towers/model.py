"""The two towers: one vector per user from what is known of the user, one per item.

The item tower adds an id embedding, the mean of its attributes' embeddings and a linear layer of
its numbers, so a new item has a vector from its attributes alone. The user tower pools the items of
the history by attention with learned weights per position from the newest, and adds attributes and
the moment of the request, so a new user is served from attributes and first clicks. Vectors have
length one; their dot product is a cosine. After Yi et al., "Sampling-bias-corrected neural modeling
for large corpus item recommendations" (RecSys 2019), and Covington et al., "Deep neural networks
for YouTube recommendations" (RecSys 2016), for the pooled history.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from feature_repo.columns import HISTORY_LENGTH
from retrieval.towers.context import GAP_BUCKETS


@dataclass(frozen=True, kw_only=True)
class TowerShape:
    """Sizes that data do not give, and dropout in training."""

    dimension: int = 64
    hidden: int = 128
    heads: int = 4
    user_id_dropout: float = 0.5
    item_id_dropout: float = 0.1
    dropout: float = 0.1


@dataclass(frozen=True, kw_only=True)
class TowerConfig(TowerShape):
    """The shape, and the sizes that data give. Counts include code 0 (unknown)."""

    users: int
    items: int
    user_attributes: int
    item_attributes: int
    user_attribute_width: int = 0
    user_numbers: int = 0
    item_numbers: int = 0
    history: int = HISTORY_LENGTH

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return asdict(self)


@dataclass
class UserInputs:
    """What the user tower sees of ``B`` users at the moment of their requests.

    ``user`` int64 ``[B]`` (0: unknown), ``attributes`` int64 ``[B, L]`` (0: none), ``numbers``
    float32 ``[B, M]``, ``clicked`` float32 ``[B, H, D]`` raw vectors of the history's items, newest
    first, ``present`` float32 ``[B, H]`` (0: no such item), ``gaps`` int64 ``[B, H]`` log2 buckets
    of each one's age, ``hour`` int64 ``[B]`` and ``weekday`` int64 ``[B]``.
    """

    user: Tensor
    attributes: Tensor
    numbers: Tensor
    clicked: Tensor
    present: Tensor
    gaps: Tensor
    hour: Tensor
    weekday: Tensor

    def tensors(self) -> tuple[Tensor, ...]:
        """Return the fields in the order in which the tower takes them."""
        return tuple(getattr(self, name) for name in USER_INPUT_NAMES)


USER_INPUT_NAMES = (
    "user",
    "attributes",
    "numbers",
    "clicked",
    "present",
    "gaps",
    "hour",
    "weekday",
)


class ItemTower(nn.Module):
    """Maps item codes and attributes to raw vectors, which also stand for items in a history."""

    def __init__(
        self, config: TowerConfig, attributes: Tensor, numbers: Tensor, has_id: Tensor
    ) -> None:
        """Keep the attributes of all items.

        ``attributes`` int64 ``[items, L]``, ``numbers`` float32 ``[items, M]``; ``has_id`` bool
        ``[items]``: items of the training data, the others have no id embedding.
        """
        super().__init__()
        self.ids = _embedding(config.items, config.dimension)
        self.attribute_table = _embedding(config.item_attributes, config.dimension)
        self.numbers = (
            nn.Linear(config.item_numbers, config.dimension, bias=False)
            if config.item_numbers
            else None
        )
        self.id_dropout = config.item_id_dropout
        self.register_buffer("item_attributes", attributes, persistent=False)
        self.register_buffer("item_numbers", numbers, persistent=False)
        self.register_buffer("has_id", has_id.float(), persistent=False)
        self.item_attributes: Tensor
        self.item_numbers: Tensor
        self.has_id: Tensor

    def forward(self, codes: Tensor) -> Tensor:
        """Return raw vectors of items, float32 ``[n, D]``, from codes int64 ``[n]``.

        Code 0 gives zero.
        """
        keep = self.has_id[codes]
        if self.training and self.id_dropout:
            keep = keep * (torch.rand_like(keep) >= self.id_dropout).float()
        raw: Tensor = self.ids(codes) * keep.unsqueeze(1) + self.described(
            self.item_attributes[codes], self.item_numbers[codes]
        )
        return raw * (codes > 0).float().unsqueeze(1)

    def described(self, attributes: Tensor, numbers: Tensor) -> Tensor:
        """Return raw vectors, float32 ``[n, D]``, of items that have attributes but no id.

        ``attributes`` int64 ``[n, L]`` (0: none), ``numbers`` float32 ``[n, M]`` (standardised).
        """
        raw = _bag(self.attribute_table, attributes)
        return raw if self.numbers is None else raw + self.numbers(numbers)


class UserTower(nn.Module):
    """Users at the moment of their requests to unit vectors."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        size = config.dimension
        self.ids = _embedding(config.users, size)
        self.attribute_table = _embedding(config.user_attributes, size)
        self.numbers = (
            nn.Linear(config.user_numbers, size, bias=False) if config.user_numbers else None
        )
        self.positions = nn.Parameter(torch.zeros(config.history, config.heads))
        self.gaps = _embedding(GAP_BUCKETS, config.heads)
        self.hours = _embedding(24, size)
        self.weekdays = _embedding(7, size)
        self.attention = nn.Linear(size, config.heads, bias=False)
        self.mix = nn.Sequential(
            nn.Linear(size * (config.heads + 2), config.hidden),
            nn.GELU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.hidden, size),
        )
        self.id_dropout = config.user_id_dropout

    def forward(  # noqa: PLR0917 - the exporter calls it by position
        self,
        user: Tensor,
        attributes: Tensor,
        numbers: Tensor,
        clicked: Tensor,
        present: Tensor,
        gaps: Tensor,
        hour: Tensor,
        weekday: Tensor,
    ) -> Tensor:
        """Return unit vectors, float32 ``[B, D]``.

        The arguments are the fields of ``UserInputs``.
        """
        keep = (user > 0).float()
        if self.training and self.id_dropout:
            keep = keep * (torch.rand_like(keep) >= self.id_dropout).float()
        static = self.ids(user) * keep.unsqueeze(1) + _bag(self.attribute_table, attributes)
        if self.numbers is not None:
            static = static + self.numbers(numbers)
        static = static + self.hours(hour) + self.weekdays(weekday)
        shown = present.unsqueeze(-1)
        weights = self.attention(clicked) + self.positions + self.gaps(gaps)
        weights = torch.softmax(weights - 1e4 * (1.0 - shown), dim=1) * shown
        pooled = torch.matmul(weights.transpose(1, 2), clicked)
        newest = clicked[:, 0]
        mixed = self.mix(torch.cat([pooled.flatten(1), newest, static], dim=1))
        return F.normalize(mixed + pooled.mean(dim=1) + static, dim=-1, eps=1e-6)


class TwoTowers(nn.Module):
    """Both towers and the temperature of their softmax."""

    def __init__(
        self, config: TowerConfig, attributes: Tensor, numbers: Tensor, has_id: Tensor
    ) -> None:
        super().__init__()
        self.config = config
        self.items = ItemTower(config, attributes, numbers, has_id)
        self.users = UserTower(config)
        self.log_temperature = nn.Parameter(torch.tensor(-2.5))

    def temperature(self) -> Tensor:
        """Return the softmax temperature, kept between 0.02 and 1."""
        return self.log_temperature.exp().clamp(0.02, 1.0)

    @torch.no_grad()
    def raw_items(self) -> Tensor:
        """Return raw vectors of all items, float32 ``[items, D]``."""
        codes = torch.arange(self.config.items, device=self.log_temperature.device)
        return torch.cat([self.items(chunk) for chunk in torch.split(codes, 65_536)])


def _embedding(rows: int, size: int) -> nn.Embedding:
    table = nn.Embedding(rows, size)
    nn.init.normal_(table.weight, std=size**-0.5 / 2)
    return table


def _bag(table: nn.Embedding, codes: Tensor) -> Tensor:
    """Return the mean embedding of the codes that are not 0, float32 ``[n, D]``.

    No codes give 0.
    """
    present = (codes > 0).unsqueeze(-1).to(table.weight.dtype)
    total: Tensor = (table(codes) * present).sum(dim=1)
    return total / present.sum(dim=1).clamp(min=1.0)
