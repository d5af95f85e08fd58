"""The command line: ``funnel``. Each command is one stage; heavy imports wait until they are needed."""

from __future__ import annotations

import json
import os
import sys
import warnings
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

# Threads that wait must not burn the core that others need; read when OpenMP is loaded, so set first.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("FEAST_USAGE", "False")

OURS = ("feature_repo", "pipelines", "retrieval", "ranking", "serving", "benchmarks")
_show = warnings.showwarning


def _show_ours(message: Any, category: Any, filename: str, lineno: int, *rest: Any) -> None:
    """Show a warning about our own code; other people's deprecations are no business of the user's."""
    if any(f"/{package}/" in filename for package in OURS):
        _show(message, category, filename, lineno, *rest)


warnings.showwarning = _show_ours  # type: ignore[assignment]  # a filter would not do: the libraries that warn also reset the filters

import typer  # noqa: E402

from feature_repo.dataset import SpecError  # noqa: E402
from feature_repo.workspace import PROJECT_ROOT, MissingStage, Workspace, default_root  # noqa: E402
from pipelines.keys import keys  # noqa: E402
from pipelines.releases_command import releases  # noqa: E402

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
benchmarks = typer.Typer(no_args_is_help=True, help="Measure; the last line is JSON.")
app.add_typer(benchmarks, name="benchmark")
app.add_typer(keys, name="keys")
app.add_typer(releases, name="release")


class Layout(StrEnum):
    """Known layouts of interactions without times."""

    lightgcn = "lightgcn"


Home = Annotated[Path | None, typer.Option(help="Working folder [default: FUNNEL_HOME, else work/current]")]
Data = Annotated[str, typer.Option(help="A known data set, or the path of a dataset.toml")]
DataDir = Annotated[Path | None, typer.Option(help="Folder with the data set's files")]
Limit = Annotated[int | None, typer.Option(help="At most so many events, evenly spaced [default: all]")]
Host = Annotated[str, typer.Option(help="Address to listen on")]
Port = Annotated[int, typer.Option(help="Port to listen on")]


def _use_all_cores() -> None:
    os.environ.setdefault("FUNNEL_THREADS", str(os.cpu_count() or 1))


def _use_one_core() -> None:
    """A server answers several requests at once: threads within one only get in each other's way."""
    for library in ("OMP", "OPENBLAS", "MKL"):
        os.environ.setdefault(f"{library}_NUM_THREADS", "1")


def _workspace(home: Path | None) -> Workspace:
    return Workspace((home or default_root()).resolve())


@app.command()
def ingest(
    data: Data = "synthetic",
    data_dir: DataDir = None,
    home: Home = None,
    shift_to_now: Annotated[bool, typer.Option(help="Move historic times, by whole weeks, to end now")] = False,
) -> None:
    """Bring new files in: typed tables, bad rows to quarantine."""
    from pipelines.stages import run_ingest

    run_ingest(data, data_dir, home, shift_to_now)


@app.command()
def features(
    home: Home = None,
    master: Annotated[str | None, typer.Option(help="Spark master [default: FUNNEL_SPARK_MASTER, else local]")] = None,
) -> None:
    """Compute the offline feature tables with Spark."""
    from pipelines.stages import run_features

    run_features(_workspace(home), master)


@app.command()
def materialize(home: Home = None) -> None:
    """Register the views with Feast and write the newest features to Redis."""
    from pipelines.stages import run_materialize

    run_materialize(_workspace(home))


@app.command()
def train(
    home: Home = None,
    from_impressions: Annotated[
        bool, typer.Option("--from-impressions", help="Only the rankers, from what was served and what came of it")
    ] = False,
    attribution_hours: Annotated[float, typer.Option(help="How long after a response an event counts", min=0)] = 24.0,
) -> None:
    """Train towers, index and rankers."""
    from pipelines.stages import run_train

    _use_all_cores()
    run_train(_workspace(home), attribution_hours if from_impressions else None)


