"""The stages, each runnable alone and safe to run twice: what the command line calls."""

from __future__ import annotations

import contextlib
import io
import os
import uuid
import warnings
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feature_repo.dataset import SpecError
from feature_repo.hashing import fingerprint
from feature_repo.stage_locks import Written, stage_lock
from feature_repo.workspace import MissingStage, Workspace
from pipelines import display
from pipelines.synthetic.world import BUILT_IN
from pipelines.workflow.data_sets import find_spec, workspace_for
from pipelines.workflow.feature_tables import build_tables, take_into_use
from pipelines.workflow.train_options import TrainOptions, train_settings

if TYPE_CHECKING:
    from pipelines.evaluation.figures import Evaluation
    from pipelines.ingest.report import IngestReport
    from ranking.report import RankerReport

FEATURES_VERSION = 3
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
    """Compute the offline tables with Spark; nothing is done if they are of this data already.

    Tables with a damaged file are made anew.

    Raises:
        StageRunning: another command makes the tables.

    """
    with stage_lock(workspace, Written.FEATURES):
        return _run_features(workspace, master)


def _run_features(workspace: Workspace, master: str | None) -> Path:
    from feature_repo.declarations.reading import declared_in
    from pipelines.features.whole_tables import damage_of, set_torn_files_aside
    from pipelines.ingest.ingested import data_version

    declared = declared_in(workspace).version
    version = fingerprint(data_version(workspace), FEATURES_VERSION, declared)
    final = workspace.root / "features" / version
    present = workspace.features.resolve() if workspace.features.is_dir() else None
    if present and present.name.partition("-")[0] == version:
        set_torn_files_aside(present)
        damage = damage_of(present, hashes=True)
        if damage is None:
            display.console.print("[green]Features[/]: up to date")
            return present
        display.console.print(f"[yellow]Features[/]: made anew, as {damage}", soft_wrap=True)
        # Not under the same name: what the stream appended there is carried over.
        final = final.with_name(f"{version}-{uuid.uuid4().hex[:8]}")
    build_tables(workspace, final, master)
    take_into_use(workspace, final)
    return final


def run_materialize(workspace: Workspace) -> None:
    """Register the views with Feast and write the latest features to Redis.

    Raises:
        MissingStage: there are no offline tables.
        DamagedTable: a file of them cannot be read.
        StageRunning: another command materializes.

    """
    if not workspace.features.is_dir():
        raise MissingStage(f"no features in {workspace.root}: run 'funnel features' first")
    from feature_repo.declarations.built_in import NEVER_STALE
    from feature_repo.stores.feature_store import apply, feature_store
    from pipelines.features.feast_session import feast_session
    from pipelines.features.whole_tables import require_whole_tables

    require_whole_tables(workspace)
    with (
        stage_lock(workspace, Written.ONLINE),
        feast_session(workspace),
        display.stage("Materialize (Feast -> Redis)"),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # Feast's own deprecations
        store = feature_store(workspace)
        views = apply(store, workspace)
        now = datetime.now(UTC)
        with _muted():
            store.materialize(start_date=now - NEVER_STALE, end_date=now, feature_views=views)


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
