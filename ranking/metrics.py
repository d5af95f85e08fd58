"""How good probabilities and orders are. Ties never profit from the order of the rows."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from feature_repo.arrays import Float64Array, Int64Array
from ranking.data import group_starts

_Values = npt.NDArray[np.floating]


def auc(labels: _Values, scores: _Values) -> float:
    """Return the chance that a positive row scores above a negative one, ties counting half.

    The Mann-Whitney form of the area under the ROC curve (Fawcett 2006, "An introduction to ROC
    analysis"). Labels 0/1 [n], scores [n]. NaN when one class is absent.
    """
    positive = labels > 0
    n_positive, n_negative = int(positive.sum()), int((~positive).sum())
    if not n_positive or not n_negative:
        return float("nan")
    _, group, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[group]
    return float(
        (ranks[positive].sum() - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative)
    )


def log_loss(labels: _Values, probabilities: _Values) -> float:
    """Return the mean negative log likelihood in nats; probabilities are kept 1e-7 off 0 and 1.

    A proper scoring rule (Good 1952): least, in expectation, at the true probabilities. Labels 0/1
    [n], probabilities [n].
    """
    p = np.clip(probabilities.astype(np.float64), 1e-7, 1 - 1e-7)
    return float(-np.where(labels > 0, np.log(p), np.log1p(-p)).mean())


def ece(labels: _Values, probabilities: _Values, bins: int = 15) -> float:
    """Return the expected calibration error over bins of equal mass.

    The mean over bins of ``|mean label - mean probability|``, weighted by bin size; equal-mass bins
    after Nguyen & O'Connor (2015) and Nixon et al. (2019, "Measuring calibration in deep
    learning"). Labels 0/1 [n], probabilities [n].
    """
    rows, predicted, rate = calibration_curve(labels, probabilities, bins)
    return float((np.abs(rate - predicted) * rows).sum() / rows.sum())


def calibration_curve(
    labels: _Values, probabilities: _Values, bins: int = 15
) -> tuple[Int64Array, Float64Array, Float64Array]:
    """Return the calibration curve over bins of equal mass, the least probable first.

    Rows of equal probability share their labels, so it does not matter how ties fall into bins;
    bins without rows are left out. Labels 0/1 [n], probabilities [n], n at least 1.

    Returns:
        Number of rows, mean probability and mean label of each bin, [bins] each.

    """
    # Distinct probabilities [u] with the mean label of each.
    p = probabilities.astype(np.float64)
    unique, group, counts = np.unique(p, return_inverse=True, return_counts=True)
    rate = np.bincount(group, weights=labels) / counts

    # Sums over each bin, as differences of cumulative sums at the bins' edges.
    edges = np.linspace(0, len(p), bins + 1).round().astype(np.intp)
    rows = np.diff(edges)
    sums = [
        np.diff(np.r_[0.0, np.cumsum(np.repeat(values, counts))][edges])
        for values in (unique, rate)
    ]
    filled = rows > 0
    predicted, observed = (total[filled] / rows[filled] for total in sums)
    return rows[filled].astype(np.int64), predicted, observed


def ndcg_per_request(
    gains: _Values, scores: _Values, request: Int64Array, k: int = 10
) -> Float64Array:
    """Return NDCG@k of each request, float64 [R]; NaN for a request without any gain.

    Linear gain, discount ``1 / log2(rank + 1)`` (Järvelin & Kekäläinen 2002). Rows of equal score
    get the mean over all orders of the tie (McSherry & Najork 2008), as scikit-learn's
    ``ndcg_score`` does. Gains >= 0 [n], scores [n], request ids [n], sorted.
    """
    # The discount of each rank of each request, [n].
    starts = group_starts(request)
    group = np.repeat(np.arange(len(starts)), np.diff(np.r_[starts, len(request)]))
    rank = np.arange(len(request)) - starts[group]
    discount = np.where(rank < k, 1.0 / np.log2(rank + 2.0), 0.0)

    # Rows by score; where a tie begins, [ties], and how many rows it has.
    order = np.lexsort((-scores, group))
    ranked = gains[order].astype(np.float64)
    sorted_scores = scores[order]
    new_tie = np.r_[True, (sorted_scores[1:] != sorted_scores[:-1]) | (group[1:] != group[:-1])]
    ties = np.flatnonzero(new_tie)
    sizes = np.diff(np.r_[ties, len(request)])

    # DCG and the best possible DCG of each request, [R]; a tie's gains share its discounts.
    expected = np.add.reduceat(ranked, ties) * np.add.reduceat(discount, ties) / sizes
    dcg = np.bincount(group[ties], weights=expected, minlength=len(starts))
    best = np.bincount(
        group, weights=gains[np.lexsort((-gains, group))] * discount, minlength=len(starts)
    )
    ratio: Float64Array = np.divide(dcg, best, out=np.full(len(starts), np.nan), where=best > 0)
    return ratio


def ndcg_at_k(
    gains: _Values,
    scores: _Values,
    request: Int64Array,
    k: int = 10,
    *,
    weights: Float64Array | None = None,
) -> float:
    """Return the mean NDCG@k over requests with any gain; NaN without one.

    Args:
        gains: at least 0, [n].
        scores: [n].
        request: sorted ids, int64 [n].
        k: length of a list.
        weights: of the requests, float64 [R]; None: equal.

    """
    return mean_known(ndcg_per_request(gains, scores, request, k), weights)


def mean_known(values: Float64Array, weights: Float64Array | None = None) -> float:
    """Return the mean of the values that are not NaN; NaN when all are.

    Args:
        values: float64 [R].
        weights: float64 [R]; None: equal.

    """
    known = ~np.isnan(values)
    if not known.any():
        return float("nan")
    return float(np.average(values[known], weights=None if weights is None else weights[known]))


def difference(
    first: Float64Array,
    second: Float64Array,
    users: Int64Array,
    *,
    weights: Float64Array | None = None,
) -> tuple[float, float]:
    """Return the mean of ``first - second`` over the same requests, and its standard error.

    Requests of one user are not independent: deviations are summed by user first (cluster-robust,
    Liang and Zeger, Biometrika 1986). Without values, both are 0.

    Args:
        first: float64 [R], NaN for a request without a value.
        second: float64 [R], NaN for the same requests.
        users: the user of each request, int64 [R].
        weights: float64 [R]; None: equal.

    """
    known = ~np.isnan(first)
    if not known.any():
        return 0.0, 0.0
    weight = np.ones(len(first)) if weights is None else weights
    share = weight[known] / weight[known].sum()
    values = (first - second)[known]
    mean = float(share @ values)
    _, user = np.unique(users[known], return_inverse=True)
    return mean, float(np.sqrt((np.bincount(user, share * (values - mean)) ** 2).sum()))
