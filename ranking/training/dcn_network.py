"""DCN-v2 as a torch module, and its ONNX export."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import torch
from torch import Tensor, nn

from ranking.config import DcnConfig


class CrossNetwork(nn.Module):
    """Full-rank cross layers, ``x_{l+1} = x_0 * (W_l x_l + b_l) + x_l``: [n, D] to [n, D]."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))

    def forward(self, start: Tensor) -> Tensor:
        """Return polynomials of up to ``layers + 1`` columns."""
        crossed = start
        for layer in self.layers:
            crossed = start * layer(crossed) + crossed
        return crossed


class CodeEmbedding(nn.Module):
    """The embeddings of several columns in one table.

    Maps codes, int32 [n, C], to float32 [n, C * width].
    """

    starts: Tensor

    def __init__(self, sizes: Sequence[int], width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(sum(sizes), width)
        nn.init.normal_(self.table.weight, std=0.05)
        starts = torch.tensor(
            [sum(sizes[:column]) for column in range(len(sizes))], dtype=torch.int32
        )
        self.register_buffer("starts", starts)

    def forward(self, codes: Tensor) -> Tensor:
        """Look up every column's code."""
        embedded: Tensor = self.table(codes + self.starts)
        return embedded.flatten(1)


class DcnNetwork(nn.Module):
    """DCN-v2 with a logit for each head.

    Wang et al. 2021, "DCN V2: Improved Deep & Cross Network and Practical Lessons for Web-scale
    Learning to Rank Systems".

    The input of the cross layers is every category's embedding, every numeric column's bucket
    embedding, and the standardised columns themselves. ``parallel`` reads cross layers and MLP side
    by side; ``stacked`` feeds the cross layers' output to the MLP.

    Args:
        width: F', number of standardised columns and indicators.
        bucket_counts: bucket codes of each of the F numeric columns.
        cardinalities: codes of each of the C categorical columns.
        heads: T.
        config: sizes.

    """

    def __init__(
        self,
        *,
        width: int,
        bucket_counts: Sequence[int],
        cardinalities: Sequence[int],
        heads: int,
        config: DcnConfig,
    ) -> None:
        super().__init__()
        self.stacked = config.structure == "stacked"
        self.bucket = CodeEmbedding(bucket_counts, config.bucket_embedding)
        self.category = CodeEmbedding(cardinalities, config.embedding) if cardinalities else None
        total = (
            width
            + len(bucket_counts) * config.bucket_embedding
            + len(cardinalities) * config.embedding
        )
        self.cross = CrossNetwork(total, config.cross_layers)
        layers: list[nn.Module] = []
        for before, after in pairwise((total, *config.hidden)):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.deep = nn.Sequential(*layers)
        deep_width = config.hidden[-1] if config.hidden else total
        self.head = nn.Linear(deep_width if self.stacked else total + deep_width, heads)

    def forward(
        self, numeric: Tensor, buckets: Tensor, categorical: Tensor | None = None
    ) -> Tensor:
        """Return logits [n, T] of float32 [n, F'], int32 [n, F] and int32 [n, C]."""
        parts = [numeric, self.bucket(buckets)]
        if self.category is not None:
            parts.append(self.category(categorical))
        start = torch.cat(parts, dim=1)
        crossed = self.cross(start)
        if self.stacked:
            logits: Tensor = self.head(self.deep(crossed))
        else:
            logits = self.head(torch.cat([crossed, self.deep(start)], dim=1))
        return logits


def export_onnx(network: DcnNetwork, width: int) -> bytes:
    """Return the network as an ONNX model with a dynamic batch; equal weights give equal bytes.

    Args:
        network: the trained network.
        width: F', number of columns of ``numeric``.

    """
    network = network.cpu().eval()
    example = {
        "numeric": torch.zeros(3, width),
        "buckets": torch.zeros(3, len(network.bucket.starts), dtype=torch.int32),
    }
    if network.category is not None:
        example["categorical"] = torch.zeros(3, len(network.category.starts), dtype=torch.int32)
    with _quiet_exporter():
        program = torch.onnx.export(
            network,
            tuple(example.values()),
            dynamo=True,
            input_names=list(example),
            output_names=["logits"],
            dynamic_shapes={name: {0: torch.export.Dim.DYNAMIC} for name in example},
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned nothing")
    model = program.model_proto
    graph = model.graph
    parts = (*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer)
    for part in (model, graph, *parts):
        del part.metadata_props[:]  # stack traces with the paths of the machine that exported
    exported: bytes = model.SerializeToString(deterministic=True)
    return exported


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Silence the exporter's deprecations, and that torchvision is not installed."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
