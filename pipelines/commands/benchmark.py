"""``funnel benchmark``: all measurements; each imports what it needs when it runs."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from feature_repo.workspace import work_folder
from pipelines.commands.options import use_all_cores, use_one_core

benchmarks = typer.Typer(no_args_is_help=True, help="Run a benchmark; the last line is JSON.")


class Layout(StrEnum):
    """Known layouts of interactions without timestamps."""

    lightgcn = "lightgcn"


class TestSplit(StrEnum):
    """How the test part of such a data set was drawn."""

    random = "random"
    tail = "tail"


def _folder(home: Path | None, name: str) -> Path:
    """Return the given folder, or the benchmark's own below ``work/``."""
    return (home or work_folder() / f"benchmark-{name}").resolve()


@benchmarks.command("point-in-time")
def point_in_time(
    rows: Annotated[int, typer.Option(help="Number of entity rows", min=1)] = 500_000,
    spark: Annotated[bool, typer.Option(help="Compare every row with Spark's join")] = True,
) -> None:
    """Feast's point-in-time join: DuckDB and Spark over the same Parquet."""
    from benchmarks.point_in_time import run
    from pipelines.display import result

    result(json.dumps(run(rows, spark)))


@benchmarks.command("streaming")
def streaming(
    *,
    home: Annotated[
        Path | None,
        typer.Option(help="Working folder (default: work/benchmark-streaming)"),
    ] = None,
    rate: Annotated[
        int, typer.Option(help="Events per second at which lag is measured", min=20)
    ] = 200,
    seconds: Annotated[float, typer.Option(help="Seconds of load at that rate", min=5)] = 60.0,
    heavy_rate: Annotated[
        int, typer.Option(help="Events per second that the job must keep up with", min=100)
    ] = 10_000,
    heavy_seconds: Annotated[float, typer.Option(help="Seconds at that rate", min=5)] = 60.0,
    partitions: Annotated[int, typer.Option(help="Partitions of the job's state", min=1)] = 2,
) -> None:
    """Lag, throughput and losses of the streaming job, with the real API, Redis and Spark."""
    from benchmarks.streaming import run
    from pipelines.display import result

    use_all_cores()
    root = _folder(home, "streaming")
    figures = run(
        root,
        rate=rate,
        seconds=seconds,
        heavy_rate=heavy_rate,
        heavy_seconds=heavy_seconds,
        partitions=partitions,
    )
    result(json.dumps(figures))


@benchmarks.command("serving")
def serving_benchmark(
    *,
    home: Annotated[
        Path | None,
        typer.Option(help="Working folder (default: work/benchmark-serving)"),
    ] = None,
    items: Annotated[int, typer.Option(help="Number of items", min=2_000)] = 100_000,
    candidates: Annotated[
        int, typer.Option(help="Approximate number of candidates to rank", min=100)
    ] = 500,
    seconds: Annotated[
        float, typer.Option(help="Seconds of load with 1 connection, then with 16", min=1)
    ] = 20.0,
    workers: Annotated[int, typer.Option(help="Worker processes of the server", min=1)] = 2,
    naive: Annotated[
        int, typer.Option(help="Requests to answer by the naive implementation; 0: none", min=0)
    ] = 200,
) -> None:
    """Latency and throughput of the API and its stages, against a naive implementation."""
    use_one_core()
    from benchmarks.serving import run
    from pipelines.display import result

    root = _folder(home, "serving")
    figures = run(
        root,
        items=items,
        candidates=candidates,
        seconds=seconds,
        workers=workers,
        naive=naive,
    )
    result(json.dumps(figures))


@benchmarks.command("soak")
def soak(
    home: Annotated[
        Path | None,
        typer.Option(help="Working folder with a release (default: work/benchmark-serving)"),
    ] = None,
    minutes: Annotated[float, typer.Option(help="Minutes of load", min=0.5)] = 20.0,
    rate: Annotated[float, typer.Option(help="Requests per second", min=1)] = 100.0,
    workers: Annotated[int, typer.Option(help="Worker processes of the server", min=1)] = 2,
) -> None:
    """Memory of the server under long load, in the folder of 'funnel benchmark serving'."""
    from benchmarks.soak import run
    from pipelines.display import result

    result(json.dumps(run(_folder(home, "serving"), minutes, rate, workers)))


@benchmarks.command("skew")
def skew_benchmark(
    home: Annotated[
        Path | None, typer.Option(help="Working folder (default: work/benchmark-skew)")
    ] = None,
    requests: Annotated[
        int, typer.Option(help="Number of recommendation requests", min=1)
    ] = 10_000,
) -> None:
    """Served features against recomputed ones, while events arrive."""
    from benchmarks.skew import run
    from pipelines.display import result

    root = _folder(home, "skew")
    result(json.dumps(run(root, requests)))


@benchmarks.command("retrieval")
def retrieval_benchmark(
    *,
    data_dir: Annotated[
        Path, typer.Option(help="Folder with train.txt, test.txt and, optionally, valid.txt")
    ],
    layout: Annotated[
        Layout, typer.Option(help="lightgcn: lines 'user item item ...'")
    ] = Layout.lightgcn,
    split: Annotated[
        TestSplit,
        typer.Option(
            help="How the test part was drawn: random within a user, or tail: the last items of "
            "lines that are in order of time"
        ),
    ] = TestSplit.random,
    seeds: Annotated[
        int, typer.Option(help="Final models to train, each with its own random seed", min=1)
    ] = 1,
    dimension: Annotated[int, typer.Option(help="Embedding dimension", min=2, max=1_024)] = 256,
    minutes: Annotated[
        float,
        typer.Option(help="Minutes for the whole benchmark; fewer minutes, fewer epochs", min=0.1),
    ] = 40.0,
) -> None:
    """Two towers on a public split, all items ranked; a stopped run restarts."""
    use_all_cores()
    from benchmarks.retrieval import run
    from pipelines.display import result

    figures = run(
        data_dir,
        layout.value,
        split=split.value,
        seeds=seeds,
        dimension=dimension,
        minutes=minutes,
    )
    result(json.dumps(figures))


