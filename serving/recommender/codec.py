"""Between the outside, where ids are strings, and the inside of a release, where they are codes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from feature_repo import columns as c
from feature_repo.arrays import Float32Array
from feature_repo.dataset import AttributeKind, DatasetSpec
from feature_repo.encoding import AttributeEncoder, Vocabulary
from feature_repo.on_demand.view import OnDemandView, Owner
from feature_repo.request_time import OUTPUTS
from ranking.rows import CROSS, ITEM_AGES, REQUEST_TIME

ITEM_ACTIVITY = "item_activity"
"""The feature view of the built-in aggregates of items."""


class TowerFeature(NamedTuple):
    """A declared feature that a tower reads.

    Attributes:
        view: its feature view.
        name: its name.
        size: length of a vector; 1: a number.
        mean: of a number's signed log1p in training.
        spread: its deviation.

    """

    view: str
    name: str
    size: int = 1
    mean: float = 0.0
    spread: float = 1.0


class Category(NamedTuple):
    """A declared feature whose values the ranker reads as categories."""

    view: str
    name: str
    values: Vocabulary


@dataclass(frozen=True)
class Codec:
    """Every vocabulary of a release, and the order of the ranker's columns.

    ``user_counts`` and ``item_counts``: the built-in aggregates of events. ``declared_user`` and
    ``declared_item``: numeric features that a ``features.py`` gave the ranker, each with the view
    that it is of. ``on_demand``: what is computed in the request.
    ``vectors``: view, name and length of vectors of items. ``user_tower`` and ``item_tower``:
    declared features that the towers read. ``tower_views``: on-demand views of users and requests
    that the user tower reads. ``left_out``: columns that the ranker does not read.
    ``user_categories`` and ``item_categories``: declared features that are text.
    """

    spec: DatasetSpec
    users: Vocabulary
    items: Vocabulary
    categories: Vocabulary
    user_attributes: AttributeEncoder
    item_attributes: AttributeEncoder
    user_counts: tuple[str, ...] = ()
    item_counts: tuple[str, ...] = ()
    declared_user: tuple[tuple[str, str], ...] = ()
    declared_item: tuple[tuple[str, str], ...] = ()
    on_demand: tuple[OnDemandView, ...] = ()
    vectors: tuple[tuple[str, str, int], ...] = ()
    user_tower: tuple[TowerFeature, ...] = ()
    item_tower: tuple[TowerFeature, ...] = ()
    tower_views: tuple[OnDemandView, ...] = ()
    left_out: frozenset[str] = frozenset()
    user_categories: tuple[Category, ...] = ()
    item_categories: tuple[Category, ...] = ()

    def kept(self, names: Sequence[str]) -> slice | list[int]:
        """Return which of some columns the ranker reads, as an index; a slice copies nothing."""
        kept = [number for number, name in enumerate(names) if name not in self.left_out]
        return slice(None) if len(kept) == len(names) else kept

    def _read(self, names: Sequence[str]) -> tuple[str, ...]:
        return tuple(name for name in names if name not in self.left_out)

    @property
    def item_activity(self) -> tuple[str, ...]:
        """Built-in aggregates and declared features of an item, in column order."""
        return (*self.item_counts, *(name for _, name in self.declared_item))

    @property
    def built_in_activity(self) -> list[tuple[str, str]]:
        """View and name of the features of ``item_activity`` that every item table is made of."""
        names = (*self.item_counts, c.FIRST_EVENT_AT, c.LAST_EVENT_AT)
        return [(ITEM_ACTIVITY, name) for name in names]

    @property
    def user_numeric(self) -> tuple[str, ...]:
        """Numeric ranking features of a user, in column order."""
        return self._read(self.all_user_numeric)

    @property
    def all_user_numeric(self) -> tuple[str, ...]:
        """The same with those that the ranker does not read."""
        ages = tuple(name for name in OUTPUTS if name.startswith("user_"))
        return (
            *self.user_counts,
            *ages,
            c.HISTORY_LENGTH_FEATURE,
            c.HISTORY_GAP_FEATURE,
            *self.user_attributes.numeric,
            *(name for _, name in self.declared_user),
        )

    @property
    def all_item_numeric(self) -> tuple[str, ...]:
        """Numeric columns of an item, with those that the ranker does not read."""
        names = (*self.item_activity, *self.item_attributes.numeric)
        return tuple(f"item_{name}" for name in names)

    @property
    def all_pair_numeric(self) -> tuple[str, ...]:
        """Numeric columns of user and item together, with those that the ranker does not read."""
        return (*CROSS, *ITEM_AGES, *self.pair_features)

    @property
    def pair_width(self) -> int:
        """The number of the ranker's columns of user and item together."""
        return len(self._read(self.all_pair_numeric))

    @property
    def item_reads(self) -> tuple[tuple[str, str], ...]:
        """View and name of what is read of items beside the built-in features."""
        others = (*self.vectors, *self.item_categories)
        dated = (("item_profile", name) for name in self.spec.dated_item_attributes)
        return (*self.declared_item, *((view, name) for view, name, _ in others), *dated)

    @property
    def filterable(self) -> dict[str, AttributeKind]:
        """Kinds of what items can be filtered by: attributes but free text, declared numbers."""
        kinds = {n: kind for n, kind in self.spec.item_attributes.items() if kind != "text"}
        declared: dict[str, AttributeKind] = {name: "numeric" for _, name in self.declared_item}
        return kinds | declared

    @property
    def pair_features(self) -> tuple[str, ...]:
        """Declared features of a user and a candidate, in column order.

        They are the similarities by each vector, then what on-demand views compute.
        """
        of_vectors = (name for _, vector, _ in self.vectors for name in c.similarities(vector))
        return (*of_vectors, *self.on_demand_features)

    @property
    def on_demand_features(self) -> tuple[str, ...]:
        """Features of a user and a candidate that are computed in the request, in column order."""
        return tuple(name for view in self.on_demand for name in view.features)

    @property
    def user_reads(self) -> tuple[tuple[str, str], ...]:
        """View and name of what is read of users: declared features, and on-demand inputs."""
        computed = {view.name for view in self.tower_views}
        others = [(of.view, of.name) for of in self.user_tower if of.view not in computed]
        others += [
            (given.view, given.name)
            for view in self.tower_views
            for given in view.inputs
            if given.owner == "user"
        ]
        others += [(category.view, category.name) for category in self.user_categories]
        return tuple(dict.fromkeys([*self.declared_user, *others, *self._inputs("user")]))

    def item_tower_numbers(self, numbers: Float32Array) -> Float32Array:
        """Return the item tower's numeric inputs of items of which nothing declared is known.

        Args:
            numbers: numeric attributes as given, float32 ``[n, M]``.

        Returns:
            float32 ``[n, M + W]``: standardised, then 0 for each declared input.

        """
        width = sum(feature.size for feature in self.item_tower)
        unknown = np.zeros((len(numbers), width), dtype=np.float32)
        return np.concatenate([self.item_attributes.standardise(numbers), unknown], axis=1)

    @property
    def user_inputs(self) -> tuple[str, ...]:
        """Names of the values of a user and of a request that on-demand functions take."""
        inputs = [*self._inputs("user"), *self._inputs("request")]
        return tuple(dict.fromkeys(name for _, name in inputs))

    def _inputs(self, owner: Owner) -> list[tuple[str, str]]:
        inputs = (given for view in self.on_demand for given in view.inputs)
        return [(given.view, given.name) for given in inputs if given.owner == owner]

    @property
    def numeric(self) -> tuple[str, ...]:
        """Numeric columns of the ranker's rows."""
        names = (*self.all_pair_numeric, *self.all_user_numeric, *self.all_item_numeric)
        return self._read(names)

    @property
    def categorical(self) -> dict[str, int]:
        """Categorical columns of the ranker's rows and their cardinalities."""
        columns = self.all_user_categorical | self.all_item_categorical
        return {name: columns[name] for name in self._read(list(columns))}

    @property
    def all_user_categorical(self) -> dict[str, int]:
        """Categorical columns of a user, with those that the ranker does not read."""
        declared = {f"user_{name}": len(values) for _, name, values in self.user_categories}
        return REQUEST_TIME | _cardinalities("user", self.user_attributes) | declared

    @property
    def all_item_categorical(self) -> dict[str, int]:
        """Categorical columns of an item, with those that the ranker does not read."""
        declared = {f"item_{name}": len(values) for _, name, values in self.item_categories}
        return _cardinalities("item", self.item_attributes) | declared

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {
            "spec": self.spec.model_dump(mode="json", exclude={"features"}),
            "users": self.users.values,
            "items": self.items.values,
            "categories": self.categories.values,
            "user_attributes": self.user_attributes.to_dict(),
            "item_attributes": self.item_attributes.to_dict(),
            "user_counts": self.user_counts,
            "item_counts": self.item_counts,
            **({"declared_user": self.declared_user} if self.declared_user else {}),
            **({"declared_item": self.declared_item} if self.declared_item else {}),
            **_views("on_demand", self.on_demand),
            **({"vectors": self.vectors} if self.vectors else {}),
            **({"user_tower": self.user_tower} if self.user_tower else {}),
            **({"item_tower": self.item_tower} if self.item_tower else {}),
            **_views("tower_views", self.tower_views),
            **({"left_out": sorted(self.left_out)} if self.left_out else {}),
            **_categories("user_categories", self.user_categories),
            **_categories("item_categories", self.item_categories),
            # JSON objects have no order that survives every writer, and attribute codes hang on it.
            "order": {
                "types": self.spec.event_types,
                "user_attributes": list(self.user_attributes.kinds),
                "item_attributes": list(self.item_attributes.kinds),
            },
        }

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Codec:
        """Restore what ``to_dict`` gave."""
        order: dict[str, list[str]] = raw.get("order", {})
        spec = _ordered_spec(raw["spec"], order)
        return cls(
            spec,
            Vocabulary(raw["users"]),
            Vocabulary(raw["items"]),
            Vocabulary(raw["categories"]),
            _encoder(raw["user_attributes"], order.get("user_attributes", [])),
            _encoder(raw["item_attributes"], order.get("item_attributes", [])),
            *_counts(raw, spec),
            tuple((view, name) for view, name in raw.get("declared_user", ())),
            tuple((view, name) for view, name in raw.get("declared_item", ())),
            tuple(OnDemandView.from_dict(view) for view in raw.get("on_demand", ())),
            tuple((view, name, size) for view, name, size in raw.get("vectors", ())),
            tuple(TowerFeature(*feature) for feature in raw.get("user_tower", ())),
            tuple(TowerFeature(*feature) for feature in raw.get("item_tower", ())),
            tuple(OnDemandView.from_dict(view) for view in raw.get("tower_views", ())),
            frozenset(raw.get("left_out", ())),
            _read_categories(raw.get("user_categories", ())),
            _read_categories(raw.get("item_categories", ())),
        )


