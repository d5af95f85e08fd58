"""Training from what was served: logged responses joined with the events that followed them.

The rankers learn from the very vectors that they ranked by, so no feature can leak from after the
request and none can differ from serving. An impression is a negative until an event says otherwise.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from feature_repo import columns as c
from feature_repo.arrays import BoolArray, Float32Array, Float64Array, Int64Array
from feature_repo.errors import FunnelError
from feature_repo.files import read_json
from feature_repo.hashing import file_hash
from feature_repo.progress import Progress
from feature_repo.workspace import MissingStage, Workspace
from pipelines.features.point_in_time import DAY_S
from pipelines.streaming.offline import read_archive
from pipelines.training.position_bias import PositionBias
from pipelines.training.ranking_sets import row_schema
from pipelines.training.reports import generator_id
from pipelines.training.split import epoch_seconds
from ranking.config import RankerConfig
from ranking.data import RankingData
from ranking.models.base import RankerLog
from ranking.report import RankerReport
from ranking.row_schema import RowSchema
from ranking.training.train_rankers import RankerSets, train_rankers
from serving.impressions import read_impressions
from serving.recommender.codec import Codec
from serving.releases.manifest import MANIFEST, read_manifest

MIN_REQUESTS = 200
PARTS = {"train": 0.70, "calibrate": 0.85, "selection": 1.0}
"""Each part ends where this share of the requests, in order of time, has been served."""

REQUEST_ID = "request_id"
_SAME_FILES = ("codec.json", "item_vectors.npy")
_LOGGED = [c.EVENT_ID, c.USER, c.ITEM, c.TYPE, c.TIMESTAMP, REQUEST_ID]


class TooFewImpressions(FunnelError):
    """There are too few impressions; the message says how many there are and what to do."""


@dataclass(frozen=True)
class ImpressionRows:
    """Ranker rows of served items.

    Attributes:
        data: the rows; a request's number is its row in the impressions, in order of time.
        time: float64 ``[n]``, epoch seconds of each row's request.
        position: int64 ``[n]``, where in its list the item was shown, 0 the best.
        score: float32 ``[n]``, by which the item was ranked.

    """

    data: RankingData
    time: Float64Array
    position: Int64Array
    score: Float32Array

    def requests(self) -> Int64Array:
        """Return the requests that have rows, int64 ``[R]``, in order of time."""
        return np.unique(self.data.request)


def logged_events(workspace: Workspace) -> pd.DataFrame:
    """Return the events that were accepted while serving, in order of time, each ``event_id`` once.

    Columns: user, item, type, timestamp (datetime64[us, UTC]), event id and ``request_id`` (None:
    not given). Of events with the same id the one accepted first counts.
    """
    # The archive is in the order of the event log.
    events: pd.DataFrame = read_archive(workspace).select(_LOGGED).to_pandas()
    return events.drop_duplicates(c.EVENT_ID).sort_values(
        [c.TIMESTAMP, c.EVENT_ID], ignore_index=True
    )


def attribute(
    impressions: pa.Table, events: pd.DataFrame, heads: tuple[str, ...], attribution_s: float
) -> BoolArray:
    """Return which shown item was followed by which event: bool ``[n, T]``, items in table order.

    An event counts if it came after the request and no later than ``attribution_s`` after it. One
    with a ``request_id`` belongs to that request alone; one without belongs to the latest request
    that showed its user the item before. An event thus labels one shown item or none, and a
    repeated one nothing more.

    Args:
        impressions: rows of ``IMPRESSION_SCHEMA`` in order of time; vectors are not read.
        events: as ``logged_events`` returns them; ``request_id`` may be missing.
        heads: the T event types.
        attribution_s: seconds.

    """
    shown = _shown(impressions)
    clicks = _clicks(events, heads)

    # Events that name their request, then the others with the latest request before them.
    named = clicks[REQUEST_ID].notna()
    pair = [c.USER, c.ITEM]
    by_request = clicks[named].merge(shown, on=[REQUEST_ID, *pair])
    by_time = pd.merge_asof(
        clicks[~named].drop(columns=REQUEST_ID),
        shown,
        left_on="at",
        right_on="time",
        by=pair,
        allow_exact_matches=False,
    )
    columns = ["at", "time", "row", "head"]
    matches = pd.concat([part[columns].astype(np.float64) for part in (by_request, by_time)])

    after = matches["time"] < matches["at"]
    matches = matches[after & (matches["at"] <= matches["time"] + attribution_s)]
    labels = np.zeros((len(shown), len(heads)), dtype=np.bool_)
    labels[matches["row"].to_numpy(np.int64), matches["head"].to_numpy(np.int64)] = True
    return labels


def _clicks(events: pd.DataFrame, heads: tuple[str, ...]) -> pd.DataFrame:
    """Return events of the heads' types, each id once, in order of time.

    Columns: user, item, ``head`` (index of the type), ``at`` (epoch seconds) and ``request_id``.
    """
    events = events.drop_duplicates(c.EVENT_ID)
    head = events[c.TYPE].map({name: number for number, name in enumerate(heads)})
    clicks = pd.DataFrame({name: events[name].to_numpy(dtype=object) for name in (c.USER, c.ITEM)})
    clicks["head"] = head.to_numpy(dtype=np.float64)
    clicks["at"] = epoch_seconds(events[c.TIMESTAMP])
    clicks[REQUEST_ID] = events[REQUEST_ID].to_numpy(dtype=object) if REQUEST_ID in events else None
    return clicks[clicks["head"].notna()].sort_values("at", kind="stable")


def _shown(impressions: pa.Table) -> pd.DataFrame:
    """Return one row per shown item, in the table's order."""
    lengths = pc.list_value_length(impressions["item_ids"]).to_numpy()
    # Strings come as objects, like those of events.
    columns = {
        name: np.repeat(impressions[name].to_numpy(), lengths)
        for name in (REQUEST_ID, c.USER, "time")
    }
    items = pc.list_flatten(impressions["item_ids"]).to_numpy()
    return pd.DataFrame({**columns, c.ITEM: items, "row": np.arange(len(items))})


