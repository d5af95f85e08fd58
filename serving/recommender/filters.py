"""What may be recommended: rules of the release, rules of the request, and how the final list is chosen."""

from __future__ import annotations

import json
import threading
import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from feature_repo.arrays import BoolArray, Float32Array, Int32Array
from feature_repo.dataset import SpecError
from serving.recommender.candidates import ItemFilter
from serving.recommender.item_table import ItemTable

Reason = Literal["seen", "unavailable", "blocklist", "excluded", "attribute_rule", "category_quota"]


class FilterRules(BaseModel):
    """``filters.toml``: the rules that hold for every request of a release."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    exclude_seen: Literal["all"] | list[str] = "all"
    blocklist: list[str] = []
    max_per_category: int | None = Field(default=None, ge=1)
    diversity: float = Field(default=0.0, ge=0.0, lt=1.0)

    @classmethod
    def load(cls, path: Path, event_types: list[str]) -> FilterRules:
        """Read and check a rules file.

        Raises:
            SpecError: not TOML, a field that does not exist or has a wrong value, an unknown event
                type.

        """
        try:
            rules = cls.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
        except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise SpecError(f"{path}: cannot be read as TOML: {error}") from None
        except ValidationError as error:
            problems = [f"{'.'.join(map(str, p['loc']))}: {p['msg']}" for p in error.errors()]
            raise SpecError(f"{path}: {'; '.join(problems)}") from None
        unknown = (
            set(rules.exclude_seen) - set(event_types) if rules.exclude_seen != "all" else set()
        )
        if unknown:
            raise SpecError(
                f"{path}: exclude_seen names {sorted(unknown)}; the event types are {event_types}"
            )
        return rules


_SELECTIVE = 0.5
"""Where rules leave less than this share of the catalogue, the search stays within what they leave."""

_KEPT_BYTES = 32 << 20

_NOWHERE: Int32Array = np.zeros(0, dtype=np.int32)


class AttributeRule(BaseModel):
    """A condition on one attribute; several conditions must all hold."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    any_of: list[str] | None = Field(default=None, alias="in", max_length=1000)
    none_of: list[str] | None = Field(default=None, alias="not_in", max_length=1000)
    at_least: float | None = Field(default=None, alias="min")
    at_most: float | None = Field(default=None, alias="max")


class UnknownAttribute(ValueError):
    """A request's filter names an attribute that items do not have, or asks of it what it cannot tell."""


@dataclass(frozen=True)
class RequestRules:
    """What one request asks for."""

    k: int
    exclude: tuple[str, ...] = ()
    filters: dict[str, AttributeRule] = field(default_factory=dict)


class Filters:
    """The rules of a release over its item table."""

    def __init__(self, rules: FilterRules, items: ItemTable) -> None:
        self.rules = rules
        self._blocked = np.zeros(len(items), dtype=np.bool_)
        self._blocked[items.codec.items.encode(rules.blocklist)] = True
        self._blocked[0] = False
        self._marks = _Marks(len(items))
        self._rules = _Kept(len(items))
        self._prefilters = _Kept(len(items))

    def check(self, filters: dict[str, AttributeRule], items: ItemTable) -> None:
        """Raise ``UnknownAttribute`` if a request's filters cannot be applied to these items."""
        kinds = items.codec.spec.item_attributes
        for name, rule in filters.items():
            kind = kinds.get(name)
            if kind is None or kind == "text":
                usable = sorted(n for n, k in kinds.items() if k != "text")
                raise UnknownAttribute(
                    f"items have no attribute '{name}' to filter by; they have {usable}"
                )
            by_range = rule.at_least is not None or rule.at_most is not None
            by_value = rule.any_of is not None or rule.none_of is not None
            if (by_range and kind != "numeric") or (by_value and kind == "numeric"):
                raise UnknownAttribute(
                    f"'{name}' is {kind}: use {'min/max' if kind == 'numeric' else 'in/not_in'}"
                )

    def removals(
        self,
        items: ItemTable,
        request: RequestRules,
        seen: dict[str, Int32Array],
        time: float,
        codes: Int32Array | None = None,
    ) -> dict[Reason, BoolArray]:
        """Return, by reason, which items the request may not show: of ``codes`` ``[n]``, or of all ``N``; bool."""
        met = [
            of
            for kind, of in seen.items()
            if self.rules.exclude_seen == "all" or kind in self.rules.exclude_seen
        ]
        masks: dict[Reason, BoolArray] = {
            "unavailable": ~items.available(time, codes),
            "seen": self._marks.among(np.concatenate(met) if met else _NOWHERE, codes),
        }
        if self.rules.blocklist:
            masks["blocklist"] = self._blocked if codes is None else self._blocked[codes]
        if request.exclude:
            masks["excluded"] = self._marks.among(items.codec.items.encode(request.exclude), codes)
        if request.filters:
            fits = self._fits(items, request.filters)
            masks["attribute_rule"] = ~fits if codes is None else ~fits[codes]
        return masks

    def prefilter(self, items: ItemTable, request: RequestRules, time: float) -> ItemFilter | None:
        """Return the items that rules leave, for the search to look only there; None where most are left.

        What a user has seen and excludes is little beside the catalogue: the search may find it.
        """
        state = items.availability_state(time)
        rules = _spelled(request.filters)
        if (known := self._prefilters.get(items, (state, rules))) is not None:
            return known[0]
        mask = items.available(time) & ~self._blocked
        if request.filters:
            mask &= self._fits(items, request.filters)
        found = ItemFilter(mask) if mask.mean() < _SELECTIVE else None
        self._prefilters.put(items, (state, rules), (found,))
        return found

    def _fits(self, items: ItemTable, filters: dict[str, AttributeRule]) -> BoolArray:
        """Return which items satisfy all conditions."""
        masks = []
        for name, rule in filters.items():
            key = (name, rule.model_dump_json())
            mask = self._rules.get(items, key)
            if mask is None:
                mask = self._satisfies(items, name, rule)
                self._rules.put(items, key, mask)
            masks.append(mask)
        return np.logical_and.reduce(masks)

    def _satisfies(self, items: ItemTable, name: str, rule: AttributeRule) -> BoolArray:
        column = items.raw[name]
        if items.codec.spec.item_attributes[name] == "numeric":
            # Without a bound every item fits, also one that has no value.
            bounded = rule.at_least is not None or rule.at_most is not None
            return (
                column.between(rule.at_least, rule.at_most)
                if bounded
                else np.ones(len(items), dtype=np.bool_)
            )
        fits = np.ones(len(items), dtype=np.bool_)
        if rule.any_of is not None:
            fits[:] = False
            for value in rule.any_of:
                fits[column.having(value)] = True
        for value in rule.none_of or ():
            fits[column.having(value)] = False
        return fits


