"""``funnel benchmark``: everything that is measured; heavy imports wait until they are needed."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from feature_repo.workspace import PROJECT_ROOT
from pipelines.commands.options import use_all_cores, use_one_core

benchmarks = typer.Typer(no_args_is_help=True, help="Measure; the last line is JSON.")


class Layout(StrEnum):
    """Known layouts of interactions without times."""

    lightgcn = "lightgcn"


def _folder(home: Path | None, name: str) -> Path:
    """Return the folder that was given, or the benchmark's own."""
    return (home or PROJECT_ROOT / "work" / f"benchmark-{name}").resolve()


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
        Path | None,
        typer.Option(help="Folder of its own world (default: work/benchmark-streaming)"),
    ] = None,
    rate: Annotated[
        int, typer.Option(help="Events a second at which lag is measured", min=20)
    ] = 200,
    seconds: Annotated[float, typer.Option(help="Seconds at that rate", min=5)] = 60.0,
    heavy_rate: Annotated[
        int, typer.Option(help="Events a second that the job must keep up with", min=100)
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
    home: Annotated[
        Path | None,
        typer.Option(help="Folder of its own trained world (default: work/benchmark-serving)"),
    ] = None,
    items: Annotated[int, typer.Option(help="Size of the catalogue", min=2_000)] = 100_000,
    candidates: Annotated[int, typer.Option(help="Candidates to rank, about", min=100)] = 500,
    seconds: Annotated[
        float, typer.Option(help="Seconds of load on one connection, then on sixteen", min=1)
    ] = 20.0,
    workers: Annotated[int, typer.Option(help="Processes of the server", min=1)] = 2,
    naive: Annotated[
        int, typer.Option(help="Requests to answer in the obvious way; 0: none", min=0)
    ] = 200,
) -> None:
    """Latency and throughput of the API, each stage, and the obvious way of doing it."""
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
    rate: Annotated[float, typer.Option(help="Requests a second", min=1)] = 100.0,
    workers: Annotated[int, typer.Option(help="Processes of the server", min=1)] = 2,
) -> None:
    """Memory of the server under a long load; 'funnel benchmark serving' makes the folder."""
    from benchmarks.soak import run
    from pipelines.display import result

    result(json.dumps(run(_folder(home, "serving"), minutes, rate, workers)))


@benchmarks.command("skew")
def skew_benchmark(
    home: Annotated[
        Path | None, typer.Option(help="Folder of its own world (default: work/benchmark-skew)")
    ] = None,
    requests: Annotated[int, typer.Option(help="Recommendations to ask for", min=1)] = 10_000,
) -> None:
    """Served features against recomputed ones, with events coming in all the while."""
    from benchmarks.skew import run
    from pipelines.display import result

    root = _folder(home, "skew")
    result(json.dumps(run(root, requests)))


@benchmarks.command("retrieval")
def retrieval_benchmark(
    data_dir: Annotated[
        Path, typer.Option(help="Folder with train.txt, test.txt and perhaps valid.txt")
    ],
    layout: Annotated[
        Layout, typer.Option(help="lightgcn: lines 'user item item ...'")
    ] = Layout.lightgcn,
    seeds: Annotated[int, typer.Option(help="Models to train with what was chosen", min=1)] = 1,
    dimension: Annotated[int, typer.Option(help="Length of the vectors", min=2, max=1_024)] = 256,
    minutes: Annotated[
        float, typer.Option(help="Time for all of it; less means fewer epochs", min=0.1)
    ] = 40.0,
) -> None:
    """Two towers on a public split, all items ranked; takes no longer than --minutes, and begins anew if stopped."""
    use_all_cores()
    from benchmarks.retrieval import run
    from pipelines.display import result

    result(json.dumps(run(data_dir, layout.value, seeds, dimension, minutes)))


@benchmarks.command("sequences")
def sequences(
    data_dir: Annotated[
        Path, typer.Option(help="File of 'user item' lines in time order, or the folder of one")
    ],
    home: Annotated[
        Path | None, typer.Option(help="Folder of checkpoints (default: work/benchmark-sequences)")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Trainings, each from its own seed", min=1)] = 1,
    minutes: Annotated[
        float, typer.Option(help="At most so many for one training", min=0.1)
    ] = 40.0,
    epochs: Annotated[int, typer.Option(help="At most so many in one training", min=1)] = 30,
    device: Annotated[
        str | None, typer.Option(help="cpu or cuda (default: cuda where there is one)")
    ] = None,
) -> None:
    """Next-item prediction by the sequential two-tower model; stopped, it is taken up again."""
    from benchmarks.sequences import run
    from pipelines.display import result
    from retrieval.sequences.training import SequenceConfig

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
        int, typer.Option(help="Trainings of each model, each from its own seed", min=1)
    ] = 1,
) -> None:
    """Five rankers of labelled pairs, RecBole's protocol: AUC, log loss and calibration."""
    use_all_cores()
    from benchmarks.ranking import run
    from pipelines.display import result

    result(json.dumps(run(data_dir, seeds)))


@benchmarks.command("warm-start")
def warm_start(
    home: Annotated[
        Path | None,
        typer.Option(help="Folder of its own world (default: work/benchmark-warm-start)"),
    ] = None,
    users: Annotated[int, typer.Option(help="Users of the world", min=50)] = 600,
    items: Annotated[int, typer.Option(help="Size of the catalogue", min=50)] = 500,
    limit: Annotated[int, typer.Option(help="Events of the test slice to replay", min=1)] = 2_000,
) -> None:
    """Going on from the last release against training anew, when 15% of the events have come in since."""
    use_all_cores()
    from benchmarks.warm_start import run
    from pipelines.display import result

    root = _folder(home, "warm-start")
    result(json.dumps(run(root, users, items, limit)))
