"""LightGBM's trees over one request's candidates: LightGBM's own sums in a fraction of the time.

LightGBM makes (column, value) pairs of every row and walks down each tree, a branch a node. Here,
as in V-QuickScorer (Lucchese et al., SIGIR 2016), every node is evaluated once for all rows: where
its condition fails it strikes out the leaves on its left, and the first leaf that is left of a tree
is the row's. A node that reads a column of the user is evaluated once a request.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from feature_repo.arrays import BoolArray, Float32Array, Float64Array, Int32Array, Int64Array
from ranking.compiled import compiled
from ranking.models.booster_text import Tree, read_trees
from ranking.rows import ItemRows, PairRows

Bits = npt.NDArray[np.uint64]

MOST_LEAVES = 64
_BLOCK = 32  # trees whose leaf bits, of 500 rows, fit into a core's own cache
_BY_CATEGORY, _DEFAULT_LEFT = 1, 2
_MISSING, _ZERO_IS_MISSING, _NAN_IS_MISSING = 12, 4, 8
_ALL_LEAVES = np.uint64(0xFFFFFFFFFFFFFFFF)

# The upper six bits of this number times a single bit tell which bit it was (de Bruijn sequence).
_DE_BRUIJN = 0x03F79D71B4CB0A89
_BIT_INDEX = np.zeros(64, dtype=np.int64)
_BIT_INDEX[[(_DE_BRUIJN << bit) % (1 << 64) >> 58 for bit in range(64)]] = np.arange(64)


class UnsupportedTrees(ValueError):  # noqa: N818 - the caller falls back to LightGBM
    """The trees have too many leaves, or treat missing values in a way that is not supported."""


class Nodes(NamedTuple):
    """The inner nodes of all trees by block of trees and by column, and the trees' leaves.

    Attributes:
        blocks: int64 ``[B + 1]``, where each block of ``_BLOCK`` trees begins among the nodes.
        tree: int32 ``[nodes]``.
        column: int32 ``[nodes]``, a categorical one after all numeric ones.
        threshold: float32 ``[nodes]``; a row goes left where its value is not above it.
        missing_left: bool ``[nodes]``, whether a missing value goes left.
        categories: int64 ``[nodes, 2]``, the range of ``words`` with the categories that go left.
        words: uint64, 64 categories each.
        keep: uint64 ``[nodes]``, the leaves that are not on the node's left.
        leaves: float64 ``[trees, MOST_LEAVES]``, from left to right.

    """

    blocks: Int64Array
    tree: Int32Array
    column: Int32Array
    threshold: Float32Array
    missing_left: BoolArray
    categories: Int64Array
    words: Bits
    keep: Bits
    leaves: Float64Array


class _Inputs(NamedTuple):
    """The arrays of ``PairRows`` and ``ItemRows``, and the cardinalities, int32 ``[C]``."""

    pair: Float32Array
    user_numeric: Float32Array
    user_categorical: Int32Array
    item: Int32Array
    item_numeric: Float32Array
    item_categorical: Int32Array
    cardinalities: Int32Array


@dataclass(frozen=True)
class Forest:
    """All trees of one booster."""

    nodes: Nodes

    @classmethod
    def read(cls, text: str) -> Forest:
        """Return the trees of a model that ``booster_text.check_booster`` has found sound.

        Raises:
            UnsupportedTrees: only LightGBM itself can score them.

        """
        trees = read_trees(text)
        leaves = np.zeros((len(trees), MOST_LEAVES))
        words: list[int] = []
        nodes: list[_Node] = []
        for number, tree in enumerate(trees):
            order, left = _from_left_to_right(tree)
            if len(order) > MOST_LEAVES:
                raise UnsupportedTrees(f"a tree has {len(order)} leaves, at most {MOST_LEAVES} fit")
            leaves[number, : len(order)] = tree.leaf_value[order]
            nodes += [
                _node(tree, number, node, left=leaf_range, words=words)
                for node, leaf_range in left.items()
            ]
        nodes.sort(key=lambda node: (node.tree // _BLOCK, node.column, node.tree))
        return cls(_as_arrays(nodes, words, leaves))

    def __call__(self, rows: PairRows, items: ItemRows, cardinalities: Int32Array) -> Float64Array:
        """Return raw scores, float64 ``[n]``.

        Args:
            rows: a request.
            items: the catalogue.
            cardinalities: int32 ``[C]`` of the categorical columns; codes beyond count as 0.

        """
        out = np.zeros(len(rows))
        inputs = _Inputs(
            pair=rows.pair,
            user_numeric=rows.user_numeric,
            user_categorical=rows.user_categorical,
            item=rows.item,
            item_numeric=items.numeric,
            item_categorical=items.categorical,
            cardinalities=cardinalities,
        )
        _add_scores(self.nodes, inputs, out)
        return out


class _Node(NamedTuple):
    """One inner node; the fields are those of ``Nodes``."""

    tree: int
    column: int
    threshold: float
    missing_left: bool
    categories: tuple[int, int]
    keep: int


def _as_arrays(nodes: list[_Node], words: list[int], leaves: Float64Array) -> Nodes:
    block = np.array([node.tree // _BLOCK for node in nodes], dtype=np.int64)
    blocks = -(-len(leaves) // _BLOCK)
    return Nodes(
        blocks=np.searchsorted(block, np.arange(blocks + 1)),
        tree=np.array([node.tree for node in nodes], dtype=np.int32),
        column=np.array([node.column for node in nodes], dtype=np.int32),
        threshold=np.array([node.threshold for node in nodes], dtype=np.float32),
        missing_left=np.array([node.missing_left for node in nodes], dtype=np.bool_),
        categories=np.array([node.categories for node in nodes], dtype=np.int64).reshape(-1, 2),
        words=np.array(words, dtype=np.uint64),
        keep=np.array([node.keep for node in nodes], dtype=np.uint64),
        leaves=leaves,
    )


def _from_left_to_right(tree: Tree) -> tuple[list[int], dict[int, tuple[int, int]]]:
    """Return a tree's leaves in order, and for each node the range of leaves on its left."""
    order: list[int] = []
    left: dict[int, tuple[int, int]] = {}
    if not len(tree.left_child):
        return [0], left
    # A node, and the first leaf of its left side once that side is done, before that -1.
    waiting: list[tuple[int, int]] = [(0, -1)]
    while waiting:
        node, begin = waiting.pop()
        if node < 0:
            order.append(~node)
        elif begin < 0:
            waiting += [(node, len(order)), (int(tree.left_child[node]), -1)]
        else:
            left[node] = (begin, len(order))
            waiting.append((int(tree.right_child[node]), -1))
    return order, left


