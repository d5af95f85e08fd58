"""Feast's Redis online store on the embedded server, which it starts when it is not running."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import redis
from feast.infra.online_stores.redis import RedisOnlineStore, RedisOnlineStoreConfig

from feature_repo.embedded_redis import connect
from feature_repo.workspace import default_root


class EmbeddedRedisOnlineStoreConfig(RedisOnlineStoreConfig):
    """``folder`` holds the server's data; by default ``redis`` in the working folder in use."""

    type: Literal["feature_repo.online_store.EmbeddedRedisOnlineStore"] = (  # type: ignore[assignment]
        "feature_repo.online_store.EmbeddedRedisOnlineStore"
    )
    folder: str | None = None
    timeout_s: float = 5.0


class EmbeddedRedisOnlineStore(RedisOnlineStore):
    """The stock Redis store; only the way to the server differs."""

    _client: redis.Redis | None = None

    def _get_client(self, online_store_config: EmbeddedRedisOnlineStoreConfig) -> redis.Redis:
        if not self._client:
            folder = Path(online_store_config.folder or default_root() / "redis")
            self._client = connect(folder, online_store_config.timeout_s)
        return self._client