def impression_rows(
    impressions: pa.Table,
    events: pd.DataFrame,
    schema: RowSchema,
    releases: set[str],
    *,
    attribution_s: float = float(DAY_S),
    now: float | None = None,
) -> ImpressionRows:
    """Return the ranker's rows of what was served, labelled with what came of it.

    Requests of other releases and those whose attribution window is still open take part in the
    attribution of events but give no rows; nor do backfilled items, which no ranker saw.

    Args:
        impressions: rows of ``IMPRESSION_SCHEMA`` in order of time.
        events: as ``logged_events`` returns them.
        schema: columns and heads of the rows.
        releases: ids of the releases whose vectors have this schema.
        attribution_s: how long after a request an event may come, seconds.
        now: epoch seconds; by default the clock's.

    """
    labels = attribute(impressions, events, schema.heads, attribution_s)

    # Requests [R] that give rows: of these releases, with a closed attribution window.
    times = impressions["time"].to_numpy()
    closed = times + attribution_s <= (time.time() if now is None else now)
    usable = closed & _served_by(impressions, releases)
    lengths = pc.list_value_length(impressions["item_ids"]).to_numpy()
    part = impressions.filter(pa.array(usable))

    # Shown items [n] that the ranker saw, and their vectors [m, F] and [m, C].
    numeric, ranked = _vectors(part["numeric"], len(schema.numeric), np.float32)
    categorical, _ = _vectors(part["categorical"], len(schema.categorical), np.int32)

    # Request, position and score of each of them, [m].
    shown = lengths[usable]
    request = np.repeat(np.flatnonzero(usable), shown)[ranked].astype(np.int64)
    start_of_list = np.repeat(np.cumsum(shown) - shown, shown)
    position = (np.arange(shown.sum()) - start_of_list)[ranked].astype(np.int64)
    score = pc.list_flatten(part["scores"]).to_numpy().astype(np.float32, copy=False)[ranked]

    user = pd.factorize(impressions[c.USER].to_numpy())[0].astype(np.int64)[request]
    labels = labels[np.repeat(usable, lengths)][ranked].astype(np.float32)
    data = RankingData(numeric, categorical, labels, request, user=user)
    return ImpressionRows(data, times[request], position, score)


def _vectors(column: pa.ChunkedArray, width: int, dtype: Any) -> tuple[npt.NDArray[Any], BoolArray]:
    """Return the vectors of all items ``[m, width]`` and which items have one, bool ``[n]``."""
    vectors = pc.list_flatten(column)
    present = pc.list_value_length(vectors).to_numpy() > 0
    values = pc.list_flatten(vectors).to_numpy().astype(dtype, copy=False)
    return values.reshape(int(present.sum()), width), present


