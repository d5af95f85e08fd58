"""The Feast store of a working folder, from the same YAML that Feast's own command line reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import redis
import yaml
from feast import FeatureStore, FeatureView
from feast.repo_config import RepoConfig
from redis.backoff import NoBackoff
from redis.retry import Retry

from feature_repo.declarations.feast_objects import build
from feature_repo.declarations.views import Profile
from feature_repo.settings import SettingsError, read_settings
from feature_repo.stores.embedded_redis import connect, ensure_running
from feature_repo.stores.redis_settings import RedisSettings
from feature_repo.stores.registry import registry_config, registry_url
from feature_repo.workspace import Workspace

_CONNECT_S = 2.0
_HERE = Path(__file__).parent.parent
_FILES: dict[Profile, str] = {
    "local": "feature_store.yaml",
    "cluster": "feature_store.cluster.yaml",
}
_REGISTRY_IN_SQL = "feature_store.cluster-sql.yaml"


def profile() -> Profile:
    """Return the profile in use: ``FUNNEL_PROFILE``, by default ``local``."""
    return read_settings().profile


def feature_store(workspace: Workspace, timeout_s: float = 5.0) -> FeatureStore:
    """Return the store of a working folder; ``timeout_s`` is the limit of a Redis call.

    Raises:
        BadRedisSettings: the cluster profile without a ``FUNNEL_REDIS`` that can be read.
        SettingsError: the cluster profile without ``FUNNEL_SPARK_MASTER``.

    """
    chosen = profile()
    file = _REGISTRY_IN_SQL if registry_url() else _FILES[chosen]
    config: dict[str, Any] = yaml.safe_load((_HERE / file).read_text(encoding="utf-8"))
    config["registry"] |= registry_config(workspace)
    config["online_store"]["home"] = str(workspace.root.resolve())
    if chosen == "local":
        config["online_store"]["timeout_s"] = timeout_s
    else:
        # Set here, not expanded in the file's text: no password can then break the YAML or show up
        # in its error.
        config["online_store"]["connection_string"] = (
            RedisSettings.from_environment().connection_string(timeout_s)
        )
        config["offline_store"]["spark_conf"]["spark.master"] = _spark_master()
    if registry_url():
        config["project"] = read_settings().project
    return FeatureStore(config=RepoConfig(repo_path=_HERE, **config))


def _spark_master() -> str:
    master = read_settings().spark_master
    if master is None:
        raise SettingsError("FUNNEL_PROFILE=cluster needs FUNNEL_SPARK_MASTER in the environment")
    return master


def redis_client(workspace: Workspace, timeout_s: float = 5.0) -> redis.Redis:
    """Return a client of the Redis that the profile's online store uses.

    Raises:
        BadRedisSettings: the cluster profile without a ``FUNNEL_REDIS`` that can be read.

    """
    if profile() == "local":
        return connect(workspace.redis, timeout_s)
    return redis.Redis.from_url(
        redis_url(workspace),
        socket_timeout=timeout_s,
        socket_connect_timeout=min(timeout_s, _CONNECT_S),
        retry=Retry(NoBackoff(), 1),  # the client's own retries wait for seconds in between
    )


def redis_url(workspace: Workspace) -> str:
    """Return the URL of that Redis for other processes; the embedded server is started if needed.

    The cluster profile's URL contains the password: never log it.

    Raises:
        BadRedisSettings: the cluster profile without a ``FUNNEL_REDIS`` that can be read.

    """
    if profile() == "local":
        return f"unix://{ensure_running(workspace.redis)}"
    return RedisSettings.from_environment().url()


def _forget_other_kinds(store: FeatureStore, objects: list[Any]) -> None:
    """Take views out of the registry that are declared as another kind now.

    Feast would refuse the new one: earlier versions registered daily aggregates as plain views.
    """
    kinds = {view.name: type(view) for view in objects if isinstance(view, FeatureView)}
    registered = (*store.list_feature_views(), *store.list_stream_feature_views())
    for view in registered:
        if kinds.get(view.name, type(view)) is not type(view):
            store.registry.delete_feature_view(view.name, store.project)


def apply(store: FeatureStore, workspace: Workspace) -> list[str]:
    """Register the views of the ingested data set, as ``feast apply`` does.

    Views that are declared no more stay registered, since a release may read them; on-demand views
    do not, since a release has their functions.

    Returns:
        the names of the views that are declared and have an online store.

    """
    # The features link is resolved by whoever reads it, so that a new run needs no new apply.
    objects = build(
        workspace.spec(),
        workspace.root.resolve() / "features" / "current",
        profile(),
        workspace.declarations,
    )
    names = {declared.name for declared in objects}
    gone = [view for view in store.list_on_demand_feature_views() if view.name not in names]
    _forget_other_kinds(store, objects)
    store.apply(objects, objects_to_delete=gone, partial=not gone)
    return [view.name for view in objects if isinstance(view, FeatureView) and view.online]
