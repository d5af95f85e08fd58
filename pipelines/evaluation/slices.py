"""How figures differ between kinds of users and items, and how far apart the values of an attribute are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow.parquet as pq

from feature_repo import columns as c
from feature_repo.dataset import AttributeKind
from feature_repo.encoding import parts
from feature_repo.workspace import Workspace
from pipelines.evaluation.intervals import UserBootstrap, interval
from pipelines.training.past_requests import InteractionHistory, Requests
from serving.releases.release import Release

Values = npt.NDArray[np.float64]

HEAVY = 10
"""Positive events from which on a user is no longer light."""

LEAST = 50
"""Events below which a value of an attribute is folded into ``OTHER`` and counts for no gap."""

MOST = 20
"""Values of an attribute that are told apart."""

MISSING, OTHER = "(missing)", "(other)"


@dataclass(frozen=True)
class Dimension:
    """One way to part the events: every event has one value.

    ``of`` int64 ``[n]``: which of ``values``; ``attribute``: whether its values should be served
    alike.
    """

    name: str
    values: list[str]
    of: npt.NDArray[np.int64]
    attribute: bool

    @classmethod
    def of_attribute(
        cls, name: str, kind: AttributeKind, values: Sequence[Any], others: list[Dimension]
    ) -> Dimension:
        """Part by an attribute; one that is called as another dimension is has its name marked."""
        taken = {other.name for other in others}
        return cls.from_labels(
            f"{name} (attribute)" if name in taken else name, value_names(kind, values)
        )

    @classmethod
    def from_labels(cls, name: str, labels: npt.NDArray[Any]) -> Dimension:
        """Part by an attribute's values; all but the most frequent, and rare ones, are put together."""
        found, of, count = np.unique(labels.astype(str), return_inverse=True, return_counts=True)
        kept = (count >= LEAST) & (np.argsort(np.argsort(-count, kind="stable")) < MOST)
        folded = np.where(kept[of], found[of], OTHER)
        values, of = np.unique(folded, return_inverse=True)
        return cls(name, [str(value) for value in values], of, attribute=True)


def dimensions(
    workspace: Workspace,
    release: Release,
    requests: Requests,
    interactions: InteractionHistory,
    known: pd.DataFrame,
) -> list[Dimension]:
    """Return how events can be parted.

    By how much the user had taken up before the request (``new``: nothing, ``light``: fewer than 10
    positive events, ``heavy``), whether the item had any event before the cut, and each attribute
    of users and items that
    is no text: of several values the first counts, numbers are parted into thirds.

    Args:
        workspace: with the user table.
        release: whose item table counts.
        requests: the events, their items by the release's codes.
        interactions: what users had done.
        known: the log before the cut.

    """
    pairs = zip(requests.user, requests.time, strict=True)
    past = np.array(
        [len(interactions.positive_items(user, time)) for user, time in pairs], dtype=np.int64
    )
    codec, items = release.codec, release.items
    met = np.zeros(len(items), dtype=np.int64)
    met[codec.items.encode(known[c.ITEM].unique().tolist())] = 1
    found = [
        Dimension(
            "user", ["new", "light", "heavy"], (past > 0).astype(np.int64) + (past >= HEAVY), False
        ),
        Dimension("item", ["new", "known"], met[requests.item], False),
    ]
    path, spec = workspace.ingest / "users.parquet", codec.spec
    named = {name: kind for name, kind in spec.user_attributes.items() if kind != "text"}
    if named and path.is_file():
        table = (
            pq.read_table(path, columns=[c.USER, *named])
            .to_pandas()
            .set_index(c.USER)
            .reindex(requests.user)
        )
        found += [
            Dimension.of_attribute(name, kind, table[name].tolist(), found)
            for name, kind in named.items()
        ]
    for name, kind in spec.item_attributes.items():
        if kind != "text":
            found.append(
                Dimension.of_attribute(
                    name, kind, [items.raw[name][code] for code in requests.item], found
                )
            )
    return found


def value_names(kind: AttributeKind, values: Sequence[Any]) -> npt.NDArray[np.object_]:
    """Return what an attribute's values ``[n]`` are called: strings; numbers by the third that they lie in."""
    if kind != "numeric":
        return np.array([next(iter(parts(kind, value)), MISSING) for value in values], dtype=object)
    numbers = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    known = numbers[~np.isnan(numbers)]
    if not len(known):
        return np.full(len(numbers), MISSING, dtype=object)
    low, high = np.quantile(known, [1 / 3, 2 / 3])
    names = np.array(
        [f"up to {low:.10g}", f"up to {high:.10g}", f"above {high:.10g}"], dtype=object
    )
    third = (numbers > low).astype(np.int64) + (numbers > high)
    return np.where(np.isnan(numbers), MISSING, names[third])


def slice_figures(
    parts: list[Dimension], users: npt.NDArray[Any], ndcg: dict[str, Values], main: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return each slice's figures and each attribute's gap.

    Args:
        parts: how the events are parted.
        users: whose event each is ``[n]``.
        ndcg: each model's NDCG@10 by event, float64 ``[n]``.
        main: the model that gets intervals and gaps.

    Returns:
        by dimension and value ``events``, ``users``, ``ndcg@10`` by model and the main model's
        ``interval``; and by attribute the ``gap`` between the ``highest`` and the ``lowest`` of its
        values that have 50 events, with its ``interval`` (which does not know that these two were
        picked).

    """
    bootstrap = UserBootstrap(users)
    slices: dict[str, Any] = {}
    gaps: dict[str, Any] = {}
    for part in parts:
        masks = [part.of == row for row in range(len(part.values))]
        draws = bootstrap.means([ndcg[main]] * len(masks), masks)
        slices[part.name] = {
            value: {
                "events": int(mask.sum()),
                "users": len(np.unique(users[mask])),
                "ndcg@10": {
                    model: float(values[mask].mean()) if mask.any() else 0.0
                    for model, values in ndcg.items()
                },
                "interval": interval(draws[:, row]),
            }
            for row, (value, mask) in enumerate(zip(part.values, masks, strict=True))
        }
        if part.attribute and (gap := _gap(part, slices[part.name], draws, main)):
            gaps[part.name] = gap
    return slices, gaps


def _gap(
    part: Dimension, figures: dict[str, Any], draws: Values, main: str
) -> dict[str, Any] | None:
    judged = [
        row
        for row, name in enumerate(part.values)
        if name not in (OTHER, MISSING) and figures[name]["events"] >= LEAST
    ]
    if len(judged) < 2:
        return None
    level = [figures[part.values[row]]["ndcg@10"][main] for row in judged]
    highest, lowest = judged[int(np.argmax(level))], judged[int(np.argmin(level))]
    return {
        "gap": max(level) - min(level),
        "highest": part.values[highest],
        "lowest": part.values[lowest],
        "interval": interval(draws[:, highest] - draws[:, lowest]),
    }
