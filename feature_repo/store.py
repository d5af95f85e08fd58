"""The Feast store of a working folder, from the same YAML that Feast's own command line reads."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml
from feast import FeatureStore
from feast.repo_config import RepoConfig

from feature_repo.views import Profile, build
from feature_repo.workspace import Workspace

_HERE = Path(__file__).parent
_FILES: dict[Profile, str] = {"local": "feature_store.yaml", "cluster": "feature_store.cluster.yaml"}


def profile() -> Profile:
    """Return the profile in use: ``FUNNEL_PROFILE``, by default ``local``.

    Raises:
        ValueError: the variable names no profile.

    """
    name = os.environ.get("FUNNEL_PROFILE", "local")
    if name not in _FILES:
        raise ValueError(f"FUNNEL_PROFILE={name}: choose 'local' or 'cluster'")
    return name  # type: ignore[return-value]


def feature_store(workspace: Workspace) -> FeatureStore:
    """Return the store whose registry and Redis data lie in ``workspace``.

    Raises:
        ValueError: a variable that the cluster profile needs is not set.

    """
    chosen = profile()
    text = (_HERE / _FILES[chosen]).read_text(encoding="utf-8")
    for variable in ("FUNNEL_REDIS", "FUNNEL_SPARK_MASTER"):
        if f"${{{variable}}}" in text and variable not in os.environ:
            raise ValueError(f"the cluster profile needs {variable} in the environment")
    config: dict[str, Any] = yaml.safe_load(os.path.expandvars(text))
    workspace.feast_registry.parent.mkdir(parents=True, exist_ok=True)
    config["registry"] = str(workspace.feast_registry)
    if chosen == "local":
        config["online_store"]["folder"] = str(workspace.redis)
    return FeatureStore(config=RepoConfig(repo_path=_HERE, **config))


def apply(store: FeatureStore, workspace: Workspace) -> None:
    """Register the views of the ingested data set, as ``feast apply`` does."""
    # The features link is resolved by whoever reads it, so that a new run needs no new apply.
    store.apply(build(workspace.spec(), workspace.root.resolve() / "features" / "current", profile()))
