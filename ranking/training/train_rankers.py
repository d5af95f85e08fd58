"""Train every kind of ranker, calibrate it, measure it, and name the best."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from feature_repo.arrays import Float64Array
from feature_repo.files import read_json, staged_folder, write_json
from feature_repo.hashing import file_hash, fingerprint
from feature_repo.sanity import Guard
from feature_repo.workspace import MissingStage
from ranking.config import RankerConfig, WarmStart
from ranking.data import RankingData, RowSchema
from ranking.metrics import auc, difference, ece, log_loss, mean_known, ndcg_at_k, ndcg_per_request
from ranking.models import Ranker, load
from ranking.models.base import CannotContinue, Log
from ranking.models.scorer import CalibratedRanker
from ranking.training.fit import Task, fit
from ranking.training.sanity import GRADIENT_KINDS, check_kind
from ranking.transform import RowTransform

_REVISION = 5
"""Raised when the same data and settings leave something else behind, so that old folders are made again."""

_MANIFEST = "manifest.json"
VALIDATION = "validation.npz"
"""File of a kind: its NDCG of each validation request, by which kinds are compared; no server needs it."""

COSTS = ("popularity", "logistic", "lambdarank", "lightgbm", "dcn")
"""All kinds, the cheapest to serve first: one booster costs less than one a head, and both less than the network."""

BASELINE = "popularity"
"""Served only if nothing is better: few requests must not make it pass for as good as what has learned."""


@dataclass(frozen=True)
class HeadReport:
    """Validation figures of one head; None where they are undefined. ``raw``: before calibration."""

    auc: float | None
    log_loss: float
    log_loss_raw: float
    ece: float
    ece_raw: float
    calibration: str


@dataclass(frozen=True)
class KindReport:
    """Validation figures of one kind.

    Attributes:
        version: fingerprint of data and settings.
        ndcg: NDCG@k of the score, a row whose item was wanted gaining 1: what kinds are compared
            by.
        weighted_ndcg: the same with the weighted label as gain.
        heads: figures per head.
        sanity: figures of ``ranking.training.sanity``'s checks, and what the training's guard saw.

    """

    version: str
    ndcg: float | None
    weighted_ndcg: float | None
    heads: dict[str, HeadReport]
    sanity: dict[str, float] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> KindReport:
        """Return the report that ``asdict`` described."""
        heads = {name: HeadReport(**head) for name, head in values["heads"].items()}
        return cls(**{**values, "heads": heads})


@dataclass(frozen=True)
class RankerReport:
    """What ``report.json`` holds. No times: equal runs, equal bytes.

    Attributes:
        best: the kind to serve.
        config: the settings of a training anew.
        kinds: figures of every kind.
        behind: how far each kind's NDCG is below the highest, and the standard error of that, over
            users.
        positions: of impressions that were learnt from, how often each place was shown and taken
            up; else None.

    """

    best: str
    config: RankerConfig
    kinds: dict[str, KindReport]
    behind: dict[str, list[float]]
    positions: list[dict[str, float]] | None = None

    @classmethod
    def load(cls, folder: Path) -> RankerReport:
        """Return the report of a finished run.

        Raises:
            FileNotFoundError: the run has not finished.
            MissingStage: it was one of an earlier version.

        """
        values = read_json(folder / "report.json")
        if "config" not in values:
            raise MissingStage(f"{folder} is of an earlier version: run 'funnel train' again")
        kinds = {kind: KindReport.from_dict(report) for kind, report in values["kinds"].items()}
        config = RankerConfig.from_dict(values["config"])
        return cls(values["best"], config, kinds, values["behind"], values.get("positions"))


@dataclass
class _Job:
    """One call of ``train_rankers``: the data, and what several kinds share."""

    train: RankingData
    calibrate: RankingData
    validate: RankingData
    schema: RowSchema
    config: RankerConfig
    log: Log
    start: WarmStart | None

    @cached_property
    def data_version(self) -> str:
        parts = (self.train, self.calibrate, self.validate)
        return fingerprint(self.schema.to_dict(), [part.digest() for part in parts])

    @cached_property
    def start_version(self) -> list[Any]:
        if self.start is None:
            return []
        files = [file_hash(path) for path in sorted(self.start.folder.iterdir()) if path.is_file()]
        return [*files, self.start.rounds, self.start.steps, self.start.learning_rate]

    @cached_property
    def transform(self) -> RowTransform:
        return RowTransform.fit(self.train.numeric)


def train_rankers(
    train: RankingData,
    calibrate: RankingData,
    validate: RankingData,
    schema: RowSchema,
    folder: Path,
    config: RankerConfig,
    log: Log,
    start: WarmStart | None = None,
    positions: list[dict[str, float]] | None = None,
) -> RankerReport:
    """Train the configured kinds into ``folder/<kind>`` and write ``folder/report.json``.

    A kind whose folder is complete and was made from the same data and settings is not trained
    again; a kind appears in one step, so a killed run continues where it was and ends with the
    bytes of an undisturbed one.

    Args:
        train: rows that models and transforms learn from.
        calibrate: rows that say when to stop, and that probabilities are calibrated on.
        validate: rows that kinds are measured and compared by; nothing is fitted to them.
        schema: columns of all three.
        folder: where models go.
        config: which kinds, and their settings.
        log: called with a kind and its figures (steps, trees, validation figures, seconds).
        start: an earlier ranker. One of its kind goes on from it, for less than ``config`` says;
            where that cannot be, it is trained anew. ``log`` is told ``continued``, 1 or 0.
        positions: goes into the report.

    Raises:
        CannotLearn: a kind failed one of its checks.
        ValueError: data and schema disagree.

    """
    for data in (train, calibrate, validate):
        data.check(schema)
    job = _Job(train, calibrate, validate, schema, config, log, start)
    folder.mkdir(parents=True, exist_ok=True)
    trained = {kind: _train_kind(job, kind, folder / kind) for kind in config.kinds}
    kinds = {kind: report for kind, (report, _) in trained.items()}
    best = max(kinds, key=lambda kind: kinds[kind].ndcg or 0.0)
    of = validate.request_users(), validate.request_weights()
    behind = {
        kind: list(difference(trained[best][1], ndcg, *of)) for kind, (_, ndcg) in trained.items()
    }
    most = config.tolerance * (kinds[best].ndcg or 0.0)
    report = RankerReport(
        choose(behind, config.standard_errors, most), config, kinds, behind, positions
    )
    write_json(folder / "report.json", asdict(report))
    return report


def choose(behind: dict[str, list[float]], standard_errors: float, most: float) -> str:
    """Return the kind that is cheapest to serve among those that are not clearly worse than the best.

    Breiman et al. (1984, "Classification and Regression Trees", 3.4.3) choose the simplest within
    one standard error; differences here are paired, and two standard errors are what chance stays
    within in 95 of 100 samples.

    Args:
        behind: of each kind, how far it is below the best, and the standard error of that.
        standard_errors: as many of them are not clearly worse.
        most: what is further below is never near, however little is known.

    """
    near = [
        kind
        for kind in COSTS
        if kind in behind and behind[kind][0] <= min(standard_errors * behind[kind][1], most)
    ]
    return next(kind for kind in near if kind != BASELINE or behind[kind][0] == 0.0)


def _train_kind(job: _Job, kind: str, folder: Path) -> tuple[KindReport, Float64Array]:
    """Return the report of one kind, and its NDCG of each validation request, float64 [R]."""
    version = fingerprint(
        _REVISION, kind, job.data_version, job.config.part(kind), *job.start_version
    )
    finished = _finished(folder, version)
    if finished:
        job.log(kind, {"resumed": 1.0})
        return finished
    started = time.perf_counter()
    with staged_folder(folder) as staging:
        sanity = check_kind(kind, job.train, job.transform, job.schema, job.config)
        guard = Guard(kind)
        task = Task(job.train, job.calibrate, job.transform, job.schema, job.config)
        ranker = _continue(job, kind, task, guard) if job.start else fit(kind, task, guard, job.log)
        sanity["steps"] = float(guard.steps)
        if kind in GRADIENT_KINDS:
            sanity["largest_gradient_norm"] = guard.largest_norm
        seconds = time.perf_counter() - started
        calibrated = CalibratedRanker.fit(ranker, job.calibrate)
        calibrated.save(staging)
        report, ndcg = measure(calibrated, job.validate, job.config.ndcg_k, version, sanity)
        np.savez(staging / VALIDATION, ndcg=ndcg)
        files = {path.name: file_hash(path) for path in sorted(staging.iterdir())}
        write_json(staging / _MANIFEST, {"report": asdict(report), "files": files})
    job.log(kind, {"seconds": seconds, **_figures(report, job.config.ndcg_k)})
    return report, ndcg


def _finished(folder: Path, version: str) -> tuple[KindReport, Float64Array] | None:
    """Return the report of a folder whose files are the ones that its manifest lists, and its NDCG, else None."""
    if not (folder / _MANIFEST).is_file():
        return None
    manifest = read_json(folder / _MANIFEST)
    report = KindReport.from_dict(manifest["report"])
    files: dict[str, str] = manifest["files"]
    whole = all(
        (folder / name).is_file() and file_hash(folder / name) == seen
        for name, seen in files.items()
    )
    if not whole or report.version != version:
        return None
    with np.load(folder / VALIDATION) as arrays:
        return report, arrays["ndcg"]


def _continue(job: _Job, kind: str, task: Task, guard: Guard) -> Ranker:
    """Train one kind from where it was left, if it can be."""
    assert job.start is not None
    earlier = load(job.start.folder)
    try:
        if earlier.kind != kind or not job.schema.extends(earlier.schema):
            raise CannotContinue("another kind or other columns")
        ranker = fit(
            kind, replace(task, config=job.start.shorten(job.config)), guard, job.log, earlier
        )
    except CannotContinue:
        job.log(kind, {"continued": 0.0})
        return fit(kind, task, guard, job.log)
    job.log(kind, {"continued": 1.0})
    return ranker


def measure(
    calibrated: CalibratedRanker, data: RankingData, k: int, version: str, sanity: dict[str, float]
) -> tuple[KindReport, Float64Array]:
    """Return the figures of a ranker on rows that it was not made from, and its NDCG of each request, float64 [R]."""
    schema = calibrated.schema
    raw = calibrated.ranker.predict(data.numeric, data.categorical)
    score, p = calibrated.score(data.numeric, data.categorical)
    heads = {}
    for column, head in enumerate(schema.heads):
        labels = data.labels[:, column]
        heads[head] = HeadReport(
            auc=_known(auc(labels, p[:, column])),
            log_loss=log_loss(labels, p[:, column]),
            log_loss_raw=log_loss(labels, raw[:, column]),
            ece=ece(labels, p[:, column]),
            ece_raw=ece(labels, raw[:, column]),
            calibration=calibrated.calibration.heads[column].method,
        )
    ndcg = ndcg_per_request(data.wanted(schema), score, data.request, k)
    weights = data.request_weights()
    weighted = ndcg_at_k(data.worth(schema), score, data.request, k, weights)
    return KindReport(
        version, _known(mean_known(ndcg, weights)), _known(weighted), heads, sanity
    ), ndcg


def _known(value: float) -> float | None:
    """JSON has no NaN."""
    return None if math.isnan(value) else value


def _figures(report: KindReport, k: int) -> dict[str, float]:
    figures = {f"ndcg@{k}": report.ndcg, f"weighted_ndcg@{k}": report.weighted_ndcg}
    for name, head in report.heads.items():
        figures |= {
            f"{name}_auc": head.auc,
            f"{name}_log_loss": head.log_loss,
            f"{name}_ece": head.ece,
        }
    return {name: value for name, value in (figures | report.sanity).items() if value is not None}