def _counts(raw: dict[str, Any], spec: DatasetSpec) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the built-in aggregates of users and items; old releases have those of today."""
    if "user_counts" not in raw:
        from feature_repo.declarations.built_in import counts_of

        return counts_of(spec)
    return tuple(raw["user_counts"]), tuple(raw["item_counts"])


def _ordered_spec(raw: dict[str, Any], order: dict[str, list[str]]) -> DatasetSpec:
    ordered = {
        **raw,
        "events": {
            **raw["events"],
            "types": _in_order(raw["events"]["types"], order.get("types", [])),
        },
    }
    for table in ("users", "items"):
        if raw.get(table):
            names = order.get(f"{table.removesuffix('s')}_attributes", [])
            ordered[table] = {
                **raw[table],
                "attributes": _in_order(raw[table]["attributes"], names),
            }
    return DatasetSpec.model_validate(ordered)


def _encoder(raw: dict[str, Any], order: list[str]) -> AttributeEncoder:
    return AttributeEncoder.from_dict({**raw, "kinds": _in_order(raw["kinds"], order)})


def _in_order(values: dict[str, Any], names: list[str]) -> dict[str, Any]:
    return {name: values[name] for name in names} | values


def _views(name: str, views: Sequence[OnDemandView]) -> dict[str, Any]:
    return {name: [view.to_dict() for view in views]} if views else {}


def _categories(name: str, categories: Sequence[Category]) -> dict[str, Any]:
    return {name: [[view, of, list(v.values)] for view, of, v in categories]} if categories else {}


def _read_categories(raw: Sequence[Any]) -> tuple[Category, ...]:
    return tuple(Category(view, name, Vocabulary(values)) for view, name, values in raw)


def _cardinalities(owner: str, encoder: AttributeEncoder) -> dict[str, int]:
    return {f"{owner}_{name}": len(encoder.vocabularies[name]) for name in ranked(encoder)}


def ranked(encoder: AttributeEncoder) -> list[str]:
    """Return the attributes whose first code the ranker sees: all coded ones but free text."""
    return [name for name in encoder.coded if encoder.kinds[name] != "text"]


def ranked_columns(encoder: AttributeEncoder) -> list[int]:
    """Return which columns of ``Encoded.first`` the ranker sees."""
    return [encoder.coded.index(name) for name in ranked(encoder)]
