"""What each function of an aggregate keeps of events, and the value that follows.

A *part* is what is kept of the events of a pane: a few JSON values. Parts are merged in any order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b
from typing import Any, Literal, NamedTuple

from feature_repo.units import MICROS

Name = Literal[
    "count", "sum", "mean", "min", "max", "last",
    "count_distinct", "last_distinct", "last_distinct_times", "top", "top_shares", "trend",
]  # fmt: skip
"""The functions."""

Part = list[Any]
"""What is kept of the events of a pane."""

Value = float | int | str | list[Any] | None
"""The value of a feature; None: it is missing."""

EXACT = 512
"""Distinct values that are counted exactly; of more, the number is estimated, within 9% in 95
cases of 100."""

_HASH_BITS = 56


class Function(NamedTuple):
    """One function.

    Attributes:
        part: returns what is kept of an event: its time in microseconds, its id, the value of the
            aggregate's column, and the event's weight in millionths.
        merge: returns what is kept of the events of two parts, at most ``limit`` values.
        value: returns the value of some parts, of at most ``limit`` values.

    """

    part: Callable[[int, str, Any, int], Part]
    merge: Callable[[Part, Part, int], Part]
    value: Callable[[Sequence[Part], int], Value]


def _add(part: Part, other: Part, _limit: int) -> Part:
    return [mine + theirs for mine, theirs in zip(part, other, strict=True)]


def _total(parts: Sequence[Part]) -> int:
    """Return the sum of the first value of each part."""
    return sum([part[0] for part in parts])


def _mean(parts: Sequence[Part], _limit: int) -> float | None:
    count = sum([part[1] for part in parts])
    return _total(parts) / (count * MICROS) if count else None


def _chosen(choose: Callable[..., Part]) -> Function:
    """Return a function that keeps the least or greatest part, which ends in a value."""
    return Function(
        lambda _micros, _id, value, _weight: [value],
        lambda part, other, _limit: choose(part, other),
        lambda parts, _limit: choose(parts)[-1] if parts else None,
    )


def hashed(value: Any) -> int:
    """Return a hash of a distinct value, 56 bits."""
    return int.from_bytes(blake2b(str(value).encode(), digest_size=_HASH_BITS // 8).digest())


def distinct(hashes: Iterable[int]) -> int:
    """Return the number of distinct hashes, exact up to ``EXACT``.

    Beyond, it is estimated from the least ones: k of them lie as densely as all do
    (Bar-Yossef et al., Counting distinct elements in a data stream, 2002).
    """
    least = sorted(set(hashes))[:EXACT]
    if len(least) < EXACT:
        return len(least)
    return round((EXACT - 1) * 2**_HASH_BITS / least[-1])


def _distinct_of(parts: Sequence[Part], _limit: int) -> int:
    return distinct(one for part in parts for one in part)


def newest(entries: Iterable[Part], limit: int) -> list[Part]:
    """Return the newest entry (time, id, value) of each value, at most ``limit``, newest last."""
    latest: dict[Any, Part] = {}
    for entry in sorted(entries):
        latest.pop(entry[2], None)  # so that it goes to the end
        latest[entry[2]] = entry
    return list(latest.values())[-limit:]


def _newest_of(parts: Sequence[Part], limit: int) -> list[Part]:
    return newest((entry for part in parts for entry in part), limit)


def ranked(weights: dict[Any, int], limit: int) -> list[tuple[Any, int]]:
    """Return the values of the greatest weights, greatest first, those of equal weight by name."""
    return sorted(weights.items(), key=lambda pair: (-pair[1], pair[0]))[:limit]


def _weights(parts: Sequence[Part]) -> dict[Any, int]:
    weights: dict[Any, int] = {}
    for part in parts:
        for name, weight in part:
            weights[name] = weights.get(name, 0) + weight
    return weights


def _weighed(part: Part, other: Part, _limit: int) -> Part:
    return sorted([name, weight] for name, weight in _weights((part, other)).items())


def _top_shares(parts: Sequence[Part], limit: int) -> list[float]:
    weights = _weights(parts)
    total = sum(weights.values())
    return [weight / total for _, weight in ranked(weights, limit)]


def _names_of(_micros: int, _id: str, value: Any, weight: int) -> Part:
    """Return the values of a column of one or several, each with the event's weight."""
    names = dict.fromkeys(value) if isinstance(value, list | tuple) else (value,)
    return sorted([name, weight] for name in names if name)


def trend_of(recent: float, whole: float, panes: int) -> float:
    """Return the log of the event rate in the newest quarter of a window over that in all of it.

    A tenth of an event a pane more in both keeps the trend of few events near zero.

    Args:
        recent: events in the newest quarter.
        whole: events in the window.
        panes: number of the window's panes.

    """
    return math.log((recent / (panes // 4) + 0.1) / (whole / panes + 0.1))


_COUNT = Function(lambda *_: [1], _add, lambda parts, _limit: _total(parts))
_NEWEST = Function(
    lambda micros, event_id, value, _weight: [[micros, event_id, value]],
    lambda part, other, limit: newest([*part, *other], limit),
    lambda parts, limit: [entry[2] for entry in _newest_of(parts, limit)],
)
_TOP = Function(
    _names_of, _weighed, lambda parts, limit: [n for n, _ in ranked(_weights(parts), limit)]
)

FUNCTIONS: dict[Name, Function] = {
    "count": _COUNT,
    "trend": _COUNT,
    "sum": Function(
        lambda _micros, _id, value, _weight: [value], _add, lambda parts, _: _total(parts)
    ),
    "mean": Function(lambda _micros, _id, value, _weight: [value, 1], _add, _mean),
    "min": _chosen(min),
    "max": _chosen(max),
    "last": _chosen(max)._replace(
        part=lambda micros, event_id, value, _: [micros, event_id, value]
    ),
    "count_distinct": Function(
        lambda _micros, _id, value, _weight: [hashed(value)],
        lambda part, other, _limit: sorted({*part, *other})[:EXACT],
        _distinct_of,
    ),
    "last_distinct": _NEWEST,
    "last_distinct_times": _NEWEST._replace(
        value=lambda parts, limit: [entry[0] // MICROS for entry in _newest_of(parts, limit)]
    ),
    "top": _TOP,
    "top_shares": _TOP._replace(value=_top_shares),
}
"""All functions by name. ``sum``, ``min``, ``max`` and ``last`` return what their column has."""
