"""A value in Redis that is read again only when its version has changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import redis

T = TypeVar("T")


class VersionedValue(Generic[T]):
    """Polls one value, whose writers increase its version in the same step."""

    def __init__(self, client: redis.Redis, version_key: str, read: Callable[[], T]) -> None:
        """``read``: reads the value itself; it may raise ``RedisError``."""
        self._redis = client
        self._version_key = version_key
        self._read = read
        self._version: bytes | None = None

    def poll(self) -> T | None:
        """Return the value if it has changed since the last call; None: it has not.

        None also if Redis does not answer, or has no version: a Redis that was emptied takes
        nothing away until the next start.
        """
        try:
            version: bytes | None = self._redis.get(self._version_key)  # type: ignore[assignment]
            if version is None or version == self._version:
                return None
            value = self._read()
        except (redis.RedisError, OSError):
            return None
        self._version = version
        return value
