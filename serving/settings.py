"""How a server behaves, from environment variables that begin with ``FUNNEL_``."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class ServeSettings(BaseSettings):
    """Checked when the server starts.

    Attributes:
        deadline_ms: by when a recommendation should be answered; stages that would not end in time
            are left out.
        redis_timeout_ms: how long a request waits for the online store.
        under_way: recommendations that may wait in one process; more are refused (503).
        refresh_s: how often the server asks whether item counters were written anew.

    """

    model_config = SettingsConfigDict(env_prefix="FUNNEL_", frozen=True)

    deadline_ms: float = Field(default=50.0, gt=0)
    redis_timeout_ms: float = Field(default=20.0, gt=0)
    under_way: int = Field(default=16, ge=1)
    refresh_s: float = Field(default=1.0, gt=0)
