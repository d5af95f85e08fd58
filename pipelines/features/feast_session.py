"""The Spark session in which Feast's Spark store and engine work, in the profile ``cluster``.

Feast starts one of its own where there is none: without the Java, the workers' Python and the
memory that Funnel's settings name.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from feature_repo.stores.feature_store import profile
from feature_repo.workspace import Workspace


def start_feast_session(workspace: Workspace) -> None:
    """Start the session, unless one runs; the profile ``local`` needs none.

    Raises:
        JavaMissing: Spark finds no Java that it can run on.

    """
    if profile() == "cluster":
        from pipelines.features.spark import spark_session

        spark_session("funnel-feast", work=workspace.root)


@contextmanager
def feast_session(workspace: Workspace) -> Iterator[None]:
    """Run a session while the body runs: a cluster's cores are free again afterwards."""
    start_feast_session(workspace)
    try:
        yield
    finally:
        if profile() == "cluster":
            from pyspark.sql import SparkSession

            if session := SparkSession.getActiveSession():
                session.stop()
