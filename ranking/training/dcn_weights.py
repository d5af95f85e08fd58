"""Weights of a network that training does not set: those of an earlier one, and of unseen codes."""

from __future__ import annotations

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor

from ranking.models.base import CannotContinue
from ranking.models.dcn import DcnRanker
from ranking.row_schema import RowSchema
from ranking.training.dcn_network import DcnNetwork

_TABLE = "category.table.weight"


def load_weights(network: DcnNetwork, schema: RowSchema, earlier: DcnRanker) -> None:
    """Give a network the weights of an exported one; new codes get the embedding of unknown.

    Args:
        network: of ``schema``, which extends the earlier one.
        schema: columns of the network's rows.
        earlier: the exported network.

    Raises:
        CannotContinue: it has another shape, or integers for weights.

    """
    graph = onnx.load_from_string(earlier.graph).graph
    weights = {
        part.name: torch.from_numpy(numpy_helper.to_array(part).copy())
        for part in graph.initializer
    }
    if _TABLE in weights:
        weights[_TABLE] = _extended(weights[_TABLE], earlier.schema, schema)
    for name, value in network.named_parameters():
        if name not in weights or weights[name].shape != value.shape:
            raise CannotContinue(f"the network's {name} has another shape, or is not a float")
    parameters = {name: weights[name] for name, _ in network.named_parameters()}
    network.load_state_dict({**network.state_dict(), **parameters})


def _extended(table: Tensor, earlier: RowSchema, schema: RowSchema) -> Tensor:
    """Return an embedding table, [sum of cardinalities, D], with rows for the new codes."""
    columns = torch.split(table, list(earlier.cardinalities))
    sizes = zip(columns, schema.cardinalities, strict=True)
    grown = [
        torch.cat([column, column[:1].expand(size - len(column), -1)]) for column, size in sizes
    ]
    return torch.cat(grown)


def share_unknown(network: DcnNetwork, categorical: Tensor) -> None:
    """Give codes that no training row has the embedding of unknown, not their random start.

    Args:
        network: whose table is changed.
        categorical: codes of the training rows, int32 [n, C].

    """
    if network.category is None:
        return
    table = network.category.table.weight
    starts = network.category.starts.long()

    # Which rows of the table, [sum of cardinalities], were trained, and the unknown of each.
    seen = torch.zeros(len(table), dtype=torch.bool, device=table.device)
    seen[(categorical + starts).flatten().long()] = True
    seen[starts] = True
    codes = torch.arange(len(table), device=table.device)
    unknown = starts[torch.searchsorted(starts, codes, right=True) - 1]
    with torch.no_grad():
        table.copy_(torch.where(seen[:, None], table, table[unknown]))
