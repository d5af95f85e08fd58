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
from feature_repo.workspace import Workspace
from ranking.calibration import HeadCalibration, Method
from ranking.data import spaced_rows
from serving.online.features import activity_features, user_reader
from serving.recommender.codec import Codec
from serving.releases.manifest import BadRelease
from serving.releases.release import Release, load_release, refusing
from serving.releases.smoke import try_out

Entity = Literal["user", "item"]

FeatureNames = Callable[[], Mapping[Entity, Collection[str]]]
"""Tells which features of users (as they are read to serve) and of items (activity) Feast's registry has now."""

LEAST_RECALL = 0.95
_AT = 100
_COMPARED = 16_000_000
_UNIT_WITHIN = 1e-3
_COSINE_WITHIN = 0.05
"""How far 8-bit codes may be off a cosine; another item's vector is off by more."""


def check_release(folder: Path, registered: FeatureNames) -> Release:
    """Verify and load a release, and check that the feature store has what it reads and that it answers well.

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
            or try_out(release)
        )
    if problem:
        raise BadRelease(f"{release.folder}: {problem}")
    return release


def registered_features(workspace: Workspace) -> FeatureNames:
    """Return what reads the names from a workspace's registry, anew each time it is asked."""

    def read() -> dict[Entity, set[str]]:
        if not workspace.feast_registry.is_file():  # Feast would make an empty one
            return {"user": set(), "item": set()}
        store = feature_store(workspace)
        users = user_reader(store).names.values()
        items = store.get_feature_view("item_activity").features
        return {
            "user": {name for names in users for name in names},
            "item": {field.name for field in items},
        }

    return read


def features_read(codec: Codec) -> dict[Entity, list[str]]:
    """Return the names of the features that a release reads to serve."""
    user = [c.HISTORY_ITEMS, c.HISTORY_TIMES, c.POSITION, *codec.user_activity, c.FIRST_EVENT_AT]
    user += [c.LAST_EVENT_AT, *map(c.seen, codec.spec.event_types), *codec.user_attributes.kinds]
    user += [c.CATEGORIES, c.CATEGORY_SHARES] if codec.spec.category else []
    return {"user": user, "item": activity_features(codec)}


def _missing_features(codec: Codec, registered: FeatureNames) -> str | None:
    try:
        known = registered()
    except Exception as error:
        said = " ".join(str(error).split())
        raise BadRelease(
            f"Feast's registry cannot be read ({said}): run 'funnel materialize'"
        ) from error
    missing = [
        f"{of} {name}"
        for of, names in features_read(codec).items()
        for name in names
        if name not in known[of]
    ]
    if not missing:
        return None
    shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
    return f"Feast's registry lacks features that it reads ({shown}): run 'funnel materialize'"


def _bad_codes(release: Release) -> str | None:
    codec, items = release.codec, release.items
    for name in ("users", "items", "categories"):
        # An erased user's place in the vocabulary is kept, without a name.
        values = [value for value in getattr(codec, name).values if value]
        if len(set(values)) < len(values):
            return f"codec.json names some of its {name} twice"
    attributes = codec.item_attributes
    ranges = {
        "neighbours.npy": (release.retrieval.retriever.neighbours, len(items)),
        "the items' categories": (items.categories, len(codec.categories)),
        "the items' attributes": (items.encoded.codes, attributes.table_size),
    }
    for place, name in enumerate(attributes.coded):
        ranges[f"the items' {name}"] = (
            items.encoded.first[:, place],
            len(attributes.vocabularies[name]),
        )
    for name, (codes, end) in ranges.items():
        if codes.size and not 0 <= codes.min() <= codes.max() < end:
            return f"{name}: a code is outside of 0 to {end - 1}"
    if np.isnan(items.available_from).any() or np.isnan(items.available_until).any():
        return "the times at which items can be had are no numbers"
    return None


def _bad_vectors(release: Release) -> str | None:
    vectors, index = release.retrieval.vectors, release.retrieval.retriever.index
    lengths = np.sqrt(np.einsum("nd,nd->n", vectors[1:], vectors[1:]))
    # Of an item that no training has met and that has no attributes nothing is known: its vector is
    # zero.
    items = release.items.encoded
    nothing = (
        (lengths == 0) & ~items.codes[1:].any(axis=1) & np.isnan(items.numbers[1:]).all(axis=1)
    )
    wrong = int(((np.abs(lengths - 1.0) > _UNIT_WITHIN) & ~nothing).sum())
    if wrong:
        return f"{wrong} of its item vectors are not of unit length"
    at = min(_AT, max(1, index.ntotal // 4))  # of a small catalogue any index finds the most
    rows = spaced_rows(index.ntotal, int(np.clip(_COMPARED // max(index.ntotal, 1), 8, 32)))
    queries = np.ascontiguousarray(vectors[1:][rows])
    cosines, found = index.search(queries, at)
    recall, off = _against_exact(queries @ vectors[1:].T, cosines, found)
    if off > _COSINE_WITHIN:
        return "its index holds other vectors than item_vectors.npy"
    if recall < LEAST_RECALL:
        return f"its index finds {recall:.1%} of the {at} nearest items, {LEAST_RECALL:.0%} is the least"
    return None


def _against_exact(
    exact: npt.NDArray[Any], cosines: npt.NDArray[Any], found: Int64Array
) -> tuple[float, float]:
    """Return the share of ``found`` ``[q, k]`` that is among the nearest, and the largest error of a cosine.

    Which of several equally near items is found does not matter.
    """
    at = found.shape[1]
    least = np.partition(exact, -at, axis=1)[:, -at, None]
    true = np.where(found >= 0, np.take_along_axis(exact, np.maximum(found, 0), axis=1), -np.inf)
    errors = np.abs(cosines - true)[found >= 0]
    return float((true >= least - 1e-5).mean()), float(errors.max(initial=0.0))


def _bad_calibration(release: Release) -> str | None:
    for name, head in zip(
        release.codec.spec.event_types, release.recommender.ranker.calibration.heads, strict=True
    ):
        if not _is_sound(head):
            return f"the calibration of '{name}' is no rising map"
    return None


def _is_sound(head: HeadCalibration) -> bool:
    x, y = np.array(head.x, dtype=np.float64), np.array(head.y, dtype=np.float64)
    if (
        head.method not in get_args(Method)
        or not np.isfinite([head.slope, head.intercept, *x, *y]).all()
    ):
        return False
    if head.method == "isotonic":
        rising = bool((np.diff(x) >= 0).all() and (np.diff(y) >= 0).all())
        return rising and len(x) == len(y) > 0 and 0.0 <= y[0] <= y[-1] <= 1.0
    return head.slope > 0.0
