"""Runs, curves and settings in MLflow's local store (SQLite below the working folder)."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from feature_repo.files import locked
from feature_repo.workspace import Workspace


class Tracker:
    """One run's log."""

    def __init__(self, client: Any, run: str) -> None:
        self._client = client
        self._run = run

    def parameters(self, values: dict[str, Any]) -> None:
        """Log settings."""
        for name, value in values.items():
            self._client.log_param(self._run, name, value)

    def metrics(self, values: dict[str, float], step: int = 0) -> None:
        """Log figures at a step; names as MLflow allows them."""
        for name, value in values.items():
            if value is not None:
                self._client.log_metric(self._run, name.replace("@", "_at_"), value, step=step)


@contextmanager
def track(workspace: Workspace, name: str, tags: dict[str, str] | None = None) -> Iterator[Tracker]:
    """Open a run in the local store; it is marked as failed if the block raises."""
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    from mlflow import MlflowClient

    for library in ("alembic", "mlflow"):  # after the import, which sets the level
        logging.getLogger(library).setLevel(logging.WARNING)
    # MLflow creates a new database in a hundred steps, which two processes must not do at once.
    with locked(workspace.tracking / ".lock"):
        client = MlflowClient(
            tracking_uri=f"sqlite:///{(workspace.tracking / 'mlflow.db').resolve()}"
        )
        experiment = client.get_experiment_by_name("funnel")
        identity = experiment.experiment_id if experiment else client.create_experiment("funnel")
    run = client.create_run(identity, run_name=name, tags=tags).info.run_id
    try:
        yield Tracker(client, run)
    except BaseException:
        client.set_terminated(run, "FAILED")
        raise
    client.set_terminated(run, "FINISHED")
