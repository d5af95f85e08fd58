"""LightGBM's trees over one request's candidates: the same sums as LightGBM's own, in a fraction of the time.

LightGBM makes (column, value) pairs of every row and walks down each tree, a branch a node. Here,
as in V-QuickScorer (Lucchese et al., SIGIR 2016), every node is asked once for all rows: where its
condition fails it strikes out the leaves on its left, and the first leaf that is left of a tree is
where the row ends. A node that asks about the user is asked once a request.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from feature_repo.arrays import BoolArray, Float32Array, Float64Array, Int32Array, Int64Array
from ranking.compiled import compiled
from ranking.models.booster_text import Tree, read_trees
from ranking.rows import ItemRows, PairRows

Bits = npt.NDArray[np.uint64]

MOST_LEAVES = 64
_TREES_TOGETHER = 32  # their bits of 500 rows fit into a core's own cache
_BY_CATEGORY, _DEFAULT_LEFT = 1, 2
_MISSING, _ZERO_IS_MISSING, _NAN_IS_MISSING = 12, 4, 8
_DE_BRUIJN = (
    0x03F79D71B4CB0A89  # multiplied by a single bit, its upper six bits tell which one it was
)
_FIRST = np.zeros(64, dtype=np.int64)
_FIRST[[(_DE_BRUIJN << place) % (1 << 64) >> 58 for place in range(64)]] = np.arange(64)


class UnsupportedTrees(ValueError):  # noqa: N818 - whoever meets it asks LightGBM instead
    """The trees have more leaves, or read missing values in another way, than can be done here."""


@dataclass(frozen=True)
class Forest:
    """The inner nodes of all trees, ordered by block of trees and by column, and their leaves from left to right.

    Attributes:
        blocks: int64 ``[B + 1]``, where each block of ``_TREES_TOGETHER`` trees begins among the
            nodes.
        tree: int32 ``[nodes]``.
        column: int32 ``[nodes]``, a categorical one after all numeric ones.
        threshold: float32 ``[nodes]``; a row goes left where its value is not above it.
        missing_left: bool ``[nodes]``, whether a missing value goes left.
        categories: int64 ``[nodes, 2]``, which of ``words`` say what categories go left.
        words: uint64, 64 categories each.
        keep: uint64 ``[nodes]``, the leaves that are not on the node's left.
        leaves: float64 ``[trees, MOST_LEAVES]``.

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

    @classmethod
    def read(cls, text: str) -> Forest:
        """Return the trees of a model that ``booster_text.check_booster`` has found sound.

        Raises:
            UnsupportedTrees: ask LightGBM itself.

        """
        trees = read_trees(text)
        leaves = np.zeros((len(trees), MOST_LEAVES))
        nodes: list[tuple[int, int, float, bool, int, int, int]] = []
        words: list[int] = []
        for number, tree in enumerate(trees):
            order, left = _from_left_to_right(tree)
            if len(order) > MOST_LEAVES:
                raise UnsupportedTrees(
                    f"a tree has {len(order)} leaves, {MOST_LEAVES} are possible"
                )
            leaves[number, : len(order)] = tree.leaf_value[order]
            for node, (begin, end) in left.items():
                keep = ~(((1 << end - begin) - 1) << begin) % (1 << 64)
                nodes.append((number, *_condition(tree, node, words), keep))
        nodes.sort(key=lambda node: (node[0] // _TREES_TOGETHER, node[1], node[0]))
        block = np.array([node[0] // _TREES_TOGETHER for node in nodes], dtype=np.int64)
        return cls(
            np.searchsorted(block, np.arange(-(-len(trees) // _TREES_TOGETHER) + 1)),
            np.array([node[0] for node in nodes], dtype=np.int32),
            np.array([node[1] for node in nodes], dtype=np.int32),
            np.array([node[2] for node in nodes], dtype=np.float32),
            np.array([node[3] for node in nodes], dtype=np.bool_),
            np.array([node[4:6] for node in nodes], dtype=np.int64).reshape(-1, 2),
            np.array(words, dtype=np.uint64),
            np.array([node[6] for node in nodes], dtype=np.uint64),
            leaves,
        )

    def __call__(self, rows: PairRows, items: ItemRows, cardinalities: Int32Array) -> Float64Array:
        """Return raw scores, float64 ``[n]``.

        Args:
            rows: a request.
            items: the catalogue.
            cardinalities: int32 ``[C]`` of the categorical columns; codes beyond count as 0.

        """
        out = np.zeros(len(rows))
        _score(
            self.blocks, self.tree, self.column, self.threshold, self.missing_left, self.categories, self.words,
            self.keep, self.leaves, rows.pair, rows.user_numeric, rows.user_categorical, rows.item, items.numeric,
            items.categorical, cardinalities, out,
        )  # fmt: skip
        return out


def _from_left_to_right(tree: Tree) -> tuple[list[int], dict[int, tuple[int, int]]]:
    """Return a tree's leaves in their order, and by node from where to where its left side has them."""
    order: list[int] = []
    left: dict[int, tuple[int, int]] = {}
    if not len(tree.left_child):
        return [0], left
    waiting: list[tuple[int, int]] = [
        (0, -1)
    ]  # a node, and where its left side began once that is done
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


def _condition(tree: Tree, node: int, words: list[int]) -> tuple[int, float, bool, int, int]:
    """Return column, threshold, where missing values go, and the place of the categories that go left."""
    column, threshold, kind = (
        int(tree.split_feature[node]), float(tree.threshold[node]), int(tree.decision_type[node])
    )  # fmt: skip
    if kind & _BY_CATEGORY:
        begin, end = tree.cat_boundaries[int(threshold) : int(threshold) + 2].astype(np.int64)
        halves, start = tree.cat_threshold[begin:end].astype(np.uint64).tolist(), len(words)
        words += [
            low | high << 32 for low, high in zip(halves[::2], [*halves[1::2], 0], strict=False)
        ]
        return column, 0.0, False, start, len(words)
    if kind & _MISSING == _ZERO_IS_MISSING:
        raise UnsupportedTrees("zero means missing to a tree")
    # A tree that met no missing value in training reads one as 0.
    missing_left = (
        bool(kind & _DEFAULT_LEFT) if kind & _MISSING == _NAN_IS_MISSING else threshold >= 0.0
    )
    near = np.float32(
        threshold
    )  # float32 values compare with the nearest one that is not above as with the threshold
    below = float(np.nextafter(near, np.float32(-np.inf)) if float(near) > threshold else near)
    return column, below, missing_left, 0, 0


@compiled
def _known(code: int, cardinality: int) -> int:
    return code if 0 <= code < cardinality else 0


@compiled
def _score(
    blocks: Int64Array,
    tree: Int32Array,
    column: Int32Array,
    threshold: Float32Array,
    missing_left: BoolArray,
    categories: Int64Array,
    words: Bits,
    keep: Bits,
    leaves: Float64Array,
    pair: Float32Array,
    user_numeric: Float32Array,
    user_categorical: Int32Array,
    item: Int32Array,
    item_numeric: Float32Array,
    item_categorical: Int32Array,
    cardinalities: Int32Array,
    out: Float64Array,
) -> None:
    """Add the trees' values to ``out``, float64 ``[n]``."""
    every, one = np.uint64(0xFFFFFFFFFFFFFFFF), np.uint64(1)
    paired, of_user, count = pair.shape[1], len(user_numeric), len(item)
    numeric = paired + of_user + item_numeric.shape[1]
    values, codes, left = (
        np.empty(count, np.float32),
        np.empty(count, np.int64),
        np.empty(count, np.uint64),
    )
    alive = np.empty((_TREES_TOGETHER, count), np.uint64)
    for block in range(len(blocks) - 1):
        first = block * _TREES_TOGETHER
        together = min(_TREES_TOGETHER, len(leaves) - first)
        alive[:together] = every
        last = -1
        for node in range(blocks[block], blocks[block + 1]):
            bits, kept, of = alive[tree[node] - first], keep[node], column[node]
            if of < numeric:
                limit = threshold[node]
                if paired <= of < paired + of_user:
                    value = user_numeric[of - paired]
                    if value > limit or (value != value and not missing_left[node]):
                        for row in range(count):
                            bits[row] &= kept
                    continue
                if of != last:
                    last = of
                    for row in range(count):
                        values[row] = (
                            pair[row, of]
                            if of < paired
                            else item_numeric[item[row], of - paired - of_user]
                        )
                if missing_left[node]:
                    for row in range(count):
                        bits[row] &= kept if values[row] > limit else every
                else:
                    for row in range(count):
                        bits[row] &= every if values[row] <= limit else kept
                continue
            of -= numeric
            begin, end = categories[node]
            if of < len(user_categorical):
                code = _known(user_categorical[of], cardinalities[of])
                if (
                    code >> 6 >= end - begin
                    or not (words[begin + (code >> 6)] >> np.uint64(code & 63)) & one
                ):
                    for row in range(count):
                        bits[row] &= kept
                continue
            if of + numeric != last:
                last = of + numeric
                for row in range(count):
                    codes[row] = _known(
                        item_categorical[item[row], of - len(user_categorical)], cardinalities[of]
                    )
            left[:] = 0
            for word in range(begin, end):
                among, start = words[word], (word - begin) << 6
                for row in range(count):
                    place = np.uint64(codes[row] - start)
                    left[row] |= (
                        (among >> (place & np.uint64(63))) & one
                        if place < np.uint64(64)
                        else np.uint64(0)
                    )
            for row in range(count):
                bits[row] &= kept | (np.uint64(0) - left[row])
        for number in range(together):
            of_tree = leaves[first + number]
            for row in range(count):
                bit = alive[number, row] & (~alive[number, row] + one)
                out[row] += of_tree[_FIRST[(bit * np.uint64(_DE_BRUIJN)) >> np.uint64(58)]]