def _node(tree: Tree, number: int, node: int, *, left: tuple[int, int], words: list[int]) -> _Node:
    """Return a node of tree ``number`` with the leaves ``left`` on its left; extend ``words``."""
    begin, end = left
    keep = ~(((1 << end - begin) - 1) << begin) % (1 << 64)
    column = int(tree.split_feature[node])
    threshold = float(tree.threshold[node])
    kind = int(tree.decision_type[node])
    if kind & _BY_CATEGORY:
        return _Node(number, column, 0.0, False, _category_words(tree, int(threshold), words), keep)
    if kind & _MISSING == _ZERO_IS_MISSING:
        raise UnsupportedTrees("a tree treats zero as missing")
    # A tree that met no missing value in training reads one as 0.
    missing_left = threshold >= 0.0
    if kind & _MISSING == _NAN_IS_MISSING:
        missing_left = bool(kind & _DEFAULT_LEFT)
    return _Node(number, column, _largest_float32(threshold), missing_left, (0, 0), keep)


def _category_words(tree: Tree, number: int, words: list[int]) -> tuple[int, int]:
    """Append a category set, 32-bit words in LightGBM's text, to ``words``; return its range."""
    begin, end = tree.cat_boundaries[number : number + 2].astype(np.int64)
    halves = tree.cat_threshold[begin:end].astype(np.uint64).tolist()
    pairs = zip(halves[::2], [*halves[1::2], 0], strict=False)
    start = len(words)
    words += [low | high << 32 for low, high in pairs]
    return start, len(words)


def _largest_float32(threshold: float) -> float:
    """Return the largest float32 value that is not above a threshold.

    Float32 values compare with it as they do with the threshold.
    """
    nearest = np.float32(threshold)
    if float(nearest) > threshold:
        nearest = np.nextafter(nearest, np.float32(-np.inf))
    return float(nearest)


