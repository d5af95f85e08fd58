"""``funnel skew``: the features that the ranker was served against the same features recomputed.

Every logged vector is recomputed, one request at a time as it was served, by serving's own tower,
retrieval and hydration. Their input comes from the offline tables and the archive of events
(``served_rows.py``).
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feature_repo.arrays import Float32Array, Float64Array, Int32Array
from feature_repo.errors import FunnelError
from feature_repo.progress import Progress
from feature_repo.workspace import MissingStage, Workspace
from pipelines import display
from pipelines.features.point_in_time import PointInTime
from pipelines.operations.served_rows import Overlays, ServedUsers, served_items
from pipelines.operations.skew_report import SkewReport
from pipelines.streaming.offline import read_archive, tables_lock
from serving.impressions import logged_filters, read_impressions
from serving.online.overlay import Columns
from serving.recommender.filters import AttributeRule, RequestRules
from serving.recommender.item_table import ItemTable
from serving.releases.manifest import MANIFEST
from serving.releases.release import Release, load_release

TOLERANCE = 1e-5
"""Numbers agree if they differ by no more than this, or than this share of the larger one."""

_ROWS_PER_BATCH = 500


class FeaturesSkewed(FunnelError):
    """Requests were served on features that the offline tables do not have."""


@dataclass(frozen=True)
class _ServedBy:
    """What answered a request: its release, and the release's item table as of then."""

    release: Release
    items: ItemTable


def skew(workspace: Workspace, impressions: pa.Table, progress: Progress) -> SkewReport:
    """Recompute the features that were served.

    Args:
        workspace: where they were served; its offline tables are locked meanwhile.
        impressions: rows of ``IMPRESSION_SCHEMA`` in order of time.
        progress: called after each request.

    """
    store = PointInTime(workspace).store
    report = SkewReport()
    added = pc.greater(pc.fill_null(impressions["added"], 0), 0)
    report.with_added_items = pc.sum(added, min_count=0).as_py()
    impressions = impressions.filter(pc.invert(added))
    with tables_lock(workspace, exclusive=False):
        overlays = Overlays(read_archive(workspace), impressions["user_id"])
        covered = pa.array(map(overlays.covers, impressions["position"].to_pylist()), pa.bool_())
        report.not_streamed_yet = len(impressions) - pc.sum(covered, min_count=0).as_py()
        users = ServedUsers(store, overlays)
        for name, served in _groups(impressions.filter(covered), "release"):
            if not (workspace.releases / str(name) / MANIFEST).is_file():
                report.other_releases += len(served)
                continue
            release = load_release(workspace.releases / str(name))
            for as_of, requests in _groups(served, "items_as_of"):
                served_by = _ServedBy(release, served_items(store, release, as_of))
                rows = users.read(requests, release)
                for request, columns in zip(_rows(requests), rows, strict=True):
                    _compare(report, request, columns, served_by)
                    progress("requests", report.requests, len(impressions))
    return report


def _groups(impressions: pa.Table, column: str) -> Iterator[tuple[str | None, pa.Table]]:
    """Yield the rows of each value of a column, by first occurrence."""
    for value in dict.fromkeys(impressions[column].to_pylist()):
        mask = (
            pc.is_null(impressions[column])
            if value is None
            else pc.equal(impressions[column], value)
        )
        yield value, impressions.filter(mask)


def _rows(requests: pa.Table) -> Iterator[dict[str, Any]]:
    names = ["request_id", "time", "filters", "context", "degraded"]
    names += ["item_ids", "numeric", "categorical"]
    for batch in requests.select(names).to_batches(max_chunksize=_ROWS_PER_BATCH):
        yield from batch.to_pylist()


def _compare(
    report: SkewReport, request: dict[str, Any], columns: Columns | None, served_by: _ServedBy
) -> None:
    """Recompute one request from its user's feature row, and add the comparison to the report."""
    if columns is None:
        report.miss(request["request_id"])
        return
    codec = served_by.release.codec
    context: dict[str, Any] = json.loads(request["context"] or "{}")
    candidates, numeric, categorical = recompute(
        served_by.release,
        columns | {name: [value] for name, value in context.items()},
        served_by.items,
        time=request["time"],
        filters=logged_filters(request["filters"]),
    )

    # The k shown items that were ranked, codes [k]; later ones were backfilled without a vector.
    ranked = sum(map(bool, request["numeric"]))
    shown = codec.items.encode(request["item_ids"][:ranked])
    retrieved = np.isin(shown, candidates)  # bool [k]
    rows = np.searchsorted(candidates, shown[retrieved])  # indices of the n retrieved ones

    # Differences of numeric [n, F] and categorical features [n, C].
    parts = []
    failed = [
        number
        for number, name in enumerate(codec.numeric)
        if f"missing_{name}" in request["degraded"]
    ]
    for name, values, tolerance in (
        ("numeric", numeric[rows].astype(np.float64), TOLERANCE),
        ("categorical", categorical[rows].astype(np.float64), 0.0),
    ):
        logged = np.array(request[name][:ranked], dtype=np.float64).reshape(ranked, values.shape[1])
        logged = logged[retrieved]
        if name == "numeric":  # the answer said that these could not be computed
            absent = np.isnan(logged[:, failed])
            values[:, failed] = np.where(absent, np.nan, values[:, failed])
        parts.append(difference(logged, values, tolerance))

    report.add(
        request["request_id"],
        [*codec.numeric, *codec.categorical],
        np.concatenate(parts, axis=1),
        not_retrieved=int((~retrieved).sum()),
    )


