"""Features from other people's labels: biases, factors, neighbours, tastes of groups.

Of labelled pairs (shown or rated, and taken or not) as a ranker has them; each feature is worked
out from known pairs for any pair. For the pairs that a model learns from, the known ones are those
of the other folds (stacked generalization; Wolpert, Neural Networks 1992): a feature that has seen
the label it is to predict says too much.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse
from threadpoolctl import threadpool_limits

from feature_repo.arrays import Float32Array, Int64Array

_FACTORS = ((10, 3.0), (80, 8.0))
"""How many, and how strongly they are held to zero."""
_SWEEPS = 8
_BIAS_PRIOR = 5.0
_TASTE_PRIOR = 5.0
_GROUP_PRIOR = 10.0
_TOGETHER_PRIOR = 30.0
"""Numbers of labels at which a mean, or a similarity, is shrunk by half."""


@dataclass(frozen=True)
class LabelledPairs:
    """``n`` labelled pairs of a user and an item.

    ``user`` and ``item`` are codes, int64 ``[n]``; ``label`` is 0 or 1, float32 ``[n]``.
    """

    user: Int64Array
    item: Int64Array
    label: Float32Array

    def __len__(self) -> int:
        return len(self.label)

    def __getitem__(self, rows: npt.NDArray[Any]) -> LabelledPairs:
        return LabelledPairs(self.user[rows], self.item[rows], self.label[rows])


@dataclass(frozen=True)
class SideInformation:
    """What is known of ``U`` users and ``N`` items.

    ``user_groups``: by name the group of each user, int64 ``[U]``; ``item_groups`` likewise
    ``[N]``; ``tags`` float32 ``[N, G]``, 1 where an item has the tag.
    """

    users: int
    items: int
    user_groups: Mapping[str, Int64Array] = field(default_factory=dict)
    item_groups: Mapping[str, Int64Array] = field(default_factory=dict)
    tags: Float32Array | None = None


def collaborative_features(
    known: LabelledPairs, wanted: LabelledPairs, sides: SideInformation
) -> dict[str, Float32Array]:
    """Return features of the wanted pairs by name, float32 ``[n]``; their labels are not read."""
    user, item = wanted.user, wanted.item
    user_bias, item_bias, rest = _biases(known, sides)
    shape = (sides.users, sides.items)
    residuals = sparse.csr_matrix((rest, (known.user, known.item)), shape=shape)
    labelled = sparse.csr_matrix(
        (np.ones(len(known), np.float32), (known.user, known.item)), shape=shape
    )
    features: dict[str, npt.NDArray[Any]] = {
        "user_bias": user_bias[user],
        "item_bias": item_bias[item],
        "user_labels": np.bincount(known.user, minlength=sides.users)[user],
        "item_labels": np.bincount(known.item, minlength=sides.items)[item],
    }
    for size, penalty in _FACTORS:
        users, items = _factors(residuals, size, penalty)
        features[f"factors_{size}"] = np.einsum("nk,nk->n", users[user], items[item])
    features |= _neighbours(residuals, labelled, wanted)
    features |= _tastes(known, rest, wanted, sides)
    return {name: values.astype(np.float32) for name, values in features.items()}


def out_of_fold(
    known: LabelledPairs,
    sides: SideInformation,
    *,
    folds: int,
    seed: int,
    progress: Callable[[int], None] = lambda _: None,
) -> dict[str, Float32Array]:
    """Return features of the known pairs themselves, each from the pairs of the other folds."""
    fold = np.random.default_rng(seed).integers(0, folds, len(known))
    parts = []
    for number in range(folds):
        progress(number)
        parts.append(collaborative_features(known[fold != number], known[fold == number], sides))
    result = {name: np.empty(len(known), np.float32) for name in parts[0]}
    for number, part in enumerate(parts):
        for name, values in part.items():
            result[name][fold == number] = values
    return result


def _biases(
    known: LabelledPairs, sides: SideInformation
) -> tuple[npt.NDArray[Any], npt.NDArray[Any], Float32Array]:
    """Return how far users and items are off the mean, and what is left of each label."""
    mean = float(known.label.mean())
    users, items = np.zeros(sides.users), np.zeros(sides.items)
    for _ in range(5):
        items = _mean(known.item, known.label - mean - users[known.user], sides.items, _BIAS_PRIOR)
        users = _mean(known.user, known.label - mean - items[known.item], sides.users, _BIAS_PRIOR)
    return (
        users,
        items,
        (known.label - mean - users[known.user] - items[known.item]).astype(np.float32),
    )


def _mean(
    group: Int64Array, values: npt.NDArray[Any], groups: int, prior: float
) -> npt.NDArray[Any]:
    """Return the mean of each group as if ``prior`` zeros were in it too."""
    return np.bincount(group, values, groups) / (np.bincount(group, minlength=groups) + prior)


def _factors(
    residuals: sparse.csr_matrix, size: int, penalty: float
) -> tuple[Float32Array, Float32Array]:
    """Return factors of users and items by alternating least squares (Zhou et al., 2008)."""
    by_item = residuals.T.tocsr()
    items = np.random.default_rng(0).normal(0, 0.1, (residuals.shape[1], size)).astype(np.float32)
    # Threads would share products of a hundred rows, and take a hundred times as long.
    with threadpool_limits(1, "blas"):
        for _ in range(_SWEEPS):
            users = _solve(residuals, items, penalty)
            items = _solve(by_item, users, penalty)
    return users, items


def _solve(residuals: sparse.csr_matrix, other: Float32Array, penalty: float) -> Float32Array:
    """Return each row's least-squares factors, given those of the other side."""
    ridge = penalty * np.eye(other.shape[1], dtype=np.float32)
    factors = np.zeros((residuals.shape[0], other.shape[1]), np.float32)
    for row in np.flatnonzero(np.diff(residuals.indptr)):
        part = slice(residuals.indptr[row], residuals.indptr[row + 1])
        fixed = other[residuals.indices[part]]
        factors[row] = np.linalg.solve(fixed.T @ fixed + ridge, fixed.T @ residuals.data[part])
    return factors


