"""What was served is what is learned: logged responses joined with the events that followed them.

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
from feature_repo.workspace import MissingStage, Workspace, file_hash, read_json
from pipelines.features.point_in_time import DAY_S
from pipelines.streaming.offline import read_archive
from pipelines.training.position_bias import PositionBias
from pipelines.training.split import epoch_seconds
from pipelines.training.train_ranking import row_schema
from ranking.config import RankerConfig
from ranking.data import Doubles, Floats, Ids, RankingData, RowSchema
from ranking.models.base import Log
from ranking.training.train_rankers import RankerReport, train_rankers
from retrieval.towers.training import Progress
from serving.impressions import read_impressions
from serving.recommender.codec import Codec
from serving.releases.release import MANIFEST

LEAST_REQUESTS = 200
PARTS = {"train": 0.70, "calibrate": 0.85, "choose": 1.0}
"""Each part ends where this share of the requests, in order of time, has been served."""

REQUEST_ID = "request_id"
_SAME_FILES = ("codec.json", "item_vectors.npy")
_LOGGED = [c.EVENT_ID, c.USER, c.ITEM, c.TYPE, c.TIMESTAMP, REQUEST_ID]


class TooFewImpressions(RuntimeError):
    """There is not enough to learn from; the message says how much there is and what to do."""


@dataclass(frozen=True)
class ImpressionRows:
    """Ranker rows of served items.

    Attributes:
        data: the rows; a request's number is its place among all impressions in order of time.
        time: float64 ``[n]``, epoch seconds of each row's request.
        position: int64 ``[n]``, the place at which the item was shown, 0 the best.
        score: float32 ``[n]``, by which it came there.

    """

    data: RankingData
    time: Doubles
    position: Ids
    score: Floats

    def requests(self) -> npt.NDArray[np.int64]:
        """Return the requests that have rows, int64 ``[R]``, in order of time."""
        return np.unique(self.data.request)


def logged_events(workspace: Workspace) -> pd.DataFrame:
    """Return the events that were accepted while serving, in order of time, each ``event_id`` once.

    Columns: user, item, type, timestamp (datetime64[us, UTC]), event id and ``request_id`` (None:
    not said). Of events with the same id the one accepted first counts.
    """
    events: pd.DataFrame = (
        read_archive(workspace).select(_LOGGED).to_pandas()
    )  # in the order of the log
    return events.drop_duplicates(c.EVENT_ID).sort_values(
        [c.TIMESTAMP, c.EVENT_ID], ignore_index=True
    )


def attribute(
    impressions: pa.Table, events: pd.DataFrame, heads: tuple[str, ...], attribution_s: float
) -> npt.NDArray[np.bool_]:
    """Return which shown item was followed by which event: bool ``[n, T]``, items in the table's order.

    An event counts if it came after the request and no later than ``attribution_s`` after it. One
    with a ``request_id`` belongs to that request alone; one without belongs to the latest request
    that showed its user the item before. An event thus labels one shown item or none, and a
    repeated one nothing more.

    Args:
        impressions: rows of ``IMPRESSION_SCHEMA`` in order of time; vectors are not looked at.
        events: as ``logged_events`` returns them; ``request_id`` may be missing.
        heads: the T event types.
        attribution_s: seconds.

    """
    shown = _shown(impressions)
    labels = np.zeros((len(shown), len(heads)), dtype=np.bool_)
    events = events.drop_duplicates(c.EVENT_ID)
    head = events[c.TYPE].map({name: place for place, name in enumerate(heads)})
    did = pd.DataFrame({name: events[name].to_numpy(dtype=object) for name in (c.USER, c.ITEM)})
    did["head"], did["at"] = head.to_numpy(dtype=np.float64), epoch_seconds(events[c.TIMESTAMP])
    did[REQUEST_ID] = events[REQUEST_ID].to_numpy(dtype=object) if REQUEST_ID in events else None
    did = did[did["head"].notna()].sort_values("at", kind="stable")
    named = did[REQUEST_ID].notna()
    pair = [c.USER, c.ITEM]
    told = did[named].merge(shown, on=[REQUEST_ID, *pair])
    latest = pd.merge_asof(
        did[~named].drop(columns=REQUEST_ID),
        shown,
        left_on="at",
        right_on="time",
        by=pair,
        allow_exact_matches=False,
    )
    found = pd.concat(
        [part[["at", "time", "row", "head"]].astype(np.float64) for part in (told, latest)]
    )
    found = found[(found["time"] < found["at"]) & (found["at"] <= found["time"] + attribution_s)]
    labels[found["row"].to_numpy(dtype=np.int64), found["head"].to_numpy(dtype=np.int64)] = True
    return labels


def _shown(impressions: pa.Table) -> pd.DataFrame:
    """Return one row per shown item, in the table's order."""
    lengths = pc.list_value_length(impressions["item_ids"]).to_numpy()
    columns = {
        name: np.repeat(
            impressions[name].to_numpy(), lengths
        )  # strings come as objects, as those of events
        for name in (REQUEST_ID, c.USER, "time")
    }
    items = pc.list_flatten(impressions["item_ids"]).to_numpy()
    return pd.DataFrame({**columns, c.ITEM: items, "row": np.arange(len(items))})


