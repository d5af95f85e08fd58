"""Measures a calibrated ranker on rows that nothing was fitted to."""

from __future__ import annotations

import math

from feature_repo.arrays import Float64Array
from ranking.data import RankingData
from ranking.metrics import auc, ece, log_loss, mean_known, ndcg_at_k, ndcg_per_request
from ranking.models.scorer import CalibratedRanker
from ranking.report import HeadReport, KindReport


def measure(
    calibrated: CalibratedRanker, data: RankingData, k: int, version: str
) -> tuple[KindReport, Float64Array]:
    """Return the metrics of a ranker, and its NDCG@k of each request, float64 [R].

    Args:
        calibrated: what is measured.
        data: rows that it was not made from.
        k: length of a list.
        version: fingerprint for the report.

    """
    schema = calibrated.schema
    raw = calibrated.ranker.predict(data.numeric, data.categorical)
    score, probabilities = calibrated.score(data.numeric, data.categorical)

    heads = {}
    for column, head in enumerate(schema.heads):
        labels = data.labels[:, column]
        p = probabilities[:, column]
        heads[head] = HeadReport(
            auc=_known(auc(labels, p)),
            log_loss=log_loss(labels, p),
            log_loss_raw=log_loss(labels, raw[:, column]),
            ece=ece(labels, p),
            ece_raw=ece(labels, raw[:, column]),
            calibration=calibrated.calibration.heads[column].method,
        )

    ndcg = ndcg_per_request(data.relevance(schema), score, data.request, k)
    weights = data.request_weights()
    weighted = ndcg_at_k(data.gain(schema), score, data.request, k, weights=weights)
    report = KindReport(
        version=version,
        ndcg=_known(mean_known(ndcg, weights)),
        weighted_ndcg=_known(weighted),
        heads=heads,
    )
    return report, ndcg


def figures(report: KindReport, k: int) -> dict[str, float]:
    """Return a report's defined metrics by name, for a log."""
    values = {f"ndcg@{k}": report.ndcg, f"weighted_ndcg@{k}": report.weighted_ndcg}
    for name, head in report.heads.items():
        values[f"{name}_auc"] = head.auc
        values[f"{name}_log_loss"] = head.log_loss
        values[f"{name}_ece"] = head.ece
    values |= report.sanity
    return {name: value for name, value in values.items() if value is not None}


def _known(value: float) -> float | None:
    """Return None for NaN, which JSON has not."""
    return None if math.isnan(value) else value
