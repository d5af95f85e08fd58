"""Both towers as ONNX, which is what serving runs."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from feature_repo.files import write_atomically
from retrieval.towers.model import USER_INPUT_NAMES, ItemTower, TwoTowers, UserInputs


def export_user_tower(towers: TwoTowers, path: Path) -> None:
    """Write the user tower to ``path``; its inputs are the fields of ``UserInputs``."""
    config = towers.config
    inputs = UserInputs(
        user=torch.zeros(2, dtype=torch.int64),
        attributes=torch.zeros(2, config.user_attribute_width, dtype=torch.int64),
        numbers=torch.zeros(2, config.user_numbers),
        clicked=torch.zeros(2, config.history, config.dimension),
        present=torch.zeros(2, config.history),
        gaps=torch.zeros(2, config.history, dtype=torch.int64),
        hour=torch.zeros(2, dtype=torch.int64),
        weekday=torch.zeros(2, dtype=torch.int64),
    )
    _export(towers.users, inputs.tensors(), USER_INPUT_NAMES, path)


def export_item_tower(towers: TwoTowers, path: Path) -> None:
    """Write to ``path`` the item tower for new items: raw vectors from attributes alone.

    Its inputs are ``attributes`` int64 ``[n, L]`` and ``numbers`` float32 ``[n, M]``
    (standardised).
    """
    width = towers.items.item_attributes.shape[1]
    inputs = (torch.zeros(2, width, dtype=torch.int64), torch.zeros(2, towers.config.item_numbers))
    _export(_Described(towers.items), inputs, ("attributes", "numbers"), path)


class _Described(nn.Module):
    def __init__(self, tower: ItemTower) -> None:
        super().__init__()
        self.attribute_table, self.numbers = tower.attribute_table, tower.numbers

    forward = ItemTower.described


def _export(tower: nn.Module, inputs: tuple[Tensor, ...], names: Sequence[str], path: Path) -> None:
    batch = torch.export.Dim("batch", min=1, max=1 << 20)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # torchvision is not needed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecation chatter
        program = torch.onnx.export(
            tower.cpu().eval(),
            inputs,
            input_names=list(names),
            output_names=["vector"],
            dynamic_shapes=tuple({0: batch} for _ in names),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    # Metadata holds stack traces with the paths of the machine that exported.
    for part in (
        model,
        model.graph,
        *model.graph.node,
        *model.graph.value_info,
        *model.graph.initializer,
    ):
        del part.metadata_props[:]
    for value in (*model.graph.input, *model.graph.output):
        del value.metadata_props[:]
    write_atomically(path, model.SerializeToString(deterministic=True))