@app.command()
def evaluate(
    home: Home = None,
    limit: Limit = None,
    baselines: Annotated[bool, typer.Option(help="Also item kNN, EASE and iALS, tuned on validation")] = True,
    ablations: Annotated[bool, typer.Option("--ablations", help="Also the funnel without each of its parts")] = False,
    against: Annotated[str | None, typer.Option(help="Id of a release to compare with on the same events")] = None,
) -> None:
    """Replay the test slice through the current release; the last line is JSON."""
    from pipelines.display import result
    from pipelines.stages import run_evaluate

    _use_all_cores()
    figures = run_evaluate(_workspace(home), limit, baselines=baselines, ablations=ablations, against=against)
    result(json.dumps(figures))


@app.command()
def serve(
    home: Home = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    workers: Annotated[int, typer.Option(help="Processes that answer requests", min=1)] = 1,
    user: Annotated[str, typer.Option(help="User of the call that is shown", hidden=True)] = "1",
) -> None:
    """Serve the current release over HTTP."""
    _use_one_core()
    from pipelines.demo import run_server

    run_server(_workspace(home), host, port, user, workers)


@app.command()
def stream(
    home: Home = None,
    status: Annotated[bool, typer.Option("--status", help="Say how the job is doing, and end")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Compare online features with a recount of all events")
    ] = False,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Begin a new checkpoint from the offline tables")] = False,
    interval: Annotated[float, typer.Option(help="Seconds from batch to batch; 0: as soon as there are events")] = 0.0,
    max_entries: Annotated[int, typer.Option(help="At most so many events a batch", min=1)] = 100_000,
    partitions: Annotated[int, typer.Option(help="Partitions of the state, fixed with the checkpoint", min=1)] = 1,
    master: Annotated[str | None, typer.Option(help="Spark master [default: FUNNEL_SPARK_MASTER, else local]")] = None,
) -> None:
    """Keep the features of users and items fresh from the event log."""
    if status:
        from pipelines.streaming.status import show_status

        show_status(_workspace(home))
        return
    if check:
        from pipelines.streaming.recount import show_check

        show_check(_workspace(home))
        return
    from pipelines.streaming.job import StreamConfig, run_stream

    run_stream(_workspace(home), StreamConfig(interval, max_entries, partitions), master, rebuild)


@app.command()
def skew(
    home: Home = None,
    limit: Annotated[int | None, typer.Option(help="Only the newest so many requests [default: all]", min=1)] = None,
    since: Annotated[
        float | None, typer.Option(help="Only those of the last so many hours [default: all]", min=0)
    ] = None,
) -> None:
    """Recompute from the offline tables what was served, and count features that differ; the last line is JSON."""
    from pipelines.skew import show_skew

    show_skew(_workspace(home), limit, since)


@app.command()
def replay(
    data: Data = "synthetic",
    data_dir: DataDir = None,
    url: Annotated[str, typer.Option(help="Where the API is")] = "http://127.0.0.1:8000",
    speed: Annotated[float, typer.Option(help="Seconds of the data in a second; 0: as many as can be", min=0)] = 1.0,
    limit: Annotated[int | None, typer.Option(help="Only the first so many events [default: all]", min=1)] = None,
    run: Annotated[str | None, typer.Option(help="Name in the event ids [default: the time]")] = None,
    batch: Annotated[int, typer.Option(help="At most so many events a request", min=1, max=1_000)] = 100,
) -> None:
    """Send a data set's events to the API at the pace at which they happened; the last line is JSON.

    Stopped, it is taken up with the same --run: events that were sent are answered as duplicates for a day.
    """
    import time

    from pipelines.display import result
    from pipelines.replay import ReplayConfig, run_replay

    name = run or time.strftime("replay-%Y%m%dT%H%M%SZ", time.gmtime())
    result(json.dumps(run_replay(data, data_dir, ReplayConfig(url, name, speed, batch), limit)))


