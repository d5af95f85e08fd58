"""What may be recommended: the rules of the release and the rules of a request."""

from __future__ import annotations

import json
import threading
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from feature_repo.arrays import BoolArray, Float32Array, Int32Array
from feature_repo.dataset import SpecError
from serving.recommender.candidates import ItemFilter
from serving.recommender.fallback import fillers
from serving.recommender.item_table import ItemTable

_SELECTIVE = 0.5
"""Share of the catalogue that rules must leave for the search to ignore them."""

_CACHE_BYTES = 32 << 20

_NO_ITEMS: Int32Array = np.zeros(0, dtype=np.int32)

Reason = Literal["seen", "unavailable", "blocklist", "excluded", "attribute_rule", "category_quota"]
"""Why an item was removed from a request's list."""


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
        unknown = rules.unknown_event_types(event_types)
        if unknown:
            raise SpecError(
                f"{path}: exclude_seen names {unknown}; the event types are {event_types}"
            )
        return rules

    def unknown_event_types(self, event_types: Sequence[str]) -> list[str]:
        """Return the event types that ``exclude_seen`` names and the data set does not have."""
        return [] if self.exclude_seen == "all" else sorted({*self.exclude_seen} - {*event_types})

    def seen_items(self, seen: Mapping[str, Int32Array]) -> Int32Array:
        """Return the codes of the items that are excluded as seen, int32 ``[n]``.

        ``seen``: codes of the items that the user has interacted with, by event type.
        """
        excluded = [
            codes
            for event_type, codes in seen.items()
            if self.exclude_seen == "all" or event_type in self.exclude_seen
        ]
        return np.concatenate(excluded) if excluded else _NO_ITEMS


class AttributeRule(BaseModel):
    """A condition on one attribute; several conditions must all hold."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    any_of: list[str] | None = Field(default=None, alias="in", max_length=1000)
    none_of: list[str] | None = Field(default=None, alias="not_in", max_length=1000)
    at_least: float | None = Field(default=None, alias="min", allow_inf_nan=False)
    at_most: float | None = Field(default=None, alias="max", allow_inf_nan=False)


class UnknownAttribute(ValueError):
    """A request's filter names an unknown attribute, or a condition that its kind does not have."""


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
        self._membership = _Membership(len(items))
        self._rule_masks = _Cache(len(items))
        self._prefilters = _Cache(len(items))

    def check(self, filters: dict[str, AttributeRule], items: ItemTable) -> None:
        """Raise ``UnknownAttribute`` if a request's filters cannot be applied to these items."""
        kinds = items.codec.filterable if filters else {}
        for name, rule in filters.items():
            kind = kinds.get(name)
            if kind is None:
                raise UnknownAttribute(
                    f"items have no attribute '{name}' to filter by; they have {sorted(kinds)}"
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
        *,
        seen: Mapping[str, Int32Array],
        time: float,
        codes: Int32Array | None = None,
    ) -> dict[Reason, BoolArray]:
        """Return, by reason, which items the request may not show.

        Args:
            items: the item table as of the request.
            request: what it asks for.
            seen: codes of the items that the user has interacted with, by event type.
            time: of the request, epoch seconds.
            codes: int32 ``[n]``, the items in question; None: all ``N``.

        Returns:
            masks, bool ``[n]`` or ``[N]``.

        """
        removed: dict[Reason, BoolArray] = {
            "unavailable": ~items.available(time, codes),
            "seen": self._membership.of(codes, self.rules.seen_items(seen)),
        }
        if self.rules.blocklist:
            removed["blocklist"] = self._blocked if codes is None else self._blocked[codes]
        if request.exclude:
            excluded = items.codec.items.encode(request.exclude)
            removed["excluded"] = self._membership.of(codes, excluded)
        if request.filters:
            fits = self._fits(items, request.filters)
            removed["attribute_rule"] = ~fits if codes is None else ~fits[codes]
        return removed

    def allowed(
        self,
        items: ItemTable,
        request: RequestRules,
        *,
        seen: Mapping[str, Int32Array],
        time: float,
        codes: Int32Array | None = None,
    ) -> BoolArray:
        """Return which items the request may show, bool ``[n]``; arguments as of ``removals``."""
        return allowed_by(self.removals(items, request, seen=seen, time=time, codes=codes))

    def fillers(
        self,
        items: ItemTable,
        request: RequestRules,
        *,
        seen: Mapping[str, Int32Array],
        time: float,
        listed: Int32Array = _NO_ITEMS,
    ) -> Int32Array:
        """Return allowed items that a list may be filled with, int32 ``[n]``.

        Of a large catalogue a bounded number is looked at, see ``fallback``.

        Args:
            items: the item table as of the request.
            request: what it asks for.
            seen: codes of the items that the user has interacted with, by event type.
            time: of the request, epoch seconds.
            listed: int32 ``[m]``, items that were considered already.

        """
        removable = request.k + len(request.exclude) + sum(map(len, seen.values())) + len(listed)
        codes = fillers(items, self.prefilter(items, request, time), time, removable)
        allowed = self.allowed(items, request, seen=seen, time=time, codes=codes)
        return codes[allowed & ~self._membership.of(codes, listed)]

    def prefilter(self, items: ItemTable, request: RequestRules, time: float) -> ItemFilter | None:
        """Return the items that the rules leave, for the vector search to stay within.

        None: the rules leave most items, so the search may ignore them. Seen and excluded items
        are few beside the catalogue and are removed after the search.
        """
        key = (items.availability_state(time), _cache_key(request.filters))
        if (cached := self._prefilters.get(items, key)) is not None:
            return cached[0]

        mask = items.available(time) & ~self._blocked
        if request.filters:
            mask &= self._fits(items, request.filters)

        prefilter = ItemFilter(mask) if mask.mean() < _SELECTIVE else None
        self._prefilters.put(items, key, (prefilter,))
        return prefilter

    def _fits(self, items: ItemTable, filters: dict[str, AttributeRule]) -> BoolArray:
        """Return which items satisfy all conditions."""
        masks = []
        for name, rule in filters.items():
            key = (name, rule.model_dump_json())
            mask = self._rule_masks.get(items, key)
            if mask is None:
                mask = self._satisfies(items, name, rule)
                self._rule_masks.put(items, key, mask)
            masks.append(mask)
        return np.logical_and.reduce(masks)

    def _satisfies(self, items: ItemTable, name: str, rule: AttributeRule) -> BoolArray:
        fits = np.ones(len(items), dtype=np.bool_)
        if items.codec.filterable[name] == "numeric":
            # Without a bound every item fits, also one that has no value.
            if rule.at_least is None and rule.at_most is None:
                return fits
            if name not in items.raw:
                return _between(items.count_or_nan(name), rule.at_least, rule.at_most)
            return items.raw[name].between(rule.at_least, rule.at_most)
        column = items.raw[name]
        if rule.any_of is not None:
            fits[:] = False
            for value in rule.any_of:
                fits[column.having(value)] = True
        for value in rule.none_of or ():
            fits[column.having(value)] = False
        return fits