@compiled
def _add_scores(nodes: Nodes, inputs: _Inputs, out: Float64Array) -> None:
    """Add the trees' values to ``out``, float64 ``[n]``."""
    # Attributes of a named tuple are looked up once, not for each of thousands of nodes.
    tree_of = nodes.tree
    column_of = nodes.column
    threshold_of = nodes.threshold
    missing_left = nodes.missing_left
    categories = nodes.categories
    words = nodes.words
    keep_of = nodes.keep
    user_numeric = inputs.user_numeric
    user_categorical = inputs.user_categorical
    cardinalities = inputs.cardinalities
    paired = inputs.pair.shape[1]
    user_end = paired + len(user_numeric)
    numeric = user_end + inputs.item_numeric.shape[1]
    count = len(inputs.item)

    values = np.empty(count, np.float32)  # the numeric column that was read last
    codes = np.empty(count, np.int64)  # the categorical column that was read last
    left = np.empty(count, np.uint64)  # 1 where its category goes left
    alive = np.empty((_BLOCK, count), np.uint64)  # the leaves that are left of each tree and row
    for block in range(len(nodes.blocks) - 1):
        first = block * _BLOCK
        trees = min(_BLOCK, len(nodes.leaves) - first)
        alive[:trees] = _ALL_LEAVES
        last = -1
        for node in range(nodes.blocks[block], nodes.blocks[block + 1]):
            leaves = alive[tree_of[node] - first]
            keep = keep_of[node]
            column = column_of[node]
            if paired <= column < user_end:
                value = user_numeric[column - paired]
                missing_right = value != value and not missing_left[node]
                if value > threshold_of[node] or missing_right:
                    _strike(leaves, keep)
            elif column < numeric:
                if column != last:
                    last = column
                    _read_numeric(inputs, column, values)
                threshold = threshold_of[node]
                if missing_left[node]:
                    for row in range(count):
                        leaves[row] &= keep if values[row] > threshold else _ALL_LEAVES
                else:
                    for row in range(count):
                        leaves[row] &= _ALL_LEAVES if values[row] <= threshold else keep
            else:
                begin, end = categories[node]
                categorical = column - numeric
                if categorical < len(user_categorical):
                    code = _known(user_categorical[categorical], cardinalities[categorical])
                    if not _has(words[begin:end], code):
                        _strike(leaves, keep)
                else:
                    if column != last:
                        last = column
                        _read_codes(inputs, categorical, codes)
                    _mark_left(left, codes, words[begin:end])
                    for row in range(count):
                        leaves[row] &= keep | (np.uint64(0) - left[row])
        _add_leaves(alive, nodes.leaves[first : first + trees], out)


@compiled
def _read_numeric(inputs: _Inputs, column: int, values: Float32Array) -> None:
    """Write a numeric column of the pairs or the items into ``values``, float32 ``[n]``."""
    paired = inputs.pair.shape[1]
    if column < paired:
        for row in range(len(values)):
            values[row] = inputs.pair[row, column]
    else:
        column -= paired + len(inputs.user_numeric)
        for row in range(len(values)):
            values[row] = inputs.item_numeric[inputs.item[row], column]


@compiled
def _read_codes(inputs: _Inputs, column: int, codes: Int64Array) -> None:
    """Write a categorical column of the items into ``codes``, int64 ``[n]``."""
    cardinality = inputs.cardinalities[column]
    column -= len(inputs.user_categorical)
    for row in range(len(codes)):
        codes[row] = _known(inputs.item_categorical[inputs.item[row], column], cardinality)


@compiled
def _known(code: int, cardinality: int) -> int:
    return code if 0 <= code < cardinality else 0


@compiled
def _has(words: Bits, code: int) -> bool:
    """Return whether a category is in a set of 64 categories a word."""
    word = code >> 6
    return word < len(words) and (words[word] >> np.uint64(code & 63)) & np.uint64(1) != 0


@compiled
def _strike(leaves: Bits, keep: np.uint64) -> None:
    """Strike out the leaves on a node's left, of uint64 ``[n]``, in all rows."""
    for row in range(len(leaves)):
        leaves[row] &= keep


@compiled
def _mark_left(left: Bits, codes: Int64Array, words: Bits) -> None:
    """Set ``left``, uint64 ``[n]``, to 1 where the category, of int64 ``[n]``, is in ``words``."""
    left[:] = 0
    for word in range(len(words)):
        among, start = words[word], word << 6
        for row in range(len(left)):
            bit = np.uint64(codes[row] - start)
            left[row] |= (
                (among >> (bit & np.uint64(63))) & np.uint64(1)
                if bit < np.uint64(64)
                else np.uint64(0)
            )


@compiled
def _add_leaves(alive: Bits, leaves: Float64Array, out: Float64Array) -> None:
    """Add each tree's value, its first leaf that is alive, to ``out``, float64 ``[n]``.

    Args:
        alive: uint64 ``[trees or more, n]``.
        leaves: float64 ``[trees, MOST_LEAVES]``.
        out: float64 ``[n]``.

    """
    for tree in range(len(leaves)):
        for row in range(len(out)):
            lowest = alive[tree, row] & (~alive[tree, row] + np.uint64(1))
            out[row] += leaves[tree, _BIT_INDEX[(lowest * np.uint64(_DE_BRUIJN)) >> np.uint64(58)]]
