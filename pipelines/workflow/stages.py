"""The stages, each runnable alone and safe to run twice: what the command line calls."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feature_repo.dataset import DatasetSpec, SpecError, load_spec
from feature_repo.workspace import (
    PROJECT_ROOT,
    MissingStage,
    Workspace,
    fingerprint,
    link_atomically,
    staged_folder,
)
from pipelines import display

if TYPE_CHECKING:
    from pipelines.evaluation.figures import Evaluation
    from ranking.training.train_rankers import RankerReport
    from serving.recommender.candidates import CandidateQuota

SPECS = Path(__file__).resolve().parent.parent / "specs"
FEATURES_VERSION = 2
"""Raised when the feature job's meaning changes, so that its tables are made anew."""


def known_specs() -> list[str]:
    """Return the names of the data sets whose layout Funnel knows."""
    return sorted(path.stem for path in SPECS.glob("*.toml"))


def find_spec(data: str) -> DatasetSpec:
    """Return the spec of a known data set, or the one in a ``dataset.toml``.

    Raises:
        SpecError: neither is there, or the file breaks the schema.

    """
    if data in known_specs():
        return load_spec(SPECS / f"{data}.toml")
    if data.endswith(".toml"):
        return load_spec(Path(data))
    raise SpecError(
        f"unknown data set '{data}': choose from {known_specs()}, or give the path of a dataset.toml"
    )


def workspace_for(spec: DatasetSpec, home: Path | None) -> Workspace:
    """Return the working folder of a data set; the default one becomes ``work/current``."""
    if home is not None:
        return Workspace(home.resolve())
    root = PROJECT_ROOT / "work" / spec.name
    root.mkdir(parents=True, exist_ok=True)
    link_atomically(PROJECT_ROOT / "work" / "current", root)
    return Workspace(root)


def run_ingest(
    data: str, data_dir: Path | None, home: Path | None, shift_to_now: bool
) -> Workspace:
    """Ingest a data set (the built-in one is generated first) and print the report."""
    from pipelines.ingest.ingest import ingest

    spec = find_spec(data)
    if data_dir is None and spec.name != "synthetic":
        if not data.endswith(".toml"):
            raise SpecError(f"'{data}' needs its files: give --data-dir (make: DATA_DIR=<folder>)")
        data_dir = Path(data).resolve().parent
    workspace = workspace_for(spec, home)
    if data_dir is None:
        from pipelines.synthetic.generate import generate

        data_dir = workspace.root / "raw"
        with display.stage("Generate the built-in world"):
            generate(data_dir)
    with display.stage("Ingest") as progress:
        report = ingest(spec, data_dir, workspace, shift_to_now=shift_to_now, progress=progress)
    rows = [
        ["new files", report.files],
        ["new events", report.events],
        ["all events", report.total_events],
    ]
    rows += [
        ["users", report.users],
        ["items", report.items],
        ["shifted by days", report.shift_s // 86_400],
    ]
    rows += [
        [f"quarantined: {reason}", count] for reason, count in sorted(report.quarantined.items())
    ]
    display.table("Ingest", ["", "rows"], rows)
    return workspace


def run_features(workspace: Workspace, master: str | None = None) -> Path:
    """Compute the offline tables with Spark; nothing is done if they are of this data already."""
    from pipelines.ingest.ingest import data_version, event_files, log_position

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

    with display.stage("Features (Spark)") as progress:
        progress("starting Spark", 0, 1)
        spark = spark_session("funnel-features", master, workspace.root)
        try:
            with staged_folder(final) as folder:
                files = event_files(workspace)
                say: Callable[[str], None] = lambda what: progress(what, 0, 1)  # noqa: E731
                build_features(
                    spark, spec, workspace.ingest, folder, files, say, log_position(workspace)
                )
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
    """Register the views with Feast and write the newest features of every user and item to Redis."""
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


def run_train(
    workspace: Workspace,
    attribution_hours: float | None = None,
    *,
    tuned: bool = False,
    warm_start: bool = False,
    ipw: bool = False,
    logq: bool = True,
    seed: int | None = None,
    quota: CandidateQuota | None = None,
) -> None:
    """Train towers, index and rankers, and print the rankers' table.

    With ``attribution_hours`` only the rankers are trained, from what was served and the events
    that followed within that time; with ``ipw`` weighted against the bias of positions. With
    ``tuned`` the settings are those that ``funnel tune`` found. With ``warm_start`` the training
    goes on from the current release. Without ``logq`` the towers' loss is not corrected for how
    negatives are drawn. ``seed`` is of all that is drawn, samples of requests included; ``quota``
    says how many candidates each source may propose.

    Raises:
        MissingStage: there are no data, nothing was tuned, or there is no release.
        SpecError: the release is of another data set.
        NothingNew: the release has learned from all events already.

    """
    from pipelines.training.config import SampleConfig
    from pipelines.training.train import TrainSettings, train, train_served
    from pipelines.training.warm_start import WarmStartConfig
    from ranking.config import RankerConfig
    from retrieval.towers.training import TowerTrainingConfig

    config, shape, rankers = None, None, None
    if tuned:
        from pipelines.search.results import Tuned

        found = Tuned.of(workspace)
        config, shape, rankers = found.train_config, found.shape, found.ranker_config
        for line in found.describe(workspace):
            display.console.print(line)
    if not logq:
        config = replace(config or TowerTrainingConfig(), logq=False)
    sample = SampleConfig()
    if seed is not None:
        config, rankers = (
            replace(config or TowerTrainingConfig(), seed=seed),
            replace(rankers or RankerConfig(), seed=seed),
        )
        sample = SampleConfig(seed=seed)
    with display.stage("Train") as progress:
        if attribution_hours is None:
            settings = TrainSettings(
                towers=config,
                shape=shape,
                quota=quota,
                sample=sample,
                rankers=rankers,
                warm_start=WarmStartConfig() if warm_start else None,
            )
            report = train(workspace, progress, settings, announce=display.console.print)
        else:
            report = train_served(workspace, attribution_hours * 3_600, progress, rankers, ipw=ipw)
    _show_rankers(report)


def _show_rankers(report: RankerReport) -> None:
    """Print what each kind is worth, and what impressions say of positions."""
    rows, head = [], next(iter(report.kinds[report.best].heads))
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
    """Pack and check a release (of the named ranker, else the chosen one), and make it the current one."""
    from pipelines.training.release import make_release

    with display.stage("Release"):
        folder = make_release(workspace, rules, ranker)
    display.console.print(f"release {folder.name}")
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
    """Evaluate the current release, print its tables and return the figures.

    Raises:
        UnknownRelease: there is no release of the id ``against``, or several.

    """
    from pipelines.evaluation.evaluate import evaluate
    from pipelines.evaluation.report import show
    from pipelines.training.release import current_release, find_release

    folder = current_release(workspace)
    other = find_release(workspace, against) if against else None
    with display.stage("Evaluate") as progress:
        evaluation = evaluate(
            workspace,
            folder,
            progress,
            limit,
            baselines=baselines,
            peer_minutes=peer_minutes,
            ablations=ablations,
            against=other,
        )
    show(evaluation)
    return evaluation
