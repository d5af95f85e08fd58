"""Makes the offline tables, and takes them into use with what the stream appended to old ones."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from feature_repo.files import link_atomically, staged_folder
from feature_repo.workspace import Workspace
from pipelines import display

SHORT_JOB_EVENTS = 500_000
"""Up to so many events the feature job is over before Java's optimising compiler has paid off."""

ONE_PARTITION_EVENTS = 30_000
"""Up to so many events, planning costs more than one partition for all of them."""

ONE_PARTITION = {"spark.sql.shuffle.partitions": "1", "spark.sql.adaptive.enabled": "false"}

_EVENTS_PER_PARTITION = 100_000
_LEAST_PARTITIONS = 4
_MOST_PARTITIONS = 200
"""On a cluster. The most is Spark's default: with it, each table of a small log has 200 files."""


def build_tables(workspace: Workspace, final: Path, master: str | None) -> None:
    """Compute the tables and give them their name."""
    from feature_repo.declarations.reading import declared_in
    from pipelines.features.spark import is_local, spark_session
    from pipelines.features.spark_job import build_features
    from pipelines.features.whole_tables import list_files
    from pipelines.ingest.ingested import (
        event_count,
        event_files,
        log_position,
        require_whole_events,
    )

    spec = workspace.spec()
    declared = declared_in(workspace)
    with display.stage("Features (Spark)") as stage:
        stage("starting Spark", 0, 0)
        require_whole_events(workspace)
        events = event_count(workspace)
        spark = spark_session(
            "funnel-features",
            master,
            workspace.root,
            _partitioning(events, local=is_local(master)),
            short=events < SHORT_JOB_EVENTS,
        )
        try:
            with staged_folder(final) as folder:
                say: Callable[[str], None] = lambda table: stage(table, 0, 0)  # noqa: E731
                rows = build_features(
                    spark,
                    spec,
                    workspace.ingest,
                    folder,
                    event_files=event_files(workspace),
                    progress=say,
                    log_position=log_position(workspace),
                    declared=declared,
                )
                list_files(folder)
                stage.summary = f"{sum(rows.values()):,} rows in {len(rows)} tables"
        finally:
            spark.stop()


def _partitioning(events: int, *, local: bool) -> dict[str, str] | None:
    """Return Spark's settings for a log of this size; None: the usual ones."""
    if events < ONE_PARTITION_EVENTS:
        return ONE_PARTITION
    if local:
        return None
    partitions = max(_LEAST_PARTITIONS, min(events // _EVENTS_PER_PARTITION, _MOST_PARTITIONS))
    return {"spark.sql.shuffle.partitions": str(partitions)}


def take_into_use(workspace: Workspace, final: Path) -> None:
    """Make new tables the current ones, with what the stream appended to the old ones."""
    from pipelines.streaming.offline import carry_over, tables_lock

    with tables_lock(workspace, exclusive=True):
        if workspace.features.is_dir():
            carry_over(workspace.features.resolve(), final)
        link_atomically(workspace.features, final)
    for old in final.parent.iterdir():
        if old.is_dir() and not old.is_symlink() and old != final:
            shutil.rmtree(old)