def compatible_releases(workspace: Workspace, schema: RowSchema) -> set[str]:
    """Return the releases whose logged vectors mean what ``models/retrieval`` would mean today.

    They have the same codes and item vectors, and their ranker reads the same columns.
    """
    retrieval = workspace.models / "retrieval"
    hashes = {name: file_hash(retrieval / name) for name in _SAME_FILES}
    compatible: set[str] = set()
    for path in workspace.releases.glob(f"[!.]*/{MANIFEST}"):
        manifest = read_manifest(path.parent)
        if any(manifest.files.get(name) != value for name, value in hashes.items()):
            continue
        logged = RowSchema.from_dict(read_json(path.parent / "ranker" / "schema.json"))
        # Which events count as positive changes no vector.
        if replace(logged, relevant=schema.relevant) == schema:
            compatible |= {manifest.release, *manifest.replaces}
    return compatible


def train_from_impressions(
    workspace: Workspace,
    config: RankerConfig,
    *,
    attribution_s: float,
    log: RankerLog,
    progress: Progress,
    ipw: bool = False,
) -> RankerReport:
    """Train every kind of ranker in ``models/ranking`` on what was served, for ``funnel release``.

    The report has the click rate of every position. With ``ipw`` a click weighs the inverse
    propensity of its position (``pipelines.training.position_bias``), in training, in early
    stopping, and in validation.

    Args:
        workspace: the working folder, with a trained candidate generator.
        config: which kinds are trained, and how.
        attribution_s: how long after a response an event still counts, seconds.
        log: called with each kind's figures.
        progress: progress callback.
        ipw: weight clicks by inverse propensities.

    Raises:
        MissingStage: there is no candidate generator.
        TooFewImpressions: too few requests are usable, or a part of them has no positive event.

    """
    codec_file = workspace.models / "retrieval" / _SAME_FILES[0]
    if not codec_file.is_file():
        raise MissingStage(f"no trained models in {workspace.models}: run 'funnel train' first")
    schema = row_schema(Codec.from_dict(read_json(codec_file)))

    progress("reading impressions", 0, 1)
    impressions = read_impressions(workspace.impressions)
    releases = compatible_releases(workspace, schema)
    rows = impression_rows(
        impressions, logged_events(workspace), schema, releases, attribution_s=attribution_s
    )
    others = int((~_served_by(impressions, releases)).sum())
    summary = (
        f"{len(rows.requests())} usable requests of {len(impressions)} "
        f"({others} left out: of other models)"
    )
    progress(summary, 1, 1)

    # Propensities are estimated on the training part alone: validation must not depend on itself.
    parts = _parts(rows, summary, attribution_s)
    training = parts[0]
    clicked = rows.data.labels.max(axis=1) > 0
    bias = PositionBias.estimate(rows.position[training], rows.score[training], clicked[training])
    data = replace(rows.data, weight=bias.weights(rows.position, clicked)) if ipw else rows.data

    train, calibration, selection = (data.take(part) for part in parts)
    sets = RankerSets(train, calibration, selection, schema)
    return train_rankers(
        sets,
        workspace.models / "ranking",
        config,
        log,
        positions=bias.table(),
        trained_on=generator_id(workspace.models),
    )


def _served_by(impressions: pa.Table, releases: set[str]) -> BoolArray:
    return pc.is_in(impressions["release"], pa.array(sorted(releases), pa.string())).to_numpy()


def _parts(rows: ImpressionRows, summary: str, attribution_s: float) -> list[npt.NDArray[np.intp]]:
    """Return the rows of each of ``PARTS``, cut in order of time.

    ``summary`` begins the error message that tells a user what there is.
    """
    requests = rows.requests()
    if len(requests) < MIN_REQUESTS:
        raise TooFewImpressions(
            f"{summary}; {MIN_REQUESTS} are needed, "
            f"each served more than {attribution_s / 3_600:g} hours ago: "
            "serve for longer, or give fewer --attribution-hours"
        )

    parts = []
    start = 0
    for name, share in PARTS.items():
        stop = round(share * len(requests))
        number = rows.data.request
        part = np.flatnonzero((number >= requests[start]) & (number <= requests[stop - 1]))
        if not rows.data.labels[part].any():
            raise TooFewImpressions(
                f"{summary}, but no event followed the {stop - start} requests for part '{name}': "
                "post events to /v1/events while serving, or give more --attribution-hours"
            )
        parts.append(part)
        start = stop
    return parts
