"""Checks the text of a LightGBM model before LightGBM reads it.

LightGBM trusts such a text: of one that was cut off it reads past the end, and a tree whose nodes
point back at themselves never ends. Either takes the whole process with it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from feature_repo.arrays import Float64Array

_NUMBERS = re.compile(r"[-+0-9.eEinfa ]*")
_PER_NODE = (
    "split_feature", "split_gain", "threshold", "decision_type", "left_child", "right_child",
    "internal_value", "internal_weight", "internal_count",
)  # fmt: skip
_CATEGORICAL = 1


@dataclass(frozen=True)
class Tree:
    """One tree: a value for each inner node or leaf; a child below 0 is the leaf ``~child``."""

    split_feature: Float64Array
    threshold: Float64Array
    decision_type: Float64Array
    left_child: Float64Array
    right_child: Float64Array
    leaf_value: Float64Array
    cat_boundaries: Float64Array
    cat_threshold: Float64Array


def read_trees(text: str) -> list[Tree]:
    """Return the trees of a model that ``check_booster`` has found sound."""
    names = Tree.__dataclass_fields__
    return [Tree(*(_numbers(fields, name) for name in names)) for fields in _trees(text)]


def check_booster(text: str, columns: int) -> None:
    """Refuse a model that LightGBM could not read, or whose trees do not end in leaves.

    Args:
        text: what ``Booster.model_to_string`` wrote, of one tree a round.
        columns: how many features it reads.

    Raises:
        ValueError: with what is wrong.

    """
    fields = _fields(text.partition("\n\n")[0])
    expected = {
        "num_class": "1",
        "num_tree_per_iteration": "1",
        "max_feature_idx": str(columns - 1),
    }
    for name, value in expected.items():
        if fields.get(name) != value:
            raise ValueError(f"a booster has {name}={fields.get(name)}, not {value}")
    for number, tree in enumerate(_trees(text)):
        if not _is_sound(tree, columns):
            raise ValueError(f"tree {number} of a booster is no tree")


def _trees(text: str) -> list[dict[str, str]]:
    """Return the fields of each tree."""
    head, _, rest = text.partition("\n\n")
    rest = rest.lstrip("\n")
    start, found = 0, []
    for number, size in enumerate(_numbers(_fields(head), "tree_sizes").astype(np.int64).tolist()):
        tree = rest[start : start + size]
        if len(tree) < size or not tree.startswith(f"Tree={number}\n"):
            raise ValueError(f"a booster ends in its tree {number}")
        found.append(_fields(tree))
        start += size
    if not rest[start:].startswith("end of trees") or "\nend of parameters\n" not in rest[start:]:
        raise ValueError("a booster has no end")
    return found


def _fields(lines: str) -> dict[str, str]:
    return {name: value for name, _, value in (line.partition("=") for line in lines.split("\n"))}


def _numbers(fields: dict[str, str], name: str, size: int | None = None) -> Float64Array:
    value = fields.get(name, "")
    if not _NUMBERS.fullmatch(value):
        raise ValueError(f"{name} of a booster is no list of numbers")
    numbers = np.array(value.split(), dtype=np.float64)
    if size is not None and len(numbers) != size:
        raise ValueError(f"{name} of a booster has {len(numbers)} values, not {size}")
    return numbers


def _is_sound(tree: dict[str, str], columns: int) -> bool:
    leaves, categories = (int(_numbers(tree, name, 1)[0]) for name in ("num_leaves", "num_cat"))
    if (
        leaves < 1
        or tree.get("is_linear") != "0"
        or not np.isfinite(_numbers(tree, "leaf_value", leaves)).all()
    ):
        return False
    if leaves == 1:
        return True
    for name in ("leaf_weight", "leaf_count"):
        _numbers(tree, name, leaves)
    nodes = {name: _numbers(tree, name, leaves - 1) for name in _PER_NODE}
    by_category = nodes["decision_type"].astype(np.int64) & _CATEGORICAL > 0
    return (
        _within(nodes["split_feature"], columns)
        and _within(nodes["decision_type"], 128)
        and _within(nodes["threshold"][by_category], categories)
        and _leads_to_leaves(nodes["left_child"], nodes["right_child"])
        and (categories == 0 or _are_sets(_numbers(tree, "cat_boundaries", categories + 1), tree))
    )


def _leads_to_leaves(left: Float64Array, right: Float64Array) -> bool:
    """Return whether every node but the root, and every leaf, has one parent, an older one.

    A node comes from the split of an older one, so there is no cycle.
    """
    children, nodes = np.concatenate([left, right]), np.arange(len(left))
    every = np.concatenate([np.arange(-len(left) - 1, 0), nodes[1:]])
    return np.array_equal(np.sort(children), every) and bool(
        ((children < 0) | (children > np.tile(nodes, 2))).all()
    )


def _are_sets(borders: Float64Array, tree: dict[str, str]) -> bool:
    bits = _numbers(tree, "cat_threshold")
    ascending = borders[0] == 0 and bool((np.diff(borders) > 0).all())
    return ascending and borders[-1] == len(bits) and _within(bits, 2**32)


def _within(values: Float64Array, end: int) -> bool:
    """Return whether all values are whole numbers from 0 on and below ``end``."""
    return bool(((values >= 0) & (values < end) & (values == np.floor(values))).all())
