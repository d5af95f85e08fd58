"""The report of ``funnel skew``: what was compared, and which features differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from feature_repo.arrays import Float64Array

RETRIEVED = "retrieved"
"""Reported like a feature: a shown item is not among the recomputed candidates."""

ROW_MISSING = "row_missing"
"""Reported like a feature: no offline table has the user's streamed row."""


@dataclass
class FeatureSkew:
    """How often a feature was compared and differed, its largest difference, and a request.

    The difference is infinite if the value is missing on one side.
    """

    compared: int = 0
    differing: int = 0
    largest: float = 0.0
    example: str = ""


@dataclass
class SkewReport:
    """What was compared, what differed, and what could not be compared.

    Attributes:
        requests: compared requests.
        items: their ranked items.
        values: the features of these items.
        differing: features that differ.
        requests_differing: requests with a differing feature.
        not_streamed_yet: requests left out because the archive lacks their events.
        row_missing: requests whose streamed row is in no offline table.
        other_releases: requests left out because their release was removed.
        with_added_items: requests left out because they had items that the release lacks.
        features: the comparison by feature.

    """

    requests: int = 0
    items: int = 0
    values: int = 0
    differing: int = 0
    requests_differing: int = 0
    not_streamed_yet: int = 0
    row_missing: int = 0
    other_releases: int = 0
    with_added_items: int = 0
    features: dict[str, FeatureSkew] = field(default_factory=dict)

    def add(
        self,
        request_id: str,
        names: Sequence[str],
        differences: Float64Array,
        *,
        not_retrieved: int,
    ) -> None:
        """Count a request's items.

        Args:
            request_id: the request's id, stored as an example.
            names: the ``F`` features.
            differences: of the ``n`` items that were retrieved again, float64 ``[n, F]``.
            not_retrieved: items that were not retrieved; their features cannot be compared.

        """
        self.requests += 1
        items = len(differences) + not_retrieved
        self.items += items
        self.values += differences.size
        self.requests_differing += bool(differences.any() or not_retrieved)
        self._count(request_id, RETRIEVED, items, np.full(not_retrieved, np.inf))
        for name, values in zip(names, differences.T, strict=True):
            self._count(request_id, name, len(values), values[values > 0])

    def miss(self, request_id: str) -> None:
        """Count a request whose streamed row is in no offline table."""
        self.requests += 1
        self.requests_differing += 1
        self.row_missing += 1
        self._count(request_id, ROW_MISSING, 1, np.array([np.inf]))

    def _count(self, request_id: str, name: str, compared: int, differences: Float64Array) -> None:
        feature = self.features.setdefault(name, FeatureSkew())
        feature.compared += compared
        if len(differences):
            self.differing += len(differences)
            feature.differing += len(differences)
            feature.largest = max(feature.largest, float(differences.max()))
            feature.example = feature.example or request_id

    def worst(self) -> list[tuple[str, FeatureSkew]]:
        """Return the features that differ, most often first."""
        differing = [pair for pair in self.features.items() if pair[1].differing]
        return sorted(differing, key=lambda pair: -pair[1].differing)

    def figures(self) -> dict[str, Any]:
        """Return all counts, and by differing feature how often it differs."""
        return asdict(self) | {
            "features": {name: feature.differing for name, feature in self.worst()}
        }
