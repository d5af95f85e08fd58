"""The command line ``funnel``: one command a stage, each imports what it needs when it runs."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Annotated, Any

# Threads that wait must not burn the core that others need; read when OpenMP is loaded, so set
# first.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("FEAST_USAGE", "False")

OURS = ("feature_repo", "pipelines", "retrieval", "ranking", "serving", "benchmarks")
_show = warnings.showwarning


def _show_ours(message: Any, category: Any, filename: str, lineno: int, *rest: Any) -> None:
    """Show a warning of our own code; users cannot mend deprecations in libraries."""
    if any(f"/{package}/" in filename for package in OURS):
        _show(message, category, filename, lineno, *rest)


# Not a filter: the libraries that warn also reset the filters.
warnings.showwarning = _show_ours  # type: ignore[assignment]

import typer  # noqa: E402
from typer.core import TyperGroup  # noqa: E402

from feature_repo.errors import FunnelError, disk_full  # noqa: E402
from feature_repo.settings import read_settings  # noqa: E402
from feature_repo.stores.feast_checks import disable_feast_type_checks  # noqa: E402
from feature_repo.workspace import work_folder  # noqa: E402
from pipelines.commands.benchmark import benchmarks  # noqa: E402
from pipelines.commands.keys import keys  # noqa: E402
from pipelines.commands.operations import operations  # noqa: E402
from pipelines.commands.options import (  # noqa: E402
    Data,
    DataDir,
    Home,
    Host,
    Kinds,
    Limit,
    NewHome,
    Port,
    known_kinds,
    use_all_cores,
    use_one_core,
    workspace_of,
)
from pipelines.commands.rankers import rankers  # noqa: E402
from pipelines.commands.releases import releases  # noqa: E402
from pipelines.commands.tune import tune  # noqa: E402

# Here, not in `main`: a spawned child process imports this module, but calls no `main`.
disable_feast_type_checks()


class CommandLine(TyperGroup):
    """All commands: settings are checked first; a ``FunnelError``, or a full disk, is one line."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command; the error's exit code is that of the process."""
        try:
            read_settings()
            return super().invoke(ctx)
        except FunnelError as error:
            typer.echo(f"funnel: {error}", err=True)
            raise typer.Exit(error.exit_code) from None
        except Exception as error:
            if (said := disk_full(error)) is None:
                raise
            typer.echo(f"funnel: {said}", err=True)
            raise typer.Exit(1) from None


app = typer.Typer(
    cls=CommandLine, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)
app.add_typer(benchmarks, name="benchmark")
app.add_typer(keys, name="keys")
app.add_typer(releases, name="release")
app.add_typer(tune, name="tune")
app.add_typer(rankers)
app.add_typer(operations)


@app.command()
def ingest(
    *,
    data: Data = "synthetic",
    data_dir: DataDir = None,
    home: NewHome = None,
    shift_to_now: Annotated[
        bool, typer.Option(help="Shift all times by whole weeks, so that the data ends now")
    ] = False,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict",
            help="Write nothing and exit with 1 if a share of the data is implausible",
        ),
    ] = False,
) -> None:
    """Read new files into typed tables; bad rows go to quarantine."""
    from pipelines.workflow.ingest_report import show_ingest
    from pipelines.workflow.stages import run_ingest

    _, report = run_ingest(data, data_dir, home, shift_to_now=shift_to_now, strict=strict)
    show_ingest(report)


@app.command()
def features(
    home: Home = None,
    master: Annotated[
        str | None, typer.Option(help="Spark master (default: FUNNEL_SPARK_MASTER, else local)")
    ] = None,
) -> None:
    """Compute the offline feature tables with Spark."""
    from pipelines.workflow.stages import run_features

    run_features(workspace_of(home), master)


@app.command()
def materialize(home: Home = None) -> None:
    """Register the views with Feast and write the newest features to Redis."""
    from pipelines.workflow.stages import run_materialize

    run_materialize(workspace_of(home))


