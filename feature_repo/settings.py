"""Settings: every environment variable that begins with ``FUNNEL_``, read and checked in one place.

A command reads them before it starts work or other processes. ``docs/operations.md`` lists them.
"""

from __future__ import annotations

import os
import re
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from feature_repo.errors import FunnelError

PREFIX = "FUNNEL_"

EVENT_LOG = re.compile(
    r"redis"
    r"|kafka://(?P<servers>[^/\s,]+:\d+(?:,[^/\s,]+:\d+)*)/(?P<topic>[A-Za-z0-9._-]{1,249})"
    r"|files:(?P<folder>/.*)"
)
"""How ``FUNNEL_EVENT_LOG`` is written."""

_ORIGIN = re.compile(r"https?://([a-z0-9.-]+|\[[0-9a-f:]+\])(:\d{1,5})?")
_HOST = re.compile(r"[a-z0-9._-]+|[0-9a-f:]+")
_PROJECT = r"^[A-Za-z0-9][A-Za-z0-9_]*$"
_MEMORY = r"^[1-9]\d*[kmgtKMGT]?$"


class SettingsError(FunnelError):
    """An environment variable has a value that is not allowed."""

    exit_code: ClassVar[int] = 2


class Settings(BaseSettings):
    """What the environment says; an empty variable counts as not set.

    The attribute ``deadline_ms`` is the variable ``FUNNEL_DEADLINE_MS``, and so on. Keyword
    arguments win over the environment.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, frozen=True)

    # Where data and services are
    home: Path | None = Field(None, description="working folder of every command")
    profile: Literal["local", "cluster"] = Field("local", description="`local` or `cluster`")
    redis: SecretStr | None = Field(
        None, description="Redis of the profile `cluster`: `host:port,password=...`"
    )
    registry: SecretStr | None = Field(
        None,
        description="database of Feast's registry in the profile `cluster`: "
        "`postgresql+psycopg://user:password@host/name`",
    )
    project: str = Field(
        "funnel",
        pattern=_PROJECT,
        description="Feast's project in that database: letters, digits and underscores",
    )
    event_log: str = Field(
        "redis",
        description="`redis`, `kafka://host:port[,host:port]/topic` or `files:/a/folder`",
    )
    log_max_events: int = Field(
        1_000_000, ge=1, description="maximum length of the event log in Redis"
    )

    # Training and streaming
    spark_master: str | None = Field(
        None, description="Spark master URL; required by the profile `cluster`"
    )
    spark_driver_memory: str = Field(
        "3g", pattern=_MEMORY, description="heap of Spark's driver, for example `3g` or `600m`"
    )
    threads: int | None = Field(
        None, ge=1, description="threads of a process for numeric work, at least 1"
    )

    # Serving
    deadline_ms: float = Field(
        50.0, gt=0, description="milliseconds in which a recommendation is answered"
    )
    redis_timeout_ms: float = Field(
        20.0, gt=0, description="milliseconds in which Redis answers a request's reads"
    )
    under_way: int = Field(
        16, ge=1, description="recommendations that may wait in a worker; more get a 503"
    )
    max_connections: int = Field(
        1_000, ge=1, description="open connections of a worker; more wait until others are closed"
    )
    impression_days: int = Field(
        90, ge=90, description="days after which impressions are removed, at least 90"
    )
    refresh_s: float = Field(1.0, gt=0, description="seconds between checks for new item counters")
    open: Literal["yes", "no"] = Field(
        "no", description="`yes`: listen on a network without API keys, behind a gateway of yours"
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="comma-separated origins of web pages that may call, as `https://host:port`"
    )
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="comma-separated host names beside localhost that a server without API keys "
        "answers to, for a gateway; `*`: any",
    )
    log: Literal["json", "text", "off"] | None = Field(
        None, description="access log: `json`, `text` or `off`"
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"] | None = Field(
        None, description="lowest log level: `debug`, `info`, `warning`, `error` or `critical`"
    )
    otel: bool | None = Field(None, description="traces by OpenTelemetry: `on` or `off`")
    metrics_dir: Path | None = Field(
        None, description="folder in which workers share metrics; the server sets it"
    )

    # Clients
    key: SecretStr | None = Field(None, description="API key that `funnel replay` sends")

    @field_validator("event_log")
    @classmethod
    def _event_log(cls, value: str) -> str:
        if not EVENT_LOG.fullmatch(value):
            raise ValueError("no event log has this address")
        return value

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _origins(cls, value: Any) -> Any:
        if isinstance(value, str):
            parts = (part.strip().lower() for part in value.split(","))  # as browsers send them
            value = tuple(part for part in parts if part)
        for origin in value:
            if not _ORIGIN.fullmatch(origin):
                raise ValueError(f"'{origin}' is not of the form https://host or https://host:port")
        return value

    @field_validator("allowed_hosts", mode="before")
    @classmethod
    def _hosts(cls, value: Any) -> Any:
        if isinstance(value, str):
            parts = (part.strip().lower() for part in value.split(","))
            value = tuple(part for part in parts if part)
        for host in value:
            if host != "*" and not _HOST.fullmatch(host):
                raise ValueError(f"'{host}' is not a host name without a port")
        return value

    @field_validator("log", mode="before")
    @classmethod
    def _lower(cls, value: Any) -> Any:
        return value.lower() if isinstance(value, str) else value

    @field_validator("log_level", mode="before")
    @classmethod
    def _upper(cls, value: Any) -> Any:
        return value.upper() if isinstance(value, str) else value


SECRETS = frozenset(
    name for name, field in Settings.model_fields.items() if "SecretStr" in str(field.annotation)
)
"""Settings whose values no message may repeat."""


def read_settings() -> Settings:
    """Return the settings of the environment as it is now.

    Raises:
        SettingsError: a variable has a value that is not allowed.

    """
    return _parse(tuple(pair for pair in os.environ.items() if pair[0].startswith(PREFIX)))


@lru_cache(maxsize=4)
def _parse(_environment: tuple[tuple[str, str], ...]) -> Settings:
    """Return the settings of an environment, parsed once as long as it does not change."""
    try:
        return Settings()
    except ValidationError as error:
        raise SettingsError("; ".join(map(_sentence, error.errors()))) from None


def _sentence(error: Any) -> str:
    """Return which variable is wrong, its value unless that is a secret, and what is allowed."""
    name = str(error["loc"][0])
    value = "" if name in SECRETS else f"={error['input']}"
    reason = str(error["msg"]).removeprefix("Value error, ")
    return f"{PREFIX}{name.upper()}{value}: {reason} ({Settings.model_fields[name].description})"
