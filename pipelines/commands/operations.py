"""Commands for a system that serves: the stream, checks, replays, batches and erasures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from pipelines.commands.options import Data, Home, use_all_cores, workspace_of

operations = typer.Typer()


@operations.command()
def stream(
    *,
    home: Home = None,
    status: Annotated[
        bool, typer.Option("--status", help="Print the job's status and exit")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Compare online features with a recount of all events")
    ] = False,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Start a new checkpoint from the offline tables")
    ] = False,
    interval: Annotated[
        float, typer.Option(help="Seconds between batches; 0: as soon as events arrive")
    ] = 0.0,
    max_entries: Annotated[int, typer.Option(help="Maximum events per batch", min=1)] = 100_000,
    partitions: Annotated[
        int, typer.Option(help="Partitions of the state, fixed with the checkpoint", min=1)
    ] = 1,
    master: Annotated[
        str | None, typer.Option(help="Spark master (default: FUNNEL_SPARK_MASTER, else local)")
    ] = None,
) -> None:
    """Update online features from the event log, until stopped."""
    if status:
        from pipelines.streaming.status import show_status

        show_status(workspace_of(home))
        return
    if check:
        from pipelines.operations.recount import show_check

        show_check(workspace_of(home))
        return
    from pipelines.streaming.job import StreamConfig, run_stream

    run_stream(workspace_of(home), StreamConfig(interval, max_entries, partitions), master, rebuild)


@operations.command()
def skew(
    *,
    home: Home = None,
    limit: Annotated[
        int | None, typer.Option(help="Maximum requests, newest first (default: all)", min=1)
    ] = None,
    since: Annotated[
        float | None,
        typer.Option(help="Only requests of the last hours (default: all)", min=0),
    ] = None,
) -> None:
    """Recompute served features from the offline tables; the last line is JSON."""
    from pipelines.operations.skew import show_skew

    show_skew(workspace_of(home), limit, since)


@operations.command()
def replay(
    *,
    data: Data,
    data_dir: Annotated[
        Path | None,
        typer.Option(help="Folder with its files (built-in world: raw in the working folder)"),
    ] = None,
    url: Annotated[str, typer.Option(help="URL of the API")] = "http://127.0.0.1:8000",
    speed: Annotated[
        float, typer.Option(help="Seconds of data per second; 0: as fast as possible", min=0)
    ] = 1.0,
    limit: Annotated[
        int | None, typer.Option(help="Maximum events, oldest first (default: all)", min=1)
    ] = None,
    run: Annotated[
        str | None, typer.Option(help="Name of the run in event ids (default: the current time)")
    ] = None,
    batch: Annotated[int, typer.Option(help="Maximum events per request", min=1, max=1_000)] = 100,
) -> None:
    """Send a data set's events to the API at their own pace; the last line is JSON.

    A stopped run continues with the same --run: for a day the API answers events that it has as
    duplicates.
    """
    import time

    from pipelines.display import result
    from pipelines.operations.replay import ReplayConfig, run_replay

    name = run or time.strftime("replay-%Y%m%dT%H%M%SZ", time.gmtime())
    result(json.dumps(run_replay(data, data_dir, ReplayConfig(url, name, speed, batch), limit)))


@operations.command()
def batch(
    *,
    out: Annotated[Path, typer.Option(help="Parquet file to write")],
    home: Home = None,
    k: Annotated[int, typer.Option(help="Items per user", min=1, max=500)] = 20,
    redis_days: Annotated[
        float | None,
        typer.Option(
            help="Days to keep the lists in Redis too (default: not written there)", min=0
        ),
    ] = None,
) -> None:
    """Write recommendations for every known user to Parquet; a stopped run continues."""
    from pipelines.operations.batch import run_batch

    use_all_cores()
    run_batch(workspace_of(home), out, k, redis_days)


@operations.command()
def erase(
    *,
    home: Home = None,
    user: Annotated[str | None, typer.Option(help="Id of the user to erase")] = None,
    pending: Annotated[
        bool, typer.Option("--pending", help="Finish erasures that DELETE /v1/users started")
    ] = False,
) -> None:
    """Erase users from all stored data and write the proofs; the last line is JSON."""
    if (user is None) == (not pending):
        raise typer.BadParameter("give --user ID or --pending")
    from pipelines.erasure.erase import run_erase

    run_erase(workspace_of(home), user)