@app.command()
def train(  # noqa: PLR0913 - the options of the command
    *,
    home: Home = None,
    kind: Kinds = None,
    requests: Annotated[
        int | None,
        typer.Option(
            help="Past requests that the rankers learn from (default: 6000); a quarter as many "
            "calibrate them, and a quarter select the best",
            min=40,
        ),
    ] = None,
    candidates: Annotated[
        list[str] | None,
        typer.Option(
            help="SOURCE=NUMBER, of two_tower, similar, popular, trending, new; repeatable "
            "(default: two_tower=430, new=70)"
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Random seed (default: a fixed one)", min=0)
    ] = None,
    logq: Annotated[
        bool,
        typer.Option(
            "--logq/--no-logq", help="Correct the towers' loss for how negatives are sampled"
        ),
    ] = True,
    tuned: Annotated[
        bool, typer.Option("--tuned", help="Use the settings that 'funnel tune' found")
    ] = False,
    warm_start: Annotated[
        bool,
        typer.Option("--warm-start", help="Continue from the current release, on newer events"),
    ] = False,
    from_impressions: Annotated[
        bool,
        typer.Option(
            "--from-impressions", help="Train only the rankers, from impressions and responses"
        ),
    ] = False,
    attribution_hours: Annotated[
        float | None,
        typer.Option(help="Hours in which an event counts for an impression (default: 24)", min=0),
    ] = None,
    ipw: Annotated[
        bool,
        typer.Option("--ipw", help="Weight clicks by the inverse propensity of their position"),
    ] = False,
) -> None:
    """Train towers, index and rankers."""
    from pipelines.workflow.stages import run_train, show_rankers
    from pipelines.workflow.train_options import TrainOptions

    if warm_start and (tuned or from_impressions or not logq or seed is not None or kind):
        raise typer.BadParameter(
            "--warm-start keeps the release's settings: remove --tuned, --from-impressions, "
            "--no-logq, --seed and --kind"
        )
    if from_impressions and (candidates or not logq or requests):
        raise typer.BadParameter(
            "--from-impressions trains no towers and takes all impressions: "
            "remove --candidates, --no-logq and --requests"
        )
    if (ipw or attribution_hours is not None) and not from_impressions:
        raise typer.BadParameter("--ipw and --attribution-hours need --from-impressions")
    use_all_cores()
    from serving.recommender.candidates import CandidateQuota

    try:
        quota = CandidateQuota.parse(candidates) if candidates else None
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--candidates") from None
    hours = (24.0 if attribution_hours is None else attribution_hours) if from_impressions else None
    options = TrainOptions(
        attribution_hours=hours,
        ipw=ipw,
        tuned=tuned,
        warm_start=warm_start,
        logq=logq,
        seed=seed,
        kinds=known_kinds(kind),
        requests=requests,
        quota=quota,
    )
    show_rankers(run_train(workspace_of(home), options))


@app.command()
def evaluate(
    *,
    home: Home = None,
    limit: Limit = None,
    baselines: Annotated[
        bool, typer.Option(help="Also item kNN, EASE and iALS, tuned on validation")
    ] = True,
    peers: Annotated[
        bool, typer.Option(help="Also SASRec of RecTools, once 'make peers' has been run")
    ] = True,
    peer_minutes: Annotated[
        float, typer.Option(help="Minutes for SASRec's tuning and training, about", min=0.1)
    ] = 20.0,
    ablations: Annotated[
        bool, typer.Option("--ablations", help="Also the funnel without each of its parts")
    ] = False,
    against: Annotated[
        str | None, typer.Option(help="Id of a release to compare with on the same events")
    ] = None,
    _replay: Annotated[
        bool, typer.Option("--replay", help="Replay event by event, in order of time (always on)")
    ] = True,
) -> None:
    """Replay the test slice through the current release; the last line is JSON."""
    from pipelines.display import result
    from pipelines.evaluation.report import show
    from pipelines.workflow.stages import run_evaluate

    use_all_cores()
    minutes = peer_minutes if peers else None
    figures = run_evaluate(
        workspace_of(home),
        limit,
        baselines=baselines,
        peer_minutes=minutes,
        ablations=ablations,
        against=against,
    )
    show(figures)
    result(json.dumps(figures.to_dict()))


@app.command()
def notebooks(
    home: Home = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the pages (default: work/notebooks)")
    ] = None,
) -> None:
    """Run the notebooks on a working folder and write them as HTML pages."""
    from pipelines.display import result
    from pipelines.evaluation.notebooks import run_notebooks

    use_all_cores()
    for page in run_notebooks(workspace_of(home), out or work_folder() / "notebooks"):
        result(str(page))


@app.command()
def serve(
    *,
    home: Home = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    workers: Annotated[int, typer.Option(help="Processes that answer requests", min=1)] = 1,
    user: Annotated[str, typer.Option(help="User of the printed call", hidden=True)] = "1",
    next_steps: Annotated[
        bool, typer.Option("--next-steps", help="Print what to do next", hidden=True)
    ] = False,
) -> None:
    """Serve the current release over HTTP."""
    use_one_core()
    from pipelines.workflow.demo import run_server

    run_server(workspace_of(home), (host, port), workers, user, next_steps=next_steps)


@app.command()
def demo(
    *,
    data: Data = "synthetic",
    data_dir: DataDir = None,
    home: NewHome = None,
    full: Annotated[
        bool, typer.Option("--full", help="Every kind of ranker, and the whole test slice")
    ] = False,
    serve: Annotated[bool, typer.Option(help="Start the API at the end")] = True,
    host: Host = "127.0.0.1",
    port: Port = 8000,
) -> None:
    """Run every stage, show three users' recommendations, and start the API."""
    from pipelines.workflow import demo

    use_all_cores()
    workspace = demo.run_demo(data, data_dir, home, demo.FULL if full else demo.QUICK)
    users = demo.show_recommendations(workspace)
    if serve:
        demo.become_server(workspace, host, port, users[0])
    demo.show_next_steps(workspace, serving=False)


def main() -> None:
    """Run the command line."""
    app()
