"""Trains the candidate generator: codes, two towers, FAISS index, similar items."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file

from feature_repo import columns as c
from feature_repo.arrays import BoolArray, Float32Array
from feature_repo.dataset import DatasetSpec
from feature_repo.declarations.built_in import counts_of
from feature_repo.declarations.declared import Declared
from feature_repo.declarations.reading import declared_in
from feature_repo.declarations.views import TOWER_USERS
from feature_repo.encoding import AttributeEncoder, Vocabulary, parts
from feature_repo.files import staged_folder, write_json
from feature_repo.hashing import fingerprint
from feature_repo.progress import Progress
from feature_repo.workspace import Workspace
from pipelines.features.point_in_time import (
    DAY_S,
    PointInTime,
    catalogue_columns,
    ends_unlisted,
)
from pipelines.ingest.ingested import data_version
from pipelines.training.config import RetrievalConfig
from pipelines.training.declared_features import (
    fit_item_categories,
    fit_item_features,
    fit_user_categories,
    fit_user_features,
    item_features,
)
from pipelines.training.past_requests import requests_from
from pipelines.training.reports import RetrievalReport, TowersReport
from pipelines.training.split import Split, epoch_seconds
from pipelines.training.warm_start import BaseRelease
from retrieval.covisitation import similar_items
from retrieval.index import IndexReport, build_index, save_index
from retrieval.towers.context import concatenate
from retrieval.towers.evaluation import item_vectors
from retrieval.towers.examples import Examples
from retrieval.towers.export import export_item_tower, export_user_tower
from retrieval.towers.model import TowerConfig, TowerShape, TwoTowers
from retrieval.towers.training import EpochLog, TowerTask, train_towers
from serving.recommender.codec import Codec
from serving.recommender.item_table import Activity, ItemTable, build_items
from serving.recommender.user_tower import UserTowerSession
from serving.recommender.users import UserReader
from serving.releases.item_files import save_items, with_spare
from serving.releases.manifest import FORMAT

_INDEX_QUERIES = 1_000
"""Requests whose vectors the index is measured with."""


@dataclass(frozen=True)
class TowerData:
    """What towers learn from.

    Attributes:
        codec: the codes.
        items: the catalogue of N items.
        training: examples before ``split.ranker``.
        validation: examples from there to ``split.calibrate``.
        has_positive: bool ``[N]``, which items had a positive event before ``split.ranker``; the
            others have no id embedding.
        item_features: declared inputs of the item tower as of ``split.ranker``, float32 ``[N, W]``:
            rankers learn from the vectors on later events.

    """

    codec: Codec
    items: ItemTable
    training: Examples
    validation: Examples
    has_positive: BoolArray
    item_features: Float32Array


def train_retrieval(
    workspace: Workspace,
    events: pd.DataFrame,
    split: Split,
    config: RetrievalConfig,
    *,
    log: EpochLog,
    progress: Progress,
    base: BaseRelease | None = None,
) -> Path:
    """Train towers and write the candidate generator to ``models/retrieval``.

    A finished one of equal data and settings is kept.

    Args:
        workspace: the working folder, features applied.
        events: the whole log in order of time.
        split: the towers learn from positive events before ``split.ranker``; the part up to
            ``split.calibrate`` stops their training.
        config: training settings, tower sizes and candidate quotas.
        log: called with each epoch's metrics.
        progress: progress callback.
        base: the release to continue from; None: untrained towers learn from all events.

    Returns:
        the folder.

    Raises:
        NothingNew: ``base`` has learned from all events already.

    """
    final = workspace.models / "retrieval"
    declared = declared_in(workspace)
    origin = [base.folder.name] if base else []
    # Earlier versions recommended items that only the log knows.
    origin += ["listed"] if ends_unlisted(workspace.spec(), workspace.ingest, events) else []

    def version_of(parts: list[str]) -> str:
        settings = config.version_parts()
        return fingerprint(FORMAT, data_version(workspace), split.to_dict(), *settings, *parts)

    # The codec, which is made here, has the columns of the ranker's rows.
    version = version_of([*origin, *_read_by_models(declared)])
    finished = RetrievalReport.load(final)
    if finished and finished.version == version:
        return final

    data = tower_data(
        workspace, events, split, progress=progress, base=base, seed=config.towers.seed
    )
    task = TowerTask(
        build=tower_builder(data, config.shape),
        training=data.training,
        validation=data.validation,
        version=version_of([*origin, *_read_by_towers(declared)]),
        initialise=(lambda towers: base.initialise(towers, data.codec)) if base else None,
    )
    towers, report = train_towers(
        task, config.towers, workspace.models / "towers", log=log, progress=progress
    )
    towers = towers.cpu()

    known = events[epoch_seconds(events[c.TIMESTAMP]) < split.ranker]
    with staged_folder(final) as folder:
        index_report = _write(folder, data, towers, known)
        write_json(folder / "shares.json", json.loads(config.quota.model_dump_json()))
        RetrievalReport(
            version=version,
            towers=TowersReport(
                **report.to_dict(),
                validation=f"recall@{report.recall_at} over the whole catalogue",
            ),
            index=index_report,
            examples=len(data.training),
            settings=config.towers,
            sizes=towers.config,
            warm_start=base.folder.name if base else None,
        ).save(folder)
    return final


def _read_by_models(declared: Declared) -> list[str]:
    """Return what the candidate generator, with the codec of the ranker's rows, depends on."""
    parts = [declared.version, *map(str, declared.ranking)] if declared.ranking else []
    parts += map(str, declared.ranking_on_demand)
    parts += [str(declared.left_out)] if declared.left_out else []
    return parts + _read_by_towers(declared)


