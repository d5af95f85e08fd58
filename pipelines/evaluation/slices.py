"""How figures differ between kinds of users and items, and between the values of an attribute."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from feature_repo import columns as c
from feature_repo.arrays import Float64Array, Int64Array
from feature_repo.dataset import AttributeKind
from feature_repo.encoding import parts
from feature_repo.workspace import Workspace
from pipelines.evaluation.figures import Gap, SliceFigures
from pipelines.evaluation.held_out import HeldOut
from pipelines.evaluation.intervals import UserBootstrap, interval

HEAVY = 10
"""Positive events from which on a user is no longer light."""

MIN_EVENTS = 50
"""Events below which a value of an attribute is folded into ``OTHER`` and counts for no gap."""

MAX_VALUES = 20
"""Values of an attribute that have a slice of their own."""

MISSING, OTHER = "(missing)", "(other)"


@dataclass(frozen=True)
class Dimension:
    """One way to partition the events: every event has one value.

    Attributes:
        name: of the dimension.
        values: their names.
        of_event: which of the values each event has, int64 ``[n]``.
        attribute: whether the values are of an attribute, and should be served equally well.

    """

    name: str
    values: list[str]
    of_event: Int64Array
    attribute: bool

    @classmethod
    def of_attribute(
        cls, name: str, kind: AttributeKind, values: Sequence[Any], *, others: list[Dimension]
    ) -> Dimension:
        """Partition by an attribute; a name that another dimension has is marked."""
        if name in {other.name for other in others}:
            name = f"{name} (attribute)"
        return cls.from_labels(name, value_names(kind, values))

    @classmethod
    def from_labels(cls, name: str, labels: npt.NDArray[Any]) -> Dimension:
        """Partition by an attribute's values; all but the most frequent are merged."""
        names, of_event, count = np.unique(
            labels.astype(str), return_inverse=True, return_counts=True
        )
        frequency_rank = np.argsort(np.argsort(-count, kind="stable"))
        separate = (count >= MIN_EVENTS) & (frequency_rank < MAX_VALUES)
        merged = np.where(separate[of_event], names[of_event], OTHER)

        values, of_event = np.unique(merged, return_inverse=True)
        return cls(name, [str(value) for value in values], of_event, attribute=True)


def dimensions(workspace: Workspace, held_out: HeldOut) -> list[Dimension]:
    """Return how the test events can be partitioned.

    By the user's positive events before the request (``new``: none, ``light``: fewer than 10,
    ``heavy``), by whether the item had any event before the cut, and by each attribute of users and
    items that is no text: of several values the first counts, numbers are cut into thirds.

    Args:
        workspace: with the user table.
        held_out: the test events.

    """
    partitions = [_by_user_activity(held_out), _by_item_age(held_out)]
    spec = held_out.release.codec.spec

    path = workspace.ingest / "users.parquet"
    user_kinds = {name: kind for name, kind in spec.user_attributes.items() if kind != "text"}
    if user_kinds and path.is_file():
        table = pq.read_table(path, columns=[c.USER, *user_kinds]).to_pandas()
        table = table.set_index(c.USER).reindex(held_out.requests.user)
        for name, kind in user_kinds.items():
            partitions.append(
                Dimension.of_attribute(name, kind, table[name].tolist(), others=partitions[:2])
            )

    items = held_out.release.items
    for name, item_kind in spec.item_attributes.items():
        if item_kind != "text":
            values = [items.raw[name][code] for code in held_out.requests.item]
            partitions.append(Dimension.of_attribute(name, item_kind, values, others=partitions))
    return partitions


def _by_user_activity(held_out: HeldOut) -> Dimension:
    requests = held_out.requests
    pairs = zip(requests.user, requests.time, strict=True)
    past = np.array(
        [len(held_out.interactions.positive_items(user, time)) for user, time in pairs],
        dtype=np.int64,
    )
    level = (past > 0).astype(np.int64) + (past >= HEAVY)
    return Dimension("user", ["new", "light", "heavy"], level, attribute=False)


def _by_item_age(held_out: HeldOut) -> Dimension:
    known = np.zeros(len(held_out.release.items), dtype=np.int64)
    known[held_out.release.codec.items.encode(held_out.known[c.ITEM].unique().tolist())] = 1
    return Dimension("item", ["new", "known"], known[held_out.requests.item], attribute=False)


def value_names(kind: AttributeKind, values: Sequence[Any]) -> npt.NDArray[np.object_]:
    """Return names of an attribute's values ``[n]``: strings; numbers by the third they lie in."""
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
    dimensions: list[Dimension],
    users: npt.NDArray[Any],
    ndcg: dict[str, Float64Array],
    main: str,
) -> tuple[dict[str, dict[str, SliceFigures]], dict[str, Gap]]:
    """Return each slice's figures and each attribute's gap.

    Args:
        dimensions: how the events are partitioned.
        users: the user of each event ``[n]``.
        ndcg: each model's NDCG@10 by event, float64 ``[n]``.
        main: the model that gets intervals and gaps.

    Returns:
        figures by dimension and value; and by attribute the gap between the best and the worst of
        its values that have 50 events, with its interval (which does not account for the fact that
        these two were picked).

    """
    bootstrap = UserBootstrap(users)
    slices: dict[str, dict[str, SliceFigures]] = {}
    gaps: dict[str, Gap] = {}
    for dimension in dimensions:
        masks = [dimension.of_event == row for row in range(len(dimension.values))]
        draws = bootstrap.means([ndcg[main]] * len(masks), masks)  # [R, values]
        slices[dimension.name] = {
            value: SliceFigures(
                events=int(mask.sum()),
                users=len(np.unique(users[mask])),
                ndcg={
                    model: float(values[mask].mean()) if mask.any() else 0.0
                    for model, values in ndcg.items()
                },
                interval=interval(draws[:, row]),
            )
            for row, (value, mask) in enumerate(zip(dimension.values, masks, strict=True))
        }
        gap = _gap(dimension, slices[dimension.name], draws, main)
        if dimension.attribute and gap:
            gaps[dimension.name] = gap
    return slices, gaps


def _gap(
    dimension: Dimension, figures: dict[str, SliceFigures], draws: Float64Array, main: str
) -> Gap | None:
    judged = [
        row
        for row, name in enumerate(dimension.values)
        if name not in (OTHER, MISSING) and figures[name].events >= MIN_EVENTS
    ]
    if len(judged) < 2:
        return None

    level = [figures[dimension.values[row]].ndcg[main] for row in judged]
    highest = judged[int(np.argmax(level))]
    lowest = judged[int(np.argmin(level))]
    return Gap(
        gap=max(level) - min(level),
        highest=dimension.values[highest],
        lowest=dimension.values[lowest],
        interval=interval(draws[:, highest] - draws[:, lowest]),
    )
