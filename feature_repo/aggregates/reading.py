"""Accepted events as aggregates see them; light for Spark's workers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from feature_repo import columns as c
from feature_repo.aggregates.definition import Occurrence, occurrence
from feature_repo.events.context import usable_context

if TYPE_CHECKING:
    from feature_repo.dataset import ContextKind, DatasetSpec


@dataclass(frozen=True)
class EventReader:
    """Reads the events of a data set.

    Attributes:
        weights: of the event types, by name in the spec's order.
        context: the fields of the context.

    """

    weights: Mapping[str, float]
    context: Mapping[str, ContextKind]

    @classmethod
    def of(cls, spec: DatasetSpec) -> EventReader:
        """Return the reader of a data set."""
        return cls({name: kind.weight for name, kind in spec.events.types.items()}, spec.context)

    @property
    def types(self) -> list[str]:
        """The event types in the spec's order."""
        return list(self.weights)

    def read(
        self,
        micros: int,
        event_id: str,
        type_: str,
        *,
        user: str,
        item: str,
        value: float | None,
        context: Any = None,
    ) -> Occurrence:
        """Return an event; what its context has of other fields or kinds counts as missing."""
        others: dict[str, Any] = {c.USER: user, c.ITEM: item}
        if self.context and context:
            others |= usable_context(context, self.context)
        weight = self.weights[type_]
        return occurrence(micros, event_id, type_, value=value, others=others, weight=weight)