class _Kept:
    """What was worked out for the item table in use, bounded in memory: the oldest goes first."""

    def __init__(self, size: int) -> None:
        """``size``: bytes that an entry takes at most."""
        self._most = max(4, _KEPT_BYTES // max(size, 1))
        self._items: ItemTable | None = None
        self._known: dict[Any, Any] = {}

    def get(self, items: ItemTable, key: Any) -> Any:
        return self._known.get(key) if self._items is items else None

    def put(self, items: ItemTable, key: Any, value: Any) -> None:
        if self._items is not items:
            self._items, self._known = items, {}
        elif len(self._known) >= self._most:
            self._known.pop(next(iter(self._known)), None)
        self._known[key] = value


def _spelled(filters: dict[str, AttributeRule]) -> str:
    if not filters:
        return ""
    return json.dumps({name: rule.model_dump() for name, rule in filters.items()}, sort_keys=True)


class _Marks(threading.local):
    """A thread's scratch array with a place for every item, all False between requests."""

    def __init__(self, size: int) -> None:
        self.marked = np.zeros(size, dtype=np.bool_)

    def among(self, some: Int32Array, codes: Int32Array | None) -> BoolArray:
        """Return which of ``codes`` ``[n]``, or of all items, are among some; item 0 never is."""
        marked = self.marked
        marked[some] = True
        marked[0] = False
        found: BoolArray = marked.copy() if codes is None else marked[codes]
        marked[some] = False
        return found


def select_items(
    k: int,
    codes: Int32Array,
    scores: Float32Array,
    items: ItemTable,
    vectors: Float32Array,
    rules: FilterRules,
    taken: Counter[int] | None = None,
) -> tuple[list[int], int]:
    """Choose the final list from allowed items.

    Args:
        k: how many.
        codes: int32 ``[n]`` allowed items, best first.
        scores: float32 ``[n]``.
        items: the item table.
        vectors: unit item vectors ``[N, D]``.
        rules: quota and diversity.
        taken: how many of each category are chosen already; updated.

    Returns:
        places in ``codes`` of the chosen items, in their final order, and how many the quota passed
        over.

    With ``diversity`` d > 0 each choice maximises (1 - d) x score (scaled to 0..1) - d x the
    highest
    cosine to what is chosen: maximal marginal relevance (Carbonell and Goldstein, SIGIR 1998).

    """
    if rules.diversity == 0.0 and rules.max_per_category is None:
        return list(range(min(k, len(codes)))), 0
    if k == 0 or not len(codes):
        return [], 0
    taken = Counter() if taken is None else taken
    chosen: list[int] = []
    over_quota = 0
    order = (
        _most_diverse(codes, scores, vectors, rules.diversity, chosen)
        if rules.diversity
        else range(len(codes))
    )
    for place in order:
        category = int(items.categories[codes[place], 0])
        if (
            rules.max_per_category is not None
            and category
            and taken[category] >= rules.max_per_category
        ):
            over_quota += 1
            continue
        taken[category] += 1
        chosen.append(place)
        if len(chosen) == k:
            break
    return chosen, over_quota


def _most_diverse(
    codes: Int32Array,
    scores: Float32Array,
    vectors: Float32Array,
    diversity: float,
    chosen: list[int],
) -> Iterator[int]:
    """Yield places of ``codes``, each the best beside what the caller has put into ``chosen`` by then."""
    spread = float(scores.max() - scores.min()) or 1.0
    gain = (1.0 - diversity) * (scores - scores.min()) / spread
    mine, nearest, counted = vectors[codes], None, 0
    open_ = np.ones(len(codes), dtype=np.bool_)
    for _ in range(len(codes)):
        if len(chosen) > counted:
            cosine = mine @ mine[chosen[-1]]
            nearest = cosine if nearest is None else np.maximum(nearest, cosine)
            counted = len(chosen)
        value = gain if nearest is None else gain - diversity * nearest
        place = int(np.where(open_, value, -np.inf).argmax())
        open_[place] = False
        yield place
