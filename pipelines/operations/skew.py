"""``funnel skew``: what the ranker saw while serving against the same features recomputed from the offline tables.

Every logged vector is made again, one request at a time as it was served, by serving's own tower,
retrieval and hydration; what they are fed comes from the offline tables and the archive of events
(``served_rows.py``).
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
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
from pipelines.streaming.offline import read_archive, tables_lock
from serving.impressions import logged_filters, read_impressions
from serving.online.overlay import Columns
from serving.recommender.filters import AttributeRule, RequestRules
from serving.recommender.item_table import ItemTable
from serving.releases.manifest import MANIFEST
from serving.releases.release import Release, load_release

TOLERANCE = 1e-5
"""Numbers agree if they differ by no more than this, or than this share of the larger one."""

RETRIEVED, ROW = "retrieved", "row_missing"
"""In the report like features: a shown item is no candidate this time; the streamed row is in no offline table."""

_BATCH = 500


class FeaturesSkewed(FunnelError):
    """Something was served on features that the offline tables do not have."""


@dataclass
class Feature:
    """How often a feature was compared, how often it differed and by how much at most (inf: missing on one side)."""

    compared: int = 0
    differing: int = 0
    largest: float = 0.0
    example: str = ""


@dataclass
class Skew:
    """What was compared, what differed, and what could not be compared.

    ``requests`` are those compared, ``items`` their ranked items, ``values`` the features of these.
    Left out are requests whose events are not all archived (``not_streamed_yet``), those of
    releases that are gone, and those that were answered with items which the release does not have
    (``with_added_items``).
    """

    requests: int = 0
    items: int = 0
    values: int = 0
    differing: int = 0
    requests_differing: int = 0
    not_streamed_yet: int = 0
    row_missing: int = 0
    other_releases: int = 0
    with_added_items: int = 0
    features: dict[str, Feature] = field(default_factory=dict)

    def add(self, request_id: str, names: Sequence[str], apart: Float64Array, lost: int) -> None:
        """Count a request's items.

        Args:
            request_id: names the request as an example.
            names: the ``F`` features.
            apart: by how much the values of the ``n`` items that were retrieved again differ,
                float64 ``[n, F]``.
            lost: how many items were not; their features cannot be compared.

        """
        self.requests += 1
        self.items += len(apart) + lost
        self.values += apart.size
        self.requests_differing += bool(apart.any() or lost)
        self._count(request_id, RETRIEVED, len(apart) + lost, np.full(lost, np.inf))
        for name, values in zip(names, apart.T, strict=True):
            self._count(request_id, name, len(values), values[values > 0])

    def miss(self, request_id: str) -> None:
        """Count a request whose streamed row is in no offline table."""
        self.requests += 1
        self.requests_differing += 1
        self.row_missing += 1
        self._count(request_id, ROW, 1, np.array([np.inf]))

    def _count(self, request_id: str, name: str, compared: int, differences: Float64Array) -> None:
        feature = self.features.setdefault(name, Feature())
        feature.compared += compared
        if len(differences):
            self.differing += len(differences)
            feature.differing += len(differences)
            feature.largest = max(feature.largest, float(differences.max()))
            feature.example = feature.example or request_id

    def worst(self) -> list[tuple[str, Feature]]:
        """Return the features that differ, most often first."""
        differing = [pair for pair in self.features.items() if pair[1].differing]
        return sorted(differing, key=lambda pair: -pair[1].differing)

    def figures(self) -> dict[str, Any]:
        """Return all counts; of the features, how often those that differ do."""
        return asdict(self) | {
            "features": {name: feature.differing for name, feature in self.worst()}
        }


def skew(workspace: Workspace, impressions: pa.Table, progress: Progress) -> Skew:
    """Recompute what was served.

    Args:
        workspace: where it was served; its offline tables are kept from being replaced meanwhile.
        impressions: rows of ``IMPRESSION_SCHEMA`` in order of time.
        progress: told the requests done.

    """
    store, report = PointInTime(workspace).store, Skew()
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
                items = served_items(store, release, as_of)
                for request, columns in zip(
                    _rows(requests), users.read(requests, release), strict=True
                ):
                    _compare(report, request, columns, release, items)
                    progress("requests", report.requests, len(impressions))
    return report


def _groups(impressions: pa.Table, column: str) -> Iterator[tuple[str | None, pa.Table]]:
    """Yield the rows of each value of a column, in the order in which values came up."""
    for value in dict.fromkeys(impressions[column].to_pylist()):
        mask = (
            pc.is_null(impressions[column])
            if value is None
            else pc.equal(impressions[column], value)
        )
        yield value, impressions.filter(mask)


def _rows(requests: pa.Table) -> Iterator[dict[str, Any]]:
    names = ["request_id", "time", "filters", "item_ids", "numeric", "categorical"]
    for batch in requests.select(names).to_batches(max_chunksize=_BATCH):
        yield from batch.to_pylist()


def _compare(
    report: Skew,
    request: dict[str, Any],
    columns: Columns | None,
    release: Release,
    items: ItemTable,
) -> None:
    if columns is None:
        report.miss(request["request_id"])
        return
    codec = release.codec
    candidates, *found = recompute(
        release, columns, request["time"], items, logged_filters(request["filters"])
    )
    ranked = sum(map(bool, request["numeric"]))  # what comes after was backfilled and has no vector
    shown = codec.items.encode(request["item_ids"][:ranked])
    again = np.isin(shown, candidates)
    place = np.searchsorted(candidates, shown[again])
    parts = []
    for name, values, tolerance in zip(
        ("numeric", "categorical"), found, (TOLERANCE, 0.0), strict=True
    ):
        logged = np.array(request[name][:ranked], dtype=np.float64).reshape(ranked, values.shape[1])
        parts.append(difference(logged[again], values[place].astype(np.float64), tolerance))
    names = [*codec.numeric, *codec.categorical]
    report.add(request["request_id"], names, np.concatenate(parts, axis=1), int((~again).sum()))


def recompute(
    release: Release,
    columns: Columns,
    time: float,
    items: ItemTable,
    filters: dict[str, AttributeRule] | None = None,
) -> tuple[Int32Array, Float32Array, Int32Array]:
    """Return the candidates of a request, by code ascending, and the ranker's rows of them.

    Only one request at a time: products of larger matrices differ in their last bits.

    Args:
        release: the one that served it.
        columns: its user's feature row.
        time: epoch seconds.
        items: the item table.
        filters: the request's, which may narrow the search.

    Returns:
        codes int32 ``[n]``, numeric float32 ``[n, F]`` and categorical int32 ``[n, C]``.

    """
    users, recommender = release.reader.read(columns, np.array([time])), release.recommender
    vectors = recommender.tower(users.context)
    prefilters = [recommender.filters.prefilter(items, RequestRules(1, (), filters or {}), time)]
    candidates = recommender.retriever.retrieve(
        vectors, users.context.history, items, users.context.time, prefilters=prefilters
    )
    numeric, categorical = recommender.hydrator.hydrate(users, vectors, candidates, items)
    order = np.argsort(candidates.item)
    return candidates.item[order], numeric[order], categorical[order]


def difference(logged: Float64Array, found: Float64Array, tolerance: float) -> Float64Array:
    """Return by how much values differ, float64 of their shape: 0 where they agree, inf where one is missing (NaN)."""
    missing = np.isnan(logged), np.isnan(found)
    apart = np.abs(logged - found)
    within = apart <= tolerance * np.maximum(1.0, np.maximum(np.abs(logged), np.abs(found)))
    apart = np.where(missing[0] ^ missing[1], np.inf, apart)
    return np.where(within | (missing[0] & missing[1]), 0.0, apart)


def newest_impressions(workspace: Workspace, limit: int | None, hours: float | None) -> pa.Table:
    """Return the impressions of the last hours, of these the newest ``limit``; None: all.

    Raises:
        MissingStage: nothing has been served yet.

    """
    since = 0.0 if hours is None else time.time() - hours * 3_600
    times = read_impressions(workspace.impressions, ["time"])["time"]
    if not len(times):
        raise MissingStage(
            f"no impressions in {workspace.root}: run 'funnel serve' and ask it for recommendations"
        )
    if limit and limit < len(times):
        since = max(since, times[-limit].as_py())
    found = read_impressions(workspace.impressions, since=since)
    return found.slice(max(0, len(found) - limit)) if limit else found


def show_skew(workspace: Workspace, limit: int | None, hours: float | None) -> None:
    """Print what differs as a table, and the figures as a line of JSON.

    Raises:
        MissingStage: nothing has been served yet.
        FeaturesSkewed: some feature of some request is not what the offline tables say.

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
            f"{report.requests_differing} of {report.requests} requests were served on features that the offline "
            f"tables do not have; most often {differing[0][0]}, as in request {differing[0][1].example}"
        )
