"""The stages, each runnable alone and safe to run twice: what the command line calls."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feature_repo.dataset import SpecError
from feature_repo.files import link_atomically, staged_folder
from feature_repo.hashing import fingerprint
from feature_repo.workspace import MissingStage, Workspace
from pipelines import display
from pipelines.synthetic.world import BUILT_IN
from pipelines.workflow.data_sets import find_spec, workspace_for
from pipelines.workflow.train_options import TrainOptions, train_settings

if TYPE_CHECKING:
    from pipelines.evaluation.figures import Evaluation
    from pipelines.ingest.report import IngestReport
    from ranking.report import RankerReport

SHORT_JOB_EVENTS = 500_000
"""Up to so many events the feature job is over before Java's optimising compiler has paid off."""

ONE_PARTITION_EVENTS = 30_000
"""Up to so many events, planning costs more than one partition for all of them."""

ONE_PARTITION = {"spark.sql.shuffle.partitions": "1", "spark.sql.adaptive.enabled": "false"}

FEATURES_VERSION = 2
"""Raised when the feature job's meaning changes, so that its tables are made anew."""


def run_ingest(
    data: str,
    data_dir: Path | None,
    home: Path | None,
    *,
    shift_to_now: bool,
    strict: bool = False,
) -> tuple[Workspace, IngestReport]:
    """Ingest a data set; a built-in world is generated first.

    ``strict``: write nothing if a share of the data is implausible.
    """
    from pipelines.ingest.ingest import ingest

    spec = find_spec(data)
    if data_dir is None and data not in BUILT_IN:
        if not data.endswith(".toml"):
            raise SpecError(f"'{data}' needs its files: give --data-dir (make: DATA_DIR=<folder>)")
        data_dir = Path(data).resolve().parent
    workspace = workspace_for(spec, home)
    if data_dir is None:
        data_dir = _generate(data, workspace)

    with display.stage("Ingest") as stage:
        report = ingest(
            spec,
            data_dir,
            workspace,
            shift_to_now=shift_to_now,
            strict=strict,
            progress=stage,
        )
        stage.summary = (
            f"{report.total_events:,} events, {report.users:,} users, {report.items:,} items"
        )
        if bad := sum(report.quarantined.values()):
            stage.summary += f"; {bad:,} bad rows in {workspace.ingest / 'quarantine'}"
    return workspace, report


def _generate(name: str, workspace: Workspace) -> Path:
    """Generate a built-in world in ``raw/`` of its working folder and return that folder.

    Raises:
        SpecError: other events than this world's have been ingested there.

    """
    from pipelines.synthetic.generate import generate, holds_another_world

    config = BUILT_IN[name]
    folder = workspace.root / "raw"
    if workspace.ingest.is_dir() and holds_another_world(folder, config):
        raise SpecError(
            f"{workspace.root} holds another built-in world than '{name}' of this version: "
            "remove that folder, or give another one with --home"
        )
    with display.stage("Generate the built-in world"):
        generate(folder, config, name)
    return folder


def run_features(workspace: Workspace, master: str | None = None) -> Path:
    """Compute the offline tables with Spark; nothing is done if they are of this data already."""
    from pipelines.ingest.ingested import data_version, event_count, event_files, log_position

    spec = workspace.spec()
    version = fingerprint(data_version(workspace), FEATURES_VERSION)
    final = workspace.root / "features" / version
    if (
        final.is_dir()
        and workspace.features.is_dir()
        and workspace.features.resolve() == final.resolve()
    ):
        display.console.print("[green]Features[/]: up to date")
        return final
    from pipelines.features.spark import spark_session
    from pipelines.features.spark_job import build_features
    from pipelines.streaming.offline import carry_over, tables_lock

    with display.stage("Features (Spark)") as stage:
        stage("starting Spark", 0, 0)
        files = event_files(workspace)
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
                    event_files=files,
                    progress=say,
                    log_position=log_position(workspace),
                )
                stage.summary = f"{sum(rows.values()):,} rows in {len(rows)} tables"
        finally:
            spark.stop()
    with tables_lock(workspace, exclusive=True):
        if workspace.features.is_dir():
            carry_over(workspace.features.resolve(), final)
        link_atomically(workspace.features, final)
    for old in final.parent.iterdir():
        if old.is_dir() and not old.is_symlink() and old != final:
            shutil.rmtree(old)
    return final


