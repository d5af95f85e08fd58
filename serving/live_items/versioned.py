"""A value in Redis that is read again only when its version has changed.

A version that is missing begins with the time, so that no version comes twice, also after Redis
was emptied.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import redis

T = TypeVar("T")

LUA_VERSION = """
local function next_version(key)
  if redis.call('EXISTS', key) == 0 then
    local now = redis.call('TIME')
    redis.call('SET', key, now[1] .. string.format('%06d', now[2]))
  end
  redis.call('INCR', key)
end
"""
"""What scripts that change such a value begin with."""


class VersionedValue(Generic[T]):
    """Polls one value, whose writers increase its version in the same step."""

    def __init__(self, client: redis.Redis, version_key: str, read: Callable[[], T]) -> None:
        """``read``: reads the value itself; it may raise ``RedisError``."""
        self._redis = client
        self._version_key = version_key
        self._read = read
        self._version: bytes | None = None

        self.missing = False
        """Whether Redis had no version when last asked: nothing was written, or all is lost."""

    def check(self) -> None:
        """Set ``missing``.

        Raises:
            redis.RedisError: Redis did not answer.

        """
        self.missing = not self._redis.exists(self._version_key)

    def poll(self) -> T | None:
        """Return the value if it has changed since the last call; None: it has not.

        None also if Redis does not answer, or has no version: a Redis that was emptied takes
        nothing away until the next start.
        """
        try:
            version: bytes | None = self._redis.get(self._version_key)  # type: ignore[assignment]
            self.missing = version is None
            if version is None or version == self._version:
                return None
            value = self._read()
        except (redis.RedisError, OSError):
            return None
        self._version = version
        return value