def recompute(
    release: Release,
    columns: Columns,
    items: ItemTable,
    *,
    time: float,
    filters: dict[str, AttributeRule] | None = None,
) -> tuple[Int32Array, Float32Array, Int32Array]:
    """Return the candidates of a request, by code ascending, and the ranker's rows of them.

    Only one request at a time: products of larger matrices differ in their last bits.

    Args:
        release: the release that answered it.
        columns: its user's feature row.
        items: the item table.
        time: epoch seconds.
        filters: the request's filters, which may restrict the search.

    Returns:
        codes int32 ``[n]``, numeric float32 ``[n, F]`` and categorical int32 ``[n, C]``.

    """
    recommender = release.recommender
    users = release.reader.read(columns, np.array([time]))
    vectors = recommender.tower(users.context)
    prefilters = [recommender.filters.prefilter(items, RequestRules(1, (), filters or {}), time)]
    candidates = recommender.retriever.retrieve(
        vectors, users.context.history, items, users.context.time, prefilters=prefilters
    )
    numeric, categorical = recommender.hydrator.hydrate(users, vectors, candidates, items)
    order = np.argsort(candidates.item)
    return candidates.item[order], numeric[order], categorical[order]


def difference(logged: Float64Array, recomputed: Float64Array, tolerance: float) -> Float64Array:
    """Return by how much values differ, float64 of their shape.

    The difference is 0 within the tolerance, and inf where one value is missing (NaN).
    """
    logged_missing = np.isnan(logged)
    recomputed_missing = np.isnan(recomputed)

    distance = np.abs(logged - recomputed)
    scale = np.maximum(1.0, np.maximum(np.abs(logged), np.abs(recomputed)))
    equal = (distance <= tolerance * scale) | (logged_missing & recomputed_missing)

    distance = np.where(logged_missing ^ recomputed_missing, np.inf, distance)
    return np.where(equal, 0.0, distance)


def newest_impressions(workspace: Workspace, limit: int | None, hours: float | None) -> pa.Table:
    """Return the impressions of the last hours, at most the newest ``limit``; None: all.

    Raises:
        MissingStage: nothing has been served yet.

    """
    since = 0.0 if hours is None else time.time() - hours * 3_600
    times = read_impressions(workspace.impressions, ["time"])["time"]
    if not len(times):
        raise MissingStage(
            f"no impressions in {workspace.root}: run 'funnel serve' and request recommendations"
        )
    if limit and limit < len(times):
        since = max(since, times[-limit].as_py())
    rows = read_impressions(workspace.impressions, since=since)
    return rows.slice(max(0, len(rows) - limit)) if limit else rows


def show_skew(workspace: Workspace, limit: int | None, hours: float | None) -> None:
    """Print what differs as a table, and the figures as a line of JSON.

    Raises:
        MissingStage: nothing has been served yet.
        FeaturesSkewed: a feature of a request differs from the offline tables.

    """
    impressions = newest_impressions(workspace, limit, hours)
    with display.stage("Skew") as progress:
        report = skew(workspace, impressions, progress)
    differing = report.worst()
    rows = [[name, *asdict(feature).values()] for name, feature in differing]
    if rows:
        display.table(
            "Served and recomputed",
            ["feature", "compared", "differing", "largest difference", "example"],
            rows,
        )
    else:
        display.console.print(
            f"no feature differs: {report.values:,} values of {report.requests:,} requests compared"
        )
    display.result(json.dumps(report.figures()))
    if differing:
        raise FeaturesSkewed(
            f"{report.requests_differing} of {report.requests} requests were served on features "
            f"that the offline tables do not have; most often {differing[0][0]}, as in request "
            f"{differing[0][1].example}"
        )