def run_materialize(workspace: Workspace) -> None:
    """Register the views with Feast and write the latest features to Redis."""
    if not workspace.features.is_dir():
        raise MissingStage(f"no features in {workspace.root}: run 'funnel features' first")
    from feature_repo.stores.feature_store import apply, feature_store
    from feature_repo.views import NEVER_STALE

    with display.stage("Materialize (Feast -> Redis)"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Feast's own deprecations
        store = feature_store(workspace)
        apply(store, workspace)
        now = datetime.now(UTC)
        with _muted():
            store.materialize(start_date=now - NEVER_STALE, end_date=now)


def _muted() -> Any:
    """Return a context in which Feast's own progress bars go nowhere."""
    os.environ.setdefault("TQDM_DISABLE", "1")
    return contextlib.redirect_stdout(io.StringIO())


def run_train(workspace: Workspace, options: TrainOptions) -> RankerReport:
    """Train towers, index and rankers.

    Raises:
        MissingStage: there is no data, nothing was tuned, or there is no release.
        SpecError: the release is of another data set.
        NothingNew: the release was trained on all events already.

    """
    from pipelines.training.train import train, train_served

    settings = train_settings(workspace, options)
    with display.stage("Train") as stage:
        if options.attribution_hours is None:
            report = train(workspace, stage, settings, announce=display.console.print)
        else:
            attribution_s = options.attribution_hours * 3_600
            report = train_served(
                workspace, attribution_s, stage, settings.rankers, ipw=options.ipw
            )
        stage.summary = f"{', '.join(report.kinds)}; best: {report.best}"
    return report


def show_rankers(report: RankerReport) -> None:
    """Print each ranker's validation metrics, and the position bias that impressions show."""
    rows = []
    head = next(iter(report.kinds[report.best].heads))
    for kind, figures in sorted(report.kinds.items(), key=lambda pair: pair[1].ndcg or 0.0):
        name = f"{kind} *" if kind == report.best else kind
        first = figures.heads[head]
        below, error = report.behind[kind]
        behind = f"{below:.4f} ± {error:.4f}"
        rows.append(
            [name, figures.ndcg or 0.0, behind, first.auc or 0.0, first.log_loss, first.ece]
        )
    if report.positions:
        shown = [
            [one["position"], one["shown"], one["click_rate"], one["propensity"]]
            for one in report.positions
        ]
        display.table("Positions (0: the best)", ["", "shown", "click rate", "examined"], shown)
    display.table(
        "Rankers on validation",
        ["", "NDCG@10", "below the best", f"AUC {head}", "log loss", "ECE"],
        rows,
    )


def run_release(workspace: Workspace, rules: Path | None, ranker: str | None = None) -> Path:
    """Pack and check a release, and make it the current one.

    Args:
        workspace: the working folder.
        rules: a file of filter rules; by default those that ship.
        ranker: the ranker to release; by default the best in training.

    """
    from pipelines.training.release import make_release

    with display.stage("Release") as stage:
        folder = make_release(workspace, rules, ranker)
        stage.summary = folder.name
    return folder


def run_evaluate(
    workspace: Workspace,
    limit: int | None = None,
    *,
    baselines: bool = True,
    peer_minutes: float | None = None,
    ablations: bool = False,
    against: str | None = None,
) -> Evaluation:
    """Evaluate the current release and return the figures.

    Raises:
        UnknownRelease: there is no release of the id ``against``, or several.

    """
    from pipelines.evaluation.evaluate import evaluate
    from pipelines.training.release_pointer import current_release, find_release

    folder = current_release(workspace)
    other = find_release(workspace, against) if against else None
    with display.stage("Evaluate") as stage:
        figures = evaluate(
            workspace,
            folder,
            stage,
            limit,
            baselines=baselines,
            peer_minutes=peer_minutes,
            ablations=ablations,
            against=other,
        )
        models = ("funnel", "two_tower", "popular")
        shown = (f"{name} {figures.models[name]['ndcg@10']:.3f}" for name in models)
        stage.summary = f"NDCG@10 of {figures.events:,} events: {', '.join(shown)}"
    return figures