@app.command()
def batch(
    out: Annotated[Path, typer.Option(help="Parquet file to write")],
    home: Home = None,
    k: Annotated[int, typer.Option(help="Items a user", min=1, max=500)] = 20,
    redis_days: Annotated[
        float | None, typer.Option(help="Also to Redis, kept for so many days [default: not]", min=0)
    ] = None,
) -> None:
    """Recommend to every known user at once, to Parquet; stopped, it goes on where it was."""
    from pipelines.batch import run_batch

    _use_all_cores()
    run_batch(_workspace(home), out, k, redis_days)


@app.command()
def erase(
    home: Home = None,
    user: Annotated[str | None, typer.Option(help="Id of the user to forget")] = None,
    pending: Annotated[bool, typer.Option("--pending", help="Finish what DELETE /v1/users began")] = False,
) -> None:
    """Remove erased users from all that was kept, and write the proofs; the last line is JSON."""
    if (user is None) == (not pending):
        raise typer.BadParameter("give --user ID or --pending")
    from pipelines.erase import run_erase

    run_erase(_workspace(home), user)


@app.command()
def demo(
    data: Data = "synthetic",
    data_dir: DataDir = None,
    home: Home = None,
    serve: Annotated[bool, typer.Option(help="Start the API at the end")] = True,
    host: Host = "127.0.0.1",
    port: Port = 8000,
) -> None:
    """Run every stage, show recommendations, and serve."""
    from pipelines.demo import run_demo

    _use_all_cores()
    run_demo(data, data_dir, home, serve, host, port)


@benchmarks.command("point-in-time")
def point_in_time(
    rows: Annotated[int, typer.Option(help="Entity rows", min=1)] = 500_000,
    spark: Annotated[bool, typer.Option(help="Compare with Spark's join, every row")] = True,
) -> None:
    """Feast's point-in-time join: DuckDB and Spark over the same Parquet."""
    from benchmarks.point_in_time import run
    from pipelines.display import result

    result(json.dumps(run(rows, spark)))


@benchmarks.command("streaming")
def streaming(
    home: Annotated[
        Path | None, typer.Option(help="Folder of its own world [default: work/benchmark-streaming]")
    ] = None,
    rate: Annotated[int, typer.Option(help="Events a second at which lag is measured", min=20)] = 200,
    seconds: Annotated[float, typer.Option(help="For so long", min=5)] = 60.0,
    heavy_rate: Annotated[int, typer.Option(help="Events a second that the job must keep up with", min=100)] = 10_000,
    heavy_seconds: Annotated[float, typer.Option(help="For so long", min=5)] = 60.0,
    partitions: Annotated[int, typer.Option(help="Partitions of the job's state", min=1)] = 2,
) -> None:
    """Lag, throughput and losses of the streaming job, with the real API, Redis and Spark."""
    from benchmarks.streaming import run
    from pipelines.display import result

    _use_all_cores()
    root = (home or PROJECT_ROOT / "work" / "benchmark-streaming").resolve()
    result(json.dumps(run(root, rate, seconds, heavy_rate, heavy_seconds, partitions)))


@benchmarks.command("serving")
def serving_benchmark(
    home: Annotated[
        Path | None, typer.Option(help="Folder of its own trained world [default: work/benchmark-serving]")
    ] = None,
    items: Annotated[int, typer.Option(help="Size of the catalogue", min=2_000)] = 100_000,
    candidates: Annotated[int, typer.Option(help="Candidates to rank, about", min=100)] = 500,
    seconds: Annotated[float, typer.Option(help="Of load, on one connection and on sixteen", min=1)] = 20.0,
    workers: Annotated[int, typer.Option(help="Processes of the server", min=1)] = 2,
    naive: Annotated[int, typer.Option(help="Requests to answer in the obvious way; 0: none", min=0)] = 200,
) -> None:
    """Latency and throughput of the API, each stage, and the obvious way of doing it."""
    _use_one_core()
    from benchmarks.serving import run
    from pipelines.display import result

    root = (home or PROJECT_ROOT / "work" / "benchmark-serving").resolve()
    result(json.dumps(run(root, items, candidates, seconds, workers, naive)))