def _read_by_towers(declared: Declared) -> list[str]:
    """Return what trained towers depend on: the columns of the ranker's rows are none of it."""
    read = (declared.user_tower, declared.item_tower, declared.tower_views)
    parts = [str(part) for part in read if part]
    return [declared.version, *parts] if parts else []


def tower_data(
    workspace: Workspace,
    events: pd.DataFrame,
    split: Split,
    *,
    progress: Progress,
    base: BaseRelease | None = None,
    seed: int = 0,
) -> TowerData:
    """Fit the codes and read the towers' examples, point in time; see ``train_retrieval``."""
    features = PointInTime(workspace)
    time = epoch_seconds(events[c.TIMESTAMP])
    known = events[time < split.ranker]
    learned = base.examples(known, split, seed) if base else known
    codec, items = fit_codec(workspace, events, split, features=features, base=base)

    progress("reading histories point in time", 0, 1)
    first_contact = ~events.duplicated([c.USER, c.ITEM]).to_numpy()
    validation = (time >= split.ranker) & (time < split.calibrate) & first_contact

    has_positive = np.zeros(len(items), dtype=np.bool_)
    has_positive[codec.items.encode(known.loc[known[c.POSITIVE], c.ITEM].tolist())] = True
    return TowerData(
        codec,
        items,
        training=examples(codec, features, learned),
        validation=examples(codec, features, events[validation]),
        has_positive=has_positive,
        item_features=item_features(codec.item_tower, features, codec.items.values, split.ranker),
    )


def fit_codec(
    workspace: Workspace,
    events: pd.DataFrame,
    split: Split,
    *,
    features: PointInTime,
    base: BaseRelease | None = None,
) -> tuple[Codec, ItemTable]:
    """Fit vocabularies on what was known before ``split.ranker``; the catalogue has every item.

    Codes of attributes and categories that ``base`` has keep their meaning, since its weights
    depend on them.
    """
    spec = workspace.spec()
    declared = declared_in(workspace)
    known = events[epoch_seconds(events[c.TIMESTAMP]) < split.ranker]
    ids, columns = catalogue_columns(spec, workspace.ingest, events)
    positive = known[known[c.POSITIVE]]
    users = sorted(positive[c.USER].unique())

    user_attributes = AttributeEncoder.fit(
        spec.user_attributes, _user_attributes(spec, workspace, set(users))
    )
    item_attributes, categories = _fit_items(spec, columns, split.ranker)
    if base:
        item_attributes = base.codec.item_attributes.grown(item_attributes)
        categories = base.codec.categories.grown(categories)
        user_attributes = base.codec.user_attributes.grown(user_attributes)
    codec = Codec(
        spec,
        Vocabulary(users),
        Vocabulary(ids),
        categories,
        user_attributes,
        item_attributes,
        *counts_of(spec),
        declared.ranking_numeric(c.USER),
        declared.ranking_numeric(c.ITEM),
        declared.ranking_on_demand,
        declared.ranking_vectors,
        fit_user_features(declared, features, positive, spec.context),
        fit_item_features(declared, features, ids, split.ranker),
        declared.tower_views,
        declared.left_out_columns(spec),
        fit_user_categories(declared, features, positive),
        fit_item_categories(declared, features, ids, split.ranker),
    )
    if base:
        codec = base.with_moments(codec)

    activity = _activity_at_end(codec, features, events)
    columns |= {name: activity.counts[1:, n].tolist() for n, name in enumerate(codec.item_activity)}
    columns[c.FIRST_EVENT_AT] = activity.first_event_at[1:].tolist()
    columns[c.LAST_EVENT_AT] = activity.last_event_at[1:].tolist()
    items = build_items(codec, columns)
    declared_parts = replace(
        items.activity, vectors=activity.vectors, categories=activity.categories
    )
    return codec, items.with_activity(declared_parts)