def impression_rows(
    impressions: pa.Table,
    events: pd.DataFrame,
    schema: RowSchema,
    releases: set[str],
    attribution_s: float = float(DAY_S),
    now: float | None = None,
) -> ImpressionRows:
    """Return the ranker's rows of what was served, labelled with what came of it.

    Requests of other releases and those whose attribution window is not over yet take part in the
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
    times = impressions["time"].to_numpy()
    over = times + attribution_s <= (time.time() if now is None else now)
    kept = over & _served_by(impressions, releases)
    lengths = pc.list_value_length(impressions["item_ids"]).to_numpy()
    labels = labels[np.repeat(kept, lengths)]
    part = impressions.filter(pa.array(kept))
    numeric, ranked = _vectors(part["numeric"], len(schema.numeric), np.float32)
    categorical, _ = _vectors(part["categorical"], len(schema.categorical), np.int32)
    shown = lengths[kept]
    request = np.repeat(np.flatnonzero(kept), shown)[ranked]
    position = (np.arange(shown.sum()) - np.repeat(np.cumsum(shown) - shown, shown))[ranked]
    score = pc.list_flatten(part["scores"]).to_numpy().astype(np.float32, copy=False)[ranked]
    user = pd.factorize(impressions[c.USER].to_numpy())[0].astype(np.int64)[request]
    labels = labels[ranked].astype(np.float32)
    data = RankingData(numeric, categorical, labels, request.astype(np.int64), user=user)
    return ImpressionRows(data, times[request], position.astype(np.int64), score)


def _vectors(
    column: pa.ChunkedArray, width: int, dtype: Any
) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    """Return the vectors of all items ``[m, width]`` and which items have one, bool ``[n]``."""
    vectors = pc.list_flatten(column)
    present = pc.list_value_length(vectors).to_numpy() > 0
    values = pc.list_flatten(vectors).to_numpy().astype(dtype, copy=False)
    return values.reshape(int(present.sum()), width), present


def compatible_releases(workspace: Workspace, schema: RowSchema) -> set[str]:
    """Return the releases whose logged vectors mean what those of ``models/retrieval`` would mean today.

    They have the same codes and item vectors, and their ranker reads the same columns.
    """
    retrieval = workspace.models / "retrieval"
    wanted = {name: file_hash(retrieval / name) for name in _SAME_FILES}
    found = set()
    for manifest in workspace.releases.glob(f"[!.]*/{MANIFEST}"):
        about = read_json(manifest)
        same = all(about["files"].get(name) == value for name, value in wanted.items())
        if not same:
            continue
        read = RowSchema.from_dict(read_json(manifest.parent / "ranker" / "schema.json"))
        if replace(read, wanted=schema.wanted) == schema:  # what was wanted changes no vector
            found |= {str(about["release"]), *about.get("replaces", ())}
    return found


def train_from_impressions(
    workspace: Workspace,
    config: RankerConfig,
    attribution_s: float,
    log: Log,
    progress: Progress,
    *,
    ipw: bool = False,
) -> RankerReport:
    """Train every kind of ranker in ``models/ranking`` on what was served, as ``funnel release`` expects it.

    The report has the click rate of every position. With ``ipw`` what was taken up weighs as much
    as its position is seldom looked at (``pipelines.training.position_bias``), in training, in what
    says when to stop, and in validation.

    Raises:
        MissingStage: there is no candidate generator.
        TooFewImpressions: too few requests are usable, or nothing was taken up in one of the parts.

    """
    codec_file = workspace.models / "retrieval" / _SAME_FILES[0]
    if not codec_file.is_file():
        raise MissingStage(f"no trained models in {workspace.models}: run 'funnel train' first")
    schema = row_schema(Codec.from_dict(read_json(codec_file)))
    progress("reading impressions", 0, 1)
    impressions = read_impressions(workspace.impressions)
    releases = compatible_releases(workspace, schema)
    rows = impression_rows(impressions, logged_events(workspace), schema, releases, attribution_s)
    others = int((~_served_by(impressions, releases)).sum())
    said = f"{len(rows.requests())} usable requests of {len(impressions)} ({others} left out: of other models)"
    progress(said, 1, 1)
    parts = _parts(rows, said, attribution_s)
    # What is weighed by must not know what is validated on.
    first, clicked = parts[0], rows.data.labels.max(axis=1) > 0
    bias = PositionBias.estimate(rows.position[first], rows.score[first], clicked[first])
    data = replace(rows.data, weight=bias.weights(rows.position, clicked)) if ipw else rows.data
    train, calibrate, choose = (data.take(part) for part in parts)
    folder = workspace.models / "ranking"
    return train_rankers(
        train, calibrate, choose, schema, folder, config, log, positions=bias.table()
    )


def _served_by(impressions: pa.Table, releases: set[str]) -> npt.NDArray[np.bool_]:
    return pc.is_in(impressions["release"], pa.array(sorted(releases), pa.string())).to_numpy()


def _parts(rows: ImpressionRows, said: str, attribution_s: float) -> list[npt.NDArray[np.intp]]:
    """Return the rows of each of ``PARTS``, cut in order of time; ``said`` tells a refused user what there is."""
    requests = rows.requests()
    if len(requests) < LEAST_REQUESTS:
        raise TooFewImpressions(
            f"{said}; {LEAST_REQUESTS} are needed, each served more than {attribution_s / 3_600:g} hours ago: "
            "serve for longer, or give fewer --attribution-hours"
        )
    parts, start = [], 0
    for name, share in PARTS.items():
        stop = round(share * len(requests))
        number = rows.data.request
        part = np.flatnonzero((number >= requests[start]) & (number <= requests[stop - 1]))
        if not rows.data.labels[part].any():
            raise TooFewImpressions(
                f"{said}, but no event followed the {stop - start} of them that are to {name}: "
                "post events to /v1/events while serving, or give more --attribution-hours"
            )
        parts.append(part)
        start = stop
    return parts