@benchmarks.command("soak")
def soak(
    home: Annotated[
        Path | None, typer.Option(help="Working folder with a release [default: work/benchmark-serving]")
    ] = None,
    minutes: Annotated[float, typer.Option(help="For so long", min=0.5)] = 20.0,
    rate: Annotated[float, typer.Option(help="Requests a second", min=1)] = 100.0,
    workers: Annotated[int, typer.Option(help="Processes of the server", min=1)] = 2,
) -> None:
    """Memory of the server under a long load."""
    from benchmarks.soak import run
    from pipelines.display import result

    result(json.dumps(run((home or PROJECT_ROOT / "work" / "benchmark-serving").resolve(), minutes, rate, workers)))


@benchmarks.command("skew")
def skew_benchmark(
    home: Annotated[Path | None, typer.Option(help="Folder of its own world [default: work/benchmark-skew]")] = None,
    requests: Annotated[int, typer.Option(help="Recommendations to ask for", min=1)] = 10_000,
) -> None:
    """Served features against recomputed ones, with events coming in all the while."""
    from benchmarks.skew import run
    from pipelines.display import result

    root = (home or PROJECT_ROOT / "work" / "benchmark-skew").resolve()
    result(json.dumps(run(root, requests)))


@benchmarks.command("retrieval")
def retrieval_benchmark(
    data_dir: Annotated[Path, typer.Option(help="Folder with train.txt, test.txt and perhaps valid.txt")],
    layout: Annotated[Layout, typer.Option(help="lightgcn: lines 'user item item ...'")] = Layout.lightgcn,
    seeds: Annotated[int, typer.Option(help="Models to train with what was chosen", min=1)] = 1,
    dimension: Annotated[int, typer.Option(help="Length of the vectors", min=2, max=1_024)] = 256,
    minutes: Annotated[float, typer.Option(help="Time for all of it; less means fewer epochs", min=0.1)] = 40.0,
) -> None:
    """Two towers on a public split, all items ranked; takes no longer than --minutes, and begins anew if stopped."""
    _use_all_cores()
    from benchmarks.retrieval import run
    from pipelines.display import result

    result(json.dumps(run(data_dir, layout.value, seeds, dimension, minutes)))


@benchmarks.command("sequences")
def sequences(
    data_dir: Annotated[Path, typer.Option(help="File of 'user item' lines in time order, or the folder of one")],
    home: Annotated[Path | None, typer.Option(help="Folder of checkpoints [default: work/benchmark-sequences]")] = None,
    seeds: Annotated[int, typer.Option(help="Trainings, each from its own seed", min=1)] = 1,
    minutes: Annotated[float, typer.Option(help="At most so many for one training", min=0.1)] = 40.0,
    epochs: Annotated[int, typer.Option(help="At most so many in one training", min=1)] = 30,
    device: Annotated[str | None, typer.Option(help="cpu or cuda [default: cuda where there is one]")] = None,
) -> None:
    """Next-item prediction by the sequential two-tower model; stopped, it is taken up again."""
    from benchmarks.sequences import run
    from pipelines.display import result
    from retrieval.sequence_training import SequenceConfig

    root = (home or PROJECT_ROOT / "work" / "benchmark-sequences").resolve()
    result(json.dumps(run(data_dir, root, seeds, SequenceConfig(minutes=minutes, epochs=epochs, device=device))))


def main() -> None:
    """Run the command line; a mistake of the user ends with one sentence and exit code 2."""
    try:
        app()
    except (SpecError, MissingStage) as error:
        sys.stderr.write(f"funnel: {error}\n")
        sys.exit(2)
    except RuntimeError as error:
        if type(error).__module__.split(".")[0] not in OURS:
            raise
        sys.stderr.write(f"funnel: {error}\n")
        sys.exit(1)
