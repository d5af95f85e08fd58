"""The user side of a sequential two-tower model: a causal transformer over the history.

Self-attention as in SASRec (Kang and McAuley, ICDM 2018) with blocks that have proved better since:
norms before each part, a learned bias by distance in place of absolute positions (as in T5, Raffel
et al., JMLR 2020), SwiGLU (Shazeer, 2020), and one table of items for what goes in and what is
scored.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_ROWS = 64
"""Tables are padded to a multiple: bfloat16 products of odd widths are five times slower."""


@dataclass(frozen=True)
class SequenceTowerConfig:
    """Size of a tower: ``items`` of the catalogue, ``window`` is the longest history."""

    items: int
    width: int = 128
    heads: int = 2
    layers: int = 3
    window: int = 200
    dropout: float = 0.2


def compute_type(device: torch.device) -> torch.dtype:
    """Return bfloat16 where the hardware multiplies it (CUDA, AMX), float32 elsewhere."""
    fast = device.type == "cuda" or torch.cpu.get_capabilities().get("amx_bf16", False)
    return torch.bfloat16 if fast else torch.float32


class SequenceTower(nn.Module):
    """Vectors of users from their histories, and of items; a score is their dot product."""

    def __init__(self, config: SequenceTowerConfig, generator: torch.Generator) -> None:
        """Draw weights, and later dropout, from ``generator``, which decides the device."""
        super().__init__()
        self.config = config
        rows = math.ceil((config.items + 1) / _ROWS) * _ROWS
        self.items = _normal(generator, rows, config.width)
        self.scale = nn.Parameter(
            torch.full((), 0.5 * math.sqrt(config.width), device=generator.device)
        )
        self.dropout = Dropout(config.dropout, generator)
        self.blocks = nn.ModuleList(_Block(config, generator) for _ in range(config.layers))
        self.norm = _Norm(config.width, generator)

    def forward(self, histories: Tensor) -> Tensor:
        """Return the user's vector after each item, ``[B, L, width]`` in the computing type.

        Args:
            histories: int64 ``[B, L]``, oldest first, zeros only behind the last item.

        """
        place = torch.arange(histories.shape[1], device=histories.device)
        distance = place[:, None] - place
        stream = self.dropout(F.embedding(histories, self.items) * self.scale)
        for block in self.blocks:
            stream = block(stream, distance)
        vectors: Tensor = self.norm(stream)
        return vectors


class Dropout(nn.Module):
    """Dropout with its own generator, ten times faster than torch's on a CPU.

    It draws one random byte a value. The probability is rounded to the nearest 1/256.
    """

    def __init__(self, probability: float, generator: torch.Generator) -> None:
        super().__init__()
        self._level, self._generator = round(probability * 256), generator

    def forward(self, values: Tensor) -> Tensor:
        """In training, set values to zero at random and scale up the others."""
        if not self.training or not self._level:
            return values
        count = values.numel()
        words = torch.empty(-(-count // 8), dtype=torch.int64, device=values.device)
        drawn = words.random_(-(2**63), None, generator=self._generator).view(torch.uint8)[:count]
        kept = (drawn.view(values.shape) >= self._level).to(values.dtype)
        return values * kept.mul_(256 / (256 - self._level))


class _Block(nn.Module):
    def __init__(self, config: SequenceTowerConfig, generator: torch.Generator) -> None:
        super().__init__()
        width, depth = config.width, 1 / math.sqrt(2 * config.layers)
        self.heads, self.dropout = config.heads, Dropout(config.dropout, generator)
        self.bias = nn.Parameter(torch.zeros(config.heads, config.window, device=generator.device))
        self.attend_norm, self.mix_norm = _Norm(width, generator), _Norm(width, generator)
        self.queries_keys_values = _normal(generator, 3 * width, width)
        self.attended = _normal(generator, width, width, depth)
        self.gate_and_value = _normal(generator, 4 * width, width)
        self.mixed = _normal(generator, width, 2 * width, depth)

    def forward(self, stream: Tensor, distance: Tensor) -> Tensor:
        stream = stream + self.dropout(self._attend(self.attend_norm(stream), distance))
        gate, value = _linear(self.mix_norm(stream), self.gate_and_value).chunk(2, dim=-1)
        return stream + self.dropout(_linear(F.silu(gate) * value, self.mixed))

    def _attend(self, inputs: Tensor, distance: Tensor) -> Tensor:
        """Return softmax attention by plain matrix products.

        On a CPU this is twice as fast as the fused kernel.
        """
        batch, length, width = inputs.shape
        size = width // self.heads
        split = _linear(inputs, self.queries_keys_values).view(batch, length, 3, self.heads, size)
        queries, keys, values = split.permute(2, 0, 3, 1, 4).reshape(3, -1, length, size)
        bias = self.bias[:, distance.clamp(min=0)].masked_fill(distance < 0, -1e9)
        scores = torch.bmm(queries * size**-0.5, keys.transpose(1, 2)).view(
            batch, self.heads, length, length
        )
        weights = (scores + bias.to(scores.dtype)).softmax(dim=-1).view(-1, length, length)
        found = torch.bmm(weights, values).view(batch, self.heads, length, size)
        return _linear(found.transpose(1, 2).reshape(batch, length, width), self.attended)


class _Norm(nn.Module):
    def __init__(self, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width, device=generator.device))
        self.bias = nn.Parameter(torch.zeros(width, device=generator.device))
        self._type = compute_type(generator.device)

    def forward(self, values: Tensor) -> Tensor:
        return F.layer_norm(values, values.shape[-1:], self.weight, self.bias).to(self._type)


def _linear(values: Tensor, weight: Tensor) -> Tensor:
    return F.linear(values, weight.to(values.dtype))


def _normal(
    generator: torch.Generator, rows: int, columns: int, scale: float = 1.0
) -> nn.Parameter:
    drawn = torch.randn(rows, columns, generator=generator, device=generator.device)
    return nn.Parameter(drawn * (scale / math.sqrt(columns)))