def _fit_items(
    spec: DatasetSpec, columns: dict[str, list[Any]], before: float
) -> tuple[AttributeEncoder, Vocabulary]:
    """Fit item attributes and categories on the items that were available before a time."""
    available = [
        row
        for row, start in enumerate(columns[c.AVAILABLE_FROM])
        if start is None or start < before
    ]
    attributes = AttributeEncoder.fit(
        spec.item_attributes,
        {name: [columns[name][row] for row in available] for name in spec.item_attributes},
    )
    if not spec.category:
        return attributes, Vocabulary(())
    kind = spec.item_attributes[spec.category]
    return attributes, Vocabulary.fit(
        part for row in available for part in parts(kind, columns[spec.category][row])
    )


def _activity_at_end(codec: Codec, features: PointInTime, events: pd.DataFrame) -> Activity:
    """Return the items' activity as of the midnight after the last event."""
    end = events[c.TIMESTAMP].max() + pd.Timedelta(days=1)
    day = np.array([int(end.timestamp()) // DAY_S])
    _, activity = next(iter(features.item_activity(codec, day)))
    return activity


def _user_attributes(
    spec: DatasetSpec, workspace: Workspace, users: set[str]
) -> dict[str, list[Any]]:
    if not spec.user_attributes:
        return {}
    table = pq.read_table(workspace.ingest / "users.parquet").to_pylist()
    rows = [row for row in table if row[c.USER] in users]
    return {name: [row[name] for row in rows] for name in spec.user_attributes}


def examples(codec: Codec, features: PointInTime, events: pd.DataFrame) -> Examples:
    """Return the positive events of a log with each user's features just before, through Feast."""
    positive = events[events[c.POSITIVE]]
    requests = requests_from(positive, codec)
    reader = UserReader(codec)
    contexts = [
        reader.context(
            {**columns, **requests.context_columns(rows)},
            requests.time[rows],
        )
        for rows, columns in features.users(TOWER_USERS, requests.user, requests.time)
    ]
    # The square root keeps a rare purchase from drowning a hundred views.
    weight = np.sqrt(positive[c.WEIGHT].to_numpy(dtype=np.float32))
    return Examples(concatenate(contexts), requests.item, weight)


def tower_builder(data: TowerData, shape: TowerShape) -> Callable[[], TwoTowers]:
    """Return a function that makes untrained towers for a codec and catalogue."""
    codec, items = data.codec, data.items
    config = TowerConfig(
        users=len(codec.users),
        items=len(codec.items),
        user_attributes=codec.user_attributes.table_size,
        item_attributes=codec.item_attributes.table_size,
        user_attribute_width=codec.user_attributes.width,
        user_numbers=len(codec.user_attributes.numeric) + len(codec.user_tower),
        item_numbers=len(codec.item_attributes.numeric) + data.item_features.shape[1],
        **asdict(shape),
    )
    codes = torch.from_numpy(items.encoded.codes.astype(np.int64))
    attributes = codec.item_attributes.standardise(items.encoded.numbers)
    numbers = torch.from_numpy(np.concatenate([attributes, data.item_features], axis=1))
    return lambda: TwoTowers(config, codes, numbers, torch.from_numpy(data.has_positive))


def _write(folder: Path, data: TowerData, towers: TwoTowers, known: pd.DataFrame) -> IndexReport:
    """Write towers, vectors, index, similar items, catalogue and codes; report the index."""
    codec = data.codec
    raw, unit = item_vectors(towers)
    export_user_tower(towers, folder / "user_tower.onnx")
    export_item_tower(towers, folder / "item_tower.onnx")
    save_file(
        {name: value.contiguous() for name, value in towers.state_dict().items()},
        folder / "towers.safetensors",
    )
    np.save(folder / "item_vectors.npy", with_spare(unit))
    np.save(folder / "raw_item_vectors.npy", with_spare(raw))

    session = UserTowerSession((folder / "user_tower.onnx").read_bytes(), raw)
    queries = session(data.validation.context[:_INDEX_QUERIES])
    index, report = build_index(unit[1:], queries)
    save_index(index, folder / "index.faiss")

    _write_similar_items(folder, codec, known)
    save_items(data.items, folder)
    write_json(folder / "codec.json", codec.to_dict())
    return report


def _write_similar_items(folder: Path, codec: Codec, known: pd.DataFrame) -> None:
    """Write each item's neighbours: items that the same users had positive events with."""
    positive = known[known[c.POSITIVE]].sort_values(
        [c.USER, c.TIMESTAMP, c.EVENT_ID], kind="stable"
    )
    users = positive[c.USER].astype("category").cat.codes.to_numpy(dtype=np.int64)
    items = codec.items.encode(positive[c.ITEM].tolist())
    near, similarity = similar_items(users, items, len(codec.items))
    np.save(folder / "neighbours.npy", with_spare(near))
    np.save(folder / "similarities.npy", with_spare(similarity))