@benchmarks.command("sequences")
def sequences(
    *,
    data_dir: Annotated[
        Path, typer.Option(help="File of 'user item' lines in time order, or its folder")
    ],
    home: Annotated[
        Path | None, typer.Option(help="Folder of checkpoints (default: work/benchmark-sequences)")
    ] = None,
    seeds: Annotated[
        int, typer.Option(help="Models to train, each with its own random seed", min=1)
    ] = 1,
    minutes: Annotated[float, typer.Option(help="Maximum minutes per training", min=0.1)] = 40.0,
    epochs: Annotated[int, typer.Option(help="Maximum epochs per training", min=1)] = 30,
    device: Annotated[
        str | None, typer.Option(help="cpu or cuda (default: cuda where there is one)")
    ] = None,
) -> None:
    """Next-item prediction by the sequential two-tower model; a stopped run continues."""
    from benchmarks.sequences import run
    from pipelines.display import result
    from retrieval.sequences.config import SequenceConfig

    root = _folder(home, "sequences")
    result(
        json.dumps(
            run(
                data_dir, root, seeds, SequenceConfig(minutes=minutes, epochs=epochs, device=device)
            )
        )
    )


@benchmarks.command("ranking")
def ranking_benchmark(
    data_dir: Annotated[
        Path, typer.Option(help="Folder of MovieLens-1M: ratings.dat, users.dat, movies.dat")
    ],
    seeds: Annotated[
        int, typer.Option(help="Trainings of each model, each with its own random seed", min=1)
    ] = 1,
) -> None:
    """Five rankers of labelled pairs, RecBole's protocol: AUC, log loss and calibration."""
    use_all_cores()
    from benchmarks.ranking import run
    from pipelines.display import result

    result(json.dumps(run(data_dir, seeds)))


@benchmarks.command("warm-start")
def warm_start(
    *,
    home: Annotated[
        Path | None,
        typer.Option(help="Working folder (default: work/benchmark-warm-start)"),
    ] = None,
    users: Annotated[int, typer.Option(help="Number of users", min=50)] = 600,
    items: Annotated[int, typer.Option(help="Number of items", min=50)] = 500,
    limit: Annotated[
        int, typer.Option(help="Maximum events of the test slice to replay", min=1)
    ] = 2_000,
) -> None:
    """Warm start against training from scratch, after 15% new events."""
    use_all_cores()
    from benchmarks.warm_start import run
    from pipelines.display import result

    root = _folder(home, "warm-start")
    result(json.dumps(run(root, users, items, limit)))


@benchmarks.command("planted")
def planted(
    *,
    home: Annotated[
        Path | None, typer.Option(help="Working folder (default: work/benchmark-planted)")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Number of worlds", min=1)] = 3,
    users: Annotated[int, typer.Option(help="Number of users", min=50)] = 300,
    items: Annotated[int, typer.Option(help="Number of items", min=50)] = 150,
    strength: Annotated[
        float, typer.Option(help="Share of views that follow the signal", min=0, max=1)
    ] = 0.8,
) -> None:
    """A signal that only declared features carry: NDCG@10 with and without them."""
    from benchmarks.planted import run
    from pipelines.display import result

    use_all_cores()
    world = {"users": users, "items": items, "days": 40, "events_per_user": 45.0}
    figures = run(_folder(home, "planted"), list(range(1, seeds + 1)), world, strength)
    result(json.dumps(figures))


@benchmarks.command("windows")
def windows(
    *,
    data: Annotated[
        str, typer.Option(help="Name of a known data set, or path of a dataset.toml")
    ] = "synthetic",
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder of the data set's files; a built-in world has none")
    ] = None,
    home: Annotated[
        Path | None, typer.Option(help="Working folder (default: work/benchmark-windows)")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Number of trainings of each kind", min=1)] = 3,
    users: Annotated[
        int | None, typer.Option(help="Take the events of so many users (default: all)", min=50)
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Test events to replay, evenly spaced (default: all)", min=1)
    ] = None,
) -> None:
    """Counts of a user's newest events as features of the ranker: NDCG@10 with and without."""
    from benchmarks.windows import run
    from pipelines.display import result

    use_all_cores()
    root = _folder(home, "windows")
    numbers = list(range(1, seeds + 1))
    figures = run(root, data, data_dir, seeds=numbers, users=users, limit=limit)
    result(json.dumps(figures))


@benchmarks.command("feature-cost")
def feature_cost(
    *,
    home: Annotated[
        Path | None, typer.Option(help="Working folder (default: work/benchmark-feature-cost)")
    ] = None,
    rounds: Annotated[int, typer.Option(help="Turns of each load", min=1)] = 5,
    seconds: Annotated[float, typer.Option(help="Seconds of one turn", min=0.5)] = 3.0,
) -> None:
    """What 10, 50 and 100 declared features of users cost a request and an event."""
    use_one_core()
    from benchmarks.feature_cost import run
    from pipelines.display import result

    result(json.dumps(run(_folder(home, "feature-cost"), rounds=rounds, seconds=seconds)))