def _neighbours(
    residuals: sparse.csr_matrix, labelled: sparse.csr_matrix, wanted: LabelledPairs
) -> dict[str, npt.NDArray[Any]]:
    """Return the mean of the user's labels of similar items, weighted by similarity.

    Two numbers for each pair of items are held in memory: this is for catalogues of some ten
    thousand.
    """
    together = np.asarray((labelled.T @ labelled).toarray())
    similar = np.asarray((residuals.T @ residuals).toarray())
    length = np.sqrt(np.diag(similar)) + 1e-6
    similar *= together / (together + _TOGETHER_PRIOR)
    similar /= length[:, None] * length
    np.fill_diagonal(similar, 0.0)
    features: dict[str, npt.NDArray[Any]] = {}
    for name, weights in (("neighbours", similar), ("near_neighbours", similar * np.abs(similar))):
        total = np.asarray(residuals @ weights)[wanted.user, wanted.item]
        weight = np.asarray(labelled @ np.abs(weights))[wanted.user, wanted.item]
        features |= {name: total / (weight + 0.5), f"{name}_sum": total}
    return features


def _tastes(
    known: LabelledPairs, rest: Float32Array, wanted: LabelledPairs, sides: SideInformation
) -> dict[str, npt.NDArray[Any]]:
    """Return the user's taste for groups of the item, and the groups' taste for the item."""
    features: dict[str, npt.NDArray[Any]] = {}
    for name, group in sides.item_groups.items():
        groups = int(group.max()) + 1
        means = _mean(
            known.user * groups + group[known.item], rest, sides.users * groups, _TASTE_PRIOR
        )
        features[f"user_in_{name}"] = means[wanted.user * groups + group[wanted.item]]
    for name, group in sides.user_groups.items():
        groups = int(group.max()) + 1
        means = _mean(
            known.item * groups + group[known.user], rest, sides.items * groups, _GROUP_PRIOR
        )
        features[f"item_in_{name}"] = means[wanted.item * groups + group[wanted.user]]
    if sides.tags is not None:
        shape = (sides.users, sides.items)
        users = sparse.csr_matrix((rest, (known.user, known.item)), shape=shape) @ sides.tags
        counts = (
            sparse.csr_matrix((np.ones_like(rest), (known.user, known.item)), shape=shape)
            @ sides.tags
        )
        own = sides.tags[wanted.item]
        means = (users / (counts + _TASTE_PRIOR))[wanted.user]
        features["user_in_tags"] = (means * own).sum(axis=1) / np.maximum(own.sum(axis=1), 1)
    return features
