"""Trains every kind of ranker, calibrates and measures it, and names the kind to serve."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from feature_repo.arrays import Float64Array
from feature_repo.files import read_json, staged_folder, write_json
from feature_repo.hashing import file_hash, fingerprint
from feature_repo.sanity import Guard
from ranking.config import RankerConfig, WarmStart
from ranking.data import RankingData
from ranking.metrics import difference
from ranking.models import Ranker, load
from ranking.models.base import CannotContinue, RankerLog
from ranking.models.scorer import CalibratedRanker
from ranking.report import KindReport, NdcgGap, RankerReport
from ranking.row_schema import RowSchema
from ranking.training.fit import fit
from ranking.training.measure import figures, measure
from ranking.training.sanity import GRADIENT_KINDS, check_kind
from ranking.training.selection import choose_kind
from ranking.training.task import FitTask
from ranking.transform import RowTransform

_REVISION = 5
"""Raised when equal data and settings give another result, so that old folders are made again."""

_MANIFEST = "manifest.json"
VALIDATION = "validation.npz"
"""File of a kind: its NDCG of each selection request, to compare kinds; no server reads it."""


@dataclass(frozen=True)
class RankerSets:
    """Labelled rows of one schema.

    Attributes:
        train: what models and transforms are fitted to.
        calibration: what stops trainings early and what probabilities are calibrated on.
        selection: what kinds are measured and compared on; nothing is fitted to them.
        schema: columns of all three.

    """

    train: RankingData
    calibration: RankingData
    selection: RankingData
    schema: RowSchema


def train_rankers(
    sets: RankerSets,
    folder: Path,
    config: RankerConfig,
    log: RankerLog,
    *,
    start: WarmStart | None = None,
    positions: list[dict[str, int | float]] | None = None,
    trained_on: str | None = None,
) -> RankerReport:
    """Train the configured kinds into ``folder/<kind>`` and write ``folder/report.json``.

    A kind whose folder is complete and was made from the same data and settings is not trained
    again. A kind appears in one step, so a killed run resumes and ends with the bytes of an
    undisturbed one.

    Args:
        sets: the rows.
        folder: where models go.
        config: which kinds, and their settings.
        log: called with a kind and its figures (steps, trees, metrics, seconds).
        start: an earlier ranker. One of its kind continues from it, for less than ``config`` says;
            where that is impossible it starts cold. ``log`` gets ``continued``, 1 or 0.
        positions: goes into the report.
        trained_on: goes into the report: the id of the candidate generator.

    Raises:
        CannotLearn: a kind failed one of its checks.
        ValueError: data and schema disagree.

    """
    for data in (sets.train, sets.calibration, sets.selection):
        data.check(sets.schema)
    folder.mkdir(parents=True, exist_ok=True)
    job = _Job(sets, config, log, start)
    trained = {kind: _train_kind(job, kind, folder / kind) for kind in config.kinds}

    kinds = {kind: report for kind, (report, _) in trained.items()}
    best = max(kinds, key=lambda kind: kinds[kind].ndcg or 0.0)
    users = sets.selection.request_users()
    weights = sets.selection.request_weights()
    behind = {
        kind: NdcgGap(*difference(trained[best][1], ndcg, users, weights=weights))
        for kind, (_, ndcg) in trained.items()
    }
    largest_gap = config.tolerance * (kinds[best].ndcg or 0.0)
    report = RankerReport(
        best=choose_kind(behind, config.standard_errors, largest_gap),
        config=config,
        kinds=kinds,
        behind=behind,
        positions=positions,
        trained_on=trained_on,
    )
    write_json(folder / "report.json", report.to_dict())
    return report


@dataclass
class _Job:
    """One call of ``train_rankers``, and what several kinds share."""

    sets: RankerSets
    config: RankerConfig
    log: RankerLog
    start: WarmStart | None

    @cached_property
    def data_version(self) -> str:
        parts = (self.sets.train, self.sets.calibration, self.sets.selection)
        return fingerprint(self.sets.schema.to_dict(), [part.digest() for part in parts])

    @cached_property
    def start_version(self) -> list[Any]:
        if self.start is None:
            return []
        files = [file_hash(path) for path in sorted(self.start.folder.iterdir()) if path.is_file()]
        return [*files, self.start.rounds, self.start.steps, self.start.learning_rate]

    @cached_property
    def task(self) -> FitTask:
        transform = RowTransform.fit(self.sets.train.numeric)
        return FitTask(
            train=self.sets.train,
            held_out=self.sets.calibration,
            transform=transform,
            schema=self.sets.schema,
            config=self.config,
        )


def _train_kind(job: _Job, kind: str, folder: Path) -> tuple[KindReport, Float64Array]:
    """Return the report of one kind, and its NDCG of each selection request, float64 [R]."""
    settings = job.config.part(kind)
    version = fingerprint(_REVISION, kind, job.data_version, settings, *job.start_version)
    finished = _finished(folder, version)
    if finished:
        job.log(kind, {"resumed": 1.0})
        return finished

    started = time.perf_counter()
    with staged_folder(folder) as staging:
        sanity = check_kind(kind, job.task)
        guard = Guard(kind)
        ranker = _continue(job, kind, guard) if job.start else fit(kind, job.task, guard, job.log)
        sanity["steps"] = float(guard.steps)
        if kind in GRADIENT_KINDS:
            sanity["largest_gradient_norm"] = guard.largest_norm
        seconds = time.perf_counter() - started

        calibrated = CalibratedRanker.fit(ranker, job.sets.calibration)
        calibrated.save(staging)
        report, ndcg = measure(calibrated, job.sets.selection, job.config.ndcg_k, version)
        report = report.model_copy(update={"sanity": sanity})
        np.savez(staging / VALIDATION, ndcg=ndcg)
        files = {path.name: file_hash(path) for path in sorted(staging.iterdir())}
        write_json(staging / _MANIFEST, {"report": report.to_dict(), "files": files})
    job.log(kind, {"seconds": seconds, **figures(report, job.config.ndcg_k)})
    return report, ndcg


def _finished(folder: Path, version: str) -> tuple[KindReport, Float64Array] | None:
    """Return a kind's report and NDCG if its folder is complete and of this version, else None."""
    if not (folder / _MANIFEST).is_file():
        return None
    manifest = read_json(folder / _MANIFEST)
    report = KindReport.model_validate(manifest["report"])
    files: dict[str, str] = manifest["files"]
    complete = all(
        (folder / name).is_file() and file_hash(folder / name) == expected
        for name, expected in files.items()
    )
    if not complete or report.version != version:
        return None
    with np.load(folder / VALIDATION) as arrays:
        return report, arrays["ndcg"]


def _continue(job: _Job, kind: str, guard: Guard) -> Ranker:
    """Train one kind from the earlier ranker if possible, else from a cold start."""
    assert job.start is not None
    earlier = load(job.start.folder)
    try:
        if earlier.kind != kind or not job.sets.schema.extends(earlier.schema):
            raise CannotContinue("the earlier ranker is of another kind or reads other columns")
        shortened = replace(job.task, config=job.start.shorten(job.config))
        ranker = fit(kind, shortened, guard, job.log, earlier=earlier)
    except CannotContinue:
        job.log(kind, {"continued": 0.0})
        return fit(kind, job.task, guard, job.log)
    job.log(kind, {"continued": 1.0})
    return ranker
