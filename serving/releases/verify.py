"""What must hold before a release is served, beyond that its files are whole and fit together."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from feature_repo import columns as c
from feature_repo.arrays import Int64Array
from feature_repo.stores.feature_store import feature_store
from feature_repo.stores.registry import registry_state
from feature_repo.workspace import Workspace
from ranking.calibration import HeadCalibration, Method
from ranking.data import spaced_rows
from serving.online.features import registered, user_reader
from serving.recommender.codec import ITEM_ACTIVITY, Codec
from serving.releases.manifest import BadRelease
from serving.releases.release import Release, load_release, refusing
from serving.releases.smoke import smoke_test

Entity = Literal["user", "item"]

FeatureNames = Callable[[], Mapping[Entity, Collection[str]]]
"""Returns the user and item features that Feast's registry has now."""

MIN_RECALL = 0.95
_AT = 100
_COMPARED = 16_000_000
_UNIT_WITHIN = 1e-3
_COSINE_WITHIN = 0.05
"""Largest error of a cosine of 8-bit codes; another item's vector has a larger one."""


def check_release(folder: Path, registered: FeatureNames) -> Release:
    """Verify and load a release, check its features and content, and run a smoke test.

    Raises:
        BadRelease: it cannot be served; one sentence says why.

    """
    release = load_release(folder)
    with refusing(release.folder, "does not work"):
        problem = (
            _missing_features(release.codec, registered)
            or _bad_codes(release)
            or _bad_vectors(release)
            or _bad_calibration(release)
            or smoke_test(release)
        )
    if problem:
        raise BadRelease(f"{release.folder}: {problem}")
    return release


def registered_features(workspace: Workspace) -> FeatureNames:
    """Return a function that reads the names from a workspace's registry at each call."""

    def read() -> dict[Entity, set[str]]:
        if registry_state(workspace) is None:
            return {"user": set(), "item": set()}
        store = feature_store(workspace)
        users = user_reader(store).names.values()
        items = {name for view, name in registered(store) if view == ITEM_ACTIVITY}
        return {"user": {name for names in users for name in names}, "item": items}

    return read


def features_read(codec: Codec) -> dict[Entity, list[str]]:
    """Return the names of the features that a release reads to serve."""
    user = [c.HISTORY_ITEMS, c.HISTORY_TIMES, *codec.user_counts, c.FIRST_EVENT_AT]
    user += [c.LAST_EVENT_AT, *map(c.seen, codec.spec.event_types), *codec.user_attributes.kinds]
    user += [c.CATEGORIES, c.CATEGORY_SHARES] if codec.spec.category else []
    return {"user": user, "item": [name for _, name in codec.built_in_activity]}


def _missing_features(codec: Codec, registered: FeatureNames) -> str | None:
    try:
        known = registered()
    except Exception as error:
        reason = " ".join(str(error).split())
        raise BadRelease(
            f"Feast's registry cannot be read ({reason}): run 'funnel materialize'"
        ) from error
    missing = [
        f"{entity} {name}"
        for entity, names in features_read(codec).items()
        for name in names
        if name not in known[entity]
    ]
    if not missing:
        return None
    shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
    return f"Feast's registry lacks features that it reads ({shown}): run 'funnel materialize'"


def _bad_codes(release: Release) -> str | None:
    codec = release.codec
    items = release.items
    for name in ("users", "items", "categories"):
        # An erased user keeps an entry in the vocabulary, without a name.
        values = [value for value in getattr(codec, name).values if value]
        if len(set(values)) < len(values):
            return f"codec.json names some of its {name} twice"

    attributes = codec.item_attributes
    ranges = {
        "neighbours.npy": (release.retrieval.retriever.neighbours, len(items)),
        "the items' categories": (items.categories, len(codec.categories)),
        "the items' attributes": (items.encoded.codes, attributes.table_size),
    }
    for column, name in enumerate(attributes.coded):
        codes = items.encoded.first[:, column]
        ranges[f"the items' {name}"] = (codes, len(attributes.vocabularies[name]))
    for name, (codes, end) in ranges.items():
        if codes.size and not 0 <= codes.min() <= codes.max() < end:
            return f"{name}: a code is outside of 0 to {end - 1}"

    if np.isnan(items.available_from).any() or np.isnan(items.available_until).any():
        return "availability times contain NaN"
    return None


def _bad_vectors(release: Release) -> str | None:
    # Lengths [N - 1] of the item vectors. An item that no training included and that has no
    # attributes has a vector of zeros.
    vectors = release.retrieval.vectors[1:]
    lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
    encoded = release.items.encoded
    without_attributes = ~encoded.codes[1:].any(axis=1) & np.isnan(encoded.numbers[1:]).all(axis=1)
    wrong = (np.abs(lengths - 1.0) > _UNIT_WITHIN) & ~((lengths == 0) & without_attributes)
    if wrong.any():
        return f"{int(wrong.sum())} of its item vectors are not of unit length"

    # Search for a sample of the items; k is small where any index finds most of the items.
    index = release.retrieval.retriever.index
    k = min(_AT, max(1, index.ntotal // 4))
    rows = spaced_rows(index.ntotal, int(np.clip(_COMPARED // max(index.ntotal, 1), 8, 32)))
    queries = np.ascontiguousarray(vectors[rows])
    cosines, retrieved = index.search(queries, k)

    recall, error = _against_exact(queries @ vectors.T, cosines, retrieved)
    if error > _COSINE_WITHIN:
        return "its index holds other vectors than item_vectors.npy"
    if recall < MIN_RECALL:
        problem = f"its index finds {recall:.1%} of the {k} nearest items"
        return f"{problem}; the minimum is {MIN_RECALL:.0%}"
    return None


def _against_exact(
    exact: npt.NDArray[Any], cosines: npt.NDArray[Any], retrieved: Int64Array
) -> tuple[float, float]:
    """Return the recall of a search and the largest error of its cosines.

    Which of several equally near items is retrieved does not matter.

    Args:
        exact: the cosines of all items, ``[q, N]``.
        cosines: as the index gave them, ``[q, k]``.
        retrieved: rows of the items, int64 ``[q, k]``, below 0: none.

    """
    k = retrieved.shape[1]
    kth = np.partition(exact, -k, axis=1)[:, -k, None]
    true = np.take_along_axis(exact, np.maximum(retrieved, 0), axis=1)
    true = np.where(retrieved >= 0, true, -np.inf)
    errors = np.abs(cosines - true)[retrieved >= 0]
    return float((true >= kth - 1e-5).mean()), float(errors.max(initial=0.0))


def _bad_calibration(release: Release) -> str | None:
    for name, head in zip(
        release.codec.spec.event_types, release.recommender.ranker.calibration.heads, strict=True
    ):
        if not _is_sound(head):
            return f"the calibration of '{name}' is not monotonically increasing"
    return None


def _is_sound(head: HeadCalibration) -> bool:
    x = np.array(head.x, dtype=np.float64)
    y = np.array(head.y, dtype=np.float64)
    if (
        head.method not in get_args(Method)
        or not np.isfinite([head.slope, head.intercept, *x, *y]).all()
    ):
        return False
    if head.method == "isotonic":
        rising = bool((np.diff(x) >= 0).all() and (np.diff(y) >= 0).all())
        return rising and len(x) == len(y) > 0 and 0.0 <= y[0] <= y[-1] <= 1.0
    return head.slope > 0.0
