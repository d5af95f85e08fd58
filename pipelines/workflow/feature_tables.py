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


def build_tables(workspace: Workspace, final: Path, master: str | None) -> None:
    """Compute the tables and give them their name."""
    from feature_repo.declarations.reading import declared_in
    from pipelines.features.spark import spark_session
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
            ONE_PARTITION if events < ONE_PARTITION_EVENTS else None,
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