def _between(values: Float32Array, least: float | None, most: float | None) -> BoolArray:
    """Return which values ``[N]`` are in a range, in their own precision; missing: none."""
    fits = ~np.isnan(values)
    if least is not None:
        fits &= values >= np.float32(least)
    if most is not None:
        fits &= values <= np.float32(most)
    return fits


def allowed_by(removals: Mapping[Reason, BoolArray]) -> BoolArray:
    """Return which items no reason removes, bool ``[n]``."""
    return ~np.logical_or.reduce(list(removals.values()))


def _cache_key(filters: dict[str, AttributeRule]) -> str:
    if not filters:
        return ""
    return json.dumps({name: rule.model_dump() for name, rule in filters.items()}, sort_keys=True)


class _Cache:
    """Results for the item table in use, bounded in memory: the oldest goes first."""

    def __init__(self, entry_bytes: int) -> None:
        """``entry_bytes``: largest size of an entry."""
        self._limit = max(4, _CACHE_BYTES // max(entry_bytes, 1))
        self._items: ItemTable | None = None
        self._entries: dict[Any, Any] = {}

    def get(self, items: ItemTable, key: Any) -> Any:
        return self._entries.get(key) if self._items is items else None

    def put(self, items: ItemTable, key: Any, value: Any) -> None:
        if self._items is not items:
            self._items = items
            self._entries = {}
        elif len(self._entries) >= self._limit:
            self._entries.pop(next(iter(self._entries)), None)
        self._entries[key] = value


class _Membership(threading.local):
    """Tests membership by a thread's scratch array with a flag for every item.

    The flags are all False between calls.
    """

    def __init__(self, size: int) -> None:
        self._flags = np.zeros(size, dtype=np.bool_)

    def of(self, codes: Int32Array | None, members: Int32Array) -> BoolArray:
        """Return which of ``codes`` ``[n]`` (None: of all items) are members; item 0 never is."""
        flags = self._flags
        flags[members] = True
        flags[0] = False
        result: BoolArray = flags.copy() if codes is None else flags[codes]
        flags[members] = False
        return result
