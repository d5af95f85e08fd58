"""Feast's registry: a file of the working folder, or a database in the profile ``cluster``."""

from __future__ import annotations

from typing import Any

from sqlalchemy import NullPool, create_engine, inspect, select
from sqlalchemy.exc import SQLAlchemyError

from feature_repo.errors import FunnelError
from feature_repo.settings import read_settings
from feature_repo.workspace import Workspace


class RegistryUnavailable(FunnelError):
    """The database of ``FUNNEL_REGISTRY`` cannot be used; the message does not repeat its URL."""


def registry_url() -> str | None:
    """Return the database of Feast's registry; None: it is a file."""
    settings = read_settings()
    if settings.profile == "local" or settings.registry is None:
        return None
    return settings.registry.get_secret_value()


def registry_config(workspace: Workspace) -> dict[str, Any]:
    """Return what a working folder and the environment say of Feast's registry."""
    url = registry_url()
    if url is None:
        workspace.feast_registry.parent.mkdir(parents=True, exist_ok=True)
        return {"path": str(workspace.feast_registry)}
    # No pool: the server forks, and two processes must not talk on one connection.
    return {"path": url, "sqlalchemy_config_kwargs": {"poolclass": NullPool}}


def registry_state(workspace: Workspace) -> object:
    """Return a value that changes when features are registered; None: none are.

    Feast itself would make an empty registry where there is none.

    Raises:
        RegistryUnavailable: the database does not answer.

    """
    url = registry_url()
    if url is None:
        try:
            status = workspace.feast_registry.lstat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_ino
    try:
        return _state_of_database(url)
    except (SQLAlchemyError, ImportError) as error:
        reason = getattr(error, "orig", None) or error
        raise RegistryUnavailable(
            f"Feast's registry in FUNNEL_REGISTRY cannot be read: {' '.join(str(reason).split())}"
        ) from None


def _state_of_database(url: str) -> object:
    """Return the registered feature services, which name all features; None: there are none."""
    from feast.infra.registry.sql import feature_services as table

    engine = create_engine(url, poolclass=NullPool)
    if not inspect(engine).has_table(table.name):
        return None
    columns = (table.c.feature_service_name, table.c.feature_service_proto)
    project = table.c.project_id == read_settings().project
    with engine.connect() as connection:
        rows = connection.execute(select(*columns).where(project).order_by(columns[0])).all()
    return tuple(map(tuple, rows)) or None
