"""What every declared view must fulfil, and the error of one that does not."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from feast import Entity, FeatureView
from feast.types import Array, Bool, Float32, Float64, Int32, Int64

from feature_repo import columns as c
from feature_repo.aggregates.definition import AggregateView
from feature_repo.declare import item, user
from feature_repo.errors import FunnelError

NUMERIC = {Bool, Float32, Float64, Int32, Int64}
"""Types of features that are numbers."""

VECTORS = {Array(Float32), Array(Float64)}
"""Types of features that are vectors."""

ENTITIES = {entity.name: entity for entity in (user, item)}
"""The entities that features are declared of, by name."""

NAME = re.compile(r"[a-z][a-z0-9_]{0,59}")
NAME_RULE = "a name has small letters, digits and '_', and begins with a letter"


class BadDefinition(FunnelError):
    """A ``features.py`` cannot be used; the message says where and why."""

    exit_code = 2


@dataclass(frozen=True)
class DeclaredView:
    """A view that a ``features.py`` declares, checked.

    Attributes:
        key: the column of its entity.
        numeric: the features that are numbers, which a ranker can read.
        registered: the view as it is registered with Feast.
        aggregates: what is computed from events; None: it is a table of the user's own.
        vectors: the features of items that are vectors, each with its length.
        categorical: the features that are text, which a ranker can read as categories.

    """

    key: str
    numeric: tuple[str, ...]
    registered: FeatureView
    aggregates: AggregateView | None = None
    vectors: Mapping[str, int] = field(default_factory=dict)
    categorical: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name of the view."""
        return str(self.registered.name)

    @property
    def names(self) -> list[str]:
        """The names that no other view may have.

        Its own, those of all its columns, and those that the ranker's rows have for them.
        """
        columns = [field.name for field in self.registered.features]
        in_rows = [f"item_{name}" for name in columns] if self.key == c.ITEM else []
        in_rows += [f"user_{name}" for name in self.categorical if self.key == c.USER]
        in_rows += [of_item for name in self.vectors for of_item in c.similarities(name)]
        return [self.name, *columns, *in_rows]


def entity_of(view: FeatureView) -> Entity:
    """Return the entity of a view.

    Raises:
        ValueError: it has none, several, or one that events do not have, or a bad name.

    """
    if not NAME.fullmatch(view.name):
        raise ValueError(NAME_RULE)
    if len(view.entities) != 1 or view.entities[0] not in ENTITIES:
        raise ValueError(f"its entity is one of {sorted(ENTITIES)}, not {view.entities}")
    return ENTITIES[view.entities[0]]


@contextmanager
def without_experimental_warnings() -> Iterator[None]:
    """Silence Feast's warning that stream feature views are experimental."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        yield
